"""Whether an abstract socket answers: `abstract.py <name>`."""

import socket
import sys

from kernel import attempt, tell

tell(attempt(lambda: socket.socket(socket.AF_UNIX).connect("\0" + sys.argv[1])))
