"""The official Python SDK against a running Atoll, as its users drive it.

Where the house is comes from E2B_API_URL, E2B_SANDBOX_URL (or E2B_DOMAIN) and E2B_API_KEY alone.
"""

import asyncio
import inspect
import os
import pathlib
import sys
import time

import pytest
import pytest_asyncio
from e2b import AsyncSandbox, Sandbox
from houses import call

# What several rings share.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

#: How long a condition may take to become true before a test calls it false.
PATIENCE_SECONDS = 60.0


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


async def got(answer):
    """What a call of either SDK answers: the async one is waited for, the sync one has answered already."""
    return await answer if inspect.isawaitable(answer) else answer


async def until(condition, what="the condition"):
    """`eventually` for a `condition()` of either SDK."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                found = await got(condition())
                if found:
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{what} did not become true within {PATIENCE_SECONDS} s") from None


def pytest_runtest_setup(item):
    for what in (mark.args[0] for mark in item.iter_markers("needs")):
        for node in call("GET", "/nodes"):
            can = node["capabilities"] | {
                "sharedKernel": not node["capabilities"]["ownKernel"],
                # Commands that speak to the daemon of this machine, which a fleet has not got.
                "ownDaemon": "ATOLL_CLUSTER" not in os.environ,
            }
            if not can[what]:
                pytest.skip(f"the {node['runtime']} runtime has no {what}")


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


@pytest.fixture(params=[Sandbox, AsyncSandbox], ids=["sync", "async"])
def sdk(request):
    """Each of the two SDKs in turn, for tests that `got` makes the same."""
    return request.param


@pytest_asyncio.fixture
async def make(sdk):
    """Makes sandboxes with either SDK and kills them after the test."""
    made = []

    async def create(*args, **kwargs):
        kwargs.setdefault("timeout", 120)
        sandbox = await got(sdk.create(*args, **kwargs))
        made.append(sandbox.sandbox_id)
        return sandbox

    yield create
    for name in made:
        await got(sdk.kill(name))


@pytest_asyncio.fixture
async def async_sandbox():
    sandbox = await AsyncSandbox.create(timeout=120)
    yield sandbox
    await sandbox.kill()
