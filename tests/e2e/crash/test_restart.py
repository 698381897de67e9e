"""The daemon dies; sandboxes do not."""

import subprocess
import time

import pytest
from e2b import NotFoundException, SandboxState
from house import ATOLL
from patience import eventually


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_running_sandboxes_are_found_again(house, how):
    made = [house.create(metadata={"n": str(i)}, envs={"N": str(i)}) for i in range(3)]
    counting = made[0].commands.run("i=0; while true; do i=$((i+1)); echo $i > /tmp/n; sleep 0.05; done", background=True)
    made[1].commands.run("python3 -m http.server 8000 --bind 127.0.0.1", background=True, cwd="/etc/skel")
    ends = [sandbox.get_info().end_at for sandbox in made]
    getattr(house, how)()
    house.start()
    assert set(house.list()) == {sandbox.sandbox_id for sandbox in made}
    for sandbox, end in zip(made, ends):
        info = sandbox.get_info()
        assert (info.end_at, info.metadata) == (end, {"n": sandbox.commands.run("echo -n $N").stdout})
    assert counting.pid in [process.pid for process in made[0].commands.list()]
    before = int(made[0].files.read("/tmp/n") or 0)
    eventually(lambda: int(made[0].files.read("/tmp/n").strip() or 0) > before, "the counter to go on")
    assert made[0].commands.run("sudo true; echo ok").stdout == "ok\n"
    for sandbox in made:
        assert sandbox.kill()


def test_paused_sandboxes_are_found_again(house):
    full, disk = house.create(), house.create()
    sleeper = full.commands.run("sleep 300", background=True)
    full.files.write("/home/user/kept", "full")
    disk.files.write("/home/user/kept", "disk")
    full.pause()
    disk.pause(mode="filesystem")
    house.kill()
    house.start()
    assert full.get_info().state == disk.get_info().state == SandboxState.PAUSED
    assert house.connect(full.sandbox_id).files.read("/home/user/kept") == "full"
    assert sleeper.pid in [process.pid for process in full.commands.list()]
    assert house.connect(disk.sandbox_id).files.read("/home/user/kept") == "disk"


def test_what_ended_meanwhile_is_known_to_have_ended(house):
    short, long = house.create(timeout=3), house.create()
    house.kill()
    time.sleep(4)
    house.start()
    eventually(lambda: house.list() == [long.sandbox_id], "the sandbox whose time was over to end")
    with pytest.raises(NotFoundException):
        short.get_info()


def test_a_second_daemon_on_the_same_data_is_refused(house):
    second = subprocess.run([ATOLL, "up"], env=house.env, capture_output=True, text=True, timeout=30)
    assert second.returncode != 0 and "data" in second.stderr.lower()
    assert house.create().commands.run("echo up").stdout == "up\n"
