"""A collector of traces: OTLP as protobuf over HTTP, read by hand."""

import dataclasses
import gzip
import http.server
import threading

# The kinds of a span, as OTLP counts them.
INTERNAL, SERVER, CLIENT = 1, 2, 3


@dataclasses.dataclass
class Span:
    trace: str
    id: str
    parent: str
    name: str
    kind: int
    fields: dict
    service: str


def fields_of(message):
    """What a protobuf message holds: the number of each field, with an int or bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()
            case 1:
                yield key >> 3, message[at : at + 8]
                at += 8
            case 2:
                length = varint()
                yield key >> 3, message[at : at + length]
                at += length
            case 5:
                yield key >> 3, message[at : at + 4]
                at += 4
            case wire:
                raise AssertionError(f"no such wire type: {wire}")


def all_of(message, number):
    return [value for key, value in fields_of(message) if key == number]


def one_of(message, number, default):
    return next(iter(all_of(message, number)), default)


def text(message, number):
    return bytes(one_of(message, number, b"")).decode()


def attributes(message, number):
    found = {}
    for pair in all_of(message, number):
        for kind, value in fields_of(one_of(pair, 2, b"")):
            found[text(pair, 1)] = value.decode() if kind == 1 else value
    return found


def spans_of(export):
    """Every span of an ExportTraceServiceRequest."""
    for by_resource in all_of(export, 1):
        service = attributes(one_of(by_resource, 1, b""), 1).get("service.name")
        for by_scope in all_of(by_resource, 2):
            for span in all_of(by_scope, 2):
                ids = [bytes(one_of(span, number, b"")).hex() for number in (1, 2, 4)]
                yield Span(*ids, text(span, 5), one_of(span, 6, 0), attributes(span, 9), service)


class Collector:
    """Listens on a port of its own."""

    def __init__(self):
        self.spans, self.faults = [], []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if (self.path, self.headers["Content-Type"]) != ("/v1/traces", "application/x-protobuf"):
                    collector.faults.append((self.path, dict(self.headers)))
                collector.spans += spans_of(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def named(self, name, **fields):
        return [span for span in list(self.spans) if span.name == name and fields.items() <= span.fields.items()]
