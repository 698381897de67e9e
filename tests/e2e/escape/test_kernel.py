"""Attempts 1, 2, 6 and 7: what the kernel would do for somebody with more rights."""

import glob
import pathlib

from attacker import on_host

REFUSED = {"EPERM", "ENOSYS"}
# The filter ends who speaks an instruction set that it does not know.
ENDED = {"SIGSYS"}
CAPABILITIES = ["chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service", "sys_chroot", "audit_write", "setfcap"]


def flat(outcomes):
    for name, outcome in outcomes.items():
        yield from ((name, one) for one in (outcome if isinstance(outcome, list) else [outcome]))


def test_1_nobody_makes_or_enters_a_namespace(attacker, user):
    refused = REFUSED | ENDED | {"Operation not permitted", "EACCES"}
    outcomes = attacker.run("namespaces", "namespaces", user=user)
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in refused} == {}
    outside = on_host("namespaces", "namespaces")
    assert outside["unshare mount"] == outside["clone mount"] == outside["setns uts"] == "ok"


def test_1_nobody_mounts_or_uncovers(attacker, user):
    attacker.shell("truncate -s 1M /tmp/disk; mkfs.ext4 -q /tmp/disk", user=user)
    outcomes = list(flat(attacker.run("namespaces", "mounts", user=user)))
    assert [one for one in outcomes if one[1] not in REFUSED] == []


def test_1_no_setting_of_the_kernel_can_be_written(attacker, user):
    core = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    outcomes = attacker.run("namespaces", "settings", user=user)
    assert {path: outcome for path, outcome in outcomes.items() if outcome not in {"EACCES", "EROFS", "ENOENT", "EPERM"}} == {}
    attacker.shell("echo '|/tmp/x' > /proc/sys/kernel/core_pattern; sysctl -w kernel.core_pattern=x; echo c > /proc/sysrq-trigger", user=user)
    assert pathlib.Path("/proc/sys/kernel/core_pattern").read_text() == core
    assert on_host("namespaces", "settings")["/proc/sys/kernel/core_pattern"] == "ok"


def test_1_nothing_but_its_own_settings_can_be_opened_for_writing(attacker, user):
    """Whatever other files this kernel has in /proc and /sys, apart from those of processes."""
    assert set(attacker.run("find", "/proc", "/sys", user=user)) <= {"/proc/sys/kernel/random/boot_id"}
    assert "/proc/sys/kernel/core_pattern" in on_host("find", "/proc/sys/kernel")


def test_2_there_is_no_control_group_to_write_to(attacker, user):
    assert attacker.shell("find / -xdev -name release_agent -o -name cgroup.procs -o -name notify_on_release 2>/dev/null; find /sys /proc -name 'cgroup.*' -o -name release_agent 2>/dev/null | grep -v '^/proc/[0-9]'", user=user) == ""
    # Each hierarchy's root is its own group: no name above it, or beside it, shows.
    groups = attacker.shell("cat /proc/self/cgroup /proc/1/cgroup", user=user).split()
    assert groups and {line.split(":", 2)[2] for line in groups} == {"/"}
    assert attacker.shell("grep -c cgroup /proc/mounts", user=user).strip() == "0"
    assert glob.glob("/sys/fs/cgroup/**/atoll*/*", recursive=True), "the host has groups for sandboxes"


def test_6_the_doors_out_of_the_kernel_are_shut(attacker, user):
    outcomes = attacker.run("doors", "all", user=user)
    assert {door: outcome for door, outcome in outcomes.items() if outcome not in REFUSED | {"EACCES"}} == {}
    # Root outside is answered otherwise: the doors are there. What this kernel was built without is shut for all.
    outside = on_host("doors", "host")
    open_outside = {door for door, outcome in outside.items() if outcome not in REFUSED}
    assert len(open_outside & {"open_by_handle_at", "bpf", "perf_event_open", "syslog", "swapon", "reboot", "fanotify_init"}) >= 4


def test_7_rights_are_those_that_are_documented(attacker):
    user, root = attacker.run("rights", "rights"), attacker.run("rights", "rights", user="root")
    by_sudo = attacker.shell("sudo python3 /opt/escape/rights.py rights")
    assert user["Eff"] == user["Prm"] == user["Inh"] == user["Amb"] == []
    assert root["Eff"] == root["Prm"] == root["Bnd"] == user["Bnd"] == CAPABILITIES
    assert root["Inh"] == root["Amb"] == []
    assert eval(by_sudo) == root
    assert user["seccomp"] == root["seccomp"] == "2"
    first, beyond, count = map(int, root["users"])
    assert (first, count) == (0, 65536) and beyond >= 65536 * 4096


def test_7_programs_that_give_more_give_nothing_beyond(attacker):
    granted = attacker.run("rights", "gain", user="root")
    assert set(granted.values()) <= {"ok", "EPERM", "EINVAL"}
    gained = attacker.run("rights", "gained")
    # Passwordless sudo is such a program (decision 4): root, of a namespace in which root may do little.
    assert gained["setuid"] == attacker.run("rights", "rights", user="root")
    for name in ("capable", "foreign"):
        assert gained[name] == "EPERM" or set(gained[name]["Eff"]) <= set(CAPABILITIES)
    for line in ["sudo unshare -m true", "sudo mount -t tmpfs x /mnt", "sudo mknod /tmp/d b 7 0", "sudo ip link set eth0 down"]:
        said = attacker.shell(line)
        assert "not permitted" in said or "denied" in said, said
