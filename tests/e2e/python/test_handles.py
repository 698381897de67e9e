"""What is held of a running command, terminal or watch, in both SDKs."""

import pytest
from conftest import eventually, got, until
from e2b import CommandExitException, FilesystemEventType, PtySize, Sandbox


async def test_a_handle_writes_closes_and_waits(make):
    sandbox = await make()
    cat = await got(sandbox.commands.run("cat", background=True, stdin=True))
    await got(cat.send_stdin("text "))
    await got(cat.send_stdin(b"bytes"))
    await got(cat.close_stdin())
    ended = await got(cat.wait())
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "text bytes", "")


async def test_a_handle_kills_its_command(make):
    sandbox = await make()
    sleeper = await got(sandbox.commands.run("exec sleep 300", background=True))
    assert await got(sleeper.kill()) is True
    with pytest.raises(CommandExitException) as ended:
        await got(sleeper.wait())
    assert "killed" in ended.value.error
    assert await got(sandbox.commands.kill(sleeper.pid)) is False


async def test_a_command_outlives_the_handle_that_lets_go(make):
    sandbox = await make()
    command = await got(sandbox.commands.run("read x; echo got $x", background=True, stdin=True))
    await got(command.disconnect())
    assert command.pid in [process.pid for process in await got(sandbox.commands.list())]
    joined = await got(sandbox.commands.connect(command.pid))
    await got(joined.send_stdin("it\n"))
    assert (await got(joined.wait())).stdout == "got it\n"
    other = await got(sandbox.commands.run("sleep 300", background=True))
    assert await got(sandbox.commands.kill(other.pid)) is True


def test_a_handle_is_its_output_one_piece_after_another(sandbox):
    command = sandbox.commands.run("echo out; sleep 0.1; echo err >&2", background=True)
    assert [(out, err) for out, err, _ in command] == [("out\n", None), (None, "err\n")]


async def test_an_async_handle_tells_what_it_has_so_far(async_sandbox):
    command = await async_sandbox.commands.run("echo out; echo err >&2; read x; exit 3", background=True, stdin=True)

    async def seen():
        return (command.stdout, command.stderr) == ("out\n", "err\n")

    await until(seen, "the output to be told")
    assert command.exit_code is None and command.error is None
    await command.send_stdin("\n")
    with pytest.raises(CommandExitException):
        await command.wait()
    assert command.exit_code == 3 and command.error == "exit status 3"


async def test_an_async_terminal_is_joined_and_typed_into_by_stream(async_sandbox):
    pty, shown = async_sandbox.pty, []
    first = await pty.create(PtySize(rows=24, cols=80), on_data=lambda data: None, envs={"GREETING": "hi"}, cwd="/tmp")
    await first.disconnect()
    joined = await pty.connect(first.pid, on_data=lambda data: shown.append(bytes(data)))
    async with pty.stream_input(first.pid) as keys:
        await keys.send("echo $GREETING-")
        await keys.send(b"$((40+2))-$(pwd)\n")

        async def is_shown():
            return b"hi-42-/tmp" in b"".join(shown)

        await until(is_shown, "the terminal to answer")
    assert await pty.kill(first.pid) is True
    with pytest.raises(CommandExitException):
        await joined.wait()


async def test_an_async_stream_of_input_is_closed_by_hand(async_sandbox):
    cat = await async_sandbox.commands.run("cat", background=True, stdin=True)
    stdin = async_sandbox.commands.stream_input(cat.pid)
    for part in ("one ", b"two ", "three"):
        await stdin.send(part)
    await stdin.close()
    await cat.close_stdin()
    assert (await cat.wait()).stdout == "one two three"


def test_a_watch_may_be_of_a_network_mount(sandbox):
    sandbox.files.make_dir("/tmp/mounted")
    watch = sandbox.files.watch_dir("/tmp/mounted", allow_network_mounts=True)
    sandbox.files.write("/tmp/mounted/a", "1")
    eventually(lambda: any(event.name == "a" for event in watch.get_new_events()), "the file to be seen")
    watch.stop()


async def test_an_async_watch_tells_entries_and_its_end(async_sandbox):
    events, ends = [], []
    files = async_sandbox.files
    await files.make_dir("/tmp/w/sub")
    watch = await files.watch_dir(
        "/tmp/w", on_event=events.append, on_exit=ends.append, recursive=True, include_entry=True, allow_network_mounts=True
    )
    await files.write("/tmp/w/sub/x", "12345")

    async def seen():
        return [event for event in events if event.type == FilesystemEventType.WRITE and event.name == "sub/x" and event.entry]

    assert (await until(seen, "the file to be seen"))[-1].entry.path == "/tmp/w/sub/x"
    await watch.stop()

    async def has_ended():
        return ends == [None]

    await until(has_ended, "the watch to end")
