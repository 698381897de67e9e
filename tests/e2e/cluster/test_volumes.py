"""A volume lies on one node, is had through every API, and outlives that node's daemon."""

import contextlib
import pathlib
import uuid

import pytest
from e2b import SandboxException, Volume, VolumeException
from e2b.exceptions import ServiceBusyException
from fleet import eventually

#: Nothing of the fleet takes longer to be had again.
BACK_SECONDS = 60


class Volumes:
    """Makes volumes, and removes them after the test."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.made = []

    def where(self, api=0):
        return {"api_key": self.fleet.key, "api_url": self.fleet.apis[api]}

    def make(self, api=0):
        volume = Volume.create(f"v-{uuid.uuid4().hex[:12]}", **self.where(api))
        self.made.append(volume.volume_id)
        return volume

    def write(self, volume, path, text, api=0):
        return volume.write_file(path, text, api_url=self.fleet.apis[api])

    def read(self, volume, path, api=0):
        return volume.read_file(path, api_url=self.fleet.apis[api])

    def reads(self, volume, path, api=0):
        """What a file holds; what stands in the way now may be over in a moment."""
        with contextlib.suppress(SandboxException, ServiceBusyException, VolumeException):
            return self.read(volume, path, api)
        return None

    def names(self, api=0):
        return {one["volumeID"] for one in self.fleet.call("GET", "/volumes", api=api)}

    def destroy(self, volume, api=0):
        return Volume.destroy(volume.volume_id, **self.where(api))


@pytest.fixture
def volumes(fleet):
    volumes = Volumes(fleet)
    yield volumes
    fleet.settle()
    for sandbox in fleet.call("GET", "/v2/sandboxes"):
        if sandbox.get("volumeMounts"):
            fleet.kill(sandbox["sandboxID"])
    for name in volumes.made:
        eventually(lambda name=name: removed(fleet, name), "the volume is deleted")


def removed(fleet, name):
    fleet.call("DELETE", f"/volumes/{name}", expect=(204, 404))
    return True


def home_of(fleet, fresh, volume):
    """The node on which a volume lies: what has it runs there."""
    sandbox = fresh(volume_mounts={"/data": volume})
    home = next(node for node in fleet.nodes if sandbox.sandbox_id in fleet.on(node))
    fleet.kill(sandbox.sandbox_id)
    return home


def image_of(fleet, node, volume):
    """Whether a node has the files of a volume on its disk."""
    data = pathlib.Path(node["data"])
    return (data / "container/volumes" / f"{volume.volume_id}.json").exists()


def is_told_away(fleet, volume, home):
    """Whether a create says that the volume's node is away, and which that is."""
    with pytest.raises(ServiceBusyException) as refused:
        fleet.create(volume_mounts={"/data": volume}, timeout=60)
    return f"'{volume.name}' lies on node {home['identity']}" in str(refused.value) and "is away" in str(refused.value)


def test_a_volume_of_one_api_is_had_through_the_other_and_in_sandboxes_on_its_node(fleet, fresh, volumes):
    volume = volumes.make(api=0)
    volumes.write(volume, "/hello", "written through an API", api=0)
    assert volumes.read(volume, "/hello", api=1) == "written through an API"
    assert volume.volume_id in volumes.names(api=1)
    made = [fresh(api=at % 2, edge=at % 2, volume_mounts={"/data": volume}) for at in range(4)]
    holders = [node for node in fleet.nodes if {one.sandbox_id for one in made} & fleet.on(node)]
    assert len(holders) == 1, holders
    assert [image_of(fleet, node, volume) for node in fleet.nodes].count(True) == 1
    assert image_of(fleet, holders[0], volume)
    # One file system: what one writes the others and both APIs see, through either edge.
    assert made[0].commands.run("cat /data/hello").stdout == "written through an API"
    made[0].commands.run("echo -n inside > /data/inside")
    other = fleet.connect(made[1].sandbox_id, api=1, edge=1)
    assert other.files.read("/data/inside") == "inside"
    assert [volumes.read(volume, "/inside", api) for api in (0, 1)] == ["inside", "inside"]
    data = bytes(range(256)) * 20_000
    volumes.write(volume, "/large", data, api=1)
    assert bytes(volume.read_file("/large", format="bytes", api_url=fleet.apis[0])) == data


def test_a_volume_outlives_the_death_of_its_nodes_daemon(fleet, fresh, volumes):
    volume = volumes.make()
    home = home_of(fleet, fresh, volume)
    sandbox = fresh(volume_mounts={"/data": volume})
    sandbox.commands.run("echo -n kept > /data/kept")
    fleet.die(home["name"])
    for api in (0, 1):
        eventually(lambda api=api: volumes.reads(volume, "/kept", api) == "kept", "it is had again", BACK_SECONDS)
    fleet.settle()
    # What had it has it still, and new ones get it.
    eventually(lambda: fleet.connect(sandbox.sandbox_id).is_running(), "the sandbox is reached", BACK_SECONDS)
    assert fleet.connect(sandbox.sandbox_id).files.read("/data/kept") == "kept"
    assert fresh(volume_mounts={"/data": volume}).files.read("/data/kept") == "kept"


def test_volumes_of_two_nodes_in_one_sandbox_are_refused(fleet, fresh, volumes):
    first = volumes.make()
    home = home_of(fleet, fresh, first)
    with fleet.marked(home, "cordoned"):
        second = volumes.make(api=1)
        # What lies there stays there: nothing new has it, and its files are served.
        with pytest.raises(ServiceBusyException, match=rf"volume '{first.name}' lies on node {home['identity']}.*cordoned"):
            fresh(volume_mounts={"/a": first})
        volumes.write(first, "/served", "still")
    other = home_of(fleet, fresh, second)
    assert other["identity"] != home["identity"]
    with pytest.raises(Exception, match="(?s)400.*a sandbox runs on one node") as refused:
        fresh(volume_mounts={"/a": first, "/b": second})
    for volume, node in ((first, home), (second, other)):
        assert f"'{volume.name}'" in str(refused.value) and node["identity"] in str(refused.value)
    for volume in (first, second):
        fresh(volume_mounts={"/a": volume})


def test_a_volume_is_deleted_while_its_node_is_away(fleet, fresh, volumes):
    volume = volumes.make()
    volumes.write(volume, "/file", "of a node that goes")
    home = home_of(fleet, fresh, volume)
    with fleet.stopped(home["name"]):
        eventually(lambda: home["identity"] not in fleet.held(), "the node is out of the fleet", BACK_SECONDS)
        eventually(lambda: is_told_away(fleet, volume, home), "the refusal says why", BACK_SECONDS)
        for api in (0, 1):
            with pytest.raises(ServiceBusyException, match=f"lies on node {home['identity']}, which is away"):
                volumes.read(volume, "/file", api)
        assert volumes.destroy(volume, api=1) is True
        assert volume.volume_id not in volumes.names(api=0)
        assert image_of(fleet, home, volume)
    fleet.settle()
    eventually(lambda: not image_of(fleet, home, volume), "its files are removed", BACK_SECONDS)
