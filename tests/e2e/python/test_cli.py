"""`atoll`, as people type it."""

import json
import os
import pty
import re
import select
import subprocess
import time
import uuid

import pytest
from e2b import Sandbox
from houses import forget

ATOLL = [os.environ.get("ATOLL_BIN", "atoll")]


def run(command, *arguments, **options):
    return subprocess.run([*command, *arguments], **{"capture_output": True, "text": True, "timeout": 60} | options)


def document(*arguments, **options):
    """What `atoll …` says with `--json`."""
    done = run(ATOLL, *arguments, "--json", **options)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def inside(name, *command):
    return run(ATOLL, "sandbox", "exec", name, "--", *command).stdout


@pytest.fixture
def name():
    """A name of its own, whose template is gone after the test."""
    name = f"cli-{uuid.uuid4().hex[:12]}"
    yield name
    forget(name)


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

@pytest.mark.needs("ownDaemon")

def test_the_house_describes_itself():
    assert json.loads(run(ATOLL, "status", "--json").stdout)
    assert json.loads(run(ATOLL, "doctor", "--json").stdout)
    templates = json.loads(run(ATOLL, "template", "list", "--json").stdout)
    assert any("base" in template["names"] + template["aliases"] for template in templates)
    assert "export E2B_API_KEY=" in run(ATOLL, "env").stdout
    assert run(ATOLL, "completions", "bash").stdout
    assert run(ATOLL, "no-such-command").returncode == 2


@pytest.mark.needs("ownDaemon")
@pytest.mark.needs("sharedKernel")
def test_the_doctor_tells_by_which_criu_the_daemon_keeps_memory():
    # Whatever this shell has set: it is the daemon's that counts.
    own = {name: value for name, value in os.environ.items() if name != "ATOLL_CRIU"}
    for environment in [own, {**own, "ATOLL_CRIU": "/another/criu"}]:
        checks = json.loads(run(ATOLL, "doctor", "--json", env=environment).stdout)["checks"]
        memory = next(check["found"] for check in checks if check["name"] == "memory")
        used = document("status")["criu"]
        assert f"({used}, which the daemon" in memory if used else "started without" in memory, memory


def test_a_sandbox_is_snapshotted_and_forked(fresh, name):
    source = fresh().sandbox_id
    inside(source, "sh", "-c", "echo kept > mark")
    taken = document("sandbox", "snapshot", source, "--name", name)["snapshotID"]
    assert taken in [snapshot["snapshotID"] for snapshot in document("snapshot", "list", "--sandbox", source)]
    forked = [copy["sandbox"]["sandboxID"] for copy in document("sandbox", "fork", source, "--count", "2")]
    made = document("sandbox", "create", taken)["sandboxID"]
    try:
        assert len(forked) == 2
        assert [inside(other, "cat", "/home/user/mark") for other in [*forked, made]] == ["kept\n"] * 3
    finally:
        run(ATOLL, "sandbox", "kill", made, *forked)


def test_files_are_copied_in_and_out(fresh, tmp_path):
    sandbox = fresh().sandbox_id
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "file").write_bytes(bytes(range(256)) * 1000)
    assert run(ATOLL, "sandbox", "cp", str(tmp_path / "in"), f"{sandbox}:/tmp/there").returncode == 0
    assert run(ATOLL, "sandbox", "cp", f"{sandbox}:/tmp/there", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out" / "deep" / "file").read_bytes() == bytes(range(256)) * 1000


def changes(sandbox):
    told = document("sandbox", "diff", sandbox)
    assert not told["truncated"]
    return {change["path"]: (change["kind"], change["type"]) for change in told["changes"]}


@pytest.mark.needs("roots")
def test_what_a_sandbox_changed_is_told(fresh):
    sandbox = fresh().sandbox_id
    before = set(changes(sandbox))
    inside(sandbox, "sudo", "sh", "-c", "rm -rf /usr/share/perl5 /etc/skel && mkdir /etc/skel && echo x > /etc/skel/new && echo >> /etc/profile && ln -s nowhere /srv/link && mkdir -p /srv/a/b && echo 1 > /srv/a/b/c && chmod 700 /opt")
    found = {path: change for path, change in changes(sandbox).items() if path not in before}
    wanted = {
        "/usr/share/perl5": ("deleted", "directory"),
        "/etc/skel/new": ("added", "file"),
        "/etc/profile": ("modified", "file"),
        "/srv/link": ("added", "symlink"),
        "/srv/a": ("added", "directory"),
        "/srv/a/b": ("added", "directory"),
        "/srv/a/b/c": ("added", "file"),
        "/opt": ("modified", "directory"),
    }
    assert {path: found.get(path) for path in wanted} == wanted
    # What was there of a directory that was made anew is gone, and nothing else is told.
    others = {path: change for path, change in found.items() if path not in wanted}
    assert all(path.startswith("/etc/skel/") and kind == "deleted" for path, (kind, _) in others.items()), others
    printed = run(ATOLL, "sandbox", "diff", sandbox).stdout.splitlines()
    assert "D /usr/share/perl5/" in printed and "A /srv/link" in printed and "M /opt/" in printed
    missing = run(ATOLL, "sandbox", "diff", "i" + 20 * "0")
    assert missing.returncode == 1 and missing.stdout == ""


@pytest.mark.needs("roots")
def test_changes_are_told_against_a_snapshot(fresh, name):
    source = fresh().sandbox_id
    inside(source, "sh", "-c", "echo 1 > stays; echo 1 > goes; echo 1 > changes")
    taken = document("sandbox", "snapshot", source, "--name", name, "--disk-only")["snapshotID"]
    made = document("sandbox", "create", taken)["sandboxID"]
    try:
        inside(made, "sh", "-c", "rm goes; echo 2 > changes; echo 1 > comes")
        found = {path.removeprefix("/home/user/"): kind for path, (kind, _) in changes(made).items() if path.startswith("/home/user/")}
        assert found == {"goes": "deleted", "changes": "modified", "comes": "added"}
    finally:
        run(ATOLL, "sandbox", "kill", made)

@pytest.mark.needs("ownDaemon")

def test_what_is_no_image_is_not_imported(tmp_path):
    (tmp_path / "not.tar").write_bytes(b"nothing like that")
    refused = run(ATOLL, "image", "import", str(tmp_path / "not.tar"), "--name", "x/y:1")
    assert refused.returncode == 1 and "not.tar" in refused.stderr and refused.stdout == ""
    assert run(ATOLL, "image", "import", str(tmp_path / "no-such.tar")).returncode == 1


@pytest.mark.needs("volumes")
def test_a_volume_is_filled_and_emptied(tmp_path):
    volume = f"v-{uuid.uuid4().hex[:12]}"
    made = document("volume", "create", volume)["volumeID"]
    try:
        (tmp_path / "file").write_text("in a volume")
        assert run(ATOLL, "volume", "cp", str(tmp_path / "file"), f"{volume}:/file").returncode == 0
        assert "file" in run(ATOLL, "volume", "ls", volume).stdout
        assert run(ATOLL, "volume", "cp", f"{volume}:/file", "-").stdout == "in a volume"
        assert made in [known["volumeID"] for known in document("volume", "list")]
    finally:
        assert run(ATOLL, "volume", "delete", volume).returncode == 0

@pytest.mark.needs("ownDaemon")

def test_what_nothing_needs_is_collected():
    removed = document("gc")
    assert set(removed) == {"builds", "buildsWaiting", "steps", "uploads", "records", "silentNodes", "layers", "layerBytes", "layerBytesLeft"}
    assert removed["silentNodes"] == 0
    assert "uploads" in run(ATOLL, "gc").stdout

@pytest.mark.needs("ownDaemon")

def test_the_base_template_is_made_anew():
    before = next(template for template in document("template", "list") if "base" in template["names"] + template["aliases"])
    made = document("template", "import-host", timeout=300)
    after = next(template for template in document("template", "list") if template["templateID"] == before["templateID"])
    assert after["buildID"] == made["buildID"] != before["buildID"]
    sandbox = document("sandbox", "create")["sandboxID"]
    try:
        assert inside(sandbox, "echo", "it works") == "it works\n"
    finally:
        run(ATOLL, "sandbox", "kill", sandbox)
