"""Services inside a sandbox, seen through the edge."""

import json

import pytest
from conftest import eventually
from ports import fetch

ECHO = """
import http.server, json, sys
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = json.dumps({"path": self.path, "headers": dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
"""


def serve(sandbox, address, port):
    sandbox.files.write("/tmp/echo.py", ECHO)
    sandbox.commands.run(f"python3 /tmp/echo.py {address} {port}", background=True)
    eventually(lambda: fetch(sandbox, port)[0] == 200, "the service to answer")


@pytest.mark.parametrize("address, port", [("0.0.0.0", 8000), ("127.0.0.1", 8001)])
def test_a_service_is_reached_wherever_it_listens(sandbox, address, port):
    serve(sandbox, address, port)
    status, _, body = fetch(sandbox, port, "/a?b=c", {"X-Mine": "yes"})
    seen = json.loads(body)
    assert (status, seen["path"], seen["headers"]["X-Mine"]) == (200, "/a?b=c", "yes")
    data = b"x" * 3_000_000
    assert fetch(sandbox, port, "/", method="POST", body=data)[2] == data


def test_a_closed_port_says_so(sandbox):
    status, headers, body = fetch(sandbox, 9999)
    answer = json.loads(body)
    assert status == 502 and answer["code"] == 502 and answer["port"] == 9999
    assert answer["message"] == "The sandbox is running but port is not open"
    status, headers, body = fetch(sandbox, 9999, headers={"User-Agent": "Mozilla/5.0"})
    assert status == 502 and headers["Content-Type"] == "text/html; charset=utf-8"


def test_a_gone_sandbox_says_so(fresh):
    sandbox = fresh()
    sandbox.kill()
    status, _, body = fetch(sandbox, 8000)
    assert (status, json.loads(body)["message"]) == (502, "The sandbox was not found")


def test_private_ports_want_the_traffic_token(fresh):
    sandbox = fresh(network={"allow_public_traffic": False})
    assert sandbox.traffic_access_token
    assert fetch(sandbox, 8000)[0] == 403
    assert fetch(sandbox, 8000, headers={"e2b-traffic-access-token": "wrong"})[0] == 403
    token = {"e2b-traffic-access-token": sandbox.traffic_access_token}
    assert fetch(sandbox, 8000, headers=token)[0] == 502
    sandbox.files.write("/tmp/echo.py", ECHO)
    sandbox.commands.run("python3 /tmp/echo.py 127.0.0.1 8000", background=True)
    eventually(lambda: fetch(sandbox, 8000, headers=token)[0] == 200, "the service to answer")


def test_the_host_that_a_service_sees_can_be_masked(fresh):
    sandbox = fresh(network={"mask_request_host": "localhost:${PORT}"})
    serve(sandbox, "127.0.0.1", 8000)
    seen = json.loads(fetch(sandbox, 8000)[2])["headers"]
    assert seen["Host"] == "localhost:8000"
    assert seen["X-Forwarded-Host"]


@pytest.mark.parametrize("path", ["/init", "/freeze", "/upgrade", "//init", "/x/../init", "/%69nit", "/host/logs"])
def test_control_paths_of_envd_are_not_there(sandbox, path):
    assert fetch(sandbox, 49983, path, method="POST", body="{}", headers={"Content-Type": "application/json"})[0] in (401, 404)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
