//! Builds: sealed ones, and what becomes of those that nobody needs.
use std::path::Path;

use container::Containers;
use model::BuildId;
use ports::runtime::{Disk, DiskOrigin};
use ports::{MachineSpec, Runtime as _, RuntimeError};

use crate::client::run;
use crate::copies::{begin, copy};
use crate::house::{House, devices_below, eventually, with_house, with_two_daemons};

async fn seal(house: &House, from: BuildId) -> BuildId {
    let into = BuildId::random();
    house.runtime.seal(from, into).await.expect("it is sealed");
    into
}

/// What overlays treat in a way of their own when it becomes a layer.
const CHANGES: &str = "cd / && rm /etc/profile && rm -rf /etc/ssl && mkdir /etc/ssl && echo ours > /etc/ssl/ours && \
    mkdir -p /opt/a/b && echo deep > /opt/a/b/file && mv /opt/a /opt/renamed && mv /etc/skel /etc/bones && \
    echo one > /opt/one && ln /opt/one /opt/two && ln -s /opt/one /opt/link && mkfifo /opt/pipe && \
    chown 1000:33 /opt/one && chmod 4750 /opt/one && touch /usr/ours && rm -rf /usr/share/doc && \
    mkdir /usr/share/doc && cp -a /bin/true /usr/local/bin/ours && echo x >> /etc/passwd.more && mkdir /home/user/d && \
    chown user: /home/user/d && echo note > /home/user/d/note";
/// And what they must look like afterwards.
const LOOK: &str = "test ! -e /etc/profile && ls -A /etc/ssl && cat /opt/renamed/b/file && test ! -e /opt/a && \
    ls -A /etc/bones && test ! -e /etc/skel && stat -c '%u %g %a %h' /opt/one && cat /opt/two && readlink /opt/link && \
    test -p /opt/pipe && ls -A /usr/share/doc && ls /usr/ours && ours && cat /home/user/d/note && \
    stat -c %U /home/user/d && test -s /etc/os-release";

#[test]
fn a_sealed_disk_goes_however_somebody_has_just_walked_past_it() {
    with_house(async |house| {
        let machine = house.start().await;
        run(&*machine, "user", "echo low > ~/low").await;
        let step = copy(&machine).await;
        let sealed = seal(house, step).await;
        let place = house.place(&format!("sealed/{sealed}"));
        assert!(place.join("root/upper").is_dir(), "{place:?}");
        let passing = std::fs::File::open(place.join("root/upper")).expect("it is open");
        let passes = std::thread::spawn(move || {
            #[expect(clippy::disallowed_methods, reason = "it is somebody else's thread")]
            std::thread::sleep(std::time::Duration::from_millis(100));
            drop(passing);
        });
        house
            .runtime
            .remove_builds(&[sealed])
            .await
            .expect("it is removed");
        passes.join().expect("it has passed");
        assert!(!house.on_volume(&format!("sealed/{sealed}.img")).exists());
        assert!(house.mounts().is_empty());
    });
}

#[test]
fn roots_that_are_looked_at_together_leave_nothing() {
    with_house(async |house| {
        let machine = house.start().await;
        run(&*machine, "user", "echo low > ~/low").await;
        let (step, since) = (copy(&machine).await, house.spec().build);
        let look = async || {
            for _ in 0..6 {
                let changes = house.runtime.changes(step, since).await.expect("they are told");
                assert!(
                    changes
                        .entries
                        .iter()
                        .any(|change| change.path == "/home/user/low")
                );
            }
        };
        futures_util::join!(look(), look(), look(), look());
        assert!(house.mounts().is_empty(), "{:?}", house.mounts());
        let sealed = house.on_volume("sealed/x");
        let left = std::fs::read_dir(sealed.parent().expect("its directory")).expect("the directory");
        assert_eq!(left.count(), 0);
        assert!(
            house.runtime.kin_of(step).await.is_empty(),
            "its disk began blank"
        );
    });
}

async fn sealed_twice(house: &House) {
    let machine = house.start().await;
    run(&*machine, "root", CHANGES).await;
    let expected = run(&*machine, "root", LOOK).await;
    assert!(expected.contains("1000 33 4750 2\n"), "{expected}");
    let step = copy(&machine).await;
    let sealed = seal(house, step).await;
    assert_eq!(house.mounts(), [format!("sealed/{sealed}")]);
    let (a, b) = (begin(house, sealed).await, begin(house, sealed).await);
    for machine in [&a, &b] {
        assert_eq!(run(&**machine, "root", LOOK).await, expected);
        // Its disk is blank, and the layers are in no way spent.
        assert_eq!(
            run(&**machine, "root", "df -m --output=used / | tail -1 | tr -d ' '").await,
            "1\n"
        );
    }
    assert_eq!(house.mounts().len(), 1);
    run(
        &*a,
        "root",
        "echo more >> /opt/renamed/b/file && rm /opt/one && rm -r /etc/bones && mv /usr/share/doc /usr/share/docs && \
         mv /opt/renamed /opt/again && sudo -u user sudo id -u",
    )
    .await;
    assert_eq!(run(&*b, "root", LOOK).await, expected);
    // On top of that, once more, and through a kept disk.
    a.stop(Disk::Keep).await.expect("it stops");
    let kept = MachineSpec {
        sandbox: a.sandbox(),
        build: sealed,
        disk: DiskOrigin::Kept,
        ..house.spec()
    };
    let a = house.start_from(kept).await.expect("it starts again");
    let second = seal(house, copy(&a).await).await;
    let c = begin(house, second).await;
    let line = "cat /opt/again/b/file && test ! -e /opt/renamed && test ! -e /opt/one && cat /opt/two && \
                test ! -e /etc/bones && test ! -e /usr/share/doc && ls -A /usr/share/docs && ls /usr/ours";
    assert_eq!(run(&*c, "root", line).await, "deep\nmore\none\n/usr/ours\n");
    assert_eq!(house.mounts().len(), 2);
    let overlays = run(&*c, "user", "grep -- '- overlay' /proc/self/mountinfo").await;
    let by_handle = |line: &&str| line.contains("index=on") && line.contains("nfs_export=on");
    assert_eq!(overlays.lines().filter(by_handle).count(), 2, "{overlays}");
}

#[test]
fn a_sealed_disk_is_a_layer_with_all_that_was_changed() {
    with_house(async |house| sealed_twice(house).await);
}

#[test]
fn a_sealed_disk_is_a_layer_on_kernels_that_take_layers_by_path() {
    with_house(async |house| {
        house.runtime.lay_by_path();
        sealed_twice(house).await;
    });
}

#[test]
fn layers_end_at_a_bound() {
    with_house(async |house| {
        for by_path in [false, true] {
            if by_path {
                house.runtime.lay_by_path();
            }
            let dir = house.dir.join("many");
            let layers: Vec<_> = (0..127)
                .map(|i| {
                    let layer = dir.join(i.to_string());
                    std::fs::create_dir_all(layer.join("etc")).expect("a layer");
                    std::fs::write(layer.join(format!("etc/of-{i}")), "x").expect("a file");
                    layer
                })
                .collect();
            // One that boots must have programs.
            let root = crate::images::busybox(house);
            let mut given = vec![root];
            given.extend(layers.iter().take(126).cloned());
            let build = BuildId::random();
            house
                .runtime
                .import(build, given.clone())
                .await
                .expect("127 layers");
            let machine = begin(house, build).await;
            let count = crate::images::sh(&*machine, "ls /etc | grep -c ^of-").await;
            assert_eq!(count.trim(), "126");
            given.extend(layers.last().cloned());
            let refused = house.runtime.import(BuildId::random(), given).await;
            assert!(
                matches!(refused, Err(RuntimeError::Unsupported { .. })),
                "{refused:?}"
            );
            let full = copy(&machine).await;
            let refused = house.runtime.seal(full, BuildId::random()).await;
            assert!(
                matches!(&refused, Err(RuntimeError::Unsupported { what, .. }) if what.contains("129 layers")),
                "{refused:?}"
            );
        }
    });
}

#[test]
fn what_machines_or_other_builds_need_stays_and_the_rest_goes() {
    with_house(async |house| {
        let runtime = &house.runtime;
        let machine = house.start().await;
        run(&*machine, "user", "echo x > ~/file").await;
        let step = copy(&machine).await;
        let sealed = seal(house, step).await;
        let user = begin(house, sealed).await;
        let snapshot = copy(&user).await;
        let below = |name: &str| house.on_volume(name).exists();
        let (own, layer) = (format!("builds/{step}.img"), format!("sealed/{sealed}.img"));

        // A machine stands on it.
        runtime.remove_builds(&[sealed, step]).await.expect("removed");
        assert!(runtime.has_build(sealed).await);
        assert!(!runtime.has_build(step).await);
        assert!(!below(&own) && below(&layer));
        // A kept disk is over it.
        user.stop(Disk::Keep).await.expect("it stops");
        runtime.remove_builds(&[sealed]).await.expect("removed");
        assert!(runtime.has_build(sealed).await);
        runtime.discard(user.sandbox()).await.expect("discarded");
        // Another build's layers are its.
        runtime.remove_builds(&[sealed]).await.expect("removed");
        assert!(!runtime.has_build(sealed).await);
        assert!(below(&layer));
        assert!(matches!(
            house
                .start_from(MachineSpec {
                    build: sealed,
                    ..house.spec()
                })
                .await
                .map(drop),
            Err(RuntimeError::NoBuild(_))
        ));
        assert_eq!(
            run(&*begin(house, snapshot).await, "user", "cat ~/file").await,
            "x\n"
        );
        house.stop_all().await;
        eventually("all slots are given back", || house.records() == 0).await;
        // Nobody's.
        runtime
            .remove_builds(&[snapshot, BuildId::random()])
            .await
            .expect("removed");
        assert!(!below(&layer) && !below(&format!("builds/{snapshot}.img")));
        assert!(house.mounts().is_empty());
        assert_eq!(runtime.builds().await, [house.build]);
        let images = devices_below(&house.dir.display().to_string());
        assert!(
            images.iter().all(|file| file.contains("volume.xfs")),
            "{images:?}"
        );
    });
}

#[test]
fn sealed_disks_are_found_again_by_the_next_daemon() {
    let behind = |house: &House| {
        devices_below(&house.dir.display().to_string())
            .iter()
            .filter(|file| file.contains("sealed/"))
            .count()
    };
    with_two_daemons(
        async |house| {
            let machine = house.start().await;
            run(&*machine, "user", "echo x > ~/file").await;
            let sealed = seal(house, copy(&machine).await).await;
            begin(house, sealed).await;
            assert_eq!(behind(house), 1);
            // What no build needs, left by a death in between.
            let orphans = [
                house.on_volume(&format!("sealed/{}.img", BuildId::random())),
                house.on_volume(&format!("builds/{}.img", BuildId::random())),
                house.on_volume(&format!("builds/{}.partial", BuildId::random())),
                house.dir.join(format!("layers/{}", BuildId::random())),
            ];
            for orphan in &orphans {
                std::fs::write(orphan, "x").expect("a file");
            }
            (sealed, orphans)
        },
        async |house, (sealed, orphans)| {
            assert_eq!(house.machines().len(), 2);
            for orphan in orphans {
                assert!(!orphan.exists(), "{}", orphan.display());
            }
            assert!(house.mounts().is_empty());
            let again = begin(house, sealed).await;
            assert_eq!(run(&*again, "user", "cat ~/file").await, "x\n");
            assert_eq!(house.mounts(), [format!("sealed/{sealed}")]);
            assert_eq!(behind(house), 1, "it is the same device, as a machine held it");
        },
    );
}

#[test]
fn records_of_builds_made_before_disks_of_their_own_serve() {
    with_house(async |house| {
        let record = house.dir.join(format!("builds/{}.json", house.build));
        let text = std::fs::read_to_string(&record).expect("a record");
        let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let old = value.as_object_mut().expect("an object");
        old.retain(|key, _| key == "overlays");
        std::fs::write(&record, value.to_string()).expect("written");
        let machine = house.start().await;
        let build = copy(&machine).await;
        begin(house, build).await;
        assert!(
            house
                .runtime
                .layers_of(house.build)
                .await
                .iter()
                .all(|dir| dir != Path::new("/usr"))
        );
    });
}

/// That the type has the ports' faces at once.
const _: fn(&Containers) -> &dyn ports::Runtime = |runtime| runtime;
