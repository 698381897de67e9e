"""Daemons and QEMUs that are killed: sandboxes live on, or are told as lost; nothing is left."""

import os
import pathlib
import signal

import pytest
from house import House
from patience import eventually


@pytest.fixture(scope="module")
def house():
    if "ATOLL_GUEST_KERNEL" not in os.environ:
        pytest.skip("needs ATOLL_GUEST_KERNEL: an extracted kernel package")
    house = House()
    yield house.start()
    house.down()


#: Executions that were on record once: processes are named by them, also those that nobody knows any more.
SEEN = set()


def qemus(house):
    """Processes of the house's machines."""
    SEEN.update(record.stem for record in (house.dir / "qemu/machines").glob("*.json"))
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in words[0] and any(f"atoll-{execution}".encode() in words for execution in SEEN):
            found.append(int(entry.name))
    return found


def left(house):
    """What is on the disk of machines that run: sockets, records."""
    data = house.dir / "qemu"
    return [path for name in ("run", "machines") for path in (data / name).iterdir()]


def test_a_sandbox_lives_on_while_the_daemon_is_dead(house):
    sandbox = house.create()
    sandbox.commands.run("echo 1 > /dev/shm/kept")
    (qemu,) = qemus(house)
    house.kill()
    assert qemus(house) == [qemu]
    house.start()
    again = house.connect(sandbox.sandbox_id)
    assert again.commands.run("cat /dev/shm/kept").stdout == "1\n"
    assert qemus(house) == [qemu]
    again.kill()
    eventually(lambda: not qemus(house) and not left(house), "the machine to be gone")


def test_a_paused_sandbox_is_there_after_the_daemon_was_killed(house):
    sandbox = house.create()
    sandbox.commands.run("echo 2 > /dev/shm/kept")
    assert qemus(house)
    sandbox.pause()
    assert not qemus(house)
    house.kill()
    house.start()
    again = house.connect(sandbox.sandbox_id)
    assert again.commands.run("cat /dev/shm/kept").stdout == "2\n"
    again.kill()


def test_a_sandbox_whose_qemu_is_killed_is_gone_and_nothing_of_it_is_left(house):
    sandbox = house.create()
    (qemu,) = qemus(house)
    os.kill(qemu, signal.SIGKILL)
    eventually(lambda: sandbox.sandbox_id not in house.list(), "the sandbox to be told as gone")
    eventually(lambda: not left(house), "what it held to be given back")
    assert house.create().commands.run("echo next").stdout == "next\n"
