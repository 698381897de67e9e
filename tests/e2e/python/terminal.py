"""A program on a terminal, and who sits before it."""

import fcntl
import os
import pty
import select
import struct
import termios
import time

from conftest import PATIENCE_SECONDS


class Terminal:
    """Runs a command on a pseudo-terminal; ends it with the block."""

    def __init__(self, command, rows=24, cols=80):
        self.shown = ""
        self.code = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            # The size is set before the program can ask for it.
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
            os.execvp(command[0], command)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.code is None:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def types(self, text):
        os.write(self.fd, text.encode())

    def resize(self, rows, cols):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def shown_within(self, wanted, seconds):
        """Whether `wanted` shows before the time is over; reads what is shown meanwhile."""
        deadline = time.monotonic() + seconds
        while wanted not in self.shown:
            left = deadline - time.monotonic()
            if left < 0 or not self.reads(left):
                return wanted in self.shown
        return True

    def shows(self, wanted):
        assert self.shown_within(wanted, PATIENCE_SECONDS), f"{wanted!r} does not show in {self.shown!r}"

    def reads(self, seconds):
        """Reads once; false when the program has closed the terminal."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def ends(self):
        """Waits for the program's end; returns its exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.reads(0.1):
            assert time.monotonic() < deadline, f"the program does not end after {self.shown!r}"
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code
