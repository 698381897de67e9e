"""Clients at work while parts of the fleet die, hang and are cut off. What was acknowledged holds; what was refused was refused as
documented; nobody is in two places; and nothing is left."""

import contextlib
import os
import random
import threading
import time
from collections import Counter

import httpx
import pytest
from e2b import NotFoundException
from e2b.exceptions import SandboxException, ServiceBusyException
from fleet import eventually

#: As `ATOLL_CHAOS_SECONDS` and `ATOLL_CHAOS_SEED` say; CI runs it for a minute.
SECONDS = float(os.environ.get("ATOLL_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("ATOLL_CHAOS_SEED", str(random.randrange(1 << 32))))
CLIENTS = 4
#: Sandboxes that a client keeps at most.
MOST = 5
#: Of processes and services, each as likely as the other.
VICTIMS = [
    "api-1",
    "api-2",
    "edge-1",
    "edge-2",
    "orchestrator-1",
    "orchestrator-2",
    "node-1",
    "node-2",
    "node-3",
    "redis",
    "postgres",
    "consul",
]
#: Seconds: none is over by itself.
LIFE = 3600
#: A node that is away for longer is given up, with what runs there.
AWAY_SECONDS = 8
#: What a client may be told while something is away: limits and absences, each with its reason (docs/operations.md).
DOCUMENTED = (429, 502, 503, 504, 408, 409)
LOG = "/home/user/log"
REFUSALS = (SandboxException, ServiceBusyException, httpx.HTTPError, httpx.StreamError, OSError)


class Log:
    """What was written into a sandbox, line by line, by its only client. Were there two of the sandbox, each would lack something."""

    def __init__(self, told=(), tried=()):
        self.told, self.tried = list(told), set(tried)

    def fault(self, lines):
        """What is wrong with what is found, if anything."""
        unknown = [line for line in lines if line not in self.tried]
        if unknown:
            return f"nobody wrote {unknown}"
        found = iter(lines)
        lost = [line for line in self.told if line not in found]
        return f"{lost} were acknowledged, and are not in {lines}" if lost else None


class Client(threading.Thread):
    """Creates, runs commands, pauses, resumes, forks and kills, and remembers what it was told."""

    def __init__(self, fleet, number, until):
        super().__init__(name=f"client-{number}")
        self.fleet, self.until = fleet, until
        self.dice = random.Random(f"{SEED}/{number}")
        self.killed, self.live, self.faults = [], {}, []
        self.done, self.refused = Counter(), Counter()

    def anywhere(self):
        return {"api": self.dice.randrange(len(self.fleet.apis)), "edge": self.dice.randrange(len(self.fleet.edges))}

    def run(self):
        while time.monotonic() < self.until:
            step = self.step()
            try:
                step()
                self.done[step.__name__] += 1
            except REFUSALS as refused:
                # An interruption: the state of what it was about is looked up at the end.
                self.refused[f"{step.__name__}: {refused!r}"[:160]] += 1
                if not is_documented(refused):
                    self.faults.append(f"{step.__name__}: {refused!r}")
                time.sleep(0.2)

    def step(self):
        if not self.live:
            return self.create
        steps = {self.write: 40, self.pause: 20, self.kill: 15, self.haunt: 5}
        if len(self.live) < MOST:
            steps |= {self.create: 15, self.fork: 10}
        (step,) = self.dice.choices(list(steps), list(steps.values()))
        return step

    def one(self):
        return self.dice.choice(sorted(self.live))

    def create(self):
        name = self.fleet.create(timeout=LIFE, **self.anywhere()).sandbox_id
        self.live[name] = Log()

    def write(self):
        name = self.one()
        log, line = self.live[name], f"{self.name}-{self.dice.getrandbits(64):x}"
        sandbox = self.fleet.connect(name, timeout=LIFE, **self.anywhere())
        log.tried.add(line)
        lines = sandbox.commands.run(f"echo {line} >>{LOG}; cat {LOG}", timeout=20).stdout.split()
        if fault := log.fault(lines):
            self.faults.append(f"{name}: {fault}")
        log.told.append(line)

    def pause(self):
        self.fleet.connect(self.one(), timeout=LIFE, **self.anywhere()).pause()

    def fork(self):
        name = self.one()
        log = self.live[name]
        for copy in self.fleet.connect(name, timeout=LIFE, **self.anywhere()).fork(count=2, timeout=LIFE):
            if isinstance(copy, Exception):
                if not is_documented(copy):
                    self.faults.append(f"a copy: {copy!r}")
                continue
            self.live[copy.sandbox_id] = Log(log.told, log.tried)

    def kill(self):
        name = self.one()
        # One that is not acknowledged may be carried out all the same: then nobody knows what became of it.
        del self.live[name]
        self.fleet.kill(name, api=self.anywhere()["api"])
        self.killed.append(name)

    def haunt(self):
        """No acknowledged kill is reachable, at any time."""
        if not self.killed:
            return
        name = self.dice.choice(self.killed)
        with contextlib.suppress(NotFoundException):
            self.fleet.connect(name, timeout=LIFE, **self.anywhere())
            self.faults.append(f"{name} was killed, and is there")


def is_documented(error):
    told = str(error).split(":", 1)[0]
    if isinstance(error, (httpx.HTTPError, httpx.StreamError, OSError, NotFoundException)):
        # A line that was cut with its process; a sandbox whose create was cut.
        return True
    return not told.isdigit() or int(told) in DOCUMENTED


class Trouble:
    """What goes wrong with the fleet, one after the other and several at a time."""

    def __init__(self, fleet):
        self.fleet, self.dice = fleet, random.Random(SEED)
        self.happened, self.lasting, self.cut = [], [], set()

    def go_on(self):
        (what,) = self.dice.choices([self.die, self.hang, self.cut_off], [3, 1, 1])
        what()

    def die(self):
        victim = self.dice.choice(VICTIMS)
        self.happened.append(victim)
        self.fleet.die(victim)

    def hang(self):
        self.last(self.fleet.stopped, self.dice.choice(VICTIMS))

    def cut_off(self):
        connected = [node for node in self.fleet.nodes if node["name"] not in self.cut]
        if connected:
            self.last(self.fleet.cut_off, self.dice.choice(connected))

    def last(self, state, whom):
        """Lets something be so for a while, beside the rest."""
        name = whom if isinstance(whom, str) else whom["name"]
        seconds = self.dice.uniform(1, AWAY_SECONDS)
        self.happened.append(f"{name} {state.__name__} for {seconds:.1f} s")

        def during():
            # It may be killed meanwhile.
            with contextlib.suppress(ProcessLookupError), state(whom):
                time.sleep(seconds)
            self.cut.discard(name)

        if state == self.fleet.cut_off:
            self.cut.add(name)
        thread = threading.Thread(target=during)
        thread.start()
        self.lasting.append(thread)

    def end(self):
        for thread in self.lasting:
            thread.join()


def test_what_was_acknowledged_holds_whatever_dies(fleet):
    print(f"ATOLL_CHAOS_SEED={SEED}")
    until = time.monotonic() + SECONDS
    clients = [Client(fleet, number, until) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    trouble = Trouble(fleet)
    try:
        while time.monotonic() < until - AWAY_SECONDS - 2:
            time.sleep(trouble.dice.uniform(1, 5))
            trouble.go_on()
    finally:
        trouble.end()
        for client in clients:
            client.join(120)
    assert not any(client.is_alive() for client in clients), "a client hangs"
    fleet.settle()
    for client in clients:
        print(f"{client.name} did {dict(client.done)}, was refused {dict(client.refused)}")
    print(f"meanwhile: {trouble.happened}")
    assert [client.faults for client in clients] == [[] for _ in clients]
    done = set().union(*(client.done for client in clients))
    assert done >= {"create", "write", "pause", "fork", "kill"}, "nothing went on"
    for client in clients:
        for name in client.killed:
            eventually(lambda name=name: unknown(fleet, name), f"{name}, which was killed, is over", 90)
        # Paused or not: no node was lost.
        for name, log in client.live.items():
            sandbox = eventually(lambda name=name: fleet.connected(name), f"{name} is there", 60)
            lines = sandbox.commands.run(f"cat {LOG} 2>/dev/null || true").stdout.split()
            assert log.fault(lines) is None, f"{name}: {log.fault(lines)}"
    eventually(lambda: nothing_left(fleet), "nothing is left on any node", 90)


def unknown(fleet, name):
    """Whether nobody knows it any more. While its node ends it, whoever connects is told so: 409."""
    try:
        fleet.connect(name)
    except NotFoundException:
        return True
    except SandboxException as refused:
        assert "is killing" in str(refused), refused
        return False
    pytest.fail(f"{name} was killed, and is there")


def nothing_left(fleet):
    """Kills what is listed: no node holds anything that is not. What was never acknowledged may be listed late: an operation whose
    process died is taken up some 20 seconds later."""
    listed = fleet.call("GET", "/v2/sandboxes?limit=100")
    for one in listed:
        fleet.kill(one["sandboxID"])
    held = {name: (node["sandboxCount"], node["pausedCount"]) for name, node in fleet.held().items()}
    left = {name: counts for name, counts in held.items() if any(counts)}
    assert not left, f"{left} are held (running, paused), {len(listed)} were listed"
    return not listed
