"""The same through AsyncSandbox."""

import asyncio
import io

import httpx
import pytest
from e2b import AsyncSandbox, CommandExitException, FilesystemEventType, NotFoundException, PtySize, SandboxQuery, SandboxState
from ports import tls_context

PATIENCE_SECONDS = 20


async def eventually(condition):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_lifecycle():
    sandbox = await AsyncSandbox.create(timeout=60, metadata={"async": "yes"})
    try:
        assert await sandbox.is_running()
        assert (await sandbox.get_info()).metadata == {"async": "yes"}
        await sandbox.set_timeout(120)
        paginator = AsyncSandbox.list(query=SandboxQuery(metadata={"async": "yes"}))
        assert sandbox.sandbox_id in [info.sandbox_id for info in await paginator.next_items()]
        assert isinstance(await sandbox.get_metrics(), list)
        await sandbox.update_network({"deny_out": ["192.0.2.0/24"]})
        assert await sandbox.pause() is True
        assert (await AsyncSandbox.get_info(sandbox.sandbox_id)).state == SandboxState.PAUSED
        again = await AsyncSandbox.connect(sandbox.sandbox_id)
        assert await again.is_running()
    finally:
        assert await sandbox.kill() is True
    with pytest.raises(NotFoundException):
        await sandbox.get_info()


async def test_commands(async_sandbox):
    commands = async_sandbox.commands
    assert (await commands.run("echo hi")).stdout == "hi\n"
    with pytest.raises(CommandExitException):
        await commands.run("exit 2")
    seen = []
    await commands.run("echo a; echo b >&2", on_stdout=lambda t: seen.append(t), on_stderr=lambda t: seen.append(t))
    assert sorted(seen) == ["a\n", "b\n"]
    background = await commands.run("read x; echo got $x", background=True, stdin=True)
    assert background.pid in [process.pid for process in await commands.list()]
    await commands.send_stdin(background.pid, "it\n")
    assert (await background.wait()).stdout == "got it\n"
    cat = await commands.run("cat", background=True, stdin=True)
    async with commands.stream_input(cat.pid) as stdin:
        await stdin.send("streamed")
    await commands.close_stdin(cat.pid)
    assert (await cat.wait()).stdout == "streamed"
    sleeper = await commands.run("sleep 100", background=True)
    joined = await commands.connect(sleeper.pid)
    assert await sleeper.kill() is True
    with pytest.raises(CommandExitException):
        await joined.wait()


async def test_fifty_commands_at_once(async_sandbox):
    results = await asyncio.gather(*(async_sandbox.commands.run(f"echo {i}") for i in range(50)))
    assert [result.stdout for result in results] == [f"{i}\n" for i in range(50)]


async def test_files(async_sandbox):
    files = async_sandbox.files
    await files.write("/tmp/a", "x")
    assert await files.read("/tmp/a") == "x"
    assert bytes(await files.read("/tmp/a", format="bytes")) == b"x"
    assert b"".join([chunk async for chunk in await files.read("/tmp/a", format="stream")]) == b"x"
    await files.write_files([{"path": "/tmp/m/1", "data": "1"}, {"path": "/tmp/m/2", "data": b"2"}])
    assert [entry.name for entry in await files.list("/tmp/m")] == ["1", "2"]
    assert await files.make_dir("/tmp/n") is True
    assert await files.exists("/tmp/n")
    assert (await files.rename("/tmp/m/1", "/tmp/n/1")).path == "/tmp/n/1"
    assert (await files.get_info("/tmp/n/1")).size == 1
    await files.remove("/tmp/n")
    assert not await files.exists("/tmp/n")


async def test_files_travel_compressed_raw_and_with_metadata(async_sandbox):
    files, text = async_sandbox.files, "compress me " * 10_000

    async def pieces():
        yield b"one "
        yield b"two"

    await files.write("/tmp/z", text, gzip=True, metadata={"author": "ann"})
    assert await files.read("/tmp/z", gzip=True) == await files.read("/tmp/z") == text
    assert (await files.get_info("/tmp/z")).metadata == {"author": "ann"}
    await files.write("/tmp/z", io.BytesIO(b"raw"), use_octet_stream=True)
    assert (await files.get_info("/tmp/z")).metadata in (None, {})
    assert await files.read("/tmp/z") == "raw"
    await files.write("/tmp/z", pieces())
    assert await files.read("/tmp/z") == "one two"


async def test_signed_urls_need_no_header(async_sandbox):
    await async_sandbox.files.write("/tmp/signed +.txt", "by url")
    async with httpx.AsyncClient(verify=tls_context() or True) as http:
        assert (await http.get(async_sandbox.download_url("/tmp/signed +.txt"))).text == "by url"
        expired = async_sandbox.download_url("/tmp/signed +.txt", use_signature_expiration=-60)
        assert (await http.get(expired)).status_code == 401
        url = async_sandbox.upload_url("/tmp/up.txt", use_signature_expiration=60)
        assert (await http.post(url, files={"file": ("up.txt", b"uploaded")})).status_code == 200
    assert await async_sandbox.files.read("/tmp/up.txt") == "uploaded"


async def test_a_watch_streams(async_sandbox):
    events = []
    handle = await async_sandbox.files.watch_dir("/home/user", on_event=events.append)
    await async_sandbox.files.write("/home/user/new", "x")

    async def seen():
        return any(event.type == FilesystemEventType.CREATE and event.name == "new" for event in events)

    await eventually(seen)
    await handle.stop()


async def test_a_terminal(async_sandbox):
    shown = []

    async def show(data):
        shown.append(bytes(data))

    terminal = await async_sandbox.pty.create(PtySize(rows=10, cols=40), on_data=show)
    await async_sandbox.pty.resize(terminal.pid, PtySize(rows=20, cols=50))
    await async_sandbox.pty.send_stdin(terminal.pid, b"stty size; exit 4\n")
    with pytest.raises(CommandExitException) as ended:
        await terminal.wait()
    assert ended.value.exit_code == 4
    assert b"20 50" in b"".join(shown)
    assert await async_sandbox.pty.kill(terminal.pid) is False


async def test_many_sandboxes_at_once():
    made = await asyncio.gather(*(AsyncSandbox.create(timeout=60) for _ in range(20)))
    try:
        results = await asyncio.gather(*(sandbox.commands.run("hostname") for sandbox in made))
        assert len({result.stdout for result in results}) == 20
    finally:
        await asyncio.gather(*(sandbox.kill() for sandbox in made))
