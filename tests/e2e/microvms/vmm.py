"""What is on this host of a house's virtual machines, under whichever VMM it runs them."""

import os
import pathlib

import points


class Vmm:
    """Of the machines that ever were on record: what is named by them is found when the record is gone, too."""

    def __init__(self, house):
        self.data = house.dir / self.directory
        self.seen = set()

    def see(self):
        self.seen.update(record.stem for record in (self.data / "machines").glob("*.json"))

    def records(self):
        return list((self.data / "machines").glob("*.json"))

    def processes(self):
        self.see()
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(self.is_ours(words, execution) for execution in self.seen):
                found.append(int(entry.name))
        return found

    def places(self):
        """Where machines have what is theirs while they run."""
        return list((self.data / self.place).iterdir())


class Qemu(Vmm):
    directory, place, groups, points = "qemu", "run", "qemu", points.QEMU

    def is_ours(self, words, execution):
        return b"qemu-system" in words[0] and f"atoll-{execution}".encode() in words


class Firecracker(Vmm):
    directory, place, groups, points = "fc", "jail/firecracker", "fc", points.FIRECRACKER

    def is_ours(self, words, execution):
        return words[0].endswith(b"firecracker") and execution.encode() in words


#: That of the houses of these tests.
OURS = {"qemu": Qemu, "firecracker": Firecracker}.get(os.environ.get("ATOLL_RUNTIME"), Qemu)
