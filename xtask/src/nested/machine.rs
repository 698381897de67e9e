//! One run of the house's machine.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::root::{Root, make_disk};
use crate::shell::command;

/// From QEMU's start until Atoll is ready: it makes `base`, boots it, and hashes its memory, all of it emulated twice.
const READY_WITHIN: Duration = Duration::from_secs(20 * 60);
/// Beyond it the machine is ended, whatever it does.
const ENDS_WITHIN: Duration = Duration::from_secs(90 * 60);
/// A port of a machine that stands still is open all the same: QEMU itself takes the connection.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// Of which little is ever written.
const DATA_BYTES: u64 = 64 << 30;
/// Atoll with its symbols, and Firecracker.
const PROGRAMS_DISK: &str = "1G";
const INIT: &str = include_str!("init.sh");
const IN_HOUSE: [&str; 4] = ["atoll", "atoll-envd", "atoll-sudo", "atoll-guest"];

/// A machine that runs, and ends with this.
pub(super) struct Machine {
    dir: PathBuf,
    api: SocketAddr,
    edge: SocketAddr,
    key: String,
    qemu: Arc<Mutex<Child>>,
    /// With it goes the thread that ends the machine when its time is over.
    _clock: Sender<()>,
}

impl Machine {
    /// Starts one, and waits until Atoll in it is ready. What it said is kept where it does not come to that.
    pub(super) fn start(root: &Root, programs: &Path, firecracker: &Path) -> Result<Machine> {
        let dir = root.dir().join("run");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot clear {}", dir.display()))?;
        }
        let staged = dir.join("programs");
        fs::create_dir_all(&staged)?;
        for program in IN_HOUSE {
            let from = programs.join(program);
            fs::copy(&from, staged.join(program))
                .with_context(|| format!("cannot take {}", from.display()))?;
        }
        fs::copy(firecracker, staged.join("firecracker"))?;
        fs::copy(firecracker.with_file_name("jailer"), staged.join("jailer"))?;
        fs::write(staged.join("init"), INIT)?;
        fs::write(staged.join("settings"), settings()?)?;
        make_disk(&staged, &dir.join("programs.ext4"), PROGRAMS_DISK)?;
        fs::remove_dir_all(&staged)?;
        File::create_new(dir.join("data"))?.set_len(DATA_BYTES)?;

        let (api, edge) = (free_address()?, free_address()?);
        eprintln!(
            "nested: starting a machine of its own; its console is {}",
            dir.join("console").display()
        );
        let qemu = Arc::new(Mutex::new(spawn(root, &dir, api, edge)?));
        let mut machine = Machine {
            _clock: end_in_time(Arc::clone(&qemu)),
            dir,
            api,
            edge,
            key: String::new(),
            qemu,
        };
        match machine.wait_until_ready() {
            Ok(key) => {
                machine.key = key;
                Ok(machine)
            }
            Err(error) => {
                let log = machine.keep();
                Err(error.context(format!(
                    "no Atoll in a machine of its own; its console is {}",
                    log.display()
                )))
            }
        }
    }

    /// What clients need to know.
    pub(super) fn env(&self) -> BTreeMap<String, String> {
        let (api, edge) = (format!("http://{}", self.api), format!("http://{}", self.edge));
        [
            ("E2B_API_URL", api.clone()),
            ("E2B_VOLUME_API_URL", api),
            ("E2B_SANDBOX_URL", edge),
            ("E2B_API_KEY", self.key.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Whether the API inside answers anything at all.
    pub(super) fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect_timeout(&self.api, ANSWERS_WITHIN)?;
            stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: house\r\nConnection: close\r\n\r\n")?;
            let mut start = [0; 5];
            stream.read_exact(&mut start)?;
            Ok(start == *b"HTTP/")
        };
        ask().unwrap_or(false)
    }

    /// Ends it; nothing is left of it.
    pub(super) fn end(self) {
        let dir = self.dir.clone();
        drop(self);
        let _ = fs::remove_dir_all(dir);
    }

    /// Ends it, and returns the log that stays.
    pub(super) fn keep(self) -> PathBuf {
        let dir = self.dir.clone();
        drop(self);
        let kept = dir.with_file_name("console.log");
        let _ = fs::rename(dir.join("console"), &kept);
        let _ = fs::rename(dir.join("qemu.log"), dir.with_file_name("qemu.log"));
        let _ = fs::remove_dir_all(dir);
        kept
    }

    /// Waits for the second port's `ready`, and returns the key that was told before it.
    fn wait_until_ready(&self) -> Result<String> {
        let told = self.dir.join("told");
        let (since, until) = (Instant::now(), Instant::now() + READY_WITHIN);
        loop {
            let text = fs::read_to_string(&told).unwrap_or_default();
            let mut lines = text.lines().map(str::trim);
            if let Some(why) = lines.clone().find_map(|line| line.strip_prefix("failed: ")) {
                bail!("{why}");
            }
            if lines.clone().any(|line| line == "ready") {
                eprintln!(
                    "nested: Atoll is ready in it after {} s",
                    since.elapsed().as_secs()
                );
                return lines
                    .find_map(|line| line.strip_prefix("E2B_API_KEY="))
                    .map(str::to_owned)
                    .context("it is ready, and tells no key");
            }
            if let Some(status) = locked(&self.qemu).try_wait()? {
                bail!("QEMU ended with {status}");
            }
            if Instant::now() > until {
                bail!("it was not ready within {} s", READY_WITHIN.as_secs());
            }
            #[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        kill(&self.qemu);
    }
}

fn spawn(root: &Root, dir: &Path, api: SocketAddr, edge: SocketAddr) -> Result<Child> {
    let file = |path: &Path| path.display().to_string();
    let disk = |path: &Path, more: &str| format!("if=none,format=raw,file={},{more}", file(path));
    // Nothing of it reaches anything: only the two ports lead in.
    let net =
        format!("user,id=n,restrict=on,hostfwd=tcp:{api}-10.0.2.15:3000,hostfwd=tcp:{edge}-10.0.2.15:3002");
    // It goes when this program goes, however that ends.
    let mut qemu = command("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args([
            "-M",
            "q35,accel=tcg",
            "-cpu",
            "EPYC,+svm",
            "-smp",
            "1",
            "-m",
            "6144",
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(root.kernel())
        .arg("-initrd")
        .arg(root.initrd())
        .args([
            "-append",
            "console=ttyS0 loglevel=4 panic=-1 mitigations=off tsc=reliable",
        ])
        .args(["-drive", &disk(&root.disk(), "id=root,snapshot=on")])
        .args([
            "-drive",
            &disk(&dir.join("programs.ext4"), "id=programs,readonly=on"),
        ])
        .args([
            "-drive",
            &disk(&dir.join("data"), "id=data,cache=unsafe,discard=unmap"),
        ])
        .args(["-device", "virtio-blk-pci,drive=root"])
        .args(["-device", "virtio-blk-pci,drive=programs"])
        .args(["-device", "virtio-blk-pci,drive=data"])
        .args(["-device", "virtio-rng-pci"])
        .args(["-netdev", &net, "-device", "virtio-net-pci,netdev=n,romfile="])
        .args(["-rtc", "base=utc,clock=host"])
        .args(["-serial", &format!("file:{}", file(&dir.join("console")))])
        .args(["-serial", &format!("file:{}", file(&dir.join("told")))])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("qemu.log"))?);
    qemu.spawn().context("cannot run QEMU")
}

/// Ends the machine when its time is over, unless what is returned went before.
fn end_in_time(qemu: Arc<Mutex<Child>>) -> Sender<()> {
    let (clock, goes) = mpsc::channel();
    std::thread::spawn(move || {
        if goes.recv_timeout(ENDS_WITHIN) == Err(RecvTimeoutError::Timeout) {
            eprintln!(
                "nested: the machine is ended: it ran for {} s",
                ENDS_WITHIN.as_secs()
            );
            kill(&qemu);
        }
    });
    clock
}

fn kill(qemu: &Mutex<Child>) {
    let mut qemu = locked(qemu);
    let _ = qemu.kill();
    let _ = qemu.wait();
}

fn locked(qemu: &Mutex<Child>) -> std::sync::MutexGuard<'_, Child> {
    qemu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the operator accepts of this Firecracker, for the shell inside.
fn settings() -> Result<String> {
    let accepted = std::env::var("ATOLL_FIRECRACKER_ACCEPTS").unwrap_or_default();
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, ',' | '.' | '-');
    if !accepted.chars().all(is_name) {
        bail!("ATOLL_FIRECRACKER_ACCEPTS is no list of faults' names: {accepted}");
    }
    Ok(format!("export ATOLL_FIRECRACKER_ACCEPTS={accepted}\n"))
}

/// One of loopback that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
