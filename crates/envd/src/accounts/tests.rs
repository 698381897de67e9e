use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;

/// A system with a few accounts, and what is in its files.
struct System(tempfile::TempDir);

impl System {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/skel/.config")).unwrap();
        std::fs::write(dir.path().join("etc/skel/.bashrc"), "# shell\n").unwrap();
        std::os::unix::fs::symlink(".bashrc", dir.path().join("etc/skel/link")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join("etc").join(name), text).unwrap();
        }
        Self(dir)
    }
    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }
    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.at("etc").join(name)).unwrap()
    }
    fn ensure(&self, name: &str, sudo: bool) -> Result<UserMade, AccountError> {
        Accounts(self.0.path().to_owned()).ensure(name, sudo)
    }
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/bash\n";
const GROUP: &str = "root:x:0:\nsudo:x:27:\nnode:x:1000:\n";

#[test]
fn somebody_new_gets_an_account_a_group_and_a_home() {
    let system = System::new(&[
        ("passwd", PASSWD),
        ("group", GROUP),
        ("shadow", "root:*:1:0:99999:7:::\n"),
        ("gshadow", "root:*::\n"),
    ]);
    std::fs::set_permissions(system.at("etc/shadow"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let made = system.ensure("dev", false).unwrap();
    let expected = UserMade {
        name: "dev".to_owned(),
        uid: 1001,
        gid: 1001,
        home: "/home/dev".to_owned(),
        is_new: true,
    };
    assert_eq!(made, expected);
    assert_eq!(
        system.text("passwd"),
        format!("{PASSWD}dev:x:1001:1001::/home/dev:/bin/bash\n")
    );
    assert_eq!(system.text("group"), format!("{GROUP}dev:x:1001:\n"));
    assert!(
        system
            .text("shadow")
            .lines()
            .last()
            .unwrap()
            .starts_with("dev:!:")
    );
    assert_eq!(
        std::fs::metadata(system.at("etc/shadow")).unwrap().mode() & 0o7777,
        0o640
    );
    assert!(system.text("gshadow").ends_with("dev:!::\n"));
    assert_eq!(
        std::fs::read_to_string(system.at("home/dev/.bashrc")).unwrap(),
        "# shell\n"
    );
    assert!(system.at("home/dev/link").is_symlink() && system.at("home/dev/.config").is_dir());
    if rustix::process::geteuid().is_root() {
        for path in ["home/dev", "home/dev/.bashrc", "home/dev/.config"] {
            let found = std::fs::symlink_metadata(system.at(path)).unwrap();
            assert_eq!((found.uid(), found.gid()), (1001, 1001), "{path}");
        }
    }
    let again = system.ensure("dev", false).unwrap();
    assert_eq!(
        again,
        UserMade {
            is_new: false,
            ..expected
        }
    );
    assert_eq!(system.text("passwd").lines().count(), 3);
    assert!(!system.at("etc/sudoers.d").exists());
}

#[test]
fn whoever_is_there_is_taken_as_it_is() {
    let system = System::new(&[("passwd", PASSWD), ("group", GROUP)]);
    for name in ["node", "1000", "root", "0"] {
        assert!(!system.ensure(name, false).unwrap().is_new, "{name}");
    }
    assert_eq!(system.ensure("1000", true).unwrap().name, "node");
    assert_eq!(system.text("passwd"), PASSWD);
    assert!(
        system.text("sudoers.d/atoll-node").starts_with("node ALL="),
        "the name counts, not the number"
    );
    assert!(!system.at("home").exists());
}

#[test]
fn a_system_without_accounts_gets_roots_as_well() {
    let system = System::new(&[]);
    assert_eq!(system.ensure("user", true).unwrap().uid, 1000);
    let passwd = system.text("passwd");
    assert!(
        passwd.starts_with("root:x:0:0:") && passwd.contains("\nuser:x:1000:1000:"),
        "{passwd}"
    );
    assert!(!system.at("etc/shadow").exists(), "what is not used is not begun");
}

#[test]
fn sudo_is_allowed_once_and_where_it_is_read() {
    let system = System::new(&[("passwd", PASSWD), ("group", GROUP)]);
    let line = "node ALL=(ALL:ALL) NOPASSWD: ALL";
    for _ in 0..2 {
        system.ensure("node", true).unwrap();
        assert_eq!(system.text("group"), "root:x:0:\nsudo:x:27:node\nnode:x:1000:\n");
        assert_eq!(system.text("sudoers.d/atoll-node"), format!("{line}\n"));
    }
    let mode = std::fs::metadata(system.at("etc/sudoers.d/atoll-node"))
        .unwrap()
        .mode();
    assert_eq!(mode & 0o7777, 0o440);
    let without = "root ALL=(ALL:ALL) ALL";
    let system = System::new(&[
        ("passwd", PASSWD),
        ("group", "wheel:x:10:a\n"),
        ("sudoers", without),
    ]);
    for _ in 0..2 {
        system.ensure("node", true).unwrap();
        assert_eq!(system.text("sudoers"), format!("{without}\n{line}\n"));
        assert_eq!(system.text("group"), "wheel:x:10:a,node\n");
    }
    assert!(!system.at("etc/sudoers.d").exists());
    let including = format!("{without}\n@includedir /etc/sudoers.d\n");
    let system = System::new(&[("passwd", PASSWD), ("group", ""), ("sudoers", &including)]);
    system.ensure("node", true).unwrap();
    assert_eq!(system.text("sudoers"), including);
    assert!(system.at("etc/sudoers.d/atoll-node").exists());
}

#[test]
fn who_cannot_be_is_refused_and_nothing_changes() {
    let system = System::new(&[("passwd", PASSWD), ("group", GROUP)]);
    for name in [
        "",
        "a:b",
        "x\nroot2:x:0:0::/:/bin/sh",
        "-rf",
        "12345",
        "node:node",
        "../etc",
    ] {
        let error = system.ensure(name, true).unwrap_err();
        assert!(
            matches!(error, AccountError::Name(_) | AccountError::Nobody(_)),
            "{name}: {error}"
        );
    }
    assert_eq!(
        (system.text("passwd"), system.text("group")),
        (PASSWD.to_owned(), GROUP.to_owned())
    );
}

#[test]
fn what_is_in_place_of_a_file_is_not_followed() {
    let system = System::new(&[("group", GROUP), ("elsewhere", PASSWD)]);
    std::os::unix::fs::symlink("elsewhere", system.at("etc/passwd")).unwrap();
    assert!(matches!(
        system.ensure("dev", false),
        Err(AccountError::File { .. })
    ));
    assert_eq!(system.text("elsewhere"), PASSWD);
    let system = System::new(&[("passwd", PASSWD)]);
    std::fs::create_dir(system.at("etc/group")).unwrap();
    assert!(matches!(system.ensure("dev", false), Err(AccountError::NotText(path)) if path == "/etc/group"));
    std::fs::write(system.at("etc/passwd"), b"root:x:0:0:\xff:/root:/bin/sh\n").unwrap();
    assert!(matches!(
        system.ensure("dev", false),
        Err(AccountError::NotText(_))
    ));
}
