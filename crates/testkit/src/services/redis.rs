//! A Redis of a test's own, on a free port of loopback, in a temporary directory, ended with the process that started it.
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use super::program::{Program, find, free_ports};

/// Names the program, where it is not on the path.
pub const VARIABLE: &str = "ATOLL_TEST_REDIS";
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What is unusual about a server.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// What clients have to know.
    pub password: Option<String>,
    /// It is spoken to by TLS alone: certificate and key of 127.0.0.1, and the authority that clients' certificates must be of, in PEM.
    pub tls: Option<(String, String, Option<String>)>,
}

/// A running, or stopped, server. It keeps everything in memory: what is not [saved](Redis::save) is lost with it.
pub struct Redis {
    program: Program,
    directory: TempDir,
    port: u16,
    setup: Setup,
}

impl Redis {
    /// Whether there is a program to start; says loudly where there is none, so that a test can return.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub fn is_installed() -> bool {
        match find("redis-server", VARIABLE) {
            Ok(_) => true,
            Err(error) => {
                eprintln!("SKIPPED: {error:#}: Debian's package is redis-server");
                false
            }
        }
    }

    /// Starts one. Blocks for some tens of milliseconds.
    ///
    /// # Errors
    /// Where Redis is not there (see [`Redis::is_installed`]), or does not start: with the end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with(Setup::default())
    }

    /// Starts one that is unusual.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub fn start_with(setup: Setup) -> Result<Self> {
        let path = find("redis-server", VARIABLE)?;
        // Another process may take a port between its choice and the start.
        for _ in 0..4 {
            if let Ok(redis) = Self::try_start(path.clone(), setup.clone()) {
                return Ok(redis);
            }
        }
        Self::try_start(path, setup)
    }

    fn try_start(path: PathBuf, setup: Setup) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("atoll-redis-").tempdir()?;
        let [port] = free_ports()?;
        let number = port.to_string();
        let (plain, tls) = if setup.tls.is_some() {
            ("0", number.as_str())
        } else {
            (number.as_str(), "0")
        };
        let mut arguments: Vec<String> = Vec::new();
        let mut set = |name: &str, value: &str| arguments.extend([format!("--{name}"), value.to_owned()]);
        set("bind", "127.0.0.1");
        set("port", plain);
        set("dir", &directory.path().display().to_string());
        set("save", "");
        set("appendonly", "no");
        set("daemonize", "no");
        if let Some(password) = &setup.password {
            set("requirepass", password);
        }
        if let Some((certificate, key, authority)) = &setup.tls {
            let write = |name: &str, text: &str| -> Result<String> {
                let path = directory.path().join(name);
                std::fs::write(&path, text)?;
                Ok(path.display().to_string())
            };
            set("tls-port", tls);
            set("tls-cert-file", &write("cert.pem", certificate)?);
            set("tls-key-file", &write("key.pem", key)?);
            let clients = if authority.is_some() { "yes" } else { "no" };
            set("tls-auth-clients", clients);
            let authority = authority.as_ref().unwrap_or(certificate);
            set("tls-ca-cert-file", &write("ca.pem", authority)?);
        }
        let arguments = arguments.into_iter().map(Into::into).collect();
        let program = Program::new(path, arguments, directory.path())?;
        let mut redis = Self {
            program,
            directory,
            port,
            setup,
        };
        redis.start_again()?;
        Ok(redis)
    }

    /// Where it is, with the password: `redis://…` or `rediss://…`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.setup.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        let password = self.setup.password.as_ref();
        let user = password.map_or_else(String::new, |password| format!(":{password}@"));
        format!("{scheme}://{user}127.0.0.1:{}", self.port)
    }

    /// Its directory, which goes with it.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Asks it something, as words of a line, and returns the answer as it came: `+OK`, `:3`, or the text. Not with TLS.
    ///
    /// # Errors
    /// Where it does not answer, or with an error.
    pub fn ask(&self, words: &str) -> Result<String> {
        ask(self.port, self.setup.password.as_deref(), words)
    }

    /// Takes all its data away.
    ///
    /// # Errors
    /// As [`Redis::ask`].
    pub fn flush(&self) -> Result<()> {
        self.ask("FLUSHALL").map(|_| ())
    }

    /// Writes its data down: after the next [start](Redis::start_again) it has what it has now.
    ///
    /// # Errors
    /// As [`Redis::ask`].
    pub fn save(&self) -> Result<()> {
        self.ask("SAVE").map(|_| ())
    }

    /// Lets it stand still: it takes connections, and answers nothing.
    ///
    /// # Errors
    /// Where the system does not.
    pub fn pause(&self) -> Result<()> {
        self.program.stand_still()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where the system does not.
    pub fn go_on(&self) -> Result<()> {
        self.program.go_on()
    }

    /// Ends it as a power failure does.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Starts it again after [`Redis::kill`], on the same port, with what was saved.
    ///
    /// # Errors
    /// Where it does not start: with the end of its log.
    pub fn start_again(&mut self) -> Result<()> {
        let (port, is_tls) = (self.port, self.setup.tls.is_some());
        let password = self.setup.password.clone();
        self.program.start(|| {
            if is_tls {
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            } else {
                ask(port, password.as_deref(), "PING").is_ok()
            }
        })
    }

    /// Ends it and starts it again without any data.
    ///
    /// # Errors
    /// As [`Redis::start_again`].
    pub fn lose_everything(&mut self) -> Result<()> {
        self.kill();
        let saved = self.directory.path().join("dump.rdb");
        if saved.exists() {
            std::fs::remove_file(saved)?;
        }
        self.start_again()
    }
}

fn ask(port: u16, password: Option<&str>, words: &str) -> Result<String> {
    let mut line = TcpStream::connect(("127.0.0.1", port))?;
    line.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut answers = BufReader::new(line.try_clone()?);
    if let Some(password) = password {
        write!(line, "AUTH {password}\r\n")?;
        answer(&mut answers)?;
    }
    write!(line, "{words}\r\n")?;
    answer(&mut answers)
}

/// One answer that is no list, as the [protocol](https://redis.io/docs/latest/develop/reference/protocol-spec/) has it.
fn answer(answers: &mut BufReader<TcpStream>) -> Result<String> {
    let mut head = String::new();
    answers.read_line(&mut head)?;
    let head = head.trim_end();
    if let Some(error) = head.strip_prefix('-') {
        bail!("Redis says {error}");
    }
    let Some(length) = head.strip_prefix('$') else {
        return Ok(head.to_owned());
    };
    let length: usize = length.parse().context("there is no such thing")?;
    let mut text = vec![0; length + 2];
    answers.read_exact(&mut text)?;
    text.truncate(length);
    Ok(String::from_utf8_lossy(&text).into_owned())
}
