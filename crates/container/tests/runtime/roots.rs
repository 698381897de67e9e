//! A root that is not this machine's: nothing may depend on the host's own files.
use std::path::{Path, PathBuf};
use std::process::Command;

use model::BuildId;
use ports::MachineSpec;

use crate::client::run;
use crate::house::with_house;

/// A small Debian, made once, from where this machine's own packages come; `None`, said aloud, where it cannot be had.
fn debian() -> Option<PathBuf> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/roots");
    let root = cache.join("debian");
    if root.is_dir() {
        return Some(root);
    }
    std::fs::create_dir_all(&cache).expect("a cache");
    let sources = std::fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|kind| kind == "list" || kind == "sources")
        })
        .chain([PathBuf::from("/etc/apt/sources.list")])
        .filter(|path| path.exists());
    let partial = cache.join("debian.partial");
    let _ = std::fs::remove_dir_all(&partial);
    let made = Command::new("mmdebstrap")
        .args([
            "--quiet",
            "--variant=minbase",
            "--include=python3-minimal,ca-certificates",
            "",
        ])
        .arg(&partial)
        .args(sources)
        .output();
    match made {
        Ok(made) if made.status.success() => {
            std::fs::rename(&partial, &root).expect("a name");
            Some(root)
        }
        Ok(made) => {
            eprintln!(
                "SKIPPED: mmdebstrap made no root: {}",
                String::from_utf8_lossy(&made.stderr)
            );
            None
        }
        Err(error) => {
            eprintln!("SKIPPED: mmdebstrap cannot be run: {error}");
            None
        }
    }
}

/// A package archive of one package, made inside.
const ARCHIVE: &str = "mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin /tmp/archive && \
    printf 'Package: atoll-hello\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@example.com>\\nDescription: x\\n' \
        > /tmp/p/DEBIAN/control && \
    printf '#!/bin/sh\\necho hello\\n' > /tmp/p/usr/bin/atoll-hello && chmod 755 /tmp/p/usr/bin/atoll-hello && \
    dpkg-deb --root-owner-group -b /tmp/p /tmp/archive/atoll-hello_1_all.deb && cd /tmp/archive && \
    { dpkg-deb -f atoll-hello_1_all.deb; echo Filename: ./atoll-hello_1_all.deb; \
      echo Size: $(stat -c %s atoll-hello_1_all.deb); \
      echo SHA256: $(sha256sum atoll-hello_1_all.deb | cut -d' ' -f1); } > Packages && \
    echo 'deb [trusted=yes] file:/tmp/archive ./' > /tmp/only.list";
const APT: &str = "apt-get -o Dir::Etc::sourcelist=/tmp/only.list -o Dir::Etc::sourceparts=-";

#[test]
fn a_debian_root_serves_as_a_template() {
    with_house(async |house| {
        let Some(root) = debian() else { return };
        let build = BuildId::random();
        house
            .runtime
            .import_root(build, root.clone())
            .await
            .expect("it is imported");
        let spec = MachineSpec {
            build,
            ..house.spec()
        };
        let machine = house.start_from(spec).await.expect("a machine");
        let run = async |user: &str, line: &str| run(&*machine, user, line).await;
        assert_eq!(run("user", "id -un; pwd").await, "user\n/home/user\n");
        assert_eq!(run("user", "sudo id -u").await, "0\n");
        assert_eq!(
            run("user", "python3 -c 'print(6 * 7)'; python -c 'print(1)'").await,
            "42\n1\n"
        );
        run("user", "echo x > ~/file && sudo touch /etc/ours /usr/ours").await;
        run("root", ARCHIVE).await;
        run("root", &format!("{APT} update && {APT} install -y atoll-hello")).await;
        assert_eq!(run("user", "atoll-hello").await, "hello\n");
        assert_eq!(
            run("user", "awk '$2 ~ \"^/(usr)?$\" {print $2}' /proc/mounts").await,
            "/\n"
        );
        for ours in ["etc/ours", "usr/ours", "usr/bin/atoll-hello", "home/user/file"] {
            assert!(!root.join(ours).exists(), "{ours} is in the root itself");
        }
    });
}

#[test]
fn packages_can_be_installed_over_this_machines_usr() {
    if !Path::new("/usr/bin/apt-get").exists() {
        eprintln!("SKIPPED: this machine has no apt");
        return;
    }
    with_house(async |house| {
        let machine = house.start().await;
        run(&*machine, "root", ARCHIVE).await;
        let line = format!("sudo {APT} update && sudo {APT} install -y atoll-hello && atoll-hello");
        assert!(run(&*machine, "user", &line).await.ends_with("hello\n"));
        assert!(!Path::new("/usr/bin/atoll-hello").exists());
    });
}
