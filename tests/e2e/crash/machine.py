"""What a house holds on this machine: every kind of thing, counted, and told by the slot to which it belongs.

Other houses may live beside it. Its own things carry its instance: a number below /run/atoll, a range of users, the
names of its groups, links and table, and the path of its data.
"""

import collections
import contextlib
import json
import os
import pathlib
import re
import sqlite3
import subprocess

from patience import PatienceIsOver, eventually

# crates/container/src/users.rs
SLOTS_MAX, USERS = 4096, 65536
# Remembered for a while, whoever is gone: the pace of new flows, and the kernel's count of those that end late.
FADING_SETS = ("pace", "count")
# Names of descriptors without the numbers that tell one from the other.
NUMBERS = re.compile(r"\d+")


class Machine:
    """The machine as one house sees it; compared with how it was when this was made."""

    def __init__(self, house):
        self.house = house
        self.before = self.look()

    def look(self):
        """Everything: kind → sorted names."""
        instance = self.instance()
        table = firewall(instance)
        processes = list(self.processes(instance))
        return {
            "processes": sorted(f"{pid} {command}" for pid, _, command, _ in processes),
            "namespaces": sorted({space for pid, *_ in processes if not self.is_ours_on_the_host(pid) for space in namespaces(pid)}),
            "cgroups": sorted(map(str, cgroups(instance))),
            "links": sorted(name for name in os.listdir("/sys/class/net") if name.startswith(f"at{instance}-")),
            "firewall": sorted(table),
            "mounts": sorted(line.split()[4] for line in open("/proc/self/mountinfo") if str(self.house.dir) in line),
            "loops": sorted(f"{name} {backing}" for name, backing in loops() if str(self.house.dir) in backing),
            "files": sorted(str(path.relative_to(self.house.dir)) for path in self.files()),
        }

    def slots(self):
        """Which slots have something: kind → set of slots. Without a record nothing of a slot may be there for long."""
        instance, data = self.instance(), self.house.dir / "container"
        below = first_user(instance)
        images = [path for volume in ("disks", "volume") for path in (data / volume / "slots").glob("*.img")]
        return {
            "records": {int(path.stem) for path in (data / "slots").glob("*.json")},
            "processes": {(user - below) // USERS for _, user, *_ in self.processes(instance) if user >= below},
            "cgroups": {int(path.name) for path in cgroups(instance) if path.name.isdigit()},
            "links": {int(name.split("-")[1]) for name in os.listdir("/sys/class/net") if name.startswith(f"at{instance}-")},
            "firewall": {int(slot) for name in firewall(instance) for slot in re.findall(rf"at{instance}-(\d+)", name)},
            "disks": {int(path.stem) for path in images},
            "loops": {int(slot) for _, backing in loops() if str(data) in backing for slot in re.findall(r"/slots/(\d+)\.img", backing)},
        }

    def assert_accounted(self, sandboxes, what, lost=()):
        """Eventually every slot that has anything is on record; there are as many as these sandboxes have, and those that
        are prepared for others; and what is kept on files belongs to these sandboxes, or to lost ones of which that is all."""
        wanted = {sandbox.sandbox_id for sandbox in sandboxes}
        filed = wanted | {sandbox.sandbox_id for sandbox in lost}

        def settled():
            slots = self.slots()
            kept = {name for name in self.sandboxes_on_file()}
            specs = self.claims()
            ready = {slot for slot, owner in specs.items() if owner is None}
            mismatch = {kind: sorted(found ^ slots["records"]) for kind, found in slots.items() if kind != "firewall" and found != slots["records"]}
            stray = sorted(slots["firewall"] - slots["records"]) or self.rules_without_address()
            owners = {owner for owner in specs.values() if owner}
            unfinished = self.unfinished()
            self.fault = {
                "slots apart from records": mismatch,
                "firewall without record": stray,
                "on file": kept ^ filed,
                "claimed for others": owners - wanted,
                "prepared": len(ready),
                "files of builds and volumes without record": unfinished,
            }
            return not mismatch and not stray and not unfinished and kept == filed and owners <= wanted and len(ready) == self.house.pool

        try:
            eventually(settled, what)
        except PatienceIsOver:
            raise AssertionError(f"{what}: not accounted for: {self.fault}\n{self.house.log()}") from None

    def assert_clean(self, what):
        """Eventually nothing is left that was not there before."""

        def left():
            now = self.look()
            return {kind: sorted(found) for kind in now if (found := set(now[kind]) - set(self.before[kind]))}

        try:
            eventually(lambda: not left(), what)
        except PatienceIsOver:
            raise AssertionError(f"{what}: left behind {left()}") from None

    def rules_without_address(self):
        """Each link that may speak has one policy: every destination, or lists of its own."""
        sets = collections.Counter(name.split()[1] for name in firewall(self.instance()) if name.startswith("element "))
        return {} if sets["open"] + sets["lists"] == sets["addresses"] else dict(sets)

    def sandboxes_on_file(self):
        """Whose journal entries and kept disks there are."""
        journal = (self.house.dir / "node/sandboxes").glob("*.json")
        kept = [path for volume in ("disks", "volume") for path in (self.house.dir / "container" / volume / "kept").glob("*")]
        # Whatever is kept under a name: its disk, its memory, and what it is over.
        return {path.name.split(".")[0] for path in [*journal, *kept]}

    def builds(self):
        """The builds on record on the node: name → record."""
        found = {}
        for path in (self.house.dir / "container/builds").glob("*.json"):
            with contextlib.suppress(OSError, ValueError):  # replaced or removed while we looked
                found[path.stem] = json.loads(path.read_text())
        return found

    def named_builds(self):
        """The builds that something names: templates, sandboxes that are not gone, results of steps, builds under way."""
        asked = """
            SELECT named.key FROM templates, json_each(templates.body, '$.builds') AS named
            UNION SELECT body ->> '$.build' FROM sandboxes WHERE gone_us IS NULL
            UNION SELECT body ->> '$.phase.into' FROM sandboxes WHERE gone_us IS NULL
            UNION SELECT build FROM cached_steps
            UNION SELECT id FROM builds WHERE NOT is_over"""
        return {name for (name,) in self.ask_store(asked)}

    def ask_store(self, question):
        """The rows that the house's own store answers with."""
        path = next(self.house.dir.glob("*.db"))
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as store:
            return store.execute(question).fetchall()

    def strays(self):
        """Builds on the node that nothing names; a collection removes them."""
        on_node = set(self.builds())
        return on_node - self.named_builds()

    def unfinished(self):
        """Files and mounts of builds and volumes that no record accounts for: what was never finished, or was about to go."""
        data, records = self.house.dir / "container", self.builds()
        text = json.dumps(list(records.values()))
        known = lambda name: name in records or name in text  # noqa: E731
        volume = next(data / name for name in ("volume", "disks") if (data / name / "builds").is_dir())
        volumes = {path.stem for path in (data / "volumes").glob("*.json")}
        stored = {name for (name,) in self.ask_store("SELECT id FROM volumes")}
        suspects = {
            "builds": [path for path in names(volume / "builds") if path.name.split(".")[0] not in records],
            "sealed": [path for path in names(volume / "sealed") if not known(path.name.split(".")[0])],
            "layers": [path for path in names(data / "layers") if not known(path.name)],
            "endings": [path for place in ("builds", "sealed", "kept", "volumes") for path in names(volume / place) if path.suffix in (".partial", ".gone", ".copy", ".new")],
            "volumes": [path for path in names(volume / "volumes") if path.stem not in volumes],
            "mounts": [path for path in self.mounts_of("sealed") if not known(path.name)] + [path for path in self.mounts_of("volumes") if path.name not in volumes],
            "volumes of nobody": sorted(volumes ^ stored),
        }
        return {kind: [str(found) for found in those] for kind, those in suspects.items() if those}

    def mounts_of(self, kind):
        """Where images of a kind are mounted on the host."""
        below = f"{self.house.dir}/container/mounts/{kind}/"
        return [pathlib.Path(line.split()[4]) for line in open("/proc/self/mountinfo") if line.split()[4].startswith(below)]

    def claims(self):
        """Slot → the sandbox on its record; None while it is prepared."""
        found = {}
        for path in (self.house.dir / "container/slots").glob("*.json"):
            try:
                record = json.loads(path.read_text())
                found[int(path.stem)] = record["spec"] and record["spec"]["sandbox"]
            except (OSError, ValueError):
                pass  # replaced or removed while we looked
        return found

    def frozen(self, sandbox):
        """Whether the processes of a sandbox stand; None where it has none."""
        for slot, owner in self.claims().items():
            for group in cgroups(self.instance()) if owner == sandbox else []:
                if group.name == str(slot) and (events := group / "cgroup.events").exists():
                    return "frozen 1" in events.read_text()

    def slot_of(self, sandbox):
        return next(slot for slot, owner in self.claims().items() if owner == sandbox)

    def processes_of(self, slot):
        """The processes of a slot, the first one first."""
        below = first_user(self.instance()) + slot * USERS
        return sorted(pid for pid, user, *_ in self.processes(self.instance()) if below <= user < below + USERS)

    def group_file(self, slot, name):
        """What a file of a slot's groups says; None where no hierarchy has it."""
        for group in cgroups(self.instance()):
            if group.name == str(slot) and (group / name).exists():
                return (group / name).read_text()

    def groups(self):
        """Its control groups, in every hierarchy."""
        return list(cgroups(self.instance()))

    def descriptors(self):
        """What the daemon has open: kind → how many. Connections to its clients come and go, and are left out."""
        kinds = collections.Counter()
        tcp = tcp_sockets(self.house.daemon.pid)
        for entry in os.scandir(f"/proc/{self.house.daemon.pid}/fd"):
            try:
                name = os.readlink(entry.path)
            except OSError:
                continue
            if name not in tcp:
                kinds[NUMBERS.sub("", name.removesuffix(" (deleted)"))] += 1
        return kinds

    def resident_kib(self):
        """Memory of the daemon, resident, KiB."""
        status = pathlib.Path(f"/proc/{self.house.daemon.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])

    def instance(self):
        """The number by which this house's things are named; -1 before it has one."""
        for path in pathlib.Path("/run/atoll").glob("instance-*"):
            if path.read_text().strip() == os.path.realpath(self.house.dir / "container"):
                return int(path.name.split("-")[1])
        return -1

    def processes(self, instance):
        """Of its users, or of its programs: pid, user, command, program."""
        users = range(first_user(instance), first_user(instance + 1))
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                user = int(re.search(r"^Uid:\s+(\d+)", (entry / "status").read_text(), re.M)[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            try:
                program = os.readlink(entry / "exe")
            except OSError:
                # It has ended. An orphan's end is the business of the machine's first process, in its own time.
                if parent_of(entry.name) == 1:
                    continue
                program = ""
            pid = int(entry.name)
            ours = program.startswith(os.path.dirname(self.house.program) + "/") and self.is_its_daemon(pid)
            if ours or (instance >= 0 and user in users):
                yield pid, user, command, program

    def is_its_daemon(self, pid):
        """Whether a process of these programs is its daemon, or a child of it, or an orphan, which nobody may have."""
        daemon = self.house.daemon and self.house.daemon.pid
        parent = parent_of(pid)
        return daemon in (pid, parent) or parent == 1

    def is_ours_on_the_host(self, pid):
        """Whether a process is the daemon, its launcher, or gone."""
        try:
            return os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
        except OSError:
            return True

    def files(self):
        for part in ("container", "node"):
            for root, dirs, names in os.walk(self.house.dir / part):
                # The layers are thousands, and written once.
                dirs[:] = [name for name in dirs if name != "layers"]
                yield from (pathlib.Path(root) / name for name in names)


def names(directory):
    """What lies in a directory."""
    return list(directory.iterdir()) if directory.is_dir() else []


def first_user(instance):
    return (instance + 1) * SLOTS_MAX * USERS


def parent_of(pid):
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1].split()[1])
    except OSError:
        return None


def namespaces(pid):
    try:
        return [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("user", "pid", "mnt", "net", "uts", "ipc", "cgroup")]
    except OSError:
        return []


def cgroups(instance):
    """Its groups and those of its slots, in every hierarchy."""
    for hierarchy in {line.split()[4] for line in open("/proc/self/mountinfo") if " - cgroup" in line}:
        own = pathlib.Path(hierarchy) / f"atoll{instance}"
        if own.is_dir():
            yield own
            yield from (path for path in own.iterdir() if path.is_dir())


def firewall(instance):
    """Chains, rules and elements of its table, by name; not what fades by itself."""
    listed = subprocess.run(["nft", "-j", "list", "table", "inet", f"atoll{instance}"], capture_output=True, text=True)
    if listed.returncode != 0:
        return
    for item in json.loads(listed.stdout)["nftables"]:
        for kind, what in item.items():
            if kind in ("set", "map") and what["name"] not in FADING_SETS:
                yield f"set {what['name']}"
                yield from (f"element {what['name']} {i} {json.dumps(element)}" for i, element in enumerate(what.get("elem", [])))
            elif kind == "chain":
                yield f"chain {what['name']}"


def loops():
    for entry in pathlib.Path("/sys/block").glob("loop*"):
        try:
            yield entry.name, (entry / "loop/backing_file").read_text().strip()
        except OSError:
            pass


def tcp_sockets(pid):
    """Descriptors' names of TCP connections; listeners are told apart by their state."""
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = open(f"/proc/{pid}/net/{table}").read().splitlines()[1:]
        except OSError:
            continue
        found |= {f"socket:[{fields[9]}]" for fields in map(str.split, lines) if fields[3] != "0A"}
    return found
