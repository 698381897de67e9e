"""Builds of templates, snapshots, forks, their removal and the collector, cut short at every step. A build goes on with the
next daemon; a copy is there under its name or not at all; what nothing names is gone when it was collected."""

import re
import sys
import uuid
from pathlib import Path

import pytest
from e2b import Sandbox, Template
from house import FAILPOINTS
from kept import Kept
from patience import eventually
from points import BUILDS

sys.path.append(str(Path(__file__).parents[1] / "settings"))

from registry import Registry, small_root  # noqa: E402

pytestmark = pytest.mark.skipif(FAILPOINTS is None, reason="ATOLL_FAILPOINTS_BIN names no daemon that was built with failpoints")


def steps(flow):
    return pytest.mark.parametrize("point", BUILDS[flow])


@pytest.fixture
def name():
    return f"t-{uuid.uuid4().hex[:12]}"


def recipe(name, context, start=False):
    """A template that nobody has built before: a file, a command, and a program that runs in its sandboxes."""
    (context / "given").write_text(name)
    template = Template(file_context_path=context).from_template("base").copy("given", "/home/user/given")
    template = template.run_cmd("cat given > made && sync")
    return template.set_start_cmd("cp given /tmp/started; exec sleep infinity", "test -s /tmp/started") if start else template


def build(house, template, name):
    """Has it built, and asks after it until it is ready."""
    info = Template.build_in_background(template, name, cpu_count=1, memory_mb=512, **house.api)
    until_over(house, info.template_id)
    return info


def until_over(house, template):
    """How the last build of a template ended."""
    return eventually(lambda: over(house, template), "the build to be over")


def builds_of(house, template):
    return house.ask("GET", f"/templates/{template}")["builds"]


def over(house, template):
    last = builds_of(house, template)[0]
    return last if last["status"] in ("ready", "error") else None


def template_of(house, name):
    """The id of the template of a name, if there is one."""
    found = [one["templateID"] for one in house.ask("GET", "/templates") if any(name in each for each in one["names"])]
    return found[0] if found else None


def assert_built(house, name, started=False):
    """What is made of a template has what its steps have made."""
    sandbox = house.create(template=name)
    assert sandbox.files.read("/home/user/given") == sandbox.files.read("/home/user/made") == name
    if started:
        eventually(lambda: sandbox.commands.run("pgrep -fx 'sleep infinity' || true").stdout, "the start command to run")
    assert sandbox.kill()


def forget(house, name):
    house.ask("DELETE", f"/templates/{name}")
    assert Template.exists(name, **house.api) is False
    with pytest.raises(Exception, match="404"):
        house.create(template=name)


def assert_whole(stage, point):
    stage.assert_what_was_committed_starts()
    stage.assert_all_is_kept()
    stage.assert_nothing_is_left(point)


@pytest.fixture
def staged(bare):
    bare.committed()
    return bare


@steps("register")
def test_a_registration_blocks_nobody(staged, point, name, tmp_path):
    house, template = staged.house, recipe(name, tmp_path)
    assert not staged.dies(point, lambda: build(house, template, name))
    # It has its name, and nobody has started its build.
    left = template_of(house, name)
    assert left and [each["status"] for each in builds_of(house, left)] == ["waiting"] * (point == "orchestrator/build-registered")
    with pytest.raises(Exception, match="404|no build|not"):
        house.create(template=name)
    assert build(house, template, name).template_id == left
    assert_built(house, name)
    forget(house, name)
    assert_whole(staged, point)


@steps("build")
def test_a_build_goes_on(staged, point, name, tmp_path):
    goes_on(staged, point, name, recipe(name, tmp_path))


@steps("build that starts a command")
def test_a_build_that_starts_a_command_goes_on(staged, point, name, tmp_path):
    goes_on(staged, point, name, recipe(name, tmp_path, start=True), started=True)


def goes_on(stage, point, name, template, started=False):
    house = stage.house
    stage.dies(point, lambda: build(house, template, name))
    # Nobody has asked again.
    last = until_over(house, template_of(house, name))
    assert last["status"] == "ready", house.ask("GET", f"/templates/{template_of(house, name)}/builds/{last['buildID']}/status")
    assert_built(house, name, started)
    forget(house, name)
    assert_whole(stage, point)


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    yield registry
    registry.close()


@steps("build of an image")
def test_a_build_of_an_image_goes_on(staged, point, name, registry):
    house = staged.house
    house.stop()
    house.settings.write_text(f'[images]\nothers = "deny"\n\n[images.registries."{registry.address}"]\n')
    house.start()
    registry.push("small", name, [small_root()], {"Env": ["PATH=/usr/bin:/bin", f"NAME={name}"]})
    template = Template().from_image(f"{registry.address}/small:{name}").run_cmd("echo -n $NAME > /home/user/made; echo -n $NAME > /home/user/given")
    goes_on(staged, point, name, template)


@steps("build that fails")
def test_a_build_that_failed_has_failed(staged, point, name, tmp_path):
    house = staged.house
    staged.dies(point, lambda: build(house, recipe(name, tmp_path).run_cmd("echo going down >&2; exit 7"), name))
    last = until_over(house, template_of(house, name))
    assert last["status"] == "error"
    told = house.ask("GET", f"/templates/{template_of(house, name)}/builds/{last['buildID']}/status")
    assert "7" in told["reason"]["message"]
    build(house, recipe(name, tmp_path), name)
    assert_built(house, name)
    forget(house, name)
    assert_whole(staged, point)


def assert_snapshot(house, snapshot, kept):
    copy = house.create(template=snapshot)
    assert copy.sandbox_id != kept.id and copy.files.read("/home/user/kept") == kept.id
    assert copy.kill()


@steps("snapshot")
def test_a_snapshot_is_there_or_not_and_its_source_goes_on(staged, point, name):
    house, kept = staged.house, Kept(staged.house)
    staged.dies(point, lambda: kept.sandbox.create_snapshot(name=name, mode="filesystem"))
    kept.works()
    kept.runs_on()
    assert Template.exists(name, **house.api) is (point == "orchestrator/snapshot-stored")
    if point == "orchestrator/snapshot-stored":
        assert_snapshot(house, name, kept)
    kept.sandbox.create_snapshot(name=name, mode="filesystem")
    assert_snapshot(house, name, kept)
    forget(house, name)
    kept.sandbox.kill()
    assert_whole(staged, point)


@steps("fork")
def test_a_fork_is_whole_or_gone_and_its_source_goes_on(staged, point):
    house, kept = staged.house, Kept(staged.house)
    before = set(house.list())
    staged.dies(point, lambda: kept.sandbox.fork(timeout=3600))
    kept.works()
    kept.runs_on()
    made = set(house.list()) - before
    assert len(made) <= 1
    again = kept.sandbox.fork(timeout=3600)
    for each in [*made, *(fork.sandbox_id for fork in again)]:
        fork = house.connect(each)
        assert fork.files.read("/home/user/kept") == kept.id
        fork.kill()
    kept.sandbox.kill()
    assert_whole(staged, point)


@steps("delete")
def test_a_removal_can_be_asked_for_again(staged, point, name):
    house, kept = staged.house, Kept(staged.house)
    snapshot = kept.sandbox.create_snapshot(name=name, mode="filesystem").snapshot_id
    has_more = point == "orchestrator/snapshot-untagged"
    if has_more:
        kept.sandbox.create_snapshot(name=f"{name}:v1", mode="filesystem")
    staged.dies(point, lambda: Sandbox.delete_snapshot(snapshot, **house.api))
    if not has_more:
        # Where it was not done it is done now.
        assert Sandbox.delete_snapshot(snapshot, **house.api) is (point == "orchestrator/builds-removed")
    else:
        # Its other tag names what it named.
        assert_snapshot(house, f"{name}:v1", kept)
        assert Sandbox.delete_snapshot(f"{name}:v1", **house.api)
    assert Template.exists(name, **house.api) is False
    kept.sandbox.create_snapshot(name=name, mode="filesystem")
    assert_snapshot(house, name, kept)
    forget(house, name)
    kept.sandbox.kill()
    assert_whole(staged, point)


@steps("look")
def test_a_look_at_what_a_sandbox_has_changed_leaves_no_copy(staged, point):
    house, kept = staged.house, Kept(staged.house)
    staged.dies(point, lambda: house.ask("GET", f"/sandboxes/{kept.id}/changes"))
    kept.works()
    kept.runs_on()
    eventually(lambda: not staged.machine.strays(), f"the copy to be collected after a death at {point}")
    kept.sandbox.kill()
    assert_whole(staged, point)


@pytest.fixture
def stowing(staged):
    """A snapshot that the blobs are to hold too, from the house's next start on."""
    house = staged.house
    kept = Kept(house)
    snapshot = kept.sandbox.create_snapshot(mode="filesystem").snapshot_id
    house.stop()
    house.settings.write_text("[blobs]\nbuilds = true\n")
    yield staged, kept, snapshot
    house.stop()
    house.settings.unlink()
    house.start()


def lose(house, build):
    """As if the node had never had it."""
    house.stop()
    (house.dir / f"container/builds/{build}.json").unlink()
    house.start()


def is_stowed(house):
    """A pass brings all that is named, and is counted at its end."""
    return re.search(r"^atoll_builds_stowed_total [1-9]", house.metrics(), re.MULTILINE)


def comes_back(stage, kept, snapshot):
    assert_snapshot(stage.house, snapshot, kept)
    kept.sandbox.kill()
    stage.house.ask("DELETE", f"/templates/{snapshot}")
    assert_whole(stage, "the blobs")


@steps("stow")
def test_what_was_being_brought_to_the_blobs_is_there_with_the_next_daemon(stowing, point):
    stage, kept, snapshot = stowing
    house = stage.house
    house.armed.write_text(point)
    house.spawn().wait_for_death()
    house.armed.unlink()
    stage.start()
    eventually(lambda: is_stowed(house), "the builds to be in the blobs")
    lose(house, builds_of(house, snapshot)[0]["buildID"])
    comes_back(stage, kept, snapshot)


@steps("fetch")
def test_what_was_being_brought_from_the_blobs_is_whole_with_the_next_daemon(stowing, point):
    stage, kept, snapshot = stowing
    house = stage.house
    house.start()
    eventually(lambda: is_stowed(house), "the builds to be in the blobs")
    lose(house, builds_of(house, snapshot)[0]["buildID"])
    assert not stage.dies(point, lambda: house.create(template=snapshot))
    comes_back(stage, kept, snapshot)


@steps("collect")
def test_a_collection_removes_what_nothing_names_and_nothing_else(staged, point, name):
    house, kept = staged.house, Kept(staged.house)
    snapshot = kept.sandbox.create_snapshot(name=name, mode="filesystem").snapshot_id
    (copy,) = kept.sandbox.fork(timeout=3600)
    Sandbox.delete_snapshot(snapshot, **house.api)
    staged.dies(point, lambda: None)
    eventually(lambda: not staged.machine.strays(), f"what nothing names to be collected after a death at {point}")
    # The fork's build is named by nothing but the fork.
    for each in (kept.sandbox, copy):
        each = house.connect(each.sandbox_id)
        assert each.files.read("/home/user/kept") == kept.id
        each.pause(mode="filesystem")
        assert house.connect(each.sandbox_id).files.read("/home/user/kept") == kept.id
        each.kill()
    assert_whole(staged, point)
