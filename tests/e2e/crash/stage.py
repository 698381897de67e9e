"""Houses in which a daemon dies at a point, with sandboxes in them that have nothing to do with what dies."""

import contextlib
import threading

from e2b import SandboxState
from house import FAILPOINTS, House
from kept import Kept
from machine import Machine
from patience import eventually


class Stage:
    """A house with sandboxes that have nothing to do with what dies."""

    def __init__(self, pool, criu=None):
        self.house = House(FAILPOINTS, pool, criu)
        self.machine = Machine(self.house)
        self.start()
        self.running, self.frozen, self.on_disk = (Kept(self.house) for _ in range(3))
        self.frozen.sandbox.pause()
        self.on_disk.sandbox.pause(mode="filesystem")
        self.end = self.running.sandbox.get_info().end_at
        self.snapshot = None
        # Builds that nothing named after a death, and after which.
        self.strays = {}

    @property
    def all(self):
        return [self.running, self.frozen, self.on_disk]

    def start(self):
        self.house.start()
        if self.house.criu:
            eventually(self.house.keeps_memory, "the house to keep memory")

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
            answered = self.house.dies(point, flow)
        self.start()
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
        for build in self.machine.strays():
            self.strays.setdefault(build, point)
        self.is_whole = True

    def committed(self):
        """A snapshot of the sandbox that runs, which was answered long ago."""
        if self.snapshot is None:
            self.snapshot = self.running.sandbox.create_snapshot(mode="filesystem").snapshot_id
        return self.snapshot

    def assert_what_was_committed_starts(self):
        copy = self.house.create(template=self.committed())
        assert copy.files.read("/home/user/kept") == self.running.id
        assert copy.kill()

    def close(self):
        """What nothing names is collected; then nothing at all is left."""
        if self.snapshot:
            self.assert_what_was_committed_starts()
        try:
            eventually(lambda: not self.machine.strays(), "what nothing names to be collected")
        except AssertionError:
            left = {build: self.strays.get(build, "the last death") for build in self.machine.strays()}
            raise AssertionError(f"nothing names these builds, and they stay: {left}\n{self.house.log()}") from None
        self.house.down()
        self.machine.assert_clean("atoll down")


class Stages:
    """A stage serves many tests, until one of them fails in it."""

    def __init__(self):
        self.open = {}

    def take(self, pool, criu=None):
        stage = self.open.pop((pool, criu), None)
        if stage and not stage.is_whole:
            stage.house.down()
            stage = None
        self.open[pool, criu] = stage = stage or Stage(pool, criu)
        stage.is_whole = False
        return stage

    def close(self):
        faults = []
        for stage in self.open.values():
            try:
                stage.close() if stage.is_whole else stage.house.down()
            except Exception as fault:
                faults.append(fault)
        if faults:
            raise faults[0]


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
