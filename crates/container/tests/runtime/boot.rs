//! What a machine finds when it boots, and what it may have left to be found.
use std::sync::Arc;

use ports::runtime::{Disk, DiskOrigin};
use ports::{MachineSpec, Runtime as _};

use crate::client::run;
use crate::house::{eventually, group_file, with_house, with_house_in};

#[test]
fn machines_have_identities_of_their_own() {
    with_house(async |house| {
        let (a, b) = (house.start().await, house.start().await);
        for file in ["/etc/machine-id", "/proc/sys/kernel/random/boot_id"] {
            let line = format!("cat {file}");
            let (of_a, of_b) = (run(&*a, "user", &line).await, run(&*b, "user", &line).await);
            assert!(of_a.trim().len() >= 32 && of_a != of_b, "{file}: {of_a} {of_b}");
            assert_ne!(std::fs::read_to_string(file).unwrap_or_default(), of_a, "{file}");
        }
        let resolvers = run(&*a, "user", "grep -c ^nameserver /etc/resolv.conf").await;
        assert_eq!(
            resolvers.trim().parse().ok(),
            Some(net::resolvers_of_host().len().max(1))
        );
    });
}

#[test]
fn overlays_can_be_found_again_by_handle() {
    with_house(async |house| {
        let machine = house.start().await;
        let mounts = run(&*machine, "user", "grep -- '- overlay' /proc/self/mountinfo").await;
        assert_eq!(mounts.lines().count(), 2, "{mounts}");
        for line in mounts.lines() {
            assert!(
                line.contains("index=on") && line.contains("nfs_export=on"),
                "{line}"
            );
        }
    });
}

#[test]
fn kernels_that_take_layers_by_path_serve_as_well() {
    with_house(async |house| {
        house.runtime.lay_by_path();
        let machine = house.start().await;
        let mounts = run(&*machine, "user", "grep -- '- overlay' /proc/self/mountinfo").await;
        assert_eq!(mounts.matches("lowerdir=/run/atoll/").count(), 2, "{mounts}");
        assert!(mounts.contains("index=on"), "{mounts}");
        run(
            &*machine,
            "user",
            "sudo touch /usr/ours && test -O ~ && python3 -c 'print(1)'",
        )
        .await;
        assert!(!std::path::Path::new("/usr/ours").exists());
        machine.stop(Disk::Keep).await.expect("it stops");
        let spec = MachineSpec {
            sandbox: machine.sandbox(),
            disk: DiskOrigin::Kept,
            ..house.spec()
        };
        let again = house.start_from(spec).await.expect("it starts again");
        run(&*again, "user", "test -e /usr/ours").await;
    });
}

#[test]
fn what_lies_in_wait_on_a_disk_is_replaced_unread() {
    with_house(async |house| {
        for (name, line) in [
            (
                "endless",
                "ln -sf /dev/zero /etc/machine-id; ln -sf /dev/zero /etc/resolv.conf",
            ),
            (
                "pipes",
                "rm -f /etc/machine-id /etc/resolv.conf; mkfifo /etc/machine-id /etc/resolv.conf",
            ),
            (
                "sparse",
                "rm -f /etc/machine-id /etc/resolv.conf; truncate -s 900G /etc/machine-id /etc/resolv.conf",
            ),
            (
                "directories",
                "rm -f /etc/machine-id /etc/resolv.conf; mkdir -p /etc/machine-id/x /etc/resolv.conf/y",
            ),
        ] {
            let machine = house.start().await;
            run(&*machine, "root", line).await;
            machine.stop(Disk::Keep).await.expect("it stops");
            let spec = MachineSpec {
                sandbox: machine.sandbox(),
                disk: DiskOrigin::Kept,
                ..house.spec()
            };
            let again = house.start_from(spec).await.expect(name);
            let lines = "test -f /etc/machine-id -a ! -L /etc/machine-id && wc -c < /etc/machine-id && \
                         test -f /etc/resolv.conf -a ! -L /etc/resolv.conf && grep -q ^nameserver /etc/resolv.conf";
            assert_eq!(run(&*again, "user", lines).await.trim(), "33", "{name}");
            again.stop(Disk::Discard).await.expect("it stops");
        }
    });
}

#[test]
fn a_slot_is_bounded_before_it_boots_and_takes_its_size_when_it_is_claimed() {
    let dir = tempfile::tempdir().expect("a directory");
    with_house_in(dir.path(), 1, async |house| {
        let first = house.start().await;
        let link = first.facts()["link"].clone();
        let instance = link
            .trim_start_matches("at")
            .split('-')
            .next()
            .unwrap_or_default()
            .to_owned();
        let limit = |slot: &str| {
            let slot = format!("atoll{instance}/{slot}");
            ["memory.limit_in_bytes", "memory.max"]
                .iter()
                .find_map(|file| group_file(&slot, file))
                .and_then(|path| std::fs::read_to_string(path).ok())
                .and_then(|text| text.trim().parse::<u64>().ok())
        };
        assert_eq!(limit(&first.facts()["slot"]), Some(512 << 20));
        eventually("a slot is ready", || house.runtime.slots_ready() == 1).await;
        let parked: Vec<Option<u64>> = (0..8)
            .map(|slot: u32| slot.to_string())
            .filter(|slot| *slot != first.facts()["slot"])
            .map(|slot| limit(&slot))
            .filter(Option::is_some)
            .collect();
        assert_eq!(parked, [Some(128 << 20)]);
        let second: Arc<dyn ports::Machine> = house.start().await;
        assert_eq!(limit(&second.facts()["slot"]), Some(512 << 20));
    });
}
