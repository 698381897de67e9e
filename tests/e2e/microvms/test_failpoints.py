"""The daemon dies at every step of a virtual machine's life. Whatever was answered holds; what was under way is whole or gone; and
nothing is left that no record accounts for. Beside it one sandbox runs and another is paused, which nothing of it concerns."""

import json
import os
import pathlib
import re
import subprocess

import pytest
from e2b import SandboxState
from house import FAILPOINTS, House
from kept import Kept
from patience import PatienceIsOver, eventually
from points import MICROVM
from vmm import OURS

pytestmark = pytest.mark.skipif(FAILPOINTS is None, reason="ATOLL_FAILPOINTS_BIN names no daemon that was built with failpoints")

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def steps(flow):
    return pytest.mark.parametrize("point", [*MICROVM.get(flow, []), *OURS.points.get(flow, [])])


class Stage:
    def __init__(self):
        if "ATOLL_GUEST_KERNEL" not in os.environ:
            pytest.skip("needs ATOLL_GUEST_KERNEL: an extracted kernel package")
        self.house = House(FAILPOINTS).start()
        self.vmm = OURS(self.house)
        self.data = self.vmm.data
        self.running, self.paused = self.kept(), self.kept()
        self.paused.sandbox.pause()

    def kept(self):
        # Where it costs the disk nothing.
        return Kept(self.house, counts_in="/dev/shm")

    def dies(self, point, flow):
        """Does a flow until the daemon dies at a point of it, and starts the next daemon. Says whether the flow was answered."""
        self.vmm.see()
        answered = self.house.dies(point, flow)
        self.vmm.see()
        self.house.start()
        return answered

    def instance(self):
        for path in pathlib.Path("/run/atoll").glob("instance-*"):
            if path.read_text().strip() == os.path.realpath(self.data):
                return int(path.name.split("-")[1])
        raise AssertionError("the house has no number")

    def holds(self):
        """What there is of machines on this host, and of files, by kind."""
        number = self.instance()
        named = {name for kind in ("machines", "kept", "builds") for path in (self.data / kind).glob("*.json") for name in UUID.findall(path.read_text())}
        files = [path.name.split(".")[0] for kind in ("images", "states") for path in (self.data / kind).iterdir()]
        # Below the root of a hierarchy, of which version 1 has several. Others' groups come and go meanwhile.
        ours = f"atoll{number}-{self.vmm.groups}/*"
        groups = [path for pattern in (ours, f"*/{ours}") for path in pathlib.Path("/sys/fs/cgroup").glob(pattern) if path.is_dir()]
        listed = subprocess.run(["nft", "-j", "list", "table", "inet", f"atoll{number}"], capture_output=True, text=True, check=True).stdout
        return {
            "processes": len(self.vmm.processes()),
            "records": len(self.vmm.records()),
            "places": len(self.vmm.places()),
            "control groups": len({path.name for path in groups}),
            "links": len([name for name in os.listdir("/sys/class/net") if name.startswith(f"at{number}-")]),
            "in the firewall": len({slot for slot in re.findall(rf"at{number}-(\d+)", json.dumps(json.loads(listed)["nftables"]))}),
            "files that nothing names": len(set(files) - named),
        }

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
        one = {"processes": 1, "records": 1, "places": 1, "control groups": 1, "links": 1, "in the firewall": 1, "files that nothing names": 0}
        try:
            eventually(lambda: self.holds() == one, "nothing to be left")
        except PatienceIsOver:
            raise AssertionError(f"after a death at {point} there is {self.holds()}\n{self.house.log()}") from None

    def close(self):
        self.paused.works()
        self.paused.runs_on()
        self.house.down()
        assert not self.vmm.processes()


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
    kept = stage.kept()
    stage.dies(point, lambda: kept.sandbox.pause())
    kept.works()
    kept.runs_on()
    kept.sandbox.kill()
    stage.assert_all_is_kept(point)


@steps("pause of what was resumed")
def test_a_pause_of_what_was_resumed_keeps_the_memory(stage, point):
    kept = stage.kept()
    kept.sandbox.pause()
    kept.works()
    stage.dies(point, lambda: kept.sandbox.pause())
    kept.works()
    kept.runs_on()
    kept.sandbox.kill()
    stage.assert_all_is_kept(point)


@steps("pause to disk")
def test_a_pause_to_disk_keeps_the_disk(stage, point):
    kept = stage.kept()
    stage.dies(point, lambda: kept.sandbox.pause(mode="filesystem"))
    kept.works()
    kept.sandbox.kill()
    stage.assert_all_is_kept(point)


@steps("resume")
def test_a_resume_keeps_the_memory(stage, point):
    kept = stage.kept()
    kept.sandbox.pause()
    stage.dies(point, lambda: stage.house.connect(kept.id))
    kept.works()
    kept.runs_on()
    kept.sandbox.kill()
    stage.assert_all_is_kept(point)


@steps("snapshot")
def test_a_snapshot_is_there_or_not_and_its_source_goes_on(stage, point):
    kept = stage.kept()
    assert not stage.dies(point, lambda: kept.sandbox.create_snapshot())
    kept.works()
    kept.runs_on()
    # Whatever became of that one, the next is whole.
    snapshot = kept.sandbox.create_snapshot().snapshot_id
    copy = stage.house.create(template=snapshot)
    assert copy.files.read("/home/user/kept") == kept.id
    assert int(copy.files.read(kept.count_at)) > 0
    copy.kill()
    kept.sandbox.delete_snapshot(snapshot, **stage.house.api)
    kept.sandbox.kill()
    stage.assert_all_is_kept(point)


@steps("kill")
def test_a_kill_is_carried_out(stage, point):
    kept = stage.kept()
    stage.dies(point, lambda: kept.sandbox.kill())
    eventually(kept.is_gone, "the sandbox to be gone")
    stage.assert_all_is_kept(point)


@steps("recovery")
def test_a_recovery_that_dies_is_done_again(stage, point):
    stage.vmm.see()
    stage.house.dies("microvm/process-started", lambda: stage.house.create())
    stage.vmm.see()
    stage.house.armed.write_text(point)
    stage.house.spawn().wait_for_death()
    stage.house.armed.unlink()
    stage.house.start()
    stage.assert_all_is_kept(point)
