"""What the admin port and the log say, and what docs/telemetry.md says that they say."""

import contextlib
import json
import pathlib
import re
import subprocess

import httpx
from e2b import Sandbox, Template
from patience import PatienceIsOver, eventually

DOCUMENT = pathlib.Path(__file__).parents[3] / "docs/telemetry.md"


def documented():
    """Of one daemon: what a fleet has beside that stands in a table of its own."""
    lines = DOCUMENT.read_text().partition("| Metric of a fleet |")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| `atoll_")]
    return {row[1].strip("`"): row[-2] for row in rows}


def admin(house, path):
    return httpx.get(f"http://{house.env['ATOLL_ADMIN_LISTEN']}{path}", timeout=30)


def emitted(house):
    return dict(re.findall(r"^# TYPE (atoll_\w+) (\w+)$", house.metrics(), re.MULTILINE))


def every_flow(house):
    sandbox = house.create()
    assert sandbox.commands.run("echo ok").stdout == "ok\n"
    sandbox.pause()
    house.connect(sandbox.sandbox_id)
    house.restart(sandbox.sandbox_id)
    options = {name: value for name, value in house.connection.items() if name != "retries"}
    snapshot = sandbox.create_snapshot()
    for fork in sandbox.fork():
        assert fork.kill()
    assert sandbox.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id, **house.connection)
    Template.build(Template().from_template("base").run_cmd("true"), "flow", **options)


def collect(house):
    """What nobody needs any more is collected when two passes have found it."""
    subprocess.run([house.program, "gc"], env=house.env, check=True, capture_output=True)
    return "atoll_builds_collected_total" in emitted(house)


def test_every_metric_is_documented_and_every_documented_one_is_emitted(house_with):
    house = house_with("[blobs]\nbuilds = true\n")
    every_flow(house)
    eventually(lambda: collect(house), "what nobody needs to be collected")
    with contextlib.suppress(PatienceIsOver):  # what is missing is told below
        eventually(lambda: set(documented()) <= set(emitted(house)), "every documented metric to be there")
    assert set(emitted(house)) == set(documented())


def test_names_say_the_unit_and_durations_are_histograms(house_with):
    house = house_with()
    every_flow(house)
    for name, kind in emitted(house).items():
        assert name.endswith("_seconds") == (kind == "histogram") == (documented()[name] == "seconds"), name
        assert name.endswith("_total") == (kind == "counter"), name
    scrape = house.metrics()
    stages = set(re.findall(r'atoll_sandbox_create_stage_seconds_count\{stage="(\w+)"\}', scrape))
    assert stages == {"resolve", "claim", "store", "node", "route", "commit"}
    assert set(re.findall(r'atoll_node_start_stage_seconds_count\{stage="(\w+)"\}', scrape)) == {"machine", "init"}


def test_a_house_that_serves_is_alive_and_ready(house_with):
    house = house_with()
    assert [admin(house, f"/health/{what}").status_code for what in ("live", "ready")] == [204, 204]


def test_log_lines_are_json_where_that_is_asked_for(house_with):
    house = house_with(ATOLL_LOG_JSON="true")
    sandbox = house.create()
    assert sandbox.kill()
    house.stop()
    lines = [json.loads(line) for line in house.log(tail=10**7).splitlines() if not line.startswith("atoll: ")]
    [ended] = [line for line in lines if line.get("message") == "ending a sandbox"]
    assert (ended["sandbox"], ended["level"]) == (sandbox.sandbox_id, "INFO")
    [kill] = [span for span in ended["spans"] if span["name"] == "sandbox.kill"]
    assert kill["sandbox"] == sandbox.sandbox_id and kill["team"] and kill["execution"] and kill["node"]
