"""`atoll`, as people type it."""

import json
import os
import pty
import re
import select
import subprocess
import time

import pytest
from e2b import Sandbox

ATOLL = [os.environ.get("ATOLL_BIN", "atoll")]


def run(command, *arguments, **options):
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, **options)


def converse(command, *steps, timeout=60):
    """Runs a command on a terminal; each step is (what must show, what is then typed). Returns (exit code, shown)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    shown, steps = "", list(steps)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if steps and steps[0][0] in shown:
            os.write(terminal, steps.pop(0)[1].encode())
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data.decode(errors="replace")
    else:
        os.kill(pid, 9)
    status = os.waitpid(pid, 0)[1]
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


def test_a_session_with_atoll(sandbox):
    name = sandbox.sandbox_id
    created = json.loads(run(ATOLL, "sandbox", "create", "--json").stdout)
    other = created["sandboxID"]
    try:
        listed = json.loads(run(ATOLL, "sandbox", "list", "--json").stdout)
        assert {name, other} <= {item["sandboxID"] for item in listed}
        assert json.loads(run(ATOLL, "sandbox", "info", other, "--json").stdout)["sandboxID"] == other
        done = run(ATOLL, "sandbox", "exec", other, "--", "sh", "-c", "echo out; echo err >&2; exit 4")
        assert (done.returncode, done.stdout, done.stderr) == (4, "out\n", "err\n")
        assert run(ATOLL, "sandbox", "exec", other, "--", "cat", input="piped").stdout == "piped"
        boot = run(ATOLL, "sandbox", "exec", other, "--", "cat", "/proc/sys/kernel/random/boot_id").stdout
        run(ATOLL, "sandbox", "exec", other, "--", "touch", "kept")
        assert run(ATOLL, "sandbox", "restart", other).returncode == 0
        assert run(ATOLL, "sandbox", "exec", other, "--", "ls").stdout == "kept\n"
        assert run(ATOLL, "sandbox", "exec", other, "--", "cat", "/proc/sys/kernel/random/boot_id").stdout != boot
        assert run(ATOLL, "sandbox", "pause", other).returncode == 0
        assert run(ATOLL, "sandbox", "resume", other).returncode == 0
        assert isinstance(json.loads(run(ATOLL, "sandbox", "logs", other, "--json").stdout), list)
        assert json.loads(run(ATOLL, "sandbox", "metrics", other, "--json").stdout)
    finally:
        assert run(ATOLL, "sandbox", "kill", other).returncode == 0
    missing = run(ATOLL, "sandbox", "info", other)
    assert missing.returncode != 0 and missing.stdout == "" and other in missing.stderr


def test_the_shell_of_atoll_is_a_terminal(sandbox):
    code, shown = converse([*ATOLL, "sandbox", "shell", sandbox.sandbox_id], ("$", "stty size; tty; echo it-is-$((40+2))\n"), ("it-is-42", "exit 6\n"))
    assert "it-is-42" in shown and "/dev/pts/" in shown
    assert code == 6


def test_keys_are_made_once_and_revoked():
    made = json.loads(run(ATOLL, "key", "create", "ci", "--json").stdout)
    key, name = made["key"], made["id"]
    assert re.fullmatch(r"e2b_[0-9a-f]{40}", key)
    Sandbox.list(api_key=key).next_items()
    listed = run(ATOLL, "key", "list", "--json").stdout
    assert name in listed and key not in listed
    assert run(ATOLL, "key", "revoke", name).returncode == 0
    with pytest.raises(Exception, match="401|[Uu]nauthorized|API key"):
        Sandbox.list(api_key=key).next_items()


def test_the_house_describes_itself():
    assert json.loads(run(ATOLL, "status", "--json").stdout)
    assert json.loads(run(ATOLL, "doctor", "--json").stdout)
    templates = json.loads(run(ATOLL, "template", "list", "--json").stdout)
    assert any("base" in template["names"] + template["aliases"] for template in templates)
    assert "export E2B_API_KEY=" in run(ATOLL, "env").stdout
    assert run(ATOLL, "completions", "bash").stdout
    assert run(ATOLL, "no-such-command").returncode == 2
