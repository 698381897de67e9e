//! Disks and the volume they are on.
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use ports::runtime::Disk;
use ports::{Runtime as _, RuntimeError};

use crate::client::run;
use crate::house::{eventually, with_house, with_house_in};

fn sh(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().expect("a shell");
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_kept_disk_and_a_clone_of_it_are_sound() {
    with_house(async |house| {
        let machine = house.start().await;
        run(
            &*machine,
            "user",
            "mkdir -p ~/d; for i in $(seq 300); do echo $i > ~/d/$i; done; rm ~/d/1*; sudo touch /usr/ours",
        )
        .await;
        machine.stop(Disk::Keep).await.expect("it stops");
        let kept = house.kept(machine.sandbox());
        let clone = kept.with_extension("clone");
        sh(&format!(
            "cp --reflink=always {} {}",
            kept.display(),
            clone.display()
        ));
        for image in [&kept, &clone] {
            sh(&format!("e2fsck -fn {} >&2", image.display()));
        }
        std::fs::remove_file(clone).expect("it goes");
    });
}

#[test]
fn what_is_deleted_inside_is_free_outside() {
    with_house(async |house| {
        let machine = house.start().await;
        let image = machine.facts()["disk"].clone();
        let used = |path: &str| std::fs::metadata(path).expect("an image").blocks() * 512;
        let line = "head -c 100M /dev/urandom > ~/large; sync ~/large";
        run(&*machine, "user", line).await;
        let full = used(&image);
        assert!(full > 100 << 20, "{full}");
        run(&*machine, "user", "rm ~/large; sync").await;
        eventually("the blocks of a deleted file are free", || {
            used(&image) < full - (80 << 20)
        })
        .await;
        machine.stop(Disk::Discard).await.expect("it stops");
        let volume = house.dir.join("volume.xfs");
        if volume.exists() {
            eventually("the blocks of a deleted disk are the host's", || {
                // By itself XFS writes its log, and gives back what the log says is free, twice a minute.
                sh(&format!("sync -f {}", house.dir.join("volume").display()));
                used(&volume.display().to_string()) < 80 << 20
            })
            .await;
        }
    });
}

#[test]
fn a_volume_grows_with_the_room_there_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("volume.xfs");
    sh(&format!(
        "truncate -s 1G {0} && mkfs.xfs -q -m reflink=1 {0}",
        image.display()
    ));
    with_house_in(dir.path(), 0, async |house| {
        if !house.runtime.disks_are_in_a_file() {
            return;
        }
        let space = house.runtime.disk_space().expect("a volume");
        assert!(space.total_bytes > 2 << 30, "{space:?}");
        assert!(space.free_bytes <= space.total_bytes);
        run(&*house.start().await, "user", "echo x > ~/file; sync").await;
    });
}

/// A file system of the test's own, at most so large.
struct Small<'a>(&'a Path);

impl Small<'_> {
    fn resize(&self, bytes: u64) {
        sh(&format!("mount -o remount,size={bytes} {}", self.0.display()));
    }
    fn used(&self) -> u64 {
        let space = rustix::fs::statvfs(self.0).expect("a file system");
        (space.f_blocks - space.f_bfree) * space.f_frsize
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        sh(&format!("umount {}", self.0.display()));
    }
}

#[test]
fn the_last_room_is_left_to_the_sandboxes_that_are_there() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    sh(&format!(
        "mount -t tmpfs -o size=6g,mode=755 tmpfs {}",
        dir.path().display()
    ));
    let small = Small(dir.path());
    with_house_in(&dir.path().join("data"), 0, async |house| {
        let machine = house.start().await;
        small.resize(small.used() + (100 << 20));
        let refused = house.start_from(house.spec()).await.map(drop);
        assert!(
            matches!(refused, Err(RuntimeError::Exhausted("disk"))),
            "{refused:?}"
        );
        run(&*machine, "user", "head -c 1M /dev/zero > ~/more; sync ~/more").await;
        small.resize(6 << 30);
        house.start().await;
    });
}
