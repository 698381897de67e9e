"""The served description against the server: made-up requests to every operation get an answer that is described.

No 5xx, no undocumented status, no body or content type but the described ones, for requests that fit the description
and for those that do not. What is not checked, and why, is in schemathesis.toml.
"""

import os
import pathlib
import re
import threading

import pytest
import requests
import schemathesis
from schemathesis.config import SchemathesisConfig

API = os.environ["E2B_API_URL"]
HEADERS = {"X-API-Key": os.environ["E2B_API_KEY"]}
#: An id that could be a sandbox's.
WELL_FORMED = re.compile(r"[a-z0-9]+(-[a-z0-9]*)?")
#: What a request that creates a sandbox must not outgrow: the house is a small machine's.
SANDBOXES_MAX = 8

config = SchemathesisConfig.from_path(pathlib.Path(__file__).with_name("schemathesis.toml"))
schema = schemathesis.openapi.from_url(f"{API}/openapi.json", config=config)


class Sandboxes:
    """Real sandboxes for made-up requests: one that runs, and whatever they made themselves."""

    def __init__(self):
        self.lock = threading.Lock()
        self.known = []

    def live(self):
        """The id of a sandbox that is there: running, or paused by the request before."""
        with self.lock:
            while self.known:
                found = requests.get(f"{API}/sandboxes/{self.known[0]}", headers=HEADERS, timeout=60)
                if found.status_code == 200:
                    return self.known[0]
                self.known.pop(0)
            made = requests.post(
                f"{API}/v2/sandboxes", headers=HEADERS, json={"templateID": "base", "timeout": 600}, timeout=60
            )
            made.raise_for_status()
            self.known.append(made.json()["sandboxID"])
            return self.known[0]

    def made(self, sandbox):
        """Notes a new one, and kills the oldest of too many."""
        with self.lock:
            self.known.append(sandbox)
            surplus = self.known[:-SANDBOXES_MAX]
            del self.known[:-SANDBOXES_MAX]
        for old in surplus:
            requests.delete(f"{API}/sandboxes/{old}", headers=HEADERS, timeout=60)


sandboxes = Sandboxes()


@schemathesis.hook
def before_call(context, case, kwargs):
    """Where ids and names are well formed, they are real ones: unknown ones would end at their 404."""
    parameters = case.path_parameters or {}
    # A whole root is gigabytes, read into memory forty times over: that it comes is for the tests that use it.
    is_whole = case.path.endswith("/export")
    if not is_whole and WELL_FORMED.fullmatch(str(parameters.get("sandboxID", ""))):
        parameters["sandboxID"] = sandboxes.live()
    body = case.body
    if case.method == "POST" and case.path.endswith("/sandboxes") and isinstance(body, dict):
        if isinstance(body.get("templateID"), str):
            body["templateID"] = "base"
    # A hundred copies are within bounds, and no more is learned from them than from three.
    if case.path.endswith("/fork") and isinstance(body, dict) and isinstance(body.get("count"), int) and 3 < body["count"] <= 100:
        body["count"] = 3


@schemathesis.hook
def after_call(context, case, response):
    if case.method == "POST" and case.path.endswith("/sandboxes") and response.status_code == 201:
        sandboxes.made(response.json()["sandboxID"])
    if case.path.endswith("/fork") and response.status_code == 201:
        for fork in response.json():
            if "sandbox" in fork:
                sandboxes.made(fork["sandbox"]["sandboxID"])


@schema.parametrize()
def test_every_answer_of_an_operation_is_a_described_one(case):
    case.call_and_validate()


@pytest.mark.parametrize("key", [None, "", "e2b_", "e2b_zz", "e2b_" + "00" * 20, "e2b_" + "0" * 4000])
def test_no_operation_is_open_to_wrong_keys_but_those_that_say_so(key):
    description = requests.get(f"{API}/openapi.json", timeout=60).json()
    headers = {} if key is None else {"X-API-Key": key}
    asked = 0
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            if {} in operation.get("security", []):
                continue
            url = API + re.sub(r"\{.*?\}", "iaaaaaaaaaaaaaaaaaaaa", path)
            answer = requests.request(method, url, headers=headers, json={}, timeout=60)
            assert answer.status_code == 401, f"{method} {path}: {answer.text}"
            # The content of volumes has a protocol, tokens and error codes of its own (contract, section 6).
            expected = "unauthenticated" if path.startswith("/volumecontent/") else 401
            assert answer.json()["code"] == expected and answer.json()["message"]
            asked += 1
    assert asked > 25


def test_the_server_still_answers_and_sandboxes_can_still_be_made():
    assert requests.get(f"{API}/health", timeout=60).status_code == 204
    body = {"templateID": "base", "timeout": 60}
    made = requests.post(f"{API}/v2/sandboxes", headers=HEADERS, json=body, timeout=60)
    assert made.status_code == 201
    gone = requests.delete(f"{API}/sandboxes/{made.json()['sandboxID']}", headers=HEADERS, timeout=60)
    assert gone.status_code == 204
