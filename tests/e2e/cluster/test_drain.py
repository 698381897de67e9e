"""A node is closed, emptied and opened again, and nothing of anybody's is lost."""

import contextlib

import pytest
from e2b import SandboxException
from fleet import OPERATED, eventually


def reads(fleet, sandbox, path):
    """What a file holds, through a new connection; what stands in the way now may be over in a moment."""
    with contextlib.suppress(SandboxException):
        return fleet.connect(sandbox.sandbox_id, timeout=300).files.read(path)
    return None


def test_a_cordoned_node_gets_nothing_new_and_keeps_what_it_has(fleet, fresh):
    node = fleet.nodes[0]
    kept = fleet.made_on(node, fresh)
    with fleet.marked(node, "cordoned"):
        before = fleet.on(node)
        for api in range(len(fleet.apis)):
            for _ in range(4):
                fresh(api=api)
        assert fleet.on(node) == before
        assert kept.commands.run("echo here").stdout == "here\n"
        # What it holds goes on: also after a pause, and after its daemon died.
        kept.pause()
        kept = fleet.connect(kept.sandbox_id)
        fleet.die(node["name"])
        eventually(lambda: fleet.is_ready(node["name"]), "the node is back", 60)
        eventually(lambda: fleet.held().get(node["identity"], {}).get("status") == "cordoned", "it remembers", 60)
        eventually(lambda: reads(fleet, kept, "/etc/hostname"), "it is reached", 60)
    fleet.made_on(node, fresh)


def test_a_drained_node_is_emptied_and_nothing_is_lost(fleet, fresh):
    node = fleet.nodes[1]
    agrees = {"on_timeout": "pause", "auto_resume": False}
    moves = fleet.made_on(node, fresh, lifecycle=agrees)
    paused = fleet.made_on(node, fresh)
    for sandbox in (moves, paused):
        sandbox.files.write("/home/user/kept", "kept")
    paused.pause()
    # Nothing is waited for: all of it is moved with its disk.
    with fleet.marked(node, "draining", withinSeconds=0):
        eventually(lambda: fleet.drain_of(node)["isOver"], "it is empty", 120)
        drain = fleet.drain_of(node)
        assert (drain["left"], drain["waiting"], drain["moving"]) == (0, 0, 0), drain
        assert drain["carried"] >= 1, drain
        assert reads(fleet, moves, "/home/user/kept") == "kept"
        eventually(lambda: moves.sandbox_id not in fleet.on(node), "nothing of it is left behind", 30)
        assert reads(fleet, paused, "/home/user/kept") == "kept"
        eventually(lambda: paused.sandbox_id not in fleet.on(node), "it is resumed elsewhere", 30)


def test_a_drain_is_carried_out_though_its_orchestrators_die(fleet, fresh):
    node = fleet.nodes[2]
    made = [fleet.made_on(node, fresh) for _ in range(3)]
    for sandbox in made:
        sandbox.files.write("/home/user/kept", sandbox.sandbox_id)
    with fleet.marked(node, "draining", withinSeconds=0):
        for name in ("orchestrator-1", "orchestrator-2"):
            fleet.die(name)
        fleet.settle()
        eventually(lambda: fleet.drain_of(node)["isOver"], "it is empty", 240)
        for sandbox in made:
            kept = eventually(lambda sandbox=sandbox: reads(fleet, sandbox, "/home/user/kept"), "it is reached", 60)
            assert kept == sandbox.sandbox_id


def test_what_has_time_is_waited_for_until_an_operator_thinks_better_of_it(fleet, fresh):
    node = fleet.nodes[0]
    sandbox = fleet.made_on(node, fresh)
    pid = sandbox.commands.run("sleep 1000", background=True).pid
    with fleet.marked(node, "draining", withinSeconds=3600, kill=True):
        eventually(lambda: fleet.drain_of(node)["waiting"] >= 1, "it is waited for")
        assert sandbox.commands.run("echo here").stdout == "here\n"
    assert pid in [process.pid for process in sandbox.commands.list()]


@pytest.mark.parametrize("status", ["unhealthy", "connecting", "closed", ""])
def test_a_status_that_cannot_be_set_is_refused(fleet, status):
    path = f"/nodes/{fleet.nodes[0]['identity']}"
    fleet.call("POST", path, {"status": status}, expect=400, api=OPERATED)
    fleet.call("POST", "/nodes/00000000-0000-4000-8000-000000000000", {"status": "ready"}, expect=404, api=OPERATED)
    # A key is none of an operator's.
    fleet.call("POST", path, {"status": "ready"}, expect=403, api=0)
