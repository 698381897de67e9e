"""A node whose capacity a scheduler gives out in blocks, and a fleet that asks for them."""

import contextlib
import os
import pathlib
import time

import pytest
from e2b import SandboxException
from fleet import eventually
from nomad import Nomad

#: MiB of a block.
BLOCK = 1024


@pytest.fixture
def nomad():
    nomad = Nomad()
    yield nomad
    nomad.close()


@pytest.fixture
def given(fleet, nomad):
    """A node that offers what Nomad gives it, in a fleet whose orchestrators ask Nomad for it."""
    node = fleet.nodes[2]
    told = [node, *(fleet.members[name] for name in ("orchestrator-1", "orchestrator-2", "api-1"))]
    files = [pathlib.Path(member["settings"]) for member in told]
    before = [file.read_text() for file in files]
    socket = files[0].with_name("blocks.sock")
    more = f"""
[cluster.nomad]
address = "{nomad.address}"
program = "{os.path.realpath(os.environ['ATOLL_BIN'])}"
socket = "{socket}"
drain_within_seconds = 20
[cluster.nomad.block]
cpu = 1
memory_mib = {BLOCK}
most = 8
"""
    try:
        for file, text in zip(files, before, strict=True):
            file.write_text(text + more)
        for member in told:
            fleet.die(member["name"])
        fleet.settle()
        yield node
    finally:
        for file, text in zip(files, before, strict=True):
            file.write_text(text)
        for member in told:
            fleet.die(member["name"])
        fleet.settle()


def offered(fleet, node):
    return fleet.held()[node["identity"]]["memoryTotalMB"]


def offers(fleet, node, mib):
    eventually(lambda: offered(fleet, node) == mib, f"the node offers {mib} MiB", 60)


def test_a_node_offers_what_nomad_gives_and_a_block_that_stops_is_replaced(fleet, fresh, nomad, given):
    eventually(nomad.running, "a block is asked for", 60)
    eventually(lambda: offered(fleet, given) >= BLOCK, "the node offers it", 60)
    sandbox = fleet.made_on(given, fresh)
    pid = sandbox.commands.run("sleep 1000", background=True).pid
    # Two orchestrators look, and ask for the same.
    tokens = [job["Meta"]["atoll_token"] for job in nomad.jobs.values()]
    assert len(tokens) == len(set(tokens))

    stopped = set(nomad.running())
    for name in stopped:
        nomad.stop(name)
    eventually(lambda: nomad.running() - stopped, "others are asked for in its place", 60)
    eventually(lambda: not nomad.running() & stopped, "what stops ends when the others suffice", 60)
    assert {nomad.processes[name].returncode for name in stopped} == {0}
    offers(fleet, given, BLOCK * len(nomad.running()))
    assert pid in [process.pid for process in sandbox.commands.list()], "nothing of it was moved"


def test_of_a_node_that_loses_its_last_block_everything_is_moved(fleet, fresh, nomad, given):
    eventually(lambda: offered(fleet, given) >= BLOCK, "the node offers something", 60)
    moves = fleet.made_on(given, fresh, lifecycle={"on_timeout": "pause", "auto_resume": False})
    moves.files.write("/home/user/kept", "kept")
    ends = fleet.made_on(given, fresh)
    nomad.takes = False
    last = set(nomad.running())
    for name in last:
        nomad.stop(name)
    offers(fleet, given, 0)

    def reads():
        with contextlib.suppress(SandboxException):
            return fleet.connect(moves.sandbox_id, timeout=300).files.read("/home/user/kept")

    eventually(lambda: reads() == "kept" and moves.sandbox_id not in fleet.on(given), "it is moved", 90)
    eventually(lambda: ends.sandbox_id not in fleet.on(given), "what cannot be moved is ended, or moved", 90)
    eventually(lambda: not nomad.running() & last, "the blocks end when nothing is in them", 60)
    assert {nomad.processes[name].returncode for name in last} == {0}
    assert nomad.refused > 0, "more is asked for all the while"


def alone(nomad):
    """The allocations that are sandboxes of their own: which job, and of which sandbox."""
    return {name: job["Meta"]["atoll_sandbox"] for name, job in nomad.jobs.items() if "atoll_sandbox" in job["Meta"]}


def test_a_sandbox_is_an_allocation_of_its_own(fleet, fresh, nomad, given):
    eventually(lambda: offered(fleet, given) >= BLOCK, "the node offers something", 60)
    made = [fresh(api_headers={"X-Atoll-Allocation": "own"}) for _ in range(2)]
    assert sorted(alone(nomad).values()) == sorted(one.sandbox_id for one in made)
    jobs = {sandbox: name for name, sandbox in alone(nomad).items()}
    kept, ends = made
    for one in made:
        assert one.sandbox_id in fleet.on(given)
        info = one.get_info()
        meta = nomad.jobs[jobs[one.sandbox_id]]["Meta"]
        assert (int(meta["atoll_cpu"]), int(meta["atoll_memory_mib"])) == (info.cpu_count, info.memory_mb)
    # What becomes of one concerns the other as little as the rest.
    ends.kill()
    eventually(lambda: jobs[ends.sandbox_id] not in nomad.running(), "its allocation is given back", 60)
    assert kept.commands.run("echo here").stdout == "here\n"
    # Also when nobody is there to see how it begins.
    with fleet.stopped("orchestrator-1"), fleet.stopped("orchestrator-2"):
        nomad.stop(jobs[kept.sandbox_id])
        time.sleep(2)
        for name in ("orchestrator-1", "orchestrator-2"):
            fleet.die(name)
    eventually(lambda: kept.sandbox_id not in fleet.on(given), "a sandbox ends with its allocation", 60)
    eventually(lambda: jobs[kept.sandbox_id] not in nomad.running(), "which ends when it is empty", 60)
    assert {nomad.processes[name].returncode for name in jobs.values()} == {0}
    # Where nobody knows of Nomad it is said so.
    with pytest.raises(SandboxException, match=r"400.*\[cluster.nomad\]"):
        fresh(api=1, api_headers={"X-Atoll-Allocation": "own"})
    with pytest.raises(SandboxException, match="400.*X-Atoll-Allocation must be 'own' or 'shared'"):
        fresh(api_headers={"X-Atoll-Allocation": "mine"})


def test_an_allocation_under_a_sandbox_that_is_paused_ends_at_once(fleet, fresh, nomad, given):
    eventually(lambda: offered(fleet, given) >= BLOCK, "the node offers something", 60)
    sandbox = fresh(api_headers={"X-Atoll-Allocation": "own"})
    sandbox.files.write("/home/user/kept", "kept")
    sandbox.pause(mode="filesystem")
    (job,) = alone(nomad)
    nomad.stop(job)
    # Long before Nomad would kill it.
    eventually(lambda: job not in nomad.running(), "its allocation ends", 10)
    assert nomad.processes[job].returncode == 0
    assert fleet.connect(sandbox.sandbox_id).files.read("/home/user/kept") == "kept"
