"""Names are asked of the resolvers that the host's own /etc/resolv.conf names."""

import os
import pathlib
import shlex
import subprocess
import sys

import pytest
from house import ATOLL, House

RESOLVER = pathlib.Path(__file__).parent.parent / "tls" / "resolver.py"
ADDRESS, DOMAIN = "127.0.0.9", "names.test"


@pytest.fixture
def house(tmp_path):
    """Started where another /etc/resolv.conf is in place, which names a resolver of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("the container runtime needs root")
    named = tmp_path / "resolv.conf"
    named.write_text(f"nameserver {ADDRESS}\n")
    cover = "for file in $(readlink -f /etc/resolv.conf) /run/systemd/resolve/resolv.conf; do [ ! -e $file ] || mount --bind %s $file || exit; done; exec %s \"$@\""
    program = tmp_path / "atoll"
    program.write_text(f"#!/bin/sh\nexec unshare --mount --propagation private sh -c {shlex.quote(cover % (named, shlex.quote(ATOLL)))} sh \"$@\"\n")
    program.chmod(0o755)
    resolver = subprocess.Popen([sys.executable, RESOLVER, ADDRESS, DOMAIN])
    house = House(program=str(program))
    try:
        yield house.start()
    finally:
        house.down()
        resolver.kill()
        resolver.wait()


def test_names_are_found_by_the_hosts_resolvers(house):
    sandbox = house.create()
    look = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"
    assert sandbox.commands.run(f"python3 -c '{look}' some.{DOMAIN}").stdout == "127.0.0.1\n"
    unknown = sandbox.commands.run(f"python3 -c '{look}' other.example 2>&1 || true").stdout
    assert "gaierror" in unknown and "Name or service not known" in unknown
    assert "nameserver 169.254." in sandbox.files.read("/etc/resolv.conf")
