//! Daemons that die at every step of a machine's life: whatever was answered holds, what was under way is whole or gone, and
//! nothing is left that no record accounts for.
//!
//! A death is that of a process, so each scene is played by a process of its own: this program, run again for the one test
//! that plays it. Its Firecrackers, which are none, outlive it as the real ones do.
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use ports::runtime::PartImage;
use serde::{Deserialize, Serialize};

use super::travel::Elsewhere;
use super::*;

/// What the daemon does, and where it dies.
const SCENES: [(&str, &[&str]); 10] = [
    (
        "create",
        &[
            "microvm/machine-recorded",
            "fc-control/image-made",
            "fc-control/jail-furnished",
            "fc-control/network-plugged",
            "microvm/process-started",
            "microvm/process-recorded",
            "fc-control/api-answers",
            "fc-control/machine-told",
            "fc-control/jail-locked",
            "microvm/machine-begins",
            "microvm/guest-up",
            "microvm/handed-over",
        ],
    ),
    (
        "pause",
        &[
            "microvm/hibernation-recorded",
            "microvm/hibernation-stands",
            "fc-control/state-lent",
            "fc-control/state-written",
            "microvm/hibernation-written",
            "microvm/hibernation-kept",
            "microvm/process-ended",
            "microvm/record-removed",
        ],
    ),
    (
        "pause of what was restored",
        &[
            "fc-control/state-written",
            "microvm/hibernation-kept",
            "fc-control/memory-made-whole",
            "fc-control/whole-memory-kept",
        ],
    ),
    (
        "pause to disk",
        &[
            "microvm/keep-recorded",
            "microvm/disk-kept",
            "fc-control/jail-removed",
        ],
    ),
    (
        "resume",
        &[
            "microvm/machine-recorded",
            "fc-control/jail-furnished",
            "microvm/process-started",
            "microvm/process-recorded",
            "fc-control/memory-loaded",
            "fc-control/jail-locked",
            "microvm/machine-begins",
            "microvm/guest-up",
            "microvm/handed-over",
        ],
    ),
    (
        "snapshot",
        &[
            "microvm/copying-recorded",
            "microvm/machine-stands",
            "fc-control/state-lent",
            "fc-control/state-written",
            "microvm/memory-written",
            "microvm/disk-copied",
            "microvm/machine-goes-on",
            "microvm/copy-noted",
            "microvm/build-recorded",
        ],
    ),
    (
        "kill",
        &[
            "microvm/process-ended",
            "microvm/network-unplugged",
            "fc-control/processes-ended",
            "fc-control/cgroup-removed",
            "fc-control/jail-removed",
            "microvm/record-removed",
        ],
    ),
    ("arrival of a build", &["microvm/parts-fetched"]),
    ("recovery", &["microvm/machine-adopted", "microvm/remains-ended"]),
    (
        "recovery of what is gone",
        &[
            "fc-control/processes-ended",
            "fc-control/cgroup-removed",
            "fc-control/jail-removed",
        ],
    ),
];

/// Who is there in a scene, for whoever looks at what is left.
#[derive(Serialize, Deserialize)]
struct Cast {
    build: BuildId,
    /// It runs, and nothing of it concerns the scene.
    running: MachineSpec,
    /// It is paused, likewise.
    paused: MachineSpec,
    /// With which it is done.
    subject: MachineSpec,
    /// Into which it is copied.
    into: BuildId,
}

fn plays(flow: &str) {
    let Some(first) = World::new() else { return };
    if !cfg!(feature = "failpoints") {
        crate::tests::not_run("this program was built without failpoints");
        return;
    }
    let (_, points) = SCENES.iter().find(|(name, _)| *name == flow).unwrap();
    for point in *points {
        let dir = tempfile::tempdir().unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "runtime::tests::deaths::a_scene", "--ignored"])
            .env("ATOLL_TEST_SCENE", dir.path())
            .env("ATOLL_TEST_SCENE_IS", flow)
            .env("ATOLL_TEST_DIES_AT", point)
            .env("ATOLL_TEST_FIRST_UID", first.first_uid.to_string())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        let world = World::on(Dir::Others(dir.path().to_owned()), first.first_uid);
        assert_eq!(status.signal(), Some(9), "{flow} dies at {point}");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(whole(look_at_what_is_left(
            &world,
            flow,
            &format!("{flow} dies at {point}"),
        )));
    }
}

/// Played alone: see above.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it dies"]
async fn a_scene() {
    let of = |name: &str| std::env::var(name).ok();
    let Some(dir) = of("ATOLL_TEST_SCENE").map(PathBuf::from) else {
        return;
    };
    let flow = of("ATOLL_TEST_SCENE_IS").unwrap();
    let first_uid = of("ATOLL_TEST_FIRST_UID").unwrap().parse().unwrap();
    let armed = dir.join("armed");
    #[cfg(feature = "failpoints")]
    failpoint::arm(armed.clone());
    // Whoever is there is ended by whoever looks at it, also where nobody dies.
    let world = std::mem::ManuallyDrop::new(World::on(Dir::Others(dir.clone()), first_uid));
    let runtime = world.begin().await;
    let cast = Cast {
        build: world.build,
        running: world.spec(),
        paused: world.spec(),
        subject: world.spec(),
        into: BuildId::random(),
    };
    fs::write(dir.join("cast"), serde_json::to_vec(&cast).unwrap()).unwrap();
    let (_, running) = start(&runtime, &cast.running).await;
    running.freeze().await.unwrap();
    running.thaw().await.unwrap();
    let (_, paused) = start(&runtime, &cast.paused).await;
    paused.hibernate().await.unwrap();
    let arm = || {
        fs::write(
            armed.with_extension("new"),
            of("ATOLL_TEST_DIES_AT").unwrap_or_default(),
        )
        .unwrap();
        fs::rename(armed.with_extension("new"), &armed).unwrap();
    };
    if flow == "create" {
        arm();
        let _ = runtime.start(cast.subject.clone()).await;
        return;
    }
    let (vm, machine) = start(&runtime, &cast.subject).await;
    match &*flow {
        "pause" => {
            arm();
            let _ = machine.hibernate().await;
        }
        "pause of what was restored" => {
            machine.hibernate().await.unwrap();
            let restored = runtime.start(again(&cast.subject, true)).await.unwrap();
            arm();
            let _ = restored.hibernate().await;
            // What goes on behind the answer.
            runtime.close().await;
        }
        "pause to disk" => {
            arm();
            let _ = machine.stop(Fate::Keep).await;
        }
        "resume" => {
            machine.hibernate().await.unwrap();
            arm();
            let _ = runtime.start(again(&cast.subject, true)).await;
        }
        "snapshot" => {
            arm();
            let _ = machine.checkpoint(cast.into, true).await;
        }
        "kill" => {
            arm();
            let _ = machine.stop(Fate::Discard).await;
        }
        "arrival of a build" => {
            let (record, images) = from_elsewhere(&runtime, cast.build).await;
            arm();
            let _ = runtime.assemble(cast.into, &record, Vec::new(), &images).await;
        }
        // It ended while no daemon was there, and another was in the middle of its start.
        "recovery" => {
            let started = runtime.house.bring_up(world.spec()).await.unwrap();
            std::mem::forget(started);
            drop((vm, machine, running, paused, runtime));
            arm();
            drop(world.daemon().await);
        }
        "recovery of what is gone" => {
            vm.process.kill();
            vm.process.ended().await;
            drop((vm, machine, running, paused, runtime));
            arm();
            drop(world.daemon().await);
        }
        other => panic!("{other} is no scene"),
    }
}

/// A build as a node tells of it on which its image has another name.
async fn from_elsewhere(runtime: &Firecrackers, build: BuildId) -> (serde_json::Value, Elsewhere) {
    let parts = runtime.parts(build).await.unwrap();
    let (mut record, name) = (parts.record, Uuid::new_v4());
    record["disk"]["image"] = serde_json::to_value(name).unwrap();
    let image = parts.images.into_values().next().unwrap();
    (record, Elsewhere([(PartImage::Drawn(name), image)].into()))
}

async fn look_at_what_is_left(world: &World, flow: &str, at: &str) {
    let cast: Cast = serde_json::from_slice(&fs::read(world.dir.path().join("cast")).unwrap()).unwrap();
    let (runtime, recovered) = world.daemon().await;
    let lives = |spec: &MachineSpec| {
        let mut machines = recovered.machines.iter().map(|(_, machine)| machine);
        machines.find(|machine| machine.sandbox() == spec.sandbox)
    };
    let is_kept = |spec: &MachineSpec| recovered.disks.contains(&spec.sandbox);
    // Those that it does not concern.
    let running = lives(&cast.running).unwrap_or_else(|| panic!("{at}: who ran does not run"));
    assert_eq!(
        (running.is_frozen(), running.usage().await.unwrap().tasks),
        (false, 1),
        "{at}"
    );
    assert!(is_kept(&cast.paused), "{at}");
    // And the one that it does.
    let subject = &cast.subject;
    let (is_alive, is_there) = (lives(subject), is_kept(subject));
    assert!(!(is_alive.is_some() && is_there), "{at}: it is there twice");
    match flow {
        "create" => {
            assert!(!is_there, "{at}: nobody was told of it");
            assert_eq!(is_alive.is_some(), at.ends_with("microvm/handed-over"), "{at}");
        }
        // A runtime that finds a machine dead keeps its disk: it is its owner's to say that nobody wants it.
        "kill" => assert!(is_alive.is_none(), "{at}"),
        _ => assert!(is_alive.is_some() || is_there, "{at}: it is lost"),
    }
    if let Some(machine) = is_alive {
        assert!(!machine.is_frozen(), "{at}");
        machine.usage().await.unwrap();
    }
    let has_memory = runtime
        .house
        .book
        .kept
        .read(&subject.sandbox)
        .unwrap()
        .is_some_and(|kept| kept.memory.is_some());
    if ["pause", "pause of what was restored", "resume"].contains(&flow) {
        assert!(is_alive.is_some() || has_memory, "{at}: its memory is lost");
    }
    if is_there && has_memory {
        let (_, machine) = start(&runtime, &again(subject, true)).await;
        assert!(machine.is_restored(), "{at}");
        let (did, told) = did(&*machine).await;
        // Memory and disk are of the same instant.
        assert!(
            told.ends_with(&format!("on disk {did}, Linux {did}")),
            "{at}: {did} {told}"
        );
        machine.stop(Fate::Discard).await.unwrap();
    } else if is_there {
        let (_, machine) = start(&runtime, &again(subject, false)).await;
        machine.stop(Fate::Discard).await.unwrap();
    }
    if flow == "arrival of a build" {
        let (record, images) = from_elsewhere(&runtime, cast.build).await;
        let assembled = runtime.assemble(cast.into, &record, Vec::new(), &images);
        assembled.await.unwrap();
        assert_eq!(runtime.memory_of(cast.into).await, model::Memory::None);
        let copy = MachineSpec {
            build: cast.into,
            ..world.spec()
        };
        let (_, machine) = start(&runtime, &copy).await;
        machine.stop(Fate::Discard).await.unwrap();
    } else if runtime.has_build(cast.into).await {
        let copy = MachineSpec {
            build: cast.into,
            restore: true,
            ..world.spec()
        };
        let (_, machine) = start(&runtime, &copy).await;
        assert!(machine.is_restored(), "{at}");
        machine.stop(Fate::Discard).await.unwrap();
    }
    if let Some(machine) = is_alive.filter(|_| flow == "snapshot") {
        // Whatever became of that one, the next is whole.
        let into = BuildId::random();
        machine.checkpoint(into, true).await.unwrap();
        runtime.remove_builds(&[into]).await.unwrap();
    }
    runtime.remove_builds(&[cast.into]).await.unwrap();
    let (_, paused) = start(&runtime, &again(&cast.paused, true)).await;
    assert!(paused.is_restored() && did(&*paused).await.0 == 1, "{at}");
    paused.stop(Fate::Discard).await.unwrap();
    for (_, machine) in &recovered.machines {
        machine.stop(Fate::Discard).await.unwrap();
    }
    // Nothing of anybody: no record, jail, cgroup, image or memory, and nothing that runs.
    runtime.close().await;
    world.is_left(1, 0, 0).await;
    for id in fs::read_dir(world.dir.path().join("fakes")).unwrap().flatten() {
        let id = id.file_name().into_string().unwrap();
        assert_eq!(started_with(&[words("--id", &id)]), [0; 0], "{at}");
    }
}

#[test]
fn a_create_is_whole_or_gone() {
    plays("create");
}

#[test]
fn a_pause_keeps_the_memory() {
    plays("pause");
}

#[test]
fn a_pause_of_what_was_restored_keeps_the_memory_in_all_or_in_parts() {
    plays("pause of what was restored");
}

#[test]
fn a_pause_to_disk_keeps_the_disk() {
    plays("pause to disk");
}

#[test]
fn a_resume_keeps_the_memory() {
    plays("resume");
}

#[test]
fn a_snapshot_is_there_or_not_and_its_source_goes_on() {
    plays("snapshot");
}

#[test]
fn a_kill_is_carried_out() {
    plays("kill");
}

#[test]
fn a_build_that_arrives_is_there_or_not() {
    plays("arrival of a build");
}

#[test]
fn a_recovery_that_dies_is_done_again() {
    plays("recovery");
    plays("recovery of what is gone");
}

#[test]
fn every_point_of_the_sources_is_died_at() {
    let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = BTreeSet::new();
    let mut open = ["fc-control/src", "microvm/src"]
        .map(|dir| crates.join(dir))
        .to_vec();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let calls = text.split("failpoint::reach(\"").skip(1);
        found.extend(calls.filter_map(|call| Some(call.split_once('"')?.0.to_owned())));
    }
    let points = SCENES.iter().flat_map(|(_, points)| points.iter());
    let died_at: BTreeSet<String> = points.map(|point| (*point).to_owned()).collect();
    assert_eq!(died_at, found);
}
