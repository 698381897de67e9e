//! The directory of somebody new, as `/etc/skel` has it (useradd(8)).
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::Path;

use super::database::Account;

/// What a skeleton may hold: a few files of the shell's, most often.
const ENTRIES_MAX: usize = 1000;
const DEPTH_MAX: usize = 8;
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Makes it. One that is there already is left alone.
pub(super) fn make(root: &Path, account: &Account) -> io::Result<()> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let home = below(&account.home);
    if let Some(parent) = home.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::create_dir(&home) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    }
    let mut left = ENTRIES_MAX;
    fill(&below("/etc/skel"), &home, account, DEPTH_MAX, &mut left)?;
    own(&home, account)
}

fn fill(from: &Path, into: &Path, account: &Account, depth: usize, left: &mut usize) -> io::Result<()> {
    // Not every system has one; and what cannot be read is no part of it.
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        if depth == 0 || *left == 0 {
            return Ok(());
        }
        *left -= 1;
        let (source, place) = (entry.path(), into.join(entry.file_name()));
        let found = fs::symlink_metadata(&source)?;
        if found.is_dir() {
            fs::create_dir(&place)?;
            fill(&source, &place, account, depth - 1, left)?;
            fs::set_permissions(&place, fs::Permissions::from_mode(found.mode() & 0o7777))?;
        } else if found.is_symlink() {
            symlink(fs::read_link(&source)?, &place)?;
        } else if found.is_file() && found.len() <= FILE_BYTES_MAX {
            fs::copy(&source, &place)?;
        } else {
            continue;
        }
        own(&place, account)?;
    }
    Ok(())
}

fn own(path: &Path, account: &Account) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        lchown(path, Some(account.uid), Some(account.gid))?;
    }
    Ok(())
}
