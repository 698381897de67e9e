"""Attempt 8: kinds of sockets. Makes some, and changes nothing: `sockets.py <abstract name>`."""

import os
import socket
import sys

from kernel import attempt, tell

STREAM, DATAGRAM, RAW, SEQPACKET, INET, INET6, NETLINK = 1, 2, 3, 5, 2, 10, 16
VSOCK, ALG, PACKET, XDP, BLUETOOTH, CAN, TIPC, SMC, RDS, KEY = 40, 38, 17, 44, 31, 29, 30, 43, 21, 15


def made(family, kind, protocol=0):
    return attempt(lambda: socket.socket(family, kind, protocol).close())


def paired(family, kind):
    return attempt(lambda: [one.close() for one in socket.socketpair(family, kind)])


# What programs need works, or nothing that is refused says anything.
needed = [
    *(made(family, kind, protocol) for family in (INET, INET6) for kind, protocols in ((STREAM, (0, 6)), (DATAGRAM, (0, 17))) for protocol in protocols),
    made(INET, DATAGRAM, 1),
    made(INET6, DATAGRAM, 58),
    made(NETLINK, RAW),
    paired(socket.AF_UNIX, STREAM),
    attempt(lambda: socket.if_nameindex()),
    attempt(lambda: socket.getaddrinfo("localhost", 80)),
]
outcomes = {
    "needed": "ok" if set(needed) == {"ok"} else f"not needed: {needed}",
    "pair of tipc": paired(TIPC, STREAM),
    "pair of netlink": paired(NETLINK, RAW),
    "pair of inet": paired(INET, STREAM),
    "sctp": made(INET, SEQPACKET, 132),
    "sctp, version 6": made(INET6, STREAM, 132),
    "dccp": made(INET, 6, 33),
    "l2tp": made(INET, DATAGRAM, 115),
    "udp lite": made(INET, DATAGRAM, 136),
    "mptcp": made(INET, STREAM, 262),
    "icmp of version 6 in version 4": made(INET, DATAGRAM, 58),
    "audit": made(NETLINK, RAW, 9),
    "netfilter": made(NETLINK, RAW, 12),
    "sock diag": made(NETLINK, RAW, 4),
    "xfrm": made(NETLINK, RAW, 6),
    "generic": made(NETLINK, RAW, 16),
    "uevents": made(NETLINK, RAW, 15),
    "packet": made(PACKET, socket.SOCK_RAW, 0x300),
    "packet, cooked": made(PACKET, socket.SOCK_DGRAM, 0x300),
    "old packet": made(socket.AF_INET, 10, 0x300),
    "raw icmp": made(socket.AF_INET, socket.SOCK_RAW, 1),
    "raw": made(socket.AF_INET, socket.SOCK_RAW, 255),
    "raw icmp, version 6": made(socket.AF_INET6, socket.SOCK_RAW, 58),
    "vsock": made(VSOCK, socket.SOCK_STREAM),
    "alg": made(ALG, socket.SOCK_SEQPACKET),
    "xdp": made(XDP, socket.SOCK_RAW),
    "bluetooth": made(BLUETOOTH, socket.SOCK_RAW),
    "can": made(CAN, socket.SOCK_RAW),
    "tipc": made(TIPC, socket.SOCK_SEQPACKET),
    "smc": made(SMC, socket.SOCK_STREAM),
    "rds": made(RDS, socket.SOCK_SEQPACKET),
    "key": made(KEY, socket.SOCK_RAW, 2),
    "device of packets": attempt(lambda: os.close(os.open("/dev/net/tun", os.O_RDWR))),
    "abstract": attempt(lambda: socket.socket(socket.AF_UNIX).connect("\0" + sys.argv[1])),
    "bind to link": attempt(lambda: socket.socket(socket.AF_INET).setsockopt(socket.SOL_SOCKET, 25, b"lo\0")),
    "mark": attempt(lambda: socket.socket(socket.AF_INET).setsockopt(socket.SOL_SOCKET, 36, 1)),
    "transparent": attempt(lambda: socket.socket(socket.AF_INET).setsockopt(socket.SOL_IP, 19, 1)),
}
tell(outcomes)
