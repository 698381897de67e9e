//! A fleet of the tests' own: `atoll dev cluster`, ended with all that it holds.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::house::{free_port, tail};

/// Services are made, and each node makes a volume and imports the base template.
const READY_WITHIN: Duration = Duration::from_secs(300);
/// Sandboxes are ended, and services stopped.
const ENDS_WITHIN: Duration = Duration::from_secs(180);

/// A running fleet.
pub(crate) struct Fleet {
    dir: PathBuf,
    daemon: Child,
    env: BTreeMap<String, String>,
}

impl Fleet {
    /// Starts one, and waits until every process of it is ready.
    pub(crate) fn start(atoll: &Path, consul: &Path) -> Result<Fleet> {
        // PostgreSQL is run by another user, who must be able to come there.
        let dir = std::env::temp_dir().join("atoll-cluster-of-tests");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let mut command = Command::new(atoll);
        command
            .args(["dev", "cluster", "--dir"])
            .arg(&dir)
            .arg("--consul")
            .arg(consul)
            .arg("--api-listen")
            .arg(format!("127.0.0.1:{}", free_port()?))
            .arg("--edge-listen")
            .arg(format!("127.0.0.1:{}", free_port()?))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.join("dev.log"))?);
        if let Some(criu) = crate::criu::have() {
            command.arg("--criu").arg(criu);
        }
        let daemon = command.spawn().context("cannot start `atoll dev cluster`")?;
        let mut fleet = Fleet {
            dir,
            daemon,
            env: BTreeMap::new(),
        };
        fleet.env = fleet.exports()?;
        fleet.env.insert(
            "ATOLL_CLUSTER".to_owned(),
            fleet.dir.join("cluster.json").display().to_string(),
        );
        fleet
            .env
            .insert("ATOLL_BIN".to_owned(), atoll.display().to_string());
        Ok(fleet)
    }

    /// What clients and tests need to know of it.
    pub(crate) fn env(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// What it prints when it is ready: the lines that a shell evaluates.
    fn exports(&mut self) -> Result<BTreeMap<String, String>> {
        let stdout = self.daemon.stdout.take().context("the fleet's output is piped")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let (until, mut env) = (Instant::now() + READY_WITHIN, BTreeMap::new());
        while !env.contains_key("E2B_API_KEY") {
            match lines.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => {
                    let pair = line.trim_start_matches("export ").split_once('=');
                    env.extend(pair.map(|(name, value)| (name.to_owned(), value.to_owned())));
                }
                Err(_) if Instant::now() > until => {
                    bail!(
                        "the fleet was not ready in time:\n{}",
                        tail(&self.dir.join("dev.log"))
                    )
                }
                Err(_) => {
                    if let Some(status) = self.daemon.try_wait()? {
                        bail!(
                            "the fleet ended with {status} before it was ready:\n{}",
                            tail(&self.dir.join("dev.log"))
                        );
                    }
                }
            }
        }
        Ok(env)
    }

    /// Ends everything, and forgets the data.
    pub(crate) fn down(mut self) -> Result<()> {
        self.end()?;
        fs::remove_dir_all(&self.dir)
            .with_context(|| format!("{} is not free after the fleet ended", self.dir.display()))
    }

    fn end(&mut self) -> Result<()> {
        let pid = i32::try_from(self.daemon.id()).context("a process has a number")?;
        let pid = rustix::process::Pid::from_raw(pid).context("a process has a number")?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let until = Instant::now() + ENDS_WITHIN;
        loop {
            if let Some(status) = self.daemon.try_wait()? {
                if !status.success() {
                    bail!(
                        "the fleet ended with {status}:\n{}",
                        tail(&self.dir.join("dev.log"))
                    );
                }
                return Ok(());
            }
            if Instant::now() > until {
                let _ = self.daemon.kill();
                bail!("the fleet did not end:\n{}", tail(&self.dir.join("dev.log")));
            }
            #[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.end();
        }
    }
}
