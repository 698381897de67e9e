"""Houses that are killed."""

import os
import pathlib
import sys

import pytest

for beside in ("..", "."):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.joinpath(beside).resolve()))

from house import House  # noqa: E402
from machine import Machine  # noqa: E402
from stage import Stages  # noqa: E402


class Shared:
    """A house for the tests of a module, one after the other, until one fails in it. Between them it is empty."""

    def __init__(self):
        self.house = None

    def take(self):
        if self.house is None:
            self.house = House()
            self.machine = Machine(self.house)
            self.house.start()
        return self.house

    def give_back(self):
        for name in self.house.list():
            self.house.connect(name, on_resume="reboot").kill()
        self.machine.assert_accounted([], "the test")

    def drop(self):
        """What failed is shown, and ended without more questions."""
        house, self.house = self.house, None
        print(house.log())
        house.down()

    def close(self):
        if self.house:
            self.house.down()
            self.machine.assert_clean("atoll down")


@pytest.fixture(scope="module")
def shared():
    if os.geteuid() != 0:
        pytest.skip("the container runtime needs root")
    shared = Shared()
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def stages():
    stages = Stages()
    yield stages
    stages.close()


@pytest.fixture
def bare(stages):
    """Nothing is prepared: each create walks the whole way."""
    return stages.take(0)


@pytest.fixture
def pooled(stages):
    return stages.take(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.has_failed = report.failed
    return report


@pytest.fixture
def house(request, shared):
    yield shared.take()
    if getattr(request.node, "has_failed", True):
        shared.drop()
    else:
        shared.give_back()
