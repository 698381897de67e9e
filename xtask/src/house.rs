//! A running Atoll of the tests' own: its own data directory and ports, ended with all that it holds.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::shell::cache;

/// The first start makes a volume and imports the base template; slow disks take their time.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// A running Atoll.
pub(crate) struct House {
    atoll: PathBuf,
    dir: PathBuf,
    daemon: Child,
    env: BTreeMap<String, String>,
}

impl House {
    /// Starts `atoll up` under a fresh data directory on free ports of loopback and waits until it is ready.
    pub(crate) fn start(atoll: &Path, name: &str, more: &[(&str, String)]) -> Result<House> {
        let dir = cache().join("houses").join(name);
        if dir.exists() {
            // What a killed run left holds mounts and processes: Atoll itself knows how to end them.
            let _ = Command::new(atoll)
                .arg("down")
                .arg("--data-dir")
                .arg(&dir)
                .status();
            fs::remove_dir_all(&dir).with_context(|| format!("cannot clear {}", dir.display()))?;
        }
        fs::create_dir_all(&dir)?;
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        for listener in ["ATOLL_API_LISTEN", "ATOLL_EDGE_LISTEN", "ATOLL_ADMIN_LISTEN"] {
            env.insert(listener.into(), format!("127.0.0.1:{}", free_port()?));
        }
        env.insert("ATOLL_DATA_DIR".into(), dir.display().to_string());
        if let Some(criu) = crate::criu::have() {
            env.insert("ATOLL_CRIU".into(), criu.display().to_string());
        }
        env.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let daemon = spawn(atoll, &dir, &env)?;
        let mut house = House {
            atoll: atoll.to_owned(),
            dir,
            daemon,
            env,
        };
        house.wait_until_ready()?;
        let exports = house.exports()?;
        house.env.extend(exports);
        Ok(house)
    }

    /// What clients and tests need to know of it.
    pub(crate) fn env(&self) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        env.insert("ATOLL_BIN".into(), self.atoll.display().to_string());
        env
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// Ends everything: sandboxes, mounts, links, the daemon; then forgets the data.
    pub(crate) fn down(mut self) -> Result<()> {
        self.end()?;
        fs::remove_dir_all(&self.dir)
            .with_context(|| format!("{} is not free after atoll down", self.dir.display()))
    }

    fn end(&mut self) -> Result<()> {
        let status = Command::new(&self.atoll)
            .arg("down")
            .envs(&self.env)
            .stdout(Stdio::null())
            .status()?;
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if !status.success() {
            bail!(
                "atoll down ended with {status}; its log is {}",
                self.dir.join("daemon.log").display()
            );
        }
        Ok(())
    }

    /// Reads the ready line: the daemon prints it, with the exports, when every part answers.
    fn wait_until_ready(&mut self) -> Result<()> {
        let log = self.dir.join("daemon.log");
        let stdout = self
            .daemon
            .stdout
            .take()
            .context("the daemon's output is piped")?;
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.contains("E2B_API_KEY=") {
                    let _ = ready.send(());
                }
            }
        });
        let until = Instant::now() + READY_WITHIN;
        loop {
            match is_ready.recv_timeout(Duration::from_millis(200)) {
                Ok(()) => return Ok(()),
                Err(_) if Instant::now() > until => bail!("atoll was not ready in time:\n{}", tail(&log)),
                Err(_) => {
                    if let Some(status) = self.daemon.try_wait()? {
                        bail!("atoll ended with {status} before it was ready:\n{}", tail(&log));
                    }
                }
            }
        }
    }

    /// The exports, as a user would evaluate them.
    fn exports(&self) -> Result<BTreeMap<String, String>> {
        let output = Command::new(&self.atoll).arg("env").envs(&self.env).output()?;
        let text = String::from_utf8(output.stdout)?;
        let pairs = text
            .lines()
            .flat_map(|line| line.trim_start_matches("export ").split(' '))
            .filter_map(|pair| pair.split_once('='));
        Ok(pairs
            .map(|(key, value)| (key.to_owned(), value.trim_matches(['"', '\'']).to_owned()))
            .collect())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if self.daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.end();
        }
    }
}

fn spawn(atoll: &Path, dir: &Path, env: &BTreeMap<String, String>) -> Result<Child> {
    let log = File::create(dir.join("daemon.log"))?;
    let mut command = Command::new(atoll);
    command
        .arg("up")
        .envs(env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    command
        .spawn()
        .with_context(|| format!("cannot start {}", atoll.display()))
}

/// Below the ports that Linux gives to whoever connects (`ip_local_port_range`, ip(7)): a daemon that is started again must find its
/// own free.
const PORTS: Range<u16> = 12_000..20_000;

/// A port that was free a moment ago, and that nobody takes by chance.
pub(crate) fn free_port() -> Result<u16> {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        let drawn = std::process::id().wrapping_add(DRAWN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(u32::from(PORTS.start) + drawn % u32::from(PORTS.end - PORTS.start))?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!(
        "no port of loopback from {} to {} is free",
        PORTS.start,
        PORTS.end
    )
}

pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(40).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
