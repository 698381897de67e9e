"""Templates and snapshots that outlive their machine's disk: the blobs hold them too."""

import json
import os
import time

import pytest
from e2b import Sandbox, Template
from e2b.exceptions import ServiceBusyException
from house import FAILPOINTS
from patience import eventually

FILE = "[blobs]\nbuilds = true\n"


def records(house):
    """Of builds that stand on disks, not on this machine alone."""
    for path in (house.dir / "container/builds").glob("*.json"):
        said = json.loads(path.read_text())
        if said.get("disk") or "sealed" in path.read_text():
            yield path


def lose(house, before_start=lambda: None):
    """As if the disk with all that was made here were another now; the database and the blobs are what they were."""
    house.stop()
    lost = list(records(house))
    assert lost
    for record in lost:
        record.unlink()
    before_start()
    house.start()
    assert not list((house.dir / "container/volume/builds").glob("*.img"))


def test_builds_come_back_from_the_blobs(house_with):
    house = house_with(FILE)
    template = Template().from_template("base").run_cmd("echo built > /opt/built", user="root")
    Template.build(template, "stowed", **house.api)
    source = house.create(template="stowed")
    source.files.write("/home/user/mine", "kept")
    snapshot = source.create_snapshot(**house.connection)
    source.kill()
    # The base, which has no disk, the template and the snapshot.
    eventually(lambda: len(list((house.dir / "blobs/builds").glob("*"))) >= 3, "the builds to be in the blobs")

    lose(house)
    copy = house.create(template=snapshot.snapshot_id)
    assert copy.files.read("/home/user/mine") == "kept"
    assert copy.files.read("/opt/built") == "built\n"
    fresh = house.create(template="stowed")
    assert fresh.files.read("/opt/built") == "built\n"
    assert not fresh.files.exists("/home/user/mine")
    over = Template().from_template("stowed").run_cmd("cp /opt/built /opt/again", user="root")
    Template.build(over, "over", **house.api)
    assert house.create(template="over").files.read("/opt/again") == "built\n"


def held(house):
    """Bytes that the blobs hold."""
    return sum(blob.stat().st_size for blob in (house.dir / "blobs").rglob("*") if blob.is_file())


def in_blobs(house, count):
    eventually(lambda: len(list((house.dir / "blobs/builds").glob("*"))) >= count, "the builds to be in the blobs")


@pytest.mark.skipif(not FAILPOINTS, reason="needs ATOLL_FAILPOINTS_BIN: a daemon that collects every second, not every other minute")
def test_a_second_snapshot_adds_to_the_blobs_what_is_new_in_it(house_with):
    house = house_with(FILE, FAILPOINTS)
    source = house.create()
    source.commands.run("head -c 50M /dev/urandom > /home/user/large && sync")
    large = source.commands.run("sha256sum < /home/user/large").stdout
    first = source.create_snapshot(**house.connection)
    in_blobs(house, 2)
    whole = held(house)
    assert whole > 50 << 20

    # Of the same sandbox, also after it was paused and the daemon began anew.
    source.files.write("/home/user/mine", "second")
    source.pause()
    house.stop()
    house.start()
    source = source.connect()
    second = source.create_snapshot(**house.connection)
    in_blobs(house, 3)
    assert held(house) - whole < 5 << 20
    source.kill()

    # Of one that began with a snapshot.
    child = house.create(template=second.snapshot_id)
    child.files.write("/home/user/mine", "third")
    third = child.create_snapshot(**house.connection)
    in_blobs(house, 4)
    assert held(house) - whole < 10 << 20
    child.kill()

    # What they share stays when what it came with goes.
    assert Sandbox.delete_snapshot(first.snapshot_id, **house.connection)
    assert Sandbox.delete_snapshot(second.snapshot_id, **house.connection)
    builds = house.dir / "container/volume/builds"
    eventually(lambda: len(list(builds.glob("*.img"))) == 1, "the snapshots to be gone")
    house.stop()
    # As if all of it was brought days ago: what nothing refers to is swept.
    old = time.time() - 7 * 24 * 3600
    for blob in (house.dir / "blobs").rglob("*"):
        os.utime(blob, (old, old))
    house.start()
    eventually(lambda: len(list((house.dir / "blobs/builds").glob("*"))) == 2, "the blobs to be swept")
    lose(house)
    copy = house.create(template=third.snapshot_id)
    assert copy.files.read("/home/user/mine") == "third"
    assert copy.commands.run("sha256sum < /home/user/large").stdout == large


def test_what_is_not_what_it_was_is_refused_and_comes_back_when_it_is(house_with):
    house = house_with(FILE)
    source = house.create()
    source.files.write("/home/user/mine", "kept")
    snapshot = source.create_snapshot(**house.connection)
    source.kill()
    eventually(lambda: len(list((house.dir / "blobs/builds").glob("*"))) >= 2, "the builds to be in the blobs")
    whole = {pack: pack.read_bytes() for pack in (house.dir / "blobs/packs").glob("*")}

    def forge():
        for pack, held in whole.items():
            pack.write_bytes(bytes([held[0] ^ 1]) + held[1:-1] + bytes([held[-1] ^ 1]))

    lose(house, forge)
    with pytest.raises(ServiceBusyException) as refused:
        house.create(template=snapshot.snapshot_id)
    assert str(house.dir) not in str(refused.value)
    assert house.create().commands.run("echo unharmed").stdout == "unharmed\n"
    assert not list((house.dir / "container/volume/builds").glob("*")), "nothing half made is left"
    for pack, held in whole.items():
        pack.write_bytes(held)
    assert house.create(template=snapshot.snapshot_id).files.read("/home/user/mine") == "kept"
