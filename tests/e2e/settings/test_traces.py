"""One trace from the API through the orchestrator and the node to envd's init."""

import httpx
import pytest
from collector import CLIENT
from patience import eventually

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def call(house, method, path, **more):
    headers = {"X-API-Key": house.connection["api_key"]} | more.pop("headers", {})
    answer = httpx.request(method, f"{house.connection['api_url']}{path}", headers=headers, timeout=60, **more)
    answer.raise_for_status()
    return answer


def create(house, **headers):
    return call(house, "POST", "/v2/sandboxes", json={"templateID": "base"}, headers=headers).json()["sandboxID"]


@pytest.mark.parametrize("setting", ["ATOLL_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_a_create_and_a_kill_are_a_trace_each_down_to_envd(house_with, collector, setting):
    house = house_with(**{setting: collector.endpoint})
    sandbox = create(house)
    call(house, "DELETE", f"/sandboxes/{sandbox}")
    # What has not been sent is sent at the end.
    house.stop()
    assert collector.faults == []

    [made] = collector.named("sandbox.create", sandbox=sandbox)
    trace = {span.id: span for span in collector.spans if span.trace == made.trace}
    assert {span.service for span in trace.values()} == {"atoll"}
    [root] = [span for span in trace.values() if not span.parent]
    assert root.name == "request"
    assert root.fields["route"] == "/v2/sandboxes" and int(root.fields["status"]) == 201
    assert all(span.parent in trace for span in trace.values() if span is not root)

    [init] = [span for span in trace.values() if span.name == "envd.init"]
    way, span = [], init
    while span:
        way.append(span)
        span = trace.get(span.parent)
    assert [span.name for span in way] == ["envd.init", "node.start", "stage", "sandbox.create", "request"]
    assert init.kind == CLIENT
    _, started, stage, made, root = way
    assert stage.fields["stage"] == "node"
    assert {span.fields["sandbox"] for span in (init, started, made)} == {sandbox}
    assert len({span.fields["execution"] for span in (init, started, made)}) == 1
    assert len({span.fields["node"] for span in (started, made)}) == 1
    assert made.fields["team"] == root.fields["team"] != ""

    [killed] = collector.named("sandbox.kill", sandbox=sandbox)
    assert killed.trace != made.trace
    [ended] = collector.named("node.kill", sandbox=sandbox)
    assert (ended.trace, ended.parent) == (killed.trace, killed.id)
    assert ended.fields["why"] == "it was killed on request"
    assert ended.fields["execution"] == killed.fields["execution"] == made.fields["execution"]
    assert ended.fields["node"] == killed.fields["node"] == made.fields["node"]


def test_a_trace_of_the_caller_goes_on_and_envd_knows_it(house_with, collector):
    house = house_with(ATOLL_OTLP_ENDPOINT=collector.endpoint)
    sandbox = create(house, traceparent=f"00-{TRACE}-{CALLER}-01")
    lines = eventually(lambda: call(house, "GET", f"/v2/sandboxes/{sandbox}/logs", params={"level": "debug"}).json()["logs"], "the log")
    assert TRACE in [line["fields"].get("trace_id") for line in lines]
    # Not only at the end: in batches, as time goes by.
    [made] = eventually(lambda: collector.named("sandbox.create", sandbox=sandbox), "the span of the create")
    [request] = eventually(lambda: [span for span in collector.spans if span.id == made.parent], "the span of the request")
    assert (made.trace, request.trace, request.parent) == (TRACE, TRACE, CALLER)


def test_a_broken_parent_is_no_parent(house_with, collector):
    house = house_with(ATOLL_OTLP_ENDPOINT=collector.endpoint)
    broken = ["", "00-", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{CALLER}-01", "x" * 4000]
    for parent in broken:
        call(house, "GET", "/v2/sandboxes", headers={"traceparent": parent})
    house.stop()
    asked = collector.named("request", route="/v2/sandboxes")
    assert len(asked) == len(broken)
    assert all(span.parent == "" and span.trace != TRACE for span in asked)


def test_a_collector_that_is_away_costs_a_line_and_nothing_else(house_with, collector):
    collector.close()
    house = house_with(ATOLL_OTLP_ENDPOINT=collector.endpoint)
    for _ in range(3):
        call(house, "DELETE", f"/sandboxes/{create(house)}")
    eventually(lambda: "traces do not reach the collector" in house.log(), "the warning")
    call(house, "DELETE", f"/sandboxes/{create(house)}")
    house.stop()
    assert house.log(tail=10**7).count("traces do not reach the collector") == 1
