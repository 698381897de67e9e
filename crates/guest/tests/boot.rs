//! A machine of the real bundle, under QEMU's own emulation, and the line to it.
//!
//! Needs `qemu-system-x86_64`, `mkfs.ext4` and `setpriv`, and in `ATOLL_TEST_GUEST_KERNEL` a directory into which a kernel
//! package was extracted, in `ATOLL_TEST_GUEST_BIN` one with atoll-guest, atoll-envd and atoll-sudo. Without them it says so.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, UNIX_EPOCH};

use guest::boot::{LineKind, Network, RootDisk, Settings};
use guest::bundle::Programs;
use guest::disk::{self, Source};
use guest::line::{Reason, Resume};
use guest::{Bundle, Line, LineError};
use ports::guest::Stream;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Emulated, on a busy machine, a boot takes some ten seconds.
const WHOLE: Duration = Duration::from_secs(240);
const HOSTNAME: &str = "boot-test";
const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

fn told(variable: &str) -> Option<PathBuf> {
    let told = std::env::var_os(variable).map(PathBuf::from);
    if told.is_none() {
        eprintln!("SKIPPED: {variable} is not set; see crates/guest/tests/boot.rs");
    }
    told
}

#[tokio::test]
async fn a_machine_boots_is_talked_to_resumed_and_ended() {
    let (Some(kernel), Some(programs)) = (told("ATOLL_TEST_GUEST_KERNEL"), told("ATOLL_TEST_GUEST_BIN"))
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let bundle = Bundle::make(&kernel, &Programs::of(&programs), &dir.path().join("bundles")).unwrap();
    let root = dir.path().join("root");
    make_root(&root);
    let image = dir.path().join("root.ext4");
    disk::make(&image, Source::Directory(&root), 128 << 20).unwrap();
    let console = dir.path().join("console");
    let socket = dir.path().join("line");
    let machine = life(&bundle, &image, &socket, &console);
    if timeout(WHOLE, machine).await.is_err() {
        panic!("not done in time; its console:\n{}", said(&console));
    }
}

async fn life(bundle: &Bundle, image: &Path, socket: &Path, console: &Path) {
    let began = Instant::now();
    let monitor = socket.with_extension("qmp");
    let mut qemu = start(bundle, image, socket, console, &monitor, None);
    let step = |what: &str| eprintln!("{:>6} ms  {what}", began.elapsed().as_millis());

    let line = call(socket).await;
    step("the line was taken");
    let hello = line.hello().await.unwrap();
    step("hello was answered: envd listens");
    assert_eq!(hello.kernel, bundle.release());

    assert!(
        http(line.envd().await.unwrap(), "GET /health")
            .await
            .starts_with("HTTP/1.1 204")
    );
    step("envd answered");
    // Only the host-only socket has it.
    assert!(
        http(line.envd().await.unwrap(), "GET /host/logs")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let inside = line.port(49_983).await.unwrap();
    assert!(http(inside, "GET /host/logs").await.starts_with("HTTP/1.1 404"));
    let inside = line.dial(49_984).await.err().unwrap();
    assert!(
        matches!(inside, ports::guest::DialError::Closed(49_984)),
        "{inside}"
    );
    step("a port inside was dialled");

    assert_eq!(file(&line, "/etc/hostname").await, format!("{HOSTNAME}\n"));
    assert_eq!(
        file(&line, "/proc/sys/kernel/hostname").await,
        format!("{HOSTNAME}\n")
    );
    assert_eq!(file(&line, "/etc/machine-id").await, format!("{MACHINE_ID}\n"));
    assert!(
        file(&line, "/etc/resolv.conf")
            .await
            .starts_with("nameserver 10.0.2.3\n")
    );
    // The link of the image led out of it, and what it led to is as it was.
    assert_eq!(file(&line, "/home/trap").await, "untouched");
    let processes = command(
        &line,
        "for p in /proc/[0-9]*; do read -r c < $p/comm && echo $c; done",
    )
    .await;
    assert!(
        processes.contains("envd") && !processes.contains("atoll-guest"),
        "{processes}"
    );
    assert!(!processes.contains("kthreadd"), "{processes}");
    let mounted = command(
        &line,
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
        &line,
        "while read -r i d g r; do echo $i $d $g; done < /proc/net/route",
    )
    .await;
    assert!(
        routes.contains("eth0 00000000 0202000A") && routes.contains("eth0 0002000A"),
        "{routes}"
    );
    step("the machine is what it should be");

    let usage = line.usage().await.unwrap();
    assert!(usage.cpu_time_us > 0 && usage.tasks > 0, "{usage:?}");
    assert!(
        usage.memory_used_bytes > 0 && usage.memory_used_bytes < usage.memory_total_bytes,
        "{usage:?}"
    );
    assert!(
        usage.disk_used_bytes > 0 && usage.disk_total_bytes <= 128 << 20,
        "{usage:?}"
    );
    let boot_id = file(&line, "/proc/sys/kernel/random/boot_id").await;
    let mut resume = Resume::new(UNIX_EPOCH + Duration::from_secs(1_000_000_000), &[7; 64]);
    resume.hostname = Some("copy-2".to_owned());
    resume.machine_id = Some("f".repeat(32));
    line.resume(resume.clone()).await.unwrap();
    let year = command(&line, "printf '%(%Y)T' -1").await;
    assert_eq!(year, "2001");
    assert_eq!(file(&line, "/proc/sys/kernel/hostname").await, "copy-2\n");
    assert_eq!(file(&line, "/etc/hostname").await, "copy-2\n");
    assert_eq!(
        file(&line, "/etc/machine-id").await,
        format!("{}\n", "f".repeat(32))
    );
    let renewed = file(&line, "/proc/sys/kernel/random/boot_id").await;
    assert!(
        renewed.len() == boot_id.len() && renewed != boot_id,
        "{boot_id} {renewed}"
    );
    resume.entropy.clear();
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
    step("it was resumed as another");

    // One that hangs up in the middle of a stream, and one that calls again at once.
    let mut open = line.port(49_983).await.unwrap();
    open.write_all(b"GET /health HT").await.unwrap();
    drop(line);
    let mut rest = Vec::new();
    let ended = open.read_to_end(&mut rest).await;
    assert!(ended.is_err() || rest.is_empty());
    for _ in 0..5 {
        let line = call(socket).await;
        line.hello().await.unwrap();
    }
    let line = call(socket).await;
    assert!(
        http(line.envd().await.unwrap(), "GET /health")
            .await
            .starts_with("HTTP/1.1 204")
    );
    step("six others called");
    bulk(&line).await;
    step("eight streams carried two megabytes each");

    // Its memory goes on in another process, in the middle of a conversation that its new host never had.
    let mut open = line.port(49_983).await.unwrap();
    open.write_all(b"GET /health HT").await.unwrap();
    let before = command(&line, "mapfile -t s < /proc/sys/kernel/random/boot_id; echo $s").await;
    let state = socket.with_extension("state");
    save(&monitor, &state).await;
    assert!(qemu.wait().await.unwrap().success());
    line.over().await;
    step("its memory was saved");
    let _ = fs::remove_file(socket);
    let mut qemu = start(bundle, image, socket, console, &monitor, Some(&state));
    // It is called while it is still being loaded.
    let (line, ()) = tokio::join!(call(socket), go_on(&monitor));
    step("the line was taken");
    line.resume(Resume::now().unwrap()).await.unwrap();
    line.hello().await.unwrap();
    step("hello was answered from memory");
    let after = command(&line, "mapfile -t s < /proc/sys/kernel/random/boot_id; echo $s").await;
    assert_ne!(before, after);
    let year: u32 = command(&line, "printf '%(%Y)T' -1").await.parse().unwrap();
    assert!(year > 2001, "{year}");
    assert_eq!(file(&line, "/proc/sys/kernel/hostname").await, "copy-2\n");

    line.sync().await.unwrap();
    line.shutdown(Duration::from_secs(5)).await.unwrap();
    line.over().await;
    let ended = qemu.wait().await.unwrap();
    step("the power is off");
    assert!(ended.success(), "{ended}; its console:\n{}", said(console));
    assert!(said(console).contains("told to end"), "{}", said(console));
    let state = std::process::Command::new("dumpe2fs")
        .arg("-h")
        .arg(image)
        .output()
        .unwrap();
    let state = String::from_utf8_lossy(&state.stdout).into_owned();
    assert!(
        state.contains("clean") && !state.contains("needs_recovery"),
        "{state}"
    );
}

/// A word with QEMU itself.
struct Monitor {
    lines: tokio::io::Lines<tokio::io::BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Monitor {
    async fn open(path: &Path) -> Self {
        let (reader, writer) = connect(path).await.into_split();
        let lines = tokio::io::BufReader::new(reader).lines();
        let mut monitor = Self { lines, writer };
        monitor.ask("qmp_capabilities").await;
        monitor
    }

    async fn ask(&mut self, command: &str) -> String {
        self.send(&format!(r#"{{"execute":"{command}"}}"#)).await
    }

    async fn send(&mut self, command: &str) -> String {
        self.writer
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
        loop {
            let line = self.lines.next_line().await.unwrap().unwrap();
            assert!(!line.contains("\"error\""), "{command}: {line}");
            if line.contains("\"return\"") {
                return line;
            }
        }
    }

    async fn until(&mut self, question: &str, answer: &str) {
        while !self.ask(question).await.contains(answer) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Stops the machine, writes its memory down, and ends the process.
async fn save(monitor: &Path, state: &Path) {
    let mut monitor = Monitor::open(monitor).await;
    monitor.ask("stop").await;
    let to = format!("exec:cat > {}", state.display());
    monitor
        .send(&format!(
            r#"{{"execute":"migrate","arguments":{{"uri":"{to}"}}}}"#
        ))
        .await;
    monitor.until("query-migrate", "completed").await;
    monitor.ask("quit").await;
}

/// Lets a machine go on whose memory is being loaded.
async fn go_on(monitor: &Path) {
    let mut monitor = Monitor::open(monitor).await;
    monitor.until("query-status", "paused").await;
    monitor.ask("cont").await;
}

fn start(
    bundle: &Bundle,
    image: &Path,
    socket: &Path,
    console: &Path,
    monitor: &Path,
    state: Option<&Path>,
) -> Child {
    let settings = Settings {
        hostname: HOSTNAME.to_owned(),
        machine_id: MACHINE_ID.to_owned(),
        network: Some(Network {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
        }),
        nameservers: vec![Ipv4Addr::new(10, 0, 2, 3)],
        line: LineKind::Serial,
        root: RootDisk::FIRST,
    };
    let told = settings.to_command_line().unwrap();
    // Whatever becomes of the test, it ends with it.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args([
            "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-smp", "1",
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(bundle.kernel())
        .arg("-initrd")
        .arg(bundle.initrd())
        .args(["-append", &format!("console=ttyS0 quiet panic=-1 {told}")])
        .args([
            "-chardev",
            &format!("file,id=console,path={},append=on", console.display()),
        ])
        .args(["-serial", "chardev:console"])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())])
        .args(
            state
                .map(|state| ["-incoming".to_owned(), format!("exec:cat {}", state.display())])
                .into_iter()
                .flatten(),
        )
        .args([
            "-drive",
            &format!("id=root,file={},format=raw,if=none", image.display()),
        ])
        .args(["-device", "virtio-blk-pci,drive=root"])
        .args(["-device", "virtio-serial-pci"])
        .args([
            "-chardev",
            &format!("socket,id=line,path={},server=on,wait=off", socket.display()),
        ])
        .args(["-device", "virtserialport,chardev=line,name=atoll.line"])
        .args([
            "-netdev",
            "user,id=net,restrict=on",
            "-device",
            "virtio-net-pci,netdev=net",
        ])
        .args(["-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// As soon as QEMU listens.
async fn connect(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn call(socket: &Path) -> Line {
    Line::connect(connect(socket).await).await.unwrap()
}

async fn http(mut stream: Box<dyn Stream>, request: &str) -> String {
    let request = format!("{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn file(line: &Line, path: &str) -> String {
    let request = format!("GET /files?path={path}&username=root");
    let answer = http(line.envd().await.unwrap(), &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return body.split("\r\n").skip(1).step_by(2).collect();
    }
    body.to_owned()
}

/// What a command of bash writes.
async fn command(line: &Line, script: &str) -> String {
    let escaped = script.replace('\\', "\\\\").replace('"', "\\\"");
    let message = format!(r#"{{"process":{{"cmd":"/bin/bash","args":["-c","{escaped}"]}}}}"#);
    let mut stream = line.envd().await.unwrap();
    let head = format!(
        "POST /process.Process/Start HTTP/1.1\r\nhost: test\r\nconnection: close\r\nauthorization: Basic cm9vdDo=\r\n\
         content-type: application/connect+json\r\nconnect-protocol-version: 1\r\ncontent-length: {}\r\n\r\n",
        message.len() + 5
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[0]).await.unwrap();
    let length = u32::try_from(message.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).await.unwrap();
    stream.write_all(message.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("\"end\""), "{answer}");
    use base64::Engine as _;
    let parts = answer.split("\"stdout\":\"").skip(1).map(|part| {
        let text = part.split('"').next().unwrap_or_default();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    });
    String::from_utf8(parts.flatten().collect()).unwrap()
}

/// Writes and reads back files, all at once.
async fn bulk(line: &Line) {
    let each = |number: u8| async move {
        let content: Vec<u8> = (0..2 << 20_u32)
            .map(|at: u32| at.to_le_bytes()[0] ^ number)
            .collect();
        let path = format!("/tmp/bulk-{number}");
        let mut stream = line.envd().await.unwrap();
        let head = format!(
            "POST /files?path={path}&username=root HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
             content-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
            content.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&content).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let length = command(
            line,
            &format!("LC_ALL=C; mapfile -d '' all < {path}; echo ${{#all[@]}}"),
        )
        .await;
        let zeroes = content.iter().filter(|byte| **byte == 0).count();
        assert!(length.trim().parse::<usize>().unwrap() >= zeroes, "{length}");
    };
    futures_util::future::join_all((1..9).map(each)).await;
}

fn said(console: &Path) -> String {
    String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned()
}

/// Bash with its libraries, and a link that would lead whoever follows it to another file.
fn make_root(root: &Path) {
    for dir in ["bin", "etc", "home", "tmp", "root"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    fs::write(root.join("home/trap"), "untouched").unwrap();
    std::os::unix::fs::symlink("/home/trap", root.join("etc/resolv.conf")).unwrap();
    std::os::unix::fs::symlink("/home/trap", root.join("etc/hostname")).unwrap();
    fs::copy("/bin/bash", root.join("bin/bash")).unwrap();
    std::os::unix::fs::symlink("bash", root.join("bin/sh")).unwrap();
    let libraries = std::process::Command::new("ldd")
        .arg("/bin/bash")
        .output()
        .unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let libraries: BTreeSet<&str> = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .collect();
    assert!(!libraries.is_empty());
    for library in libraries {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}
