//! Kernel modules: which, in which order, and what they need of each other.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bundle::BundleError;
use crate::program;

/// What a machine needs, whichever VMM it is in, in the order in which it is loaded: `virtio_ring` before `virtio`, which uses
/// it. What a kernel has built in is left out.
pub(crate) const ORDER: [&str; 22] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "crc16",
    "crc32c_generic",
    "mbcache",
    "jbd2",
    "ext4",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "overlay",
    "fuse",
];
/// The largest of them has a megabyte or two.
const MODULE_BYTES_MAX: u64 = 32 << 20;
/// Directories of a kernel package: some hundreds.
const ENTRIES_MAX: usize = 100_000;

/// A module as it goes into the initramfs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// Finds all of [`ORDER`] below `modules` (`lib/modules/<release>`), and sees to it that none needs one that is not before it.
pub(crate) fn resolve(modules: &Path) -> Result<Vec<Module>, BundleError> {
    let built_in = built_in(modules)?;
    let files = files(modules)?;
    let mut loaded: BTreeSet<String> = BTreeSet::new();
    let mut found = Vec::new();
    for name in ORDER {
        let Some(path) = files.get(name) else {
            if built_in.contains(name) {
                continue;
            }
            return Err(BundleError::NoModule {
                name: name.to_owned(),
                dir: modules.to_owned(),
            });
        };
        let content = read(path).map_err(|source| BundleError::File {
            what: "reading",
            path: path.clone(),
            source,
        })?;
        let needs = needs(&content).ok_or_else(|| BundleError::BadModule(path.clone()))?;
        for need in needs {
            if !loaded.contains(&need) && !built_in.contains(&need) {
                return Err(BundleError::Order {
                    name: name.to_owned(),
                    need,
                });
            }
        }
        loaded.insert(name.to_owned());
        found.push(Module {
            name: name.to_owned(),
            content,
        });
    }
    Ok(found)
}

/// As modules name each other: `virtio-rng.ko` is `virtio_rng`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn built_in(modules: &Path) -> Result<BTreeSet<String>, BundleError> {
    let path = modules.join("modules.builtin");
    let list = fs::read_to_string(&path).map_err(|source| BundleError::File {
        what: "reading",
        path,
        source,
    })?;
    Ok(list.lines().filter_map(|line| name_of(Path::new(line))).collect())
}

fn files(modules: &Path) -> Result<BTreeMap<String, PathBuf>, BundleError> {
    let mut found = BTreeMap::new();
    let mut open = vec![modules.join("kernel")];
    let mut seen = 0;
    while let Some(dir) = open.pop() {
        let failed = |source| BundleError::File {
            what: "reading",
            path: dir.clone(),
            source,
        };
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            seen += 1;
            if seen > ENTRIES_MAX {
                return Err(failed(io::Error::other("there is no end of it")));
            }
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file()
                && let Some(name) = name_of(&entry.path())
            {
                found.insert(name, entry.path());
            }
        }
    }
    Ok(found)
}

/// A module's content, decompressed: not every kernel decompresses by itself.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let bounded = |reader: &mut dyn io::Read| {
        let mut content = Vec::new();
        reader.take(MODULE_BYTES_MAX + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MODULE_BYTES_MAX {
            return Err(io::Error::other(format!("more than {MODULE_BYTES_MAX} bytes")));
        }
        Ok(content)
    };
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("zst") => bounded(&mut zstd::stream::read::Decoder::new(file)?),
        Some(ending @ ("xz" | "gz")) => {
            let (tool, package) = if ending == "xz" {
                ("xz", "xz-utils")
            } else {
                ("gzip", "gzip")
            };
            let mut command = Command::new(tool);
            command.arg("-dc").arg(path);
            let content = program::run(command, package).map_err(io::Error::other)?;
            bounded(&mut content.as_slice())
        }
        _ => bounded(&mut &file),
    }
}

/// The modules that one needs, by its own words: `depends=` of the section `.modinfo`. `None`: it is no 64-bit
/// little-endian ELF file, or lies about its lengths.
pub(crate) fn needs(module: &[u8]) -> Option<Vec<String>> {
    let info = section(module, b".modinfo")?;
    let depends = info
        .split(|byte| *byte == 0)
        .find_map(|word| word.strip_prefix(b"depends="))
        .unwrap_or_default();
    let depends = std::str::from_utf8(depends).ok()?;
    let names = depends.split(',').filter(|name| !name.is_empty());
    Some(names.map(|name| name.replace('-', "_")).collect())
}

fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(elf.get(at..at.checked_add(size)?)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (headers, size, count, names) = (
        number(0x28, 8)?,
        number(0x3a, 2)?,
        number(0x3c, 2)?,
        number(0x3e, 2)?,
    );
    let header = |index: usize| headers.checked_add(index.checked_mul(size)?);
    let content = |header: usize| {
        let (from, length) = (
            number(header.checked_add(0x18)?, 8)?,
            number(header.checked_add(0x20)?, 8)?,
        );
        elf.get(from..from.checked_add(length)?)
    };
    let names = content(header(names)?)?;
    for index in 0..count {
        let header = header(index)?;
        let own = names.get(number(header, 4)?..)?;
        if own
            .strip_prefix(name)
            .is_some_and(|rest| rest.first() == Some(&0))
        {
            return content(header);
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF file with nothing but a `.modinfo`.
    pub(crate) fn module(depends: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let info = format!("license=GPL\0depends={depends}\0");
        let mut elf = vec![0_u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (names_at, info_at) = (elf.len(), elf.len() + names.len());
        elf.extend_from_slice(names);
        elf.extend_from_slice(info.as_bytes());
        let headers_at = elf.len();
        for (name, from, length) in [(0, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
            let mut header = [0_u8; 64];
            header[..4].copy_from_slice(&u32::to_le_bytes(name));
            header[0x18..0x20].copy_from_slice(&(from as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf[0x28..0x30].copy_from_slice(&(headers_at as u64).to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&3_u16.to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&2_u16.to_le_bytes());
        elf
    }

    /// All modules, each needing what `needs` says.
    pub(crate) fn kernel(modules: &Path, needs: impl Fn(&str) -> &'static str) {
        fs::create_dir_all(modules.join("kernel/drivers")).unwrap();
        for name in ORDER.iter().filter(|name| **name != "crc16") {
            let file = name.replace("virtio_rng", "virtio-rng");
            fs::write(
                modules.join(format!("kernel/drivers/{file}.ko")),
                module(needs(name)),
            )
            .unwrap();
        }
        fs::write(modules.join("modules.builtin"), "kernel/lib/crc16.ko\n").unwrap();
    }

    #[test]
    fn modules_come_in_order_and_what_is_built_in_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        kernel(dir.path(), |name| match name {
            "virtio" => "virtio_ring",
            "ext4" => "jbd2,crc16,mbcache",
            _ => "",
        });
        let names: Vec<String> = resolve(dir.path())
            .unwrap()
            .into_iter()
            .map(|module| module.name)
            .collect();
        let expected: Vec<&str> = ORDER.into_iter().filter(|name| *name != "crc16").collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn what_needs_a_later_or_an_unknown_module_is_refused_by_name() {
        for (whose, needs) in [("virtio_ring", "virtio"), ("ext4", "fscrypt")] {
            let dir = tempfile::tempdir().unwrap();
            kernel(dir.path(), |name| if name == whose { needs } else { "" });
            let refused = resolve(dir.path()).unwrap_err();
            assert!(
                matches!(&refused, BundleError::Order { name, need } if name == whose && need == needs),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_module_that_is_not_there_or_none_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        kernel(dir.path(), |_| "");
        let ext4 = dir.path().join("kernel/drivers/ext4.ko");
        fs::remove_file(&ext4).unwrap();
        let refused = resolve(dir.path()).unwrap_err();
        assert!(
            matches!(&refused, BundleError::NoModule { name, .. } if name == "ext4"),
            "{refused}"
        );
        fs::write(&ext4, "not a module").unwrap();
        let refused = resolve(dir.path()).unwrap_err();
        assert!(
            matches!(&refused, BundleError::BadModule(path) if *path == ext4),
            "{refused}"
        );
    }

    #[test]
    fn a_module_that_lies_about_lengths_is_none() {
        let whole = module("a-b,c");
        assert_eq!(needs(&whole), Some(vec!["a_b".to_owned(), "c".to_owned()]));
        for end in 0..whole.len() {
            let _ = needs(&whole[..end]);
            let mut lying = whole.clone();
            lying[end] = 0xff;
            let _ = needs(&lying);
        }
    }
}
