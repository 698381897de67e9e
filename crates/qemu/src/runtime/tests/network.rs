//! Machines with a network, on a host of their own: a namespace in which the daemon is, with one way out.
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;

use linux::netlink::{Family, Socket};
use linux::{netns, rtnl};

use super::*;

pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub(super) const HOST: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(192, 168, 50, 1)];
pub(super) const PORT: u16 = 80;

/// Runs a test on a host of its own, if one can be made.
pub(super) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        crate::tests::not_run("it makes network namespaces: run it as root");
        return;
    }
    let run = || {
        let _outside = host();
        // All of its threads are started from this one, and are where it is.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn host() -> OwnedFd {
    netns::unshare().unwrap();
    let home = netns::current().unwrap();
    let outside = netns::fresh().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&outside);
    ip("link set lo up");
    ip(&format!(
        "link add up0 type veth peer name out0 netns /proc/{}/fd/{fd}",
        std::process::id()
    ));
    ip("link set up0 up");
    for address in HOST {
        ip(&format!("addr add {address}/24 dev up0"));
    }
    netns::within(outside.as_fd(), home.as_fd(), || {
        ip("link set lo up");
        ip("link set out0 up");
        ip(&format!("addr add {OUTSIDE}/24 dev out0"));
        ip("addr add 192.168.50.10/24 dev out0");
        serve();
    })
    .unwrap();
    serve();
    outside
}

/// Echoes to everybody. The thread ends with the test's process.
fn serve() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn ip(arguments: &str) {
    let done = std::process::Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(done.status.success(), "ip {arguments}: {done:?}");
}

/// What there is on the host by the name of a slot's link.
pub(super) fn links() -> Vec<String> {
    let routes = Socket::open(Family::Route).unwrap();
    let links = rtnl::links(&routes).unwrap();
    let names = links.into_iter().map(|link| link.name);
    names.filter(|name| name.starts_with("at")).collect()
}

/// The kernel takes a moment when the last of a namespace is gone.
pub(super) async fn links_are_gone() {
    let deadline = Instant::now() + SOON;
    while !links().is_empty() {
        assert!(Instant::now() < deadline, "{:?} stay", links());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The rules of all slots, as nft(8) tells them.
pub(super) fn rules() -> String {
    let told = std::process::Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .unwrap();
    String::from_utf8(told.stdout).unwrap()
}

fn online(world: &World) -> MachineSpec {
    MachineSpec {
        network: NetworkPolicy::default(),
        ..world.spec()
    }
}

impl World {
    pub(super) fn networked() -> Option<Self> {
        let mut world = Self::new()?;
        world.network = true;
        Some(world)
    }
}

fn slot(vm: &Vm) -> u32 {
    vm.record().own.slot.unwrap()
}

#[test]
fn a_slot_is_on_record_first_and_free_again_when_its_machine_is_gone() {
    on_a_host(|| async {
        let Some(world) = World::networked() else { return };
        whole(async {
            let runtime = world.begin().await;
            let network = runtime.house.vmm.network.as_ref().unwrap();
            let (one, first) = start(&runtime, &online(&world)).await;
            let (two, second) = start(&runtime, &online(&world)).await;
            assert_eq!((slot(&one), slot(&two)), (0, 1));
            assert_eq!(links(), [network.link(0), network.link(1)]);
            assert_eq!(first.facts()["network"], network.link(0));
            assert!(says(&one, 2).await.starts_with('a'));
            // What a policy says is in force, whatever the machine does.
            first.freeze().await.unwrap();
            first
                .set_network(&NetworkPolicy {
                    deny: vec!["203.0.113.77".parse().unwrap()],
                    ..NetworkPolicy::default()
                })
                .await
                .unwrap();
            assert!(rules().contains("203.0.113.77"));
            first.stop(Fate::Discard).await.unwrap();
            assert!(!rules().contains("203.0.113.77"));
            let late = first.set_network(&NetworkPolicy::default()).await;
            assert!(late.is_err() && world.files("machines") == 1);
            while !network.net().unwrap().unwrap().is_free(0).unwrap() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let (three, third) = start(&runtime, &online(&world)).await;
            assert_eq!(slot(&three), 0);
            // A start that fails gives its slot back.
            fs::remove_file(world.dir.path().join("initrd")).unwrap();
            assert!(runtime.start(online(&world)).await.is_err());
            second.stop(Fate::Discard).await.unwrap();
            third.stop(Fate::Discard).await.unwrap();
            links_are_gone().await;
            runtime.close().await;
            assert_eq!(rules(), "");
            assert_eq!((world.files("machines"), world.files("run")), (0, 0));
        })
        .await;
    });
}

#[test]
fn memory_goes_on_in_another_slot() {
    on_a_host(|| async {
        let Some(world) = World::networked() else { return };
        whole(async {
            let runtime = world.begin().await;
            let network = runtime.house.vmm.network.as_ref().unwrap();
            let spec = online(&world);
            let (vm, machine) = start(&runtime, &spec).await;
            assert_eq!(slot(&vm), 0);
            says(&vm, 3).await;
            machine.hibernate().await.unwrap();
            let said = letters(&vm);
            links_are_gone().await;
            assert_eq!(network.draw().unwrap(), 0);
            let (vm, machine) = start(&runtime, &again(&spec, true)).await;
            assert_eq!((slot(&vm), machine.is_restored()), (1, true));
            assert_eq!(says(&vm, 1).await.chars().next().unwrap(), after(last(&said)));
            machine.stop(Fate::Discard).await.unwrap();
        })
        .await;
    });
}

#[test]
fn machines_keep_their_network_while_no_daemon_runs_and_what_is_left_of_others_goes() {
    on_a_host(|| async {
        let Some(mut world) = World::networked() else {
            return;
        };
        whole(async {
            let runtime = world.begin().await;
            let [dies, lives] = [(); 2].map(|()| MachineSpec {
                network: NetworkPolicy {
                    deny: vec!["203.0.113.77".parse().unwrap()],
                    ..NetworkPolicy::default()
                },
                ..world.spec()
            });
            let (dead, _) = start(&runtime, &dies).await;
            let (vm, machine) = start(&runtime, &lives).await;
            assert_eq!((slot(&dead), slot(&vm)), (0, 1));
            drop((machine, runtime));
            dead.process.kill();
            drop(dead);
            assert!(rules().contains("203.0.113.77"));
            let link = vm.house.vmm.network.as_ref().unwrap().link(1);
            drop(vm);

            let (runtime, recovered) = world.daemon().await;
            assert_eq!((recovered.machines.len(), recovered.reclaimed), (1, 1));
            assert_eq!(links(), [link]);
            assert!(rules().contains("203.0.113.77"));
            let (vm, other) = start(&runtime, &online(&world)).await;
            assert_eq!(slot(&vm), 0);
            other.stop(Fate::Discard).await.unwrap();
            drop((other, vm, recovered, runtime));

            // A daemon that can hold nobody to a policy does not let anybody go on.
            world.network = false;
            let (runtime, recovered) = world.daemon().await;
            assert!(recovered.machines.is_empty());
            assert!(recovered.disks.contains(&lives.sandbox));
            links_are_gone().await;
            drop(runtime);
        })
        .await;
    });
}

#[test]
fn memory_without_a_network_is_not_brought_back_to_one() {
    on_a_host(|| async {
        let Some(mut world) = World::new() else { return };
        whole(async {
            let runtime = world.begin().await;
            let spec = world.spec();
            let (_, machine) = start(&runtime, &spec).await;
            machine.hibernate().await.unwrap();
            drop((machine, runtime));
            world.network = true;
            let (runtime, _) = world.daemon().await;
            let refused = runtime.start(again(&spec, true)).await.map(drop).unwrap_err();
            let told = matches!(&refused, RuntimeError::CannotRestore { why, .. } if why.contains("network"));
            assert!(told, "{refused}");
            let (vm, machine) = start(&runtime, &again(&spec, false)).await;
            assert_eq!(slot(&vm), 0);
            machine.stop(Fate::Discard).await.unwrap();
        })
        .await;
    });
}
