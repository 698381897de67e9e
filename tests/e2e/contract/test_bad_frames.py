"""Calls of envd that are no calls: bad messages, bad frames, bad names."""

import base64
import gzip
import json

import pytest
from raw import EDGE, ask, frame, frames

pytestmark = pytest.mark.usefixtures("unchanged")

UNARY = {"Content-Type": "application/json", "Connect-Protocol-Version": "1"}
STREAM = {"Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
#: One message of a call.
MESSAGE_BYTES_MAX = 4 << 20


def call(inside, method, body, headers=UNARY):
    return ask(EDGE, "POST", f"/{method}", {**inside, **headers}, body)


def ended(answer):
    """The error with which a stream ended; streams are 200 whatever becomes of them."""
    assert answer.status == 200, answer
    flags, last = frames(answer.body)[-1]
    assert flags & 2, answer
    return json.loads(last)["error"]


@pytest.mark.parametrize("body", [b"{", b"nonsense", b'{"path":1}', b'{"path":{}}', b"\xff", b'{"path":"/"}}'])
def test_a_message_that_is_none_is_an_invalid_argument(inside, body):
    answer = call(inside, "filesystem.Filesystem/Stat", body)
    assert answer.status == 400 and answer.json["code"] == "invalid_argument", answer
    assert answer.json["message"] and len(answer.body) < 2000


def test_a_message_too_deep_or_too_long_is_refused(inside):
    for depth in (200, 100_000):
        deep = b'{"path":' + b"[" * depth + b"]" * depth + b"}"
        assert call(inside, "filesystem.Filesystem/Stat", deep).status == 400
    long = b'{"path":"' + b"x" * MESSAGE_BYTES_MAX + b'"}'
    answer = call(inside, "filesystem.Filesystem/Stat", long)
    assert answer.status == 429 and answer.json["code"] == "resource_exhausted", answer


def test_a_stream_of_something_else_than_frames_is_an_error(inside):
    for body in (b"", b"\x00", b"\x00\x00\x00\x00", frame(b"{}", length=100), frame(b"{")):
        assert ended(call(inside, "process.Process/Start", body, STREAM))["code"] in ("invalid_argument", "unimplemented"), body


def test_a_frame_longer_than_any_message_is_refused_before_it_is_waited_for(inside):
    for length in (MESSAGE_BYTES_MAX + 1, 2**32 - 1):
        error = ended(call(inside, "process.Process/Start", frame(b"{}", length=length), STREAM))
        assert error["code"] == "resource_exhausted", error


def test_a_compressed_frame_that_nothing_announced_is_refused(inside):
    packed = gzip.compress(b'{"process":{"cmd":"/bin/true"}}')
    error = ended(call(inside, "process.Process/Start", frame(packed, flags=1), STREAM))
    assert error["code"] in ("internal", "invalid_argument", "unimplemented"), error
    announced = {**STREAM, "Connect-Content-Encoding": "rot13"}
    answer = call(inside, "process.Process/Start", frame(packed, flags=1), announced)
    error = ended(answer) if answer.status == 200 else answer.json
    assert error["code"] == "unimplemented", answer


@pytest.mark.parametrize("flags", [4, 0x40, 0x80, 0xFC])
def test_flags_that_nobody_defined_start_no_process(inside, flags):
    answer = call(inside, "process.Process/Start", frame(b'{"process":{"cmd":"/bin/no-such"}}', flags=flags), STREAM)
    assert answer.status < 500, answer


def test_an_unknown_encoding_of_a_message_is_refused(inside):
    answer = call(inside, "filesystem.Filesystem/Stat", b'{"path":"/"}', {**UNARY, "Content-Encoding": "rot13"})
    assert answer.status in (400, 415, 501), answer
    packed = call(inside, "filesystem.Filesystem/Stat", b"no gzip at all", {**UNARY, "Content-Encoding": "gzip"})
    assert 400 <= packed.status < 500 or packed.status == 501, packed


@pytest.mark.parametrize("told", ["text/plain", "application/xml", "application/connect+xml", ""])
def test_a_call_of_another_type_is_refused(inside, told):
    answer = call(inside, "process.Process/Start", b"{}", {**UNARY, "Content-Type": told})
    assert 400 <= answer.status < 500, answer


@pytest.mark.parametrize("timeout", ["x", "-1", "+1", "99999999999999999999", "1.5"])
def test_a_deadline_that_is_none_is_refused(inside, timeout):
    answer = call(inside, "filesystem.Filesystem/Stat", b'{"path":"/"}', {**UNARY, "Connect-Timeout-Ms": timeout})
    assert answer.status == 400 and "connect-timeout-ms" in answer.json["message"], answer


@pytest.mark.parametrize("method", ["process.Process/Nothing", "process.Process/", "filesystem.Filesystem/Stat/x"])
def test_a_method_that_does_not_exist_is_unimplemented(inside, method):
    answer = call(inside, method, b"{}")
    assert answer.status in (404, 501), answer


def test_a_get_of_a_call_is_refused(inside):
    answer = ask(EDGE, "GET", "/filesystem.Filesystem/Stat", inside)
    assert 400 <= answer.status < 500, answer


@pytest.mark.parametrize(
    "method, body, code",
    [
        ("filesystem.Filesystem/Stat", {"path": "/no/such"}, "not_found"),
        ("filesystem.Filesystem/Stat", {"path": "~nobody/x"}, "invalid_argument"),
        ("filesystem.Filesystem/Stat", {"path": "a\0b"}, "invalid_argument"),
        ("filesystem.Filesystem/Stat", {"path": "/" + "x" * 300}, "invalid_argument"),
        ("filesystem.Filesystem/Stat", {"path": "/" + "x/" * 3000}, "invalid_argument"),
        ("filesystem.Filesystem/ListDir", {"path": "/etc/passwd"}, "invalid_argument"),
        ("filesystem.Filesystem/ListDir", {"path": "/", "depth": -1}, "invalid_argument"),
        ("filesystem.Filesystem/ListDir", {"path": "/", "depth": 2**32}, "invalid_argument"),
        ("filesystem.Filesystem/MakeDir", {"path": "/etc/passwd"}, "invalid_argument"),
        ("filesystem.Filesystem/MakeDir", {"path": "/tmp/a\0b"}, "invalid_argument"),
        ("filesystem.Filesystem/Move", {"source": "/no/such", "destination": "/tmp/x"}, "not_found"),
        ("filesystem.Filesystem/GetWatcherEvents", {"watcherId": "x"}, "not_found"),
        ("filesystem.Filesystem/RemoveWatcher", {"watcherId": ""}, "not_found"),
        ("filesystem.Filesystem/CreateWatcher", {"path": "/no/such"}, "not_found"),
        ("process.Process/SendSignal", {"process": {"pid": 4294967295}, "signal": "SIGNAL_SIGKILL"}, "not_found"),
        ("process.Process/SendSignal", {"process": {"pid": 1}, "signal": "SIGNAL_SIGKILL"}, "not_found"),
        ("process.Process/SendSignal", {"process": {"pid": -1}}, "invalid_argument"),
        ("process.Process/SendInput", {"process": {"tag": "none"}, "input": {"stdin": "aGk="}}, "not_found"),
        ("process.Process/SendInput", {"process": {"pid": 1}, "input": {"stdin": "###"}}, "invalid_argument"),
        ("process.Process/CloseStdin", {}, "unimplemented"),
        ("process.Process/Update", {"process": {"pid": 99999999}}, "not_found"),
    ],
)
def test_calls_that_cannot_be_carried_out_say_why(inside, method, body, code):
    answer = call(inside, method, json.dumps(body).encode())
    assert answer.json["code"] == code, answer
    assert 400 <= answer.status < 500 or code == "unimplemented", answer


@pytest.mark.parametrize(
    "body, code",
    [
        ({"process": {"cmd": "/bin/true", "cwd": "/no/such"}}, "invalid_argument"),
        ({"process": {"cmd": ""}}, "invalid_argument"),
        ({"process": {"cmd": "/bin/true", "args": ["a\0b"]}}, "invalid_argument"),
        ({"process": {"cmd": "/bin/true", "envs": {"A=B": "x"}}}, "invalid_argument"),
        ({"process": {"cmd": "/bin/true", "envs": {"A": "x\0"}}}, "invalid_argument"),
        ({}, "invalid_argument"),
    ],
)
def test_processes_that_cannot_be_started_are_not_and_say_why(inside, body, code):
    error = ended(call(inside, "process.Process/Start", frame(json.dumps(body).encode()), STREAM))
    assert error["code"] == code, error


@pytest.mark.parametrize("user", ["nobody-has-this", "", "a:b", "\xff" * 20, "x" * 3000])
def test_a_user_that_is_none_is_refused_or_the_default(inside, user):
    named = {"Authorization": "Basic " + base64.b64encode(user.encode("latin-1") + b":").decode()}
    answer = call(inside, "filesystem.Filesystem/Stat", b'{"path":"/"}', {**UNARY, **named})
    assert answer.status in (200, 401), answer


def test_nothing_inside_is_open_without_its_token(inside):
    for token in (None, "", "x", inside["X-Access-Token"] + "x", inside["X-Access-Token"][:-1]):
        headers = {name: value for name, value in inside.items() if name != "X-Access-Token"}
        if token is not None:
            headers["X-Access-Token"] = token
        for target in ("/envs", "/metrics", "/process.Process/List", "/filesystem.Filesystem/Remove"):
            method = "GET" if target in ("/envs", "/metrics") else "POST"
            answer = ask(EDGE, method, target, {**headers, **UNARY}, b"" if method == "GET" else b'{"path":"/home"}')
            assert answer.status == 401 and answer.json["code"] == 401, answer
