//! Memory: what a machine's processes were, written down and brought back by [CRIU](https://criu.org), which is a program of
//! its own.
//!
//! ```text
//! dump    ──▶ line ══▶ CRIU, as the owner of the machine's users         mounts   what it makes itself, what it is given
//! restore ──▶ line ══▶ CRIU, in the groups of the slot, over a stage     child    how a fork of the launcher becomes it
//! memory   where it lies, what it fits                                  why      what went wrong, in words
//! ```
//!
//! A dump leaves the machine running. The disk is copied while all of its processes stand, so that both are of the same
//! instant. A restore makes the namespaces anew, with the users, groups and link of its own slot; the images are not
//! changed by it, and serve any number of machines.
//!
//! **Invariants.** Images are made here, lie where root alone can read them, and are never taken from anybody else: they
//! say as whom processes run. Nothing of a restored machine runs before its limits and its firewall policy are in force.
mod bring_back;
pub(crate) mod child;
mod copy;
mod images;
mod kept;
mod line;
pub(crate) mod lines;
pub(crate) mod memory;
mod mounts;
mod options;
mod preload;
pub(crate) mod recall;
mod why;
mod wire;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use linux::mount::{Attributes, set_attributes};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use self::child::{Stage, Start, Task};
use self::line::{Ask, Line, Outcome};
use self::memory::{Manifest, Part};
use self::mounts::What;
use self::options::Options;
use crate::cgroup::Cgroup;
use crate::launcher::Launcher;
use crate::step::{At, Step};

/// The oldest that works on today's kernels: older ones fail with any socket inside.
pub(crate) const VERSION_MIN: (u32, u32) = (4, 2);
/// CRIU ends a moment after its last word.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// What CRIU learned of the kernel is a struct of some hundred bytes.
const KERNEL_BYTES_MAX: usize = 4096;

/// CRIU on this machine.
#[derive(Debug)]
pub(crate) struct Criu {
    program: PathBuf,
    /// As it tells it.
    version: String,
    preload: PathBuf,
    /// Where runs write their logs.
    logs: PathBuf,
    /// What CRIU found out about the kernel, which takes it longer than a small dump.
    kernel: Mutex<Vec<u8>>,
}

/// A dump or a restore that failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// CRIU cannot do it with this machine: why, for people.
    Cannot(String),
    /// Something went wrong around it.
    Step(Step),
}

impl From<Step> for Failed {
    fn from(step: Step) -> Self {
        Failed::Step(step)
    }
}

/// What is dumped.
pub(crate) struct Dump<'a> {
    /// A machine's first process.
    pub(crate) pid: u32,
    /// The same.
    pub(crate) pidfd: BorrowedFd<'a>,
    /// What root is on the host, which owns the machine's users.
    pub(crate) owner: u32,
    /// What is to be known of it.
    pub(crate) machine: memory::Machine,
    /// The directory that is made, and where images are written to.
    pub(crate) images: &'a Path,
}

/// What is restored.
pub(crate) struct Restore<'a> {
    /// Where images are.
    pub(crate) images: &'a Path,
    /// What they say of themselves.
    pub(crate) manifest: &'a Manifest,
    /// The slot that the machine gets.
    pub(crate) slot: u32,
    /// What root is to be on the host.
    pub(crate) owner: u32,
    /// Its name.
    pub(crate) hostname: String,
    /// Its groups, with limits in force.
    pub(crate) cgroup: &'a Cgroup,
    /// Its users, as a user namespace that maps them.
    pub(crate) users: BorrowedFd<'a>,
    /// Its mounts, by where they belong; the root is among them.
    pub(crate) mounts: Vec<(String, OwnedFd)>,
}

/// Two moments of a restore: both before anything of the machine runs.
pub(crate) trait Stages {
    /// The first process is there, in its namespaces.
    fn namespaces(&mut self, pid: u32, pidfd: BorrowedFd<'_>) -> Result<(), Step>;
    /// Everything is as it was.
    fn restored(&mut self, pid: u32, pidfd: BorrowedFd<'_>) -> Result<(), Step>;
}

impl Criu {
    /// Looks at the program, and prepares what every run needs in `data`.
    ///
    /// # Errors
    /// It cannot be run, or is too old; or the directory cannot be written.
    pub(crate) fn open(program: &Path, data: &Path) -> Result<Self, Step> {
        let version = version(program)?;
        let dir = data.join("criu");
        let logs = dir.join("logs");
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).at(format!("making {}", logs.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            .at(format!("closing {}", dir.display()))?;
        let preload = dir.join("root.so");
        fs::write(&preload, preload::library()).at(format!("writing {}", preload.display()))?;
        Ok(Self {
            program: program.to_owned(),
            version,
            preload: fs::canonicalize(&preload).at(format!("looking at {}", preload.display()))?,
            logs: fs::canonicalize(&logs).at(format!("looking at {}", logs.display()))?,
            kernel: Mutex::default(),
        })
    }

    /// As it tells it, such as `4.2.1`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Writes down what a machine's processes are. `at_stop` runs while all of them stand. The machine goes on, whatever
    /// comes of it. The images are not on the host's disk yet.
    pub(crate) fn dump(
        &self,
        launcher: &Launcher,
        dump: Dump<'_>,
        at_stop: impl FnOnce() -> Result<(), Step>,
    ) -> Result<Manifest, Failed> {
        let images = dump.images;
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(images)
            .at(format!("making {}", images.display()))?;
        let dir = File::open(images).at(format!("opening {}", images.display()))?;
        let path = format!("/proc/{}/mountinfo", dump.pid);
        let mountinfo = fs::read_to_string(&path).at(format!("reading {path}"))?;
        let mut options = Options::new(dir.as_raw_fd()).of(dump.pid);
        let mut parts = Vec::new();
        for given in mounts::given(&mountinfo) {
            let name = match given.what {
                What::Node(node) => format!("{}-{node}", child::NODES),
                What::Cover(cover) => cover.to_owned(),
                What::Part => {
                    let name = format!("part-{}", parts.len());
                    parts.push(Part {
                        name: name.clone(),
                        target: given.target.clone(),
                    });
                    name
                }
            };
            options = options.external(&given.target, &name);
        }
        let run = self.start(launcher, dump.owner, Groups::of_dump(dump.pid), &[dump.pidfd])?;
        let write_ahead = memory::WriteAhead::of(images)?;
        let mut at_stop = Some(at_stop);
        let outcome = run.line.ask(Ask::Dump, options.message(), |stage, _| {
            if stage != "post-dump" {
                return Ok(());
            }
            self.learn(run.pid);
            at_stop.take().map_or(Ok(()), |at_stop| at_stop())
        });
        run.wait_for_end();
        drop(write_ahead);
        match outcome? {
            Outcome::Done => {}
            Outcome::Failed(first) => return Err(Failed::Cannot(why::not_dumped(images, first.as_deref()))),
        }
        if at_stop.is_some() {
            let silent = io::Error::other("CRIU did not say when everything stood");
            return Err(silent).at("dumping a machine").map_err(Into::into);
        }
        let _ = fs::remove_file(images.join(options::LOG));
        take_over(images)?;
        Ok(Manifest::new(&self.version, parts, dump.machine)?)
    }

    /// Brings a machine back. On failure nothing of it runs.
    pub(crate) fn restore(
        &self,
        launcher: &Launcher,
        restore: Restore<'_>,
        stages: &mut impl Stages,
    ) -> Result<(u32, OwnedFd), Failed> {
        let manifest = restore.manifest;
        let mut names = Vec::new();
        for (target, _) in &restore.mounts {
            let name = if target == "/" {
                Some(ROOT)
            } else {
                manifest.name_of(target)
            };
            let name = name.ok_or_else(|| {
                Failed::Cannot(format!(
                    "nothing was mounted at {target} when it was written down"
                ))
            })?;
            names.push(name.to_owned());
        }
        if let Some(part) = manifest.parts.iter().find(|part| !names.contains(&part.name)) {
            let lack = format!("what was mounted at {} is not there", part.target);
            return Err(Failed::Cannot(lack));
        }
        let logs = self.logs.join(restore.slot.to_string());
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).at(format!("making {}", logs.display()))?;
        let log_dir = File::open(&logs).at(format!("opening {}", logs.display()))?;
        let mut options = Options::staged(log_dir.as_raw_fd()).below(&format!("/run/{ROOT}"));
        for (node, ..) in crate::launcher::serve::DEVICES {
            let name = format!("{}-{node}", child::NODES);
            options = options.external(&name, &format!("/run/{}/{node}", child::NODES));
        }
        for cover in child::covers() {
            options = options.external(cover, &format!("/run/{cover}"));
        }
        for part in &manifest.parts {
            options = options.external(&part.name, &format!("/run/{}", part.name));
        }
        let written = written(restore.images, restore.users)?;
        names.push(child::WRITTEN.to_owned());
        let stage = Stage {
            hostname: restore.hostname,
            mounts: names,
        };
        let (unified, tasks) = (restore.cgroup.unified()?, restore.cgroup.tasks()?);
        let fds: Vec<BorrowedFd<'_>> = unified
            .iter()
            .chain(&tasks)
            .chain(restore.mounts.iter().map(|(_, mount)| mount))
            .chain([&written])
            .map(AsFd::as_fd)
            .collect();
        let groups = Groups {
            unified: unified.is_some(),
            tasks: tasks.len(),
            task: Task::Restore(stage),
        };
        let run = self.start(launcher, restore.owner, groups, &fds)?;
        drop((unified, tasks, restore.mounts, written));
        let mut machine = None;
        let outcome = run.line.ask(Ask::Restore, options.message(), |stage, pid| {
            match (stage, pid) {
                ("setup-namespaces", Some(pid)) => {
                    self.learn(run.pid);
                    let pidfd = open(pid)?;
                    stages.namespaces(pid, pidfd.as_fd())?;
                    machine = Some((pid, pidfd));
                }
                ("post-restore", _) => {
                    if let Some((pid, pidfd)) = &machine {
                        stages.restored(*pid, pidfd.as_fd())?;
                    }
                }
                _ => {}
            }
            Ok(())
        });
        if !matches!(outcome, Ok(Outcome::Done)) {
            run.end();
        }
        run.wait_for_end();
        let outcome = match outcome? {
            Outcome::Done => machine.ok_or_else(|| {
                let silent = io::Error::other("CRIU did not say which process is the first");
                Failed::Step(Step {
                    step: "restoring a machine".to_owned(),
                    source: silent,
                })
            }),
            Outcome::Failed(first) => Err(Failed::Cannot(why::not_restored(&logs, first.as_deref()))),
        };
        let _ = fs::remove_dir_all(&logs);
        outcome
    }

    fn start(
        &self,
        launcher: &Launcher,
        owner: u32,
        groups: Groups,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Run, Step> {
        let host = File::open("/proc/self/ns/mnt").at("opening the host's mount namespace")?;
        let (line, theirs) = Line::new()?;
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))
                .at(format!("using the path {}", path.display()))
        };
        let start = Start {
            program: text(&self.program)?,
            preload: text(&self.preload)?,
            launcher: text(launcher.program())?,
            owner,
            unified: groups.unified,
            tasks: groups.tasks,
            kernel: self.kernel.lock().expect(UNPOISONED).clone(),
            task: groups.task,
        };
        let fds: Vec<BorrowedFd<'_>> = [host.as_fd(), theirs.as_fd()]
            .into_iter()
            .chain(fds.iter().copied())
            .collect();
        let (pid, pidfd) = launcher.criu(start, &fds)?;
        Ok(Run { line, pid, pidfd })
    }

    /// Keeps what a run found out about the kernel, for the next.
    fn learn(&self, run: u32) {
        let mut known = self.kernel.lock().expect(UNPOISONED);
        if known.is_empty() {
            let path = format!("/proc/{run}/root/{}", child::KERNEL);
            *known = fs::read(path)
                .ok()
                .filter(|kernel| kernel.len() <= KERNEL_BYTES_MAX)
                .unwrap_or_default();
        }
    }
}

/// What a root is called on the stage.
const ROOT: &str = "root";
const UNPOISONED: &str = "nothing panics while it holds this";

/// What CRIU does, and the groups in which it does it.
struct Groups {
    unified: bool,
    tasks: usize,
    task: Task,
}

impl Groups {
    /// A dump is not the machine's to pay for.
    fn of_dump(pid: u32) -> Self {
        Self {
            unified: false,
            tasks: 0,
            task: Task::Dump(pid),
        }
    }
}

/// CRIU, at work.
struct Run {
    line: Line,
    pid: u32,
    pidfd: OwnedFd,
}

impl Run {
    /// Ends it where it is. Never while it may hold a machine that is to go on.
    fn end(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn wait_for_end(&self) {
        let patience = rustix::time::Timespec::try_from(ENDS_WITHIN).unwrap_or_default();
        let _ = rustix::event::poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&patience));
    }
}

fn open(pid: u32) -> Result<OwnedFd, Step> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        .at("reading a process number")?;
    rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK).at(format!("opening a pidfd of process {pid}"))
}

/// The images as the machine's root may read them: CRIU opens some when it is that and no more.
fn written(images: &Path, users: BorrowedFd<'_>) -> Result<OwnedFd, Step> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, images, clone)
        .at(format!("cloning the mount of {}", images.display()))?;
    let attributes = Attributes {
        read_only: true,
        no_devices: true,
        no_setuid: true,
        id_map: Some(users),
        ..Attributes::default()
    };
    set_attributes(mount.as_fd(), attributes).at(format!("mapping the owners of {}", images.display()))?;
    Ok(mount)
}

/// Gives images that CRIU wrote to root, whose all others are.
fn take_over(images: &Path) -> Result<(), Step> {
    let step = || format!("taking over the images in {}", images.display());
    for image in fs::read_dir(images).at(step())? {
        chown(image.at(step())?.path(), Some(0), Some(0)).at(step())?;
    }
    Ok(())
}

/// The version that a CRIU tells.
///
/// # Errors
/// It cannot be run, tells none, or is older than [`VERSION_MIN`].
pub(crate) fn version(program: &Path) -> Result<String, Step> {
    let step = || format!("asking {} for its version", program.display());
    let asked = Command::new(program).arg("--version").output().at(step())?;
    let told = String::from_utf8_lossy(&asked.stdout).into_owned();
    let version = told
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))
        .map(|version| version.trim().to_owned())
        .ok_or_else(|| {
            let said = String::from_utf8_lossy(&asked.stderr);
            io::Error::other(format!("it says none, but: {}", said.trim()))
        })
        .at(step())?;
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let is = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if is < VERSION_MIN {
        let (major, minor) = VERSION_MIN;
        let old = format!("it is {version}, and at least {major}.{minor} is needed");
        return Err(io::Error::other(old)).at(step());
    }
    Ok(version)
}
