use std::os::unix::fs::symlink;

use super::*;

#[test]
fn whatever_is_odd_is_replaced_unread() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    symlink("/dev/zero", at("endless")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    rustix::fs::mknodat(
        CWD,
        at("pipe"),
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    fs::File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
    fs::create_dir_all(at("directory/in/it")).unwrap();
    fs::write(at("bytes"), [0xFF; 40]).unwrap();
    for odd in [
        "endless",
        "dangling",
        "pipe",
        "sparse",
        "directory",
        "bytes",
        "none",
    ] {
        assert_eq!(read_small(&at(odd)), None, "{odd}");
        put(&at(odd), "so\n").unwrap();
        assert_eq!(read_small(&at(odd)).as_deref(), Some("so\n"), "{odd}");
    }
    assert!(!Path::new(&at("nowhere")).exists(), "no link was followed");
}
