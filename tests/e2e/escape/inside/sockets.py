"""Attempt 8: kinds of sockets. Makes some, and changes nothing: `sockets.py <abstract name>`."""

import os
import socket
import sys

from kernel import attempt, tell

VSOCK, ALG, PACKET, XDP, BLUETOOTH, CAN, TIPC, SMC, RDS, KEY = 40, 38, 17, 44, 31, 29, 30, 43, 21, 15


def made(family, kind, protocol=0):
    return attempt(lambda: socket.socket(family, kind, protocol).close())


outcomes = {
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
