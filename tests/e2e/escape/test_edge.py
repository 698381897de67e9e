"""Attempts 31 and 32: the edge, and the tokens that it takes."""

import contextlib
import json
import re
import socket
import time

import httpx
import pytest

CONTROL = ["/init", "/host/logs", "/upgrade", "/freeze", "/collapse", "//init", "/./init", "/x/../init", "/%69nit", "/%2569nit", "/INIT", "/init;x", "/health/../init", "/..%2finit", "\\init"]


class Edge:
    """Bytes to the edge, as no client library would send them."""

    def __init__(self, house):
        host, port = house.connection["sandbox_url"].removeprefix("http://").rsplit(":", 1)
        self.address = (host, int(port))

    def connect(self):
        line = socket.create_connection(self.address, timeout=30)
        return line

    def say(self, sent):
        """The first line of the answer, and all of it."""
        with self.connect() as line:
            with contextlib.suppress(OSError):
                line.sendall(sent if isinstance(sent, bytes) else sent.encode("latin-1"))
            answer = b""
            with contextlib.suppress(OSError):
                line.settimeout(10)
                while piece := line.recv(65536):
                    answer += piece
                    if b"\r\n\r\n" in answer:
                        line.settimeout(1)
        found = re.match(rb"HTTP/1\.[01] (\d+)", answer)
        return int(found[1]) if found else None, answer.decode("latin-1")


@pytest.fixture(scope="module")
def edge(house):
    return Edge(house)


def get(host, path="/health", *headers):
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]) + "\r\n\r\n"


def test_31_hosts_that_are_no_sandboxes_are_refused(edge, attacker, neighbour):
    me = attacker.sandbox.sandbox_id
    assert edge.say(get(f"49983-{me}.x"))[0] == 204
    hosts = [f"0-{me}.x", f"65536-{me}.x", f"-1-{me}.x", f"+80-{me}.x", f"049983-{me}.x", f"0xc34f-{me}.x", f"49983-{me[:-1]}.x", f"49983-{me}0.x", f"49983-{me.upper()}.x", f"49983-{me}", f"-{me}.x", f"49983-.x", f"49983-../../{me}.x", "169.254.169.254", "localhost", "127.0.0.1:3000", "", "x" * 5000, f"49983%2d{me}.x", f"49983-{me}\\.x", f"４９９８３-{me}.x".encode().decode("latin-1")]
    for host in hosts:
        status, answer = edge.say(get(host))
        assert status in (400, 401, 404, 431, 502), (host, status, answer[:200])
    two = f"GET /health HTTP/1.1\r\nHost: 49983-{me}.x\r\nHost: 49983-{neighbour.sandbox.sandbox_id}.x\r\nConnection: close\r\n\r\n"
    assert edge.say(two)[0] == 400


def test_31_the_hosts_own_services_are_no_sandboxes_ports(edge, attacker, house, host):
    """A port is one of the sandbox's, also where the host has the same."""
    me = attacker.sandbox.sandbox_id
    for port in (host.port, *(int(house.env[f"ATOLL_{name}_LISTEN"].rsplit(":")[1]) for name in ("API", "EDGE", "ADMIN"))):
        assert edge.say(get(f"{port}-{me}.x", "/"))[0] == 502
    for target in ("http://127.0.0.1:3000/", f"http://127.0.0.1:{host.port}/", "http://169.254.169.254/latest"):
        assert edge.say(f"GET {target} HTTP/1.1\r\nHost: 49983-{me}.x\r\nConnection: close\r\n\r\n")[0] in (400, 401, 502)
    assert edge.say(f"CONNECT 127.0.0.1:{host.port} HTTP/1.1\r\nHost: 49983-{me}.x\r\n\r\n")[0] in (400, 405)


@pytest.mark.parametrize("path", CONTROL)
def test_31_control_paths_do_not_exist(edge, attacker, path):
    me, token = attacker.sandbox.sandbox_id, attacker.sandbox._envd_access_token
    body = json.dumps({"accessToken": "taken"})
    for host, more in ((f"49983-{me}.x", ""), ("x", f"E2b-Sandbox-Id: {me}\r\nE2b-Sandbox-Port: 49983\r\n")):
        sent = f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{more}X-Access-Token: {token}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
        assert edge.say(sent)[0] in (400, 404), path
    assert attacker.commands.run("echo mine").stdout == "mine\n"


def test_31_requests_within_requests_reach_nobody(edge, attacker):
    """What one server takes for a body and the next for a request."""
    me, token = attacker.sandbox.sandbox_id, attacker.sandbox._envd_access_token
    inner = f"POST /init HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\r\n{{\"accessToken\": \"mine\"}}"
    head = f"POST /files?path=/tmp/x HTTP/1.1\r\nHost: 49983-{me}.x\r\nX-Access-Token: {token}\r\nContent-Type: application/octet-stream\r\n"
    for tricks in (
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\n",
        "Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n",
        "Transfer-Encoding:\x0bchunked\r\nContent-Length: 0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 200\r\n\r\n",
        "Content-Length: +0\r\n\r\n",
        "Content-Length: 0\r\nX: a\r\n b\r\n\r\n",
        "Content-Length: 0\nX: a\n\n",
    ):
        _, answer = edge.say(head + tricks + inner)
        statuses = re.findall(r"HTTP/1\.1 (\d+)", answer)
        assert statuses and all(status in ("200", "400", "401", "404", "431", "501") for status in statuses), (tricks, answer[:300])
        assert "204" not in statuses
    assert attacker.commands.run("echo mine").stdout == "mine\n"
    assert httpx.get(f"http://{edge.address[0]}:{edge.address[1]}/envs", headers={"E2b-Sandbox-Id": me, "E2b-Sandbox-Port": "49983", "X-Access-Token": "mine"}).status_code == 401


def test_31_a_websocket_needs_the_token_that_a_request_needs(edge, house):
    sandbox = house.create(network={"allow_public_traffic": False})
    try:
        sandbox.commands.run("python3 -m http.server 8000", background=True)
        sandbox.commands.run("for i in $(seq 100); do ss -ltn | grep -q :8000 && break; sleep 0.1; done")
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        host = f"8000-{sandbox.sandbox_id}.x"
        plain = get(host, "/").replace("Connection: close\r\n", "")
        for more in ((), ("E2b-Traffic-Access-Token: wrong",), ("E2b-Traffic-Access-Token:",), (f"E2b-Traffic-Access-Token: {sandbox._envd_access_token}",), (f"X-Access-Token: {sandbox.traffic_access_token}",)):
            assert edge.say(plain[:-2] + "\r\n".join([*upgrade, *more]) + "\r\n\r\n")[0] == 403
            assert edge.say(get(host, "/", *more))[0] == 403
        assert edge.say(get(host, "/", f"E2b-Traffic-Access-Token: {sandbox.traffic_access_token}"))[0] == 200
    finally:
        sandbox.kill()


def test_31_slow_and_large_heads_leave_others_served(edge, attacker, neighbour):
    slow = [edge.connect() for _ in range(300)]
    try:
        for line in slow:
            line.sendall(f"GET / HTTP/1.1\r\nHost: 49983-{attacker.sandbox.sandbox_id}.x\r\nX-Slow: ".encode())
        for round in range(5):
            for line in slow:
                with contextlib.suppress(OSError):
                    line.sendall(b"x")
            assert neighbour.sandbox.commands.run("echo here").stdout == "here\n"
    finally:
        for line in slow:
            line.close()
    me = attacker.sandbox.sandbox_id
    bombs = [get(f"49983-{me}.x", "/health", *(f"X-{i}: x" for i in range(10_000))), get(f"49983-{me}.x", "/health", "X: " + "x" * (4 << 20)), get(f"49983-{me}.x", "/" + "x" * (4 << 20)), "GET " + "x" * (4 << 20), "\r\n" * 100_000, "\x00" * 100_000, "\x16\x03\x01" + "x" * 1000]
    for bomb in bombs:
        status, answer = edge.say(bomb)
        assert status in (None, 400, 414, 431), answer[:100]
    assert edge.say(get(f"49983-{me}.x"))[0] == 204


def test_31_settings_and_resets_of_http2_leave_others_served(edge, neighbour, attacker):
    """Streams that are opened and reset at once (CVE-2023-44487), and a preface with rubbish behind it."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"

    def frame(kind, flags, stream, body):
        return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body

    authority = f"49983-{attacker.sandbox.sandbox_id}.x".encode()
    head = b"\x82\x86\x84\x41" + bytes([len(authority)]) + authority
    for flood in (
        b"".join(frame(1, 5, 1 + 2 * i, head) + frame(3, 0, 1 + 2 * i, b"\x00\x00\x00\x08") for i in range(5000)),
        settings * 20_000,
        frame(6, 0, 0, b"x" * 8) * 20_000,
        frame(1, 1, 1, head) + frame(9, 0, 1, b"\x00" * 16000) * 100,
        b"\xff" * 50_000,
    ):
        with edge.connect() as line:
            line.settimeout(5)
            with contextlib.suppress(OSError):
                line.sendall(preface + settings + flood)
            assert neighbour.sandbox.commands.run("echo here").stdout == "here\n"
    assert edge.say(get(f"49983-{attacker.sandbox.sandbox_id}.x"))[0] == 204


def test_32_a_token_opens_what_it_is_for_and_nothing_else(house, neighbour):
    sandbox = house.create(network={"allow_public_traffic": False})
    other = house.create(network={"allow_public_traffic": False})
    try:
        for one in (sandbox, other):
            one.commands.run("python3 -m http.server 8000", background=True)
            one.commands.run("for i in $(seq 100); do ss -ltn | grep -q :8000 && break; sleep 0.1; done")
        envd, traffic = sandbox._envd_access_token, sandbox.traffic_access_token
        assert envd and traffic and len({envd, traffic, other._envd_access_token, other.traffic_access_token}) == 4

        def ask(target, port, path, **headers):
            named = {"E2b-Sandbox-Id": target.sandbox_id, "E2b-Sandbox-Port": str(port)} | {name.replace("_", "-"): value for name, value in headers.items()}
            return httpx.get(house.connection["sandbox_url"] + path, headers=named).status_code

        assert ask(sandbox, 49983, "/envs", X_Access_Token=envd, E2b_Traffic_Access_Token=traffic) == 200
        assert ask(sandbox, 8000, "/", E2b_Traffic_Access_Token=traffic) == 200
        wrong = [traffic, other._envd_access_token, other.traffic_access_token, envd[:-1], envd.upper(), "", house.connection["api_key"]]
        for token in wrong:
            assert ask(sandbox, 49983, "/envs", X_Access_Token=token, E2b_Traffic_Access_Token=traffic) == 401
        for token in [envd, other.traffic_access_token, other._envd_access_token, traffic[:-1], "", house.connection["api_key"]]:
            assert ask(sandbox, 8000, "/", E2b_Traffic_Access_Token=token, X_Access_Token=envd) == 403
        for token in (envd, traffic):
            assert httpx.get(f"{house.connection['api_url']}/sandboxes", headers={"X-API-Key": token}).status_code == 401
            assert httpx.get(f"{house.connection['api_url']}/sandboxes", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    finally:
        sandbox.kill(), other.kill()


def test_32_tokens_of_the_dead_open_nothing(house):
    sandbox = house.create()
    named = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": sandbox._envd_access_token}
    url = house.connection["sandbox_url"] + "/envs"
    assert httpx.get(url, headers=named).status_code == 200
    sandbox.kill()
    follower = house.create()
    assert httpx.get(url, headers=named).status_code == 502
    assert httpx.get(url, headers=named | {"E2b-Sandbox-Id": follower.sandbox_id}).status_code == 401
    assert time.time() and follower.kill()
