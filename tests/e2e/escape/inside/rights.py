"""Attempt 7: what one may do, as one is, and by programs that give more."""

import errno
import json
import os
import re
import shutil
import struct
import subprocess
import sys

from kernel import attempt, tell

NAMES = """chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service net_broadcast
net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time
sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf
checkpoint_restore""".split()
# A setuid program; one with capabilities; one with those of the root of the host.
KINDS = ("setuid", "capable", "foreign")
ALL = (1 << len(NAMES)) - 1


def rights():
    status = open("/proc/self/status").read()
    sets = {name: int(value, 16) for name, value in re.findall(r"^Cap(\w+):\s+(\w+)$", status, re.M)}
    found = {name: [NAMES[i] if i < len(NAMES) else str(i) for i in range(64) if mask >> i & 1] for name, mask in sets.items()}
    return found | {"seccomp": re.search(r"^Seccomp:\s+(\d)", status, re.M)[1], "user": os.geteuid(), "users": open("/proc/self/uid_map").read().split()}


def by(program):
    """What a copy of the interpreter has."""
    try:
        return json.loads(subprocess.run([program, __file__, "rights"], capture_output=True, check=True).stdout)
    except OSError as error:
        return errno.errorcode[error.errno]


def gain():
    """As root: copies of the interpreter that promise more, to be run by somebody else."""
    found = {}
    real = os.path.realpath(sys.executable)
    for name in KINDS:
        shutil.copy(real, f"/usr/local/bin/escape-{name}")
    os.chmod("/usr/local/bin/escape-setuid", 0o4755)
    # VFS_CAP_REVISION_2 with the effective bit: everything permitted, nothing inheritable.
    everything = struct.pack("<IIIII", 0x02000001, ALL & 0xFFFFFFFF, 0, ALL >> 32, 0)
    found["grant"] = attempt(os.setxattr, "/usr/local/bin/escape-capable", "security.capability", everything)
    # Bound to the root of the host.
    elsewhere = struct.pack("<IIIIII", 0x03000001, ALL & 0xFFFFFFFF, 0, ALL >> 32, 0, 0)
    found["grant of version 3"] = attempt(os.setxattr, "/usr/local/bin/escape-foreign", "security.capability", elsewhere)
    return found


def gained():
    return {name: by(f"/usr/local/bin/escape-{name}") for name in KINDS}


tell({"rights": rights, "gain": gain, "gained": gained}[sys.argv[1]]())
