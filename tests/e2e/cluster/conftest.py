"""A fleet as its users see it: several APIs, edges and nodes, of which any may die.

Where it is comes from ATOLL_CLUSTER, which `atoll dev cluster` writes, and from E2B_API_KEY.
"""

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from fleet import Fleet  # noqa: E402


@pytest.fixture(scope="session")
def fleet():
    return Fleet()


@pytest.fixture
def fresh(fleet):
    """Makes sandboxes and kills them after the test."""
    made = []

    def create(*args, **kwargs):
        kwargs.setdefault("timeout", 300)
        sandbox = fleet.create(*args, **kwargs)
        made.append(sandbox.sandbox_id)
        return sandbox

    yield create
    fleet.settle()
    for name in made:
        fleet.kill(name)


@pytest.fixture(autouse=True)
def whole(fleet):
    """Every test begins and ends with a fleet of which nothing is missing."""
    fleet.settle()
    yield
    fleet.settle()
