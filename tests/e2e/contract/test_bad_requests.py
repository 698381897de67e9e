"""What the API does not understand it refuses by name, and does nothing."""

import base64
import json

import pytest
from raw import API, KEY, ask, send

pytestmark = pytest.mark.usefixtures("unchanged")

JSON = {**KEY, "Content-Type": "application/json"}
UNKNOWN = "iaaaaaaaaaaaaaaaaaaaa"


def refused(answer, status, *words):
    """The contract's body, with the status twice and the words in its message."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"code", "message"} and answer.json["code"] == status, answer
    for word in words:
        assert word in answer.json["message"], (word, answer)
    assert len(answer.json["message"]) < 2000


def post(path, body, headers=JSON):
    return ask(API, "POST", path, headers, body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b'{"templateID":"base"',
        b'{"templateID":"base"}}',
        b'{"templateID":"base"} {"templateID":"base"}',
        b'{"templateID":"ba\xffse"}',
        b'{"templateID":"base",}',
        b"\x00",
        b'["base"]',
        b'"base"',
        b"1e999",
        b"null",
    ],
)
@pytest.mark.parametrize("path", ["/sandboxes", "/v2/sandboxes", "/api-keys"])
def test_a_body_that_is_no_json_object_is_refused(path, body):
    refused(post(path, body), 400)


def test_a_missing_body_is_refused_where_there_must_be_one():
    for path in ("/sandboxes", "/v2/sandboxes", "/api-keys", f"/sandboxes/{UNKNOWN}/timeout"):
        refused(post(path, b""), 400, "body")


@pytest.mark.parametrize(
    "field, value",
    [
        ("templateID", 1),
        ("templateID", None),
        ("templateID", ["base"]),
        ("timeout", "60"),
        ("timeout", 1.5),
        ("timeout", 1 << 70),
        ("autoPause", "yes"),
        ("autoPauseMemory", 0),
        ("autoResume", True),
        ("autoResume", [True]),
        ("autoResume.enabled", "x"),
        ("secure", "x"),
        ("allow_internet_access", 1),
        ("network", []),
        ("network", "all"),
        ("network.allowOut", "1.1.1.1"),
        ("network.allowOut[0]", 1),
        ("network.denyOut[1]", {}),
        ("network.allowPublicTraffic", "x"),
        ("network.maskRequestHost", 80),
        ("metadata", []),
        ("metadata.a", 1),
        ("envVars.A", None),
        ("mcp", "x"),
        ("volumeMounts", {}),
        ("volumeMounts[0].name", 5),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field, value):
    body = {"templateID": "base"}
    place = body
    *steps, last = field.replace("[0]", ".0").replace("[1]", ".1").split(".")
    following = [*steps[1:], last] if steps else []
    for step, after in zip(steps, following):
        if isinstance(place, list):
            place.append({})
            place = place[-1]
        else:
            place = place.setdefault(step, ["0.0.0.0/0"] * int(after) if after.isdigit() else {})
    if isinstance(place, list):
        place.append(value)
    else:
        place[last] = value
    refused(post("/v2/sandboxes", body), 400, field.split("[")[0].split(".")[0])
    refused(post("/sandboxes", body), 400, f"'{field}")


@pytest.mark.parametrize(
    "body, word",
    [
        ({"templateID": ""}, "template reference"),
        ({"templateID": "a b"}, "template reference"),
        ({"templateID": "../../etc"}, "template reference"),
        ({"templateID": "base:"}, "template reference"),
        ({"templateID": "x" * 5000}, "template reference"),
        ({"templateID": "base", "timeout": 0}, "Timeout"),
        ({"templateID": "base", "timeout": -1}, "Timeout"),
        ({"templateID": "base", "timeout": 2**63 - 1}, "Timeout"),
        ({"templateID": "base", "metadata": {str(n): "" for n in range(1025)}}, "metadata"),
        ({"templateID": "base", "metadata": {"k": "v" * (256 * 1024)}}, "metadata"),
        ({"templateID": "base", "envVars": {str(n): "" for n in range(1025)}}, "envVars"),
        ({"templateID": "base", "envVars": {"A=B": "1"}}, "envVars"),
        ({"templateID": "base", "envVars": {"": "1"}}, "envVars"),
        ({"templateID": "base", "envVars": {"A": "x\0y"}}, "envVars"),
        ({"templateID": "base", "network": {"allowOut": ["1.1.1.1/33"]}}, "allowed CIDR"),
        ({"templateID": "base", "network": {"denyOut": ["example.com"]}}, "denied CIDR"),
        ({"templateID": "base", "network": {"denyOut": ["10.0.0.1"] * 1001}}, "network.denyOut"),
        ({"templateID": "base", "network": {"maskRequestHost": "a b"}}, "maskRequestHost"),
        ({"templateID": "base", "network": {"maskRequestHost": "é" * 9000}}, "maskRequestHost"),
        ({"templateID": "base", "network": {"rules": {"a.com": []}}}, "network.rules"),
        ({"templateID": "base", "network": {"egressProxy": {"address": "x"}}}, "network.egressProxy"),
        ({"templateID": "base", "volumeMounts": [{"name": "a", "path": "/a"}]}, "volume mount #0"),
        ({"templateID": "base", "iam": {"tokens": {"a": {"audience": "b"}}}}, "iam"),
        ({"templateID": "base", "autoPauseMemory": False}, "autoPauseMemory"),
    ],
)
def test_a_value_outside_of_its_bounds_is_named(body, word):
    refused(post("/v2/sandboxes", body), 400, word)


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("depth", [200, 100_000])
def test_a_body_too_deep_is_refused(opening, closing, depth):
    deep = opening * depth + b"1" + closing * depth
    refused(post("/v2/sandboxes", b'{"templateID":"base","mcp":' + deep + b"}"), 400, "mcp")


def test_a_body_too_large_is_refused_whether_it_says_so_or_not():
    body = b'{"templateID":"base","metadata":{"a":"' + b"x" * (1 << 20) + b'"}}'
    refused(post("/v2/sandboxes", body), 413, "1048576")
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    refused(post("/v2/sandboxes", chunked, {**JSON, "Transfer-Encoding": "chunked"}), 413, "1048576")


@pytest.mark.parametrize("told", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "\xff", "json"])
def test_a_body_of_another_type_is_refused(told):
    refused(post("/v2/sandboxes", {"templateID": "base"}, {**KEY, "Content-Type": told}), 415, "Content-Type")


@pytest.mark.parametrize("key", ["", "A", "a b", "a_b", "x" * 256, "\xe9"])
def test_an_idempotency_key_that_is_none_is_refused(key):
    refused(post("/v2/sandboxes", {"templateID": "base"}, {**JSON, "Idempotency-Key": key}), 400, "Idempotency-Key")


CURSOR = base64.urlsafe_b64encode(b"2026-01-01T00:00:00.000000Z__%s__asc" % UNKNOWN.encode()).decode()


@pytest.mark.parametrize(
    "query, word",
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=99999999999999999999999", "limit"),
        ("state=gone", "state"),
        ("state=running,,paused", "state"),
        ("order=up", "order"),
        ("startedAfter=yesterday", "startedAfter"),
        ("startedAfter=2026-13-01T00:00:00Z", "startedAfter"),
        ("startedAfter=%F2%82%96%99%C3%B2%C2%A1%C3%89", "startedAfter"),
        ("startedAfter=2026-01-01T00:00:00%2B99999999999999999999:00", "startedAfter"),
        ("template=a%20b", "template"),
        ("template=base:v1", "template"),
        ("nextToken=", "next token"),
        ("nextToken=nonsense", "next token"),
        ("nextToken=%00", "next token"),
        (f"nextToken={CURSOR}", "next token"),
        ("nextToken=" + "A" * 20_000, "next token"),
        ("metadata=" + "%26".join(f"k{n}%3Dv" for n in range(65)), "metadata"),
        ("metadata=%25ff%3Dv", "metadata"),
        ("metadata=a%3D%25C3%2528", "metadata"),
        ("metadata=" + "x" * (32 * 1024), "query"),
        ("state=%ff", "state"),
        ("%ff=a", "%ff"),
    ],
)
def test_a_query_that_does_not_parse_is_refused_by_its_parameter(query, word):
    refused(ask(API, "GET", f"/v2/sandboxes?{query}", KEY), 400, word)


@pytest.mark.parametrize(
    "target, word",
    [
        ("metrics?start=-1", "start"),
        ("metrics?end=x", "end"),
        ("metrics?end=18446744073709551615", "end"),
        ("logs?start=-1", "start"),
        ("logs?limit=1001", "limit"),
        ("logs?start=9223372036854775808", "start"),
    ],
)
def test_bad_times_and_counts_are_refused_by_their_parameter(sandbox, target, word):
    refused(ask(API, "GET", f"/sandboxes/{sandbox['sandboxID']}/{target}", KEY), 400, word)


def test_the_largest_times_are_times(sandbox):
    most = 2**63 - 1
    for target in (f"metrics?start={most}", f"metrics?end={most}", f"logs?start={most}", f"metrics?start={most}&end={most}"):
        assert ask(API, "GET", f"/sandboxes/{sandbox['sandboxID']}/{target}", KEY).status in (200, 400), target


@pytest.mark.parametrize("query, word", [("level=loud", "level"), ("direction=up", "direction"), ("cursor=x", "cursor")])
def test_bad_queries_of_logs_are_refused_by_their_parameter(sandbox, query, word):
    refused(ask(API, "GET", f"/v2/sandboxes/{sandbox['sandboxID']}/logs?{query}", KEY), 400, word)


def test_more_sandboxes_than_one_question_may_hold_are_refused():
    refused(ask(API, "GET", "/sandboxes/metrics", KEY), 400, "sandbox_ids")
    many = ",".join([UNKNOWN] * 101)
    refused(ask(API, "GET", f"/sandboxes/metrics?sandbox_ids={many}", KEY), 400, "sandbox_ids")


@pytest.mark.parametrize("id", ["A", "a_b", "a-b-c", "%20", "%2e%2e", "%00", "%ff", "-", "a.b", "i" + "%C3%A9" * 20])
def test_a_path_id_that_is_none_is_refused(id):
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("PUT", "/network"), ("GET", "/logs")):
        refused(ask(API, method, f"/sandboxes/{id}{tail}", KEY, b"" if method in ("GET", "DELETE") else b"{}"), 400, "sandbox ID")


@pytest.mark.parametrize("id", [UNKNOWN, f"{UNKNOWN}-6532622b", "a" * 4000, "0"])
def test_a_path_id_of_nobody_is_not_found(id):
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/restart")):
        answer = ask(API, method, f"/sandboxes/{id}{tail}", KEY)
        refused(answer, 404)


@pytest.mark.parametrize(
    "method, target", [("DELETE", "/api-keys/x"), ("DELETE", "/api-keys/%ff"), ("GET", "/nodes/x"), ("GET", "/nodes/%ff")]
)
def test_other_ids_that_are_none_are_refused(method, target):
    refused(ask(API, method, target, KEY), 400)


@pytest.mark.parametrize("name", ["%ff", "a%20b", "%00", "x" * 300, "a:b:c", "%F0%9F%92%A9"])
def test_template_names_that_are_none_are_refused(name):
    for target in (f"/templates/{name}", f"/templates/aliases/{name}", f"/templates/{name}/tags"):
        refused(ask(API, "GET", target, KEY), 400)


@pytest.mark.parametrize("name", ["", " ", "x" * 257])
def test_names_of_keys_have_bounds(name):
    refused(post("/api-keys", {"name": name}), 400, "name")


@pytest.mark.parametrize("method, target", [("BREW", "/sandboxes"), ("PATCH", "/sandboxes"), ("DELETE", "/health")])
def test_a_method_that_a_route_does_not_have_is_refused(method, target):
    refused(ask(API, method, target, KEY), 405, method)


@pytest.mark.parametrize("target", ["/", "/nothing", "//", "/sandboxes/", "/sandboxes//logs", "/%2e%2e/etc/passwd", "/sandboxes/a/b/c"])
def test_a_path_that_leads_nowhere_is_not_found(target):
    assert ask(API, "GET", target, KEY).status in (400, 404)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"GET /\x7f HTTP/1.1\r\n\r\n",
        b"POST /sandboxes HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /sandboxes HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /sandboxes HTTP/1.1\r\nTransfer-Encoding: xyz\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(200)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nA: " + b"x" * 2_000_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_a_4xx_or_a_closed_connection(request_bytes):
    answer = send(API, request_bytes)
    assert not answer or answer.startswith(b"HTTP/1.1 4") or answer.startswith(b"HTTP/1.0 4"), answer[:200]


def test_half_a_request_changes_nothing():
    send(API, b"POST /v2/sandboxes HTTP/1.1\r\nHost: a\r\nX-API-Key: %s\r\nContent-Length: 100\r\n\r\n{\"templateID\":\"base\"}" % KEY["X-API-Key"].encode())
