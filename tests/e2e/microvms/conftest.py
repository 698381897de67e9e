"""Sandboxes that are virtual machines: what is theirs alone. Where the house is comes from the environment, as for every client."""

import pathlib
import sys

import pytest
from e2b import Sandbox

for beside in (".", "../crash"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.joinpath(beside).resolve()))


@pytest.fixture
def fresh():
    """Makes sandboxes and kills them after the test."""
    made = []

    def create(*args, **kwargs):
        kwargs.setdefault("timeout", 300)
        sandbox = Sandbox.create(*args, **kwargs)
        made.append(sandbox)
        return sandbox

    yield create
    for sandbox in made:
        sandbox.kill()
