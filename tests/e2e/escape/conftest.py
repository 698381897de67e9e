"""One house, one attacker, canaries around it. After each attempt all of them are as they were."""

import os
import shlex

import pytest
from attacker import Attacker
from canary import Host, Internet, Neighbour, leave_network
from house import ATOLL, House


@pytest.fixture(scope="session")
def host():
    if os.geteuid() != 0:
        pytest.skip("the container runtime needs root")
    leave_network()
    host = Host()
    yield host
    host.close()


@pytest.fixture(scope="session")
def house(host, internet):
    # Whoever starts it has a directory of the host open, and forgot to close it (CVE-2024-21626).
    careless = host.dir.parent / f"{host.dir.name}-start"
    careless.write_text(f"#!/bin/sh\nexec 9<{host.dir} 8<{host.file}\nexec {shlex.quote(ATOLL)} \"$@\"\n")
    careless.chmod(0o755)
    house = House(program=str(careless))
    house.start()
    yield house
    house.down()
    careless.unlink()


@pytest.fixture(scope="session")
def internet(host):
    internet = Internet()
    yield internet
    internet.close()


@pytest.fixture(scope="session")
def neighbour(house):
    return Neighbour(house.create(timeout=3600))


@pytest.fixture(scope="module")
def attacker(house):
    attacker = Attacker(house)
    yield attacker
    attacker.sandbox.kill()


@pytest.fixture
def fresh(house):
    """An attacker of the test's own, for what leaves nothing of a sandbox."""
    attacker = Attacker(house)
    yield attacker
    attacker.sandbox.kill()


@pytest.fixture(params=["user", "root"])
def user(request):
    return request.param


@pytest.fixture(autouse=True)
def canaries(host, internet, neighbour):
    yield
    host.assert_untouched()
    internet.assert_quiet()
    neighbour.assert_untouched()
