"""A sandbox whose owner means harm, and the same programs outside."""

import json
import pathlib
import shlex
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
INSIDE = "/opt/escape"


class Attacker:
    """Runs the programs of `inside/` in a sandbox, as its `user` or its root."""

    def __init__(self, house):
        self.house = house
        self.sandbox = house.create(timeout=3600)
        self.commands, self.files = self.sandbox.commands, self.sandbox.files
        for program in (HERE / "inside").glob("*.py"):
            self.files.write(f"{INSIDE}/{program.name}", program.read_text(), user="root")

    def run(self, program, *arguments, user="user", timeout=120):
        """What a program of `inside/` told."""
        line = shlex.join(["python3", f"{INSIDE}/{program}.py", *map(str, arguments)])
        return json.loads(self.commands.run(line, user=user, timeout=timeout).stdout)

    def shell(self, line, user="user", timeout=120):
        """What a line printed, whatever came of it."""
        return self.commands.run(f"{{ {line}\n}} 2>&1 || true", user=user, timeout=timeout).stdout


def on_host(program, *arguments):
    """The same outside: what an attempt looks like where nothing stops it."""
    run = subprocess.run([sys.executable, HERE / "inside" / f"{program}.py", *map(str, arguments)], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)
