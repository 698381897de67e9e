//! A PostgreSQL of a test's own: in a temporary directory, on a free port of loopback, ended with the process that started it.
//!
//! ```text
//! Postgres ── Child    the server; killed, restarted and stopped by the test
//!     └────── Guard    a shell that waits for the end of this process, and then ends the server and removes its directory
//! ```
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

/// Names the directory of PostgreSQL's programs, where it is not one of the usual.
pub const BIN_VARIABLE: &str = "ATOLL_TEST_POSTGRES_BIN";
/// Who is asked for in the URLs: a superuser.
pub const USER: &str = "atoll";
/// Its password. It looks like one, so that tests find it where it must not be.
pub const PASSWORD: &str = "hunter2-of-the-tests";

/// A start takes a second, and after a crash some more; this is many times that.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether the server is there.
const GLANCE: Duration = Duration::from_millis(10);
/// Another process may take the port between its choice and the start.
const PORTS_MAX: usize = 5;

/// What is unusual about a server.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Addresses beside 127.0.0.1 on which it listens; from them, everybody with the password is let in.
    pub listen: Vec<IpAddr>,
    /// Lines of `postgresql.conf`.
    pub settings: Vec<(String, String)>,
    /// Files in the data directory, which the server alone may read: name and content.
    pub files: Vec<(String, Vec<u8>)>,
    /// Makes the database durable as in production, for figures; otherwise nothing is synchronised.
    pub durable: bool,
}

/// A running, or stopped, PostgreSQL.
pub struct Postgres {
    programs: PathBuf,
    directory: TempDir,
    owner: Option<(u32, u32)>,
    port: u16,
    server: Option<Child>,
    guard: Guard,
}

impl Postgres {
    /// Starts one.
    ///
    /// # Errors
    /// Where PostgreSQL is not installed (see [`Postgres::is_installed`]), or does not start: with the end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with(&Setup::default())
    }

    /// Starts one that is unusual. Blocks for about a second.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_with(setup: &Setup) -> Result<Self> {
        let mut postgres = Self::nothing()?;
        postgres.initialise(setup)?;
        postgres.launch_somewhere()?;
        Ok(postgres)
    }

    /// Starts another server from a base backup of this one: a standby that follows it, or one that goes its own way.
    ///
    /// # Errors
    /// Where the backup fails, or the other server does not start.
    pub fn copy(&self, as_standby: bool) -> Result<Self> {
        let mut copy = Self::nothing()?;
        let mut backup = copy.program("pg_basebackup");
        backup
            .args(["-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string()])
            .args(["-X", "stream", "-c", "fast", "--no-sync", "-D"])
            .arg(copy.data())
            .env("PGPASSWORD", PASSWORD);
        if as_standby {
            backup.arg("-R");
        }
        succeed(&mut backup)?;
        let sockets = format!("unix_socket_directories = '{}'", copy.directory.path().display());
        append(&copy.data().join("postgresql.conf"), &[sockets])?;
        copy.launch_somewhere()?;
        Ok(copy)
    }

    /// Makes a primary of a standby.
    ///
    /// # Errors
    /// Where it is none.
    pub fn promote(&self) -> Result<()> {
        let mut promote = self.program("pg_ctl");
        succeed(promote.args(["promote", "-w", "-D"]).arg(self.data())).map(drop)
    }

    /// A directory of its own, and nothing in it.
    fn nothing() -> Result<Self> {
        let programs = programs()?;
        let owner = owner()?;
        let directory = tempfile::Builder::new().prefix("atoll-postgres-").tempdir()?;
        if let Some((uid, gid)) = owner {
            chown(directory.path(), Some(uid), Some(gid)).context("the directory cannot be given away")?;
        }
        let guard = Guard::start(directory.path())?;
        Ok(Self {
            programs,
            directory,
            owner,
            port: 0,
            server: None,
            guard,
        })
    }

    fn launch_somewhere(&mut self) -> Result<()> {
        for _ in 1..PORTS_MAX {
            self.port = free_port()?;
            if self.launch().is_ok() {
                return Ok(());
            }
        }
        self.port = free_port()?;
        self.launch()
    }

    /// Whether there are programs to start; says loudly where there are none, so that a test can return.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub fn is_installed() -> bool {
        match programs() {
            Ok(_) => true,
            Err(error) => {
                eprintln!("SKIPPED: {error:#}");
                false
            }
        }
    }

    /// The URL of a database on this server, with user and password.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.url_at(IpAddr::V4(Ipv4Addr::LOCALHOST), database)
    }

    /// The same, by another of the addresses that it listens on.
    #[must_use]
    pub fn url_at(&self, address: IpAddr, database: &str) -> String {
        let address = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        format!("postgres://{USER}:{PASSWORD}@{address}:{}/{database}", self.port)
    }

    /// Its port, which stays over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its data lies.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The process of the server, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Makes an empty database, or one like `template`, to which nobody may be connected.
    ///
    /// # Errors
    /// Where the server does not.
    pub fn create_database(&self, name: &str, template: Option<&str>) -> Result<()> {
        let mut arguments = vec![name];
        arguments.extend(template.iter().flat_map(|template| ["-T", template]));
        self.run("createdb", &arguments).map(drop)
    }

    /// Removes a database, and ends whoever is connected to it.
    ///
    /// # Errors
    /// Where the server does not.
    pub fn drop_database(&self, name: &str) -> Result<()> {
        self.run("dropdb", &["--force", name]).map(drop)
    }

    /// Runs one of PostgreSQL's client programs against this server, as its superuser; returns what it printed.
    ///
    /// # Errors
    /// Where it fails: with what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(["-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string()])
            .args(arguments)
            .env("PGPASSWORD", PASSWORD)
            .stdin(Stdio::null());
        succeed(&mut command)
    }

    /// Ends it as an operator does: whoever is connected is cut off, and what was committed is written.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        signal("INT", server.id())?;
        let deadline = Instant::now() + PATIENCE;
        while server.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "PostgreSQL does not end");
            pause();
        }
        self.server = None;
        self.guard.watch(None)
    }

    /// Ends it as a power failure does, but for the disk.
    ///
    /// # Errors
    /// Where the system does not.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            server.wait()?;
            self.guard.watch(None)?;
        }
        Ok(())
    }

    /// Starts it again after [`Postgres::stop`] or [`Postgres::kill`], on the same port with the same data.
    ///
    /// # Errors
    /// Where it does not start: with the end of its log.
    pub fn start_again(&mut self) -> Result<()> {
        if self.server.is_some() {
            return Ok(());
        }
        // Processes of a server that was killed hold its memory until they notice.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.launch() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => pause(),
            }
        }
    }

    /// Stops and starts it.
    ///
    /// # Errors
    /// As for both.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Makes the data directory.
    fn initialise(&self, setup: &Setup) -> Result<()> {
        let password = self.directory.path().join("password");
        self.write(&password, PASSWORD.as_bytes())?;
        let mut initdb = self.program("initdb");
        initdb
            .arg("-D")
            .arg(self.data())
            .args(["-U", USER, "-A", "scram-sha-256", "--pwfile"])
            .arg(&password)
            .args(["--encoding=UTF8", "--locale=C", "--no-sync"]);
        succeed(&mut initdb)?;
        for (name, content) in &setup.files {
            self.write(&self.data().join(name), content)?;
        }
        let mut listen = vec!["127.0.0.1".to_owned()];
        listen.extend(setup.listen.iter().map(IpAddr::to_string));
        let mut lines = vec![
            format!("listen_addresses = '{}'", listen.join(",")),
            format!("unix_socket_directories = '{}'", self.directory.path().display()),
            "max_connections = 200".to_owned(),
            "wal_level = replica".to_owned(),
            "max_wal_senders = 4".to_owned(),
        ];
        if !setup.durable {
            lines.extend(["fsync = off", "full_page_writes = off"].map(str::to_owned));
        }
        let settings = &setup.settings;
        lines.extend(
            settings
                .iter()
                .map(|(name, value)| format!("{name} = '{}'", value.replace('\'', "''"))),
        );
        append(&self.data().join("postgresql.conf"), &lines)?;
        if !setup.listen.is_empty() {
            let everybody = ["0.0.0.0/0", "::/0"].map(|net| format!("host all all {net} scram-sha-256"));
            append(&self.data().join("pg_hba.conf"), &everybody)?;
        }
        Ok(())
    }

    fn launch(&mut self) -> Result<()> {
        let log = self.directory.path().join("log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut server = self
            .program("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()])
            .stdout(output.try_clone()?)
            .stderr(output)
            // An interrupt of the terminal is meant for the tests, which then end it.
            .process_group(0)
            .spawn()
            .context("postgres cannot be run")?;
        self.guard.watch(Some(server.id()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = server.try_wait()? {
                self.guard.watch(None)?;
                bail!("PostgreSQL ended with {status}: {}", tail(&log));
            }
            if self.is_ready() {
                self.server = Some(server);
                return Ok(());
            }
            if Instant::now() >= deadline {
                server.kill()?;
                server.wait()?;
                self.guard.watch(None)?;
                bail!("PostgreSQL does not become ready: {}", tail(&log));
            }
            pause();
        }
    }

    fn is_ready(&self) -> bool {
        let port = self.port.to_string();
        let asked = Command::new(self.programs.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &port, "-t", "1"])
            .stdin(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    }

    /// One of the programs that must not run as root.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// A file that the server alone may read.
    fn write(&self, path: &Path, content: &[u8]) -> Result<()> {
        std::fs::write(path, content).with_context(|| format!("{path:?} cannot be written"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        if let Some((uid, gid)) = self.owner {
            chown(path, Some(uid), Some(gid))?;
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A shell that is told which process to end when nobody is there any more to tell it anything.
struct Guard {
    shell: Child,
    line: Option<ChildStdin>,
}

/// Reads numbers of processes, of which the last counts; 0 is none. SIGQUIT ends PostgreSQL and all its processes at once.
const GUARD: &str = r#"
pid=0
while read -r line; do pid=$line; done
if [ "$pid" != 0 ]; then
    kill -QUIT "$pid" 2>/dev/null
    tries=0
    while kill -0 "$pid" 2>/dev/null && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
    kill -KILL "$pid" 2>/dev/null
fi
rm -rf "$1"
"#;

impl Guard {
    fn start(directory: &Path) -> Result<Self> {
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
        Ok(Self { shell, line })
    }

    fn watch(&mut self, pid: Option<u32>) -> Result<()> {
        let line = self.line.as_mut().context("the guard is gone")?;
        writeln!(line, "{}", pid.unwrap_or_default()).context("the guard is gone")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.line = None;
        let _ = self.shell.wait();
    }
}

/// Runs a program to its end; returns what it printed.
fn succeed(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    ensure!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// Where PostgreSQL's programs are: where the variable says, in the newest of Debian's directories, or on the path.
fn programs() -> Result<PathBuf> {
    let mut places = Vec::new();
    if let Some(named) = std::env::var_os(BIN_VARIABLE) {
        places.push(PathBuf::from(named));
    } else {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let mut versions: Vec<(u32, PathBuf)> = versions
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let version = entry.file_name().to_str()?.parse().ok()?;
                Some((version, entry.path().join("bin")))
            })
            .collect();
        versions.sort();
        places.extend(versions.into_iter().rev().map(|(_, place)| place));
        places.extend(
            std::env::var_os("PATH")
                .iter()
                .flat_map(std::env::split_paths)
                .collect::<Vec<_>>(),
        );
    }
    places
        .into_iter()
        .find(|place| {
            ["postgres", "initdb", "createdb"]
                .iter()
                .all(|name| place.join(name).is_file())
        })
        .with_context(|| {
            format!(
                "PostgreSQL is not installed: install the package postgresql, or let {BIN_VARIABLE} name the directory of \
                 its programs"
            )
        })
}

/// As whom the server runs: it refuses to be root. `None` where this process is not.
fn owner() -> Result<Option<(u32, u32)>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .context("no Uid")?;
    if uid.split_whitespace().nth(1) != Some("0") {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        accounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [account, _, uid, gid, ..] = fields[..] else {
                return None;
            };
            (account == name).then_some((uid.parse().ok()?, gid.parse().ok()?))
        })
    };
    let found = find("postgres").or_else(|| find("nobody"));
    Ok(Some(found.context(
        "neither postgres nor nobody is an account of this machine, and PostgreSQL does not run as root",
    )?))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

fn signal(name: &str, pid: u32) -> Result<()> {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .context("kill cannot be run")?;
    ensure!(status.success(), "process {pid} cannot be sent {name}");
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "this blocks its thread by contract: the server is waited for"
)]
fn pause() {
    std::thread::sleep(GLANCE);
}

fn append(path: &Path, lines: &[String]) -> Result<()> {
    let mut file = File::options().append(true).open(path)?;
    writeln!(file, "\n{}", lines.join("\n")).with_context(|| format!("{path:?} cannot be written"))
}

/// The end of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
