"""Whatever dies is started again, and nothing of anybody's is lost."""

import time

import pytest
from e2b import NotFoundException
from e2b.exceptions import SandboxException, ServiceBusyException
from fleet import eventually

PROCESSES = ["api-1", "api-2", "edge-1", "orchestrator-1", "orchestrator-2", "node-1", "redis", "postgres", "consul"]


def answers(sandbox, text):
    """Whether a command runs; what stands in the way now may be over in a moment."""
    try:
        return sandbox.commands.run(f"echo {text}", timeout=10).stdout == f"{text}\n"
    except Exception:
        return False


@pytest.mark.parametrize("name", PROCESSES)
def test_sandboxes_outlive_whatever_dies(fleet, fresh, name):
    made = [fresh() for _ in range(3)]
    started = [sandbox.commands.run("sleep 1000", background=True).pid for sandbox in made]
    fleet.die(name)
    for sandbox in made:
        eventually(lambda sandbox=sandbox: answers(sandbox, "alive"), f"a sandbox answers after {name} died", 60)
    fleet.settle()
    for sandbox, pid in zip(made, started, strict=True):
        assert pid in [process.pid for process in sandbox.commands.list()], f"{name} took a process along"
    another = fresh()
    assert answers(another, "new")


@pytest.mark.parametrize("name", ["redis", "postgres", "consul"])
def test_what_runs_stays_reachable_while_a_service_hangs(fleet, fresh, name):
    made = [fresh() for _ in range(3)]
    assert all(answers(sandbox, "before") for sandbox in made)
    with fleet.stopped(name):
        time.sleep(1)
        for sandbox in made:
            assert sandbox.commands.run("echo meanwhile", timeout=20).stdout == "meanwhile\n"
    fleet.settle()
    assert answers(fresh(), "after")


def test_a_pause_is_resumed_after_everything_died(fleet, fresh):
    sandbox = fresh()
    sandbox.files.write("/home/user/kept", "kept")
    sandbox.pause()
    for name in ["api-1", "api-2", "orchestrator-1", "orchestrator-2", "edge-1", "edge-2", "redis"]:
        fleet.die(name)
    for node in fleet.nodes:
        fleet.die(node["name"])
    fleet.settle()
    again = eventually(lambda: fleet.connected(sandbox.sandbox_id), "it is resumed", 60)
    assert again.files.read("/home/user/kept") == "kept"


def test_what_ran_on_a_lost_node_is_given_up_and_ended_when_it_is_back(fleet, fresh):
    lost, other = fleet.nodes[2], fleet.nodes[0]
    theirs = [fleet.made_on(lost, fresh) for _ in range(2)]
    left = [fleet.made_on(other, fresh) for _ in range(2)]
    with fleet.cut_off(lost):
        # Ten seconds until it is missed, fifteen until what it ran is given up, and a pass of the reconciler.
        eventually(lambda: all(gone(fleet, one) for one in theirs), "they are given up", 90)
        assert not any(gone(fleet, one) for one in left)
        assert all(answers(sandbox, "here") for sandbox in left)
        assert answers(fresh(), "new")
    ids = {one.sandbox_id for one in theirs}
    eventually(lambda: not ids & fleet.on(lost), "nothing is left of what was given up", 60)


def gone(fleet, sandbox):
    try:
        fleet.call("GET", f"/sandboxes/{sandbox.sandbox_id}", expect=200)
    except AssertionError:
        return True
    return False


def test_a_kill_that_was_acknowledged_holds_though_the_node_is_away(fleet, fresh):
    before = counts(fleet)
    made = [fresh() for _ in range(6)]
    lost = fleet.nodes[1]
    with fleet.cut_off(lost):
        for sandbox in made:
            # Either it is done, or it is not acknowledged.
            try:
                fleet.kill(sandbox.sandbox_id)
            except (SandboxException, ServiceBusyException):
                continue
            assert not sandbox.is_running()
    fleet.settle()
    for sandbox in made:
        fleet.kill(sandbox.sandbox_id)
    eventually(lambda: counts(fleet) == before, "all are ended", 60)


def counts(fleet):
    return {name: node["sandboxCount"] for name, node in fleet.held().items()}


def test_routes_are_made_again_when_redis_has_lost_them(fleet, fresh):
    import socket

    made = [fresh() for _ in range(3)]
    host, port = fleet.told["redis"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5) as redis:
        redis.sendall(b"FLUSHALL\r\n")
        assert redis.recv(16) == b"+OK\r\n"
    # The other edge may never have seen them.
    for sandbox in made:
        other = eventually(lambda sandbox=sandbox: fleet.connected(sandbox.sandbox_id), "it is found", 20)
        eventually(lambda other=other: answers(other, "found"), "it answers", 20)


def test_an_unknown_sandbox_is_unknown_to_every_api(fleet):
    for api in range(len(fleet.apis)):
        with pytest.raises(NotFoundException):
            fleet.connect("i" + "0" * 20, api=api)
