"""Daemons and VMMs that are killed: sandboxes live on, or are told as lost; nothing is left."""

import os
import signal

import pytest
from house import House
from patience import eventually
from vmm import OURS


@pytest.fixture(scope="module")
def house():
    if "ATOLL_GUEST_KERNEL" not in os.environ:
        pytest.skip("needs ATOLL_GUEST_KERNEL: an extracted kernel package")
    house = House()
    yield house.start()
    house.down()


@pytest.fixture(scope="module")
def vmm(house):
    return OURS(house)


def left(vmm):
    """What is on the disk of machines that run."""
    return vmm.places() + vmm.records()


def test_a_sandbox_lives_on_while_the_daemon_is_dead(house, vmm):
    sandbox = house.create()
    sandbox.commands.run("echo 1 > /dev/shm/kept")
    (process,) = vmm.processes()
    house.kill()
    assert vmm.processes() == [process]
    house.start()
    again = house.connect(sandbox.sandbox_id)
    assert again.commands.run("cat /dev/shm/kept").stdout == "1\n"
    assert vmm.processes() == [process]
    again.kill()
    eventually(lambda: not vmm.processes() and not left(vmm), "the machine to be gone")


def test_a_paused_sandbox_is_there_after_the_daemon_was_killed(house, vmm):
    sandbox = house.create()
    sandbox.commands.run("echo 2 > /dev/shm/kept")
    assert vmm.processes()
    sandbox.pause()
    assert not vmm.processes()
    house.kill()
    house.start()
    again = house.connect(sandbox.sandbox_id)
    assert again.commands.run("cat /dev/shm/kept").stdout == "2\n"
    again.kill()


def test_a_sandbox_whose_vmm_is_killed_is_gone_and_nothing_of_it_is_left(house, vmm):
    sandbox = house.create()
    (process,) = vmm.processes()
    os.kill(process, signal.SIGKILL)
    eventually(lambda: sandbox.sandbox_id not in house.list(), "the sandbox to be told as gone")
    eventually(lambda: not left(vmm), "what it held to be given back")
    assert house.create().commands.run("echo next").stdout == "next\n"
