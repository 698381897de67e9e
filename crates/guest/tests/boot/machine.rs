//! A machine under QEMU's own emulation, and the files that it has.
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use guest::boot::{LineKind, Network, RootDisk, Settings};
use guest::bundle::Programs;
use guest::disk::{self, Source};
use guest::{Bundle, Line};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};

pub(crate) const HOSTNAME: &str = "boot-test";
pub(crate) const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";
/// As large as its content needs.
pub(crate) const IMAGE_BYTES: u64 = 128 << 20;
/// The same for all machines: what differs among copies, differs by the agent's work alone.
const GENERATION: &str = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87";

/// What machines boot from, and where.
pub(crate) struct Scene {
    pub(crate) bundle: Bundle,
    dir: tempfile::TempDir,
}

impl Scene {
    /// `None` where the environment does not say what from.
    pub(crate) fn set() -> Option<Self> {
        let (kernel, programs) = (told("ATOLL_TEST_GUEST_KERNEL")?, told("ATOLL_TEST_GUEST_BIN")?);
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::make(&kernel, &Programs::of(&programs), &dir.path().join("bundles")).unwrap();
        let root = dir.path().join("root");
        crate::root::make(&root);
        disk::make(
            &dir.path().join("root.ext4"),
            Source::Directory(&root),
            IMAGE_BYTES,
        )
        .unwrap();
        Some(Self { bundle, dir })
    }

    /// A machine with the image at the beginning of its disk.
    pub(crate) fn machine(&self, name: &str, disk_bytes: u64) -> Machine {
        let machine = self.place(name);
        copy(&self.dir.path().join("root.ext4"), &machine.disk());
        let disk = fs::OpenOptions::new().write(true).open(machine.disk()).unwrap();
        disk.set_len(disk_bytes).unwrap();
        machine
    }

    /// A copy of a machine that does not run.
    pub(crate) fn copy(&self, of: &Machine, name: &str) -> Machine {
        let machine = self.place(name);
        copy(&of.disk(), &machine.disk());
        machine
    }

    fn place(&self, name: &str) -> Machine {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        Machine { dir }
    }
}

/// What the environment says of something that the tests need.
pub(crate) fn told(variable: &str) -> Option<PathBuf> {
    let told = std::env::var_os(variable).map(PathBuf::from);
    if told.is_none() {
        eprintln!("SKIPPED: {variable} is not set; see crates/guest/tests/boot/main.rs");
    }
    told
}

/// With its holes.
fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .args([from, to])
        .status();
    assert!(copied.unwrap().success());
}

/// A machine, whether it runs or not.
pub(crate) struct Machine {
    dir: PathBuf,
}

/// What carries its line.
pub(crate) enum Carrier<'a> {
    Serial,
    /// With the program that is the device.
    Vsock(&'a Path),
}

impl Machine {
    /// Its root disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// Its memory, once it was saved.
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// The host's end of its vsock.
    pub(crate) fn vsock(&self) -> PathBuf {
        self.dir.join("vsock")
    }

    /// What it said on its console.
    pub(crate) fn said(&self) -> String {
        let said = fs::read(self.dir.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// What a program of e2fsprogs says of its disk.
    pub(crate) fn disk_by(&self, program: &str, option: &str) -> String {
        let said = std::process::Command::new(program)
            .arg(option)
            .arg(self.disk())
            .output()
            .unwrap();
        assert!(said.status.success(), "{program}: {said:?}");
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// Calls its agent, as soon as QEMU listens.
    pub(crate) async fn call(&self) -> Line {
        Line::connect(connect(&self.dir.join("line")).await)
            .await
            .unwrap()
    }

    /// Boots it, or lets it go on with the memory that another saved.
    pub(crate) async fn start(
        &self,
        bundle: &Bundle,
        carrier: Carrier<'_>,
        memory: Option<&Path>,
    ) -> Vec<Child> {
        let _ = fs::remove_file(self.dir.join("line"));
        let settings = Settings {
            hostname: HOSTNAME.to_owned(),
            machine_id: MACHINE_ID.to_owned(),
            network: Some(Network {
                address: Ipv4Addr::new(10, 0, 2, 15),
                prefix: 24,
                gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
            }),
            nameservers: vec![Ipv4Addr::new(10, 0, 2, 3)],
            line: match carrier {
                Carrier::Serial => LineKind::Serial,
                Carrier::Vsock(_) => LineKind::Vsock,
            },
            root: RootDisk::FIRST,
        };
        let told = settings.to_command_line().unwrap();
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut running = Vec::new();
        let mut qemu = owned("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "256", "-smp", "1"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(bundle.kernel())
            .arg("-initrd")
            .arg(bundle.initrd())
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 {told}")])
            .args([
                "-chardev",
                &format!("file,id=console,path={},append=on", at("console")),
            ])
            .args(["-serial", "chardev:console"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", at("monitor"))])
            .args([
                "-drive",
                &format!("id=root,file={},format=raw,if=none", at("disk")),
            ])
            .args(["-device", "virtio-blk-pci,drive=root"])
            .args(["-netdev", "user,id=net,restrict=on"])
            .args(["-device", "virtio-net-pci,netdev=net"])
            .args(["-device", "virtio-rng-pci"])
            .args(["-device", &format!("vmgenid,guid={GENERATION}")]);
        if let Some(memory) = memory {
            qemu.args(["-incoming", &format!("exec:cat {}", memory.display())]);
        }
        match carrier {
            Carrier::Serial => {
                qemu.args(["-M", "q35", "-device", "virtio-serial-pci"])
                    .args([
                        "-chardev",
                        &format!("socket,id=line,path={},server=on,wait=off", at("line")),
                    ])
                    .args(["-device", "virtserialport,chardev=line,name=atoll.line"]);
            }
            Carrier::Vsock(program) => {
                let device = owned(program)
                    .args(["--socket", &at("device"), "--uds-path", &at("vsock")])
                    .args(["--guest-cid", "3"])
                    .spawn();
                running.push(device.unwrap());
                while !Path::new(&at("device")).exists() {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
                qemu.args(["-M", "q35,memory-backend=memory"])
                    .args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"])
                    .args(["-chardev", &format!("socket,id=device,path={}", at("device"))])
                    .args(["-device", "vhost-user-vsock-pci,chardev=device"]);
            }
        }
        running.insert(0, qemu.spawn().unwrap());
        running
    }

    /// Stops it, writes its memory down, and ends the process.
    pub(crate) async fn save(&self) {
        let mut monitor = Monitor::open(&self.dir.join("monitor")).await;
        monitor.ask("stop").await;
        let to = format!("exec:cat > {}", self.memory().display());
        monitor
            .send(&format!(
                r#"{{"execute":"migrate","arguments":{{"uri":"{to}"}}}}"#
            ))
            .await;
        monitor.until("query-migrate", "completed").await;
        monitor.ask("quit").await;
    }

    /// Lets it go on, as soon as its memory was loaded.
    pub(crate) async fn go_on(&self) {
        let mut monitor = Monitor::open(&self.dir.join("monitor")).await;
        monitor.until("query-status", "paused").await;
        monitor.ask("cont").await;
    }
}

/// A program that ends with the test, whatever becomes of that.
fn owned(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// As soon as somebody listens.
async fn connect(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
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
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}
