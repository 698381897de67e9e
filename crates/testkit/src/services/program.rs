//! A program that ends with the process that started it, however that ends.
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// A start takes seconds; this is many times that.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads numbers of processes, of which the last counts; 0 is none. When nobody is left to say more, that one and its children are
/// ended, and the directory is removed.
const GUARD: &str = r#"
pid=0
while read -r line; do pid=$line; done
if [ "$pid" != 0 ]; then
    kill -s CONT -- "-$pid" 2>/dev/null
    kill -s KILL -- "-$pid" 2>/dev/null
fi
rm -rf "$1"
"#;

/// A process in a group of its own, and a shell that ends it when this process has ended.
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
    child: Option<Child>,
    shell: Child,
    line: Option<ChildStdin>,
}

impl Program {
    /// A program that is not started yet; `directory` is removed when this process has ended without doing so.
    pub(super) fn new(path: PathBuf, arguments: Vec<OsString>, directory: &Path) -> Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args([OsStr::new("-c"), OsStr::new(GUARD), OsStr::new("guard")])
            .arg(directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("/bin/sh cannot be run")?;
        let line = shell.stdin.take();
        Ok(Self {
            path,
            arguments,
            log: directory.join("log"),
            child: None,
            shell,
            line,
        })
    }

    /// Starts it, and waits until it answers.
    pub(super) fn start(&mut self, answers: impl Fn() -> bool) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.path.display());
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.path)
            .args(&self.arguments)
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // An interrupt of the terminal is meant for the tests, which then end it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} cannot be run", self.path.display()))?;
        let pid = child.id();
        self.child = Some(child);
        self.watch(pid)?;
        let deadline = Instant::now() + PATIENCE;
        while !answers() {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().transpose())
                .transpose()?;
            if let Some(status) = ended {
                self.child = None;
                self.watch(0)?;
                bail!("{} ended with {status}: {}", self.path.display(), self.tail());
            }
            if Instant::now() >= deadline {
                self.kill();
                bail!("{} does not answer: {}", self.path.display(), self.tail());
            }
            pause();
        }
        Ok(())
    }

    /// Ends it and its children as a power failure does.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = signal("KILL", child.id());
            // It has ended already, or the group could not be reached.
            let _ = child.kill();
            let _ = child.wait();
            let _ = self.watch(0);
        }
    }

    /// Asks it to end, and waits until it has.
    pub(super) fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        signal("INT", child.id())?;
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                self.child = Some(child);
                self.kill();
                bail!("{} does not end", self.path.display());
            }
            pause();
        }
        self.watch(0)
    }

    /// Lets it stand still, as a machine that is overloaded does: it takes connections, and answers nothing.
    pub(super) fn stand_still(&self) -> Result<()> {
        self.child
            .as_ref()
            .map_or(Ok(()), |child| signal("STOP", child.id()))
    }

    /// Lets it go on.
    pub(super) fn go_on(&self) -> Result<()> {
        self.child
            .as_ref()
            .map_or(Ok(()), |child| signal("CONT", child.id()))
    }

    fn watch(&mut self, pid: u32) -> Result<()> {
        let line = self.line.as_mut().context("the guard is gone")?;
        writeln!(line, "{pid}").context("the guard is gone")
    }

    fn tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(2000)..]).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        self.line = None;
        let _ = self.shell.wait();
    }
}

/// Sends a signal to the group of a process.
fn signal(name: &str, pid: u32) -> Result<()> {
    let status = Command::new("/bin/sh")
        .args(["-c", &format!("kill -s {name} -- -{pid}")])
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "process {pid} cannot be sent {name}");
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test that starts a service waits for it"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

/// Ports of loopback that nobody has now, all different.
pub(super) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// A program of the tests' own: named by a variable, or built by `cargo xtask services`, or on the path.
pub(super) fn find(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        let named = PathBuf::from(named);
        ensure!(
            named.is_file(),
            "{variable} names {}, which is not there",
            named.display()
        );
        return Ok(named);
    }
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/services");
    let mut built: Vec<(std::time::SystemTime, PathBuf)> = std::fs::read_dir(cache)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path().join(name);
            let modified = path.metadata().ok()?.modified().ok()?;
            Some((modified, path))
        })
        .collect();
    built.sort();
    if let Some((_, path)) = built.pop() {
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
        .with_context(|| {
            format!(
                "there is no {name}: `cargo xtask services` says how to get it, and {variable} may name one"
            )
        })
}
