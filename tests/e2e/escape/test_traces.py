"""Attempts 33 and 34: what one learns of the host, and of who was in the slot before."""

import pathlib
import platform
import re
import secrets
import threading

import e2b
from attacker import Attacker
from patience import eventually

SIDES = ["kallsyms", "kcore", "kmsg", "sched_debug", "timer_list", "keys", "key-users", "interrupts", "iomem", "cmdline", "diskstats", "partitions", "swaps", "vmallocinfo"]


def test_34_what_the_kernel_says_of_the_host_is_empty(attacker, user):
    for name in SIDES:
        said = attacker.shell(f"head -c 200 /proc/{name} | wc -c; ls -A /proc/{name} 2>/dev/null | head -3", user=user).split()
        assert said[-2] == "0" or "cannot" in said, (name, said)
    assert pathlib.Path("/proc/cmdline").read_text().strip() and pathlib.Path("/proc/kallsyms").read_text(), "the host has something to tell"


def test_34_the_log_of_the_kernel_is_not_read(attacker, user):
    said = attacker.shell("dmesg; sudo dmesg; cat /dev/kmsg /proc/kmsg", user=user)
    assert "not permitted" in said and not re.search(r"^\[? *\d+\.\d+\]", said, re.M)


def test_34_hardware_and_disks_of_the_host_are_not_listed(attacker, user):
    listed = set(attacker.shell("cd /sys; find . -maxdepth 2", user=user).split())
    assert {path for path in listed if path.startswith(("./class/", "./devices/"))} <= {"./class/net", "./devices/system", "./devices/virtual"}
    assert attacker.shell("ls -A /sys/block /sys/bus /sys/dev /sys/firmware /sys/fs /sys/kernel /sys/module /sys/power | grep -v ':$' | tr -d '\\n'; find /sys -name backing_file -o -name product_uuid -o -name '*serial*' -o -name powercap", user=user) == ""
    assert attacker.shell("ls /sys/class/net; ls /sys/devices/virtual/net", user=user).split() == ["eth0", "lo"] * 2
    assert "/sys/devices/system/cpu/online" in attacker.shell("ls /sys/devices/system/cpu/online")


def test_34_nothing_readable_names_what_is_the_hosts(attacker, house, host, user):
    """Every file of the kernel's own file systems is read, and searched for names that are the host's alone."""
    names = [host.secret, platform.node() if len(platform.node()) > 4 else "", str(house.dir / "container/volume"), pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(), pathlib.Path("/proc/cmdline").read_text().strip()[:60]]
    attacker.files.write("/tmp/names", "\n".join(name for name in names if name) + "\n")
    found = attacker.shell("find /proc /sys -path '/proc/[0-9]*/task' -prune -o -type f -size -1 -readable -print 2>/dev/null | grep -v '/proc/[0-9]*/\\(mem\\|pagemap\\|clear_refs\\)$' | timeout 60 xargs -d '\\n' timeout 20 grep -lFf /tmp/names 2>/dev/null | grep -v '/proc/\\([0-9]*\\|self\\|thread-self\\)/\\(cmdline\\|environ\\)$'", user=user)
    assert found == ""
    assert host.secret in pathlib.Path(f"/proc/{host.process.pid}/cmdline").read_text()


def test_34_processes_of_others_are_not_seen(attacker, neighbour, host, user):
    listed = attacker.shell("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done; ls /proc | grep -cE '^[0-9]+$'", user=user)
    assert host.secret not in listed and neighbour.secret not in listed and "internet.py" not in listed
    assert int(listed.split()[-1]) < 60
    # Numbers of the host's are nobody's here, or one's own.
    assert "No such process" in attacker.shell(f"kill -9 {host.process.pid}; kill -9 {4_000_000}", user=user)
    assert host.process.poll() is None


def test_34_devices_are_files_of_ones_own(attacker, neighbour, user):
    """On a shared file one would see, by inotify(7) and flock(2), when others use theirs."""
    watch = "import ctypes, os, select\nlibc = ctypes.CDLL(None)\nfd = libc.inotify_init1(0)\nfor d in ('null', 'zero', 'urandom', 'random', 'full', 'tty'):\n  assert libc.inotify_add_watch(fd, f'/dev/{d}'.encode(), 0xfff) >= 0\nprint('watching', flush=True)\nprint(len(os.read(fd, 4096)) if select.select([fd], [], [], 3)[0] else 'nothing')"
    attacker.files.write("/tmp/watch.py", watch)
    heard = iter(attacker.commands.run("exec python3 /tmp/watch.py", user=user, background=True))
    assert next(heard)[0] == "watching\n"
    neighbour.sandbox.commands.run("for i in 1 2 3; do echo x > /dev/null; head -c1 /dev/urandom > /dev/zero; done; flock -xn /dev/null true")
    pathlib.Path("/dev/null").write_text("x")
    assert [out for out, _, _ in heard if out] == ["nothing\n"]


MARK = "ESCAPE"


def leave(attacker, secret):
    """Everywhere that something can be left in a sandbox."""
    attacker.shell(
        f"for d in /home/user /tmp /dev/shm /var/tmp /root /run /etc /usr/local/bin /dev/mqueue; do echo {secret} > $d/{secret}; done; "
        f"python3 -c \"import ctypes; l = ctypes.CDLL(None); i = l.shmget(0x1337, 4096, 0o1666); l.shmat.restype = ctypes.c_void_p; ctypes.memmove(l.shmat(i, None, 0), b'{secret}', {len(secret)})\"; "
        f"dd if=/dev/zero bs=1M count=2 2>/dev/null | tr '\\0' x | sed 's/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx/{secret}/g' > /home/user/much; sync",
        user="root",
    )
    attacker.commands.run(f"exec python3 -c 'import time; time.sleep(3600)' {secret}", background=True, timeout=0, envs={"LEFT": secret})
    attacker.commands.run("python3 -m http.server 8000", background=True, timeout=0)


def found_by(attacker):
    """What the next tenant of a slot finds of anybody."""
    return attacker.shell(
        f"grep -rslF {MARK}- /home /tmp /dev/shm /var /root /run /etc /usr/local /dev/mqueue /proc/[0-9]*/environ /proc/[0-9]*/cmdline | grep -v '/proc/\\(self\\|[0-9]*\\)/cmdline'; "
        f"find / -xdev -name '*{MARK}-*'; ls -A /tmp /dev/shm /dev/mqueue /home/user | grep {MARK}; ipcs -m | grep 0x00001337; ss -ltn 2>&1 | grep :8000; "
        # What a disk gives before anybody wrote to it, and memory likewise.
        f"fallocate -l 64M /var/blank && grep -c {MARK}- /var/blank | grep -v '^0$'; "
        f"python3 -c \"import mmap; m = mmap.mmap(-1, 100 << 20); print('memory') if m.find(b'{MARK}-') >= 0 else None\"",
        user="root",
    )


def test_33_nothing_of_a_tenant_is_found_by_the_next_one(house, attacker):
    """The daemon is killed while sandboxes are made, paused and ended; their slots are used again."""
    secret = f"{MARK}-{secrets.token_hex(16)}"
    tokens = {}
    for number in range(3):
        tenants = [Attacker(house) for _ in range(3)]
        for tenant in tenants:
            leave(tenant, secret)
            tokens[tenant.sandbox.sandbox_id] = tenant.sandbox._envd_access_token
        assert secret in found_by(tenants[0])

        def act(tenant, act):
            try:
                act(tenant)
            except Exception:
                pass  # The house is being killed; what matters is who finds what.

        acts = [lambda t: t.sandbox.pause(), lambda t: t.sandbox.kill(), lambda t: Attacker(house).sandbox.kill()]
        running = [threading.Thread(target=act, args=pair) for pair in zip(tenants, acts[number:] + acts[:number])]
        for thread in running:
            thread.start()
        house.kill()
        for thread in running:
            thread.join()
        house.start()
        for tenant in tenants:
            e2b.Sandbox.kill(tenant.sandbox.sandbox_id, **house.connection)
    eventually(lambda: not set(tokens) & set(house.list()), "the earlier tenants to be gone")
    followers = [Attacker(house) for _ in range(6)]
    for follower in followers:
        assert found_by(follower) == ""
        assert follower.sandbox.sandbox_id not in tokens and follower.sandbox._envd_access_token not in tokens.values()
        old = dict(tokens)
        for token in old.values():
            refused = follower.sandbox._envd_api.get("/envs", headers={"X-Access-Token": token})
            assert refused.status_code == 401
    for follower in followers:
        follower.sandbox.kill()
    assert attacker.commands.run("echo here").stdout == "here\n"
