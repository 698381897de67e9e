"""Hosts on the internet, as far as any policy can tell: a network namespace a link away from this machine.

Their addresses are documentation's (RFC 5737, TEST-NET-2), and routed one by one: what else is in their network may mean
something where the tests run. The namespace belongs to a process that dies with the tests, and the link goes with it.
"""

import contextlib
import subprocess
import sys
import uuid

NEIGHBOUR = "198.51.100.76"
ALONE = """
import ctypes
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
    raise OSError(ctypes.get_errno(), "unshare")
"""


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def hosts_outside(serve, *addresses):
    """Runs `serve`, a program in Python that prints a line when it listens, where it has these addresses."""
    tag = uuid.uuid4().hex[:6]
    link, peer = f"e2e{tag}h", f"e2e{tag}g"
    server = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-u", "-c", ALONE + serve],
        cwd="/proc/self/task", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )
    try:
        assert server.stdout.readline(), "the outside listens"
        inside = ("nsenter", "--net", "--target", str(server.pid), "ip")
        run("ip", "link", "add", link, "type", "veth", "peer", "name", peer, "netns", str(server.pid))
        run("ip", "addr", "add", f"{NEIGHBOUR}/32", "dev", link)
        run("ip", "link", "set", link, "up")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", peer, "up")
        for address in addresses:
            run(*inside, "addr", "add", f"{address}/32", "dev", peer)
            run("ip", "route", "add", f"{address}/32", "dev", link)
        run(*inside, "route", "add", NEIGHBOUR, "dev", peer)
        run(*inside, "route", "add", "default", "via", NEIGHBOUR)
        yield
    finally:
        server.kill()
        server.wait()
