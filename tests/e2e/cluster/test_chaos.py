"""Clients at work while parts of the fleet die. What was acknowledged holds; what was refused was refused as documented."""

import os
import random
import threading
import time

import httpx
from e2b import NotFoundException
from e2b.exceptions import SandboxException, ServiceBusyException
from fleet import eventually

#: As `ATOLL_CHAOS_SECONDS` and `ATOLL_CHAOS_SEED` say; CI runs it for a minute.
SECONDS = float(os.environ.get("ATOLL_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("ATOLL_CHAOS_SEED", str(random.randrange(1 << 32))))
CLIENTS = 4
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
#: What a client may be told while something is away: limits and absences, each with its reason (docs/operations.md).
DOCUMENTED = (429, 502, 503, 504, 408, 409, 500)


class Client(threading.Thread):
    """Creates, runs commands, pauses, resumes, forks and kills, and remembers what it was told."""

    def __init__(self, fleet, number, until):
        super().__init__(name=f"client-{number}")
        self.fleet, self.until = fleet, until
        self.dice = random.Random(f"{SEED}/{number}")
        self.killed, self.unsure, self.live, self.faults, self.done = [], [], {}, [], 0

    def anywhere(self):
        return {"api": self.dice.randrange(len(self.fleet.apis)), "edge": self.dice.randrange(len(self.fleet.edges))}

    def run(self):
        while time.monotonic() < self.until:
            try:
                self.step()
                self.done += 1
            except (SandboxException, ServiceBusyException, httpx.HTTPError, httpx.StreamError, OSError) as refused:
                # An interruption: the state of what it was about is looked up at the end.
                if not is_documented(refused):
                    self.faults.append(repr(refused))
                time.sleep(0.2)

    def step(self):
        if len(self.live) < 2 or self.dice.random() < 0.2:
            sandbox = self.fleet.create(timeout=600, **self.anywhere())
            self.live[sandbox.sandbox_id] = None
            content = str(self.dice.random())
            sandbox.files.write("/home/user/content", content)
            self.live[sandbox.sandbox_id] = content
            return
        name = self.dice.choice(sorted(self.live))
        choice = self.dice.random()
        if choice < 0.25:
            # One that is not acknowledged may be carried out all the same: then nobody knows what became of it.
            del self.live[name]
            self.unsure.append(name)
            self.fleet.kill(name, api=self.anywhere()["api"])
            self.unsure.remove(name)
            self.killed.append(name)
        elif choice < 0.5:
            self.fleet.connect(name, **self.anywhere()).pause()
        else:
            sandbox = self.fleet.connect(name, **self.anywhere())
            content = self.live[name]
            found = sandbox.commands.run("cat /home/user/content 2>/dev/null || true", timeout=20).stdout
            if content is not None and found != content:
                self.faults.append(f"{name} holds {found!r}, and was told {content!r}")


def is_documented(error):
    text = str(error)
    told = text.split(":", 1)[0]
    if isinstance(error, (httpx.HTTPError, httpx.StreamError, OSError, NotFoundException)):
        # A line that was cut with its process; a sandbox of a node that was lost.
        return True
    return not told.isdigit() or int(told) in DOCUMENTED


def test_what_was_acknowledged_holds_whatever_dies(fleet):
    print(f"ATOLL_CHAOS_SEED={SEED}")
    dice = random.Random(SEED)
    until = time.monotonic() + SECONDS
    clients = [Client(fleet, number, until) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    died = []
    while time.monotonic() < until - 5:
        time.sleep(dice.uniform(2, 6))
        victim = dice.choice(VICTIMS)
        died.append(victim)
        fleet.die(victim)
    for client in clients:
        client.join(120)
        assert not client.is_alive(), "a client hangs"
    fleet.settle()
    print(f"{sum(client.done for client in clients)} operations while these died: {died}")
    assert [client.faults for client in clients] == [[] for _ in clients]
    assert sum(client.done for client in clients) > 10, "nothing went on"
    for client in clients:
        # No acknowledged kill is reachable.
        for name in client.killed:
            assert unknown(fleet, name), f"{name} was killed, and is there"
        # What was written and acknowledged is there, paused or not: nodes' daemons died, and no node was lost.
        for name, content in client.live.items():
            if content is None:
                continue
            sandbox = eventually(lambda name=name: found(fleet, name), f"{name} is there", 60)
            assert sandbox.files.read("/home/user/content") == content
    for one in fleet.call("GET", "/v2/sandboxes?limit=100"):
        fleet.kill(one["sandboxID"])
    eventually(lambda: nothing_left(fleet), "nothing is left on any node", 90)


def unknown(fleet, name):
    try:
        fleet.connect(name)
    except NotFoundException:
        return True
    return False


def found(fleet, name):
    try:
        return fleet.connect(name)
    except (SandboxException, ServiceBusyException):
        return None


def nothing_left(fleet):
    """No node holds anything that the database does not know."""
    listed = {one["sandboxID"] for one in fleet.call("GET", "/v2/sandboxes?limit=100")}
    held = fleet.held()
    return sum(node["sandboxCount"] + node["pausedCount"] for node in held.values()) == len(listed) == 0
