//! Starts and stops that are given up, or go wrong.
use std::time::Duration;

use ports::MachineSpec;
use ports::runtime::{Disk, DiskOrigin};
use ports::{Runtime as _, RuntimeError};

use crate::client::run;
use crate::house::{eventually, with_house};

#[test]
fn a_start_that_nobody_waits_for_leaves_nothing() {
    with_house(async |house| {
        for patience in [0, 1, 3, 10, 30] {
            let start = house.runtime.start(house.spec());
            let _ = tokio::time::timeout(Duration::from_millis(patience), start)
                .await
                .map(|started| house.adopt(started.expect("a machine")));
        }
        house.stop_all().await;
        eventually("all slots are given back", || house.records() == 0).await;
    });
}

#[test]
fn a_disk_that_could_not_be_kept_is_kept_by_trying_again() {
    with_house(async |house| {
        let machine = house.start().await;
        run(&*machine, "user", "echo kept > ~/file; sync").await;
        let pid = &machine.facts()["pid"];
        let holder = std::fs::File::open(format!("/proc/{pid}/root/etc")).expect("its root");
        let refused = machine.stop(Disk::Keep).await;
        assert!(matches!(refused, Err(RuntimeError::Step { .. })), "{refused:?}");
        let spec = MachineSpec {
            sandbox: machine.sandbox(),
            disk: DiskOrigin::Kept,
            ..house.spec()
        };
        assert!(
            matches!(house.start_from(spec.clone()).await, Err(RuntimeError::NoDisk(_))),
            "a disk in use is nobody's yet"
        );
        drop(holder);
        machine.stop(Disk::Keep).await.expect("now it is kept");
        machine.stop(Disk::Keep).await.expect("and still");
        let again = house.start_from(spec).await.expect("it starts again");
        assert_eq!(run(&*again, "user", "cat ~/file").await, "kept\n");
    });
}

#[test]
fn a_stop_that_nobody_waits_for_goes_on() {
    with_house(async |house| {
        let machine = house.start().await;
        let _ = tokio::time::timeout(Duration::ZERO, machine.stop(Disk::Keep)).await;
        machine.stop(Disk::Keep).await.expect("it stops once");
        assert!(house.kept(machine.sandbox()).exists());
        assert_eq!(house.records(), 0);
    });
}
