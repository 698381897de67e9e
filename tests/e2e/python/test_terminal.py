"""`atoll sandbox exec` and `shell` on a terminal, through pipes, and when they are told to end."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pytest
from conftest import PATIENCE_SECONDS, eventually

ATOLL = os.environ.get("ATOLL_BIN", "atoll")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command, rows=24, columns=80):
        self.shown = ""
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.mode = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            command, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True, preexec_fn=self.control
        )

    def control(self):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, rows, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text.encode())

    def shows(self, wanted):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while wanted not in self.shown:
            assert time.monotonic() < deadline, f"{wanted!r} does not show in {self.shown!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 65536).decode(errors="replace")

    def ends(self):
        return self.process.wait(timeout=PATIENCE_SECONDS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def shell(sandbox, **size):
    terminal = Terminal(ATOLL, "sandbox", "shell", sandbox.sandbox_id, **size)
    # Only once it is raw may something be typed: a terminal that is not echoes it by itself.
    eventually(lambda: termios.tcgetattr(terminal.slave) != terminal.mode, "the terminal to be raw")
    return terminal


def runs(sandbox, word):
    return [process for process in sandbox.commands.list() if word in (process.cmd, *process.args)]


def executing(sandbox, *command, **streams):
    return subprocess.Popen([ATOLL, "sandbox", "exec", sandbox.sandbox_id, "--", *command], **streams)


def test_a_shell_has_our_size_follows_it_and_ends_with_its_code(sandbox):
    with shell(sandbox, rows=33, columns=101) as terminal:
        terminal.type("stty size; echo said-$((40+2))\n")
        terminal.shows("said-42")
        assert "33 101" in terminal.shown
        terminal.resize(44, 132)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        # The size travels beside what is typed.
        terminal.type("until [ \"$(stty size)\" = '44 132' ]; do sleep 0.05; done; echo grown-$((40+2))\n")
        terminal.shows("grown-42")
        terminal.type("exit 6\n")
        assert terminal.ends() == 6
        assert termios.tcgetattr(terminal.slave) == terminal.mode


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_shell_that_is_told_to_end_gives_the_terminal_back_and_leaves_nothing_inside(sandbox, number, code):
    with shell(sandbox) as terminal:
        terminal.type("sleep 5432\n")
        eventually(lambda: sandbox.commands.run("pgrep -f 'sleep 543[2]' || true").stdout, "the program to start")
        terminal.process.send_signal(number)
        assert terminal.ends() == code
        assert termios.tcgetattr(terminal.slave) == terminal.mode
    eventually(lambda: not sandbox.commands.run("pgrep -f 'sleep 543[2]' || true").stdout, "the program to end")
    assert not runs(sandbox, "/bin/bash")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_program_ends_with_the_exec_that_is_told_to_end(sandbox, number, code):
    with executing(sandbox, "sleep", "6543", stdin=subprocess.DEVNULL) as process:
        eventually(lambda: runs(sandbox, "6543"), "the program to start")
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE_SECONDS) == code
    assert not runs(sandbox, "6543")


def test_a_program_that_will_not_end_is_killed_by_the_second_signal(sandbox):
    stubborn = "trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done; # 7654"
    with executing(sandbox, "sh", "-c", stubborn, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"no\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_SECONDS) == 130
    eventually(lambda: not runs(sandbox, stubborn), "the program to be gone")


def test_a_program_ends_when_nobody_reads_it_any_more(sandbox):
    with executing(sandbox, "sh", "-c", "while :; do echo 8765; done", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"8765\n"
        process.stdout.close()
        assert process.wait(timeout=PATIENCE_SECONDS) == 141
        assert process.stderr.read() == b""
    assert not runs(sandbox, "while :; do echo 8765; done")


def test_input_that_cannot_be_read_is_an_error_and_no_end_of_input(sandbox, tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)
    with executing(sandbox, "cat", stdin=directory, stderr=subprocess.PIPE) as process:
        assert process.wait(timeout=PATIENCE_SECONDS) == 1
        assert b"standard input" in process.stderr.read()
    os.close(directory)
    assert not runs(sandbox, "cat")


def test_a_program_that_closes_its_input_is_heard_to_its_end(sandbox):
    piped = subprocess.run(
        [ATOLL, "sandbox", "exec", sandbox.sandbox_id, "--", "sh", "-c", "exec 0<&-; sleep 0.3; echo done; exit 3"],
        input="x" * 2_000_000, capture_output=True, text=True, timeout=60,
    )
    assert (piped.returncode, piped.stdout) == (3, "done\n")


def test_a_list_that_nobody_reads_ends_quietly(sandbox):
    for command in (["sandbox", "list"], ["template", "list"], ["key", "list"], ["sandbox", "list", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run([ATOLL, *command], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (141, ""), command


def test_every_verb_answers_json_with_one_document(fresh):
    def document(*command):
        ended = subprocess.run([ATOLL, *command, "--json"], capture_output=True, text=True, timeout=60)
        assert ended.stdout, ended.stderr
        return json.loads(ended.stdout)

    name = fresh().sandbox_id
    assert document("sandbox", "pause", name) == {"sandboxID": name, "state": "paused"}
    assert document("sandbox", "resume", name)["sandboxID"] == name
    assert document("sandbox", "restart", name)["sandboxID"] == name
    missing = "i" + "0" * 20
    ended = document("sandbox", "kill", name, missing)
    assert ended["killed"] == [name]
    assert [failed["sandboxID"] for failed in ended["failed"]] == [missing]
    key = document("key", "create", "terminal-test")
    assert document("key", "revoke", key["id"]) == {"id": key["id"], "name": "terminal-test", "revoked": True}
    assert document("tls")["certificate"]
