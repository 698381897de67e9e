"""Reaching services inside sandboxes, by whichever address the house has."""

import http.client
import os
import ssl
import urllib.parse


def tls_context():
    """Trusts the house's authority where the environment names it; `None` is the client's own choice."""
    authority = os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=authority) if authority else None


def fetch(sandbox, port, path="/", headers=None, method="GET", body=None, timeout=30):
    """Sends one request to a port of the sandbox; returns (status, headers, body)."""
    direct = os.environ.get("E2B_SANDBOX_URL")
    if direct:
        address = urllib.parse.urlsplit(direct)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=timeout)
        routing = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
    else:
        connection = http.client.HTTPSConnection(sandbox.get_host(port), timeout=timeout, context=tls_context())
        routing = {}
    connection.request(method, path, body=body, headers={**routing, **(headers or {})})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()
