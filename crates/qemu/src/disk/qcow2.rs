//! Images into which nothing was written, in QEMU's format ([qcow2]). There is nothing to be asked of anybody: they are a head,
//! and tables that are empty. It names no image below: which that is, is on record.
//!
//! [qcow2]: https://www.qemu.org/docs/master/interop/qcow2.html
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// What one entry of the first table leads to: a cluster of entries, each of which leads to a cluster.
const ENTRY_COVERS_BYTES: u64 = CLUSTER_BYTES / 8 * CLUSTER_BYTES;
/// Of the first table: 2^16 entries are half a mebibyte, and lead to 32 TiB.
const ENTRIES_MAX: u64 = 1 << 16;
const MAGIC: &[u8; 4] = b"QFI\xfb";
const HEAD_BYTES: u32 = 104;
/// The head, the table of reference counts, and the first block of these, have a cluster each.
const FIRST_TABLE_AT: u64 = 3 * CLUSTER_BYTES;

/// Writes an empty image of so many bytes into an empty file. What is cut off before its end is none ([`is_image`]).
///
/// # Errors
/// It is larger than 32 TiB, or the file cannot be written.
pub(crate) fn write_empty(file: &File, size_bytes: u64) -> io::Result<()> {
    let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "an image has at most 32 TiB");
    let entries = size_bytes.div_ceil(ENTRY_COVERS_BYTES);
    if entries > ENTRIES_MAX {
        return Err(too_large());
    }
    let size_bytes = size_bytes.next_multiple_of(512);
    let table_clusters = (entries * 8).div_ceil(CLUSTER_BYTES);
    let clusters = FIRST_TABLE_AT / CLUSTER_BYTES + table_clusters;
    file.set_len(clusters * CLUSTER_BYTES)?;
    // Each cluster that there is has one reference, in 16 bits.
    for cluster in 0..clusters {
        file.write_all_at(&1_u16.to_be_bytes(), 2 * CLUSTER_BYTES + 2 * cluster)?;
    }
    file.write_all_at(&(2 * CLUSTER_BYTES).to_be_bytes(), CLUSTER_BYTES)?;
    let entries = u32::try_from(entries).map_err(|_| too_large())?;
    let mut head = Vec::new();
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&3_u32.to_be_bytes());
    // No image below: offset and length of its name.
    head.extend_from_slice(&[0; 12]);
    head.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
    head.extend_from_slice(&size_bytes.to_be_bytes());
    // Not encrypted.
    head.extend_from_slice(&[0; 4]);
    head.extend_from_slice(&entries.to_be_bytes());
    head.extend_from_slice(&FIRST_TABLE_AT.to_be_bytes());
    head.extend_from_slice(&CLUSTER_BYTES.to_be_bytes());
    head.extend_from_slice(&1_u32.to_be_bytes());
    // No snapshots (4 and 8 bytes), and no features of any of the three kinds.
    head.extend_from_slice(&[0; 12 + 24]);
    // Reference counts have 2^4 bits.
    head.extend_from_slice(&4_u32.to_be_bytes());
    head.extend_from_slice(&HEAD_BYTES.to_be_bytes());
    // After it the list of extensions, which ends at once: what follows is zero.
    // Last, so that what has it is whole.
    file.write_all_at(&head, 0)
}

/// Whether an image was made to its end.
pub(crate) fn is_image(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *MAGIC
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_written_is_what_qemu_calls_an_image_of_that_size() {
        let dir = tempfile::tempdir().unwrap();
        for (size, told) in [
            (0, 0),
            (1, 512),
            (16 << 20, 16 << 20),
            (ENTRY_COVERS_BYTES + 512, ENTRY_COVERS_BYTES + 512),
            (5 << 40, 5 << 40),
        ] {
            let path = dir.path().join(size.to_string());
            let file = File::create_new(&path).unwrap();
            assert!(!is_image(&File::open(&path).unwrap()));
            write_empty(&file, size).unwrap();
            assert!(is_image(&File::open(&path).unwrap()));
            let run = |arguments: &[&str]| {
                let mut command = Command::new("qemu-img");
                let done = command.args(arguments).arg(&path).output().ok()?;
                assert!(done.status.success(), "{size}: {done:?}");
                Some(serde_json::from_slice::<serde_json::Value>(&done.stdout).unwrap())
            };
            let Some(about) = run(&["info", "-f", "qcow2", "--output=json"]) else {
                crate::tests::not_run("qemu-img is not on PATH");
                return;
            };
            assert_eq!(about["virtual-size"], told, "{about}");
            assert_eq!(about["backing-filename"], serde_json::Value::Null);
            let checked = run(&["check", "-f", "qcow2", "--output=json"]).unwrap();
            assert_eq!(
                (
                    &checked["check-errors"],
                    &checked["leaks"],
                    &checked["corruptions"]
                ),
                (&0.into(), &serde_json::Value::Null, &serde_json::Value::Null),
                "{checked}"
            );
        }
        let file = File::create_new(dir.path().join("large")).unwrap();
        assert!(write_empty(&file, (32 << 40) + 1).is_err());
    }
}
