"""Which regular files of a file system one may open for writing, apart from those of processes: `find.py <directory>…`."""

import os
import stat
import sys

from kernel import tell


def writable(top):
    for directory, below, names in os.walk(top):
        below[:] = [name for name in below if not (directory == "/proc" and (name.isdigit() or name in ("self", "thread-self")))]
        for path in (os.path.join(directory, name) for name in names):
            if os.access(path, os.W_OK) and stat.S_ISREG(os.lstat(path).st_mode):
                yield path


tell([path for top in sys.argv[1:] for path in writable(top)])
