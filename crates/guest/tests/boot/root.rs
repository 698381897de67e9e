//! What the machines' root disks hold.
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// What is run inside, beside what bash does by itself.
const PROGRAMS: [&str; 4] = ["/bin/bash", "/bin/dd", "/bin/df", "/usr/bin/sha256sum"];

/// Programs with their libraries, and links that would lead whoever follows them to another file.
pub(crate) fn make(root: &Path) {
    for dir in ["bin", "etc", "home", "tmp", "root"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    fs::write(root.join("home/trap"), "untouched").unwrap();
    symlink("/home/trap", root.join("etc/resolv.conf")).unwrap();
    symlink("/home/trap", root.join("etc/hostname")).unwrap();
    symlink("bash", root.join("bin/sh")).unwrap();
    for program in PROGRAMS {
        let name = Path::new(program).file_name().unwrap();
        fs::copy(program, root.join("bin").join(name)).unwrap();
    }
    let libraries = std::process::Command::new("ldd").args(PROGRAMS).output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let libraries: BTreeSet<&str> = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .collect();
    assert!(!libraries.is_empty());
    for library in libraries {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}
