"""What must stay as it is: a file, a process and services of the host, and the same in a second sandbox; and a small
internet of its own, in which everything answers that a sandbox may, and may not, reach."""

import contextlib
import ctypes
import json
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).parent
NEW_NETWORK = 0x40000000
# Names below which the tests make things on the host: one run of the tests at a time.
NAMESPACE, LINK = "atoll-escape", "atescape"
# Of a network for documentation (RFC 5737), which nobody has: a sandbox may reach them, unless its policy says otherwise.
OPEN, BEHIND = "198.51.100.77", "198.51.100.78"
# Of the host itself: of a public network, and of a private one.
OWN = ["198.51.100.1", "10.213.7.1"]
# What a sandbox must not reach, though the host has a route to it.
SHUT = [
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "100.100.100.200",
    "100.64.7.7",
    "192.0.0.192",
    "10.213.7.7",
    "172.31.213.7",
    "192.168.213.7",
    "198.18.7.7",
    "240.7.7.7",
]
SHUT_IPV6 = ["fd00:ec2::254", "fd20:ce::254", "2001:db8:7::7"]
# Where things listen that are worth an attacker's while.
PORTS = [22, 80, 2375, 4646, 5432, 6379, 8500]
PORT = 80


class Host:
    """The canary of the host. A connection to any of its services is an escape."""

    def __init__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atoll-escape-canary-"))
        self.secret = secrets.token_hex(16)
        self.file = self.dir / "secret"
        self.file.write_text(self.secret)
        # All may read and write it: what keeps a sandbox off is the sandbox.
        self.dir.chmod(0o777)
        self.file.chmod(0o666)
        self.about = self.file.stat()
        self.process = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(60)", self.secret])
        self.visitors = []
        family, anywhere = (socket.AF_INET6, "::") if os.path.exists("/proc/net/if_inet6") else (socket.AF_INET, "0.0.0.0")
        self.services = [self.listen(family, (anywhere, 0)), self.listen(socket.AF_UNIX, f"\0{self.secret}"), self.listen(socket.AF_UNIX, str(self.dir / "socket"))]
        os.chmod(self.dir / "socket", 0o777)
        self.port = self.services[0].getsockname()[1]
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("", self.port))
        self.datagrams.settimeout(0)

    def listen(self, family, address):
        service = socket.socket(family)
        if family == socket.AF_INET6:
            service.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        service.bind(address)
        service.listen()
        threading.Thread(target=self.serve, args=(service,), daemon=True).start()
        return service

    def serve(self, service):
        with contextlib.suppress(OSError):
            while True:
                visitor, address = service.accept()
                self.visitors.append(f"{service.getsockname()} by {address}")
                visitor.close()

    def addresses(self):
        """Every address of this host."""
        links = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, check=True).stdout)
        return [address["local"] for link in links for address in link["addr_info"]]

    def assert_untouched(self):
        assert self.file.read_text() == self.secret
        about = self.file.stat()
        assert (about.st_mtime_ns, about.st_mode, about.st_uid, about.st_ino) == (self.about.st_mtime_ns, self.about.st_mode, self.about.st_uid, self.about.st_ino)
        assert sorted(os.listdir(self.dir)) == ["secret", "socket"]
        assert self.process.poll() is None, "the host's process was ended"
        assert not self.visitors, "services of the host were reached"
        with contextlib.suppress(BlockingIOError):
            raise AssertionError(f"a datagram reached the host: {self.datagrams.recvfrom(100)}")

    def close(self):
        self.process.kill()
        self.process.wait()
        for service in self.services:
            with contextlib.suppress(OSError):
                service.shutdown(socket.SHUT_RDWR)
            service.close()
        self.datagrams.close()
        shutil.rmtree(self.dir)


def leave_network():
    """Puts this process, and what it starts, in a network namespace of its own: what the tests take for the host's network is
    made for them, and the machine's own is left alone."""
    assert threading.active_count() == 1 and ctypes.CDLL(None).unshare(NEW_NETWORK) == 0, "a network namespace of one's own"
    # /proc/sys/net and the sockets of /proc/net are those of whoever reads them.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Internet:
    """A network namespace behind a link of the host, with addresses of every kind; whoever comes is written down."""

    def __init__(self):
        self.clear()
        self.log = pathlib.Path(tempfile.mkstemp(prefix="atoll-escape-visits-")[1])
        for line in [
            f"netns add {NAMESPACE}",
            f"link add {LINK} type veth peer name eth0 netns {NAMESPACE}",
            *(f"addr add {address}/32 dev {LINK}" for address in OWN),
            f"link set {LINK} up",
            f"-n {NAMESPACE} link set lo up",
            f"-n {NAMESPACE} link set eth0 up",
            f"-n {NAMESPACE} route add default dev eth0",
            *(f"-n {NAMESPACE} addr add {address}/32 dev eth0" for address in [OPEN, BEHIND, *SHUT]),
            *(f"route add {address}/32 dev {LINK}" for address in [OPEN, BEHIND, *SHUT]),
        ]:
            subprocess.run(["ip", *line.split()], check=True)
        # Answers of this network are for sandboxes too; hosts without IPv6 have none of that to try.
        pathlib.Path(f"/proc/sys/net/ipv4/conf/{LINK}/rp_filter").write_text("0")
        for address in SHUT_IPV6:
            for line in [f"-n {NAMESPACE} -6 addr add {address}/128 dev eth0 nodad", f"-6 route add {address}/128 dev {LINK}"]:
                subprocess.run(["ip", *line.split()], check=False, capture_output=True)
        ports = ",".join(map(str, PORTS))
        self.process = subprocess.Popen(["ip", "netns", "exec", NAMESPACE, sys.executable, HERE / "internet.py", self.log, ports], stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    def visits(self):
        """(protocol, address that was visited, port), each."""
        return [tuple(line.split()) for line in self.log.read_text().splitlines()]

    def assert_quiet(self):
        reached = {visit for visit in self.visits() if visit[1] not in (OPEN, BEHIND)}
        assert not reached, f"reached from inside: {reached}"

    def forget(self):
        """What the host itself did here, to see that it can be done."""
        self.log.write_text("")

    def clear(self):
        subprocess.run(["ip", "netns", "del", NAMESPACE], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", LINK], capture_output=True, check=False)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.clear()
        self.log.unlink()


class Neighbour:
    """A second sandbox with a file, a process and services."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.secret = secrets.token_hex(16)
        sandbox.files.write("/home/user/secret", self.secret)
        sandbox.commands.run("chmod 666 secret")
        sandbox.files.write("/home/user/internet.py", (HERE / "internet.py").read_text())
        self.service = sandbox.commands.run(f"exec python3 internet.py visits 8000,{PORT} {self.secret}", background=True, timeout=0)
        self.address = sandbox.commands.run("hostname -I").stdout.split()[0]
        sandbox.commands.run("for i in $(seq 100); do test -e visits && break; sleep 0.1; done; ss -ltn | grep :8000")
        self.boot = sandbox.files.read("/proc/sys/kernel/random/boot_id")

    def assert_untouched(self):
        """And it answers."""
        commands = self.sandbox.commands
        assert commands.run("cat secret; ls | sort | tr '\\n' ' '", timeout=30).stdout == f"{self.secret}internet.py secret visits "
        assert self.service.pid in [process.pid for process in commands.list()]
        assert self.sandbox.files.read("visits") == "", "somebody came to the neighbour"
        assert self.sandbox.files.read("/proc/sys/kernel/random/boot_id") == self.boot
