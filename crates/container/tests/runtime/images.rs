//! Images: layers that somebody else made, with all that may be odd about them.
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use model::BuildId;
use ports::{Machine, MachineSpec, Runtime as _};

use crate::client::run;
use crate::copies::{begin, copy};
use crate::house::{House, with_house};

/// The least of a root: a shell and some tools, linked with what they need. Whatever has a path there is copied from this
/// machine.
pub(crate) fn busybox(house: &House) -> PathBuf {
    let layer = house.dir.join("image/base");
    if layer.exists() {
        return layer;
    }
    for program in [
        "bash", "cat", "ls", "grep", "id", "stat", "readlink", "touch", "mkdir", "rm", "mv", "test", "true",
        "df", "ln",
    ] {
        let from = Path::new("/usr/bin").join(program);
        let mut files = vec![from.clone()];
        let linked = std::process::Command::new("ldd")
            .arg(&from)
            .output()
            .expect("ldd");
        for word in String::from_utf8_lossy(&linked.stdout).split_whitespace() {
            if word.starts_with('/') {
                files.push(PathBuf::from(word));
            }
        }
        for file in files {
            let to = layer.join(file.strip_prefix("/").expect("an absolute path"));
            fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
            fs::copy(&file, &to).expect("a copy");
        }
    }
    if !layer.join("bin").exists() {
        symlink("usr/bin", layer.join("bin")).expect("a link");
    }
    symlink("bash", layer.join("usr/bin/sh")).expect("a link");
    layer
}

pub(crate) async fn sh(machine: &dyn Machine, line: &str) -> String {
    run(machine, "user", line).await
}

/// A layer with these files; what ends with a slash is a directory.
fn layer(house: &House, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let layer = house.dir.join("image").join(name);
    fs::create_dir_all(&layer).expect("a layer");
    for (file, text) in files {
        let path = layer.join(file);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    layer
}

#[test]
fn an_image_without_accounts_boots_and_has_a_user() {
    with_house(async |house| {
        let build = BuildId::random();
        let base = busybox(house);
        house
            .runtime
            .import(build, vec![base.clone()])
            .await
            .expect("it is imported");
        assert_eq!(house.runtime.layers_of(build).await, std::slice::from_ref(&base));
        let machine = begin(house, build).await;
        assert_eq!(
            sh(&*machine, "id -un; id -u; pwd; touch file && stat -c %U file").await,
            "user\n1000\n/home/user\nuser\n"
        );
        assert_eq!(sh(&*machine, "sudo id -u").await, "0\n");
        sh(&*machine, "sudo touch /ours && sudo rm /usr/bin/df").await;
        assert!(base.join("usr/bin/df").exists() && !base.join("ours").exists());
        assert_eq!(
            fs::read_dir(base.join("home")).map(Iterator::count).unwrap_or(0),
            0
        );
        // And on: a copy, sealed.
        let sealed = BuildId::random();
        house
            .runtime
            .seal(copy(&machine).await, sealed)
            .await
            .expect("it is sealed");
        let machine = begin(house, sealed).await;
        sh(
            &*machine,
            "test -e /ours && test ! -e /usr/bin/df && test -e ~/file && sudo id -u",
        )
        .await;
        assert_eq!(house.runtime.layers_of(sealed).await, [base]);
    });
}

#[test]
fn upper_layers_of_an_image_hide_what_lies_below() {
    with_house(async |house| {
        let lower = layer(
            house,
            "lower",
            &[
                (
                    "etc/passwd",
                    "root:x:0:0:r:/root:/bin/sh\nuser:x:77:77:old:/srv:/bin/sh\n",
                ),
                ("etc/gone", "x"),
                ("opt/whole/below", "x"),
            ],
        );
        let upper = layer(
            house,
            "upper",
            &[
                (
                    "etc/passwd",
                    "root:x:0:0:r:/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/sh\n",
                ),
                ("opt/whole/above", "x"),
            ],
        );
        rustix::fs::mknodat(
            rustix::fs::CWD,
            upper.join("etc/gone"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            0,
        )
        .expect("a whiteout");
        rustix::fs::setxattr(
            upper.join("opt/whole"),
            "trusted.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .expect("an opaque directory");
        let build = BuildId::random();
        let layers = vec![busybox(house), lower, upper];
        house.runtime.import(build, layers).await.expect("it is imported");
        let machine = begin(house, build).await;
        assert_eq!(
            sh(
                &*machine,
                "test ! -e /etc/gone; ls /opt/whole; id -un; cat /etc/passwd"
            )
            .await,
            "above\nuser\nroot:x:0:0:r:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n\
             node:x:1000:1000::/home/node:/bin/sh\n"
        );
    });
}

#[test]
fn links_of_an_image_lead_nowhere_outside_of_it() {
    with_house(async |house| {
        let outside = house.dir.join("outside");
        fs::create_dir_all(outside.join("bin")).expect("a directory");
        fs::write(outside.join("passwd"), "secret:x:5:5::/:/x\n").expect("a file");
        let hostile = layer(house, "hostile", &[("data/etc/group", "root:x:0:\nodd:x:9:\n")]);
        let up = "../../../../../../../../../..";
        symlink("/data/etc", hostile.join("etc")).expect("a link");
        symlink(
            format!("{up}{}/passwd", outside.display()),
            hostile.join("data/etc/passwd"),
        )
        .expect("a link");
        symlink(&outside, hostile.join("home")).expect("a link");
        fs::create_dir_all(hostile.join("usr")).expect("a directory");
        symlink(&outside, hostile.join("usr/local")).expect("a link");
        symlink("/etc", hostile.join("tmp")).expect("a link");
        symlink("/proc/1/root", hostile.join("run")).expect("a link");
        symlink(&outside, hostile.join("dev")).expect("a link");
        fs::write(hostile.join("proc"), "a file").expect("a file");
        symlink("/dev/zero", hostile.join("data/etc/shadow")).expect("a link");
        symlink(&outside, hostile.join("data/etc/resolv.conf")).expect("a link");
        let build = BuildId::random();
        house
            .runtime
            .import(build, vec![busybox(house), hostile.clone()])
            .await
            .expect("it is imported");
        let machine = begin(house, build).await;
        let seen = sh(
            &*machine,
            "cat /etc/passwd; grep odd /etc/group; ls -d /tmp/. /run/atoll; cat /proc/self/comm",
        )
        .await;
        assert!(
            seen.contains("user:x:1000") && seen.contains("odd:x:9:"),
            "{seen}"
        );
        assert!(!seen.contains("secret"), "{seen}");
        assert_eq!(
            sh(&*machine, "id -un; touch ~/file; stat -c %a /tmp").await,
            "user\n1777\n"
        );
        sh(
            &*machine,
            "grep -q nameserver /etc/resolv.conf && test ! -L /etc/resolv.conf",
        )
        .await;
        for (dir, count) in [(outside.clone(), 2), (outside.join("bin"), 0)] {
            let names: Vec<_> = fs::read_dir(&dir).expect("a directory").flatten().collect();
            assert_eq!(names.len(), count, "{names:?}");
        }
    });
}

#[test]
fn what_an_image_says_of_its_directories_stays_so() {
    with_house(async |house| {
        let odd = layer(
            house,
            "odd",
            &[
                ("etc/x", "x"),
                ("usr/local/bin/x", "x"),
                ("etc/shadow", "root:*:1::::::\n"),
            ],
        );
        for (dir, mode, owner) in [
            ("etc", 0o750, 7),
            ("usr/local", 0o711, 0),
            ("usr/local/bin", 0o2755, 9),
        ] {
            fs::set_permissions(odd.join(dir), fs::Permissions::from_mode(mode)).expect("a mode");
            std::os::unix::fs::chown(odd.join(dir), Some(owner), Some(owner)).expect("an owner");
            fs::set_permissions(odd.join(dir), fs::Permissions::from_mode(mode)).expect("a mode");
        }
        let (shadow, file) = (odd.join("etc/shadow"), fs::Permissions::from_mode(0o640));
        std::os::unix::fs::chown(&shadow, Some(0), Some(42)).expect("an owner");
        fs::set_permissions(&shadow, file).expect("a mode");
        let build = BuildId::random();
        house
            .runtime
            .import(build, vec![busybox(house), odd])
            .await
            .expect("it is imported");
        let spec = MachineSpec {
            build,
            ..house.spec()
        };
        let machine = house.start_from(spec).await.expect("a machine");
        let line =
            "stat -c '%u %a' /etc /usr/local /usr/local/bin; stat -c '%g %a' /etc/shadow; cat /etc/shadow";
        assert_eq!(
            run(&*machine, "root", line).await,
            "7 750\n0 711\n9 2755\n42 640\nroot:*:1::::::\nuser:*:19000:0:99999:7:::\n"
        );
    });
}
