"""Creating, finding, keeping and ending sandboxes."""

import datetime
import uuid

import pytest
from conftest import eventually
from e2b import (
    AuthenticationException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)


def ids(paginator):
    found = []
    while paginator.has_next:
        found += [info.sandbox_id for info in paginator.next_items()]
    return found


def test_a_created_sandbox_runs_and_is_described(fresh):
    sandbox = fresh(metadata={"who": "e2e"}, envs={"COLOUR": "green"}, timeout=60)
    assert sandbox.is_running()
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.metadata == {"who": "e2e"}
    assert info.state == SandboxState.RUNNING
    assert info.cpu_count >= 1 and info.memory_mb >= 128
    now = datetime.datetime.now(datetime.timezone.utc)
    assert info.started_at <= now < info.end_at <= now + datetime.timedelta(seconds=61)
    assert sandbox.commands.run("echo $COLOUR").stdout == "green\n"


def test_a_killed_sandbox_is_gone(fresh):
    sandbox = fresh()
    assert sandbox.kill() is True
    assert not sandbox.is_running()
    assert sandbox.kill() is False
    with pytest.raises(NotFoundException):
        sandbox.get_info()
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)
    assert sandbox.sandbox_id not in ids(Sandbox.list())


def test_connecting_reaches_the_same_machine(fresh):
    sandbox = fresh()
    sandbox.files.write("/tmp/note", "kept")
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.sandbox_id == sandbox.sandbox_id
    assert again.files.read("/tmp/note") == "kept"


def test_connecting_extends_and_never_shortens_the_time(fresh):
    sandbox = fresh(timeout=100)
    end = sandbox.get_info().end_at
    Sandbox.connect(sandbox.sandbox_id, timeout=10)
    assert sandbox.get_info().end_at == end
    Sandbox.connect(sandbox.sandbox_id, timeout=500)
    assert sandbox.get_info().end_at > end + datetime.timedelta(seconds=300)


def test_a_timeout_can_be_moved_and_ends_the_sandbox(fresh):
    sandbox = fresh(timeout=300)
    sandbox.set_timeout(1)
    eventually(lambda: not sandbox.is_running(), "the sandbox to end")
    with pytest.raises(NotFoundException):
        sandbox.set_timeout(60)


def test_a_short_life_ends_by_itself(fresh):
    sandbox = fresh(timeout=1)
    eventually(lambda: not sandbox.is_running(), "the sandbox to end")


def test_lists_filter_by_metadata(fresh):
    label = {"run": str(uuid.uuid4()), "odd key": "a&b=c %20 ä"}
    sandbox = fresh(metadata=label)
    fresh(metadata={"run": "another"})
    assert ids(Sandbox.list(query=SandboxQuery(metadata=label))) == [sandbox.sandbox_id]
    assert ids(Sandbox.list(query=SandboxQuery(metadata={"run": "nobody's"}))) == []


def test_lists_page_in_both_orders_and_filter_by_start_and_template(fresh):
    label = {"run": str(uuid.uuid4())}
    made = [fresh(metadata=label).sandbox_id for _ in range(3)]
    assert ids(Sandbox.list(query=SandboxQuery(metadata=label), limit=1)) == made[::-1]
    assert ids(Sandbox.list(query=SandboxQuery(metadata=label), limit=2, order="asc")) == made
    third = Sandbox.get_info(made[2]).started_at
    assert ids(Sandbox.list(query=SandboxQuery(metadata=label, started_after=third))) == [made[2]]
    assert ids(Sandbox.list(query=SandboxQuery(metadata=label, template="base"))) == made[::-1]
    assert ids(Sandbox.list(query=SandboxQuery(metadata=label, template="nobody-has-this"))) == []


def test_lists_filter_by_state(fresh):
    label = {"run": str(uuid.uuid4())}
    running = fresh(metadata=label)
    paused = fresh(metadata=label)
    paused.pause()

    def listed(*states):
        return set(ids(Sandbox.list(query=SandboxQuery(metadata=label, state=list(states)))))

    assert listed(SandboxState.RUNNING) == {running.sandbox_id}
    assert listed(SandboxState.PAUSED) == {paused.sandbox_id}
    assert listed() == listed(SandboxState.RUNNING, SandboxState.PAUSED) == {running.sandbox_id, paused.sandbox_id}


def test_metrics_appear_and_are_plausible(fresh):
    sandbox = fresh()
    sandbox.commands.run("python3 -c 'sum(range(10**6))'")
    metrics = eventually(sandbox.get_metrics, "metrics to appear")
    newest = metrics[-1]
    assert newest.cpu_count >= 1 and newest.cpu_used_pct >= 0
    assert 0 < newest.mem_used < newest.mem_total
    assert 0 < newest.disk_used < newest.disk_total


def test_an_unknown_template_is_not_found():
    with pytest.raises((NotFoundException, SandboxException), match="no-such-template"):
        Sandbox.create("no-such-template")


def test_a_wrong_key_is_not_let_in():
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)


def test_the_same_idempotency_key_creates_once(fresh):
    key = str(uuid.uuid4())
    first = fresh(idempotency_key=key)
    again = fresh(idempotency_key=key)
    assert again.sandbox_id == first.sandbox_id
    with pytest.raises(SandboxException):
        Sandbox.create(idempotency_key=key, metadata={"other": "request"})


@pytest.mark.parametrize(
    "unsupported, named",
    [
        ({"network": {"allow_out": ["example.com"], "deny_out": ["0.0.0.0/0"]}}, "allowOut"),
        ({"network": {"rules": {"example.com": [{"transform": {"headers": {"a": "b"}}}]}}}, "rules"),
        ({"network": {"egress_proxy": {"address": "127.0.0.1:1080"}}}, "egressProxy"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(unsupported, named):
    with pytest.raises((SandboxException, InvalidArgumentException), match=f"(?i){named}"):
        Sandbox.create(**unsupported)


def test_a_failing_mcp_gateway_kills_the_sandbox():
    label = {"run": str(uuid.uuid4())}
    with pytest.raises(SandboxException):
        Sandbox.create("base", mcp={"github": {"githubPersonalAccessToken": "x"}}, metadata=label)
    assert ids(Sandbox.list(query=SandboxQuery(metadata=label))) == []


def test_a_command_cut_by_a_kill_says_that_the_sandbox_was_killed(fresh):
    sandbox = fresh()
    command = sandbox.commands.run("sleep 60", background=True)
    sandbox.kill()
    with pytest.raises((SandboxException, TimeoutException), match="killed or reached its end of life|not found"):
        command.wait()
