//! Copies of machines that go on, and machines that begin with them.
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{BuildId, Memory, MiB, Resources};
use ports::runtime::{Disk, DiskOrigin};
use ports::{Machine, MachineSpec, Runtime as _, RuntimeError};

use crate::client::{attempt, run};
use crate::house::{House, eventually, with_house, with_house_in, with_two_daemons};

/// Copies a machine, and says into which build.
pub(crate) async fn copy(machine: &Arc<dyn Machine>) -> BuildId {
    let into = BuildId::random();
    let memory = machine.checkpoint(into, false).await.expect("it is copied");
    assert_eq!(memory, Memory::None);
    into
}

/// A machine that begins with a build.
pub(crate) async fn begin(house: &House, build: BuildId) -> Arc<dyn Machine> {
    let spec = MachineSpec {
        build,
        ..house.spec()
    };
    house.start_from(spec).await.expect("a machine")
}

fn is_sound(house: &House, build: BuildId) {
    let image = house.on_volume(&format!("builds/{build}.img"));
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(&image)
        .output()
        .expect("e2fsck");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn a_copy_has_what_its_source_had_and_both_go_their_own_way() {
    with_house(async |house| {
        let source = house.start().await;
        run(
            &*source,
            "user",
            "echo before > ~/file; sudo touch /usr/ours /etc/ours; sudo rm /etc/profile; mkdir -p ~/d/e",
        )
        .await;
        let build = copy(&source).await;
        is_sound(house, build);
        assert!(house.runtime.has_build(build).await);
        assert_eq!(house.runtime.memory_of(build).await, Memory::None);
        run(&*source, "user", "echo after > ~/file").await;
        let (a, b) = (begin(house, build).await, begin(house, build).await);
        for machine in [&a, &b] {
            assert_eq!(
                run(
                    &**machine,
                    "user",
                    "cat ~/file; ls /usr/ours; test ! -e /etc/profile"
                )
                .await,
                "before\n/usr/ours\n"
            );
        }
        run(&*a, "user", "echo of-a > ~/file").await;
        assert_eq!(run(&*b, "user", "cat ~/file").await, "before\n");
        assert_eq!(run(&*source, "user", "cat ~/file").await, "after\n");
        let id = "cat /etc/machine-id";
        let ids = [
            run(&*source, "user", id).await,
            run(&*a, "user", id).await,
            run(&*b, "user", id).await,
        ];
        assert!(
            ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2],
            "{ids:?}"
        );
        // A copy of a copy, kept and started again.
        let again = copy(&a).await;
        is_sound(house, again);
        let c = begin(house, again).await;
        c.stop(Disk::Keep).await.expect("it stops");
        let spec = MachineSpec {
            sandbox: c.sandbox(),
            build: again,
            disk: DiskOrigin::Kept,
            ..house.spec()
        };
        let c = house.start_from(spec).await.expect("it starts again");
        assert_eq!(run(&*c, "user", "cat ~/file").await, "of-a\n");
    });
}

/// Tells, from inside, the longest time for which nothing ran, in milliseconds.
const WATCH: &str = "rm -f /tmp/enough; python3 -c '
import os, time
end = time.monotonic() + 60
last, worst = time.monotonic(), 0
open(\"/tmp/watching\", \"w\").close()
while time.monotonic() < end and not os.path.exists(\"/tmp/enough\"):
    now = time.monotonic()
    worst = max(worst, now - last)
    last = now
print(int(worst * 1000))'; rm /tmp/watching";
/// 500 MB in 10 000 files.
const WRITE: &str = "rm -rf ~/d && mkdir ~/d && python3 -c '
import os
data = os.urandom(50 * 1024)
for i in range(10000):
    with open(os.path.expanduser(f\"~/d/{i}\"), \"wb\") as f: f.write(data)'";

#[test]
fn a_machine_that_has_written_much_stands_for_a_few_milliseconds() {
    with_house(async |house| {
        let spec = house.spec();
        let spec = MachineSpec {
            resources: Resources {
                memory: MiB(1024),
                disk: MiB(2048),
                ..spec.resources
            },
            ..spec
        };
        let machine = house.start_from(spec).await.expect("a machine");
        let mut seen = Vec::new();
        // Others of this host may keep it from running as well: one of several times is its own.
        for _ in 0..3 {
            run(&*machine, "user", WRITE).await;
            let watched = async {
                let worst = run(&*machine, "user", WATCH).await;
                worst.trim().parse::<u64>().expect("milliseconds")
            };
            let copied = async {
                while attempt(&*machine, "user", "test -e /tmp/watching").await.1 != 0 {}
                let begun = Instant::now();
                let build = copy(&machine).await;
                let took = begun.elapsed();
                run(&*machine, "user", "touch /tmp/enough").await;
                (build, took)
            };
            let (worst_ms, (build, took)) = tokio::join!(watched, copied);
            say(&format!("stood for at most {worst_ms} ms; copied in {took:?}"));
            is_sound(house, build);
            seen.push(worst_ms);
            if worst_ms < 50 {
                let copy = begin(house, build).await;
                let files = run(
                    &*copy,
                    "user",
                    "ls ~/d | wc -l; du -sm --apparent-size ~/d | cut -f1",
                )
                .await;
                assert_eq!(files, "10000\n489\n");
                return;
            }
        }
        panic!("it stood for {seen:?} ms");
    });
}

#[expect(
    clippy::print_stderr,
    reason = "whoever looks for the number finds it in the test's output"
)]
fn say(line: &str) {
    eprintln!("{line}");
}

#[test]
fn a_copy_of_a_machine_that_writes_all_the_time_is_sound() {
    with_house(async |house| {
        let machine = house.start().await;
        run(
            &*machine,
            "user",
            "setsid bash -c 'i=0; while :; do i=$((i+1)); mkdir -p ~/w/$((i%50)); echo $i > ~/w/$((i%50))/$i; \
             [ $((i%3)) = 0 ] && rm -rf ~/w/$(((i+7)%50)); done' </dev/null >/dev/null 2>&1 & sleep 0.3",
        )
        .await;
        for _ in 0..5 {
            let build = copy(&machine).await;
            is_sound(house, build);
            let copy = begin(house, build).await;
            run(&*copy, "user", "ls -R ~/w | wc -l").await;
            copy.stop(Disk::Discard).await.expect("it stops");
        }
    });
}

#[test]
fn what_stood_stands_after_a_copy_and_what_ran_runs() {
    with_house(async |house| {
        let machine = house.start().await;
        run(&*machine, "user", "echo x > ~/file").await;
        machine.freeze().await.expect("it freezes");
        let build = copy(&machine).await;
        assert!(machine.is_frozen());
        let answer =
            tokio::time::timeout(Duration::from_millis(300), attempt(&*machine, "user", "true")).await;
        assert!(answer.is_err(), "a machine that stands answers nobody");
        assert_eq!(
            run(&*begin(house, build).await, "user", "cat ~/file").await,
            "x\n"
        );
        machine.thaw().await.expect("it thaws");
        copy(&machine).await;
        assert!(!machine.is_frozen());
        run(&*machine, "user", "cat ~/file").await;
    });
}

#[test]
fn a_machine_that_stood_only_to_be_copied_goes_on_under_the_next_daemon() {
    with_two_daemons(
        async |house| {
            let (copied, paused) = (house.start().await, house.start().await);
            paused.freeze().await.expect("it freezes");
            copied.freeze().await.expect("it freezes");
            // As it is on record when a daemon dies while it copies.
            let record = house.dir.join(format!("slots/{}.json", copied.facts()["slot"]));
            let text = std::fs::read_to_string(&record).expect("a record");
            let text = text.replace("\"copying\":false", "\"copying\":true");
            assert!(text.contains("true"));
            std::fs::write(&record, text).expect("written");
            (copied.sandbox(), paused.sandbox())
        },
        async |house, (copied, paused)| {
            for machine in house.machines() {
                assert_eq!(machine.is_frozen(), machine.sandbox() == paused);
                if machine.sandbox() == copied {
                    run(&*machine, "user", "true").await;
                    copy(&machine).await;
                }
            }
        },
    );
}

#[test]
fn a_larger_disk_than_the_copys_is_given_and_a_smaller_one_is_not() {
    with_house(async |house| {
        let machine = house.start().await;
        run(&*machine, "user", "echo x > ~/file").await;
        let build = copy(&machine).await;
        let with_disk = |mib: u32| {
            let spec = house.spec();
            MachineSpec {
                build,
                resources: Resources {
                    disk: MiB(mib),
                    ..spec.resources
                },
                ..spec
            }
        };
        for (asked, least, most) in [(3000, 2700, 3000), (3000, 2700, 3000), (256, 900, 1024)] {
            let machine = house.start_from(with_disk(asked)).await.expect("a machine");
            let size = run(&*machine, "user", "cat ~/file; df -m --output=size / | tail -1").await;
            let size: u64 = size.trim_start_matches("x\n").trim().parse().expect("a size");
            assert!((least..=most).contains(&size), "{asked}: {size}");
            let usage = machine.usage().await.expect("usage");
            assert!((usage.disk_total_bytes >> 20).abs_diff(size) <= 1, "{usage:?}");
        }
    });
}

#[test]
fn slots_are_prepared_for_builds_with_disks_of_their_own_but_not_for_single_machines() {
    let dir = tempfile::tempdir().expect("a directory");
    with_house_in(dir.path(), 1, async |house| {
        let single = MachineSpec {
            disk: DiskOrigin::Single,
            ..house.spec()
        };
        let machine = house.start_from(single.clone()).await.expect("a machine");
        run(&*machine, "user", "echo x > ~/file").await;
        let build = copy(&machine).await;
        house
            .start_from(MachineSpec { build, ..single })
            .await
            .expect("a machine");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(house.runtime.slots_ready(), 0);
        begin(house, build).await;
        eventually("a slot is ready", || house.runtime.slots_ready() == 1).await;
        let ready = begin(house, build).await;
        assert_eq!(run(&*ready, "user", "cat ~/file").await, "x\n");
        eventually("another slot is ready", || house.runtime.slots_ready() == 1).await;
        house.stop_all().await;
        house
            .runtime
            .remove_builds(&[build])
            .await
            .expect("it is removed");
        assert!(
            !house.runtime.has_build(build).await,
            "prepared slots do not hold a build"
        );
        assert_eq!(house.runtime.slots_ready(), 0);
    });
}

#[test]
fn a_copy_into_no_room_or_of_a_dead_machine_leaves_nothing() {
    with_house(async |house| {
        let machine = house.start().await;
        machine.stop(Disk::Discard).await.expect("it stops");
        let into = BuildId::random();
        let refused = machine.checkpoint(into, false).await;
        assert!(matches!(refused, Err(RuntimeError::Step { .. })), "{refused:?}");
        assert!(!house.runtime.has_build(into).await);
        let image = house.on_volume(&format!("builds/{into}.img"));
        let dir = image.parent().expect("a directory");
        assert_eq!(std::fs::read_dir(dir).expect("a directory").count(), 0);
    });
}

/// A machine that goes on from the disk that was kept for another.
fn kept_of(house: &House, machine: &Arc<dyn Machine>) -> MachineSpec {
    MachineSpec {
        sandbox: machine.sandbox(),
        disk: DiskOrigin::Kept,
        ..house.spec()
    }
}

#[test]
fn a_disk_that_is_kept_is_copied_and_stays_kept() {
    with_house(async |house| {
        let source = house.start().await;
        run(&*source, "user", "echo kept > ~/file; sudo touch /usr/ours").await;
        let earlier = copy(&source).await;
        source.stop(Disk::Keep).await.expect("it stops");
        let (sandbox, into) = (source.sandbox(), BuildId::random());
        for again in 0..2 {
            let copied = house.runtime.copy_kept(sandbox, into).await;
            assert!(copied.is_ok(), "{again}: {copied:?}");
        }
        is_sound(house, into);
        assert_eq!(house.runtime.memory_of(into).await, Memory::None);
        assert_eq!(
            house.runtime.kin_of(into).await,
            [earlier],
            "what is in the blobs of it is not brought again"
        );
        assert!(house.kept(sandbox).exists());
        // Both go their own way, and each outlives the other.
        let copied = begin(house, into).await;
        let said = run(&*copied, "user", "cat ~/file; ls /usr/ours; echo copy > ~/file").await;
        assert_eq!(said, "kept\n/usr/ours\n");
        let again = house
            .start_from(kept_of(house, &source))
            .await
            .expect("a machine");
        assert_eq!(
            run(&*again, "user", "cat ~/file; echo mine > ~/file").await,
            "kept\n"
        );
        again.stop(Disk::Discard).await.expect("it stops");
        house.runtime.discard(sandbox).await.expect("it is discarded");
        let other = begin(house, into).await;
        assert_eq!(run(&*other, "user", "cat ~/file").await, "kept\n");
        assert_eq!(run(&*copied, "user", "cat ~/file").await, "copy\n");
    });
}

#[test]
fn a_disk_that_is_not_kept_is_not_copied_and_leaves_nothing() {
    with_house(async |house| {
        let machine = house.start().await;
        let into = BuildId::random();
        let copied = house.runtime.copy_kept(machine.sandbox(), into).await;
        assert!(matches!(copied, Err(RuntimeError::NoDisk(_))), "{copied:?}");
        assert!(!house.runtime.has_build(into).await);
        machine.stop(Disk::Keep).await.expect("it stops");
        // What is kept, and is no disk.
        let kept = house.kept(machine.sandbox());
        let whole = std::fs::metadata(&kept).expect("it is kept").len();
        let blank = std::fs::File::create(&kept).expect("it is written");
        blank.set_len(whole).expect("it is grown");
        let copied = house.runtime.copy_kept(machine.sandbox(), into).await;
        assert!(matches!(copied, Err(RuntimeError::Step { .. })), "{copied:?}");
        let image = house.on_volume(&format!("builds/{into}.img"));
        let left = std::fs::read_dir(image.parent().expect("its directory")).expect("the directory");
        assert_eq!(left.count(), 0);
        assert!(!house.runtime.has_build(into).await);
    });
}
