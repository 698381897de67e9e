"""Snapshots of virtual machines that outlive their machine's disk: the blobs hold them too, disk and memory."""

import os

import pytest
from e2b.exceptions import ServiceBusyException
from house import ATOLL, FAILPOINTS, House
from patience import eventually
from points import MICROVM
from vmm import OURS


@pytest.fixture(scope="module")
def house():
    if "ATOLL_GUEST_KERNEL" not in os.environ:
        pytest.skip("needs ATOLL_GUEST_KERNEL: an extracted kernel package")
    house = House(FAILPOINTS or ATOLL)
    house.settings.write_text("[blobs]\nbuilds = true\n")
    yield house.start()
    house.down()


def files(house, kind):
    return list((OURS(house).data / kind).iterdir())


def lose(house, before_start=lambda: None):
    """As if the disk with all that machines start from were another now; the database and the blobs are what they were."""
    house.stop()
    lost = files(house, "builds")
    assert lost
    for record in lost:
        record.unlink()
    before_start()
    house.start()


#: Counts in memory, from which alone it can be known how far it came.
COUNT = "i=0; while true; do i=$((i+1)); echo $i > /dev/shm/new && mv /dev/shm/new /dev/shm/count; sleep 0.1; done"


def counted(sandbox):
    return int(sandbox.files.read("/dev/shm/count"))


@pytest.fixture(scope="module")
def snapshot(house):
    source = house.create()
    source.commands.run(COUNT, background=True, timeout=0)
    source.files.write("/home/user/kept", "kept")
    source.commands.run("head -c 5M /dev/urandom > /home/user/large")
    large = source.commands.run("sha256sum < /home/user/large").stdout
    snapshot = source.create_snapshot(**house.connection).snapshot_id
    # Not in it, and so not in what comes back.
    source.files.write("/home/user/later", "later")
    source.kill()
    # The base, and the snapshot.
    eventually(lambda: len(list((house.dir / "blobs/builds").glob("*"))) >= 2, "the builds to be in the blobs")
    return snapshot, large


def comes_back(house, snapshot):
    snapshot, large = snapshot
    copy = house.create(template=snapshot)
    before = counted(copy)
    eventually(lambda: counted(copy) > before, "what counts to go on")
    assert copy.files.read("/home/user/kept") == "kept"
    assert copy.commands.run("sha256sum < /home/user/large").stdout == large
    assert not copy.files.exists("/home/user/later")
    copy.kill()


def test_what_is_not_what_it_was_is_refused_and_comes_back_when_it_is(house, snapshot):
    whole = {pack: pack.read_bytes() for pack in (house.dir / "blobs/packs").glob("*")}

    def forge():
        for pack, held in whole.items():
            pack.write_bytes(bytes([held[0] ^ 1]) + held[1:-1] + bytes([held[-1] ^ 1]))

    lose(house, forge)
    with pytest.raises(ServiceBusyException) as refused:
        house.create(template=snapshot[0])
    assert str(house.dir) not in str(refused.value)
    for pack, held in whole.items():
        pack.write_bytes(held)
    comes_back(house, snapshot)
    fresh = house.create()
    assert not fresh.files.exists("/home/user/kept")
    fresh.kill()


@pytest.mark.skipif(FAILPOINTS is None, reason="ATOLL_FAILPOINTS_BIN names no daemon that was built with failpoints")
@pytest.mark.parametrize("point", MICROVM["arrival of a build"])
def test_what_was_being_brought_from_the_blobs_is_whole_with_the_next_daemon(house, snapshot, point):
    lose(house)
    assert not house.dies(point, lambda: house.create(template=snapshot[0]))
    house.start()
    comes_back(house, snapshot)
