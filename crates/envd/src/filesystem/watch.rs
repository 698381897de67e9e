//! What happens below a directory, told by inotify(7).
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use connectrpc::ConnectError;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use wire::envd::filesystem as proto;

use super::entry::{self, Names};
use super::tree::other;
use crate::paths::passable;

/// Directories of one watch. Each costs a kilobyte of kernel memory; the kernel has a bound of its own for all.
const DIRECTORIES_MAX: usize = 65_536;
/// Entries that are found in new directories at once; more of them come faster than a client takes them.
const FOUND_MAX: usize = 65_536;
/// What one reading takes from the kernel.
const READ_BYTES: usize = 16 * 1024;

/// File systems whose changes may be made elsewhere, unseen by us (statfs(2)): NFS, CIFS, SMB, SMB2, FUSE.
const NETWORK: [i64; 5] = [0x6969, 0xFF53_4D42, 0x517B, 0xFE53_4D42, 0x6573_5546];

/// What is watched.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) recursive: bool,
    pub(super) include_entry: bool,
    pub(super) allow_network_mounts: bool,
}

/// A directory being watched.
pub(super) struct Watch {
    inotify: Arc<AsyncFd<OwnedFd>>,
    /// Here, or with the job.
    state: Option<State>,
    /// A reading under way. It is kept here, so that who stops waiting for it loses nothing.
    job: Option<JoinHandle<(State, Read)>>,
}

/// What a reading brought: nothing, if all was read already.
type Read = io::Result<Option<Vec<proto::FilesystemEvent>>>;

/// What is needed to understand the kernel's events.
struct State {
    asked: Asked,
    /// The watched directory, by a way that is open to us.
    place: String,
    /// Paths of directories below the watched one, by the kernel's number; of itself, nothing.
    dirs: HashMap<i32, String>,
    /// Entries that were found in a new directory, and whose creation the kernel may or may not tell.
    found: HashSet<(i32, String)>,
    /// The kernel had more to tell than it keeps.
    lost: bool,
}

impl Watch {
    /// Begins to watch. Blocks.
    pub(super) fn open(asked: Asked) -> Result<(OwnedFd, Opened), ConnectError> {
        let path = &asked.path;
        let place = passable(path).into_owned();
        let found = fs::metadata(&place).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                ConnectError::not_found(format!("path {path} not found: {error}"))
            }
            _ => other("getting path info of", path, &error),
        })?;
        if !found.is_dir() {
            return Err(ConnectError::invalid_argument(format!(
                "path {path} is not a directory"
            )));
        }
        if !asked.allow_network_mounts && is_network(&place) {
            let why = format!("path {path} is on a network file system, whose changes may not be seen");
            return Err(ConnectError::invalid_argument(format!(
                "{why}: allow_network_mounts accepts that"
            )));
        }
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(exhausted)?;
        let mut state = State {
            asked,
            place,
            dirs: HashMap::new(),
            found: HashSet::new(),
            lost: false,
        };
        state.add(&inotify, "", None).map_err(exhausted)?;
        Ok((inotify, Opened(state)))
    }

    /// What was opened, on the runtime.
    pub(super) fn begin(inotify: OwnedFd, Opened(state): Opened) -> Result<Self, ConnectError> {
        #[expect(
            deprecated,
            reason = "an OwnedFd is what it is until its end, which is all that registering asks for"
        )]
        let inotify = AsyncFd::new(inotify).map_err(|error| broken(&error))?;
        Ok(Self {
            inotify: Arc::new(inotify),
            state: Some(state),
            job: None,
        })
    }

    /// What happened since, at least one thing. May be dropped while it waits, and called again.
    pub(super) async fn next(&mut self) -> Result<Vec<proto::FilesystemEvent>, ConnectError> {
        loop {
            let mut ready = self.inotify.readable().await.map_err(|error| broken(&error))?;
            if let Some(mut state) = self.state.take() {
                if state.lost {
                    return Err(ConnectError::resource_exhausted(
                        "events were lost: more happened than the client took",
                    ));
                }
                let inotify = Arc::clone(&self.inotify);
                // Entries are looked at and new directories searched, which blocks.
                self.job = Some(tokio::task::spawn_blocking(move || {
                    let read = state.read(inotify.get_ref());
                    (state, read)
                }));
            }
            let Some(job) = self.job.as_mut() else {
                return Err(ConnectError::internal("the watch has ended"));
            };
            let (state, read) = job.await.map_err(|error| broken(&io::Error::other(error)))?;
            (self.job, self.state) = (None, Some(state));
            match read.map_err(|error| broken(&error))? {
                None => ready.clear_ready(),
                Some(events) if events.is_empty() => {}
                Some(events) => return Ok(events),
            }
        }
    }
}

/// A watch that is not on the runtime yet.
pub(super) struct Opened(State);

impl State {
    /// Reads what the kernel has to tell now, as much of it as one reading takes.
    fn read(&mut self, inotify: &OwnedFd) -> Read {
        let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
        let mut raw = Vec::new();
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                    raw.push((event.wd(), event.events(), name.unwrap_or_default()));
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        let mut events = Vec::new();
        for (wd, flags, name) in raw {
            self.understand(inotify, wd, flags, &name, &mut events);
        }
        Ok(Some(events))
    }

    fn understand(
        &mut self,
        inotify: &OwnedFd,
        wd: i32,
        flags: ReadFlags,
        name: &str,
        events: &mut Vec<proto::FilesystemEvent>,
    ) {
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.lost = true;
            return;
        }
        let Some(dir) = self.dirs.get(&wd).cloned() else {
            return;
        };
        if flags.contains(ReadFlags::IGNORED) {
            self.dirs.remove(&wd);
            return;
        }
        // What happens to a directory below is told by the one above it.
        if name.is_empty() && !dir.is_empty() {
            return;
        }
        let path = join(&dir, name);
        let is_dir = flags.contains(ReadFlags::ISDIR);
        let was_told = flags.contains(ReadFlags::CREATE) && self.found.remove(&(wd, name.to_owned()));
        if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            self.found.remove(&(wd, name.to_owned()));
            if is_dir && !name.is_empty() {
                self.forget(inotify, &path);
            }
        }
        if !was_told {
            self.tell(flags, &path, events);
        }
        // What was told already was found, and is watched, with all below it.
        let is_new = !was_told && flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        if self.asked.recursive && is_dir && is_new {
            // What was made in it before it was watched is new as well; what was moved along with it is not.
            let tells = flags.contains(ReadFlags::CREATE).then_some(&mut *events);
            // A directory that has gone already, or one too many, is not watched.
            let _ = self.add(inotify, &path, tells);
        }
    }

    /// One event of the kernel, as clients know them, in their order.
    fn tell(&self, flags: ReadFlags, path: &str, events: &mut Vec<proto::FilesystemEvent>) {
        use proto::EventType as T;
        let kinds = [
            (ReadFlags::CREATE | ReadFlags::MOVED_TO, T::EVENT_TYPE_CREATE),
            (ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF, T::EVENT_TYPE_RENAME),
            (ReadFlags::ATTRIB, T::EVENT_TYPE_CHMOD),
            (ReadFlags::MODIFY, T::EVENT_TYPE_WRITE),
            (ReadFlags::DELETE | ReadFlags::DELETE_SELF, T::EVENT_TYPE_REMOVE),
        ];
        for (_, kind) in kinds.into_iter().filter(|(of, _)| flags.intersects(*of)) {
            events.push(self.event(path, kind));
        }
    }

    fn event(&self, path: &str, kind: proto::EventType) -> proto::FilesystemEvent {
        use proto::EventType as T;
        let is_there = matches!(
            kind,
            T::EVENT_TYPE_CREATE | T::EVENT_TYPE_WRITE | T::EVENT_TYPE_CHMOD
        );
        let entry = (self.asked.include_entry && is_there)
            .then(|| entry::look(&self.absolute(path), &mut Names::default()).ok())
            .flatten();
        let name = if path.is_empty() { "." } else { path };
        proto::FilesystemEvent {
            name: name.to_owned(),
            r#type: kind.into(),
            entry: entry.into(),
            ..Default::default()
        }
    }

    /// Watches a directory and, where asked, all below it. With `events`, tells what is found there.
    fn add(
        &mut self,
        inotify: &OwnedFd,
        dir: &str,
        mut events: Option<&mut Vec<proto::FilesystemEvent>>,
    ) -> Result<(), Errno> {
        let mut todo = vec![dir.to_owned()];
        while let Some(dir) = todo.pop() {
            if self.dirs.len() >= DIRECTORIES_MAX {
                return Err(Errno::NOSPC);
            }
            let flags = WatchFlags::ATTRIB
                | WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::DELETE_SELF
                | WatchFlags::MODIFY
                | WatchFlags::MOVE
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONLYDIR;
            // The watched path itself may be a link; links below it are not followed.
            let flags = if dir.is_empty() {
                flags
            } else {
                flags | WatchFlags::DONT_FOLLOW
            };
            let absolute = below(&self.place, &dir);
            let wd = match inotify::add_watch(inotify, &absolute, flags) {
                Ok(wd) => wd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) if !dir.is_empty() => continue,
                Err(error) => return Err(error),
            };
            self.dirs.insert(wd, dir.clone());
            if !self.asked.recursive {
                continue;
            }
            for entry in fs::read_dir(&absolute).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let name = entry.file_name().to_string_lossy().into_owned();
                let path = join(&dir, &name);
                if let Some(events) = events.as_deref_mut() {
                    if events.len() > FOUND_MAX {
                        self.lost = true;
                        return Ok(());
                    }
                    self.found.insert((wd, name));
                    events.push(self.event(&path, proto::EventType::EVENT_TYPE_CREATE));
                    if kind.is_file() && entry.metadata().is_ok_and(|found| found.len() > 0) {
                        events.push(self.event(&path, proto::EventType::EVENT_TYPE_WRITE));
                    }
                }
                if kind.is_dir() {
                    todo.push(path);
                }
            }
        }
        Ok(())
    }

    /// Watches a directory, and all below it, no more: it has gone, or has another name now.
    fn forget(&mut self, inotify: &OwnedFd, dir: &str) {
        let below = format!("{dir}/");
        let gone: Vec<i32> = self
            .dirs
            .iter()
            .filter(|(_, path)| *path == dir || path.starts_with(&below))
            .map(|(wd, _)| *wd)
            .collect();
        for wd in gone {
            self.dirs.remove(&wd);
            self.found.retain(|(of, _)| *of != wd);
            let _ = inotify::remove_watch(inotify, wd);
        }
    }

    fn absolute(&self, path: &str) -> String {
        below(&self.asked.path, path)
    }
}

/// What lies at a path below a directory.
fn below(dir: &str, path: &str) -> String {
    match path {
        "" => dir.to_owned(),
        path => format!("{}/{path}", dir.trim_end_matches('/')),
    }
}

/// `dir/name`, where either may be nothing.
fn join(dir: &str, name: &str) -> String {
    match (dir, name) {
        (dir, "") => dir.to_owned(),
        ("", name) => name.to_owned(),
        (dir, name) => format!("{dir}/{name}"),
    }
}

/// Whether a path is on a network file system, unless everything is.
fn is_network(path: &str) -> bool {
    let kind = |path: &Path| rustix::fs::statfs(path).map_or(0, |found| found.f_type);
    let of_path = kind(Path::new(path));
    NETWORK.contains(&of_path) && kind(Path::new("/")) != of_path
}

fn exhausted(error: Errno) -> ConnectError {
    match error {
        Errno::MFILE | Errno::NFILE | Errno::NOSPC | Errno::NOMEM => {
            ConnectError::resource_exhausted("there are too many watches, or too many directories in one")
        }
        error => ConnectError::internal(format!("error watching: {error}")),
    }
}

fn broken(error: &io::Error) -> ConnectError {
    ConnectError::internal(format!("error watching: {error}"))
}

#[cfg(test)]
mod tests;
