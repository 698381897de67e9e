"""Pausing, resuming, and what happens by itself."""

import json

import pytest
from conftest import eventually
from e2b import NotFoundException, Sandbox, SandboxException, SandboxState
from ports import fetch


def state(sandbox):
    return Sandbox.get_info(sandbox.sandbox_id).state


def test_a_pause_keeps_memory_and_disk(fresh):
    sandbox = fresh()
    token = sandbox._envd_access_token
    counter = sandbox.commands.run("i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 0.05; done", background=True)
    sandbox.files.write("/home/user/kept", "disk")
    assert sandbox.pause() is True
    assert sandbox.pause() is False
    assert state(sandbox) == SandboxState.PAUSED
    assert not sandbox.is_running()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again._envd_access_token == token
    assert again.is_running() and sandbox.is_running()
    assert again.files.read("/home/user/kept") == "disk"
    assert counter.pid in [process.pid for process in again.commands.list()]
    before = int(again.files.read("/tmp/count").strip() or 0)
    eventually(lambda: int(again.files.read("/tmp/count").strip() or 0) > before, "the counter to go on counting")


def test_a_pause_can_drop_memory_and_keep_the_disk(fresh):
    sandbox = fresh(envs={"KEPT": "yes"})
    command = sandbox.commands.run("sleep 300", background=True)
    sandbox.files.write("/home/user/kept", "disk")
    boot = sandbox.files.read("/proc/sys/kernel/random/boot_id")
    assert sandbox.pause(mode="filesystem") is True
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("/home/user/kept") == "disk"
    assert command.pid not in [process.pid for process in again.commands.list()]
    assert again.files.read("/proc/sys/kernel/random/boot_id") != boot
    assert again.commands.run("echo $KEPT").stdout == "yes\n"


def test_a_paused_machine_can_be_rebooted_instead(fresh):
    sandbox = fresh()
    command = sandbox.commands.run("sleep 300", background=True)
    sandbox.files.write("/home/user/kept", "disk")
    sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id, on_resume="reboot")
    assert again.files.read("/home/user/kept") == "disk"
    assert command.pid not in [process.pid for process in again.commands.list()]


def test_files_survive_many_pauses(fresh):
    sandbox = fresh()
    for i in range(5):
        sandbox.files.write(f"/home/user/{i}", str(i))
        sandbox.pause(mode="filesystem" if i % 2 else "full")
        sandbox = Sandbox.connect(sandbox.sandbox_id)
        assert [sandbox.files.read(f"/home/user/{j}") for j in range(i + 1)] == [str(j) for j in range(i + 1)]


def test_metadata_and_environment_survive_a_pause(fresh):
    sandbox = fresh(metadata={"a": "b"}, envs={"C": "d"})
    sandbox.pause()
    assert Sandbox.get_info(sandbox.sandbox_id).metadata == {"a": "b"}
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.get_info().metadata == {"a": "b"}
    assert again.commands.run("echo $C").stdout == "d\n"


def test_a_paused_sandbox_can_be_killed(fresh):
    sandbox = fresh()
    sandbox.pause()
    with pytest.raises(NotFoundException):
        sandbox.set_timeout(60)
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


def test_the_end_of_time_can_pause_instead_of_kill(fresh):
    sandbox = fresh(timeout=2, lifecycle={"on_timeout": "pause"})
    sandbox.files.write("/home/user/kept", "disk")
    assert sandbox.get_info().lifecycle["on_timeout"] == "pause"
    eventually(lambda: state(sandbox) == SandboxState.PAUSED, "the sandbox to pause")
    assert not sandbox.is_running()
    assert Sandbox.connect(sandbox.sandbox_id, timeout=60).files.read("/home/user/kept") == "disk"


def test_the_end_of_time_can_keep_the_disk_alone(fresh):
    sandbox = fresh(timeout=2, lifecycle={"on_timeout": {"action": "pause", "mode": "filesystem"}})
    command = sandbox.commands.run("sleep 300", background=True)
    eventually(lambda: state(sandbox) == SandboxState.PAUSED, "the sandbox to pause")
    again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert command.pid not in [process.pid for process in again.commands.list()]


def test_traffic_wakes_what_was_told_to_wake(fresh):
    sandbox = fresh(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.files.write("/home/user/kept", "disk")
    sandbox.pause()
    assert sandbox.files.read("/home/user/kept") == "disk"
    assert state(sandbox) == SandboxState.RUNNING
    sandbox.pause()
    assert fetch(sandbox, 8000)[0] == 502
    eventually(lambda: state(sandbox) == SandboxState.RUNNING, "traffic to a port to wake it")


def test_a_wrong_token_does_not_wake(fresh):
    sandbox = fresh(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.pause()
    assert fetch(sandbox, 49983, "/files?path=/etc/passwd", {"X-Access-Token": "wrong"})[0] == 403
    assert state(sandbox) == SandboxState.PAUSED


def test_what_was_not_told_to_wake_sleeps_on(fresh):
    sandbox = fresh(timeout=60, lifecycle={"on_timeout": "pause"})
    sandbox.pause()
    status, _, body = fetch(sandbox, 8000)
    assert (status, json.loads(body)["message"]) == (502, "The sandbox was not found")
    assert state(sandbox) == SandboxState.PAUSED


def test_a_stream_that_a_pause_cuts_does_not_end_cleanly(fresh):
    sandbox = fresh()
    command = sandbox.commands.run("sleep 60", background=True)
    sandbox.pause()
    with pytest.raises(SandboxException):
        command.wait()
