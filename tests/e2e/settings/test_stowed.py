"""Templates and snapshots that outlive their machine's disk: the blobs hold them too."""

import json

import pytest
from e2b import Template
from e2b.exceptions import ServiceBusyException
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
