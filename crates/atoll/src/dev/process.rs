//! Processes that are started again when they end.
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::layout::Layout;
use crate::settings::cluster::Role;

/// What ended is started again after this time, so that one that cannot start does not spin.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// What was asked to end gets this long.
const ENDS_WITHIN: Duration = Duration::from_secs(40);
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_MAX: usize = 64 << 10;

/// Who runs a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl User {
    /// One of this machine's.
    pub(super) fn named(name: &str) -> Result<Self> {
        let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name));
        let fields: Vec<_> = line
            .with_context(|| format!("there is no user {name}"))?
            .split(':')
            .collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse().ok());
        match (number(2), number(3)) {
            (Some(uid), Some(gid)) => Ok(Self { uid, gid }),
            _ => bail!("/etc/passwd does not say what user {name} is"),
        }
    }
}

/// How a process is started.
pub(super) struct Spawn {
    pub(super) name: String,
    pub(super) argv: Vec<String>,
    pub(super) user: Option<User>,
    pub(super) log: PathBuf,
}

impl Spawn {
    fn run(&self) -> Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A signal of the terminal is for the parent, which ends its children in their order.
            .process_group(0);
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid).current_dir("/");
        }
        command
            .spawn()
            .with_context(|| format!("cannot start {}", self.argv[0]))
    }
}

/// Who runs, by name.
type Pids = Arc<Mutex<BTreeMap<String, u32>>>;

/// All processes.
pub(super) struct Processes {
    running: Vec<(String, CancellationToken, JoinHandle<()>)>,
    pids: Pids,
    /// Where tests read who runs.
    told: Arc<PathBuf>,
}

fn tell(pids: &Pids, told: &Path) {
    let pids = pids.lock().expect("nothing panics while it holds the numbers");
    let partial = told.with_extension("new");
    let text = serde_json::to_vec(&*pids).expect("these are strings and numbers");
    if let Err(error) = fs::write(&partial, text).and_then(|()| fs::rename(&partial, told)) {
        tracing::warn!(%error, "who runs is not told");
    }
}

impl Processes {
    pub(super) fn new(told: PathBuf) -> Self {
        Self {
            running: Vec::new(),
            pids: Pids::default(),
            told: Arc::new(told),
        }
    }

    /// Starts one, and again whenever it ends.
    pub(super) async fn start(&mut self, spawn: Spawn) -> Result<()> {
        let child = spawn.run()?;
        let (stop, name) = (CancellationToken::new(), spawn.name.clone());
        let (pids, told) = (Arc::clone(&self.pids), Arc::clone(&self.told));
        note(&pids, &told, &spawn.name, &child);
        let task = tokio::spawn(keep(spawn, child, pids, told, stop.clone()));
        self.running.push((name, stop, task));
        Ok(())
    }

    /// Ends all: the control plane first, then the nodes with all that they hold, then what they stand on.
    pub(super) async fn end(self, layout: &Layout) -> Result<()> {
        let role_of = |name: &str| {
            let member = layout.members.iter().find(|member| member.name == name);
            member.map(|member| member.role)
        };
        let (services, members): (Vec<_>, Vec<_>) = self
            .running
            .into_iter()
            .partition(|(name, ..)| role_of(name).is_none());
        let mut outcome = Ok(());
        let (nodes, control): (Vec<_>, Vec<_>) = members
            .into_iter()
            .partition(|(name, ..)| role_of(name) == Some(Role::Node));
        stop_all(control).await;
        stop_all(nodes).await;
        let own = std::env::current_exe()?;
        for member in layout.members.iter().filter(|member| member.role == Role::Node) {
            let settings = member.settings.display().to_string();
            let netns = member
                .netns
                .iter()
                .map(|netns| format!("--net=/run/netns/{netns}"));
            let mut argv: Vec<String> = netns.collect();
            argv.push(own.display().to_string());
            argv.extend(["down", "--config", &settings, "--data-dir", &member.data()].map(str::to_owned));
            let argv: Vec<_> = argv.iter().map(String::as_str).collect();
            if let Err(error) = run_once(Path::new("nsenter"), &argv).await {
                outcome = outcome.and(Err(error));
            }
        }
        stop_all(services).await;
        outcome
    }
}

async fn stop_all(running: Vec<(String, CancellationToken, JoinHandle<()>)>) {
    for (_, stop, _) in &running {
        stop.cancel();
    }
    for (_, _, task) in running {
        let _ = task.await;
    }
}

fn note(pids: &Pids, told: &Path, name: &str, child: &Child) {
    let mut all = pids.lock().expect("nothing panics while it holds the numbers");
    match child.id() {
        Some(pid) => all.insert(name.to_owned(), pid),
        None => all.remove(name),
    };
    drop(all);
    tell(pids, told);
}

async fn keep(spawn: Spawn, mut child: Child, pids: Pids, told: Arc<PathBuf>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            status = child.wait() => {
                tracing::warn!(name = spawn.name, ?status, "a process ended, and is started again");
            }
        }
        loop {
            if stop
                .run_until_cancelled(tokio::time::sleep(AGAIN_AFTER))
                .await
                .is_none()
            {
                return;
            }
            match spawn.run() {
                Ok(again) => {
                    child = again;
                    break;
                }
                Err(error) => tracing::error!(name = spawn.name, "{error:#}"),
            }
        }
        note(&pids, &told, &spawn.name, &child);
    }
    if let Some(pid) = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
    {
        let _ = kill_process(pid, Signal::INT);
    }
    if tokio::time::timeout(ENDS_WITHIN, child.wait()).await.is_err() {
        tracing::warn!(name = spawn.name, "a process does not end, and is killed");
        let _ = child.kill().await;
    }
}

/// Runs a program to its end; what it prints.
pub(super) async fn run_once(program: &Path, arguments: &[&str]) -> Result<String> {
    output(program, arguments, Command::new(program)).await
}

/// Runs a program to its end as another user.
pub(super) async fn run_as(program: &Path, arguments: &[&str], user: User) -> Result<String> {
    let mut command = Command::new(program);
    command.uid(user.uid).gid(user.gid).current_dir("/");
    output(program, arguments, command).await
}

async fn output(program: &Path, arguments: &[&str], mut command: Command) -> Result<String> {
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!(
            "{} {} ended with {}: {}",
            program.display(),
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether a process says that it is ready.
pub(super) async fn is_ready(admin: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        stream
            .write_all(b"GET /health/ready HTTP/1.1\r\nHost: atoll\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX as u64).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 204"))
    };
    matches!(tokio::time::timeout(ANSWERS_WITHIN, ask).await, Ok(Ok(true)))
}
