//! Who else may be anybody: the one line of sudoers(5) that is understood, wherever it stands in `/etc/sudoers` and
//! `/etc/sudoers.d`. Every other line gives nothing.
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::system_file::BYTES_MAX;
use crate::users::{self, User};

/// Files that are looked at; what is beyond gives nothing.
const FILES_MAX: usize = 1000;
/// What lets somebody be anybody without a password, without its blanks.
const ANYBODY: [&str; 3] = [
    "ALL=(ALL:ALL)NOPASSWD:ALL",
    "ALL=(ALL)NOPASSWD:ALL",
    "ALL=NOPASSWD:ALL",
];

/// Whether the caller is one of those who may.
pub(crate) fn allow(caller: &User) -> bool {
    let groups = caller.identity().groups.into_iter().map(users::group_name);
    let names = std::iter::once(caller.name.clone()).chain(groups.map(|group| format!("%{group}")));
    texts(Path::new("/etc")).is_some_and(|text| says(&text, &names.collect::<Vec<_>>()))
}

/// Whether the last line that names one of them lets it be anybody: so sudo reads them.
fn says(text: &str, names: &[String]) -> bool {
    let mut says = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words
            .next()
            .is_some_and(|who| names.iter().any(|name| name == who))
        {
            says = ANYBODY.contains(&&*words.collect::<String>());
        }
    }
    says
}

/// All files together, in the order in which sudo reads them.
fn texts(etc: &Path) -> Option<String> {
    let mut all = trusted(&etc.join("sudoers")).unwrap_or_default();
    let dir = etc.join("sudoers.d");
    if fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir() && is_roots(&found)) {
        let mut files: Vec<PathBuf> = fs::read_dir(dir)
            .ok()?
            .flatten()
            .take(FILES_MAX)
            .map(|entry| entry.path())
            .collect();
        files.sort();
        for file in files {
            // Editors and package managers leave such files, which do not count.
            let is_left_over = file
                .file_name()?
                .to_str()
                .is_none_or(|name| name.contains('.') || name.ends_with('~'));
            if !is_left_over {
                all.push('\n');
                all += &trusted(&file).unwrap_or_default();
            }
        }
    }
    Some(all)
}

/// What a file says that only root can have written.
fn trusted(path: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let found = file.metadata().ok()?;
    if !found.is_file() || !is_roots(&found) {
        return None;
    }
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text).ok()?;
    // A line that was cut could say more than it does.
    (found.len() < BYTES_MAX).then_some(text)
}

fn is_roots(found: &fs::Metadata) -> bool {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    found.uid() == 0 && found.mode() & WRITABLE_BY_OTHERS == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    #[test]
    fn one_line_lets_somebody_be_anybody_and_no_other_does() {
        let check = |text: &str, expected: bool| {
            let names = ["dev".to_owned(), "%dev".to_owned()];
            assert_eq!(says(text, &names), expected, "{text}");
        };
        check("dev ALL=(ALL:ALL) NOPASSWD: ALL", true);
        check("root ALL=(ALL) ALL\n  dev\tALL = (ALL) NOPASSWD:ALL  \n", true);
        check("%dev ALL=(ALL:ALL) NOPASSWD: ALL", true);
        check("", false);
        check("dev", false);
        check("#dev ALL=(ALL:ALL) NOPASSWD: ALL", false);
        check("# dev ALL=(ALL:ALL) NOPASSWD: ALL", false);
        check("dev2 ALL=(ALL:ALL) NOPASSWD: ALL", false);
        check("dev ALL=(ALL:ALL) ALL", false);
        check("dev ALL=(ALL:ALL) NOPASSWD: /bin/ls", false);
        check("dev ALL=(ALL:ALL) NOPASSWD: ALL, !/bin/su", false);
        check("dev ALL=(ALL:ALL) NOPASSWD: ALL\ndev ALL=(ALL:ALL) !ALL", false);
        check("ALL ALL=(ALL:ALL) NOPASSWD: ALL", false);
    }

    #[test]
    fn only_what_root_alone_can_have_written_counts() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let etc = tempfile::tempdir().unwrap();
        let at = |name: &str| etc.path().join(name);
        let chmod =
            |name: &str, mode| fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        fs::write(at("sudoers"), "main").unwrap();
        chmod("sudoers", 0o440);
        assert_eq!(texts(etc.path()).unwrap(), "main");
        fs::create_dir(at("sudoers.d")).unwrap();
        for (name, mode, uid) in [
            ("b", 0o440, 0),
            ("a", 0o600, 0),
            ("writable", 0o666, 0),
            ("users", 0o440, 1000),
            ("left.over", 0o440, 0),
            ("left~", 0o440, 0),
        ] {
            let name = format!("sudoers.d/{name}");
            fs::write(at(&name), &name).unwrap();
            chmod(&name, mode);
            chown(at(&name), Some(uid), None).unwrap();
        }
        symlink("a", at("sudoers.d/link")).unwrap();
        assert_eq!(texts(etc.path()).unwrap(), "main\nsudoers.d/a\nsudoers.d/b\n\n\n");
        chmod("sudoers.d", 0o777);
        assert_eq!(texts(etc.path()).unwrap(), "main");
    }
}
