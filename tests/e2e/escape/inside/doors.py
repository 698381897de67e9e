"""Attempt 6: doors of the kernel that lead out of any sandbox. Arguments are wrong where the right ones would do harm, so
that a door which is open answers with another error than a closed one."""

import ctypes
import os
import sys

from kernel import attempt, call, in_child, only_inside, tell


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("inode", ctypes.c_ulonglong)]


PERF = (ctypes.c_uint64 * 16)(1 | 128 << 32, 0)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK
RING = (ctypes.c_uint64 * 15)()
BPF = (ctypes.c_uint32 * 32)(2, 4, 4, 1)  # BPF_MAP_TYPE_ARRAY of one element
ROOM = ctypes.create_string_buffer(8)
KEY_JOIN, KEY_DESCRIBE = 1, 6

DOORS = {
    "open_by_handle_at": lambda: call(304, os.open("/", os.O_RDONLY), Handle(8, 1, 2), 0),
    "bpf": lambda: call(321, 0, BPF, 128),
    "perf_event_open": lambda: call(298, PERF, 0, -1, -1, 0),
    "perf_event_open of everybody": lambda: call(298, PERF, -1, 0, -1, 0),
    "io_uring_setup": lambda: call(425, 4, RING),
    "io_uring_enter": lambda: call(426, 999, 0, 0, 0, 0, 0),
    "io_uring_register": lambda: call(427, 999, 0, 0, 0),
    "userfaultfd": lambda: call(323, 0),
    "userfaultfd, user mode": lambda: call(323, 1),
    "keyctl join": lambda: call(250, KEY_JOIN, 0),
    "keyctl describe the user's": lambda: call(250, KEY_DESCRIBE, -4, 0, 0),
    "add_key": lambda: call(248, b"user", b"escape", b"x", 1, -3),
    "request_key": lambda: call(249, b"user", b"escape-no-such-key", 0, 0),
    "kexec_load": lambda: call(246, 0, 99, 0, 1 << 30),
    "kexec_file_load": lambda: call(320, -1, -1, 0, 0, 1 << 30),
    "init_module": lambda: call(175, 0, 0, 0),
    "finit_module": lambda: call(313, -1, b"", 0),
    "delete_module": lambda: call(176, b"escape_no_such_module", 0o4000),
    "reboot": lambda: call(169, 0, 0, 0, 0),
    "swapon": lambda: call(167, b"/escape/no/such", 0),
    "swapoff": lambda: call(168, b"/escape/no/such"),
    "syslog": lambda: call(103, 10, 0, 0),
    "acct": lambda: call(163, b"/escape/no/such"),
    "quotactl": lambda: call(179, 0, b"/escape/no/such", 0, 0),
    "fanotify_init": lambda: call(300, 0, 0),
    "settimeofday": lambda: call(164, 0, (ctypes.c_int * 2)(-10000, 0)),
    "clock_settime": lambda: call(227, 99, (ctypes.c_long * 2)()),
    "sethostname": lambda: call(170, b"x" * 100, 100),
    "iopl": lambda: call(172, 4),
    "ioperm": lambda: call(173, 70000, 1, 1),
    "modify_ldt": lambda: call(154, 1, 0, 0),
    "kcmp": lambda: call(312, 1, os.getpid(), 99, 0, 0),
    "lookup_dcookie": lambda: call(212, 0, 0, 0),
    "move_pages of another": lambda: call(279, 1, 0, 0, 0, 0, 1 << 20),
    "memfd_secret": lambda: call(447, 1 << 20),
    "uselib": lambda: call(134, b"/escape/no/such"),
}

# Those that are not to be tried on a host, and what has no number of its own: nodes, tracing, priorities.
OTHERS = {
    "mknod of a disk": lambda: attempt(os.mknod, "/tmp/escape-disk", 0o060600, os.makedev(7, 0)),
    "mknod of memory": lambda: attempt(os.mknod, "/tmp/escape-mem", 0o020600, os.makedev(1, 1)),
    "mknod of the console": lambda: attempt(os.mknod, "/tmp/escape-console", 0o020600, os.makedev(5, 1)),
    "ptrace of the first process": lambda: in_child(lambda: call(101, 16, 1, 0, 0)),
    "seize the first process": lambda: in_child(lambda: call(101, 0x4206, 1, 0, 0)),
    "memory of the first process": lambda: attempt(open, "/proc/1/mem", "r+b"),
    "read the first process by call": lambda: call(310, 1, (ctypes.c_uint64 * 2)(ctypes.addressof(ROOM), 8), 1, (ctypes.c_uint64 * 2)(0x400000, 8), 1, 0),
    "real time priority": lambda: attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
    "a better priority": lambda: attempt(os.setpriority, os.PRIO_PROCESS, 0, -20),
    "less badness": lambda: attempt(lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000")),
    "type into a terminal": lambda: call(16, os.openpty()[1], 0x5412, b"x"),
    "type into the console": lambda: call(16, os.openpty()[1], 0x541C, b"\x02"),
}

if sys.argv[1] == "all":
    only_inside()
    DOORS |= OTHERS
tell({name: in_child(door) for name, door in DOORS.items()})
