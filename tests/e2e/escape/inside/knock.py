"""Attempts 9, 10 and 11: connections and datagrams to wherever one must not get: `knock.py tcp|udp|multicast <host>:<port>…`.

Tells which were answered. Hosts are resolved as a program would.
"""

import concurrent.futures
import contextlib
import socket
import sys

from kernel import tell

PATIENCE_SECONDS = 3


def tcp(target):
    host, port = target.rsplit(":", 1)
    with contextlib.suppress(OSError):
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_SECONDS) as line:
            local = line.getsockname()[0]
            # One's own loopback is one's own.
            return local not in ("127.0.0.1", "::1", line.getpeername()[0])
    return False


def udp(target):
    host, port = target.rsplit(":", 1)
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as line:
                line.settimeout(PATIENCE_SECONDS / 3)
                line.connect(address)
                for _ in range(3):
                    line.send(b"knock")
                    with contextlib.suppress(TimeoutError):
                        return line.recv(100) == b"reached"
    return False


def shout(target):
    """To everybody on the wire: nobody answers, somebody may hear."""
    host, port = target.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        line.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        with contextlib.suppress(OSError):
            for _ in range(3):
                line.sendto(b"knock", (host, int(port)))
    return False


knock = {"tcp": tcp, "udp": udp, "multicast": shout}[sys.argv[1]]
with concurrent.futures.ThreadPoolExecutor(32) as knockers:
    answered = knockers.map(knock, sys.argv[2:])
    tell([target for target, was in zip(sys.argv[2:], answered) if was])
