//! An initramfs: an archive of the "newc" kind
//! ([initramfs buffer format](https://docs.kernel.org/driver-api/early-userspace/buffer-format.html)).
use std::collections::BTreeSet;
use std::io::Write as _;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// Sizes are eight hexadecimal digits; nothing of ours is near it.
const FILE_BYTES_MAX: usize = 256 << 20;

/// Writes one. The same calls make the same bytes: there are no times and no owners but root in it.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    made: BTreeSet<String>,
}

impl Archive {
    /// Adds a regular file, and the directories above it.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        assert!(content.len() <= FILE_BYTES_MAX, "{path} is not for an initramfs");
        self.directories_above(path);
        self.entry(path, FILE | mode, (0, 0), content);
    }

    /// Adds a directory, and those above it.
    pub(crate) fn directory(&mut self, path: &str) {
        self.directories_above(path);
        if self.made.insert(path.to_owned()) {
            self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
        }
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, path: &str, mode: u32, number: (u32, u32)) {
        self.directories_above(path);
        self.entry(path, CHARACTER_DEVICE | mode, number, &[]);
    }

    /// The whole.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn directories_above(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        // Of a directory the kernel asks for no more than that it is linked.
        let number = self.made.len() + self.bytes.len() / 4 + 1;
        let (size, name_size) = (content.len(), path.len() + 1);
        let write = write!(
            self.bytes,
            "070701{number:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{major:08x}{minor:08x}\
             {name_size:08x}{:08x}{path}\0",
            0, 0, 1, 0, 0, 0, 0
        );
        write.expect("a vector takes everything");
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode, device and content of each entry.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    fn read(mut bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            let field = |at: usize| {
                let digits = &bytes[6 + 8 * at..14 + 8 * at];
                u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size, device, name_size) = (field(1), field(6), (field(9), field(10)), field(11));
            let name_end = 110 + name_size as usize;
            let name = String::from_utf8(bytes[110..name_end - 1].to_vec()).unwrap();
            let from = name_end.next_multiple_of(4);
            let end = from + size as usize;
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, mode, device, bytes[from..end].to_vec()));
            bytes = &bytes[end.next_multiple_of(4)..];
        }
    }

    #[test]
    fn an_archive_holds_what_was_put_into_it_and_each_directory_once() {
        let mut archive = Archive::default();
        archive.file("modules/order", 0o644, b"a\n");
        archive.file("modules/a.ko", 0o644, b"12345");
        archive.device("dev/console", 0o600, (5, 1));
        archive.directory("proc");
        archive.file("init", 0o755, b"");
        let entry =
            |path: &str, mode, device, content: &[u8]| (path.to_owned(), mode, device, content.to_vec());
        assert_eq!(
            read(&archive.finish()),
            [
                entry("modules", 0o040_755, (0, 0), b""),
                entry("modules/order", 0o100_644, (0, 0), b"a\n"),
                entry("modules/a.ko", 0o100_644, (0, 0), b"12345"),
                entry("dev", 0o040_755, (0, 0), b""),
                entry("dev/console", 0o020_600, (5, 1), b""),
                entry("proc", 0o040_755, (0, 0), b""),
                entry("init", 0o100_755, (0, 0), b""),
            ]
        );
    }
}
