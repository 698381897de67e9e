"""One sandbox for bad requests, and what must be the same after each of them."""

import json

import pytest
from raw import API, EDGE, KEY, ask


@pytest.fixture(scope="session")
def sandbox():
    body = json.dumps({"templateID": "base", "timeout": 3000, "metadata": {"of": "bad input"}}).encode()
    made = ask(API, "POST", "/v2/sandboxes", {**KEY, "Content-Type": "application/json"}, body)
    assert made.status == 201, made
    yield made.json
    ask(API, "DELETE", f"/sandboxes/{made.json['sandboxID']}", KEY)


@pytest.fixture(scope="session")
def inside(sandbox):
    """Headers that lead to the sandbox's envd, past its door."""
    return {
        "E2b-Sandbox-Id": sandbox["sandboxID"],
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox["envdAccessToken"],
    }


@pytest.fixture
def unchanged(sandbox, inside):
    """Whatever the test sends: the house answers as before, and has and knows what it had and knew."""

    def seen():
        answers = [ask(API, "GET", target, KEY) for target in ("/v2/sandboxes", "/api-keys", "/health")]
        answers.append(ask(API, "GET", f"/sandboxes/{sandbox['sandboxID']}", KEY))
        call = {**inside, "Content-Type": "application/json", "Connect-Protocol-Version": "1"}
        for path in ("/home/user", "/tmp"):
            body = json.dumps({"path": path, "depth": 3}).encode()
            answers.append(ask(EDGE, "POST", "/filesystem.Filesystem/ListDir", call, body))
        answers.append(ask(EDGE, "POST", "/process.Process/List", call, b"{}"))
        facts = []
        for answer in answers:
            assert answer.status in (200, 204), answer
            facts.append(answer.json if answer.body else None)
        for key in facts[1]:
            key.pop("lastUsed", None)
        return facts

    before = seen()
    yield
    assert seen() == before
