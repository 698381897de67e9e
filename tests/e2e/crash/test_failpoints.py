"""The daemon dies at every step between an intent and its effect. Whatever was answered holds; what was under way is whole
or gone; and nothing is left that nobody accounts for.

A flow is done in a house in which other sandboxes run and are paused and are being worked in; the daemon dies at the
point, and is started again.
"""

import contextlib
import pathlib
import re

import pytest
from house import FAILPOINTS
from kept import Kept
from patience import eventually
from points import ALL, RECOVERY, REFILL, SANDBOX
from stage import undecided

pytestmark = pytest.mark.skipif(FAILPOINTS is None, reason="ATOLL_FAILPOINTS_BIN names no daemon that was built with failpoints")


def steps(flow):
    return pytest.mark.parametrize("point", SANDBOX[flow])


@steps("create")
def test_a_create_is_whole_or_gone(bare, point):
    before = set(bare.house.list())
    assert not bare.dies(point, lambda: bare.house.create(timeout=3600))
    assert len(set(bare.house.list()) - before) <= 1
    bare.assert_all_is_kept()
    bare.assert_nothing_is_left(point)


@pytest.mark.parametrize("point", REFILL)
def test_a_create_that_was_answered_outlives_the_pool(pooled, point):
    made = []
    # The first finds a slot that is ready, and only then is another made; the refill may be faster than the answer.
    if pooled.dies(point, lambda: made.append(Kept(pooled.house))):
        made[0].works()
        made[0].runs_on()
    pooled.assert_all_is_kept()
    pooled.assert_nothing_is_left(point)


@steps("pause")
def test_a_pause_keeps_the_memory(bare, point):
    undecided(bare, point, lambda kept: kept.sandbox.pause(), runs_on=True)


@steps("pause to disk")
def test_a_pause_to_disk_keeps_the_disk(bare, point):
    undecided(bare, point, lambda kept: kept.sandbox.pause(mode="filesystem"))


@steps("resume")
def test_a_resume_keeps_the_memory(bare, point):
    undecided(bare, point, lambda kept: bare.house.connect(kept.id), lambda kept: kept.sandbox.pause(), runs_on=True)


@steps("resume from disk")
def test_a_resume_from_disk_keeps_the_disk(bare, point):
    undecided(bare, point, lambda kept: bare.house.connect(kept.id), lambda kept: kept.sandbox.pause(mode="filesystem"))


@steps("resume without memory")
def test_a_resume_without_memory_keeps_the_disk(bare, point):
    undecided(bare, point, lambda kept: bare.house.connect(kept.id, on_resume="reboot"), lambda kept: kept.sandbox.pause())


@steps("restart")
def test_a_restart_keeps_the_disk(bare, point):
    undecided(bare, point, lambda kept: bare.house.restart(kept.id))


@steps("auto-pause")
def test_an_auto_pause_keeps_the_memory(bare, point):
    undecided(bare, point, lambda kept: kept.sandbox.set_timeout(1), runs_on=True, lifecycle={"on_timeout": "pause"})


def ends(stage, point, flow, prepare=lambda kept: None):
    """A flow that ends a sandbox: what is recorded is carried out."""
    kept = Kept(stage.house)
    prepare(kept)
    stage.dies(point, lambda: flow(kept))
    eventually(kept.is_gone, "the sandbox to be gone")
    stage.assert_all_is_kept()
    stage.assert_nothing_is_left(point)


@steps("kill")
def test_a_kill_is_carried_out(bare, point):
    ends(bare, point, lambda kept: kept.sandbox.kill())


@steps("kill a pause")
def test_a_kill_of_a_paused_sandbox_is_carried_out(bare, point):
    ends(bare, point, lambda kept: kept.sandbox.kill(), lambda kept: kept.sandbox.pause())


@steps("kill a disk")
def test_a_kill_of_a_kept_disk_is_carried_out(bare, point):
    ends(bare, point, lambda kept: kept.sandbox.kill(), lambda kept: kept.sandbox.pause(mode="filesystem"))


@steps("timeout")
def test_a_timeout_is_carried_out(bare, point):
    ends(bare, point, lambda kept: kept.sandbox.set_timeout(1))


@pytest.mark.parametrize("point", RECOVERY)
def test_a_recovery_that_dies_is_done_again(bare, point):
    kept = Kept(bare.house)
    bare.house.armed.write_text("container/process-recorded")
    with contextlib.suppress(Exception):
        bare.house.create()
    bare.house.wait_for_death()
    bare.house.armed.write_text(point)
    bare.house.spawn().wait_for_death()
    bare.house.armed.unlink()
    bare.house.start()
    kept.works()
    kept.runs_on()
    kept.sandbox.kill()
    bare.assert_all_is_kept()
    bare.assert_nothing_is_left(point)


def test_every_point_of_the_sources_is_died_at():
    crates = pathlib.Path(__file__).parents[3] / "crates"
    found = {point for path in crates.glob("*/src/**/*.rs") for point in re.findall(r'reach\("([^"]+)"\)', path.read_text())}
    assert found == ALL
