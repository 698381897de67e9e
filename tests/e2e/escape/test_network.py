"""Attempts 8, 9, 10 and 11: the wire."""

import contextlib
import json
import pathlib
import re
import subprocess

import pytest
from canary import BEHIND, NAMESPACE, OPEN, OWN, PORTS, SHUT, SHUT_IPV6
from attacker import HERE, on_host

METADATA = [
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "0251.254.0xa9.254",
    "169.254.43518",
    "169.16689662",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "169.254.170.2",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "metadata.google.internal",
    "metadata",
    "instance-data",
]
CONTROL_PLANE = [2375, 2376, 3000, 3002, 4646, 5432, 6379, 8300, 8500, 9000, 49983]


def on_wire(protocol, hosts, ports):
    return [protocol, *(f"[{host}]:{port}" if ":" in host and "[" not in host else f"{host}:{port}" for host in hosts for port in ports)]


@pytest.fixture(scope="module", autouse=True)
def knocking_works(attacker, internet):
    """What is open is reached, over the same link and by the same program: what is shut is shut by a rule."""
    assert attacker.run("knock", *on_wire("tcp", [OPEN], [80])) == [f"{OPEN}:80"]
    assert attacker.run("knock", *on_wire("udp", [OPEN], [80])) == [f"{OPEN}:80"]
    assert {("tcp", OPEN, "80"), ("udp", OPEN, "80")} <= set(internet.visits())


def test_8_sockets_are_of_the_plain_kinds(attacker, host, user):
    outcomes = attacker.run("sockets", host.secret, user=user)
    assert outcomes.pop("needed") == "ok"
    assert {name for name, one in outcomes.items() if one == "ok"} <= {"bind to link"}
    # As from a kernel that does not know them: programs go on without.
    for protocol in ("sctp", "dccp", "mptcp", "audit", "netfilter", "generic"):
        assert outcomes[protocol] == "EPROTONOSUPPORT", protocol
    outside = on_host("sockets", "nobody-listens-here")
    assert outside["packet"] == outside["raw"] == outside["mark"] == outside["netfilter"] == outside["generic"] == "ok"
    assert on_host("abstract", host.secret) == "ok" and host.visitors
    host.visitors.clear()


def test_8_nobody_changes_the_network_or_speaks_for_another(attacker, user):
    outcomes = attacker.run("wire", user=user)
    assert {name: one for name, one in outcomes.items() if one in ("ok", "timeout")} == {}


def test_8_nothing_of_other_namespaces_is_on_the_list_of_sockets(attacker, host, neighbour, user):
    listed = attacker.shell("cat /proc/net/unix /proc/net/tcp /proc/net/tcp6 /proc/net/packet /proc/net/netlink; ss -anp", user=user)
    assert host.secret not in listed and f":{host.port:04X}" not in listed and f":{host.port}" not in listed


def test_8_what_the_host_says_of_its_devices_and_processes_is_not_heard(attacker, user):
    listener = attacker.commands.run("python3 /opt/escape/events.py", user=user, background=True)
    heard = iter(listener)
    assert next(heard)[0] == "listening\n"
    for _ in range(3):
        with contextlib.suppress(OSError):
            pathlib.Path("/sys/class/mem/null/uevent").write_text("change")
        subprocess.run(["true"], check=True)
    assert [json.loads(out) for out, _, _ in heard if out] == [[]]


def everywhere(host):
    """All addresses of the host, as a sandbox may know them."""
    return [address for address in host.addresses() if not address.startswith("fe80")]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_9_no_address_of_the_host_answers(attacker, house, host, protocol):
    ports = [int(house.env[f"ATOLL_{name}_LISTEN"].rsplit(":")[1]) for name in ("API", "EDGE", "ADMIN")]
    gateway = attacker.shell("ip route show default").split()[2]
    hosts = {*everywhere(host), gateway, "localhost", "127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::ffff:127.0.0.1", "host.docker.internal"}
    targets = on_wire(protocol, sorted(hosts - {attacker.sandbox.sandbox_id}), [host.port, 22, *ports])
    assert attacker.run("knock", *targets) == []
    # The same services answer on the host.
    outside = on_host("knock", *on_wire("tcp", OWN, [host.port]))
    assert outside == [] and host.visitors
    host.visitors.clear()


def test_9_control_sockets_are_not_there_or_not_heard(attacker, user):
    paths = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock", "/run/systemd/private", "/run/dbus/system_bus_socket", "/var/lib/atoll/control.sock"]
    found = attacker.shell("ls -d " + " ".join(paths) + "; find / -xdev -type s 2>/dev/null; find /run -type s", user=user)
    sockets = {line for line in found.splitlines() if line.startswith("/") and "No such" not in line}
    assert sockets <= {"/run/atoll/envd.sock"}
    # envd's own, as the node speaks to it.
    said = attacker.shell("curl -sS -m 5 --unix-socket /run/atoll/envd.sock -X POST http://x/init -H 'content-type: application/json' -d '{\"accessToken\":\"mine\"}'; curl -sS -m 5 --unix-socket /run/atoll/envd.sock http://x/host/logs", user=user)
    assert "curl: (" in said and "{" not in said, said
    assert attacker.commands.run("echo still").stdout == "still\n"


def test_9_the_neighbours_envd_and_services_do_not_answer(attacker, neighbour):
    targets = on_wire("tcp", [neighbour.address, f"::ffff:{neighbour.address}"], [49983, 80, 8000, 22])
    assert attacker.run("knock", *targets) == []
    assert attacker.run("knock", *on_wire("udp", [neighbour.address], [80, 8000])) == []
    assert neighbour.sandbox.commands.run(f"python3 - <<'.'\nimport socket; socket.create_connection(('{neighbour.address}', 8000)); print('answers itself')\n.").stdout == "answers itself\n"
    neighbour.sandbox.commands.run(": > visits")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_10_metadata_does_not_answer_by_any_name(attacker, protocol):
    assert attacker.run("knock", *on_wire(protocol, METADATA, [80])) == []


def test_10_metadata_does_not_answer_to_programs_or_by_redirects(attacker, user):
    """Programs read addresses in more ways than one; and what may be reached sends them on."""
    spellings = " ".join(f"http://{name}/latest/meta-data/" for name in METADATA)
    assert "reached" not in attacker.shell(f"for u in {spellings}; do curl -gsS -m 2 $u & done; wait", user=user)
    serve = "import http.server as h\nclass R(h.BaseHTTPRequestHandler):\n  def do_GET(s):\n    s.send_response(302); s.send_header('Location','http://169.254.169.254/latest'); s.end_headers()\nh.HTTPServer(('',8080),R).serve_forever()"
    redirector = subprocess.Popen(["ip", "netns", "exec", NAMESPACE, "python3", "-c", serve], stderr=subprocess.DEVNULL)
    try:
        said = attacker.shell(f"for i in $(seq 50); do curl -s -m 2 -o /dev/null http://{OPEN}:8080/ && break; sleep 0.1; done; curl -sSiL -m 5 http://{OPEN}:8080/", user=user)
    finally:
        redirector.kill()
        redirector.wait()
    assert "302" in said and "reached" not in said


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_11_private_networks_do_not_answer(attacker, internet, protocol):
    targets = on_wire(protocol, [*SHUT, *(f"::ffff:{address}" for address in SHUT), *SHUT_IPV6], PORTS if protocol == "tcp" else [80])
    assert attacker.run("knock", *targets) == []
    internet.assert_quiet()
    # They are there: the host reaches each of them.
    outside = on_host("knock", *on_wire("tcp", [address for address in SHUT if not address.startswith("240")], [80]))
    assert len(outside) == len(SHUT) - 1
    internet.forget()


def test_11_nobody_hears_what_is_called_to_all(attacker, host, neighbour):
    groups = ["224.0.0.1", "224.0.0.251", "239.255.255.250", "255.255.255.255", "10.255.255.255", neighbour.address.rsplit(".", 1)[0] + ".255"]
    attacker.run("knock", *on_wire("multicast", groups, [80, 8000, host.port, 5353]))


def test_11_an_allowed_address_opens_no_other(house, internet):
    """A policy that names private networks opens none of them."""
    sandbox = house.create(network={"allow_out": ["0.0.0.0/0", *(f"{address}/32" for address in SHUT)]})
    try:
        sandbox.files.write("/tmp/kernel.py", (HERE / "inside/kernel.py").read_text())
        sandbox.files.write("/tmp/knock.py", (HERE / "inside/knock.py").read_text())
        targets = " ".join(on_wire("tcp", [*SHUT, BEHIND], [80]))
        assert json.loads(sandbox.commands.run(f"python3 /tmp/knock.py {targets}").stdout) == [f"{BEHIND}:80"]
        assert ("tcp", BEHIND, "80") in internet.visits()
        assert re.search(r"\d+\.\d+", sandbox.commands.run("hostname -I").stdout)
    finally:
        sandbox.kill()
