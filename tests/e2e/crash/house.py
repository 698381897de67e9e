"""A house of the test's own, that may be killed and started again, and what it may leave on the machine: nothing."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import e2b

ATOLL = os.environ.get("ATOLL_BIN", "atoll")
READY_WITHIN_SECONDS = 120.0
PATIENCE_SECONDS = 30.0


def eventually(condition, what):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not become true within {PATIENCE_SECONDS} s"
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class House:
    """`atoll up` with its own data directory and ports."""

    def __init__(self, **settings):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atoll-crash-"))
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("E2B_", "ATOLL_"))}
        self.env |= {f"ATOLL_{name}_LISTEN": f"127.0.0.1:{free_port()}" for name in ("API", "EDGE", "ADMIN")}
        self.env |= {"ATOLL_DATA_DIR": str(self.dir)} | settings
        self.daemon = None

    def start(self, **settings):
        log = open(self.dir / "daemon.log", "ab")
        self.daemon = subprocess.Popen([ATOLL, "up"], env=self.env | settings, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        for line in self.daemon.stdout:
            if "E2B_API_KEY=" in line:
                break
            assert time.monotonic() < deadline, "the house was not ready in time"
        else:
            raise AssertionError(f"the house ended before it was ready: {(self.dir / 'daemon.log').read_text()[-4000:]}")
        text = subprocess.run([ATOLL, "env"], env=self.env, capture_output=True, text=True, check=True).stdout
        exports = dict(re.findall(r"(E2B_\w+)=[\"']?([^\s\"']+)", text))
        self.connection = {"api_url": exports["E2B_API_URL"], "sandbox_url": exports["E2B_SANDBOX_URL"], "api_key": exports["E2B_API_KEY"]}
        return self

    def kill(self):
        """As the kernel does it when memory is short."""
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()

    def stop(self):
        """As a service manager does it."""
        self.daemon.send_signal(signal.SIGTERM)
        assert self.daemon.wait(timeout=60) == 0

    def wait_for_death(self):
        self.daemon.wait(timeout=60)

    def down(self):
        subprocess.run([ATOLL, "down"], env=self.env, check=True, capture_output=True, timeout=120)
        if self.daemon and self.daemon.poll() is None:
            self.daemon.wait(timeout=60)
        shutil.rmtree(self.dir)

    def create(self, **options):
        options.setdefault("timeout", 300)
        return e2b.Sandbox.create(**self.connection, **options)

    def connect(self, name, **options):
        return e2b.Sandbox.connect(name, **self.connection, **options)

    def list(self):
        pages, found = e2b.Sandbox.list(**self.connection), []
        while pages.has_next:
            found += [info.sandbox_id for info in pages.next_items()]
        return found


class Machine:
    """What a house may leave behind: counted before, compared after."""

    def __init__(self, house):
        self.house = house
        self.before = self.look()

    def look(self):
        own = str(self.house.dir)
        links = subprocess.run(["ip", "-o", "link", "show", "type", "veth"], capture_output=True, text=True).stdout
        rules = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
        return {
            "processes": sorted(line for line in commands() if "atoll" in line and own in line or "atoll-envd" in line),
            "cgroups": sorted(str(path) for path in pathlib.Path("/sys/fs/cgroup").rglob("*atoll*") if path.is_dir()),
            "links": sorted(line.split(": ")[1].split("@")[0] for line in links.splitlines()),
            "tables": sorted(line for line in rules.splitlines() if "atoll" in line),
            "mounts": sorted(line.split()[4] for line in open("/proc/self/mountinfo") if own in line),
            "loops": sorted(name for name, backing in loops() if own in backing),
        }

    def assert_clean(self, what):
        def settled():
            now = self.look()
            return all(set(now[kind]) <= set(self.before[kind]) for kind in now)

        try:
            eventually(settled, what)
        except AssertionError:
            now = self.look()
            left = {kind: sorted(set(now[kind]) - set(self.before[kind])) for kind in now}
            raise AssertionError(f"{what}: left behind {({kind: found for kind, found in left.items() if found})}") from None


def commands():
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                pass


def loops():
    for entry in pathlib.Path("/sys/block").glob("loop*"):
        try:
            yield entry.name, (entry / "loop/backing_file").read_text().strip()
        except OSError:
            pass
