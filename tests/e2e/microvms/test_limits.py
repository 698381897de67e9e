"""What virtual machines are held to, and what they refuse by name."""

import os

import httpx
import pytest
from e2b import CommandExitException, Sandbox, Template
from e2b.exceptions import SandboxException


def test_a_full_disk_is_full_inside_and_memory_has_an_end(fresh):
    sandbox = fresh()
    with pytest.raises(CommandExitException) as full:
        sandbox.commands.run("fallocate -l 20G /home/user/large")
    assert "No space left" in full.value.stderr
    total = int(sandbox.commands.run("awk '/MemTotal/ {print $2}' /proc/meminfo").stdout)
    assert total <= 1 << 20
    with pytest.raises(CommandExitException):
        sandbox.commands.run("python3 -c 'x = bytearray(1500 << 20); print(len(x))'")
    assert sandbox.commands.run("echo unharmed").stdout == "unharmed\n"


def test_the_network_is_the_policys(fresh):
    sandbox = fresh(allow_internet_access=False)
    probe = "timeout 5 bash -c 'exec 3<>/dev/tcp/1.1.1.1/53' && echo out || echo kept"
    assert sandbox.commands.run(probe).stdout == "kept\n"
    # Metadata and the host's own loopback are nobody's.
    for address in ("169.254.169.254/80", "127.0.0.1/4310"):
        probe = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{address}' 2>/dev/null && echo in || echo kept"
        assert fresh().commands.run(probe).stdout == "kept\n", address


def test_what_the_runtime_cannot_do_it_refuses_by_name(fresh):
    sandbox = fresh()
    for what in ("changes", "export"):
        url = f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox.sandbox_id}/{what}"
        refused = httpx.get(url, headers={"X-API-Key": os.environ["E2B_API_KEY"]}, timeout=60)
        assert refused.status_code == 400, refused.text
        assert "runtime does not support" in refused.text


def test_a_template_ends_with_its_start_command_running(fresh):
    template = (
        Template()
        .from_template("base")
        .run_cmd("echo built > /opt/built", user="root")
        .set_start_cmd("cd /opt && exec python3 -m http.server 8000", "curl -sf http://localhost:8000/built")
    )
    Template.build(template, "serves")
    sandbox = fresh("serves")
    assert sandbox.commands.run("curl -sf http://localhost:8000/built").stdout == "built\n"
