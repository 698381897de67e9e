"""For whom a request is that names nobody, or names somebody badly: the table of the protocol, at the edge."""

import base64
import hashlib
import time
import urllib.parse

import pytest
from raw import EDGE, ask, send

pytestmark = pytest.mark.usefixtures("unchanged")

UNKNOWN = "iaaaaaaaaaaaaaaaaaaaa"
ID, PORT = "E2b-Sandbox-Id", "E2b-Sandbox-Port"


def at(host, headers=(), target="/health"):
    return ask(EDGE, "GET", target, [("Host", host), *headers])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]", "example.com", "nodashes.example.com", "8000-x", "", "8000-" + "x" * 300 + ".com"])
def test_a_host_that_names_nobody_is_refused(host):
    answer = at(host)
    assert (answer.status, answer.text) == (400, "Invalid host")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("label", ["8000-", "8000-A", "8000-a_b", "8000-IAAAAAAAAAAAAAAAAAAAA", "8000-\xe9"])
def test_an_id_that_is_none_is_refused(label):
    answer = at(f"{label}.example.com")
    assert (answer.status, answer.text) == (400, "Invalid sandbox ID")


@pytest.mark.parametrize("port", ["", "0", "65536", "x", "+80", "99999999999999999999"])
def test_a_port_that_is_none_is_refused(sandbox, port):
    answer = at(f"{port}-{sandbox['sandboxID']}.example.com")
    assert (answer.status, answer.text) == (400, "Invalid sandbox port")
    headers = [(ID, sandbox["sandboxID"]), (PORT, port)]
    assert at("localhost", headers).text == "Invalid sandbox port"


@pytest.mark.parametrize("label", [f"8000-{UNKNOWN}", f"8000-{UNKNOWN}-6532622b", "8000-abc", "8000-" + "a" * 200])
def test_a_sandbox_that_nobody_knows_is_not_found(label):
    answer = at(f"{label}.example.com")
    assert answer.status == 502 and answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.json == {"sandboxId": label.split("-")[1], "message": "The sandbox was not found", "code": 502}


def test_half_of_the_routing_headers_names_the_other_half(sandbox):
    answer = at("localhost", [(ID, sandbox["sandboxID"])])
    assert (answer.status, answer.text) == (400, "missing header e2b-sandbox-port")
    answer = at("localhost", [(PORT, "49983")])
    assert (answer.status, answer.text) == (400, "missing header e2b-sandbox-id")


@pytest.mark.parametrize("id", ["", "A", "a b", "../x", "\xff", "-", "x" * 5000])
def test_a_routing_header_that_is_no_id_is_refused(id):
    answer = at("localhost", [(ID, id), (PORT, "49983")])
    assert (answer.status, answer.text) == (400, "Invalid sandbox ID")


def test_two_hosts_are_no_host(sandbox):
    label = f"49983-{sandbox['sandboxID']}.example.com"
    answer = ask(EDGE, "GET", "/health", [("Host", label), ("Host", label)])
    assert (answer.status, answer.text) == (400, "Invalid host")


@pytest.mark.parametrize("path", ["/init", "/%69nit", "//init", "/x/../init", "/freeze", "/upgrade", "/fsfreeze", "/collapse"])
def test_the_nodes_own_paths_are_not_there(inside, path):
    answer = ask(EDGE, "POST", path, inside, b"{}")
    assert answer.status == 404 and answer.json["code"] == 404


def test_a_tunnel_to_anywhere_is_refused():
    assert send(EDGE, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n").startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /health HTTP/1.1\r\n folded: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(500)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 2_000_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense that is no frame of any kind",
    ],
)
def test_what_is_no_http_is_a_4xx_or_a_closed_connection(request_bytes):
    answer = send(EDGE, request_bytes)
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5")), answer[:200]


def signed(sandbox, path, operation="read", token=None, expiration=None, user=""):
    text = ":".join([path, operation, user, token or sandbox["envdAccessToken"]] + ([str(expiration)] if expiration else []))
    return "v1_" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.mark.parametrize("signature", ["", "v1_", "v2_abc", "v1_####", "v1_" + "A" * 43, "v1_" + "A" * 5000, "\x00", "v1_=" * 9])
def test_a_bad_signature_opens_nothing_with_a_route_or_without(sandbox, signature):
    target = "/files?" + urllib.parse.urlencode({"path": "/etc/hosts", "signature": signature})
    routes = [("Host", f"49983-{sandbox['sandboxID']}.example.com")], [("Host", "localhost")]
    for route in routes:
        for method, body in (("GET", b""), ("POST", b"x")):
            answer = ask(EDGE, method, target, [*route, ("Content-Type", "application/octet-stream")], body)
            assert answer.status == 401 and answer.json["code"] == 401, answer
            assert "signature" in answer.json["message"]


def test_a_signature_is_for_one_path_one_operation_one_user_and_its_time(sandbox):
    good = signed(sandbox, "/etc/hosts")
    past = int(time.time()) - 60
    route = [("Host", f"49983-{sandbox['sandboxID']}.example.com")]

    def read(**query):
        return ask(EDGE, "GET", "/files?" + urllib.parse.urlencode(query), route)

    assert read(path="/etc/hosts", signature=good).status == 200
    assert read(path="/etc/passwd", signature=good).status == 401
    assert read(path="/etc/hosts", username="root", signature=good).status == 401
    assert read(path="/etc/hosts", signature=good, signature_expiration=past + 9999).status == 401
    late = read(path="/etc/hosts", signature=signed(sandbox, "/etc/hosts", expiration=past), signature_expiration=past)
    assert late.status == 401 and "expired" in late.json["message"]
    for garbled in ("x", "-", "1e9", "99999999999999999999999", "\x00"):
        answer = read(path="/etc/hosts", signature=signed(sandbox, "/etc/hosts", expiration=garbled), signature_expiration=garbled)
        assert answer.status in (400, 401), answer
    write = ask(EDGE, "POST", "/files?" + urllib.parse.urlencode({"path": "/etc/hosts", "signature": good}), [*route, ("Content-Type", "application/octet-stream")], b"x")
    assert write.status == 401


def test_pages_for_people_hold_nothing_that_runs():
    answer = at("8000-abc.example.com", [("User-Agent", "Mozilla/5.0")], "/%3Cscript%3Ealert(1)")
    assert answer.status == 502 and answer.headers["content-type"].startswith("text/html")
    assert "<script>" not in answer.text
