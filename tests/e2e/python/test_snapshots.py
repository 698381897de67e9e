"""Snapshots, forks and pauses that last, with either SDK."""

import uuid

import httpx
import pytest
from conftest import got, until
from e2b import NotFoundException, Sandbox
from houses import call, forget

COUNTER = "python3 -u -c 'import itertools,time\nfor n in itertools.count():\n  open(\"/tmp/count\",\"w\").write(str(n)); time.sleep(0.02)'"


def keeps_memory():
    """Whether the node copies the memory of processes."""
    return all(node["capabilities"]["durableMemory"] for node in call("GET", "/nodes"))


@pytest.fixture
def name(sdk):
    name = f"s-{uuid.uuid4().hex[:12]}"
    yield name
    forget(name)


async def output(sandbox, command, **options):
    return (await got(sandbox.commands.run(command, **options))).stdout.strip()


async def listed(paginator):
    found = []
    while paginator.has_next:
        found += await got(paginator.next_items())
    return found


async def test_a_snapshot_is_a_template_that_outlives_its_sandbox(sdk, make):
    sandbox = await make(metadata={"a": "b"})
    await got(sandbox.files.write("/home/user/kept.txt", "kept\n"))
    await got(sandbox.commands.run("sudo rm /etc/motd -f; echo root | sudo tee /etc/made"))
    snapshot = await got(sandbox.create_snapshot())
    assert snapshot.snapshot_id.endswith(":default") and snapshot.names == []
    await got(sandbox.files.write("/home/user/later.txt", "later"))
    assert await got(sandbox.kill())
    for _ in range(2):
        copy = await make(snapshot.snapshot_id)
        assert copy.sandbox_id != sandbox.sandbox_id
        assert await output(copy, "cat kept.txt /etc/made; ls later.txt 2>/dev/null || echo not there") == "kept\nroot\nnot there"
        assert await output(copy, "hostname") == copy.sandbox_id
    seen = await listed(sdk.list_snapshots(sandbox_id=sandbox.sandbox_id))
    assert [one.snapshot_id for one in seen] == [snapshot.snapshot_id]
    with pytest.raises(Exception, match="running"):
        await got(sdk.delete_snapshot(snapshot.snapshot_id))


async def test_a_snapshot_is_deleted_once(sdk, make):
    sandbox = await make()
    snapshot = await got(sandbox.create_snapshot())
    assert await got(sdk.delete_snapshot(snapshot.snapshot_id)) is True
    assert await got(sdk.delete_snapshot(snapshot.snapshot_id)) is False
    with pytest.raises(Exception, match="404"):
        await make(snapshot.snapshot_id)


async def test_a_named_snapshot_has_tags(sdk, make, name):
    sandbox = await make()
    await got(sandbox.files.write("/tmp/which", "one"))
    first = await got(sandbox.create_snapshot(name=f"{name}:v1"))
    await got(sandbox.files.write("/tmp/which", "two"))
    second = await got(sdk.create_snapshot(sandbox.sandbox_id, name=name))
    assert first.snapshot_id.endswith(f"/{name}:v1") and second.snapshot_id.endswith(f"/{name}:default")
    assert any(name in one for one in second.names)
    assert await output(await make(first.snapshot_id), "cat /tmp/which") == "one"
    assert await output(await make(second.snapshot_id), "cat /tmp/which") == "two"
    assert await output(await make(name), "cat /tmp/which") == "two"
    assert len(await listed(sdk.list_snapshots(name=name))) == 2
    assert [one.snapshot_id for one in await listed(sdk.list_snapshots(name=f"{name}:v1"))] == [first.snapshot_id]
    assert await listed(sandbox.list_snapshots(name="nobody-has-this")) == []


async def test_snapshots_are_paged(sdk, make):
    sandbox = await make()
    made = {(await got(sandbox.create_snapshot())).snapshot_id for _ in range(3)}
    paginator, pages = sandbox.list_snapshots(limit=2), []
    while paginator.has_next:
        pages.append([one.snapshot_id for one in await got(paginator.next_items())])
    assert [len(page) for page in pages] == [2, 1]
    assert {one for page in pages for one in page} == made
    for snapshot in made:
        assert await got(sdk.delete_snapshot(snapshot))


async def test_forks_go_their_own_ways(sdk, make):
    sandbox = await make(metadata={"who": "parent"}, envs={"GIVEN": "yes"})
    await got(sandbox.files.write("/tmp/seed", "seed\n"))
    before = (await got(sandbox.get_info())).end_at
    forks = await got(sandbox.fork(count=3, timeout=60))
    try:
        assert len({fork.sandbox_id for fork in forks} | {sandbox.sandbox_id}) == 4
        for number, fork in enumerate(forks):
            assert await output(fork, "cat /tmp/seed; hostname; echo $GIVEN") == f"seed\n{fork.sandbox_id}\nyes"
            await got(fork.files.write("/tmp/seed", str(number)))
            assert (await got(fork.get_info())).metadata == {"who": "parent"}
        assert await output(sandbox, "cat /tmp/seed") == "seed"
        machines = {await output(one, "cat /etc/machine-id") for one in [sandbox, *forks]}
        boots = {await output(one, "cat /proc/sys/kernel/random/boot_id") for one in [sandbox, *forks]}
        assert len(machines) == len(boots) == 4
        assert (await got(sandbox.get_info())).end_at == before
        # The source's token opens the source, and no copy.
        for one, status in [(sandbox, 200), (forks[0], 401)]:
            headers = {"E2b-Sandbox-Id": one.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token_of(sandbox)}
            assert httpx.get(f"{one.envd_api_url}/files", params={"path": "/tmp/seed", "username": "user"}, headers=headers).status_code == status
    finally:
        for fork in forks:
            await got(fork.kill())


def token_of(sandbox):
    return call("GET", f"/sandboxes/{sandbox.sandbox_id}")["envdAccessToken"]


async def test_a_fork_by_id_of_a_paused_or_unknown_sandbox_is_refused(sdk, make):
    sandbox = await make()
    for fork in await got(sdk.fork(sandbox.sandbox_id)):
        await got(fork.kill())
    await got(sandbox.pause())
    with pytest.raises(Exception, match="409.*paused.*resume"):
        await got(sandbox.fork())
    with pytest.raises(NotFoundException):
        await got(sdk.fork("i" + "0" * 20))


async def test_processes_go_on_in_snapshots_and_forks(sdk, make):
    if not keeps_memory():
        pytest.skip("NOT RUN: this node copies no memory (no CRIU that passes its probe)")
    sandbox = await make()
    await got(sandbox.commands.run(COUNTER, background=True))
    await until(lambda: counted(sandbox), "the counter counts")
    snapshot = await got(sandbox.create_snapshot())
    forks = await got(sandbox.fork(count=2))
    try:
        for copy in [await make(snapshot.snapshot_id), *forks]:
            first = await until(lambda copy=copy: counted(copy), "a copy has counted")
            await until(lambda copy=copy, first=first: counts_on(copy, first), "a copy counts on")
            assert any("itertools" in " ".join(process.args) for process in await got(copy.commands.list()))
        first = await until(lambda: counted(sandbox), "the source has counted")
        await until(lambda: counts_on(sandbox, first), "the source counts on")
    finally:
        for fork in forks:
            await got(fork.kill())


async def counted(sandbox):
    """How far the counter is; `None` where it is not there, or is being written in this moment."""
    text = await output(sandbox, "cat /tmp/count 2>/dev/null || true")
    return int(text) + 1 if text.isdigit() else None


async def counts_on(sandbox, first):
    now = await counted(sandbox)
    return now is not None and now > first


async def test_a_snapshot_of_the_disk_alone_boots(sdk, make):
    sandbox = await make()
    await got(sandbox.commands.run("sleep 1000", background=True))
    await got(sandbox.files.write("/tmp/kept", "kept\n"))
    snapshot = await got(sandbox.create_snapshot(mode="filesystem"))
    copy = await make(snapshot.snapshot_id)
    assert await output(copy, "cat /tmp/kept; pgrep -x sleep || echo none") == "kept\nnone"


async def test_a_pause_says_how_its_memory_is_kept(sdk, make):
    sandbox = await make()
    await got(sandbox.commands.run(COUNTER, background=True))
    await until(lambda: counted(sandbox), "the counter counts")
    await got(sandbox.pause())
    told = call("GET", f"/sandboxes/{sandbox.sandbox_id}")
    assert told["memory"] == ("durable" if keeps_memory() else "volatile")
    again = await got(sdk.connect(sandbox.sandbox_id))
    first = await until(lambda: counted(again), "the counter has counted")
    await until(lambda: counts_on(again, first), "the counter goes on")


async def test_no_write_is_lost_over_many_pauses(sdk, make):
    if sdk is not Sandbox:
        pytest.skip("the same calls as with the sync SDK: run once")
    sandbox = await make(timeout=600)
    for cycle in range(25):
        await got(sandbox.commands.run(f"echo {cycle} >> /home/user/log && sync"))
        await got(sandbox.pause())
        sandbox = await got(sdk.connect(sandbox.sandbox_id, timeout=600))
    assert await output(sandbox, "wc -l < /home/user/log; sort -nc /home/user/log && echo sorted") == "25\nsorted"
