"""The processes of the fleet, and what can be done to them."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time
import urllib.error
import urllib.request

from e2b import Sandbox
from e2b.exceptions import SandboxException, ServiceBusyException

#: How long a process may take to be started again, and to be ready.
READY_SECONDS = 60
#: How long a condition may take to become true before a test calls it false.
PATIENCE_SECONDS = 30.0
#: The API that knows operators.
OPERATED = 1


def eventually(condition, what, seconds=PATIENCE_SECONDS):
    """Waits until `condition()` is truthy and returns what it returned."""
    deadline = time.monotonic() + seconds
    last = None
    while True:
        try:
            found = condition()
            if found:
                return found
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s") from last
        time.sleep(0.1)


class Fleet:
    """`atoll dev cluster`, as it says that it is."""

    def __init__(self):
        told = json.loads(pathlib.Path(os.environ["ATOLL_CLUSTER"]).read_text())
        self.told = told
        self.members = {member["name"]: member for member in told["members"]}
        self.apis = [f"http://{one['listen']}" for one in told["members"] if one["role"] == "api"]
        self.edges = [f"http://{one['listen']}" for one in told["members"] if one["role"] == "edge"]
        self.nodes = [one for one in told["members"] if one["role"] == "node"]
        self.key = told["apiKey"]
        self.admin_token = told.get("adminToken", "")

    # Clients

    def where(self, api=0, edge=0):
        """What an SDK is told to use one API and one edge."""
        return {"api_url": self.apis[api], "sandbox_url": self.edges[edge], "api_key": self.key}

    def create(self, *args, api=0, edge=0, **kwargs):
        return Sandbox.create(*args, **self.where(api, edge), **kwargs)

    def connect(self, name, api=0, edge=0, **kwargs):
        return Sandbox.connect(name, **self.where(api, edge), **kwargs)

    def connected(self, name, **kwargs):
        """A connection, or nothing: what stands in the way now may be over in a moment."""
        with contextlib.suppress(SandboxException, ServiceBusyException):
            return self.connect(name, **kwargs)
        return None

    def kill(self, name, api=0):
        return Sandbox.kill(name, **self.where(api))

    def call(self, method, path, body=None, expect=(200, 201, 202, 204), api=0):
        """What an API answers, as JSON; the status must be (among) the expected."""
        request = urllib.request.Request(
            self.apis[api] + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-API-Key": self.key, "Content-Type": "application/json"},
        )
        # Nodes are for operators, where an API knows any: the second one does.
        if path.startswith("/nodes") and self.admin_token:
            request.add_header("X-Admin-Token", self.admin_token)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            status, text = refused.code, refused.read()
        expected = expect if isinstance(expect, tuple) else (expect,)
        assert status in expected, f"{method} {path}: {status} {text[:500]!r}"
        return json.loads(text) if text else None

    def held(self, api=0):
        """What each node says that it holds: how many sandboxes, by the node's id."""
        return {node["nodeID"]: node for node in self.call("GET", "/nodes", api=api)}

    # Nodes

    def tell(self, node, status, **how):
        """Tells a node that it is `ready`, `cordoned` or `draining`."""
        self.call("POST", f"/nodes/{node['identity']}", {"status": status, **how}, expect=204, api=OPERATED)

    @contextlib.contextmanager
    def marked(self, node, status, **how):
        """Tells a node something, and opens it again in the end."""
        self.tell(node, status, **how)
        try:
            # Every API asks the nodes, and is told the same.
            for api in range(len(self.apis)):
                assert self.held(api)[node["identity"]]["status"] == status
            yield
        finally:
            self.tell(node, "ready")

    def on(self, node):
        """What a node holds."""
        return set(self.call("GET", f"/nodes/{node['identity']}", api=OPERATED)["sandboxes"])

    def drain_of(self, node):
        """How far the emptying of a node has come."""
        return self.call("GET", f"/nodes/{node['identity']}", api=OPERATED)["drain"]

    @contextlib.contextmanager
    def only(self, node):
        """Lets new sandboxes start on one node alone."""
        held = self.held()
        closed = [one for one in self.nodes if one is not node and held[one["identity"]]["status"] == "ready"]
        try:
            for one in closed:
                self.tell(one, "cordoned")
            yield
        finally:
            for one in closed:
                self.tell(one, "ready")

    def made_on(self, node, fresh, *args, seconds=PATIENCE_SECONDS, **kwargs):
        """A sandbox on a certain node, as soon as what it starts from can be had there."""

        def made():
            # What an API knows of the nodes may be two seconds old.
            with contextlib.suppress(SandboxException, ServiceBusyException):
                sandbox = fresh(*args, **kwargs)
                if sandbox.sandbox_id in self.on(node):
                    return sandbox
                self.kill(sandbox.sandbox_id)
            return None

        with self.only(node):
            return eventually(made, f"{node['name']} takes a sandbox", seconds)

    # Processes

    def pid(self, name):
        pids = json.loads(pathlib.Path(self.told["processes"]).read_text())
        return pids[name]

    def send(self, name, what):
        os.kill(self.pid(name), what)

    def die(self, name):
        """Kills a process, which is started again; returns at once."""
        before = self.pid(name)
        os.kill(before, signal.SIGKILL)
        eventually(lambda: self.pid(name) != before, f"{name} is started again")

    def is_ready(self, name):
        admin = self.members[name]["admin"]
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://{admin}/health/ready", timeout=3) as answer:
                return answer.status == 204
        return False

    def settle(self):
        """Waits until every process is ready, and every node is in the fleet."""
        for name in self.members:
            eventually(lambda name=name: self.is_ready(name), f"{name} is ready", READY_SECONDS)
        for api in range(len(self.apis)):
            eventually(
                lambda api=api: len(self.held(api)) == len(self.nodes), "every node is in the fleet", READY_SECONDS
            )

    @contextlib.contextmanager
    def cut_off(self, node):
        """Cuts a node off the network, as if its cable were pulled."""
        link = "atolldev" + node["name"].removeprefix("node-")
        subprocess.run(["ip", "link", "set", link, "down"], check=True)
        try:
            yield
        finally:
            subprocess.run(["ip", "link", "set", link, "up"], check=True)

    @contextlib.contextmanager
    def stopped(self, name):
        """Lets a process stand, as a machine that hangs."""
        self.send(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(name, signal.SIGCONT)
