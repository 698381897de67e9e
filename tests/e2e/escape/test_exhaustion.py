"""Attempts 17 to 20: taking everything. Limits hold, the sandbox that did it lives, and others have what is theirs."""

import os
import pathlib
import shutil
import time

import e2b
import pytest
from attacker import Attacker
from patience import eventually

TASKS_MAX = 1024
# What one sandbox takes, and how much of the same another one needs meanwhile.
FLOODS = {
    "processes": 50,
    "threads": 50,
    "descriptors": 1000,
    "pidfds": 100,
    "inotify": 16,
    "signals": 100,
    "timers": 100,
    "posix queues": 5,
    "system v queues": 10,
    "semaphores": 10,
    "system v memory": 2,
    "pipes": 10,
    "sockets": 1,
    "epoll": 100,
    "locked memory": 4,
}
HOLD_SECONDS = 60


@pytest.fixture(scope="module")
def victim(house):
    return Attacker(house)


def told(process):
    """The first line that a flood printed; nothing, where the kernel ended it."""
    for out, _, _ in process:
        if out:
            return out
    return None


@pytest.mark.parametrize("what", FLOODS)
def test_17_others_have_theirs_while_one_takes_all(fresh, victim, house, what):
    flood = fresh.commands.run(f"exec python3 /opt/escape/flood.py '{what}' {HOLD_SECONDS}", background=True, timeout=0)
    line = told(flood)
    if line and what in ("processes", "threads"):
        count, why = eval(line)
        assert count < TASKS_MAX and why != "ok"
    need = FLOODS[what]
    assert victim.run("flood", what, 0, need) == [need, "ok"]
    assert house.create(timeout=60).commands.run("echo new").stdout == "new\n"
    if what in ("processes", "threads"):
        # Long after whatever envd had begun before is over.
        time.sleep(5)
    # envd answers where nothing can be started any more, and puts an end to it.
    fresh.files.write("/tmp/there", "there")
    assert fresh.files.read("/tmp/there") == "there"
    fresh.commands.kill(flood.pid)
    eventually(lambda: works(fresh), "the sandbox to work again")


def works(attacker):
    try:
        return attacker.commands.run("echo again", timeout=10).stdout == "again\n"
    except e2b.SandboxException:
        return False


BOMBS = {
    "memory": "python3 -c 'x = []\nwhile True: x.append(bytearray(b\"x\") * (1 << 24))'",
    "many processes' memory": "for i in $(seq 64); do python3 -c 'x = bytearray(b\"x\") * (1 << 28); import time; time.sleep(30)' & done; wait",
    "shared memory": "dd if=/dev/zero of=/dev/shm/fill bs=1M 2>&1; dd if=/dev/zero of=/run/fill bs=1M; true",
    "memory files": "python3 -c 'import os\nf = os.memfd_create(\"x\")\nwhile True: os.write(f, bytes(1 << 24))'",
    "page cache": "cd /tmp; dd if=/dev/zero of=cache bs=1M count=1200 2>/dev/null; for i in 1 2 3; do cat cache > /dev/null; done; rm cache",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_18_memory_runs_out_inside_and_nowhere_else(fresh, host, neighbour, bomb):
    boot = fresh.files.read("/proc/sys/kernel/random/boot_id")
    exploding = fresh.commands.run(bomb, background=True, timeout=0)
    for _ in range(10):
        assert neighbour.sandbox.commands.run("echo here", timeout=30).stdout == "here\n"
    fresh.files.write("/run/lock-free" if bomb == "page cache" else "/home/user/there", "there", user="root")
    try:
        exploding.wait()
    except Exception as ended:
        # 137, or -1 by signal: the kernel chose it, and not envd.
        assert getattr(ended, "exit_code", None) not in (None, 0), ended
    fresh.shell("rm -f /dev/shm/fill /run/fill; sudo rm -f /run/fill")
    assert fresh.commands.run("echo alive").stdout == "alive\n"
    assert fresh.files.read("/proc/sys/kernel/random/boot_id") == boot
    assert host.process.poll() is None


def test_19_a_full_disk_is_full_inside_and_nowhere_else(fresh, house, neighbour):
    size = shutil.disk_usage
    inside = int(fresh.shell("df --output=size -B1 / | tail -1"))
    before = size(house.dir).free
    # Reserved, which is as good as full, and then a little that is written.
    assert "No space left" in fresh.shell(f"fallocate -l {2 * inside} /home/user/all; fallocate -l {inside - (256 << 20)} /home/user/most; dd if=/dev/zero of=/home/user/rest bs=1M")
    assert "No space left" in fresh.shell("echo more > /root/more; cp /bin/bash /usr/local/bin/more", user="root")
    assert before - size(house.dir).free < inside / 2, "space is reserved inside, not on the host"
    assert int(neighbour.sandbox.commands.run("df --output=avail -B1 / | tail -1").stdout) > inside / 2
    neighbour.sandbox.commands.run("dd if=/dev/zero of=/tmp/fill bs=1M count=50 2>/dev/null && rm /tmp/fill")
    assert fresh.commands.run("echo answers; rm -f all most rest; echo x > y; cat y; rm y").stdout == "answers\nx\n"


def test_19_inodes_are_counted_inside(fresh, house):
    total, free = (int(n) for n in fresh.shell("df --output=itotal,iavail / | tail -1").split())
    assert 0 < free <= total < 10_000_000
    volume = os.statvfs(house.dir / "container/volume") if (house.dir / "container/volume").is_dir() else os.statvfs(house.dir)
    made = fresh.shell("mkdir i; cd i; python3 -c 'import os\nfor i in range(30000): os.close(os.open(str(i), os.O_CREAT))'; ls | wc -l")
    assert int(made) == 30_000
    assert free - int(fresh.shell("df --output=iavail / | tail -1")) >= 30_000
    now = os.statvfs(house.dir / "container/volume") if (house.dir / "container/volume").is_dir() else os.statvfs(house.dir)
    assert (volume.f_files - volume.f_ffree) + 1000 > now.f_files - now.f_ffree, "the host has no file for each of a sandbox's"


def test_19_sparse_files_long_attributes_and_deep_paths_are_bounded(fresh, house):
    before = shutil.disk_usage(house.dir).free
    said = fresh.shell("truncate -s 1E e; truncate -s 10T t; for i in $(seq 50); do truncate -s 100G s$i; done; ls s* | wc -l; df --output=used -BM / | tail -1")
    assert "File too large" in said or "Invalid argument" in said, said
    attributes = "import os\nfor name, size in (('user.a', 60000), ('user.b', 65536), ('user.c', 1 << 20)):\n  try: os.setxattr('x', name, b'x' * size); print('ok')\n  except OSError as e: print(e.strerror)"
    assert "ok\nok\nok" not in fresh.shell(f'touch x; python3 -c "{attributes}"')
    deep = 'import os\nfor i in range(5000):\n  os.mkdir(\\"d\\" * 200); os.chdir(\\"d\\" * 200)\nprint(\\"made\\")'
    assert fresh.shell(f'mkdir deep; cd deep; python3 -c "{deep}"') == "made\n"
    # Those outside of the sandbox that read its tree have bounds of their own.
    assert len(fresh.files.list("/home/user", depth=1)) >= 50
    try:
        fresh.files.list("/home/user/deep", depth=10_000)
    except Exception as refused:
        assert "timed out" not in str(refused)
    assert fresh.commands.run("echo alive").stdout == "alive\n"
    assert before - shutil.disk_usage(house.dir).free < 1 << 30


def test_20_spinning_on_every_processor_leaves_time_for_others(fresh, neighbour, house):
    spin = "python3 -c 'import os, time\nfor i in range(64):\n  if os.fork() == 0:\n    try: os.nice(-20)\n    except OSError: pass\n    while True: pass\ntime.sleep(3600)'"
    timers = "python3 -c 'import os, signal, time\nsignal.signal(signal.SIGALRM, lambda *_: None)\nfor i in range(16):\n  if os.fork() == 0:\n    signal.setitimer(signal.ITIMER_REAL, 1e-5, 1e-5)\n    while True: signal.pause()\ntime.sleep(3600)'"
    for line in (spin, timers):
        fresh.commands.run(line, background=True, timeout=0)
    for _ in range(20):
        assert neighbour.sandbox.commands.run("echo here", timeout=60).stdout == "here\n"
    assert house.create(timeout=60).commands.run("echo new", timeout=60).stdout == "new\n"
    assert fresh.commands.run("echo slow", timeout=60).stdout == "slow\n"
    # The scheduler knows it by its group, which has no more than its share.
    group = next(group for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup" in line for group in [pathlib.Path(line.split()[4])] if list(group.glob("atoll*/[0-9]*/cpu.*")))
    shares = [pathlib.Path(path).read_text().split() for path in [*group.glob("atoll*/[0-9]*/cpu.max"), *group.glob("atoll*/[0-9]*/cpu.cfs_quota_us")]]
    assert any(share[0] not in ("max", "-1") for share in shares)
