"""What is built from an image is everywhere, though one node alone has ever seen the image."""

import pathlib

import pytest
from e2b import Template
from fleet import eventually
from settings.registry import Registry, small_root, tar_of

#: How long a start may be refused while a build is on its way to the blobs.
STOWED_SECONDS = 90


@pytest.fixture(scope="module")
def registry(fleet):
    """A registry on the fleet's own network, of which every node is told."""
    registry = Registry(fleet.told["consul"].rsplit(":", 1)[0])
    places = {node["name"]: pathlib.Path(node["data"]).parent / "atoll.toml" for node in fleet.nodes}
    before = {name: place.read_text() for name, place in places.items()}

    def tell(more):
        for name, place in places.items():
            place.write_text(before[name] + more)
            fleet.die(name)
        fleet.settle()

    tell(f'\n[images.registries."{registry.address}"]\ninsecure = true\n')
    try:
        yield registry
    finally:
        registry.close()
        tell("")


@pytest.fixture(scope="module")
def built(fleet, registry):
    """A template of an image in several layers, of which an upper one implies a directory; its registry is gone."""
    name = "of-an-image"
    over = {"opt/app": "of the second layer", "etc/release": "changed"}
    layers = [small_root(), tar_of(over), tar_of({"srv/more": "x" * 200_000})]
    registry.push("team/app", "1", layers, {"Env": ["LEVEL=high"]})
    template = Template().from_image(f"{registry.address}/team/app:1").run_cmd("echo once > /home/user/built")
    Template.build(template, name, cpu_count=1, memory_mb=512, **fleet.where())
    registry.process.kill()
    registry.process.wait()
    yield name
    fleet.call("DELETE", f"/templates/{name}", expect=(204, 404, 400))


def start_on(fleet, fresh, node, template):
    return fleet.made_on(node, fresh, template, seconds=STOWED_SECONDS)


def is_whole(sandbox):
    read = sandbox.files.read
    assert read("/opt/app") == "of the second layer"
    assert read("/etc/release") == "changed"
    assert len(read("/srv/more")) == 200_000
    assert read("/home/user/built") == "once\n"
    assert sandbox.commands.run("id -un; echo $LEVEL").stdout == "user\nhigh\n"
    return True


def layers_of(node):
    return {place.name for place in (pathlib.Path(node["data"]) / "images/layers").iterdir()}


def test_a_template_of_an_image_starts_on_every_node(fleet, fresh, built):
    assert sum(bool(layers_of(node)) for node in fleet.nodes) == 1, "one node has built it"
    for node in fleet.nodes:
        assert is_whole(start_on(fleet, fresh, node, built))
    assert len({frozenset(layers_of(node)) for node in fleet.nodes}) == 1, "the same everywhere"


def test_what_is_made_of_such_a_sandbox_is_everywhere_too(fleet, fresh, built):
    first, second, third = fleet.nodes
    source = start_on(fleet, fresh, second, built)
    source.files.write("/home/user/kept", "kept")
    for fork in source.fork(count=2, timeout=60):
        assert is_whole(fork) and fork.files.read("/home/user/kept") == "kept"
        fleet.kill(fork.sandbox_id)
    snapshot = source.create_snapshot()
    for node in (third, first):
        copy = start_on(fleet, fresh, node, snapshot.snapshot_id)
        assert is_whole(copy) and copy.files.read("/home/user/kept") == "kept"
    # A template over it, built wherever there is room.
    name = "of-an-image-and-more"
    template = Template().from_template(built).run_cmd("cat /opt/app > /home/user/copied")
    with fleet.only(third):
        Template.build(template, name, cpu_count=1, memory_mb=512, **fleet.where())
    try:
        for node in fleet.nodes:
            over = start_on(fleet, fresh, node, name)
            assert is_whole(over) and over.files.read("/home/user/copied") == "of the second layer"
    finally:
        fleet.call("DELETE", f"/templates/{name}", expect=(204, 404, 400))


def test_such_a_sandbox_is_paused_on_one_node_and_resumed_on_another(fleet, fresh, built):
    home = fleet.nodes[0]
    sandbox = start_on(fleet, fresh, home, built)
    sandbox.files.write("/home/user/kept", "kept")
    sandbox.pause()
    with fleet.marked(home, "draining", withinSeconds=0):
        eventually(lambda: fleet.drain_of(home)["isOver"], "it is empty", 120)
        again = eventually(lambda: fleet.connected(sandbox.sandbox_id, timeout=300), "it is resumed", 60)
        assert is_whole(again) and again.files.read("/home/user/kept") == "kept"
        # By its disk, and what its home still held of it is ended.
        eventually(lambda: sandbox.sandbox_id not in fleet.on(home), "nothing of it is left behind", 30)
        assert any(sandbox.sandbox_id in fleet.on(node) for node in fleet.nodes)
