"""Attempt 30: another team's key, on every route of the served description."""

import hashlib
import json
import secrets
import sqlite3
import uuid

import httpx
import pytest

ANSWERS_WITHOUT_KEY = {"/health", "/openapi.json"}
# Opened by a signature in the address, and by a volume's token: tests of their own try those of others.
WITH_TOKENS_OF_THEIR_OWN = ("/uploads/", "/volumecontent/")
# A connection for each request: one that was refused before its body came is not used again.
ONCE = {"Connection": "close"}
METHODS = ("get", "post", "put", "patch", "delete")


def second_team(house):
    """A team and its key. Nothing offers to make one yet: they are put where the daemon looks."""
    key, team = secrets.token_bytes(20), str(uuid.uuid4())
    with sqlite3.connect(house.dir / "atoll.db", timeout=30) as store:
        body = json.loads(store.execute("SELECT body FROM teams").fetchone()[0]) | {"id": team, "name": "Others", "slug": f"others-{team[:8]}"}
        store.execute("INSERT INTO teams (id, slug, body) VALUES (?, ?, ?)", (team, body["slug"], json.dumps(body)))
        store.execute(
            "INSERT INTO api_keys (id, team, name, hash, mask_prefix, mask_suffix, created_us) VALUES (?, ?, 'theirs', ?, ?, ?, 1)",
            (str(uuid.uuid4()), team, hashlib.sha256(key).hexdigest(), key.hex()[:4], key.hex()[-4:]),
        )
    return f"e2b_{key.hex()}"


@pytest.fixture(scope="module")
def ours(house):
    return httpx.Client(base_url=house.connection["api_url"], headers={"X-API-Key": house.connection["api_key"]} | ONCE, timeout=60)


@pytest.fixture(scope="module")
def theirs(house):
    return httpx.Client(base_url=house.connection["api_url"], headers={"X-API-Key": second_team(house)} | ONCE, timeout=60)


def routes(client):
    described = client.get("/openapi.json").json()
    for path, methods in described["paths"].items():
        for method in METHODS:
            if method in methods:
                yield method, path, methods[method].get("requestBody") is not None


# Bodies that would be carried out, where an empty one would not.
BODIES = {
    "/sandboxes/{sandboxID}/timeout": {"timeout": 60},
    "/sandboxes/{sandboxID}/connect": {"timeout": 60},
    "/v2/sandboxes/{sandboxID}/connect": {"timeout": 60},
    "/sandboxes/{sandboxID}/refreshes": {"duration": 60},
    "/sandboxes/{sandboxID}/network": {"denyOut": ["0.0.0.0/0"]},
    "/api-keys/{apiKeyID}": {"name": "taken over"},
}


def test_30_things_of_another_team_answer_as_unknown_ones_on_every_route(house, ours, theirs, fresh):
    sandbox = fresh.sandbox.sandbox_id
    key = next(key["id"] for key in ours.get("/api-keys").json())
    template = ours.post("/v3/templates", json={"name": "secret"}).json()
    volume = ours.post("/volumes", json={"name": "secret"}).json()["volumeID"]
    # Whether there is a file, or a tag, is the template's to tell.
    told = {"alias": "base", "nodeID": ours.get("/nodes").json()[0]["nodeID"], "hash": "0" * 64, "tag": "default"}
    real = told | {"sandboxID": sandbox, "apiKeyID": key, "templateID": template["templateID"], "buildID": template["buildID"], "volumeID": volume}
    unknown = told | {"sandboxID": "i" + "0" * 20, "apiKeyID": str(uuid.uuid4()), "templateID": "0" * 20, "buildID": str(uuid.uuid4()), "volumeID": str(uuid.uuid4())}
    tried = 0
    for method, path, has_body in routes(ours):
        if path.startswith(WITH_TOKENS_OF_THEIR_OWN):
            continue
        named = {name for name in real if f"{{{name}}}" in path}
        assert path.count("{") == len(named), f"{path} names something that this test does not know"
        if named <= set(told):
            continue
        answers = []
        for ids in (real, unknown):
            url = path
            for name, value in ids.items():
                url = url.replace(f"{{{name}}}", value)
            answer = theirs.request(method, url, json=BODIES.get(path, {}) if has_body else None)
            text = answer.text
            for name in named:
                text = text.replace(ids[name], name)
            answers.append((answer.status_code, text, {name for name in answer.headers}))
        assert answers[0] == answers[1], f"{method} {path} tells of another team's: {answers}"
        # What is to become of a template is read before the template is looked for.
        assert answers[0][0] in ((400, 404) if "templateID" in named else (404,)), f"{method} {path}: {answers[0]}"
        tried += 1
    assert tried >= 20
    # Nothing came of it, and its own team may do all that.
    assert fresh.commands.run("echo untouched").stdout == "untouched\n"
    assert key in [known["id"] for known in ours.get("/api-keys").json()]
    assert "taken over" not in ours.get("/api-keys").text
    assert ours.get(f"/sandboxes/{sandbox}").status_code == 200


def test_30_lists_hold_what_is_ones_own(ours, theirs, fresh):
    sandbox = fresh.sandbox.sandbox_id
    for path in ("/sandboxes", "/v2/sandboxes", f"/sandboxes/metrics?sandbox_ids={sandbox}", "/v2/sandboxes?state=running,paused"):
        assert sandbox in ours.get(path).text or "metrics" in path
        assert sandbox not in theirs.get(path).text.replace(path, ""), path
    (mine,), (other,) = ours.get("/teams").json(), theirs.get("/teams").json()
    assert mine["teamID"] != other["teamID"]
    assert {key["name"] for key in theirs.get("/api-keys").json()} == {"theirs"}
    assert theirs.get(f"/templates?teamID={mine['teamID']}").status_code in (200, 400, 403, 404)


def test_30_no_route_answers_without_a_key_or_with_an_invented_or_deleted_one(house, ours):
    made = ours.post("/api-keys", json={"name": "short-lived"}).json()
    assert httpx.get(f"{house.connection['api_url']}/sandboxes", headers={"X-API-Key": made["key"]}).status_code == 200
    assert ours.delete(f"/api-keys/{made['id']}").status_code == 204
    keys = [None, "", "e2b_", "e2b_" + "0" * 40, made["key"], house.connection["api_key"][:-1], house.connection["api_key"] + "00", "E2B_" + house.connection["api_key"][4:], "' OR 1=1 --"]
    for key in keys:
        with httpx.Client(base_url=house.connection["api_url"], headers=ONCE if key is None else {"X-API-Key": key} | ONCE) as client:
            for method, path, has_body in routes(client):
                url = path.replace("{", "").replace("}", "")
                answer = client.request(method, url, json={} if has_body else None)
                if path in ANSWERS_WITHOUT_KEY:
                    assert answer.status_code < 300
                elif path.startswith("/uploads/"):
                    assert answer.status_code == 403, f"{method} {path} with {key!r}: {answer.status_code} {answer.text}"
                else:
                    assert answer.status_code == 401, f"{method} {path} with {key!r}: {answer.status_code} {answer.text}"


def test_30_a_key_of_another_team_opens_nothing_at_the_edge(house, theirs, fresh):
    headers = {"E2b-Sandbox-Id": fresh.sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", "X-API-Key": theirs.headers["X-API-Key"], "X-Access-Token": theirs.headers["X-API-Key"]}
    for method, path in [("GET", "/envs"), ("GET", "/metrics"), ("POST", "/process.Process/List"), ("GET", "/files?path=/etc/passwd&username=root"), ("POST", "/files?path=/tmp/x&username=root")]:
        assert httpx.request(method, house.connection["sandbox_url"] + path, headers=headers, json={} if method == "POST" else None).status_code == 401


def test_30_the_token_of_one_volume_opens_no_other(house, ours, theirs):
    mine, other = (ours.post("/volumes", json={"name": name}).json() for name in ("one", "two"))
    foreign = theirs.post("/volumes", json={"name": "three"}).json()
    url = f"{house.connection['api_url']}/volumecontent/{mine['volumeID']}/dir?path=/"
    assert httpx.get(url, headers={"Authorization": f"Bearer {mine['token']}"}).status_code == 200
    for token in (other["token"], foreign["token"], theirs.headers["X-API-Key"], house.connection["api_key"], mine["token"][:-1], "none"):
        answer = httpx.get(url, headers={"Authorization": f"Bearer {token}", "X-API-Key": house.connection["api_key"]})
        assert answer.status_code == 401, (token, answer.status_code, answer.text)
