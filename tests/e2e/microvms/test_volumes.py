"""Volumes in virtual machines: through pauses with memory, dead daemons and copies, and for several at once."""

import os
import time
import uuid

import httpx
import pytest
from house import House
from patience import eventually


@pytest.fixture(scope="module")
def house():
    if "ATOLL_GUEST_KERNEL" not in os.environ:
        pytest.skip("needs ATOLL_GUEST_KERNEL: an extracted kernel package")
    house = House()
    yield house.start()
    house.down()


class Volume:
    """A volume, and its files as they are from outside."""

    def __init__(self, house):
        self.house = house
        self.name = f"v-{uuid.uuid4().hex[:12]}"
        made = self.call("POST", "/volumes", json={"name": self.name})
        self.id = made["volumeID"]

    def call(self, method, path, token=None, **more):
        # A daemon that was killed and is there again answers where it did.
        headers = {"Authorization": f"Bearer {token}"} if token else {"X-API-Key": self.house.connection["api_key"]}
        answer = httpx.request(method, self.house.connection["api_url"] + path, headers=headers, timeout=60, **more)
        answer.raise_for_status()
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.content

    def content(self, method, path, force=False, **more):
        token = self.call("GET", f"/volumes/{self.id}")["token"]
        return self.call(method, f"/volumecontent/{self.id}/file", token=token, params={"path": path} | ({"force": "true"} if force else {}), **more)

    def read(self, path):
        return self.content("GET", path).decode()

    def write(self, path, text):
        self.content("PUT", path, content=text.encode(), force=True)


@pytest.fixture
def volume(house):
    return Volume(house)


@pytest.fixture
def create(house):
    made = []

    def create(*args, **options):
        sandbox = house.create(*args, **options)
        made.append(sandbox)
        return sandbox

    yield create
    for sandbox in made:
        house.connect(sandbox.sandbox_id).kill()


def said(sandbox, command):
    return sandbox.commands.run(command).stdout


#: Holds a file open, and appends a line to it whenever it is asked.
HOLDER = """python3 -c "
import pathlib, time
asked, told = pathlib.Path('/dev/shm/asked'), pathlib.Path('/dev/shm/told')
with open('/data/held', 'a+') as held:
    done = 0
    told.write_text('0')
    while True:
        wanted = int((asked.exists() and asked.read_text().strip()) or 0)
        if wanted > done:
            done = wanted
            held.write(f'inside {done}\\n')
            held.flush()
            told.write_text(str(done))
        time.sleep(0.02)
" """


def have_written(sandbox, number):
    said(sandbox, f"echo {number} > /dev/shm/asked")
    eventually(lambda: said(sandbox, "cat /dev/shm/told").strip() == str(number), "the file to be written to")


def test_a_file_that_is_open_goes_on_after_a_pause_and_is_written_on_both_sides(house, volume, create):
    sandbox = create(volume_mounts={"/data": volume.name})
    sandbox.commands.run(HOLDER, background=True)
    eventually(lambda: said(sandbox, "cat /dev/shm/told 2> /dev/null || true").strip() == "0", "the file to be open")
    have_written(sandbox, 1)
    assert volume.read("/held") == "inside 1\n"
    sandbox.pause()
    volume.write("/beside", "from outside while it stood")
    sandbox = house.connect(sandbox.sandbox_id)
    assert said(sandbox, "cat /data/beside") == "from outside while it stood"
    have_written(sandbox, 2)
    assert volume.read("/held") == "inside 1\ninside 2\n"
    assert said(sandbox, "cat /data/held") == "inside 1\ninside 2\n"


def test_a_sandbox_that_writes_waits_for_a_daemon_that_was_killed_and_goes_on(house, volume, create):
    sandbox = create(volume_mounts={"/data": volume.name})
    count = "i=0; until [ -e /dev/shm/enough ]; do i=$((i+1)); echo $i >> /data/log; echo $i > /dev/shm/new; mv /dev/shm/new /dev/shm/count; sleep 0.01; done; touch /dev/shm/done"
    sandbox.commands.run(count, background=True)

    def counted():
        return int(said(sandbox, "cat /dev/shm/count 2> /dev/null || echo 0"))

    eventually(lambda: counted() > 20, "the sandbox to write")
    house.kill()
    time.sleep(1)
    house.start()
    sandbox = house.connect(sandbox.sandbox_id)
    before = counted()
    eventually(lambda: counted() > before + 20, "the sandbox to go on")
    said(sandbox, "touch /dev/shm/enough; until [ -e /dev/shm/done ]; do sleep 0.02; done")
    lines = [int(line) for line in volume.read("/log").split()]
    assert lines == list(range(1, len(lines) + 1)), "no line is lost, and none is there twice"


def test_two_sandboxes_and_the_outside_see_each_other_at_once(house, volume, create):
    one = create(volume_mounts={"/data": volume.name})
    two = create(volume_mounts={"/mnt/deep/shared": volume.name})
    for turn in range(3):
        said(one, f"echo one {turn} > /data/x; mkdir -p /data/a/b; echo {turn} > /data/a/b/c")
        assert said(two, "cat /mnt/deep/shared/x /mnt/deep/shared/a/b/c") == f"one {turn}\n{turn}\n"
        said(two, f"echo two {turn} > /mnt/deep/shared/x; rm -r /mnt/deep/shared/a")
        assert said(one, "cat /data/x; ls /data") == f"two {turn}\nx\n"
        volume.write("/x", f"outside {turn}")
        assert said(one, "cat /data/x") == said(two, "cat /mnt/deep/shared/x") == f"outside {turn}"
    said(one, "for i in $(seq 50); do echo one >> /data/log; done & wait")
    said(two, "for i in $(seq 50); do echo two >> /mnt/deep/shared/log; done & wait")
    lines = volume.read("/log").split()
    assert (lines.count("one"), lines.count("two")) == (50, 50)


def test_what_programs_do_with_files_is_done(volume, create):
    sandbox = create(volume_mounts={"/data": volume.name})
    assert said(sandbox, "cd /data && git init -q --template= repo && cd repo && git config user.email a@b && git config user.name a && seq 100 > f && git add f && git commit -qm x && git status --porcelain") == ""
    mapped = (
        "import mmap\n"
        "with open('/data/map', 'w+b') as f:\n"
        "    f.truncate(8192)\n"
        "    with mmap.mmap(f.fileno(), 0) as m:\n"
        "        m[5000:5005] = b'hello'\n"
        "print(open('/data/map', 'rb').read()[5000:5005].decode())\n"
    )
    sandbox.files.write("/tmp/mapped.py", mapped)
    assert said(sandbox, "python3 /tmp/mapped.py") == "hello\n"
    assert volume.read("/map")[5000:5005] == "hello"
    program = (
        "cp /bin/ls /data/ls && /data/ls /data/ls && ln -s ls /data/link && ln /data/ls /data/hard && readlink /data/link"
        " && mkfifo /data/fifo && (echo through > /data/fifo & cat /data/fifo) && stat -c %h /data/ls"
        " && truncate -s 1M /data/sparse && stat -c %s /data/sparse && sync"
    )
    assert said(sandbox, program) == "/data/ls\nls\nthrough\n2\n1048576\n"
    assert said(sandbox, "sudo mknod /data/null c 1 3 2>&1 || true").strip().endswith("Operation not permitted")
    assert said(sandbox, "touch -d 2001-02-03 /data/t; chmod 4711 /data/t; stat -c '%y %a %U' /data/t").startswith("2001-02-03")


def test_a_volume_has_room_for_what_it_is_large_and_no_more(house, create):
    volume = Volume(house)
    sandbox = create(volume_mounts={"/data": volume.name})
    total = int(said(sandbox, "df -B1 --output=size /data | tail -1"))
    assert 0.8 * (10 << 30) < total <= 10 << 30


def test_a_copy_keeps_the_volume_and_one_that_is_given_none_is_told_so(house, volume, create):
    source = create(volume_mounts={"/data": volume.name})
    source.commands.run(HOLDER, background=True)
    eventually(lambda: said(source, "cat /dev/shm/told 2> /dev/null || true").strip() == "0", "the file to be open")
    snapshot = source.create_snapshot()
    have_written(source, 1)
    copy = create(template=snapshot.snapshot_id)
    eventually(lambda: "not connected" in said(copy, "cat /data/held 2>&1; true") or "No such file" in said(copy, "cat /data/held 2>&1; true"), "the volume to be gone")
    again = create(template=snapshot.snapshot_id, volume_mounts={"/data": volume.name})
    have_written(again, 7)
    assert volume.read("/held") == "inside 1\ninside 7\n"
