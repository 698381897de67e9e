//! A library of two functions, by which CRIU believes that it is root.
//!
//! CRIU must run as the user who owns a machine's user namespace: that user may look at all of a machine's limits, and to
//! its account go the things of which a user may have so many, for as long as the machine lives. It holds every capability
//! all the same, and that is what the kernel asks for. CRIU itself asks by `geteuid(2)`, and does less for anybody but 0.
//! So it is started with a library that answers 0 (`LD_PRELOAD` of [ld.so(8)]). It is small enough to be written by hand,
//! and needs no compiler where Atoll runs.
//!
//! [ld.so(8)]: https://man7.org/linux/man-pages/man8/ld.so.8.html

/// `return 0`, in the machine's own language.
#[cfg(target_arch = "x86_64")]
const RETURN_ZERO: [u8; 8] = [0x31, 0xc0, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90];
#[cfg(target_arch = "aarch64")]
const RETURN_ZERO: [u8; 8] = [0x00, 0x00, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6];
/// `EM_X86_64` and `EM_AARCH64` of elf(5).
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// The functions, which share their one body.
const NAMES: [&str; 2] = ["geteuid", "getuid"];
/// Where the loader may write: a page of its own, the largest that these machines have.
const WRITABLE_AT: u64 = 0x1_0000;

/// The library, as a file ([elf(5)](https://man7.org/linux/man-pages/man5/elf.5.html)).
pub(crate) fn library() -> Vec<u8> {
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    const SEGMENTS: u64 = 4;
    const SYMBOL: u64 = 24;
    let symbols_at = HEADER + SEGMENT * SEGMENTS;
    let symbols = NAMES.len() as u64 + 1;
    // One bucket, and a chain through all symbols.
    let hash_at = symbols_at + SYMBOL * symbols;
    let hash_words = 2 + 1 + symbols;
    let code_at = (hash_at + 4 * hash_words).next_multiple_of(16);
    let strings_at = code_at + RETURN_ZERO.len() as u64;
    let mut strings = vec![0_u8];
    let names: Vec<u32> = NAMES
        .iter()
        .map(|name| {
            let at = u32::try_from(strings.len()).unwrap_or(0);
            strings.extend(name.bytes().chain([0]));
            at
        })
        .collect();
    let end = strings_at + strings.len() as u64;
    let dynamic: [u64; 12] = [
        4, // DT_HASH
        hash_at,
        5, // DT_STRTAB
        strings_at,
        6, // DT_SYMTAB
        symbols_at,
        10, // DT_STRSZ
        strings.len() as u64,
        11, // DT_SYMENT
        SYMBOL,
        0, // DT_NULL
        0,
    ];
    let dynamic_length = size_of_val(&dynamic) as u64;

    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    half(&mut file, 3); // ET_DYN
    half(&mut file, MACHINE);
    word(&mut file, 1); // EV_CURRENT
    for number in [0, HEADER, 0] {
        long(&mut file, number);
    }
    word(&mut file, 0);
    for number in [64, 56, 4, 0, 0, 0] {
        half(&mut file, number);
    }
    // Type, flags (execute 1, write 2, read 4), offset in the file, address, length, alignment.
    let segments: [(u32, u32, u64, u64, u64, u64); 4] = [
        (1, 5, 0, 0, end, WRITABLE_AT),
        (1, 6, WRITABLE_AT, WRITABLE_AT, dynamic_length, WRITABLE_AT),
        (2, 6, WRITABLE_AT, WRITABLE_AT, dynamic_length, 8),
        // The stack is not to be executed.
        (0x6474_e551, 6, 0, 0, 0, 16),
    ];
    for (kind, flags, offset, address, length, align) in segments {
        word(&mut file, kind);
        word(&mut file, flags);
        for number in [offset, address, address, length, length, align] {
            long(&mut file, number);
        }
    }
    file.resize(file.len() + size_of::<[u64; 3]>(), 0); // The symbol that is none.
    for name in names {
        word(&mut file, name);
        file.extend([0x12, 0]); // A global function, seen by all.
        half(&mut file, 1); // In some section.
        long(&mut file, code_at);
        long(&mut file, RETURN_ZERO.len() as u64);
    }
    for number in [1, symbols, 1] {
        word(&mut file, u32::try_from(number).unwrap_or(0));
    }
    // Each symbol leads to the next; the last, like the one that is none, to none.
    for i in 0..symbols {
        let next = if i == 0 || i + 1 == symbols { 0 } else { i + 1 };
        word(&mut file, u32::try_from(next).unwrap_or(0));
    }
    file.resize(usize::try_from(code_at).unwrap_or(0), 0);
    file.extend(RETURN_ZERO);
    file.extend(&strings);
    file.resize(usize::try_from(WRITABLE_AT).unwrap_or(0), 0);
    for number in dynamic {
        long(&mut file, number);
    }
    file
}

fn half(file: &mut Vec<u8>, number: u16) {
    file.extend(number.to_le_bytes());
}
fn word(file: &mut Vec<u8>, number: u32) {
    file.extend(number.to_le_bytes());
}
fn long(file: &mut Vec<u8>, number: u64) {
    file.extend(number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    #[test]
    fn a_program_that_is_started_with_it_believes_that_it_is_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("root.so");
        std::fs::write(&path, super::library()).unwrap();
        let mut ask = Command::new("id");
        ask.arg("-u").env("LD_PRELOAD", &path);
        if rustix::process::geteuid().is_root() {
            ask.uid(12_345);
        }
        let asked = ask.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&asked.stderr), "");
        assert_eq!(String::from_utf8_lossy(&asked.stdout), "0\n");
    }
}
