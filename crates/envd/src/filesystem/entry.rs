//! What a client is told of an entry.
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use buffa_types::google::protobuf::Timestamp;
use wire::envd::filesystem as proto;

use crate::files;
use crate::paths::passable_entry;
use crate::users::{group_name, user_name};

/// The seconds that a timestamp can tell: the years 1 to 9999. A file may be of any year.
const TOLD_S: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Names of owners, each looked up once.
#[derive(Default)]
pub(super) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

/// Looks at what lies at a path, whose last link is not followed.
pub(super) fn look(path: &str, names: &mut Names) -> io::Result<proto::EntryInfo> {
    match look_at(Path::new(path), path, names) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            look_at(Path::new(&*passable_entry(path)), path, names)
        }
        looked => looked,
    }
}

/// [`look`] at what the client knows by another path: `place` may be what no text is, or lie behind other links.
pub(super) fn look_at(place: &Path, path: &str, names: &mut Names) -> io::Result<proto::EntryInfo> {
    let own = fs::symlink_metadata(place)?;
    let is_symlink = own.is_symlink();
    // A link tells the kind and mode of what it leads to, and its own everything else.
    let (shown, target) = if is_symlink {
        let real = fs::canonicalize(place).ok();
        let target = real
            .as_ref()
            .map_or_else(|| path.to_owned(), |real| real.to_string_lossy().into_owned());
        (
            real.and_then(|real| fs::symlink_metadata(real).ok()),
            Some(target),
        )
    } else {
        (Some(own.clone()), None)
    };
    let kind = shown
        .as_ref()
        .map_or(proto::FileType::FILE_TYPE_UNSPECIFIED, kind);
    let modified = own.modified().map(Timestamp::from).ok().map(told);
    Ok(proto::EntryInfo {
        name: files::base_name(path).to_owned(),
        r#type: kind.into(),
        path: path.to_owned(),
        size: i64::try_from(own.len()).unwrap_or(i64::MAX),
        mode: shown.map_or(0, |shown| shown.permissions().mode() & 0o777),
        permissions: permissions(&own),
        owner: names
            .users
            .entry(own.uid())
            .or_insert_with(|| user_name(own.uid()))
            .clone(),
        group: names
            .groups
            .entry(own.gid())
            .or_insert_with(|| group_name(own.gid()))
            .clone(),
        modified_time: modified.into(),
        symlink_target: target,
        metadata: files::Metadata::at(place).0.into_iter().collect(),
        is_symlink,
        ..Default::default()
    })
}

/// The nearest time that can be told.
fn told(time: Timestamp) -> Timestamp {
    Timestamp {
        seconds: time.seconds.clamp(*TOLD_S.start(), *TOLD_S.end()),
        ..time
    }
}

/// About what an entry takes in memory.
pub(super) fn weight(entry: &proto::EntryInfo) -> usize {
    /// Its fields without their text, here and on its way into an answer.
    const OVERHEAD: usize = 512;
    let notes = entry
        .metadata
        .iter()
        .map(|(key, value)| key.len() + value.len() + 64);
    let target = entry.symlink_target.as_ref().map_or(0, String::len);
    OVERHEAD + entry.path.len() + entry.name.len() + target + notes.sum::<usize>()
}

fn kind(found: &Metadata) -> proto::FileType {
    if found.is_file() {
        proto::FileType::FILE_TYPE_FILE
    } else if found.is_dir() {
        proto::FileType::FILE_TYPE_DIRECTORY
    } else {
        proto::FileType::FILE_TYPE_UNSPECIFIED
    }
}

/// Kind and mode in letters, in the notation that clients parse: `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`.
fn permissions(found: &Metadata) -> String {
    let kind = found.file_type();
    let mode = found.permissions().mode();
    let is_char = kind.is_char_device();
    let letters = [
        (kind.is_dir(), 'd'),
        (kind.is_symlink(), 'L'),
        (kind.is_block_device() || is_char, 'D'),
        (kind.is_fifo(), 'p'),
        (kind.is_socket(), 'S'),
        (mode & 0o4000 != 0, 'u'),
        (mode & 0o2000 != 0, 'g'),
        (is_char, 'c'),
        (mode & 0o1000 != 0, 't'),
    ];
    let mut text: String = letters
        .iter()
        .filter(|(is_so, _)| *is_so)
        .map(|(_, letter)| letter)
        .collect();
    if text.is_empty() {
        text.push('-');
    }
    let bits = "rwxrwxrwx".chars().enumerate();
    text.extend(bits.map(|(index, letter)| if mode & (0o400 >> index) != 0 { letter } else { '-' }));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_tells_its_targets_kind_and_its_own_rest() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("file"), "12345").unwrap();
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("broken")).unwrap();
        let mut names = Names::default();
        let file = look(&at("file"), &mut names).unwrap();
        assert_eq!(
            (file.size, file.mode, file.permissions.as_str()),
            (5, 0o640, "-rw-r-----")
        );
        assert_eq!(
            (file.name.as_str(), file.symlink_target, file.is_symlink),
            ("file", None, false)
        );
        let link = look(&at("link"), &mut names).unwrap();
        assert_eq!(link.r#type, proto::FileType::FILE_TYPE_FILE);
        assert_eq!(
            (link.mode, link.permissions.as_str(), link.is_symlink),
            (0o640, "Lrwxrwxrwx", true)
        );
        let real = fs::canonicalize(at("file")).unwrap();
        assert_eq!(link.symlink_target.as_deref(), real.to_str());
        let broken = look(&at("broken"), &mut names).unwrap();
        assert_eq!(broken.r#type, proto::FileType::FILE_TYPE_UNSPECIFIED);
        assert_eq!(broken.symlink_target, Some(at("broken")));
        assert_eq!(
            look(&at("missing"), &mut names).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_file_of_any_year_can_be_told() {
        // A file system that keeps 64 bits of seconds.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("file");
        let file = fs::File::create(&path).unwrap();
        let seconds = |time: i64| {
            let nanos = 7;
            let at = rustix::fs::Timespec {
                tv_sec: time,
                tv_nsec: nanos,
            };
            let times = rustix::fs::Timestamps {
                last_access: at,
                last_modification: at,
            };
            rustix::fs::futimens(&file, &times).unwrap();
            let entry = look(path.to_str().unwrap(), &mut Names::default()).unwrap();
            serde_json::to_string(&entry).expect("it can be told");
            entry.modified_time.as_option().unwrap().seconds
        };
        assert_eq!(seconds(1_000_000_000_000), *TOLD_S.end());
        assert_eq!(seconds(-1_000_000_000_000), *TOLD_S.start());
        assert_eq!(seconds(-5), -5);
        assert_eq!(seconds(5), 5);
    }

    #[test]
    fn kinds_and_special_bits_have_letters() {
        let letters = |path: &str| permissions(&fs::symlink_metadata(path).unwrap());
        assert_eq!(letters("/dev/null"), "Dcrw-rw-rw-");
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(letters(dir.path().to_str().unwrap()), "dtrwxrwxrwx");
    }
}
