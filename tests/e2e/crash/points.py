"""The points at which each flow dies. They are in the sources (`failpoint::reach`)."""

PREPARE = [
    "container/slot-recorded",
    "container/cgroup-made",
    "container/disk-given",
    "container/skeleton-made",
    "container/process-recorded",
    "container/link-attached",
    "container/root-assembled",
    "container/boot-ordered",
    "container/slot-up",
]
CLAIM = ["container/claim-recorded", "container/policy-in-force", "node/machine-started"]
RUN = [
    "node/settings-told",
    "node/running-written",
    "orchestrator/node-started",
    "orchestrator/route-published",
    "orchestrator/running-stored",
]
END = [
    "container/machine-ended",
    "container/all-ended",
    "container/network-released",
    "container/disk-put-away",
    "container/cgroup-removed",
    "container/record-removed",
]
PAUSE = ["orchestrator/pausing-stored", "node/pausing-written", "node/machine-paused", "node/paused-written", "orchestrator/node-paused", "orchestrator/paused-stored"]
REBOOT = ["node/reboot-meant", "container/keep-recorded", *END, "node/disk-kept", "node/reboot-written", *PREPARE, *CLAIM, *RUN]
KILL = ["orchestrator/killing-stored", "node/journal-removed", *END, "node/machine-stopped", "orchestrator/node-killed"]
SANDBOX = {
    "create": ["orchestrator/starting-stored", *PREPARE, *CLAIM, *RUN],
    "pause": PAUSE,
    "pause to disk": [*PAUSE, "node/shut-down-to-pause", "container/keep-recorded", *END],
    "auto-pause": ["node/pausing-written", "node/machine-paused", "node/paused-written"],
    "resume": ["orchestrator/resuming-stored", "node/thawed", *RUN],
    "resume from disk": ["orchestrator/resuming-stored", *PREPARE, *CLAIM, *RUN],
    "resume without memory": ["orchestrator/resuming-stored", *REBOOT],
    "restart": ["orchestrator/restarting-stored", "node/shut-down", *REBOOT],
    "kill": KILL,
    "kill a pause": KILL,
    "kill a disk": ["orchestrator/killing-stored", "node/journal-removed", "node/machine-stopped", "orchestrator/node-killed"],
    "timeout": ["node/journal-removed", *END, "node/machine-stopped"],
}
# While a daemon settles what an earlier one left.
RECOVERY = ["node/runtime-recovered", "node/journal-compared", "container/all-ended", "container/network-released", "container/disk-put-away", "container/cgroup-removed", "container/record-removed"]
# A create that is answered from the pool dies behind the answer, when the pool is filled up again.
REFILL = PREPARE

# Of a running machine, without its memory.
COPY = [
    "orchestrator/snapshotting-stored",
    "container/copying-recorded",
    "container/machine-stands",
    "container/disk-copied",
    "container/copy-finished",
    "container/build-recorded",
    "node/machine-copied",
    "orchestrator/node-checkpointed",
]
# Before a build is started it has nobody who goes on with it.
REGISTER = ["orchestrator/template-stored", "orchestrator/build-registered"]
BUILDS = {
    "register": REGISTER,
    "build": [
        "orchestrator/building-stored",
        "orchestrator/build-placed",
        "node/build-machine-started",
        "node/build-step-copied",
        "orchestrator/step-cached",
        "node/build-step-kept",
        "container/disk-sealed",
        "container/build-recorded",
        "node/build-result",
        "orchestrator/node-built",
        "orchestrator/build-tagged",
        "orchestrator/build-ready",
    ],
    "build that starts a command": ["node/build-ready", "node/build-result"],
    "build of an image": ["node/build-image-imported"],
    "build that fails": ["orchestrator/build-failed"],
    "snapshot": [*COPY, "orchestrator/snapshot-stored"],
    "fork": ["orchestrator/fork-copied", "orchestrator/starting-stored", "container/disk-given", "node/machine-started", "orchestrator/running-stored"],
    "delete": ["orchestrator/snapshot-untagged", "orchestrator/builds-removed", "orchestrator/template-removed"],
    "look": ["node/copied-to-look"],
    "stow": ["node/layers-stowed", "node/disks-stowed", "orchestrator/build-stowed"],
    "fetch": ["node/layers-fetched", "container/parts-fetched", "container/image-laid"],
    "collect": ["orchestrator/builds-condemned", "container/build-forgotten", "orchestrator/builds-collected"],
}
VOLUMES = {
    "make": ["orchestrator/volume-stored", "volumes/recorded", "orchestrator/volume-made"],
    "mount": ["container/volumes-attached"],
    "delete": [
        "orchestrator/volume-doomed",
        "orchestrator/volume-given-up",
        "volumes/removed",
        "orchestrator/volume-discarded",
        "orchestrator/volume-removed",
    ],
}

# Processes that go on from what was written of them: their network is there before they are.
RESTORE = [
    "container/slot-recorded",
    "container/cgroup-made",
    "container/disk-given",
    "container/root-assembled",
    "container/skeleton-made",
    "container/process-recorded",
    "container/link-attached",
    "container/policy-in-force",
    "container/memory-restored",
    "container/claim-recorded",
    "node/machine-started",
]
MEMORY = {
    "pause": [
        "node/pausing-written",
        "node/quiet-to-pause",
        "container/hibernation-recorded",
        "container/hibernation-disk-copied",
        "container/hibernation-stands",
        "container/hibernation-dumped",
        "container/hibernation-written",
        "container/hibernation-kept",
        "container/hibernation-given-up",
        "container/machine-ended",
        "container/record-removed",
        "node/machine-hibernated",
        "node/paused-written",
        "orchestrator/paused-stored",
    ],
    "resume": [*RESTORE, "node/machine-restored", "node/settings-told", "node/running-written", "orchestrator/running-stored"],
    "resume without memory": ["node/memory-given-up", "container/disk-given", "node/running-written"],
    "snapshot": ["node/quiet-to-copy", "container/memory-written", "container/copy-finished", "container/build-recorded", "orchestrator/snapshot-stored"],
    "fork": ["orchestrator/fork-copied", "container/skeleton-made", "container/memory-restored", "node/settings-told"],
    "build that starts a command": ["container/memory-written", "node/build-result"],
}
# Of virtual machines, under whichever VMM: tests/e2e/microvms/test_failpoints.py. A flow is died at in what is common to all, and
# in what is each VMM's own; a resume's rest is that of a create.
MICROVM = {
    "create": [
        "microvm/machine-recorded",
        "microvm/process-started",
        "microvm/process-recorded",
        "microvm/machine-begins",
        "microvm/guest-up",
        "microvm/handed-over",
    ],
    "pause": [
        "microvm/hibernation-recorded",
        "microvm/hibernation-stands",
        "microvm/hibernation-written",
        "microvm/hibernation-kept",
        "microvm/process-ended",
        "microvm/record-removed",
    ],
    "pause of what was resumed": ["microvm/hibernation-kept"],
    "pause to disk": ["microvm/keep-recorded", "microvm/disk-kept"],
    "resume": ["microvm/machine-recorded", "microvm/process-started", "microvm/handed-over"],
    "snapshot": [
        "microvm/copying-recorded",
        "microvm/machine-stands",
        "microvm/memory-written",
        "microvm/disk-copied",
        "microvm/machine-goes-on",
        "microvm/copy-noted",
        "microvm/build-recorded",
    ],
    "kill": ["microvm/process-ended", "microvm/network-unplugged", "microvm/record-removed"],
    "arrival of a build": ["microvm/parts-fetched"],
    "recovery": ["microvm/machine-adopted", "microvm/remains-ended"],
}
QEMU = {
    "create": ["qemu/image-made", "qemu/sockets-made", "qemu/network-plugged", "qemu/memory-brought-in"],
    "resume": ["qemu/memory-brought-in"],
    "kill": ["qemu/groups-removed", "qemu/sockets-removed"],
}
# Without a Firecracker at hand each of these, and of those above, is died at all the same, under one that is none:
# crates/fc-control/src/runtime/tests/deaths.rs.
FIRECRACKER = {
    "create": [
        "fc-control/image-made",
        "fc-control/jail-furnished",
        "fc-control/network-plugged",
        "fc-control/api-answers",
        "fc-control/machine-told",
        "fc-control/jail-locked",
    ],
    "pause": ["fc-control/state-lent", "fc-control/state-written"],
    "pause of what was resumed": ["fc-control/state-written", "fc-control/memory-made-whole", "fc-control/whole-memory-kept"],
    "resume": ["fc-control/memory-loaded", "fc-control/jail-locked"],
    "snapshot": ["fc-control/state-lent", "fc-control/state-written"],
    "kill": ["fc-control/processes-ended", "fc-control/cgroup-removed", "fc-control/jail-removed"],
}
ALL = set(RECOVERY).union(*(points for flows in (SANDBOX, BUILDS, VOLUMES, MEMORY, MICROVM, QEMU, FIRECRACKER) for points in flows.values()))
