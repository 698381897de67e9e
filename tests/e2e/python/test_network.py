"""What sandboxes may reach. The internet is a host of the test's own, in a network namespace with a public address."""

import os
import subprocess

import pytest
from conftest import eventually
from e2b import CommandExitException, Sandbox, SandboxException
from outside import hosts_outside

OUTSIDE, OTHER = "198.51.100.77", "198.51.100.78"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace: run it as root")


@pytest.fixture(scope="module")
def outside():
    """Two addresses that answer HTTP on port 80."""
    serve = "import http.server; http.server.test(HandlerClass=http.server.SimpleHTTPRequestHandler, port=80)"
    with hosts_outside(serve, OUTSIDE, OTHER):
        eventually(lambda: subprocess.run(["curl", "-sf", "-m", "1", f"http://{OUTSIDE}/", "-o", "/dev/null"]).returncode == 0, "the outside host to answer")
        yield


def reaches(sandbox, address):
    try:
        sandbox.commands.run(f"curl -s -m 3 -o /dev/null http://{address}/")
        return True
    except CommandExitException:
        return False


def test_the_outside_is_reached_by_default_and_the_host_is_not(fresh, outside):
    sandbox = fresh()
    assert reaches(sandbox, OUTSIDE)
    own = subprocess.run(["ip", "-4", "-o", "addr", "show"], capture_output=True, text=True).stdout
    for address in {line.split()[3].split("/")[0] for line in own.splitlines()} | {"169.254.169.254", "10.0.0.1"}:
        if not address.startswith("127."):
            assert not reaches(sandbox, address), address


def test_no_internet_is_no_internet(fresh, outside):
    sandbox = fresh(allow_internet_access=False)
    assert not reaches(sandbox, OUTSIDE)
    assert sandbox.commands.run("echo still here").stdout == "still here\n"


def test_allow_beats_deny(fresh, outside):
    sandbox = fresh(network={"deny_out": ["0.0.0.0/0"], "allow_out": [OUTSIDE]})
    assert reaches(sandbox, OUTSIDE)
    assert not reaches(sandbox, OTHER)
    sandbox = fresh(network={"deny_out": [f"{OTHER}/32"]})
    assert reaches(sandbox, OUTSIDE)
    assert not reaches(sandbox, OTHER)


def test_rules_of_a_running_sandbox_are_replaced_and_shown(fresh, outside):
    sandbox = fresh()
    assert reaches(sandbox, OUTSIDE)
    sandbox.update_network({"deny_out": [OUTSIDE]})
    assert not reaches(sandbox, OUTSIDE)
    assert reaches(sandbox, OTHER)
    assert list(sandbox.get_info().network["deny_out"]) == [OUTSIDE]
    sandbox.update_network({})
    assert reaches(sandbox, OUTSIDE)


def test_an_open_connection_that_a_new_rule_forbids_is_cut(fresh, outside):
    sandbox = fresh()
    script = f"""python3 - <<'EOF'
import socket, time
s = socket.create_connection(("{OUTSIDE}", 80))
open("/tmp/open", "w").write("x")
s.settimeout(20)
for _ in range(100):
    time.sleep(0.1)
    s.send(b"G")
    if __import__("os").path.exists("/tmp/stop"): break
print("alive")
EOF"""
    command = sandbox.commands.run(script, background=True)
    eventually(lambda: sandbox.files.exists("/tmp/open"), "the connection to open")
    sandbox.update_network({"deny_out": ["0.0.0.0/0"]})
    with pytest.raises((CommandExitException, SandboxException)):
        command.wait()


def test_policies_survive_a_pause(fresh, outside):
    sandbox = fresh(network={"deny_out": [OUTSIDE]})
    for mode in ("full", "filesystem"):
        sandbox.pause(mode=mode)
        sandbox = Sandbox.connect(sandbox.sandbox_id)
        assert not reaches(sandbox, OUTSIDE), mode
        assert reaches(sandbox, OTHER), mode


@pytest.mark.parametrize(
    "network",
    [
        {"deny_out": ["example.com"]},
        {"allow_out": ["not an address"]},
        {"deny_out": ["1.2.3.4/99"]},
        {"mask_request_host": "not a host"},
    ],
)
def test_wrong_rules_are_refused(network):
    with pytest.raises(SandboxException, match="400"):
        Sandbox.create(network=network)
