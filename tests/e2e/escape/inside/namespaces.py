"""Attempt 1: namespaces of one's own, mounts, and settings of the kernel."""

import ctypes
import mmap
import os
import platform
import sys

from kernel import CLONE, attempt, call, in_child, libc, tell

SIGCHLD = 17
UNSHARE, CLONE_CALL, CLONE3, SETNS, MOUNT, UMOUNT, PIVOT = 272, 56, 435, 308, 165, 166, 155
OPEN_TREE, MOVE_MOUNT, FSOPEN, FSPICK, MOUNT_SETATTR = 428, 429, 430, 433, 442
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
X32 = 0x40000000


def cloned(flags):
    """By clone(2); the child, should there be one, ends at once."""
    result = libc.syscall(ctypes.c_long(CLONE_CALL), ctypes.c_ulong(flags | SIGCHLD), 0, 0, 0, 0)
    if result == 0:
        os._exit(0)
    return "ok" if result > 0 else os.strerror(ctypes.get_errno())


def cloned3(flags):
    before = os.getpid()
    outcome = call(CLONE3, (ctypes.c_uint64 * 11)(flags, 0, 0, 0, SIGCHLD), 88)
    if os.getpid() != before:
        os._exit(0)
    return outcome


def by_old_abi(number, argument):
    """A system call as programs of 32 bits make it, which filters of 64 bits have overlooked."""
    code = b"\xb8" + number.to_bytes(4, "little") + b"\x53\xbb" + argument.to_bytes(4, "little") + b"\xcd\x80\x5b\x48\x98\xc3"
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    result = function()
    return "ok" if result >= 0 else str(result)


def namespaces():
    found = {}
    for name, flag in CLONE.items():
        found[f"unshare {name}"] = in_child(lambda: call(UNSHARE, flag))
        found[f"setns {name}"] = in_child(lambda: call(SETNS, os.open(f"/proc/self/ns/{'mnt' if name == 'mount' else name}", os.O_RDONLY), 0))
        found[f"unshare {name}, x32"] = in_child(lambda: call(X32 | UNSHARE, flag))
        found[f"unshare {name}, 32 bits"] = in_child(lambda: by_old_abi(310, flag))
        if name != "time":
            found[f"clone {name}"] = in_child(lambda: cloned(flag))
            found[f"clone {name}, high bits set"] = in_child(lambda: cloned(flag | 1 << 40))
    found["unshare user and mount"] = in_child(lambda: call(UNSHARE, CLONE["user"] | CLONE["mount"]))
    found["clone3 user"] = in_child(lambda: cloned3(CLONE["user"]))
    found["setns of the first process"] = in_child(lambda: call(SETNS, os.open("/proc/1/ns/mnt", os.O_RDONLY), 0) if os.access("/proc/1/ns/mnt", os.R_OK) else "EACCES")
    return found


def mounts():
    """Those that change nothing where they succeed: below a directory of ours, or of what is there already."""
    os.makedirs("/tmp/escape-mount", exist_ok=True)
    here = b"/tmp/escape-mount"
    return {
        "tmpfs": call(MOUNT, b"none", here, b"tmpfs", 0, 0),
        "proc": call(MOUNT, b"none", here, b"proc", 0, 0),
        "sysfs": call(MOUNT, b"none", here, b"sysfs", 0, 0),
        "cgroup": call(MOUNT, b"none", here, b"cgroup", 0, b"memory"),
        "cgroup2": call(MOUNT, b"none", here, b"cgroup2", 0, 0),
        "devtmpfs": call(MOUNT, b"none", here, b"devtmpfs", 0, 0),
        "overlay": call(MOUNT, b"none", here, b"overlay", 0, b"lowerdir=/:/usr"),
        "bind": call(MOUNT, b"/", here, 0, MS_BIND, 0),
        "disk": [call(MOUNT, device, here, b"ext4", MS_RDONLY, 0) for device in (b"/dev/vda", b"/dev/sda1", b"/dev/loop0", b"/tmp/disk")],
        "proc/sys writable": call(MOUNT, b"none", b"/proc/sys", 0, MS_REMOUNT | MS_BIND, 0),
        "sys writable": call(MOUNT, b"none", b"/sys", 0, MS_REMOUNT | MS_BIND, 0),
        "unmask": call(UMOUNT, b"/proc/kcore", 2),
        "uncover": call(UMOUNT, b"/sys/fs", 2),
        "fsopen": call(FSOPEN, b"tmpfs", 0),
        "fspick": call(FSPICK, -100, b"/", 0),
        "open_tree": call(OPEN_TREE, -100, b"/", 1),
        "move_mount": call(MOVE_MOUNT, -100, b"/proc", -100, here, 0),
        "mount_setattr": call(MOUNT_SETATTR, -100, b"/proc/sys", 0, (ctypes.c_uint64 * 4)(0, 1, 0, 0), 32),
        "pivot_root": call(PIVOT, here, here),
    }


SETTINGS = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/fs/inotify/max_user_instances",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/user/max_inotify_instances",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/bus/pci/00/00.0",
    "/proc/acpi/wakeup",
    "/proc/mtrr",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/security/apparmor/.load",
    "/sys/module/kernel/parameters/panic",
    "/sys/power/state",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/class/net/eth0/mtu",
    "/sys/devices/system/cpu/cpu0/online",
]


def settings():
    """Whether a setting of the kernel can be opened for writing; nothing is written."""
    return {path: attempt(lambda: os.close(os.open(path, os.O_WRONLY))) for path in SETTINGS}


assert platform.machine() == "x86_64"
tell({"namespaces": namespaces, "mounts": mounts, "settings": settings}[sys.argv[1]]())
