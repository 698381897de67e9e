"""The daemon dies at every step of a virtual machine's life. Whatever was answered holds; what was under way is whole or gone; and
nothing is left that no record accounts for. Beside it one sandbox runs and another is paused, which nothing of it concerns."""

import contextlib
import json
import os
import pathlib
import re
import subprocess

import pytest
from e2b import NotFoundException, SandboxState
from house import FAILPOINTS, House
from patience import PatienceIsOver, eventually
from points import QEMU

pytestmark = pytest.mark.skipif(FAILPOINTS is None, reason="ATOLL_FAILPOINTS_BIN names no daemon that was built with failpoints")

COUNT = "i=0; while true; do i=$((i+1)); echo $i > /dev/shm/counted && mv /dev/shm/counted /dev/shm/count; sleep 0.1; done"
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BOOT = "/proc/sys/kernel/random/boot_id"


def steps(flow):
    return pytest.mark.parametrize("point", QEMU[flow])


class Kept:
    """A sandbox of which it was answered that it is there."""

    def __init__(self, house):
        self.house = house
        self.sandbox = house.create(timeout=3600)
        self.id = self.sandbox.sandbox_id
        self.sandbox.commands.run(COUNT, background=True, timeout=0)
        self.sandbox.files.write("/home/user/kept", self.id)
        self.boot = self.sandbox.files.read(BOOT)

    def state(self):
        return self.sandbox.get_info().state

    def works(self):
        """It can be used, and has its disk."""
        self.sandbox = self.house.connect(self.id)
        assert self.sandbox.files.read("/home/user/kept") == self.id
        assert self.sandbox.commands.run("sudo true && echo done").stdout == "done\n"

    def runs_on(self):
        """It is the same machine, with the same processes."""
        assert self.sandbox.files.read(BOOT) == self.boot
        count = self.count()
        eventually(lambda: self.count() != count, "the counter to go on")

    def count(self):
        return self.sandbox.files.read("/dev/shm/count")

    def is_gone(self):
        try:
            self.state()
        except NotFoundException:
            return True


class Stage:
    def __init__(self):
        if "ATOLL_GUEST_KERNEL" not in os.environ:
            pytest.skip("needs ATOLL_GUEST_KERNEL: an extracted kernel package")
        self.house = House(FAILPOINTS).start()
        self.data = self.house.dir / "qemu"
        self.running, self.paused = Kept(self.house), Kept(self.house)
        self.paused.sandbox.pause()
        #: Executions that were on record once: processes and directories are named by them.
        self.seen = set()

    def dies(self, point, flow):
        """Does a flow until the daemon dies at a point of it, and starts the next daemon. Says whether the flow was answered."""
        self.see()
        self.house.armed.write_text(point)
        answered = True
        try:
            flow()
        except Exception:
            answered = False
        self.house.wait_for_death()
        self.see()
        self.house.armed.unlink()
        self.house.start()
        return answered

    def see(self):
        self.seen.update(record.stem for record in (self.data / "machines").glob("*.json"))

    def instance(self):
        for path in pathlib.Path("/run/atoll").glob("instance-*"):
            if path.read_text().strip() == os.path.realpath(self.data):
                return int(path.name.split("-")[1])
        raise AssertionError("the house has no number")

    def holds(self):
        """What there is of machines on this host, and of files, by kind."""
        self.see()
        number = self.instance()
        named = {name for kind in ("machines", "kept", "builds") for path in (self.data / kind).glob("*.json") for name in UUID.findall(path.read_text())}
        files = [path.name.split(".")[0] for kind in ("images", "states") for path in (self.data / kind).iterdir()]
        groups = [path for path in pathlib.Path("/sys/fs/cgroup").glob(f"**/atoll{number}-qemu/*") if path.is_dir()]
        listed = subprocess.run(["nft", "-j", "list", "table", "inet", f"atoll{number}"], capture_output=True, text=True, check=True).stdout
        return {
            "records": len(list((self.data / "machines").glob("*.json"))),
            "processes": len(self.processes()),
            "sockets": len(list((self.data / "run").iterdir())),
            "control groups": len({path.name for path in groups}),
            "links": len([name for name in os.listdir("/sys/class/net") if name.startswith(f"at{number}-")]),
            "in the firewall": len({slot for slot in re.findall(rf"at{number}-(\d+)", json.dumps(json.loads(listed)["nftables"]))}),
            "files that nothing names": len(set(files) - named),
        }

    def processes(self):
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"qemu-system" in words[0] and any(f"atoll-{execution}".encode() in words for execution in self.seen):
                    found.append(int(entry.name))
        return found

    def assert_all_is_kept(self, point):
        """The two that it does not concern are as they were; of what is there besides, everything works and is ended; and what is left
        is the one machine's that runs."""
        assert [kept.state() for kept in (self.running, self.paused)] == [SandboxState.RUNNING, SandboxState.PAUSED]
        self.running.works()
        self.running.runs_on()
        for name in set(self.house.list()) - {self.running.id, self.paused.id}:
            sandbox = self.house.connect(name)
            assert sandbox.commands.run("echo whole").stdout == "whole\n"
            sandbox.kill()
        one = {"records": 1, "processes": 1, "sockets": 1, "control groups": 1, "links": 1, "in the firewall": 1, "files that nothing names": 0}
        try:
            eventually(lambda: self.holds() == one, "nothing to be left")
        except PatienceIsOver:
            raise AssertionError(f"after a death at {point} there is {self.holds()}\n{self.house.log()}") from None

    def close(self):
        self.paused.works()
        self.paused.runs_on()
        self.house.down()
        assert not self.processes()


@pytest.fixture(scope="module")
def stage():
    stage = Stage()
    yield stage
    stage.close()


@steps("create")
def test_a_create_is_whole_or_gone(stage, point):
    before = set(stage.house.list())
    assert not stage.dies(point, lambda: stage.house.create(timeout=3600))
    assert len(set(stage.house.list()) - before) <= 1
    stage.assert_all_is_kept(point)


@steps("pause")
def test_a_pause_keeps_the_memory(stage, point):
    kept = Kept(stage.house)
    stage.dies(point, lambda: kept.sandbox.pause())
    kept.works()
    kept.runs_on()
    kept.sandbox.kill()
    stage.assert_all_is_kept(point)


@steps("pause to disk")
def test_a_pause_to_disk_keeps_the_disk(stage, point):
    kept = Kept(stage.house)
    stage.dies(point, lambda: kept.sandbox.pause(mode="filesystem"))
    kept.works()
    kept.sandbox.kill()
    stage.assert_all_is_kept(point)


@steps("resume")
def test_a_resume_keeps_the_memory(stage, point):
    kept = Kept(stage.house)
    kept.sandbox.pause()
    stage.dies(point, lambda: stage.house.connect(kept.id))
    kept.works()
    kept.runs_on()
    kept.sandbox.kill()
    stage.assert_all_is_kept(point)


@steps("snapshot")
def test_a_snapshot_is_there_or_not_and_its_source_goes_on(stage, point):
    kept = Kept(stage.house)
    assert not stage.dies(point, lambda: kept.sandbox.create_snapshot())
    kept.works()
    kept.runs_on()
    # Whatever became of that one, the next is whole.
    snapshot = kept.sandbox.create_snapshot().snapshot_id
    copy = stage.house.create(template=snapshot)
    assert copy.files.read("/home/user/kept") == kept.id
    assert int(copy.files.read("/dev/shm/count")) > 0
    copy.kill()
    kept.sandbox.delete_snapshot(snapshot, **stage.house.api)
    kept.sandbox.kill()
    stage.assert_all_is_kept(point)


@steps("kill")
def test_a_kill_is_carried_out(stage, point):
    kept = Kept(stage.house)
    stage.dies(point, lambda: kept.sandbox.kill())
    eventually(kept.is_gone, "the sandbox to be gone")
    stage.assert_all_is_kept(point)


@steps("recovery")
def test_a_recovery_that_dies_is_done_again(stage, point):
    stage.see()
    stage.house.armed.write_text("qemu/process-started")
    with contextlib.suppress(Exception):
        stage.house.create()
    stage.house.wait_for_death()
    stage.see()
    stage.house.armed.write_text(point)
    stage.house.spawn().wait_for_death()
    stage.house.armed.unlink()
    stage.house.start()
    stage.assert_all_is_kept(point)
