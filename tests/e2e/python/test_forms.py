"""Every call that has more than one form, in both SDKs: on the object, by id, as a block, through a bound client."""

import datetime
import os
import uuid

import pytest
from conftest import got, until
from e2b import E2B, AsyncSandbox, NotFoundException, Sandbox, SandboxQuery, SandboxState

HOUR = datetime.timedelta(hours=1)


def now():
    return datetime.datetime.now(datetime.timezone.utc)


async def ids(paginator):
    found = []
    while paginator.has_next:
        found += [info.sandbox_id for info in await got(paginator.next_items())]
    return found


async def test_what_an_object_can_its_id_can(sdk, make):
    name = (await make(metadata={"by": "id"})).sandbox_id
    await got(sdk.set_timeout(name, 900))
    info = await got(sdk.get_info(name))
    assert (info.metadata, info.state) == ({"by": "id"}, SandboxState.RUNNING)
    assert info.end_at - now() > datetime.timedelta(seconds=800)
    await got(sdk.update_network(name, {"deny_out": ["192.0.2.0/24"]}))
    assert list((await got(sdk.get_info(name))).network["deny_out"]) == ["192.0.2.0/24"]
    assert await got(sdk.pause(name)) is True
    assert await got(sdk.pause(name)) is False
    assert (await got(sdk.get_info(name))).state == SandboxState.PAUSED
    again = await got(sdk.connect(name))
    assert await got(again.is_running())
    assert await got(sdk.beta_pause(name)) is True
    assert await got(sdk.kill(name)) is True
    assert await got(sdk.kill(name)) is False
    for gone in (
        lambda: sdk.get_info(name),
        lambda: sdk.set_timeout(name, 9),
        lambda: sdk.update_network(name, {}),
        lambda: sdk.pause(name),
        lambda: sdk.connect(name),
    ):
        with pytest.raises(NotFoundException):
            await got(gone())


async def test_metrics_are_cut_to_a_time(sdk, make):
    sandbox = await make()
    first = (await until(sandbox.get_metrics, "metrics to appear"))[0].timestamp
    assert first in [metric.timestamp for metric in await got(sandbox.get_metrics(start=first - HOUR, end=first + HOUR))]
    assert await got(sandbox.get_metrics(end=first - HOUR)) == []
    assert await got(sandbox.get_metrics(start=first + HOUR)) == []
    by_id = await got(sdk.get_metrics(sandbox.sandbox_id, start=first - HOUR, end=first + HOUR))
    assert first in [metric.timestamp for metric in by_id]


async def test_a_list_goes_on_from_a_token(sdk, make):
    query = SandboxQuery(metadata={"run": str(uuid.uuid4())})
    made = [(await make(metadata=query.metadata)).sandbox_id for _ in range(3)]
    pages = sdk.list(query=query, limit=1, order="asc")
    assert [info.sandbox_id for info in await got(pages.next_items())] == made[:1]
    assert pages.has_next and pages.next_token
    assert await ids(sdk.list(query=query, order="asc", next_token=pages.next_token)) == made[1:]
    started = (await got(sdk.get_info(made[1]))).started_at
    narrow = SandboxQuery(metadata=query.metadata, state=[SandboxState.RUNNING], started_after=started, template="base")
    assert await ids(sdk.list(query=narrow)) == [made[2], made[1]]


async def test_a_paused_object_connects_itself(make):
    sandbox = await make()
    command = await got(sandbox.commands.run("sleep 300", background=True))
    await got(sandbox.files.write("/home/user/kept", "disk"))
    assert await got(sandbox.beta_pause()) is True
    assert not await got(sandbox.is_running())
    again = await got(sandbox.connect(timeout=300))
    assert again.sandbox_id == sandbox.sandbox_id
    assert command.pid in [process.pid for process in await got(sandbox.commands.list())]
    assert await got(sandbox.pause(strict=True)) is True
    await got(sandbox.connect(on_resume="reboot"))
    assert command.pid not in [process.pid for process in await got(sandbox.commands.list())]
    command = await got(sandbox.commands.run("sleep 300", background=True))
    assert await got(sandbox.pause(mode="filesystem")) is True
    await got(sandbox.connect())
    assert command.pid not in [process.pid for process in await got(sandbox.commands.list())]
    assert await got(sandbox.files.read("/home/user/kept")) == "disk"


async def test_the_end_of_time_does_what_the_lifecycle_says(sdk, make):
    sandbox = await make(timeout=2, lifecycle={"on_timeout": "pause", "auto_resume": True})
    lifecycle = (await got(sandbox.get_info())).lifecycle
    assert (lifecycle["on_timeout"], lifecycle["auto_resume"]) == ("pause", True)
    boot = await got(sandbox.files.read("/proc/sys/kernel/random/boot_id"))

    async def is_paused():
        return (await got(sdk.get_info(sandbox.sandbox_id))).state == SandboxState.PAUSED

    await until(is_paused, "the sandbox to pause")
    assert await got(sandbox.files.read("/proc/sys/kernel/random/boot_id")) == boot


def test_a_block_ends_its_sandbox():
    with Sandbox.create(timeout=60) as sandbox:
        assert sandbox.is_running()
    assert not sandbox.is_running()


async def test_an_async_block_ends_its_sandbox():
    async with await AsyncSandbox.create(timeout=60) as sandbox:
        assert await sandbox.is_running()
    assert not await sandbox.is_running()


async def test_a_client_with_a_key_of_its_own_needs_no_environment(sdk, monkeypatch):
    client = E2B(api_key=os.environ["E2B_API_KEY"])
    monkeypatch.delenv("E2B_API_KEY")
    bound = client.Sandbox if sdk is Sandbox else client.AsyncSandbox
    sandbox = await got(bound.create(timeout=60))
    try:
        assert (await got(sandbox.commands.run("echo bound"))).stdout == "bound\n"
        assert sandbox.sandbox_id in await ids(bound.list())
    finally:
        assert await got(sandbox.kill()) is True


async def test_addresses_are_told(make):
    sandbox = await make()
    domain = os.environ.get("E2B_DOMAIN", "e2b.app")
    assert sandbox.get_host(8000) == f"8000-{sandbox.sandbox_id}.{domain}"
    assert sandbox.get_mcp_url() == f"https://50005-{sandbox.sandbox_id}.{domain}/mcp"


async def test_the_token_of_a_gateway_is_read_as_root(make):
    sandbox = await make()
    with pytest.raises(NotFoundException, match="mcp-gateway"):
        await got(sandbox.get_mcp_token())
    await got(sandbox.files.write("/etc/mcp-gateway/.token", "the-token", user="root"))
    await got(sandbox.commands.run("chmod 600 /etc/mcp-gateway/.token", user="root"))
    assert await got(sandbox.get_mcp_token()) == "the-token"
