"""What the next daemon takes over, by what it knows a process, and what becomes of that which it cannot take over."""

import json
import os
import signal
import subprocess

import httpx
import pytest
from e2b import CommandExitException, NotFoundException, SandboxException, SandboxState
from machine import Machine
from outside import hosts_outside
from patience import eventually

OUTSIDE = "198.51.100.77"
# Says a line, and goes on saying lines as long as it is listened to.
TALKER = """
import socketserver, time
class Talk(socketserver.StreamRequestHandler):
    def handle(self):
        while True:
            self.wfile.write(b"on and on\\n")
            time.sleep(0.05)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
print("listens") if (server := Server(("", 80), Talk)) else None
server.serve_forever()
"""


@pytest.fixture
def machine(house):
    return Machine(house)


def record(house, sandbox):
    """The path of the record of a sandbox's slot, and what it says."""
    for path in (house.dir / "container/slots").glob("*.json"):
        said = json.loads(path.read_text())
        if said["spec"] and said["spec"]["sandbox"] == sandbox.sandbox_id:
            return path, said
    raise AssertionError(f"{sandbox.sandbox_id} has no record")


def first_process(house, sandbox):
    return record(house, sandbox)[1]["process"]["pid"]


def assert_gone(house, sandbox):
    eventually(lambda: sandbox.sandbox_id not in house.list(), "the sandbox to be gone from the list")
    with pytest.raises(NotFoundException):
        sandbox.get_info()


def ask(house, sandbox, port, **headers):
    """The status of a service's answer through the edge."""
    routing = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
    return httpx.get(house.connection["sandbox_url"], headers=routing | headers, timeout=30).status_code


@pytest.fixture
def stranger():
    """A process of the host that is nobody's sandbox."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    alive = process.poll() is None
    process.kill()
    process.wait()
    assert alive, "a stranger was killed"


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_routes_and_tokens_outlive_the_daemon(house, how):
    sandbox = house.create(network={"allow_public_traffic": False})
    sandbox.commands.run("python3 -m http.server 8000 --bind 127.0.0.1", background=True, cwd="/etc/skel", timeout=0)
    token = {"e2b-traffic-access-token": sandbox.traffic_access_token}
    eventually(lambda: ask(house, sandbox, 8000, **token) == 200, "the service to answer")
    getattr(house, how)()
    house.start()
    assert ask(house, sandbox, 8000, **token) == 200
    assert ask(house, sandbox, 8000) == 403
    again = house.connect(sandbox.sandbox_id)
    assert again._envd_access_token == sandbox._envd_access_token
    assert again.traffic_access_token == sandbox.traffic_access_token
    url = f"{house.connection['sandbox_url']}/files?path=/etc/passwd"
    routing = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    assert httpx.get(url, headers=routing).status_code == 401
    assert httpx.get(url, headers=routing | {"X-Access-Token": sandbox._envd_access_token}).status_code == 200


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_open_connections_and_policies_outlive_the_daemon(house, how):
    with hosts_outside(TALKER, OUTSIDE):
        open_one = house.create()
        shut_one = house.create(allow_internet_access=False)
        listen = f"python3 -u -c 'import socket\nfor line in socket.create_connection((\"{OUTSIDE}\", 80)).makefile(): open(\"/tmp/heard\", \"a\").write(line)'"
        open_one.commands.run(listen, background=True, timeout=0)

        def heard():
            return int(open_one.commands.run("cat /tmp/heard 2>/dev/null | wc -l").stdout)

        eventually(heard, "the outside to be heard")
        getattr(house, how)()
        house.start()
        before = heard()
        eventually(lambda: heard() > before, "the same connection to be heard still")
        assert open_one.commands.run("pgrep -fc 'create_connectio[n]'").stdout.strip() != "0"
        with pytest.raises(CommandExitException):
            shut_one.commands.run(f"timeout 3 bash -c 'exec 3<>/dev/tcp/{OUTSIDE}/80'")


def test_deadlines_outlive_the_daemon(house, machine):
    sandbox = house.create(timeout=4)
    end = sandbox.get_info().end_at
    house.kill()
    house.start()
    assert sandbox.get_info().end_at == end
    assert_gone(house, sandbox)
    machine.assert_accounted([], "a deadline after a restart")


def test_what_was_resumed_is_found_again(house):
    sandbox = house.create()
    process = sandbox.commands.run("sleep 600", background=True, timeout=0)
    for _ in range(2):
        sandbox.pause()
        sandbox = house.connect(sandbox.sandbox_id)
        house.kill()
        house.start()
        assert sandbox.get_info().state == SandboxState.RUNNING
        assert process.pid in [found.pid for found in sandbox.commands.list()]


def test_a_sandbox_that_died_while_nobody_looked_is_cleared_away(house, machine):
    dead, alive = house.create(), house.create()
    house.kill()
    os.kill(first_process(house, dead), signal.SIGKILL)
    house.start()
    assert_gone(house, dead)
    assert alive.commands.run("echo alive").stdout == "alive\n"
    machine.assert_accounted([alive], "a death while nobody looked")


def test_a_paused_sandbox_that_died_while_nobody_looked_keeps_its_disk(house, machine):
    sandbox = house.create()
    sandbox.files.write("/home/user/kept", "disk")
    sandbox.pause()
    house.kill()
    os.kill(first_process(house, sandbox), signal.SIGKILL)
    house.start()
    assert sandbox.get_info().state == SandboxState.PAUSED
    with pytest.raises(SandboxException, match="memory"):
        house.connect(sandbox.sandbox_id)
    assert house.connect(sandbox.sandbox_id, on_resume="reboot").files.read("/home/user/kept") == "disk"
    machine.assert_accounted([sandbox], "a resume from the disk of the dead")


@pytest.mark.parametrize("what", ["its number alone", "its number and start"])
def test_a_stranger_with_a_sandboxs_number_is_left_alone(house, machine, stranger, what):
    sandbox, alive = house.create(), house.create()
    house.kill()
    path, said = record(house, sandbox)
    said["process"]["pid"] = stranger.pid
    if what == "its number and start":
        stat = open(f"/proc/{stranger.pid}/stat").read()
        said["process"]["start_ticks"] = int(stat.rsplit(") ")[1].split()[19])
    path.write_text(json.dumps(said))
    house.start()
    assert_gone(house, sandbox)
    assert alive.commands.run("echo alive").stdout == "alive\n"
    machine.assert_accounted([alive], "a record with a stranger's number")


@pytest.mark.parametrize("damage", ["garbage", "another boot", "nothing"])
def test_a_sandbox_without_a_usable_record_is_cleared_away(house, machine, damage):
    sandbox, alive = house.create(), house.create()
    house.kill()
    path, said = record(house, sandbox)
    if damage == "garbage":
        path.write_text('{"slot": ')
    elif damage == "another boot":
        said["process"]["boot"] = "00000000-0000-4000-a000-000000000000"
        path.write_text(json.dumps(said))
    else:
        path.unlink()
    house.start()
    assert_gone(house, sandbox)
    assert alive.commands.run("echo alive").stdout == "alive\n"
    machine.assert_accounted([alive], f"a record with {damage}")


def entry(house, sandbox):
    return house.dir / f"node/sandboxes/{sandbox.sandbox_id}.json"


def test_a_sandbox_without_an_entry_in_the_journal_is_cleared_away(house, machine):
    sandbox, paused, alive = house.create(), house.create(), house.create()
    paused.pause(mode="filesystem")
    house.kill()
    for each in (sandbox, paused):
        entry(house, each).unlink()
    house.start()
    assert_gone(house, sandbox)
    assert_gone(house, paused)
    assert alive.commands.run("echo alive").stdout == "alive\n"
    machine.assert_accounted([alive], "no entry")


@pytest.mark.parametrize("damage", ["garbage", "a later version"])
def test_a_sandbox_whose_entry_is_not_understood_is_lost_and_its_disk_is_kept(house, machine, damage):
    sandbox, paused, alive = house.create(), house.create(), house.create()
    paused.pause(mode="filesystem")
    lost = (sandbox, paused)
    text = "{" if damage == "garbage" else '{"version": 1000000}'
    house.kill()
    for each in lost:
        entry(house, each).write_text(text)
    for _ in range(2):
        house.start()
        for each in lost:
            assert_gone(house, each)
            assert each.sandbox_id in house.log(1 << 20)
            assert entry(house, each).read_text() == text
        assert alive.commands.run("echo alive").stdout == "alive\n"
        machine.assert_accounted([alive], f"an entry with {damage}", lost=lost)
        house.kill()
    for each in lost:
        entry(house, each).unlink()
    house.start()
    machine.assert_accounted([alive], "entries that were taken away")


def test_what_nobody_has_on_record_is_cleared_away(house, machine):
    alive = house.create()
    house.kill()
    data = house.dir / "container"
    volume = next(data / name for name in ("volume", "disks") if (data / name / "slots").is_dir())
    (volume / "slots/4001.img").write_bytes(b"")
    (volume / "kept/iaaaaaaaaaaaaaaaaaaaa.img").write_bytes(b"")
    for group in [path for path in machine.groups() if path.name == f"atoll{machine.instance()}"]:
        (group / "4002").mkdir()
    house.start()
    assert alive.commands.run("echo alive").stdout == "alive\n"
    machine.assert_accounted([alive], "remains of nobody")
