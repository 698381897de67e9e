//! Machines of the real bundle, under QEMU's own emulation, and the line to them.
//!
//! Needs `qemu-system-x86_64`, `mkfs.ext4` and `setpriv`, and in `ATOLL_TEST_GUEST_KERNEL` a directory into which a kernel
//! package was extracted, in `ATOLL_TEST_GUEST_BIN` one with atoll-guest, atoll-envd and atoll-sudo. For the line over vsock,
//! `ATOLL_TEST_GUEST_VSOCK` names the program `vhost-device-vsock` (a crate of rust-vmm's), which is to QEMU what Firecracker's
//! own device is to it, with the same protocol on the host's side. Without them it says so.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod inside;
mod machine;
mod root;

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant, UNIX_EPOCH};

use guest::line::{Reason, Resume, vsock};
use guest::{Line, LineError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::inside::{bulk, command, file, http};
use crate::machine::{Carrier, HOSTNAME, IMAGE_BYTES, MACHINE_ID, Machine, Scene, told};

/// Emulated, on a busy machine, a boot takes some ten seconds.
const WHOLE: Duration = Duration::from_secs(240);
/// Many times the image, and more than a table of block groups of the image's size has place for.
const DISK_BYTES: u64 = 600 << 30;
/// What is written inside is no more than this, and neither is what growing writes.
const WRITTEN_BYTES_MAX: u64 = 400 << 20;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One machine at a time.
static TURN: Mutex<()> = Mutex::const_new(());

async fn within(machine: &Machine, life: impl Future<Output = ()>) {
    if timeout(WHOLE, life).await.is_err() {
        panic!("not done in time; its console:\n{}", machine.said());
    }
}

#[tokio::test]
async fn a_machine_boots_is_talked_to_resumed_copied_and_ended() {
    let _turn = TURN.lock().await;
    let Some(scene) = Scene::set() else { return };
    let machine = scene.machine("first", DISK_BYTES);
    within(&machine, life(&scene, &machine)).await;
}

async fn life(scene: &Scene, machine: &Machine) {
    let began = Instant::now();
    let step = |what: &str| eprintln!("{:>6} ms  {what}", began.elapsed().as_millis());
    let bundle = &scene.bundle;
    let mut qemu = machine.start(bundle, Carrier::Serial, None).await;

    let line = machine.call().await;
    step("the line was taken");
    let hello = line.hello().await.unwrap();
    step("hello was answered: envd listens");
    assert_eq!(hello.kernel, bundle.release());
    ports(&line).await;
    step("envd answered, and a port inside was dialled");
    identity(&line).await;
    seclusion(&line).await;
    step("the machine is what it should be");
    size(&line, machine).await;
    step("its file system is as large as its disk");
    resume(&line).await;
    step("it was resumed as another");

    // One that hangs up in the middle of a stream, and one that calls again at once.
    let mut open = line.port(49_983).await.unwrap();
    open.write_all(b"GET /health HT").await.unwrap();
    drop(line);
    let mut rest = Vec::new();
    let ended = open.read_to_end(&mut rest).await;
    assert!(ended.is_err() || rest.is_empty());
    for _ in 0..5 {
        machine.call().await.hello().await.unwrap();
    }
    let line = machine.call().await;
    let health = http(line.envd().await.unwrap(), "GET /health").await;
    assert!(health.starts_with("HTTP/1.1 204"), "{health}");
    step("six others called");
    bulk(&line).await;
    step("eight streams carried two megabytes each");

    // Its memory goes on in other processes, in the middle of a conversation that their hosts never had.
    let mut open = line.port(49_983).await.unwrap();
    open.write_all(b"GET /health HT").await.unwrap();
    let before = facts(&line).await;
    machine.save().await;
    assert!(qemu[0].wait().await.unwrap().success());
    line.over().await;
    step("its memory was saved");
    let (copy, memory) = (scene.copy(machine, "second"), machine.memory());
    let mut known = vec![before];
    for (number, machine) in [machine, &copy].into_iter().enumerate() {
        let mut qemu = machine.start(bundle, Carrier::Serial, Some(&memory)).await;
        // It is called while it is still being loaded.
        let (line, ()) = tokio::join!(machine.call(), machine.go_on());
        step("the line of a copy was taken");
        let mut resume = Resume::now().unwrap();
        resume.hostname = Some(format!("copy-{number}"));
        resume.machine_id = Some(number.to_string().repeat(32));
        line.resume(resume).await.unwrap();
        line.hello().await.unwrap();
        let now = facts(&line).await;
        for known in &known {
            for (name, (known, now)) in FACTS.iter().zip(known.iter().zip(&now)) {
                assert_ne!(known, now, "{name} of copy {number}");
            }
        }
        known.push(now);
        let year: u32 = command(&line, "printf '%(%Y)T' -1").await.parse().unwrap();
        assert!(year > 2001, "{year}");
        step("it is another");

        line.sync().await.unwrap();
        line.shutdown(Duration::from_secs(5)).await.unwrap();
        line.over().await;
        let ended = qemu[0].wait().await.unwrap();
        step("its power is off");
        assert!(ended.success(), "{ended}; its console:\n{}", machine.said());
        assert!(machine.said().contains("told to end"), "{}", machine.said());
        let state = machine.disk_by("dumpe2fs", "-h");
        assert!(
            state.contains("clean") && !state.contains("needs_recovery"),
            "{state}"
        );
        machine.disk_by("e2fsck", "-fn");
        step("its disk is sound");
    }
}

#[tokio::test]
async fn a_machine_calls_when_it_is_ready_and_is_served_over_vsock() {
    let _turn = TURN.lock().await;
    let (Some(scene), Some(program)) = (Scene::set(), told("ATOLL_TEST_GUEST_VSOCK")) else {
        return;
    };
    let machine = scene.machine("vsock", IMAGE_BYTES);
    let began = Instant::now();
    let step = |what: &str| eprintln!("{:>6} ms  {what}", began.elapsed().as_millis());
    within(&machine, async {
        let ready = vsock::Ready::listen(&machine.vsock()).unwrap();
        let carrier = Carrier::Vsock(&program);
        let mut running = machine.start(&scene.bundle, carrier, None).await;
        let line = Line::vsock(&machine.vsock());
        assert!(
            matches!(line.hello().await, Err(LineError::Gone)),
            "nobody is there"
        );
        let called = ready.called().await.unwrap();
        step("the machine called");
        assert_eq!(called.kernel, scene.bundle.release());
        let hello = line.hello().await.unwrap();
        assert_eq!((hello.agent, hello.kernel), (called.agent, called.kernel));
        step("hello was answered");
        ports(&line).await;
        identity(&line).await;
        seclusion(&line).await;
        step("the machine is what it should be");
        resume(&line).await;
        step("it was resumed as another");
        bulk(&line).await;
        step("eight streams carried two megabytes each");
        line.sync().await.unwrap();
        line.shutdown(Duration::from_secs(5)).await.unwrap();
        let ended = running[0].wait().await.unwrap();
        step("it was reset");
        assert!(ended.success(), "{ended}; its console:\n{}", machine.said());
        assert!(machine.said().contains("told to end"), "{}", machine.said());
        machine.disk_by("e2fsck", "-fn");
    })
    .await;
}

/// What there is to dial.
async fn ports(line: &Line) {
    let health = http(line.envd().await.unwrap(), "GET /health").await;
    assert!(health.starts_with("HTTP/1.1 204"), "{health}");
    // Only the host-only socket has it.
    let logs = http(line.envd().await.unwrap(), "GET /host/logs").await;
    assert!(logs.starts_with("HTTP/1.1 200"), "{logs}");
    let logs = http(line.port(49_983).await.unwrap(), "GET /host/logs").await;
    assert!(logs.starts_with("HTTP/1.1 404"), "{logs}");
    let nobody = line.dial(49_984).await.err().unwrap();
    assert!(
        matches!(nobody, ports::guest::DialError::Closed(49_984)),
        "{nobody}"
    );
}

/// Its names, and that they were written to no place but their own.
async fn identity(line: &Line) {
    for (path, content) in [
        ("/etc/hostname", HOSTNAME),
        ("/proc/sys/kernel/hostname", HOSTNAME),
        ("/etc/machine-id", MACHINE_ID),
    ] {
        assert_eq!(file(line, path).await, format!("{content}\n"), "{path}");
    }
    let resolvers = file(line, "/etc/resolv.conf").await;
    assert!(resolvers.starts_with("nameserver 10.0.2.3\n"), "{resolvers}");
    // The link of the image led out of it, and what it led to is as it was.
    assert_eq!(file(line, "/home/trap").await, "untouched");
}

/// What is seen inside, and what is not.
async fn seclusion(line: &Line) {
    let processes = command(
        line,
        "for p in /proc/[0-9]*; do read -r c < $p/comm && echo $c; done",
    )
    .await;
    assert!(processes.contains("envd"), "{processes}");
    for hidden in ["atoll-guest", "kthreadd"] {
        assert!(!processes.contains(hidden), "{processes}");
    }
    let mounted = command(
        line,
        "while read -r d m t o r; do echo $m $t $o; done < /proc/mounts",
    )
    .await;
    for mount in [
        "/ ext4 rw",
        "/run/atoll/agent tmpfs ro",
        "/usr/local/bin/sudo tmpfs ro",
        "/sys/fs/cgroup cgroup2 rw",
        "/dev/pts devpts rw",
    ] {
        assert!(mounted.contains(mount), "{mount} is not among\n{mounted}");
    }
    let routes = command(
        line,
        "while read -r i d g r; do echo $i $d $g; done < /proc/net/route",
    )
    .await;
    for route in ["eth0 00000000 0202000A", "eth0 0002000A"] {
        assert!(routes.contains(route), "{routes}");
    }
}

/// That the disk is as large inside as outside, and takes nearly nothing of the host's.
async fn size(line: &Line, machine: &Machine) {
    let told = command(
        line,
        "df --block-size=1 --output=size,avail / | { read; read l; echo $l; }",
    )
    .await;
    let told: Vec<u64> = told
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    let [size, free] = told[..] else {
        panic!("{told:?}")
    };
    // Tables of inodes take their share.
    assert!(size <= DISK_BYTES && size > DISK_BYTES / 100 * 98, "{told:?}");
    assert!(free > DISK_BYTES / 100 * 98, "{told:?}");
    let mounted = file(line, "/proc/mounts").await;
    assert!(mounted.contains("noinit_itable"), "{mounted}");

    let taken = || machine.disk().metadata().unwrap().blocks() * 512;
    line.sync().await.unwrap();
    let before = taken();
    assert!(before < IMAGE_BYTES, "{before}");
    eprintln!("{before} bytes of the host's are taken");

    let written = IMAGE_BYTES * 3 / 2;
    let sum = format!(
        "dd if=/dev/zero of=/big bs=1M count={} && sha256sum /big",
        written >> 20
    );
    let sum = command(line, &format!("({sum}) 2> /dev/null")).await;
    assert!(
        sum.starts_with("46b23b74b0d431993099b9ccef75ac4e30dc48305089aa236b6ff1de97fed713"),
        "{sum}"
    );
    let usage = line.usage().await.unwrap();
    assert_eq!(usage.disk_total_bytes, size);
    assert!(usage.disk_used_bytes > written, "{usage:?}");
    assert!(usage.cpu_time_us > 0 && usage.tasks > 0, "{usage:?}");
    assert!(
        usage.memory_used_bytes > 0 && usage.memory_used_bytes < usage.memory_total_bytes,
        "{usage:?}"
    );
    line.sync().await.unwrap();
    let after = taken();
    assert!(after > before + written && after < WRITTEN_BYTES_MAX, "{after}");
}

/// That it takes other names, another time and another boot id, and none by halves.
async fn resume(line: &Line) {
    let boot_id = file(line, BOOT_ID).await;
    let mut resume = Resume::new(UNIX_EPOCH + Duration::from_secs(1_000_000_000), &[7; 64]);
    resume.hostname = Some("copy".to_owned());
    resume.machine_id = Some("f".repeat(32));
    line.resume(resume.clone()).await.unwrap();
    assert_eq!(command(line, "printf '%(%Y)T' -1").await, "2001");
    assert_eq!(file(line, "/proc/sys/kernel/hostname").await, "copy\n");
    assert_eq!(file(line, "/etc/hostname").await, "copy\n");
    assert_eq!(
        file(line, "/etc/machine-id").await,
        format!("{}\n", "f".repeat(32))
    );
    let renewed = file(line, BOOT_ID).await;
    assert!(
        renewed.len() == boot_id.len() && renewed != boot_id,
        "{boot_id} {renewed}"
    );
    resume.entropy.clear();
    resume.hostname = Some("other".to_owned());
    let refused = line.resume(resume).await.unwrap_err();
    assert!(
        matches!(
            refused,
            LineError::Refused {
                reason: Reason::Failed,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(file(line, "/etc/hostname").await, "copy\n");
}

const FACTS: [&str; 5] = [
    "boot_id",
    "/etc/machine-id",
    "hostname",
    "/dev/urandom",
    "a UUID of the kernel's",
];

/// What is no other machine's, in the order of [`FACTS`].
async fn facts(line: &Line) -> Vec<String> {
    let random = "dd if=/dev/urandom bs=64 count=1 2> /dev/null | sha256sum";
    let uuid = "/proc/sys/kernel/random/uuid";
    let files = format!("{BOOT_ID} /etc/machine-id /proc/sys/kernel/hostname");
    let script =
        format!("for f in {files}; do read -r l < $f; echo $l; done; {random}; read -r l < {uuid}; echo $l");
    let told = command(line, &script).await;
    let facts: Vec<String> = told.lines().map(str::to_owned).collect();
    assert_eq!(facts.len(), FACTS.len(), "{told}");
    facts
}

#[tokio::test]
async fn a_machine_whose_file_system_does_not_grow_does_not_run_and_says_why() {
    let _turn = TURN.lock().await;
    let Some(scene) = Scene::set() else { return };
    let machine = scene.machine("marred", DISK_BYTES);
    // On which errors were found before.
    let marred = std::process::Command::new("debugfs")
        .args(["-w", "-R", "set_super_value state 2"])
        .arg(machine.disk())
        .output();
    assert!(marred.unwrap().status.success());
    within(&machine, async {
        let mut qemu = machine.start(&scene.bundle, Carrier::Serial, None).await;
        assert!(qemu[0].wait().await.unwrap().success());
        let said = machine.said();
        let why = format!("growing the root disk's file system to the {DISK_BYTES} bytes of /dev/vda failed");
        assert!(said.contains(&why), "{said}");
    })
    .await;
}
