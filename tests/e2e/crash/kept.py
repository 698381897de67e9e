"""Sandboxes of which it was answered that they are there."""

from e2b import NotFoundException
from patience import eventually

BOOT = "/proc/sys/kernel/random/boot_id"


class Kept:
    """One that runs or is paused, and counts. `counts_in` is a directory."""

    def __init__(self, house, counts_in="/tmp", **options):
        self.house, self.count_at = house, f"{counts_in}/count"
        self.sandbox = house.create(timeout=3600, **options)
        count = f"i=0; while true; do i=$((i+1)); echo $i > {counts_in}/counted && mv {counts_in}/counted {self.count_at}; sleep 0.1; done"
        self.process = self.sandbox.commands.run(count, background=True, timeout=0)
        self.sandbox.files.write("/home/user/kept", self.id)
        self.boot = self.sandbox.files.read(BOOT)

    @property
    def id(self):
        return self.sandbox.sandbox_id

    @property
    def sandbox_id(self):
        return self.id

    def state(self):
        return self.sandbox.get_info().state

    def works(self):
        """It can be used, and has its disk."""
        self.sandbox = self.house.connect(self.id)
        assert self.sandbox.files.read("/home/user/kept") == self.id
        assert self.sandbox.commands.run("sudo true && echo done").stdout == "done\n"

    def runs_on(self):
        """It is the same machine as in the beginning, with the same processes."""
        assert self.sandbox.files.read(BOOT) == self.boot
        assert self.process.pid in [process.pid for process in self.sandbox.commands.list()]
        count = self.count()
        eventually(lambda: self.count() != count, "the counter to go on")

    def count(self):
        return self.sandbox.files.read(self.count_at)

    def is_gone(self):
        try:
            self.state()
        except NotFoundException:
            return True
