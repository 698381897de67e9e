"""Attempts 3, 4 and 5: files and programs of the host."""

import hashlib
import json
import os
import pathlib
import socket

import e2b
import pytest
from attacker import INSIDE, on_host
from house import ATOLL
from patience import eventually


def test_3_no_way_out_of_a_process_leads_to_a_file_of_the_host(attacker, host, user):
    found = attacker.run("reach", host.file, host.secret, user=user)
    assert (found["read"], found["written"], found["by chroot"]) == ([], [], False)
    # The directory of the listing, and nothing else: what came down from whoever started the house is gone.
    assert all(name.startswith("/proc/") and name.endswith("/fd") for name in found["descriptors"]), found["descriptors"]
    outside = on_host("reach", host.file, host.secret)
    assert "/proc/self/root" in outside["read"] and outside["written"] and outside["by chroot"]


def test_3_a_working_directory_below_a_descriptor_leads_nowhere(attacker, host, user):
    """CVE-2024-21626: the descriptors of whoever starts the command, not of the command."""
    leads = []
    for number in range(3, 32):
        for process in ("self", "1"):
            try:
                there = attacker.commands.run(f"cat secret .{host.file} ../..{host.file} ../../../../../..{host.file} 2>/dev/null; true", cwd=f"/proc/{process}/fd/{number}", user=user)
            except e2b.SandboxException as refused:
                assert "fd" in str(refused) or "cwd" in str(refused), refused
                continue
            leads += [number] if there.stdout else []
    assert leads == []


def test_3_descriptors_of_the_host_cannot_be_taken_from_the_first_process(attacker, user):
    for part in ("fd", "fdinfo", "map_files", "environ", "maps", "mem", "cwd", "root", "exe", "ns/net", "auxv", "syscall", "stack"):
        said = attacker.shell(f"test -d /proc/1/{part} -a ! -L /proc/1/{part} && readlink -v /proc/1/{part}/* || head -c1 /proc/1/{part}", user=user)
        assert "ermission denied" in said or "not permitted" in said or "No such file" in said, (part, said)
    assert attacker.run("doors", "all", user=user)["ptrace of the first process"] == "EPERM"


def programs(house):
    """What runs on the host for sandboxes, and what they run of the host's."""
    found = [pathlib.Path(ATOLL).parent / name for name in ("atoll", "atoll-launcher", "atoll-envd", "atoll-sudo")]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in [*found, *house.dir.glob("container/agent/*/envd")]}


def test_4_programs_of_the_host_cannot_be_written_by_their_processes(fresh, house, host):
    """CVE-2019-5736: a shell that is a script for `/proc/self/exe` has the runtime execute itself."""
    before = programs(house)
    assert len(before) == 5
    fresh.shell("cp /bin/bash /usr/local/bin/bash.kept", user="root")
    waiting = fresh.commands.run(f"python3 {INSIDE}/overwrite.py 4", user="root", background=True)
    fresh.commands.run("printf '#!/proc/self/exe\\n' > /tmp/evil; chmod 755 /tmp/evil; rm /usr/bin/bash; cp /tmp/evil /usr/bin/bash", user="root")
    for _ in range(10):
        with pytest.raises(e2b.SandboxException):
            fresh.commands.run("true", timeout=5)
    told = json.loads(waiting.wait().stdout)
    assert {name for name in told["opened"] if "envd" in name} == set()
    assert told["seen"]
    assert programs(house) == before
    assert house.create().commands.run("echo others").stdout == "others\n"


LINKS = {
    "/etc/resolv.conf": "{file}",
    "/etc/hosts": "/proc/sys/kernel/core_pattern",
    "/etc/machine-id": "/proc/1/root{file}",
    "/etc/hostname": "{file}",
}


@pytest.mark.parametrize("how", ["files", "directories"])
def test_5_links_that_await_the_next_boot_lead_nowhere(house, fresh, host, how):
    """CVE-2025-31133, -52565, CVE-2021-30465: names that the runtime writes or mounts on, swapped before it does."""
    core = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    lines = [f"ln -sfn {target.format(file=host.file)} {path}" for path, target in LINKS.items()]
    if how == "directories":
        lines = [f"mv /etc /etc.kept; ln -s {host.dir} /etc", f"mv /tmp /tmp.kept; ln -s {host.dir} /tmp"]
    # Mount points hold their names; where one can be moved, it is.
    lines += ["for d in /proc /sys /dev /usr /dev/shm /run/atoll/agent /run/atoll /run; do mv $d $d.x && ln -s / $d; done", "ln -s / /dev/console", "mv /dev/null /dev/nil"]
    fresh.shell("; ".join(lines), user="root")
    fresh.sandbox.pause(mode="filesystem")
    try:
        back = house.connect(fresh.sandbox.sandbox_id)
    except e2b.SandboxException:
        back = None  # Its own fault: it took away what it would have booted from.
    if back:
        boots(back, host)
    assert pathlib.Path("/proc/sys/kernel/core_pattern").read_text() == core
    host.assert_untouched()


def boots(back, host):
    """What a sandbox is after a boot from a disk that was prepared."""
    try:
        looked = back.commands.run("for f in /proc/kcore /proc/kallsyms /proc/timer_list /proc/keys; do test -e $f && stat -c %F $f; done; ls /sys/fs /sys/kernel; cat /etc/hosts /tmp/secret 2>&1; true").stdout
    except (e2b.SandboxException, e2b.AuthenticationException):
        return  # A boot without accounts or shells runs nothing, which is a way to be shut.
    kinds = [line for line in looked.splitlines() if "file" in line and "regular" in line]
    assert kinds == [] and host.secret not in looked


def test_5_a_socket_that_envd_left_to_others_is_not_followed(house, attacker, host, neighbour):
    """The daemon looks for envd's socket again when it is started anew: at a name that root inside may give to a link."""
    mine = house.create(timeout=3600)
    kept = mine.commands.run("sleep 3600", background=True, timeout=0)
    mine.commands.run(f"sudo rm /run/atoll/envd.sock; sudo ln -s {host.dir}/socket /run/atoll/envd.sock; sudo mv /run/atoll /run/other; sudo ln -s {host.dir} /run/atoll")
    house.kill()
    house.start()
    try:
        mine.commands.run("true", timeout=10, request_timeout=20)
    except e2b.SandboxException:
        pass
    assert kept.pid
    host.assert_untouched()
    with socket.socket(socket.AF_UNIX) as knock:
        knock.connect(str(host.dir / "socket"))
    eventually(lambda: host.visitors, "a visit, where one comes, to be noted")
    host.visitors.clear()
    house.connect(mine.sandbox_id).kill() if mine.sandbox_id in house.list() else None
    assert os.path.exists(host.file)
