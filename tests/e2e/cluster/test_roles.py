"""Every API, edge and node is as good as any other."""

import pathlib
import re
import urllib.request

import pytest
from e2b import NotFoundException, Sandbox, SandboxQuery, Template
from fleet import eventually

TELEMETRY = pathlib.Path(__file__).parents[3] / "docs/telemetry.md"


def test_sandboxes_are_spread_over_the_nodes(fleet, fresh):
    made = [fresh() for _ in range(6)]
    held = fleet.held()
    used = [node for node in held.values() if node["sandboxCount"] > 0]
    assert len(used) >= 2, held
    assert all(sandbox.commands.run("echo here").stdout == "here\n" for sandbox in made)


def test_what_one_api_made_every_other_sees_at_once(fleet, fresh):
    sandbox = fresh(api=0, metadata={"test": "seen"})
    name = sandbox.sandbox_id
    other = fleet.connect(name, api=1, edge=1)
    assert other.commands.run("echo through the other edge").stdout == "through the other edge\n"
    listed = Sandbox.list(query=SandboxQuery(metadata={"test": "seen"}), **fleet.where(api=1)).next_items()
    assert [one.sandbox_id for one in listed] == [name]
    assert other.pause(**fleet.where(api=1))
    again = fleet.connect(name, api=0)
    assert again.is_running()
    assert fleet.kill(name, api=1)
    with pytest.raises(NotFoundException):
        fleet.connect(name, api=0)


def test_a_sandbox_that_was_killed_is_reached_by_no_edge(fleet, fresh):
    sandbox = fresh()
    name = sandbox.sandbox_id
    edges = [fleet.connect(name, edge=edge) for edge in range(len(fleet.edges))]
    assert all(edge.is_running() for edge in edges)
    assert fleet.kill(name)
    for edge in edges:
        eventually(lambda edge=edge: not edge.is_running(), "the other edge heard of it", 5)


def test_a_template_that_was_built_on_one_node_starts_on_others(fleet, fresh):
    name = "built-once"
    template = Template().from_template("base").run_cmd("echo once > /home/user/built")
    Template.build(template, name, cpu_count=1, memory_mb=512, **fleet.where())
    try:
        assert fresh(name).files.read("/home/user/built") == "once\n"

        def used():
            assert fresh(name).files.read("/home/user/built") == "once\n"
            return [node for node in fleet.held().values() if node["sandboxCount"] > 0]

        # As soon as the blobs have it.
        eventually(lambda: len(used()) >= 2, "another node starts it")
    finally:
        fleet.call("DELETE", f"/templates/{name}", expect=(204, 404, 400))


def test_a_fork_and_a_snapshot_are_everywhere(fleet, fresh):
    source = fresh()
    source.files.write("/home/user/kept", "kept")
    snapshot = source.create_snapshot()
    copies = [fresh(snapshot.snapshot_id) for _ in range(4)]
    assert {copy.files.read("/home/user/kept") for copy in copies} == {"kept"}


def test_metrics_and_logs_come_from_whichever_node(fleet, fresh):
    for sandbox in [fresh() for _ in range(3)]:
        name = sandbox.sandbox_id
        eventually(lambda name=name: fleet.call("GET", f"/sandboxes/{name}/metrics", api=1), "there are metrics")
        assert "logs" in fleet.call("GET", f"/sandboxes/{name}/logs", api=1)


def test_every_metric_of_a_fleet_is_documented(fleet, fresh):
    assert fresh().commands.run("true").exit_code == 0
    documented = set(re.findall(r"^\| `(atoll_\w+)` ", TELEMETRY.read_text(), re.MULTILINE))
    for name, member in fleet.members.items():
        with urllib.request.urlopen(f"http://{member['admin']}/metrics", timeout=30) as answer:
            emitted = set(re.findall(r"^# TYPE (atoll_\w+) ", answer.read().decode(), re.MULTILINE))
        assert emitted, name
        assert emitted <= documented, f"{name}: {emitted - documented}"
