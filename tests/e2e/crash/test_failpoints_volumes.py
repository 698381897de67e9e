"""Volumes that are made, mounted and deleted, cut short at every step: each is there with its files or not at all, and
nothing of it stays behind."""

import uuid

import pytest
from e2b import Volume
from house import FAILPOINTS
from patience import eventually
from points import VOLUMES

pytestmark = pytest.mark.skipif(FAILPOINTS is None, reason="ATOLL_FAILPOINTS_BIN names no daemon that was built with failpoints")


def steps(flow):
    return pytest.mark.parametrize("point", VOLUMES[flow])


@pytest.fixture
def name():
    return f"v-{uuid.uuid4().hex[:12]}"


def named(house, name):
    """The volume of a name, if there is one."""
    found = [one.volume_id for one in Volume.list(**house.api) if one.name == name]
    return Volume.connect(found[0], **house.api) if found else None


def assert_works(house, volume):
    """It has what is written to it, from outside and from within."""
    volume.write_file("/outside", "outside", api_url=house.api["api_url"])
    sandbox = house.create(volume_mounts={"/data": volume})
    assert sandbox.files.read("/data/outside") == "outside"
    sandbox.files.write("/data/inside", "inside")
    assert sandbox.kill()
    assert volume.read_file("/inside", api_url=house.api["api_url"]) == "inside"


def ends(stage, volume, point):
    """It can be deleted; then nothing is left of it."""
    assert eventually(lambda: deleted(stage.house, volume), "the volume to be deleted")
    assert named(stage.house, volume.name) is None
    stage.assert_all_is_kept()
    stage.assert_nothing_is_left(point)
    # Its name is free at once; its files go as soon as its last sandbox is off the node.
    assert eventually(lambda: stage.machine.mounts_of("volumes") == [], "nobody to have it mounted")


def deleted(house, volume):
    try:
        return Volume.destroy(volume.volume_id, **house.api)
    except Exception as refused:
        # The last sandbox that had it is not over yet.
        assert "mounted" in str(refused), refused
        return False


@steps("make")
def test_a_volume_is_made_or_not_there(bare, point, name):
    bare.dies(point, lambda: Volume.create(name, **bare.house.api))
    volume = named(bare.house, name) or Volume.create(name, **bare.house.api)
    assert_works(bare.house, volume)
    ends(bare, volume, point)


@steps("mount")
def test_a_volume_outlives_a_sandbox_that_did_not_come_up(bare, point, name):
    volume = Volume.create(name, **bare.house.api)
    volume.write_file("/before", "before", api_url=bare.house.api["api_url"])
    bare.dies(point, lambda: bare.house.create(volume_mounts={"/data": volume}))
    assert volume.read_file("/before", api_url=bare.house.api["api_url"]) == "before"
    for left in set(bare.house.list()) - {kept.id for kept in bare.all}:
        bare.house.connect(left).kill()
    assert_works(bare.house, volume)
    ends(bare, volume, point)


@steps("delete")
def test_a_volume_is_deleted_or_can_be(bare, point, name):
    volume = Volume.create(name, **bare.house.api)
    assert_works(bare.house, volume)
    bare.dies(point, lambda: deleted(bare.house, volume) or deleted(bare.house, volume))
    if named(bare.house, name):
        ends(bare, volume, point)
    again = Volume.create(name, **bare.house.api)
    assert_works(bare.house, again)
    ends(bare, again, point)
