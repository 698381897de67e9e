"""Requests as they are, without a client that would mend them."""

import http.client
import json
import os
import socket
import struct
import urllib.parse

API = os.environ["E2B_API_URL"]
EDGE = os.environ["E2B_SANDBOX_URL"]
KEY = {"X-API-Key": os.environ["E2B_API_KEY"]}
PATIENCE_SECONDS = 60


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, {k.lower(): v for k, v in headers}, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def text(self):
        return self.body.decode()

    def __repr__(self):
        return f"{self.status} {self.body[:400]!r}"


def address(base):
    parts = urllib.parse.urlsplit(base)
    return parts.hostname, parts.port


def ask(base, method, target, headers=(), body=b""):
    """One request with exactly these headers, a Content-Length where there is a body, and a Host where none is given."""
    headers = list(headers.items() if isinstance(headers, dict) else headers)
    connection = http.client.HTTPConnection(*address(base), timeout=PATIENCE_SECONDS)
    names = {name.lower() for name, _ in headers}
    connection.putrequest(method, target, skip_host="host" in names, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    if body and not names & {"content-length", "transfer-encoding"}:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    try:
        return Answer(answer.status, answer.getheaders(), answer.read())
    finally:
        connection.close()


def send(base, request):
    """Bytes over one connection; what comes back until the other side has nothing more to say."""
    with socket.create_connection(address(base), timeout=PATIENCE_SECONDS) as stream:
        try:
            stream.sendall(request)
            stream.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # It hung up before it had heard everything.
        answer = b""
        try:
            while piece := stream.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    return answer


def frame(message, flags=0, length=None):
    """One message of a stream: a byte of flags, four of length, the message."""
    return struct.pack(">BI", flags, len(message) if length is None else length) + message


def frames(stream):
    """The messages of a stream as (flags, message)."""
    found = []
    while stream:
        flags, length = struct.unpack(">BI", stream[:5])
        found.append((flags, stream[5 : 5 + length]))
        stream = stream[5 + length :]
    return found
