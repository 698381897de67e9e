"""The daemon dies at every step between an intent and its effect. Whatever was answered holds; what was under way is whole
or gone; and nothing is left that nobody accounts for.

The points are in the sources (`failpoint::reach`). A flow is done in a house in which other sandboxes run and are
paused and are being worked in; the daemon dies at the point, and is started again.
"""

import contextlib
import pathlib
import re
import threading

import pytest
from e2b import NotFoundException, SandboxState
from house import FAILPOINTS, House
from machine import Machine
from patience import eventually

pytestmark = pytest.mark.skipif(FAILPOINTS is None, reason="ATOLL_FAILPOINTS_BIN names no daemon that was built with failpoints")

PREPARE = [
    "container/slot-recorded",
    "container/cgroup-made",
    "container/disk-given",
    "container/skeleton-made",
    "container/process-recorded",
    "container/link-attached",
    "container/root-assembled",
    "container/boot-ordered",
    "container/slot-up",
]
CLAIM = ["container/claim-recorded", "container/policy-in-force", "node/machine-started"]
RUN = [
    "node/settings-told",
    "node/running-written",
    "orchestrator/node-started",
    "orchestrator/route-published",
    "orchestrator/running-stored",
]
END = [
    "container/machine-ended",
    "container/all-ended",
    "container/network-released",
    "container/disk-put-away",
    "container/cgroup-removed",
    "container/record-removed",
]
PAUSE = ["orchestrator/pausing-stored", "node/pausing-written", "node/machine-paused", "node/paused-written", "orchestrator/node-paused", "orchestrator/paused-stored"]
REBOOT = ["node/reboot-meant", "container/keep-recorded", *END, "node/disk-kept", "node/reboot-written", *PREPARE, *CLAIM, *RUN]
KILL = ["orchestrator/killing-stored", "node/journal-removed", *END, "node/machine-stopped", "orchestrator/node-killed"]
POINTS = {
    "create": ["orchestrator/starting-stored", *PREPARE, *CLAIM, *RUN],
    "pause": PAUSE,
    "pause to disk": [*PAUSE, "node/shut-down-to-pause", "container/keep-recorded", *END],
    "auto-pause": ["node/pausing-written", "node/machine-paused", "node/paused-written"],
    "resume": ["orchestrator/resuming-stored", "node/thawed", *RUN],
    "resume from disk": ["orchestrator/resuming-stored", *PREPARE, *CLAIM, *RUN],
    "resume without memory": ["orchestrator/resuming-stored", *REBOOT],
    "restart": ["orchestrator/restarting-stored", "node/shut-down", *REBOOT],
    "kill": KILL,
    "kill a pause": KILL,
    "kill a disk": ["orchestrator/killing-stored", "node/journal-removed", "node/machine-stopped", "orchestrator/node-killed"],
    "timeout": ["node/journal-removed", *END, "node/machine-stopped"],
}
# While a daemon settles what an earlier one left.
RECOVERY = ["node/runtime-recovered", "node/journal-compared", "container/all-ended", "container/network-released", "container/disk-put-away", "container/cgroup-removed", "container/record-removed"]
# A create that is answered from the pool dies behind the answer, when the pool is filled up again.
REFILL = PREPARE


class Kept:
    """A sandbox of which it was answered that it is there, running or paused."""

    def __init__(self, house, **options):
        self.house = house
        self.sandbox = house.create(timeout=3600, **options)
        self.process = self.sandbox.commands.run("i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done", background=True, timeout=0)
        self.sandbox.files.write("/home/user/kept", self.id)
        self.boot = self.sandbox.files.read("/proc/sys/kernel/random/boot_id")

    @property
    def id(self):
        return self.sandbox.sandbox_id

    @property
    def sandbox_id(self):
        return self.id

    def state(self):
        return self.sandbox.get_info().state

    def works(self):
        """It can be used, and has its disk."""
        self.sandbox = self.house.connect(self.id)
        assert self.sandbox.files.read("/home/user/kept") == self.id
        assert self.sandbox.commands.run("sudo true && echo done").stdout == "done\n"

    def runs_on(self):
        """It is the same machine as in the beginning, with the same processes."""
        assert self.sandbox.files.read("/proc/sys/kernel/random/boot_id") == self.boot
        assert self.process.pid in [process.pid for process in self.sandbox.commands.list()]
        count = self.sandbox.files.read("/tmp/count")
        eventually(lambda: self.sandbox.files.read("/tmp/count") != count, "the counter to go on")


class Stage:
    """A house with sandboxes that have nothing to do with what dies."""

    def __init__(self, pool):
        self.house = House(FAILPOINTS, pool)
        self.machine = Machine(self.house)
        self.house.start()
        self.running, self.frozen, self.on_disk = (Kept(self.house) for _ in range(3))
        self.frozen.sandbox.pause()
        self.on_disk.sandbox.pause(mode="filesystem")
        self.end = self.running.sandbox.get_info().end_at

    @property
    def all(self):
        return [self.running, self.frozen, self.on_disk]

    @contextlib.contextmanager
    def load(self):
        """Commands, files and questions, from all sides."""
        over = threading.Event()

        def work():
            while not over.is_set():
                with contextlib.suppress(Exception):  # the house is being killed
                    self.running.sandbox.commands.run("head -c 100000 /dev/urandom | sha256sum", timeout=5, request_timeout=5)
                    self.house.list()

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def dies(self, point, flow):
        """Does a flow until the daemon dies at a point of it, and starts the next daemon. Says whether the flow was
        answered."""
        with self.load():
            self.house.armed.write_text(point)
            answered = True
            try:
                flow()
            except Exception:
                answered = False
            self.house.wait_for_death()
        self.house.armed.unlink()
        self.house.start()
        return answered

    def assert_all_is_kept(self):
        assert [kept.state() for kept in self.all] == [SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.PAUSED]
        assert self.running.sandbox.get_info().end_at == self.end
        for kept in self.all:
            kept.works()
        self.running.runs_on()
        self.frozen.runs_on()
        self.frozen.sandbox.pause()
        self.on_disk.sandbox.pause(mode="filesystem")

    def assert_nothing_is_left(self, point):
        """Ends whatever is there and was not there in the beginning."""
        own = {kept.id for kept in self.all}
        for name in set(self.house.list()) - own:
            sandbox = self.house.connect(name)
            assert sandbox.commands.run("echo whole").stdout == "whole\n"
            sandbox.kill()
        self.machine.assert_accounted(self.all, f"a death at {point}")
        self.is_whole = True

    def close(self):
        self.house.down()
        self.machine.assert_clean("atoll down")


class Stages:
    """A stage serves many tests, until one of them fails in it."""

    def __init__(self):
        self.open = {}

    def take(self, pool):
        stage = self.open.pop(pool, None)
        if stage and not stage.is_whole:
            stage.house.down()
            stage = None
        self.open[pool] = stage = stage or Stage(pool)
        stage.is_whole = False
        return stage

    def close(self):
        for stage in self.open.values():
            stage.close()


@pytest.fixture(scope="module")
def stages():
    stages = Stages()
    yield stages
    stages.close()


@pytest.fixture
def bare(stages):
    """Nothing is prepared: each create walks the whole way."""
    return stages.take(0)


@pytest.fixture
def pooled(stages):
    return stages.take(2)


def steps(flow):
    return pytest.mark.parametrize("point", POINTS[flow])


def is_gone(kept):
    try:
        kept.sandbox.get_info()
    except NotFoundException:
        return True


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


def undecided(stage, point, flow, prepare=lambda kept: None, runs_on=False, **options):
    """A flow on a sandbox, which must not lose it: it is there afterwards, with its disk."""
    kept = Kept(stage.house, **options)
    prepare(kept)
    stage.dies(point, lambda: flow(kept))
    if kept.state() == SandboxState.PAUSED:
        assert stage.machine.frozen(kept.id) is not False
    kept.works()
    if runs_on:
        kept.runs_on()
    kept.sandbox.kill()
    stage.assert_all_is_kept()
    stage.assert_nothing_is_left(point)


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
    eventually(lambda: is_gone(kept), "the sandbox to be gone")
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
    assert found == set(RECOVERY).union(*POINTS.values())
