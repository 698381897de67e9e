"""Attempts 17 and 18: taking all that there is of something, and holding it: `flood.py <what> <seconds> [most]`.

Tells what could be had, when there is no more.
"""

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import sys
import threading
import time

from kernel import libc, only_inside, tell

PDEATHSIG = 1
only_inside()
children = []
seconds = float(sys.argv[2])
# Of each process.
MOST = int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 20


def until_refused(take, most):
    """How many could be had, and why there was no more."""
    held = []
    for _ in range(min(most, MOST)):
        try:
            held.append(take())
        except (OSError, RuntimeError) as error:
            number = getattr(error, "errno", None)
            return len(held), errno.errorcode.get(number, type(error).__name__), held
    return len(held), "ok", held


def alone():
    """A child ends with its parent, also where the kernel ends that for want of memory, and keeps nobody listening."""
    libc.prctl(PDEATHSIG, signal.SIGKILL)
    os.closerange(1, 3)


def child():
    pid = os.fork()
    if pid == 0:
        alone()
        time.sleep(seconds + 60)
        os._exit(0)
    children.append(pid)
    return pid


def thread():
    threading.Thread(target=time.sleep, args=(seconds,), daemon=True).start()


def raw(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def by_many(take, most):
    """By so many processes as one has descriptors for: a limit of each process is none of the sandbox."""
    total = 0
    for _ in range(most):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            alone()
            count, why, _held = until_refused(take, 1 << 20)
            os.write(writing, f"{count} {why}".encode())
            time.sleep(seconds + 60)
            os._exit(0)
        os.close(writing)
        children.append(pid)
        count, why = os.read(reading, 100).decode().split()
        total += int(count)
        if int(count) == 0 or MOST <= int(count):
            break
    return total, why, children


ROOM = ctypes.create_string_buffer(1 << 16)
CLOCK = (ctypes.c_ulong * 1)()
queues = iter(range(1 << 20))


def queue():
    return raw(240, f"escape{os.getpid()}-{next(queues)}".encode(), os.O_RDWR | os.O_CREAT, 0o600, 0)


def signals():
    """Queued for somebody who does not take them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
    information = (ctypes.c_int * 32)(signal.SIGRTMIN, 0, -1)
    return lambda: raw(129, os.getpid(), int(signal.SIGRTMIN), information)


def pipe():
    """As large as it may be, and full."""
    reading, writing = os.pipe()
    libc.fcntl(writing, 1031, 1 << 20)
    os.set_blocking(writing, False)
    try:
        while True:
            raw(278, writing, (ctypes.c_ulong * 2)(ctypes.addressof(ROOM), len(ROOM)), 1, 2)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
    return reading, writing


def sockets():
    """Full of descriptors on their way."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    try:
        while True:
            socket.send_fds(ours, [b"x" * 4096], [ours.fileno()] * 100)
    except BlockingIOError:
        pass
    return ours, theirs


def locked():
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],) * 2)
    page = mmap.mmap(-1, 64 << 20)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    step = iter(range(0, 64 << 20, 1 << 20))
    return until_refused(lambda: raw(149, address + next(step), 1 << 20), 64)


FLOODS = {
    "processes": lambda: until_refused(child, 100_000),
    "threads": lambda: until_refused(thread, 100_000),
    "descriptors": lambda: by_many(lambda: os.dup(0), 8),
    "pidfds": lambda: by_many(lambda: os.pidfd_open(1), 4),
    "inotify": lambda: by_many(lambda: raw(294, 0), 64),
    "signals": lambda: until_refused(signals(), 1_000_000),
    "timers": lambda: until_refused(lambda: raw(222, 0, 0, CLOCK), 1_000_000),
    "posix queues": lambda: by_many(queue, 64),
    "system v queues": lambda: until_refused(lambda: raw(68, 0, 0o1600), 100_000),
    "semaphores": lambda: until_refused(lambda: raw(64, 0, 250, 0o1600), 100_000),
    "system v memory": lambda: until_refused(lambda: raw(29, 0, 1 << 30, 0o1600), 100_000),
    "pipes": lambda: by_many(pipe, 16),
    "sockets": lambda: by_many(sockets, 16),
    "epoll": lambda: by_many(lambda: raw(291, 0), 4),
    "locked memory": locked,
}
count, why, held = FLOODS[sys.argv[1]]()
tell([count, why])
sys.stdout.flush()
time.sleep(seconds)
for pid in children:
    os.kill(pid, signal.SIGKILL)
os._exit(0)
