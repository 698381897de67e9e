"""The official Python SDK against a running Atoll, as its users drive it.

Where the house is comes from E2B_API_URL, E2B_SANDBOX_URL (or E2B_DOMAIN) and E2B_API_KEY alone.
"""

import time

import pytest
import pytest_asyncio
from e2b import AsyncSandbox, Sandbox

#: How long a condition may take to become true before a test calls it false.
PATIENCE_SECONDS = 20.0


def eventually(condition, what="the condition"):
    """Waits until `condition()` is truthy and returns what it returned."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not become true within {PATIENCE_SECONDS} s")
        time.sleep(0.05)


@pytest.fixture
def fresh():
    """Makes sandboxes and kills them after the test."""
    made = []

    def create(*args, **kwargs):
        kwargs.setdefault("timeout", 120)
        sandbox = Sandbox.create(*args, **kwargs)
        made.append(sandbox)
        return sandbox

    yield create
    for sandbox in made:
        sandbox.kill()


@pytest.fixture(scope="module")
def sandbox():
    """One sandbox for the tests of a module that leave it as they found it."""
    sandbox = Sandbox.create(timeout=600)
    yield sandbox
    sandbox.kill()


@pytest_asyncio.fixture
async def async_sandbox():
    sandbox = await AsyncSandbox.create(timeout=120)
    yield sandbox
    await sandbox.kill()
