"""Houses with settings of their own: where traces go, what teams may have."""

import os
import pathlib
import sys

import pytest

for beside in (".", "../crash"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.joinpath(beside).resolve()))

from collector import Collector  # noqa: E402
from house import ATOLL, House  # noqa: E402


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def house_with():
    """Starts a house whose environment and configuration file say more."""
    if os.geteuid() != 0:
        pytest.skip("the container runtime needs root")
    houses = []

    def start(file="", program=ATOLL, **env):
        house = House(program)
        houses.append(house)
        house.env |= env
        (house.dir / "atoll.toml").write_text(file)
        return house.start()

    yield start
    for house in houses:
        house.down()
