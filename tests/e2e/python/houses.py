"""Calls of the API that no SDK offers."""

import json
import os
import urllib.error
import urllib.request


def call(method, path, body=None, expect=(200, 201, 202, 204)):
    """What the API answers, as JSON; the status must be (among) the expected."""
    request = urllib.request.Request(
        (os.environ.get("E2B_API_URL") or f"https://api.{os.environ['E2B_DOMAIN']}") + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        status, text = refused.code, refused.read()
    expected = expect if isinstance(expect, tuple) else (expect,)
    assert status in expected, f"{method} {path}: {status} {text[:500]!r}"
    return json.loads(text) if text else None


def forget(name):
    """Removes a template, if it is there, with the sandboxes that were made of it."""
    for sandbox in call("GET", f"/v2/sandboxes?template={name}"):
        call("DELETE", f"/sandboxes/{sandbox['sandboxID']}", expect=(204, 404))
    for tag in call("GET", f"/templates/{name}/tags", expect=(200, 404)):
        # Of a snapshot one tag is removed at a time, of a template that was built all at once.
        if isinstance(tag, dict):
            call("DELETE", f"/templates/{name}%3A{tag['tag']}", expect=(204, 400, 404))
    call("DELETE", f"/templates/{name}", expect=(204, 404))
