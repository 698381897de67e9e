"""One sandbox does its worst; its neighbour answers."""

import pytest

FLOODS = {
    "fork bomb": "python3 -c 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass'",
    "thread bomb": "python3 -c 'import threading,time\nwhile True:\n  try: threading.Thread(target=time.sleep,args=(60,)).start()\n  except RuntimeError: time.sleep(0.01)'",
    "memory": "python3 -c 'x=[]\nwhile True: x.append(bytearray(10**7))'",
    "shared memory": "dd if=/dev/zero of=/dev/shm/fill bs=1M",
    "disk": "dd if=/dev/zero of=/home/user/fill bs=1M",
    "inodes": "mkdir -p /home/user/i; cd /home/user/i; python3 -c 'import itertools\nfor i in itertools.count(): open(str(i),\"w\").close()'",
    "file descriptors": "python3 -c 'import os\nwhile True:\n  try: os.dup(0)\n  except OSError: pass'",
    "output": "yes",
    "processors": "for i in $(seq 16); do (while :; do :; done) & done; wait",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_a_neighbour_answers_during_a_flood(house, flood):
    neighbour, flooder = house.create(), house.create()
    flooder.commands.run(flood, background=True)
    for _ in range(20):
        assert neighbour.commands.run("echo here", timeout=30).stdout == "here\n"
    assert house.create().commands.run("echo new", timeout=30).stdout == "new\n"
    assert flooder.kill()
    assert neighbour.files.write("/tmp/x", "x").name == "x"
