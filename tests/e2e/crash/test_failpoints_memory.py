"""Memory that is written down and gone on from, cut short at every step: no sandbox loses its disk, and one that was being
paused or resumed loses no process either, except where its owner was told to do without."""

import pytest
from e2b import Template
from house import CRIU, FAILPOINTS
from kept import Kept
from patience import eventually
from points import MEMORY
from stage import undecided
from test_failpoints_builds import forget, goes_on, name, recipe  # noqa: F401

pytestmark = [
    pytest.mark.skipif(FAILPOINTS is None, reason="ATOLL_FAILPOINTS_BIN names no daemon that was built with failpoints"),
    pytest.mark.skipif(CRIU is None, reason="NOT RUN: ATOLL_CRIU names no CRIU, so that no house keeps memory and no death in it was tried"),
]


def steps(flow):
    return pytest.mark.parametrize("point", MEMORY[flow])


@pytest.fixture
def keeping(stages):
    """A house that writes memory down; nothing is prepared in it."""
    return stages.take(0, CRIU)


@steps("pause")
def test_a_pause_that_is_written_down_keeps_the_memory(keeping, point):
    undecided(keeping, point, lambda kept: kept.sandbox.pause(), runs_on=True)


@steps("resume")
def test_a_resume_from_the_disk_keeps_the_memory(keeping, point):
    undecided(keeping, point, lambda kept: keeping.house.connect(kept.id), lambda kept: kept.sandbox.pause(), runs_on=True)


@steps("resume without memory")
def test_a_resume_that_gives_memory_up_keeps_the_disk(keeping, point):
    kept = Kept(keeping.house)
    kept.sandbox.pause()
    keeping.dies(point, lambda: keeping.house.connect(kept.id, on_resume="reboot"))
    kept.works()
    assert kept.sandbox.files.read("/proc/sys/kernel/random/boot_id") != kept.boot
    kept.sandbox.kill()
    keeping.assert_all_is_kept()
    keeping.assert_nothing_is_left(point)


def goes_on_counting(house, sandbox, kept):
    """A copy with its memory: the processes of its source, and a disk of its own."""
    assert sandbox.files.read("/home/user/kept") == kept.id
    assert kept.process.pid in [process.pid for process in sandbox.commands.list()]
    count = sandbox.files.read("/tmp/count")
    eventually(lambda: sandbox.files.read("/tmp/count") != count, "the copy to count on")
    sandbox.kill()


@steps("snapshot")
def test_a_snapshot_with_memory_is_there_or_not_and_its_source_goes_on(keeping, point, name):  # noqa: F811
    house, kept = keeping.house, Kept(keeping.house)
    keeping.dies(point, lambda: kept.sandbox.create_snapshot(name=name))
    kept.works()
    kept.runs_on()
    assert Template.exists(name, **house.api) is (point == "orchestrator/snapshot-stored")
    if point == "orchestrator/snapshot-stored":
        goes_on_counting(house, house.create(template=name), kept)
    kept.sandbox.create_snapshot(name=name)
    goes_on_counting(house, house.create(template=name), kept)
    forget(house, name)
    kept.sandbox.kill()
    keeping.assert_all_is_kept()
    keeping.assert_nothing_is_left(point)


@steps("fork")
def test_a_fork_with_memory_is_whole_or_gone_and_its_source_goes_on(keeping, point):
    house, kept = keeping.house, Kept(keeping.house)
    before = set(house.list())
    keeping.dies(point, lambda: kept.sandbox.fork(timeout=3600))
    kept.works()
    kept.runs_on()
    made = [house.connect(each) for each in set(house.list()) - before]
    assert len(made) <= 1
    for fork in [*made, *kept.sandbox.fork(timeout=3600)]:
        goes_on_counting(house, fork, kept)
    kept.sandbox.kill()
    keeping.assert_all_is_kept()
    keeping.assert_nothing_is_left(point)


@steps("build that starts a command")
def test_a_build_that_keeps_its_command_running_goes_on(keeping, point, name, tmp_path):  # noqa: F811
    goes_on(keeping, point, name, recipe(name, tmp_path, start=True), started=True)
