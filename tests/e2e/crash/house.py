"""A house of the test's own, that may be killed and started again."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

# A daemon that was killed answers nobody: the SDK is not to try again for seconds. It looks when it is imported.
os.environ["E2B_CONNECTION_RETRIES"] = "0"

import e2b  # noqa: E402
import httpx  # noqa: E402

ATOLL = os.path.realpath(os.environ.get("ATOLL_BIN", shutil.which("atoll") or "atoll"))
# The same, built with the feature `failpoints`: it dies where it is told to.
FAILPOINTS = os.environ.get("ATOLL_FAILPOINTS_BIN") and os.path.realpath(os.environ["ATOLL_FAILPOINTS_BIN"])
# With it a house keeps memory; without it, none does.
CRIU = os.environ.get("ATOLL_CRIU") and os.path.realpath(os.environ["ATOLL_CRIU"])
# Slots that are prepared ahead, where a test does not say otherwise.
POOL = 4
READY_WITHIN_SECONDS = 120.0
RUNTIME = ("ATOLL_RUNTIME", "ATOLL_GUEST_KERNEL", "ATOLL_FIRECRACKER", "ATOLL_FIRECRACKER_ACCEPTS")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class House:
    """`atoll up` with its own data directory and ports."""

    def __init__(self, program=ATOLL, pool=POOL, criu=None):
        self.program, self.pool, self.criu = program, pool, criu
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atoll-crash-"))
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("E2B_", "ATOLL_"))}
        self.env |= {f"ATOLL_{name}_LISTEN": f"127.0.0.1:{free_port()}" for name in ("API", "EDGE", "ADMIN")}
        self.env |= {"ATOLL_DATA_DIR": str(self.dir), "ATOLL_POOL": str(pool), "ATOLL_FAILPOINTS": str(self.armed), "ATOLL_CRIU": criu or str(self.dir / "no-criu")}
        # Which runtime it has is whoever's who runs the tests.
        self.env |= {name: os.environ[name] for name in RUNTIME if name in os.environ}
        self.daemon = None

    @property
    def armed(self):
        """The file that names the point at which the daemon dies, where it was built to."""
        return self.dir / "failpoint"

    @property
    def settings(self):
        """The file in which the daemon reads its settings when it starts."""
        return self.dir / "atoll.toml"

    def spawn(self):
        """Starts the daemon, and does not wait for it."""
        log = open(self.dir / "daemon.log", "ab")
        self.daemon = subprocess.Popen([self.program, "up"], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        return self

    def start(self):
        self.spawn()
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        for line in self.daemon.stdout:
            if "E2B_API_KEY=" in line:
                break
            assert time.monotonic() < deadline, "the house was not ready in time"
        else:
            raise AssertionError(f"the house ended before it was ready: {self.log()}")
        text = subprocess.run([self.program, "env"], env=self.env, capture_output=True, text=True, check=True).stdout
        exports = dict(re.findall(r"(E2B_\w+)=[\"']?([^\s\"']+)", text))
        self.connection = {"api_url": exports["E2B_API_URL"], "sandbox_url": exports["E2B_SANDBOX_URL"], "api_key": exports["E2B_API_KEY"], "retries": 0}
        return self

    def log(self, tail=4000):
        return (self.dir / "daemon.log").read_text()[-tail:]

    def kill(self):
        """As the kernel does it when memory is short."""
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()

    def stop(self):
        """As a service manager does it."""
        self.daemon.send_signal(signal.SIGTERM)
        assert self.daemon.wait(timeout=60) == 0

    def wait_for_death(self):
        assert self.daemon.wait(timeout=60) == -signal.SIGKILL

    def dies(self, point, flow):
        """Does a flow until the daemon dies at a point of it, and is to be started again. Says whether the flow was answered."""
        self.armed.write_text(point)
        answered = True
        try:
            flow()
        except Exception:
            answered = False
        self.wait_for_death()
        self.armed.unlink()
        return answered

    def down(self):
        subprocess.run([self.program, "down"], env=self.env, check=True, capture_output=True, timeout=120)
        if self.daemon and self.daemon.poll() is None:
            self.daemon.wait(timeout=60)
        shutil.rmtree(self.dir)

    def create(self, **options):
        options.setdefault("timeout", 300)
        return e2b.Sandbox.create(**self.connection, **options)

    def connect(self, name, **options):
        return e2b.Sandbox.connect(name, **self.connection, **options)

    @property
    def api(self):
        """What calls of the SDK that are not about sandboxes take."""
        return {name: self.connection[name] for name in ("api_url", "api_key")}

    def ask(self, method, path):
        """A call that is in no SDK; its answer."""
        answer = httpx.request(method, self.connection["api_url"] + path, headers={"X-API-Key": self.connection["api_key"]}, timeout=60)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def restart(self, name):
        """Reboots a sandbox: of our own, and in no SDK."""
        self.ask("POST", f"/sandboxes/{name}/restart")

    def metrics(self):
        """What the daemon counts, as text."""
        return httpx.get(f"http://{self.env['ATOLL_ADMIN_LISTEN']}/metrics", timeout=30).text

    def keeps_memory(self):
        return all(node["capabilities"]["durableMemory"] for node in self.ask("GET", "/nodes"))

    def list(self):
        pages, found = e2b.Sandbox.list(**self.connection), []
        while pages.has_next:
            found += [info.sandbox_id for info in pages.next_items()]
        return found
