"""Sandboxes that are made, used, paused, resumed, rebooted and ended from many sides, while the daemon lives and dies.

Each worker knows what it was answered, and holds the house to it after every death.
"""

import concurrent.futures
import random
import threading
import time

from e2b import NotFoundException
from patience import PatienceIsOver, eventually

# Of the daemon's memory, from a warm house to the end of a churn: allocators keep some, leaks grow on.
GROWTH_KIB_MAX = 16 * 1024


class Lost(AssertionError):
    pass


class Worker:
    """One side: has at most one sandbox at a time."""

    def __init__(self, house, seed):
        self.house, self.random = house, random.Random(seed)
        self.sandbox = None
        self.is_ending = self.is_writing = False
        self.note = None
        self.cycles = 0

    def step(self):
        """One thing that a client does."""
        if self.sandbox is None:
            self.sandbox = self.house.create(timeout=3600)
            self.is_ending = self.is_writing = False
            self.note = None
            return
        self.random.choice([self.use, self.use, self.pause, self.drop_memory, self.reboot, self.end, self.end])()

    def use(self):
        note = str(self.random.random())
        self.is_writing = True
        self.sandbox.files.write("/home/user/note", note)
        # Only what was answered is known; `sync` puts it on the disk, where no death of a machine loses it.
        assert self.sandbox.commands.run("sync; cat /home/user/note", timeout=120).stdout == note
        self.note, self.is_writing = note, False

    def pause(self):
        self.sandbox.pause()
        self.sandbox = self.house.connect(self.sandbox.sandbox_id, timeout=3600)

    def drop_memory(self):
        self.sandbox.pause(mode="filesystem")
        self.sandbox = self.house.connect(self.sandbox.sandbox_id, timeout=3600)

    def reboot(self):
        self.house.restart(self.sandbox.sandbox_id)

    def end(self):
        self.is_ending = True
        self.sandbox.kill()
        self.sandbox = None
        self.cycles += 1

    def check(self):
        """After a death: what was answered holds."""
        if self.sandbox is None:
            return
        try:
            self.sandbox = self.house.connect(self.sandbox.sandbox_id, timeout=3600)
        except NotFoundException:
            if not self.is_ending:
                raise Lost(f"{self.sandbox.sandbox_id} is gone, and nobody ended it") from None
            self.sandbox = None
            return
        if self.note is not None:
            found = self.sandbox.commands.run("cat /home/user/note", timeout=120).stdout
            # One that was being written may be there, or a part of it.
            if found != self.note and not self.is_writing:
                raise Lost(f"{self.sandbox.sandbox_id} has {found!r} for {self.note!r}")


class Churn:
    """Workers in one house."""

    def __init__(self, house, machine, workers=6, seed=None):
        self.house, self.machine = house, machine
        self.random = random.Random(seed)
        self.workers = [Worker(house, self.random.random()) for _ in range(workers)]
        self.deaths = 0

    @property
    def cycles(self):
        return sum(worker.cycles for worker in self.workers)

    def live(self, seconds=None, cycles=None):
        """Works for so long, or through so many cycles. What fails is a failure."""
        self.work(seconds, cycles, dies=False)

    def die(self, after_seconds):
        """Works until the daemon is killed; the next one is held to what this one answered."""
        self.work(after_seconds, None, dies=True)
        self.deaths += 1
        self.house.start()
        owned = {worker.sandbox.sandbox_id for worker in self.workers if worker.sandbox}
        for name in set(self.house.list()) - owned:
            # Its maker never heard of it: it is whole all the same.
            unheard = self.house.connect(name)
            assert unheard.commands.run("echo whole").stdout == "whole\n"
            unheard.kill()
        for worker in self.workers:
            worker.check()

    def work(self, seconds, cycles, dies):
        over, dying = threading.Event(), threading.Event()
        goal = cycles and self.cycles + cycles

        def run(worker):
            while not over.is_set():
                try:
                    worker.step()
                except Exception:
                    if dying.is_set():
                        return
                    over.set()
                    raise

        with concurrent.futures.ThreadPoolExecutor(len(self.workers)) as pool:
            runs = [pool.submit(run, worker) for worker in self.workers]
            until = time.monotonic() + seconds if seconds else None
            while not over.is_set() and not (until and time.monotonic() > until) and not (goal and self.cycles >= goal):
                time.sleep(0.01)
            if dies and not over.is_set():
                dying.set()
                self.house.kill()
            over.set()
        for done in runs:
            done.result()

    def end(self):
        """Ends what the workers have; then nothing is left that nobody accounts for."""
        for worker in self.workers:
            if worker.sandbox:
                worker.end()
        self.machine.assert_accounted([], "the churn")


class Measure:
    """What must not grow, in an empty house whose daemon has been at work."""

    def __init__(self, machine):
        self.resident_kib = machine.resident_kib()
        self.descriptors = machine.descriptors()
        self.counts = {kind: len(found) for kind, found in machine.look().items()}

    def grew(self, before):
        """What there is more of than there was."""
        more = {kind: (before.descriptors[kind], count) for kind, count in self.descriptors.items() if count > before.descriptors[kind]}
        more |= {kind: (before.counts[kind], count) for kind, count in self.counts.items() if count > before.counts[kind]}
        if self.resident_kib - before.resident_kib > GROWTH_KIB_MAX:
            more["resident KiB"] = (before.resident_kib, self.resident_kib)
        return more

    def __str__(self):
        return f"{self.resident_kib >> 10} MiB, {sum(self.descriptors.values())} descriptors, {self.counts['namespaces']} namespaces, {self.counts['links']} links, {self.counts['files']} files"


def assert_flat(machine, before, what):
    try:
        eventually(lambda: not Measure(machine).grew(before), what)
    except PatienceIsOver:
        raise AssertionError(f"{what}: more than before: {Measure(machine).grew(before)}") from None
    return Measure(machine)
