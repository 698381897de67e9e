//! Files of the system, which a sandbox's user may have put anything in place of: read and written within bounds, and
//! never waited for.
use std::fs::File;
use std::io::{self, Read as _, Write as _};

use rustix::fs::{FileType, Mode, OFlags};

/// Longer ones are an attack on our memory.
pub(crate) const BYTES_MAX: u64 = 1 << 20;

/// What such a file holds, as far as that is text; `None` where there is no regular file, or one that is too long.
pub(crate) fn read(path: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = regular(rustix::fs::open(path, flags, Mode::empty()).ok()?.into()).ok()?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    let is_whole = bytes.len() as u64 <= BYTES_MAX;
    // One odd name must not hide all the others.
    is_whole.then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes `text` what such a file holds. What is no regular file is left alone.
pub(crate) fn write(path: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
    let mut file = regular(opened.into())?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

/// Makes `text` what such a file holds, all of it at once: whoever reads sees the old or the new. Owner and permissions
/// stay; a file that was not there is its maker's, with `mode`. What is no regular file is left alone.
pub(crate) fn replace(path: &str, text: &str, mode: u32) -> io::Result<()> {
    let partial = format!("{path}.atoll-new");
    let before = match rustix::fs::lstat(path) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => Some(found),
        Ok(_) => return Err(io::ErrorKind::InvalidInput.into()),
        Err(rustix::io::Errno::NOENT) => None,
        Err(error) => return Err(error.into()),
    };
    match rustix::fs::unlink(&*partial) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file: File = rustix::fs::open(&*partial, flags, Mode::from_raw_mode(0o600))?.into();
    let mut put = || {
        file.write_all(text.as_bytes())?;
        let (mode, owner) = match &before {
            Some(before) => (before.st_mode & 0o7777, Some((before.st_uid, before.st_gid))),
            None => (mode, None),
        };
        if let Some((uid, gid)) = owner.filter(|_| rustix::process::geteuid().is_root()) {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        file.sync_all()?;
        Ok(rustix::fs::rename(&*partial, path)?)
    };
    put().inspect_err(|_| {
        let _ = rustix::fs::unlink(&*partial);
    })
}

fn regular(file: File) -> io::Result<File> {
    let found = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile {
        Ok(file)
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_at_once_and_stays_whose_it_is() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("file"), "old").unwrap();
        std::fs::set_permissions(at("file"), std::fs::Permissions::from_mode(0o640)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(at("file"), None, Some(42)).unwrap();
        }
        let before = std::fs::metadata(at("file")).unwrap();
        // What a replacement that was killed left.
        std::fs::write(at("file.atoll-new"), "half").unwrap();
        replace(&at("file"), "new", 0o600).unwrap();
        let after = std::fs::metadata(at("file")).unwrap();
        assert_eq!((before.mode(), before.gid()), (after.mode(), after.gid()));
        assert_eq!(read(&at("file")).unwrap(), "new");
        replace(&at("fresh"), "x", 0o440).unwrap();
        assert_eq!(std::fs::metadata(at("fresh")).unwrap().mode() & 0o7777, 0o440);
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        assert!(replace(&at("link"), "x", 0o600).is_err() && replace(&at("missing/x"), "x", 0o600).is_err());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            3,
            "nothing else is left"
        );
    }

    #[test]
    fn odd_bytes_hide_nothing_and_what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("odd"), b"a\xff\nb\n").unwrap();
        assert_eq!(read(&at("odd")).unwrap(), "a\u{fffd}\nb\n");
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(read(&at("pipe")), None);
        assert!(write(&at("pipe"), "x").is_err());
        assert_eq!(read(&at("missing")), None);
        std::os::unix::fs::symlink(at("odd"), at("link")).unwrap();
        assert!(write(&at("link"), "x").is_err(), "links are not followed");
        write(&at("odd"), "x").unwrap();
        assert_eq!(read(&at("odd")).unwrap(), "x");
        let length = usize::try_from(BYTES_MAX).unwrap() + 1;
        std::fs::write(at("long"), "x".repeat(length)).unwrap();
        assert_eq!(read(&at("long")), None, "a part of it would say something else");
    }
}
