//! What Atoll adds to the root of an image, with what every sandbox needs.
//!
//! Layers are somebody else's: what they come to is looked at as the kernel lays them, and walked by it within that root
//! alone, so that no link in them leads to the host's own files.
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ports::step::{At, Step};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::host::{self, DIRECTORIES_OF_PROGRAMS, USER, make_dir, white_out_whole};

/// Tables of accounts are no larger.
const TABLE_BYTES_MAX: u64 = 4 << 20;
/// Where the kernel's own file systems go: real directories, whatever an image has there.
const PLACES: [(&str, u32); 5] = [
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("run", 0o755),
    ("tmp", 0o1777),
];

/// Writes a layer into the directory `own` that goes over the root `seen`, whatever is in that; durably. Without `sudo` there
/// is none in it: the machine brings its own.
///
/// # Errors
/// It cannot be written, or a table of accounts is too large to be one.
pub fn layer_over_image(seen: OwnedFd, own: &Path, sudo: Option<&Path>) -> Result<(), Step> {
    make_dir(own, 0o755)?;
    let root = Seen(seen);
    let ours = Ours { root: &root, own };
    ours.like(Path::new(""))?;
    for (place, mode) in PLACES {
        ours.place(place, mode)?;
    }
    ours.programs(sudo)?;
    ours.let_pip_install()?;
    ours.accounts()?;
    // What is on record after a loss of power must be there as well.
    let step = || format!("writing {} through", own.display());
    let dir = File::open(own).at(step())?;
    rustix::fs::syncfs(&dir).at(step())
}

/// What layers come to.
struct Seen(OwnedFd);

impl Seen {
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), within)
    }

    /// Whether something is there, be it a link.
    fn has(&self, path: &Path) -> bool {
        self.open(path, OFlags::PATH | OFlags::NOFOLLOW).is_ok()
    }

    /// A table; empty where there is none that could be one.
    fn table(&self, path: &Path) -> Result<String, Step> {
        let step = || format!("reading /{} of an image", path.display());
        let file = match self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO | Errno::ACCESS) => {
                return Ok(String::new());
            }
            opened => File::from(opened.at(step())?),
        };
        let about = file.metadata().at(step())?;
        if !about.is_file() {
            return Ok(String::new());
        }
        if about.len() > TABLE_BYTES_MAX {
            return Err(std::io::Error::from(Errno::FBIG)).at(step());
        }
        let mut bytes = Vec::new();
        file.take(TABLE_BYTES_MAX).read_to_end(&mut bytes).at(step())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The directory that a path leads to, as a path without links; `None` where there is none.
    fn real(&self, dir: &Path) -> Option<PathBuf> {
        let dir = self.open(dir, OFlags::PATH | OFlags::DIRECTORY).ok()?;
        // The mount is attached nowhere: its root is where the path begins.
        let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok()?;
        Some(path.strip_prefix("/").ok()?.to_owned())
    }

    fn names(&self, dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let entries = self
            .open(dir, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(Dir::new)
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
            .filter(|name| wanted(name))
            .collect()
    }
}

/// What is ours, over what is seen.
struct Ours<'a> {
    root: &'a Seen,
    own: &'a Path,
}

impl Ours<'_> {
    /// Makes a directory of ours look like the image's: ours is what is seen of both.
    fn like(&self, real: &Path) -> Result<(), Step> {
        let ours = self.own.join(real);
        let step = || format!("making /{} of an image", real.display());
        match fs::create_dir(&ours) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.at(step())?,
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        // The root of what is seen is ours: the image's is that of its topmost layer, which is as good as any.
        if let Ok(theirs) = self
            .root
            .open(real, flags)
            .and_then(|dir| rustix::fs::fstat(&dir))
            && !real.as_os_str().is_empty()
        {
            std::os::unix::fs::chown(&ours, Some(theirs.st_uid), Some(theirs.st_gid)).at(step())?;
            make_dir(&ours, theirs.st_mode & 0o7777)?;
        }
        Ok(())
    }

    /// Where something in this directory must lie in our layer: the directory that the path leads to in the image, made
    /// of ours along the way; the path itself where the image has nothing there.
    fn dir(&self, dir: &str) -> Result<PathBuf, Step> {
        let mut at = PathBuf::new();
        for name in dir.split('/').filter(|name| !name.is_empty()) {
            let next = at.join(name);
            at = self.root.real(&next).unwrap_or(next);
            let mut along = PathBuf::new();
            for part in at.iter() {
                along.push(part);
                if fs::symlink_metadata(self.own.join(&along)).is_err() {
                    self.like(&along)?;
                    if self.root.real(&along).is_none() {
                        make_dir(&self.own.join(&along), 0o755)?;
                    }
                }
            }
        }
        Ok(self.own.join(at))
    }

    /// A directory at the root that is no link, and that is hidden by a mount or open to all.
    fn place(&self, name: &str, mode: u32) -> Result<(), Step> {
        make_dir(&self.own.join(name), mode)
    }

    fn programs(&self, sudo: Option<&Path>) -> Result<(), Step> {
        let bin = self.dir("usr/local/bin")?;
        if let Some(sudo) = sudo {
            host::own_sudo(&bin, sudo)?;
        }
        let find = |name: &str| {
            DIRECTORIES_OF_PROGRAMS
                .iter()
                .map(|dir| Path::new("usr").join(dir).join(name))
                .find(|path| self.root.has(path))
        };
        match (find("python"), find("python3")) {
            (None, Some(python3)) => {
                symlink(Path::new("/").join(python3), bin.join("python")).at("linking python")
            }
            _ => Ok(()),
        }
    }

    /// See [`host::let_pip_install`].
    fn let_pip_install(&self) -> Result<(), Step> {
        for lib in ["usr/lib", "usr/local/lib"] {
            for python in self
                .root
                .names(Path::new(lib), |name| name.starts_with("python3"))
            {
                let mark = Path::new(lib).join(&python).join("EXTERNALLY-MANAGED");
                if self.root.has(&mark) {
                    let dir = self.dir(&format!("{lib}/{python}"))?;
                    white_out_whole(&dir.join("EXTERNALLY-MANAGED"))?;
                }
            }
        }
        Ok(())
    }

    /// A user `user`, and root, in an image that may have no accounts at all.
    fn accounts(&self) -> Result<(), Step> {
        let shell = if self.root.has(Path::new("bin/bash")) {
            "/bin/bash"
        } else {
            "/bin/sh"
        };
        let etc = self.dir("etc")?;
        let tables = [
            (
                "passwd",
                format!("root:x:0:0:root:/root:{shell}"),
                format!("user:x:1000:1000::/home/user:{shell}"),
                0o644,
            ),
            ("group", "root:x:0:".to_owned(), "user:x:1000:".to_owned(), 0o644),
            (
                "shadow",
                "root:*:19000:0:99999:7:::".to_owned(),
                "user:*:19000:0:99999:7:::".to_owned(),
                0o600,
            ),
        ];
        let mut has_user = false;
        for (name, root, user, mode) in tables {
            let path = Path::new("etc").join(name);
            let text = self.root.table(&path)?;
            let changed = with_accounts(&text, &root, &user);
            if name == "passwd" {
                has_user = of_account(&text, "user").is_some();
            }
            if changed == text {
                continue;
            }
            let about = self.about(&path);
            let mode = about.as_ref().map_or(mode, |about| about.st_mode & 0o7777);
            let target = etc.join(name);
            host::write(&target, &changed, mode)?;
            if let Some(about) = about {
                std::os::unix::fs::chown(&target, Some(about.st_uid), Some(about.st_gid))
                    .at(format!("giving away {}", target.display()))?;
                host::write(&target, &changed, mode)?;
            }
        }
        if self.root.real(Path::new("root")).is_none() {
            make_dir(&self.dir("root")?, 0o700)?;
        }
        // One that the image has lives where the image says.
        if !has_user {
            let home = self.dir("home/user")?;
            host::own(&home, USER)?;
        }
        Ok(())
    }

    fn about(&self, file: &Path) -> Option<rustix::fs::Stat> {
        let file = self.root.open(file, OFlags::PATH).ok()?;
        let about = rustix::fs::fstat(&file).ok()?;
        (FileType::from_raw_mode(about.st_mode) == FileType::RegularFile).then_some(about)
    }
}

/// The line of an account in a table.
fn of_account<'a>(table: &'a str, name: &str) -> Option<&'a str> {
    table
        .lines()
        .find(|line| line.split(':').next().is_some_and(|known| known == name))
}

/// A table in which there are both accounts. Who has a number is whoever comes first with it: ours comes before one of the
/// image with the same.
fn with_accounts(table: &str, root: &str, user: &str) -> String {
    let mut lines: Vec<&str> = table.lines().collect();
    let number = |line: &str| line.split(':').nth(2).map(str::to_owned);
    for (name, line) in [("root", root), ("user", user)] {
        if of_account(table, name).is_some() {
            continue;
        }
        let same = lines
            .iter()
            .position(|other| number(other).is_some_and(|other| Some(other) == number(line)));
        // Tables of passwords have no number there.
        let is_numbered = line.split(':').nth(1) == Some("x");
        match same.filter(|_| is_numbered) {
            Some(i) => lines.insert(i, line),
            None if name == "root" => lines.insert(0, line),
            None => lines.push(line),
        }
    }
    if lines == table.lines().collect::<Vec<_>>() {
        return table.to_owned();
    }
    lines.into_iter().flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "root:x:0:0:root:/root:/bin/sh";
    const OURS: &str = "user:x:1000:1000::/home/user:/bin/sh";

    #[test]
    fn an_image_without_accounts_gets_both() {
        assert_eq!(with_accounts("", ROOT, OURS), format!("{ROOT}\n{OURS}\n"));
    }

    #[test]
    fn the_number_of_user_is_told_as_user() {
        let table =
            "root:x:0:0:root:/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/bash\nx:x:1001:1001::/:/x\n";
        let changed = with_accounts(table, ROOT, OURS);
        assert_eq!(changed.lines().nth(1), Some(OURS));
        assert_eq!(changed.lines().count(), 4);
        assert_eq!(with_accounts(&changed, ROOT, OURS), changed);
    }

    #[test]
    fn a_user_that_is_there_stays_as_it_is() {
        let table = "root:x:0:0::/:/bin/sh\nuser:x:7:7::/srv:/bin/zsh\n";
        assert_eq!(with_accounts(table, ROOT, OURS), table);
    }
}
