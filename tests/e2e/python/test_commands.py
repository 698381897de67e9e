"""Commands: output, exit codes, input, users, deadlines."""

import time

import pytest
from conftest import eventually
from e2b import (
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    TimeoutException,
)


def test_output_and_exit_code_come_back(sandbox):
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "out\n", "err\n")
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("echo before; exit 7")
    assert (failed.value.exit_code, failed.value.stdout) == (7, "before\n")


def test_output_is_streamed_as_it_comes(sandbox):
    seen = []
    sandbox.commands.run(
        "for i in 1 2 3; do echo $i; sleep 0.1; done; echo e >&2",
        on_stdout=lambda text: seen.append(("out", text)),
        on_stderr=lambda text: seen.append(("err", text)),
    )
    assert "".join(text for kind, text in seen if kind == "out") == "1\n2\n3\n"
    assert ("err", "e\n") in seen
    assert len(seen) >= 4


def test_any_unicode_survives(sandbox):
    text = "Hällo 🌍 \u0001 '\"$`\\"
    assert sandbox.commands.run("cat <<'EOF'\n" + text + "\nEOF").stdout == text + "\n"


def test_large_output_is_whole(sandbox):
    result = sandbox.commands.run("seq 1 200000")
    assert result.stdout.count("\n") == 200_000
    assert result.stdout.endswith("200000\n")


def test_a_command_runs_as_user_in_its_home_with_a_login_shell(sandbox):
    assert sandbox.commands.run("whoami; pwd; echo $HOME $USER; id -u").stdout.split() == ["user", "/home/user", "/home/user", "user", "1000"]
    assert sandbox.commands.run("whoami", user="root").stdout == "root\n"
    assert sandbox.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"


def test_environment_is_given_and_nothing_else_is_inherited(fresh):
    sandbox = fresh(envs={"A": "sandbox", "B": "sandbox"})
    out = sandbox.commands.run("echo $A $B", envs={"B": "command"}).stdout
    assert out == "sandbox command\n"
    names = sandbox.commands.run("env -0 | tr '\\0' '\\n' | cut -d= -f1").stdout.split()
    assert {"E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID"} <= set(names)
    assert sandbox.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == sandbox.sandbox_id
    assert not {name for name in names if name.startswith(("ATOLL", "CARGO", "RUST"))}


def test_a_missing_directory_or_user_is_refused(sandbox):
    with pytest.raises((InvalidArgumentException, SandboxException), match="does not exist"):
        sandbox.commands.run("true", cwd="/nowhere")
    with pytest.raises(Exception, match="invalid username"):
        sandbox.commands.run("true", user="nobody-has-this-name")


def test_a_missing_program_is_exit_127(sandbox):
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("this-program-does-not-exist")
    assert failed.value.exit_code == 127


def test_a_background_command_is_listed_and_killed(sandbox):
    command = sandbox.commands.run("sleep 300", background=True)
    assert command.pid in [process.pid for process in sandbox.commands.list()]
    assert command.kill() is True
    with pytest.raises(CommandExitException) as ended:
        command.wait()
    assert ended.value.exit_code != 0
    eventually(lambda: command.pid not in [p.pid for p in sandbox.commands.list()], "the process to leave the list")
    assert sandbox.commands.kill(4_000_000) is False


def test_a_command_survives_its_client_and_can_be_joined(sandbox):
    command = sandbox.commands.run("read line; echo got $line", background=True, stdin=True)
    command.disconnect()
    joined = sandbox.commands.connect(command.pid)
    sandbox.commands.send_stdin(command.pid, "it\n")
    assert joined.wait().stdout == "got it\n"
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(4_000_000)


def test_stdin_is_written_and_closed(sandbox):
    command = sandbox.commands.run("cat | wc -c", background=True, stdin=True)
    sandbox.commands.send_stdin(command.pid, "x" * 100_000)
    sandbox.commands.close_stdin(command.pid)
    sandbox.commands.close_stdin(command.pid)
    assert command.wait().stdout.strip() == "100000"


def test_stdin_is_streamed(sandbox):
    command = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.stream_input(command.pid, (f"{i}\n" for i in range(100)))
    sandbox.commands.close_stdin(command.pid)
    assert command.wait().stdout.split() == [str(i) for i in range(100)]


def test_stdin_is_closed_unless_it_is_asked_for(sandbox):
    assert sandbox.commands.run("cat").stdout == ""
    command = sandbox.commands.run("sleep 30", background=True)
    with pytest.raises(SandboxException):
        sandbox.commands.send_stdin(command.pid, "x")
    command.kill()


def test_a_deadline_kills_the_command(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("exec sleep 301", timeout=1)
    eventually(lambda: "sleep 301" not in sandbox.commands.run("ps -eo args || cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout.replace("ps -eo", ""), "the command to end")


def test_no_deadline_is_no_deadline(sandbox):
    assert sandbox.commands.run("sleep 1; echo done", timeout=0).stdout == "done\n"


def test_the_end_waits_for_whoever_holds_the_output(sandbox):
    start = time.monotonic()
    assert sandbox.commands.run("(sleep 1; echo late) & echo early").stdout == "early\nlate\n"
    assert time.monotonic() - start >= 1
    assert sandbox.commands.run("nohup sleep 30 >/dev/null 2>&1 & echo started").stdout == "started\n"


def test_many_commands_run_at_once(sandbox):
    running = [sandbox.commands.run(f"sleep 0.2; echo {i}", background=True) for i in range(20)]
    assert [command.wait().stdout for command in running] == [f"{i}\n" for i in range(20)]


def test_the_machine_is_a_small_linux(sandbox):
    script = """set -e
    sudo -n id -u
    python3 -c 'print(1+1)'; python --version
    git init -q /tmp/repo && test -d /tmp/repo/.git
    mkfifo /tmp/fifo && (echo through > /tmp/fifo &) && cat /tmp/fifo
    touch /tmp/x && setfattr -n user.k -v v /tmp/x 2>/dev/null || python3 -c 'import os; os.setxattr("/tmp/x","user.k",b"v")'
    test $(stat -c %a /tmp) = 1777
    test -w /dev/shm && echo > /dev/null && head -c 4 /dev/urandom >/dev/null
    hostname
    """
    out = sandbox.commands.run(script).stdout.split()
    assert out[0] == "0" and out[1] == "2" and "through" in out


def test_sudo_writes_where_root_may(sandbox):
    assert sandbox.commands.run("sudo sh -c 'echo x > /etc/made-by-root && stat -c %U /etc/made-by-root'").stdout == "root\n"
    with pytest.raises(CommandExitException):
        sandbox.commands.run("echo y > /etc/made-by-root")


def test_the_disk_has_the_promised_size(sandbox):
    total_kib = int(sandbox.commands.run("df -Pk / | tail -1 | awk '{print $2}'").stdout)
    assert total_kib > 0.8 * 1024 * 512


def test_git_helper_drives_git_inside(sandbox):
    sandbox.git.init("/tmp/work", initial_branch="main")
    sandbox.files.write("/tmp/work/a.txt", "hello")
    sandbox.git.configure_user("Ann", "ann@example.com", scope="local", path="/tmp/work")
    sandbox.git.add("/tmp/work")
    sandbox.git.commit("/tmp/work", "first")
    assert sandbox.git.status("/tmp/work").is_clean
    sandbox.git.create_branch("/tmp/work", "topic")
    branches = sandbox.git.branches("/tmp/work")
    assert branches.current_branch == "topic" and set(branches.branches) >= {"main", "topic"}
