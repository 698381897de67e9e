"""Terminals."""

import threading

from conftest import eventually
from e2b import PtySize


class Screen:
    """Collects what a terminal shows."""

    def __init__(self, terminal):
        self.text = ""
        self.ended = None
        self.terminal = terminal
        threading.Thread(target=self.run, daemon=True).start()

    def add(self, data):
        self.text += bytes(data).decode(errors="replace")

    def run(self):
        try:
            self.ended = self.terminal.wait(on_pty=self.add)
        except Exception as ended:
            self.ended = ended

    def shows(self, wanted):
        eventually(lambda: wanted in self.text, f"{wanted!r} to show in {self.text!r}")


def test_a_terminal_echoes_resizes_and_ends(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"GREETING": "hi"}, cwd="/tmp")
    screen = Screen(terminal)
    sandbox.pty.send_stdin(terminal.pid, b"echo $GREETING-$((40+2))-$(pwd)-$TERM\n")
    screen.shows("hi-42-/tmp-xterm-256color")
    sandbox.pty.send_stdin(terminal.pid, b"stty size\n")
    screen.shows("24 80")
    sandbox.pty.resize(terminal.pid, PtySize(rows=40, cols=120))
    sandbox.pty.send_stdin(terminal.pid, b"stty size\n")
    screen.shows("40 120")
    sandbox.pty.stream_input(terminal.pid, [b"exit 3\n"])
    eventually(lambda: screen.ended is not None, "the terminal to end")
    assert screen.ended.exit_code == 3


def test_a_terminal_is_joined_and_killed(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    terminal.disconnect()
    screen = Screen(sandbox.pty.connect(terminal.pid))
    sandbox.pty.send_stdin(terminal.pid, b"echo joi''ned\n")
    screen.shows("joined")
    assert sandbox.pty.kill(terminal.pid) is True
    eventually(lambda: screen.ended is not None, "the terminal to end")
    eventually(lambda: sandbox.pty.kill(terminal.pid) is False, "the terminal to be gone")
