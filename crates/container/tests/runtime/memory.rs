//! Memory: written down, brought back, copied. All of it needs a CRIU, which the suite sets up.
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{BuildId, Memory};
use ports::runtime::{Disk, DiskOrigin};
use ports::{Machine, MachineSpec, Runtime as _, RuntimeError};

use crate::client::{attempt, run};
use crate::house::{House, criu, eventually, with_house, with_two_daemons};

/// A program with 50 MiB of memory that counts, and tells on a file how far it is.
const COUNTER: &str = r#"
import os, sys, time
held = bytearray(os.urandom(1024) * (50 * 1024))
key, n = os.urandom(8).hex(), 0
while True:
    n += 1
    with open('/home/user/count.new', 'w') as out:
        out.write(f'{key} {n} {held[-1]}')
    os.rename('/home/user/count.new', '/home/user/count')
    time.sleep(0.01)
"#;

pub(crate) async fn count(machine: &dyn Machine) -> (String, u64) {
    let told = run(machine, "user", "cat ~/count").await;
    let mut parts = told.split(' ').map(str::to_owned);
    let key = parts.next().expect("a key");
    let n = parts.next().and_then(|n| n.parse().ok()).expect("a number");
    (key, n)
}

pub(crate) async fn start_counter(machine: &dyn Machine) {
    let line = format!(
        "cat > ~/counter.py <<'END'\n{COUNTER}\nEND\nsetsid python3 ~/counter.py </dev/null >/dev/null 2>&1 &\n\
         until test -e ~/count; do sleep 0.01; done"
    );
    run(machine, "user", &line).await;
}

/// Runs a test where memory can be saved.
fn with_memory(test: impl AsyncFnOnce(&House)) {
    if criu().is_none() {
        eprintln!("SKIPPED: ATOLL_TEST_CRIU names no CRIU of version 4.2 or newer");
        return;
    }
    with_house(test);
}

pub(crate) async fn copy(machine: &Arc<dyn Machine>) -> BuildId {
    let into = BuildId::random();
    let memory = machine.checkpoint(into, true).await.expect("it is copied");
    assert_eq!(memory, Memory::Durable);
    into
}

pub(crate) fn copied_from(house: &House, build: BuildId) -> MachineSpec {
    MachineSpec {
        build,
        restore: true,
        ..house.spec()
    }
}

pub(crate) fn resumed(house: &House, machine: &Arc<dyn Machine>) -> MachineSpec {
    MachineSpec {
        sandbox: machine.sandbox(),
        disk: DiskOrigin::Kept,
        restore: true,
        ..house.spec()
    }
}

#[test]
fn copies_of_a_running_program_go_on_from_one_instant_and_then_their_own_way() {
    with_memory(async |house| {
        let source = house.start().await;
        start_counter(&*source).await;
        let build = copy(&source).await;
        assert_eq!(house.runtime.memory_of(build).await, Memory::Durable);
        assert!(house.runtime.capabilities().durable_memory);
        let (key, n) = count(&*source).await;
        let a = house.start_from(copied_from(house, build)).await.expect("a copy");
        let b = house.start_from(copied_from(house, build)).await.expect("a copy");
        assert!(a.is_restored() && b.is_restored() && !source.is_restored());
        for machine in [&a, &b] {
            let (its, m) = count(&**machine).await;
            assert_eq!(its, key, "the same process");
            assert!(m < n + 1000, "{m} {n}");
            let name = run(&**machine, "user", "hostname").await;
            assert_eq!(name.trim(), machine.sandbox().to_string());
        }
        // Ids of their own, also on the host: users, address, slot.
        let line =
            "cat /etc/machine-id /proc/sys/kernel/random/boot_id; ip -o -4 addr show eth0 | awk '{print $4}'";
        let ids = [
            run(&*source, "user", line).await,
            run(&*a, "user", line).await,
            run(&*b, "user", line).await,
        ];
        let all = |i: usize| {
            ids.iter()
                .map(|id| id.lines().nth(i).unwrap_or_default())
                .collect::<Vec<_>>()
        };
        for i in 0..3 {
            let of = all(i);
            assert!(of[0] != of[1] && of[1] != of[2] && of[0] != of[2], "{of:?}");
        }
        // Each is killed, and nobody else notices.
        run(&*a, "user", "pkill -x python3; echo mine > ~/file").await;
        let (_, before) = count(&*b).await;
        eventually_counts(&*b, before).await;
        let (_, before) = count(&*source).await;
        eventually_counts(&*source, before).await;
        let (_, status) = attempt(&*b, "user", "test -e ~/file").await;
        assert_ne!(status, 0);
    });
}

pub(crate) async fn eventually_counts(machine: &dyn Machine, from: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (_, n) = count(machine).await;
        if n > from + 3 {
            return;
        }
        assert!(Instant::now() < deadline, "it counts no more: {n}");
    }
}

#[test]
fn a_hibernated_machine_goes_on_where_it_was() {
    with_memory(async |house| {
        let machine = house.start().await;
        start_counter(&*machine).await;
        let (key, n) = count(&*machine).await;
        let begun = Instant::now();
        machine.hibernate().await.expect("it hibernates");
        eprintln!("hibernate: {:?}", begun.elapsed());
        eventually("its slot is free", || house.records() == 0).await;
        let spec = resumed(house, &machine);
        let begun = Instant::now();
        let again = house.start_from(spec).await.expect("it goes on");
        eprintln!("resume: {:?}", begun.elapsed());
        assert!(again.is_restored());
        let (its, m) = count(&*again).await;
        assert_eq!(its, key);
        assert!(m >= n);
        eventually_counts(&*again, m).await;
        // And again, of what was restored.
        again.hibernate().await.expect("it hibernates again");
        let third = house
            .start_from(resumed(house, &machine))
            .await
            .expect("it goes on again");
        assert_eq!(count(&*third).await.0, key);
        third.stop(Disk::Keep).await.expect("it stops");
        let booted = house
            .start_from(resumed(house, &machine))
            .await
            .expect("it boots");
        assert!(!booted.is_restored(), "what was stopped has no memory");
        run(&*booted, "user", "test -s ~/count").await;
    });
}

#[test]
fn what_cannot_be_written_down_is_named_and_runs_on() {
    with_memory(async |house| {
        let machine = house.start().await;
        start_counter(&*machine).await;
        // A deleted file that is larger than what is written down with the images.
        run(
            &*machine,
            "user",
            "python3 -c \"\nimport os,time\nf=open('/home/user/big','w+b'); f.write(b'x'*(65<<20)); f.flush()\n\
             os.unlink('/home/user/big'); os.fork() and os._exit(0); os.setsid(); open('/home/user/held','w').write(str(os.getpid()))\n\
             time.sleep(600)\" </dev/null >/dev/null 2>&1; until test -e ~/held; do sleep 0.01; done",
        )
        .await;
        let into = BuildId::random();
        let refused = machine.checkpoint(into, true).await;
        let Err(RuntimeError::CannotCheckpoint { why }) = &refused else {
            panic!("{refused:?}");
        };
        assert!(why.contains("64 MiB"), "{why}");
        assert!(!house.runtime.has_build(into).await);
        let refused = machine.hibernate().await;
        assert!(
            matches!(refused, Err(RuntimeError::CannotCheckpoint { .. })),
            "{refused:?}"
        );
        let (_, n) = count(&*machine).await;
        eventually_counts(&*machine, n).await;
        run(&*machine, "user", "kill $(cat ~/held)").await;
        copy(&machine).await;
    });
}

#[test]
fn connections_inside_go_on_and_those_that_lead_out_end() {
    with_memory(async |house| {
        let machine = house.start().await;
        // A server and its client inside, another server that the host talks to, a terminal, a pipe, a watch.
        run(&*machine, "user", INSIDE).await;
        let talk = async |machine: &dyn Machine| run(machine, "user", "cat ~/echoed").await;
        let before: u64 = talk(&*machine).await.trim().parse().expect("a number");
        machine.hibernate().await.expect("it hibernates");
        let again = house
            .start_from(resumed(house, &machine))
            .await
            .expect("it goes on");
        let deadline = Instant::now() + Duration::from_secs(10);
        while talk(&*again)
            .await
            .trim()
            .parse()
            .is_ok_and(|now: u64| now < before + 5)
        {
            assert!(Instant::now() < deadline, "the connection inside stands still");
        }
        assert_eq!(
            run(&*again, "user", "cat ~/lost 2>/dev/null | wc -l")
                .await
                .trim(),
            "0"
        );
    });
}

const INSIDE: &str = r#"cat > ~/inside.py <<'END'
import os, socket, threading, time
server = socket.create_server(('127.0.0.1', 7001))
client = socket.create_connection(('127.0.0.1', 7001))
peer, _ = server.accept()
def serve():
    while True:
        data = peer.recv(100)
        if not data:
            open('/home/user/lost', 'w').write('closed')
            return
        peer.sendall(data)
threading.Thread(target=serve, daemon=True).start()
n = 0
while True:
    n += 1
    client.sendall(b'x' * 10)
    got = client.recv(100)
    assert len(got) == 10
    with open('/home/user/echoed.new', 'w') as out:
        out.write(str(n))
    os.rename('/home/user/echoed.new', '/home/user/echoed')
    time.sleep(0.01)
END
setsid python3 ~/inside.py </dev/null >/tmp/inside.log 2>&1 &
until test -e ~/echoed; do sleep 0.01; done"#;

#[test]
fn ten_copies_are_there_in_a_moment() {
    with_memory(async |house| {
        let source = house.start().await;
        start_counter(&*source).await;
        copy(&source).await;
        let begun = Instant::now();
        let build = copy(&source).await;
        let copied = begun.elapsed();
        let begun = Instant::now();
        let starts = (0..10).map(|_| house.start_from(copied_from(house, build)));
        let copies = futures_all(starts).await;
        eprintln!("copied in {copied:?}, ten started in {:?}", begun.elapsed());
        for machine in copies {
            count(&*machine.expect("a copy")).await;
        }
    });
}

/// Waits for all of them at once.
async fn futures_all<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = all.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (one, done) in &mut waiting {
            if done.is_none() {
                match one.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    waiting.into_iter().filter_map(|(_, done)| done).collect()
}

#[test]
fn a_machine_that_was_brought_back_is_confined_as_one_that_booted() {
    with_memory(async |house| {
        let booted = house.start().await;
        let build = copy(&booted).await;
        let back = house.start_from(copied_from(house, build)).await.expect("a copy");
        // Of every mount: where it is, what of which kind of file system, and how.
        let mounts = r#"awk '{for (i = 7; $i != "-"; i++); print $5, $6, $(i+1), ($4 ~ "^/tmp|/agent/" ? "-" : $4)}' /proc/self/mountinfo | sort"#;
        let rights = "grep -hE '^(Cap|Seccomp|NoNewPrivs|Groups|Uid|Gid)' /proc/1/status /proc/self/status";
        let groups = "cut -d: -f3 /proc/1/cgroup /proc/self/cgroup | sort -u";
        let denied = "unshare -U true; mount -t tmpfs x /mnt; echo x > /proc/sys/kernel/hostname; cat /proc/1/mem; ls /sys/block; \
                      cat /proc/kcore; hostname x; true";
        let modes = "stat -c '%n %A %u %g' /dev /dev/* /dev/pts/ptmx /run /run/atoll /run/atoll/* /proc/acpi /sys/class /sys/devices";
        for line in [mounts, rights, groups, denied, modes] {
            for user in ["root", "user"] {
                let of = [
                    attempt(&*booted, user, line).await,
                    attempt(&*back, user, line).await,
                ];
                assert_eq!(of[0], of[1], "{user}: {line}");
            }
        }
        for own in [
            "user.max_inotify_instances",
            "net.ipv4.ping_group_range",
            "net.ipv4.ip_unprivileged_port_start",
        ] {
            let line = format!("cat /proc/sys/{}", own.replace('.', "/"));
            let of = [
                attempt(&*booted, "root", &line).await,
                attempt(&*back, "root", &line).await,
            ];
            assert_eq!(of[0], of[1], "{own}");
        }
    });
}

#[test]
fn memory_that_does_not_fit_is_refused_and_stays_as_it_was() {
    with_memory(async |house| {
        let machine = house.start().await;
        start_counter(&*machine).await;
        let (key, _) = count(&*machine).await;
        machine.hibernate().await.expect("it hibernates");
        let sandbox = machine.sandbox();
        let memory = house.on_volume(&format!("kept/{sandbox}.memory"));
        let manifest = memory.join("manifest.json");
        let good = std::fs::read_to_string(&manifest).expect("a manifest");
        let other = |from: &str, to: &str| {
            assert!(good.contains(from), "{good}");
            std::fs::write(&manifest, good.replace(from, to)).expect("it is written");
        };
        let refusal = async || match house.start_from(resumed(house, &machine)).await.map(drop) {
            Err(RuntimeError::CannotRestore { why, .. }) => why,
            started => panic!("{started:?}"),
        };
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        other(&release, "1.2.3");
        assert!(refusal().await.contains("kernel 1.2.3"));
        other("\"criu\":\"", "\"criu\":\"0.");
        assert!(refusal().await.contains("CRIU 0."));
        other("\"cpu\":\"", "\"cpu\":\"another ");
        assert!(refusal().await.contains("processor another"));
        std::fs::write(&manifest, "{").expect("it is written");
        assert!(refusal().await.contains("broken"));
        std::fs::write(&manifest, &good).expect("it is written");
        let spoil = |name: &str, spoil: &dyn Fn(&mut Vec<u8>)| {
            let image = memory.join(name);
            let whole = std::fs::read(&image).expect("an image");
            let mut spoilt = whole.clone();
            spoil(&mut spoilt);
            std::fs::write(&image, spoilt).expect("it is written");
            (image, whole)
        };
        let (image, whole) = spoil("pages-1.img", &|image| image.truncate(100));
        assert!(refusal().await.contains("pages-1.img is not whole"));
        std::fs::write(image, whole).expect("it is written");
        // This one CRIU itself finds out.
        let (image, whole) = spoil("mm-1.img", &|image| image[12..].fill(0xff));
        assert!(refusal().await.contains("CRIU: "));
        std::fs::write(image, whole).expect("it is written");
        let small = MachineSpec {
            resources: model::Resources {
                memory: model::MiB(256),
                ..house.spec().resources
            },
            ..resumed(house, &machine)
        };
        let refused = house.start_from(small).await.map(drop);
        assert!(
            matches!(refused, Err(RuntimeError::CannotRestore { .. })),
            "{refused:?}"
        );
        eventually("nothing of the attempts is left", || house.records() == 0).await;
        let again = house
            .start_from(resumed(house, &machine))
            .await
            .expect("it goes on all the same");
        assert_eq!(count(&*again).await.0, key);
        // Or it boots from its disk, and then nothing of the memory is left.
        again.hibernate().await.expect("it hibernates");
        let boot = MachineSpec {
            restore: false,
            ..resumed(house, &machine)
        };
        let booted = house.start_from(boot).await.expect("it boots");
        assert!(!booted.is_restored() && !memory.exists());
        run(&*booted, "user", "test -s ~/count && ! pgrep python3").await;
    });
}

#[test]
fn a_machine_that_stands_is_written_down_and_goes_on_where_it_stood() {
    with_memory(async |house| {
        let machine = house.start().await;
        start_counter(&*machine).await;
        let (key, _) = count(&*machine).await;
        machine.freeze().await.expect("it stands");
        let build = copy(&machine).await;
        assert!(machine.is_frozen());
        let copied = house.start_from(copied_from(house, build)).await.expect("a copy");
        assert_eq!(count(&*copied).await.0, key);
        machine.hibernate().await.expect("it hibernates");
        let again = house
            .start_from(resumed(house, &machine))
            .await
            .expect("it goes on");
        let (its, n) = count(&*again).await;
        assert_eq!(its, key);
        eventually_counts(&*again, n).await;
    });
}

#[test]
fn volumes_are_there_when_a_machine_comes_back() {
    with_memory(async |house| {
        let volume = model::VolumeId::random();
        house
            .runtime
            .volume_files()
            .make(volume, model::MiB(64))
            .await
            .expect("a volume");
        let spec = MachineSpec {
            volumes: vec![model::VolumeMount {
                volume,
                name: "shared".to_owned(),
                path: "/mnt/shared".to_owned(),
            }],
            ..house.spec()
        };
        let machine = house.start_from(spec.clone()).await.expect("a machine");
        run(
            &*machine,
            "user",
            "echo there > /mnt/shared/file; setsid tail -f /mnt/shared/file </dev/null >/dev/null 2>&1 & sleep 0.2",
        )
        .await;
        machine.hibernate().await.expect("it hibernates");
        let without = house.start_from(resumed(house, &machine)).await.map(drop);
        assert!(
            matches!(without, Err(RuntimeError::CannotRestore { .. })),
            "{without:?}"
        );
        let back = MachineSpec {
            volumes: spec.volumes.clone(),
            ..resumed(house, &machine)
        };
        let again = house.start_from(back).await.expect("it goes on");
        assert_eq!(
            run(&*again, "user", "pgrep -x tail >/dev/null; cat /mnt/shared/file").await,
            "there\n"
        );
        run(&*again, "user", "echo more >> /mnt/shared/file").await;
    });
}

#[test]
fn another_daemon_finds_what_was_brought_back() {
    if criu().is_none() {
        return;
    }
    with_two_daemons(
        async |house| {
            let machine = house.start().await;
            start_counter(&*machine).await;
            machine.hibernate().await.expect("it hibernates");
            let again = house
                .start_from(resumed(house, &machine))
                .await
                .expect("it goes on");
            count(&*again).await
        },
        async |house, (key, n)| {
            let machines = house.machines();
            assert_eq!(machines.len(), 1);
            assert!(machines[0].is_restored());
            assert_eq!(count(&*machines[0]).await.0, key);
            eventually_counts(&*machines[0], n).await;
            machines[0].hibernate().await.expect("it hibernates");
            let again = house
                .start_from(resumed(house, &machines[0]))
                .await
                .expect("it goes on");
            assert_eq!(count(&*again).await.0, key);
        },
    );
}

#[test]
fn the_disk_of_a_hibernated_machine_is_copied_and_its_memory_stays() {
    with_memory(async |house| {
        let machine = house.start().await;
        start_counter(&*machine).await;
        let before = count(&*machine).await;
        machine.hibernate().await.expect("it hibernates");
        let into = BuildId::random();
        let copied = house.runtime.copy_kept(machine.sandbox(), into).await;
        copied.expect("it is copied");
        assert_eq!(house.runtime.memory_of(into).await, Memory::None);
        let booted = house
            .start_from(copied_from(house, into))
            .await
            .expect("a machine");
        assert!(!booted.is_restored());
        let left = count(&*booted).await;
        assert!(
            left.0 == before.0 && left.1 >= before.1,
            "{left:?} after {before:?}"
        );
        assert_eq!(count(&*booted).await, left, "nothing counts there");
        let again = house
            .start_from(resumed(house, &machine))
            .await
            .expect("a machine");
        assert!(again.is_restored());
        assert_eq!(count(&*again).await.0, before.0);
        eventually_counts(&*again, left.1).await;
    });
}
