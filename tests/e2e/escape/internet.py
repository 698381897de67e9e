"""Listens on every address, and writes down who came where: `internet.py <log> <ports>`."""

import selectors
import socket
import sys

IP_PKTINFO = 8  # Of linux/in.h; the module does not name it.
log, ports = open(sys.argv[1], "a", buffering=1), [int(port) for port in sys.argv[2].split(",")]
selector = selectors.DefaultSelector()


def listen(family, kind, port):
    try:
        service = socket.socket(family, kind)
    except OSError:
        return  # What a kernel without IPv6 has not, nobody reaches.
    service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        service.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    elif kind == socket.SOCK_DGRAM:
        service.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    service.bind(("", port))
    if kind == socket.SOCK_STREAM:
        service.listen(64)
    selector.register(service, selectors.EVENT_READ)


for port in ports:
    for family in (socket.AF_INET, socket.AF_INET6):
        listen(family, socket.SOCK_STREAM, port)
        listen(family, socket.SOCK_DGRAM, port)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        service = key.fileobj
        if service.type == socket.SOCK_STREAM:
            visitor = service.accept()[0]
            log.write(f"tcp {visitor.getsockname()[0]} {visitor.getsockname()[1]}\n")
            visitor.sendall(b"HTTP/1.0 200 OK\r\n\r\nreached\n")
            visitor.close()
        else:
            _, about, _, sender = service.recvmsg(2048, 256)
            to = next((socket.inet_ntoa(data[8:12]) for level, kind, data in about if (level, kind) == (0, IP_PKTINFO)), "ipv6")
            log.write(f"udp {to} {service.getsockname()[1]}\n")
            service.sendto(b"reached", sender)
