"""One sandbox does its worst; its neighbour answers."""

import os

import pytest
from machine import Machine
from patience import eventually

#: Each with what the machine sees of it when it is at work, and how much of that.
FLOODS = {
    "fork bomb": ("python3 -c 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass'", "forks refused", 100),
    "thread bomb": (
        "python3 -c 'import threading,time\nwhile True:\n  try: threading.Thread(target=time.sleep,args=(60,)).start()\n  except RuntimeError: time.sleep(0.01)'",
        "forks refused",
        10,
    ),
    "process numbers": ("while true; do (true) & done", "processor time, ms", 500),
    "memory": ("while true; do python3 -c 'x=[]\nwhile True: x.append(b\"x\"*10**7)'; done", "killed for memory", 2),
    "shared memory": ("dd if=/dev/zero of=/dev/shm/fill bs=1M; sleep 600", "memory, MiB", 30),
    "pipes": (
        "python3 -c 'import os,fcntl,time\nkept=[]\ntry:\n  while True:\n    r,w=os.pipe(); os.set_blocking(w,False); kept.append(os.write(w,bytes(65536)))\nexcept OSError: time.sleep(600)'",
        "descriptors",
        900,
    ),
    "disk": ("dd if=/dev/zero of=/home/user/fill bs=1M; sleep 600", "disk, MiB", 200),
    "inodes": ("mkdir -p /home/user/i; cd /home/user/i; python3 -c 'import itertools\nfor i in itertools.count(): open(str(i),\"w\").close()'", "inodes", 2000),
    "file descriptors": (
        "python3 -c 'import os,time\nfor _ in range(20):\n  if not os.fork(): break\ntry:\n  while True: os.dup(0)\nexcept OSError: time.sleep(600)'",
        "descriptors",
        5000,
    ),
    "sockets": ("python3 -c 'import socket,time\nkept=[]\ntry:\n  while True: kept.extend(socket.socketpair())\nexcept OSError: time.sleep(600)'", "descriptors", 900),
    "output": ("yes", "processor time, ms", 500),
    "processors": ("for i in $(seq 16); do (while :; do :; done) & done; wait", "processor time, ms", 500),
}
# What the daemon may grow by while output is thrown at it: windows and buffers, not the output.
OUTPUT_KIB_MAX = 64 * 1024


@pytest.mark.parametrize("flood, seen, enough", FLOODS.values(), ids=FLOODS.keys())
def test_a_neighbour_answers_during_a_flood(house, flood, seen, enough):
    machine = Machine(house)
    neighbour, flooder = house.create(), house.create()
    slot = machine.slot_of(flooder.sandbox_id)
    look = LOOKS[seen]
    before = look(machine, slot)
    flooder.commands.run(flood, background=True, timeout=0)
    eventually(lambda: look(machine, slot) >= before + enough, f"the flood to be seen by {seen}")
    for _ in range(20):
        assert neighbour.commands.run("echo here", timeout=30).stdout == "here\n"
    assert house.create().commands.run("echo new", timeout=30).stdout == "new\n"
    assert neighbour.files.write("/tmp/x", "x").name == "x"
    assert flooder.kill()
    assert neighbour.files.read("/tmp/x") == "x"


def test_output_is_not_kept_by_the_daemon(house):
    machine = Machine(house)
    neighbour, flooder = house.create(), house.create()
    slot = machine.slot_of(flooder.sandbox_id)
    before = machine.resident_kib()
    for _ in range(10):
        flooder.commands.run("yes", background=True, timeout=0)
    eventually(lambda: cpu_ms(machine, slot) > 3000, "the output to flow")
    assert neighbour.commands.run("echo here", timeout=30).stdout == "here\n"
    assert machine.resident_kib() - before < OUTPUT_KIB_MAX
    assert flooder.kill()


def cpu_ms(machine, slot):
    found = machine.group_file(slot, "cpuacct.usage")
    return int(found) // 10**6 if found else numbers(machine.group_file(slot, "cpu.stat"))["usage_usec"] // 1000


def killed_for_memory(machine, slot):
    return numbers(machine.group_file(slot, "memory.oom_control") or machine.group_file(slot, "memory.events"))["oom_kill"]


def memory_mib(machine, slot):
    return int(machine.group_file(slot, "memory.usage_in_bytes") or machine.group_file(slot, "memory.current")) >> 20


def numbers(text):
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def descriptors(machine, slot):
    return sum(count_of(f"/proc/{pid}/fd") for pid in machine.processes_of(slot))


def count_of(directory):
    try:
        return len(os.listdir(directory))
    except OSError:
        return 0


def disk(machine, slot):
    return os.statvfs(f"/proc/{machine.processes_of(slot)[0]}/root")


LOOKS = {
    "forks refused": lambda machine, slot: numbers(machine.group_file(slot, "pids.events"))["max"],
    "processor time, ms": cpu_ms,
    "killed for memory": killed_for_memory,
    "memory, MiB": memory_mib,
    "disk, MiB": lambda machine, slot: (lambda found: (found.f_blocks - found.f_bfree) * found.f_frsize >> 20)(disk(machine, slot)),
    "inodes": lambda machine, slot: (lambda found: found.f_files - found.f_ffree)(disk(machine, slot)),
    "descriptors": descriptors,
}
