"""Attempt 8: changing the network that one is in."""

import errno
import socket
import struct

from kernel import attempt, only_inside, tell

ROUTE, NETFILTER, AUDIT, XFRM = 0, 12, 9, 6
only_inside()


def netlink(protocol, message):
    """What the kernel answers to a request."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as line:
            line.settimeout(2)
            line.send(message)
            answer = line.recv(65536)
            code = -struct.unpack_from("i", answer, 16)[0]
            return errno.errorcode.get(code, "ok")
    except OSError as error:
        return errno.errorcode.get(error.errno, "timeout") if error.errno else "timeout"


def request(kind, flags, body):
    return struct.pack("IHHII", 16 + len(body), kind, flags | 1 | 4, 1, 0) + body


LINK = struct.pack("BxHiII", 0, 0, 1, 0, 1)  # lo, down
ADDRESS = struct.pack("BBBBI", 2, 32, 0, 0, 1) + struct.pack("HH4s", 8, 2, bytes([10, 9, 9, 9])) + struct.pack("HH4s", 8, 1, bytes([10, 9, 9, 9]))
ROUTE_BODY = struct.pack("BBBBBBBBI", 2, 32, 0, 0, 254, 3, 253, 1, 0) + struct.pack("HH4s", 8, 1, bytes([10, 9, 9, 8])) + struct.pack("HHI", 8, 4, 1)
NEIGHBOUR = struct.pack("BxHiHBB", 2, 0, 1, 2, 0, 1) + struct.pack("HH4s", 8, 1, bytes([10, 9, 9, 7])) + struct.pack("HH6s2x", 10, 2, b"\x02" * 6)
NEW_LINK, NEW_ADDRESS, NEW_ROUTE, NEW_NEIGHBOUR = 16, 20, 24, 28


def spoof():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("198.51.100.99", 0))
        sender.sendto(b"x", ("198.51.100.77", 80))


tell(
    {
        "link down": netlink(ROUTE, request(NEW_LINK, 0, LINK)),
        "another address": netlink(ROUTE, request(NEW_ADDRESS, 0x400, ADDRESS)),
        "another route": netlink(ROUTE, request(NEW_ROUTE, 0x400, ROUTE_BODY)),
        "a neighbour of my choice": netlink(ROUTE, request(NEW_NEIGHBOUR, 0x400, NEIGHBOUR)),
        "firewall": netlink(NETFILTER, request(10 << 8 | 0, 0x400, struct.pack("BBH", 1, 0, 0) + struct.pack("HH4s", 8, 1, b"esc\0"))),
        "audit": netlink(AUDIT, request(1001, 0, struct.pack("10I", *[0] * 10))),
        "xfrm": netlink(XFRM, request(0x1C, 0, struct.pack("B3x", 0))),
        "source of another": attempt(lambda: spoof()),
    }
)
