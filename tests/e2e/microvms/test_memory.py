"""Memory that goes on, and copies of it that are nobody's twins."""

import time

from e2b import Sandbox

COUNT = "i=0; while true; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.05; done"


def count(sandbox):
    return int(sandbox.commands.run("cat /dev/shm/count").stdout)


def clock_is_off_by(sandbox):
    before = time.time()
    told = float(sandbox.commands.run("date +%s.%N").stdout)
    after = time.time()
    return max(before - told, told - after, 0.0)


def test_a_sandbox_has_a_kernel_of_its_own_and_the_disk_that_it_was_promised(fresh):
    sandbox = fresh()
    told = sandbox.commands.run("cat /proc/version; df -BM --output=size / | tail -1").stdout.splitlines()
    with open("/proc/version") as version:
        assert told[0] != version.read().strip()
    # Ten GiB, but for what the file system takes.
    assert 9_500 < int(told[1].strip().rstrip("M")) <= 10_240


def test_a_process_goes_on_counting_after_a_pause_and_the_clock_is_right(fresh):
    sandbox = fresh()
    sandbox.commands.run(COUNT, background=True)
    time.sleep(1)
    before = count(sandbox)
    sandbox.pause()
    time.sleep(3)
    sandbox = sandbox.connect()
    assert clock_is_off_by(sandbox) < 1.0
    after = count(sandbox)
    assert after >= before
    time.sleep(1)
    assert count(sandbox) > after


def test_copies_of_one_snapshot_share_nothing_but_the_past(fresh):
    source = fresh()
    source.files.write("/home/user/past", "shared")
    source.commands.run(COUNT, background=True)
    # The pool of the kernel is in the memory that is copied.
    source.commands.run("head -c 16 /dev/urandom > /dev/null; cat /proc/sys/kernel/random/boot_id")
    snapshot = source.create_snapshot()
    copies = [fresh(snapshot.snapshot_id) for _ in range(3)]
    identities = []
    for copy in [source, *copies]:
        assert copy.files.read("/home/user/past") == "shared"
        told = copy.commands.run(
            "head -c 16 /dev/urandom | od -An -tx1 | tr -d '\\n'; echo; cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname"
        ).stdout.splitlines()
        assert len(told) == 4
        identities.append(told)
    for kind in zip(*identities):
        assert len(set(kind)) == len(identities), kind
    tokens = {copy._envd_access_token for copy in [source, *copies]}
    assert len(tokens) == len(identities)
    for number, copy in enumerate(copies):
        copy.files.write("/home/user/own", str(number))
        assert count(copy) > 0
    assert [copy.files.read("/home/user/own") for copy in copies] == ["0", "1", "2"]
    assert not source.files.exists("/home/user/own")
    for sandbox in (source, copies[0]):
        assert clock_is_off_by(sandbox) < 1.0
    for copy in copies:
        copy.kill()
    source.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id)
