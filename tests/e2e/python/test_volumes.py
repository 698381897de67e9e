"""Volumes: made, mounted into several sandboxes, and read and written from outside, with either SDK."""

import uuid

import pytest
import pytest_asyncio
from conftest import got
from e2b import AsyncVolume, NotFoundException, Sandbox, Volume
from houses import call

pytestmark = pytest.mark.needs("volumes")


@pytest.fixture
def kind(sdk):
    return Volume if sdk is Sandbox else AsyncVolume


@pytest_asyncio.fixture
async def volume(kind):
    volume = await got(kind.create(f"v-{uuid.uuid4().hex[:12]}"))
    yield volume
    for sandbox in call("GET", "/v2/sandboxes"):
        if any(mount["name"] == volume.name for mount in sandbox.get("volumeMounts") or []):
            call("DELETE", f"/sandboxes/{sandbox['sandboxID']}", expect=(204, 404))
    call("DELETE", f"/volumes/{volume.volume_id}", expect=(204, 404))


async def output(sandbox, command, **options):
    return (await got(sandbox.commands.run(command, **options))).stdout.strip()


async def test_a_volume_is_found_and_destroyed(kind, volume):
    assert (await got(kind.get_info(volume.volume_id))).name == volume.name
    assert volume.volume_id in [one.volume_id for one in await got(kind.list())]
    again = await got(kind.connect(volume.volume_id))
    assert again.name == volume.name
    with pytest.raises(Exception, match="already exists"):
        await got(kind.create(volume.name))
    with pytest.raises(Exception, match="Invalid volume name"):
        await got(kind.create("no spaces"))
    assert await got(kind.destroy(volume.volume_id)) is True
    assert await got(kind.destroy(volume.volume_id)) is False
    with pytest.raises(NotFoundException):
        await got(kind.get_info(volume.volume_id))


async def test_files_are_written_read_listed_and_removed_from_outside(volume):
    stat = await got(volume.write_file("/a.txt", "hello"))
    assert (stat.name, stat.path, stat.size, stat.type.value) == ("a.txt", "/a.txt", 5, "file")
    assert await got(volume.read_file("/a.txt")) == "hello"
    data = bytes(range(256)) * 10_000
    await got(volume.write_file("/b.bin", data))
    assert bytes(await got(volume.read_file("/b.bin", format="bytes"))) == data
    with pytest.raises(NotFoundException):
        await got(volume.make_dir("/dir/sub"))
    assert await got(volume.exists("/dir")) is False
    made = await got(volume.make_dir("/dir/sub", force=True))
    assert made.type.value == "directory"
    await got(volume.write_file("/dir/sub/c", "c", uid=1000, gid=1000, mode=0o640))
    info = await got(volume.get_info("/dir/sub/c"))
    assert (info.uid, info.gid, info.mode & 0o777) == (1000, 1000, 0o640)
    changed = await got(volume.update_metadata("/dir/sub/c", mode=0o600, uid=0, gid=0))
    assert (changed.uid, changed.gid, changed.mode & 0o777) == (0, 0, 0o600)
    assert [one.path for one in await got(volume.list("/"))] == ["/a.txt", "/b.bin", "/dir"]
    assert "/dir/sub/c" in [one.path for one in await got(volume.list("/", depth=3))]
    assert await got(volume.exists("/dir/sub/c")) is True
    await got(volume.remove("/dir"))
    assert await got(volume.exists("/dir/sub/c")) is False
    with pytest.raises(NotFoundException):
        await got(volume.read_file("/nothing"))


async def test_sandboxes_share_a_volume_and_outlive_each_other_in_it(kind, make, volume):
    one = await make(volume_mounts={"/data": volume})
    two = await make(volume_mounts={"/mnt/deep/shared": volume})
    await got(one.files.write("/data/hello.txt", "from one"))
    assert await output(two, "cat /mnt/deep/shared/hello.txt") == "from one"
    assert await got(volume.read_file("/hello.txt")) == "from one"
    await got(volume.write_file("/outside.txt", "from outside\n"))
    assert await output(one, "cat /data/outside.txt; stat -c %U /data/hello.txt") == "from outside\nuser"
    told = (await got(one.get_info()))
    assert [mount["name"] if isinstance(mount, dict) else mount.name for mount in told.volume_mounts] == [volume.name]
    with pytest.raises(Exception, match="mounted|in use"):
        await got(kind.destroy(volume.volume_id))
    await got(one.kill())
    await got(two.pause())
    with pytest.raises(Exception, match="mounted|in use"):
        await got(kind.destroy(volume.volume_id))
    await got(two.connect())
    assert await output(two, "cat /mnt/deep/shared/hello.txt") == "from one"
    await got(two.kill())
    three = await make(volume_mounts={"/data": volume})
    assert await output(three, "cat /data/hello.txt") == "from one"


async def test_no_link_leads_out_of_a_volume(make, volume):
    sandbox = await make(volume_mounts={"/data": volume})
    await got(sandbox.commands.run("ln -s /etc/passwd /data/abs; ln -s ../../../../etc /data/rel; mkfifo /data/fifo; ln -s loop /data/loop"))
    for path in ["/abs", "/rel/passwd", "/loop", "/fifo", "/../../etc/passwd"]:
        with pytest.raises(Exception):
            await got(volume.read_file(path))
    with pytest.raises(Exception):
        await got(volume.write_file("/rel/owned", "x"))
    assert (await got(volume.get_info("/abs"))).type.value == "symlink"


async def test_a_mount_that_makes_no_sense_is_refused(make, volume):
    for path, words in {"relative": "volume mount #0", "/a/../b": "volume mount #0"}.items():
        with pytest.raises(Exception, match=words):
            await make(volume_mounts={path: volume})
    with pytest.raises(Exception, match="400: .*/bin"):
        await make(volume_mounts={"/bin/behind-a-link": volume})
    with pytest.raises(Exception, match="nobody-has-this"):
        await make(volume_mounts={"/data": "nobody-has-this"})
