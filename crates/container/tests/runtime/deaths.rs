//! Daemons that die while memory is written down or brought back: a sandbox is there once afterwards, and nothing else.
//!
//! A death is that of a process, so each scene is played by a process of its own: this program, run again for the one test
//! that plays it.
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use model::BuildId;
use ports::runtime::DiskOrigin;
use ports::{MachineSpec, Runtime as _};

use crate::house::{base_of_scenes, criu, eventually, scene, with_house_after};
use crate::memory::{copied_from, copy, count, eventually_counts, resumed, start_counter};

/// What the daemon dies at, and what it is doing then.
const POINTS: [(&str, &str); 21] = [
    ("hibernate", "container/hibernation-recorded"),
    ("hibernate", "container/hibernation-disk-copied"),
    ("hibernate", "container/hibernation-stands"),
    ("hibernate", "container/hibernation-dumped"),
    ("hibernate", "container/hibernation-written"),
    ("hibernate", "container/hibernation-kept"),
    ("hibernate", "container/hibernation-given-up"),
    ("hibernate", "container/all-ended"),
    ("copy", "container/memory-written"),
    ("copy", "container/copy-finished"),
    ("copy", "container/build-recorded"),
    ("copy of what is kept", "container/disk-copied"),
    ("copy of what is kept", "container/copy-finished"),
    ("copy of what is kept", "container/build-recorded"),
    ("resume", "container/disk-given"),
    ("resume", "container/process-recorded"),
    ("resume", "container/policy-in-force"),
    ("resume", "container/memory-restored"),
    ("resume", "container/claim-recorded"),
    ("fork", "container/memory-restored"),
    ("fork", "container/claim-recorded"),
];

#[test]
fn a_death_at_any_step_leaves_one_sandbox_and_nothing_else() {
    let (Some(criu), Some((name, base))) = (criu(), base_of_scenes()) else {
        return;
    };
    for (what, point) in POINTS {
        let dir = tempfile::tempdir().expect("a directory");
        let status = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "deaths::a_scene", "--ignored", "--nocapture"])
            .env(name, &base)
            .env("ATOLL_TEST_SCENE", dir.path())
            .env("ATOLL_TEST_SCENE_IS", what)
            .env("ATOLL_TEST_DIES_AT", point)
            .env("ATOLL_TEST_CRIU", &criu)
            .stdout(Stdio::null())
            .status()
            .expect("a scene");
        if status.success() {
            eprintln!("SKIPPED: this program was built without failpoints");
            return;
        }
        assert_eq!(status.signal(), Some(9), "{what} dies at {point}");
        look_at_what_is_left(dir.path(), what, point);
    }
}

/// Played alone: see above.
#[test]
#[ignore = "it dies"]
fn a_scene() {
    let Some(dir) = scene() else { return };
    let of = |name: &str| std::env::var(name).expect("a scene says what it is");
    let (what, point) = (of("ATOLL_TEST_SCENE_IS"), of("ATOLL_TEST_DIES_AT"));
    let armed = dir.join("armed");
    #[cfg(feature = "failpoints")]
    failpoint::arm(armed.clone());
    crate::house::with_house_in(&dir.join("data"), 0, async |house| {
        let machine = house.start().await;
        start_counter(&*machine).await;
        let mut spec: MachineSpec = resumed(house, &machine);
        match &*what {
            "resume" => machine.hibernate().await.expect("it hibernates"),
            "fork" => {
                let build = copy(&machine).await;
                spec = copied_from(house, build);
            }
            _ => {}
        }
        // Whether memory can be saved is found out before.
        copy(&machine_or_another(house, &machine, &what).await).await;
        let key = dir.join("key");
        if what != "resume" {
            std::fs::write(&key, count(&*machine).await.0).expect("it is written");
        }
        std::fs::write(
            dir.join("sandbox"),
            serde_json::to_vec(&resumed(house, &machine)).expect("JSON"),
        )
        .expect("it is written");
        std::fs::write(&armed, &point).expect("it is armed");
        match &*what {
            "hibernate" => machine.hibernate().await.expect("it hibernates"),
            "copy" => drop(copy(&machine).await),
            "copy of what is kept" => {
                machine.hibernate().await.expect("it hibernates");
                let copied = house.runtime.copy_kept(machine.sandbox(), BuildId::random());
                copied.await.expect("it is copied");
            }
            _ => drop(house.start_from(spec).await.expect("a machine")),
        }
        // What goes on behind the answer.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    });
}

async fn machine_or_another(
    house: &crate::house::House,
    machine: &std::sync::Arc<dyn ports::Machine>,
    what: &str,
) -> std::sync::Arc<dyn ports::Machine> {
    if what == "resume" {
        house.start().await
    } else {
        std::sync::Arc::clone(machine)
    }
}

fn look_at_what_is_left(dir: &Path, what: &str, point: &str) {
    let sandbox: MachineSpec =
        serde_json::from_slice(&std::fs::read(dir.join("sandbox")).expect("a sandbox")).expect("JSON");
    let key = std::fs::read_to_string(dir.join("key")).ok();
    let data: PathBuf = dir.join("data");
    with_house_after(&data, async |house, disks| {
        let at = format!("{what} dies at {point}");
        let lives = house
            .machines()
            .into_iter()
            .find(|machine| machine.sandbox() == sandbox.sandbox);
        let is_kept = disks.contains(&sandbox.sandbox);
        let machine = match lives {
            Some(machine) => machine,
            None => {
                assert!(is_kept, "{at}: it is lost");
                let spec = MachineSpec {
                    disk: DiskOrigin::Kept,
                    restore: true,
                    ..sandbox.clone()
                };
                let machine = house.start_from(spec).await.expect(&at);
                assert!(machine.is_restored(), "{at}: its memory is lost");
                machine
            }
        };
        assert!(!machine.is_frozen(), "{at}: it stands");
        let (its, n) = count(&*machine).await;
        assert!(key.is_none_or(|key| key == its), "{at}: it is another");
        eventually_counts(&*machine, n).await;
        let others = house.machines().len();
        eventually("slots are given back", || house.records() <= others).await;
        // And all of it works again.
        machine.hibernate().await.expect(&at);
        let again = house
            .start_from(MachineSpec {
                disk: DiskOrigin::Kept,
                restore: true,
                ..sandbox.clone()
            })
            .await
            .expect(&at);
        assert_eq!(count(&*again).await.0, its, "{at}");
    });
}
