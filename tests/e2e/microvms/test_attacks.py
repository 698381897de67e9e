"""Attempts 23 to 25 of code that is root of its own kernel: what it breaks is its own machine."""

import pathlib

import pytest
from e2b import Sandbox
from patience import eventually
from seen import sandboxes

REGISTERS = pathlib.Path(__file__).with_name("registers.py").read_text()


@pytest.fixture
def neighbour(fresh):
    sandbox = fresh()
    sandbox.files.write("/home/user/canary", "alive")
    yield sandbox
    assert sandbox.files.read("/home/user/canary") == "alive"
    assert sandbox.commands.run("echo answers").stdout == "answers\n"


def is_gone(sandbox):
    return sandbox.sandbox_id not in sandboxes()


@pytest.mark.parametrize("key", ["c", "b"], ids=["panic", "reset"])
def test_23_a_kernel_that_panics_or_resets_is_the_end_of_its_sandbox_alone(fresh, neighbour, key):
    sandbox = fresh()
    sandbox.commands.run(f"sudo sh -c 'sleep 1; echo 1 > /proc/sys/kernel/sysrq; echo {key} > /proc/sysrq-trigger'", background=True)
    eventually(lambda: is_gone(sandbox), "the sandbox to be told as gone")
    assert fresh().commands.run("echo next").stdout == "next\n"


def test_23_registers_of_devices_are_written_to_at_random(fresh, neighbour):
    sandbox = fresh()
    sandbox.files.write("/tmp/registers.py", REGISTERS)
    # It may cut its own line: then it says nothing any more.
    running = sandbox.commands.run("sudo timeout 20 python3 /tmp/registers.py", background=True, timeout=60)
    try:
        running.wait()
    except Exception:
        pass
    assert neighbour.commands.run("echo unharmed").stdout == "unharmed\n"
    Sandbox.kill(sandbox.sandbox_id)
    eventually(lambda: is_gone(sandbox), "the sandbox to be gone")


def test_24_a_flood_on_the_console_is_bounded(fresh, neighbour):
    sandbox = fresh()
    sandbox.commands.run("sudo sh -c 'timeout 10 cat /dev/zero > /dev/ttyS0; timeout 5 yes > /dev/kmsg' || true", timeout=60)
    assert sandbox.commands.run("echo still here").stdout == "still here\n"


def test_24_the_line_to_the_host_is_not_the_sandboxs(fresh):
    sandbox = fresh()
    told = sandbox.commands.run(
        "sudo sh -c 'for port in /dev/vport*; do dd if=/dev/zero of=$port bs=1M count=1 2>/dev/null && echo written; done; ls /dev/vsock 2>/dev/null; true'"
    ).stdout
    assert "written" not in told
    assert sandbox.commands.run("echo still here").stdout == "still here\n"
