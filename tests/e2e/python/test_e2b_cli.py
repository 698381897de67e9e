"""`@e2b/cli`, as people type it."""

import concurrent.futures
import datetime
import json
import os
import pathlib
import re
import subprocess
import uuid

import pytest
from conftest import PATIENCE_SECONDS, eventually
from e2b import NotFoundException, Sandbox, SandboxQuery, SandboxState, Template
from houses import call, forget
from terminal import Terminal

NODE = os.environ.get("ATOLL_NODE", "node")
CLI = [NODE, str(pathlib.Path(os.environ.get("ATOLL_JS", ".")) / "node_modules/@e2b/cli/dist/index.js")]
E2B = [*CLI, "sandbox"]
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
ID = re.compile(r"\bi[a-z0-9]{20}\b")

#: What `e2b sandbox --help` offers, each with its options. All are driven below.
OFFERED = {
    "create": {"detach", "lifecycle.ontimeout", "lifecycle.autoresume", "timeout", "user", "cwd", "env"},
    "connect": {"user", "cwd", "env"},
    "exec": {"background", "cwd", "user", "env"},
    "info": {"format"},
    "list": {"state", "metadata", "template", "started-after", "order", "limit", "format"},
    "kill": {"all", "state", "metadata"},
    "pause": set(),
    "resume": set(),
    "logs": {"level", "follow", "format", "loggers"},
    "metrics": {"follow", "format"},
    "snapshot": set(),
}


def e2b(*arguments, fails=False, **options):
    """Runs `e2b sandbox …` to its end; returns what it printed without colours."""
    options = {"stdin": subprocess.DEVNULL} | options if "input" not in options else options
    done = subprocess.run([*E2B, *arguments], capture_output=True, text=True, timeout=60, **options)
    assert (done.returncode != 0) == fails, done
    return ANSI.sub("", done.stdout), ANSI.sub("", done.stderr)


def listed(*arguments):
    return [item["sandboxId"] for item in json.loads(e2b("list", "--format", "json", *arguments)[0])]


def is_gone(name):
    try:
        Sandbox.get_info(name)
    except NotFoundException:
        return True
    return False


def followed(*arguments):
    return subprocess.Popen([*E2B, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def label():
    """Metadata that no other sandbox has."""
    return {"run": str(uuid.uuid4())}


def test_this_cli_offers_nothing_that_is_not_driven_here():
    commands = re.findall(r"^  ([a-z]+)\|", e2b("--help")[0], re.M)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        helps = pool.map(lambda command: e2b(command, "--help")[0], commands)
        options = {command: set(re.findall(r"^ +(?:-\w, )?--([a-z.-]+)", text, re.M)) - {"help"} for command, text in zip(commands, helps)}
    assert options == OFFERED


def test_a_sandbox_is_created_described_and_killed():
    made = e2b("create", "--detach", "--timeout", "77", "--lifecycle.ontimeout", "pause", "--lifecycle.autoresume", "base")[0]
    name = ID.search(made).group()
    try:
        info = json.loads(e2b("info", "--format", "json", name)[0])
        assert (info["sandboxId"], info["state"]) == (name, "running")
        assert info["lifecycle"] == {"onTimeout": "pause", "autoResume": True}
        lasts = Sandbox.get_info(name).end_at - datetime.datetime.now(datetime.timezone.utc)
        assert 60 < lasts.total_seconds() <= 77
    finally:
        killed, missing = e2b("kill", name, "i" + 20 * "0")
    assert name in killed and "wasn't found" in missing


def test_lists_filter_sort_and_end(fresh, label):
    first, second, third = (fresh(metadata=label).sandbox_id for _ in range(3))
    Sandbox.pause(second)
    mine = ("--metadata", f"run={label['run']}")
    assert listed(*mine, "--template", "base") == [first, third]
    assert listed(*mine, "--state", "running,paused", "--order", "desc") == [third, second, first]
    assert listed(*mine, "--limit", "1", "--order", "asc") == [first]
    # To the millisecond, which is all that the CLI passes on.
    started = Sandbox.get_info(third).started_at.isoformat(timespec="milliseconds")
    assert listed(*mine, "--started-after", started) == [third]
    shown = e2b("list", *mine, "--state", "paused")[0]
    assert second in shown and first not in shown


def test_all_of_a_kind_are_killed_and_no_others(fresh, label, sandbox):
    running, paused = fresh(metadata=label), fresh(metadata=label)
    paused.pause()
    mine = ("--metadata", f"run={label['run']}")
    assert "Killed 1 " in e2b("kill", "--all", *mine)[0]
    assert not running.is_running() and Sandbox.get_info(paused.sandbox_id).state == SandboxState.PAUSED
    assert "Killed 1 " in e2b("kill", "--all", "--state", "paused", *mine)[0]
    assert Sandbox.list(query=SandboxQuery(metadata=label)).next_items() == []
    assert sandbox.is_running()


def test_a_command_is_run_where_and_as_whom_it_is_told(sandbox):
    name = sandbox.sandbox_id
    assert e2b("exec", name, "echo", "from the", "cli") == ("from the cli\n", "")
    told = e2b("exec", "-u", "root", "-c", "/tmp", "-e", "A=1", "-e", "B=two words", name, "whoami; pwd; echo $A $B")[0]
    assert told.split("\n")[:3] == ["root", "/tmp", "1 two words"]
    assert e2b("exec", name, "cat", input="through a pipe")[0] == "through a pipe"
    done = subprocess.run([*E2B, "exec", name, "echo err >&2; exit 5"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 5 and done.stderr.startswith("err\n")


def test_a_command_goes_on_in_the_background(sandbox):
    pid = int(e2b("exec", "--background", sandbox.sandbox_id, "sleep 300")[1])
    assert pid in [process.pid for process in sandbox.commands.list()]
    assert sandbox.commands.kill(pid) is True


def test_a_sandbox_sleeps_and_wakes(fresh):
    sandbox = fresh()
    e2b("pause", sandbox.sandbox_id)
    assert Sandbox.get_info(sandbox.sandbox_id).state == SandboxState.PAUSED
    e2b("resume", sandbox.sandbox_id)
    assert sandbox.is_running()


def test_logs_tell_what_ran_by_level_and_logger(fresh):
    sandbox = fresh()
    name = sandbox.sandbox_id
    sandbox.commands.run("echo a-mark-of-its-own")

    def logs(*arguments):
        return [json.loads(line) for line in e2b("logs", "--format", "json", *arguments, name)[0].splitlines() if line]

    entries = eventually(lambda: [entry for entry in logs() if "a-mark-of-its-own" in entry["message"]], "the log to tell")
    for entry in entries:
        assert datetime.datetime.fromisoformat(entry["timestamp"]) and entry["level"] == "info" and entry["logger"] == "process"
    assert {entry["logger"] for entry in logs("--loggers", "process", "--level", "DEBUG")} == {"process"}
    assert logs("--loggers", "nobody,no-one") == []
    assert logs("--level", "ERROR") == []
    pretty = e2b("logs", name)[0]
    assert "INFO" in pretty and "logger: 'process'" in pretty and "a-mark-of-its-own" in pretty


def test_logs_and_metrics_are_followed_until_the_end(fresh):
    sandbox = fresh()
    eventually(sandbox.get_metrics, "metrics to appear")
    logs = followed("logs", "--follow", "--format", "json", sandbox.sandbox_id)
    metrics = followed("metrics", "--follow", "--format", "json", sandbox.sandbox_id)
    try:
        # A first line shows that each has read once, so that what comes after was followed.
        first = next(line for line in metrics.stdout if line.strip())
        measured = json.loads(first)
        assert 0 < measured["memUsed"] < measured["memTotal"] and measured["cpuCount"] >= 1
        assert next(line for line in logs.stdout if line.strip())
        sandbox.commands.run("echo said-later")
        assert any("said-later" in line for line in logs.stdout)
        sandbox.kill()
        logs.wait(timeout=PATIENCE_SECONDS)
        metrics.wait(timeout=PATIENCE_SECONDS)
    finally:
        for process in (logs, metrics):
            process.kill()
            process.wait()
            process.stdout.close()


def test_metrics_are_printed(fresh):
    sandbox = fresh()
    eventually(sandbox.get_metrics, "metrics to appear")
    lines = [line for line in e2b("metrics", "--format", "json", sandbox.sandbox_id)[0].splitlines() if line]
    assert all(json.loads(line)["diskTotal"] > 0 for line in lines) and lines
    assert re.search(r"CPU: .*Memory: .*Disk: ", e2b("metrics", sandbox.sandbox_id)[0])


def test_a_terminal_of_a_new_sandbox_keeps_it_alive_and_ends_it():
    with Terminal([*E2B, "create", "-u", "root", "-c", "/tmp", "-e", "GREETING=hi", "base"], rows=31, cols=101) as terminal:
        terminal.shows("# ")
        terminal.types("echo $GREETING-$(whoami)-$((40+2))-$(pwd); stty size\n")
        terminal.shows("hi-root-42-/tmp")
        terminal.shows("31 101")
        terminal.resize(rows=32, cols=102)
        eventually(lambda: (terminal.types("stty size\n"), terminal.shown_within("32 102", 0.3))[1], "the size to arrive")
        name = ID.search(terminal.shown).group()
        before = Sandbox.get_info(name).end_at
        # The CLI asks for 30 s every 5 s. A sandbox of its own default time would not be asked for less than it has.
        eventually(lambda: Sandbox.get_info(name).end_at != before, "the sandbox to be kept")
        lasts = Sandbox.get_info(name).end_at - datetime.datetime.now(datetime.timezone.utc)
        assert 15 < lasts.total_seconds() <= 31
        terminal.types("exit\n")
        assert terminal.ends() == 0
    assert "Closing terminal connection" in terminal.shown
    eventually(lambda: is_gone(name), "the sandbox to end")


def test_a_terminal_of_a_running_sandbox_leaves_it_running(sandbox):
    with Terminal([*E2B, "connect", "-u", "root", "-c", "/tmp", "-e", "GREETING=hi", sandbox.sandbox_id]) as terminal:
        terminal.shows("# ")
        terminal.types("echo $GREETING-$(whoami)-$((40+2))-$(pwd)\n")
        terminal.shows("hi-root-42-/tmp")
        terminal.types("exit\n")
        assert terminal.ends() == 0
    assert "Closing terminal connection" in terminal.shown
    assert sandbox.is_running()


def templates(*arguments, fails=False, **options):
    """Runs `e2b template …` to its end; returns what it printed without colours."""
    done = subprocess.run([*CLI, "template", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, **options)
    assert (done.returncode != 0) == fails, done
    return ANSI.sub("", done.stdout), ANSI.sub("", done.stderr)


@pytest.fixture
def name():
    """A name of its own, whose template is gone after the test."""
    name = f"e2b-cli-{uuid.uuid4().hex[:12]}"
    yield name
    forget(name)


def test_a_template_is_listed_published_and_deleted(name):
    # Its Dockerfiles begin with images of a registry: with one at hand, the tests of images create templates of them.
    Template.build(Template().from_template("base").run_cmd("echo ran > /srv/ran", user="root"), name, cpu_count=1, memory_mb=512)
    known = {item["templateID"]: item for item in json.loads(templates("list", "--format", "json")[0])}
    made = next(item for item in known.values() if name in item.get("aliases", []) + item.get("names", []))
    assert (made["cpuCount"], made["memoryMB"], made["public"]) == (1, 512, False)
    with Sandbox.create(name) as sandbox:
        assert sandbox.commands.run("cat /srv/ran").stdout == "ran\n"
    templates("publish", "--yes", name)
    assert call("GET", f"/templates/{name}")["public"] is True
    templates("unpublish", "--yes", name)
    assert call("GET", f"/templates/{name}")["public"] is False
    templates("delete", "--yes", name)
    call("GET", f"/templates/{name}", expect=404)


def test_a_snapshot_is_taken_listed_and_deleted(fresh, name):
    source = fresh()
    source.commands.run("echo kept > mark")
    e2b("snapshot", "create", "--name", name, source.sandbox_id)
    (taken,) = call("GET", f"/snapshots?sandboxID={source.sandbox_id}")
    assert name in e2b("snapshot", "list", source.sandbox_id)[0]
    with Sandbox.create(taken["snapshotID"]) as copy:
        assert copy.commands.run("cat mark").stdout == "kept\n"
    e2b("snapshot", "delete", taken["snapshotID"])
    assert call("GET", f"/snapshots?sandboxID={source.sandbox_id}") == []
