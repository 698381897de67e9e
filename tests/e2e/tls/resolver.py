"""Answers every A question below one domain with 127.0.0.1, and refuses the rest (RFC 1035, section 4)."""

import socket
import struct
import sys


def name_of(query):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels).lower(), at + 5


def answer(query, address, domain):
    name, end = name_of(query)
    kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
    below = name == domain or name.endswith("." + domain)
    found = below and kind == 1
    flags = 0x8180 if below else 0x8183
    head = query[:2] + struct.pack("!HHHHH", flags, 1, int(found), 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(address) if found else b""
    return head + query[12:end] + record


def main(listen, domain):
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((listen, 53))
    while True:
        query, peer = listener.recvfrom(512)
        try:
            listener.sendto(answer(query, "127.0.0.1", domain), peer)
        except (IndexError, UnicodeDecodeError, struct.error):
            pass


main(*sys.argv[1:])
