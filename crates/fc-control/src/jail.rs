//! Jails: what each Firecracker sees of the host, and as whom it runs. Made by the jailer of its own version.
//!
//! ```text
//! <data>/jail/firecracker/<execution>/root      the same names in each, so that memory fits wherever it is brought back
//!   firecracker, firecracker.pid, dev/…         the jailer's
//!   kernel, initrd                              links, read-only             of a machine that boots
//!   state, memory                               links, read-only             of one that is restored
//!   disk                                        a link to its own image, the only one that it may write to
//!   run/api.sock, run/v.sock                    Firecracker's
//!   run/v.sock_9000                             ours, until the guest has called
//!   out/state, out/memory                       links to what is being written down, for as long as that takes
//! ```
//!
//! The jailer changes to a user that no other machine has, and gives it the jail's root and `run`, for Firecracker to make its
//! sockets in. Before a guest runs both are taken back ([`Jail::lock`]): a Firecracker that a guest has taken over can put nothing
//! of its own under names that we open.
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use guest::line::vsock::Ready;
use microvm::files::remove_dir;
use model::{ExecutionId, Resources};
use ports::step::{At, Step};

use crate::cgroup::Cgroups;

/// What the program is called in its jail, and the jails' directory after it.
pub(crate) const PROGRAM: &str = "firecracker";
/// A guest's sockets are Firecracker's descriptors: one for each of its streams.
const DESCRIPTORS_MAX: u32 = 4096;
/// What Firecracker writes beside memory: how its devices are.
const STATE_BYTES_MAX: u64 = 64 << 20;

/// A name in a jail, as Firecracker is told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inside {
    Kernel,
    Initrd,
    Disk,
    State,
    Memory,
    Api,
    Vsock,
    OutState,
    OutMemory,
}

impl Inside {
    /// With the root of the jail as `/`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "/kernel",
            Self::Initrd => "/initrd",
            Self::Disk => "/disk",
            Self::State => "/state",
            Self::Memory => "/memory",
            Self::Api => "/run/api.sock",
            Self::Vsock => "/run/v.sock",
            Self::OutState => "/out/state",
            Self::OutMemory => "/out/memory",
        }
    }

    pub(crate) fn path(self) -> PathBuf {
        self.name().into()
    }
}

/// Where jails are, and by whom they are made.
#[derive(Debug, Clone)]
pub(crate) struct Jails {
    /// `<data>/jail`.
    base: PathBuf,
    /// A copy of Firecracker that nobody replaces, named [`PROGRAM`].
    program: PathBuf,
    pub(crate) cgroups: Cgroups,
}

/// One machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Jail {
    dir: PathBuf,
    /// As whom its Firecracker runs, and of which group: of both there is one for each machine.
    pub(crate) uid: u32,
}

/// What is put into a jail before its Firecracker starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Furniture {
    /// The image that the machine writes to.
    pub(crate) disk: PathBuf,
    pub(crate) begin: Begin,
}

/// What a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Begin {
    Boot { kernel: PathBuf, initrd: PathBuf },
    Restore { state: PathBuf, memory: PathBuf },
}

impl Jails {
    pub(crate) fn open(data: &Path, program: PathBuf, cgroups: Cgroups) -> Result<Self, Step> {
        let base = data.join("jail");
        fs::create_dir_all(base.join(PROGRAM)).at(format!("making {}", base.display()))?;
        cgroups.prepare()?;
        Ok(Self {
            base,
            program,
            cgroups,
        })
    }

    /// The longest path of a socket in one below `data`, in bytes.
    pub(crate) fn longest_socket(data: &Path) -> usize {
        let jail = Jail::below(&data.join("jail"), &ExecutionId::random().to_string(), 0);
        jail.ready_socket().as_os_str().len()
    }

    pub(crate) fn of(&self, execution: ExecutionId, uid: u32) -> Jail {
        Jail::below(&self.base, &execution.to_string(), uid)
    }

    /// The jailer's arguments.
    pub(crate) fn arguments(
        &self,
        execution: ExecutionId,
        uid: u32,
        netns: &Path,
        resources: Resources,
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--id", execution.to_string().into());
        option("--exec-file", self.program.clone().into());
        option("--uid", uid.to_string().into());
        option("--gid", uid.to_string().into());
        option("--chroot-base-dir", self.base.clone().into());
        option("--netns", netns.into());
        let largest = resources.disk.bytes().max(resources.memory.bytes());
        let largest = largest.saturating_add(STATE_BYTES_MAX);
        option("--resource-limit", format!("no-file={DESCRIPTORS_MAX}").into());
        option("--resource-limit", format!("fsize={largest}").into());
        arguments.extend(self.cgroups.arguments(resources).into_iter().map(OsString::from));
        arguments.push("--new-pid-ns".into());
        arguments.push("--".into());
        // No more than errors: by itself it has a line for each odd thing that a guest does.
        for word in ["--api-sock", Inside::Api.name(), "--level", "Error"] {
            arguments.push(word.into());
        }
        arguments
    }

    /// Machines that have a jail, by the names of their directories.
    pub(crate) fn ids(&self) -> Vec<String> {
        let entries = fs::read_dir(self.base.join(PROGRAM))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Removes the jail of this name. One that is not there is no error.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Step> {
        remove_dir(&self.base.join(PROGRAM).join(id))
    }
}

impl Jail {
    fn below(base: &Path, id: &str, uid: u32) -> Self {
        Self {
            dir: base.join(PROGRAM).join(id),
            uid,
        }
    }

    /// Its root, as the host sees it.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Where a name in it is, as the host sees it.
    pub(crate) fn host(&self, inside: Inside) -> PathBuf {
        self.root().join(inside.name().trim_start_matches('/'))
    }

    /// Where the guest's call arrives that says that it is up.
    pub(crate) fn ready_socket(&self) -> PathBuf {
        let mut path = self.host(Inside::Vsock).into_os_string();
        path.push(format!("_{}", guest::line::READY_PORT));
        path.into()
    }

    /// Makes it, and puts in what a machine starts from. On record before.
    pub(crate) fn furnish(&self, furniture: &Furniture) -> Result<(), Step> {
        let root = self.root();
        fs::create_dir_all(root.join("run")).at(format!("making {}", root.display()))?;
        let out = root.join("out");
        fs::create_dir(&out).at(format!("making {}", out.display()))?;
        open_to_read(&out).at(format!("opening {} to be read", out.display()))?;
        give(&furniture.disk, self.uid)?;
        link(&furniture.disk, &self.host(Inside::Disk))?;
        let (first, second) = match &furniture.begin {
            Begin::Boot { kernel, initrd } => ((kernel, Inside::Kernel), (initrd, Inside::Initrd)),
            Begin::Restore { state, memory } => ((state, Inside::State), (memory, Inside::Memory)),
        };
        for (file, name) in [first, second] {
            link(file, &self.host(name))?;
        }
        Ok(())
    }

    /// Listens where the guest calls.
    pub(crate) fn listen(&self) -> Result<Ready, Step> {
        let step = || format!("listening on {}", self.ready_socket().display());
        let ready = Ready::listen(&self.host(Inside::Vsock)).at(step())?;
        std::os::unix::fs::chown(ready.socket(), Some(self.uid), Some(self.uid)).at(step())?;
        Ok(ready)
    }

    /// Takes its directories back from its Firecracker, which has made there what it has to make: from here on it finds things by
    /// their names, and changes none. To be done before a guest runs.
    pub(crate) fn lock(&self) -> Result<(), Step> {
        for dir in [self.root().join("run"), self.root()] {
            let step = || format!("taking {} back", dir.display());
            open_to_read(&dir).at(step())?;
            std::os::unix::fs::chown(&dir, Some(0), Some(0)).at(step())?;
        }
        // Both are there, and are what they were made as: nobody else could make them since.
        for socket in [Inside::Api, Inside::Vsock] {
            let path = self.host(socket);
            let step = || format!("looking at {}", path.display());
            let about = fs::symlink_metadata(&path).at(step())?;
            use std::os::unix::fs::FileTypeExt as _;
            if !about.file_type().is_socket() {
                return Err(io::Error::other("it is no socket")).at(step());
            }
        }
        Ok(())
    }

    /// Has Firecracker find the two files that it writes a machine down to.
    pub(crate) fn lend_out(&self, state: &Path, memory: &Path) -> Result<(), Step> {
        for (file, name) in [(state, Inside::OutState), (memory, Inside::OutMemory)] {
            give(file, self.uid)?;
            link(file, &self.host(name))?;
        }
        Ok(())
    }

    /// Takes them out again. Ones that are not there are no error.
    pub(crate) fn take_out(&self) -> Result<(), Step> {
        for name in [Inside::OutState, Inside::OutMemory] {
            remove_file(&self.host(name))?;
        }
        Ok(())
    }

    /// The process that the jailer has left behind: by its number, which it wrote into the jail.
    pub(crate) fn pid(&self) -> Result<u32, Step> {
        let path = self.root().join(format!("{PROGRAM}.pid"));
        let step = || format!("reading {}", path.display());
        let text = fs::read_to_string(&path).at(step())?;
        text.trim().parse().map_err(io::Error::other).at(step())
    }
}

/// Gives a file to a machine's user, and to nobody else.
fn give(file: &Path, uid: u32) -> Result<(), Step> {
    let step = || format!("giving {} to user {uid}", file.display());
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).at(step())?;
    std::os::unix::fs::chown(file, Some(uid), Some(uid)).at(step())
}

/// Takes a file back from a machine's user: everybody who finds it reads it, and nobody writes to it.
pub(crate) fn take_back(file: &Path) -> Result<(), Step> {
    let step = || format!("taking {} back", file.display());
    std::os::unix::fs::chown(file, Some(0), Some(0)).at(step())?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o444)).at(step())
}

fn open_to_read(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

fn link(file: &Path, name: &Path) -> Result<(), Step> {
    fs::hard_link(file, name).at(format!("linking {} to {}", name.display(), file.display()))
}

pub(crate) fn remove_file(path: &Path) -> Result<(), Step> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at(format!("deleting {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use model::MiB;
    use tokio::net::UnixListener;

    use super::*;

    fn jails(data: &Path) -> Jails {
        Jails {
            base: data.join("jail"),
            program: data.join("program/firecracker"),
            cgroups: Cgroups::find("atoll0-fc").unwrap(),
        }
    }

    #[test]
    fn the_whole_line_is_this() {
        let jails = jails(Path::new("/d"));
        let resources = Resources {
            cpu: 2,
            memory: MiB(512),
            disk: MiB(1024),
        };
        let execution = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let line = jails.arguments(execution, 70_003, Path::new("/proc/7/fd/9"), resources);
        let line: Vec<&str> = line.iter().map(|word| word.to_str().unwrap()).collect();
        let cgroups = jails.cgroups.arguments(resources);
        let (before, after) = (&line[..16], &line[16 + cgroups.len()..]);
        let expected = [
            "--id",
            "01890a5d-ac96-774b-bcce-b302099a8057",
            "--exec-file",
            "/d/program/firecracker",
            "--uid",
            "70003",
            "--gid",
            "70003",
            "--chroot-base-dir",
            "/d/jail",
            "--netns",
            "/proc/7/fd/9",
            "--resource-limit",
            "no-file=4096",
            "--resource-limit",
            "fsize=1140850688",
        ];
        assert_eq!(before, expected);
        assert_eq!(line[16..16 + cgroups.len()], cgroups);
        let expected = [
            "--new-pid-ns",
            "--",
            "--api-sock",
            "/run/api.sock",
            "--level",
            "Error",
        ];
        assert_eq!(after, expected);
    }

    #[tokio::test]
    async fn what_a_machine_may_write_to_is_its_own_and_all_else_is_not() {
        if !rustix::process::geteuid().is_root() {
            crate::tests::not_run("it takes root to give files away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let [kernel, initrd, disk, state, memory] = ["k", "i", "d", "s", "m"].map(file);
        for fixed in [&kernel, &initrd] {
            take_back(fixed).unwrap();
        }
        let jails = jails(dir.path());
        let jail = jails.of(ExecutionId::random(), 70_001);
        let begin = Begin::Boot { kernel, initrd };
        jail.furnish(&Furniture {
            disk: disk.clone(),
            begin,
        })
        .unwrap();
        let owner = |path: PathBuf| {
            let about = fs::symlink_metadata(path).unwrap();
            (about.uid(), about.mode() & 0o777)
        };
        assert_eq!(owner(jail.host(Inside::Disk)), (70_001, 0o600));
        for name in [Inside::Kernel, Inside::Initrd] {
            assert_eq!(owner(jail.host(name)), (0, 0o444));
        }
        let ready = jail.listen().unwrap();
        assert_eq!(owner(jail.ready_socket()).0, 70_001);
        // As the jailer leaves it.
        for dir in [jail.root().join("run"), jail.root()] {
            std::os::unix::fs::chown(&dir, Some(70_001), Some(70_001)).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        }
        assert!(jail.lock().is_err(), "there are no sockets yet");
        let _api = UnixListener::bind(jail.host(Inside::Api)).unwrap();
        std::os::unix::fs::symlink("/run/docker.sock", jail.host(Inside::Vsock)).unwrap();
        assert!(jail.lock().unwrap_err().source.to_string().contains("no socket"));
        fs::remove_file(jail.host(Inside::Vsock)).unwrap();
        let _vsock = UnixListener::bind(jail.host(Inside::Vsock)).unwrap();
        jail.lock().unwrap();
        for dir in [jail.root().join("run"), jail.root(), jail.root().join("out")] {
            assert_eq!(owner(dir), (0, 0o755));
        }
        jail.lend_out(&state, &memory).unwrap();
        assert_eq!(owner(jail.host(Inside::OutMemory)), (70_001, 0o600));
        jail.take_out().unwrap();
        jail.take_out().unwrap();
        take_back(&memory).unwrap();
        assert_eq!(owner(memory), (0, 0o444));
        drop(ready);
        let [id] = &*jails.ids() else {
            panic!("{:?}", jails.ids())
        };
        jails.remove(id).unwrap();
        jails.remove(id).unwrap();
        assert!(disk.exists() && jails.ids().is_empty());
    }

    #[test]
    fn a_jail_that_is_there_is_nobody_elses() {
        if !rustix::process::geteuid().is_root() {
            crate::tests::not_run("it takes root to give files away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        let jail = jails(dir.path()).of(ExecutionId::random(), 70_002);
        let furniture = Furniture {
            disk: file.clone(),
            begin: Begin::Restore {
                state: file.clone(),
                memory: file,
            },
        };
        jail.furnish(&furniture).unwrap();
        assert!(jail.furnish(&furniture).is_err());
    }
}
