"""Houses that are killed."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from house import House  # noqa: E402
from machine import Machine  # noqa: E402


@pytest.fixture
def house():
    if os.geteuid() != 0:
        pytest.skip("the container runtime needs root")
    house = House()
    machine = Machine(house)
    house.start()
    yield house
    house.down()
    machine.assert_clean("atoll down")
