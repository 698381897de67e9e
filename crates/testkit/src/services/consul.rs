//! A Consul of a test's own: one agent that is its own server, in memory, on free ports of loopback, ended with the process that started
//! it.
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::program::{Program, find, free_ports};

/// Names the program, where it is not the one that `cargo xtask services` builds.
pub const VARIABLE: &str = "ATOLL_TEST_CONSUL";
/// The token that may do everything, of an agent with access control.
pub const TOKEN: &str = "5d1f0c50-4a77-4b9c-9a1f-0d6f6a3b7e11";

/// What is unusual about an agent.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Nobody may do anything without [`TOKEN`].
    pub access_control: bool,
    /// It is spoken to by TLS alone: certificate and key of 127.0.0.1, and the authority that clients' certificates must be of, in PEM.
    pub tls: Option<(String, String, Option<String>)>,
}

/// A running, or stopped, agent.
pub struct Consul {
    program: Program,
    directory: TempDir,
    port: u16,
    is_tls: bool,
}

impl Consul {
    /// Whether there is a program to start; says loudly where there is none, so that a test can return.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub fn is_installed() -> bool {
        match find("consul", VARIABLE) {
            Ok(_) => true,
            Err(error) => {
                eprintln!("SKIPPED: {error:#}");
                false
            }
        }
    }

    /// Starts one. Blocks for some seconds.
    ///
    /// # Errors
    /// Where Consul is not there (see [`Consul::is_installed`]), or does not start: with the end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with(&Setup::default())
    }

    /// Starts one that is unusual.
    ///
    /// # Errors
    /// As [`Consul::start`].
    pub fn start_with(setup: &Setup) -> Result<Self> {
        let path = find("consul", VARIABLE)?;
        // Another process may take a port between its choice and the start.
        for _ in 0..4 {
            if let Ok(consul) = Self::try_start(path.clone(), setup) {
                return Ok(consul);
            }
        }
        Self::try_start(path, setup)
    }

    fn try_start(path: PathBuf, setup: &Setup) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("atoll-consul-").tempdir()?;
        let [port, server, lan, wan] = free_ports()?;
        let is_tls = setup.tls.is_some();
        let mut config = json!({
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "disable_update_check": true,
            "log_level": "warn",
            "ports": {
                "http": if is_tls { -1 } else { i32::from(port) },
                "https": if is_tls { i32::from(port) } else { -1 },
                "grpc": -1,
                "grpc_tls": -1,
                "dns": -1,
                "server": server,
                "serf_lan": lan,
                "serf_wan": wan,
            },
            "performance": { "raft_multiplier": 1 },
        });
        if setup.access_control {
            config["acl"] = json!({
                "enabled": true,
                "default_policy": "deny",
                "tokens": { "initial_management": TOKEN, "agent": TOKEN },
            });
        }
        if let Some((certificate, key, authority)) = &setup.tls {
            let write = |name: &str, text: &str| -> Result<Value> {
                let path = directory.path().join(name);
                std::fs::write(&path, text)?;
                Ok(path.display().to_string().into())
            };
            config["tls"]["https"] = json!({
                "cert_file": write("cert.pem", certificate)?,
                "key_file": write("key.pem", key)?,
                "verify_incoming": authority.is_some(),
            });
            if let Some(authority) = authority {
                config["tls"]["https"]["ca_file"] = write("ca.pem", authority)?;
            }
        }
        let file = directory.path().join("agent.json");
        std::fs::write(&file, config.to_string())?;
        let arguments = vec!["agent".into(), "-dev".into(), "-config-file".into(), file.into()];
        let program = Program::new(path, arguments, directory.path())?;
        let mut consul = Self {
            program,
            directory,
            port,
            is_tls,
        };
        consul.start_again()?;
        Ok(consul)
    }

    /// Where it is: `http://127.0.0.1:…`.
    #[must_use]
    pub fn address(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Its directory, which goes with it.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Ends it as a power failure does. It has everything in memory: all of it is lost.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Starts it again after [`Consul::kill`], on the same ports, knowing nothing.
    ///
    /// # Errors
    /// Where it does not start: with the end of its log.
    pub fn start_again(&mut self) -> Result<()> {
        let (port, is_tls) = (self.port, self.is_tls);
        self.program
            .start(|| if is_tls { listens(port) } else { leads(port) })
    }

    /// Lets it stand still: it takes connections, and answers nothing.
    ///
    /// # Errors
    /// Where the system does not.
    pub fn stand_still(&self) -> Result<()> {
        self.program.stand_still()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where the system does not.
    pub fn go_on(&self) -> Result<()> {
        self.program.go_on()
    }
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Whether it has a leader, and has told itself of itself.
fn leads(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut line = TcpStream::connect(("127.0.0.1", port))?;
        line.set_read_timeout(Some(Duration::from_secs(2)))?;
        let head =
            format!("GET /v1/catalog/nodes HTTP/1.0\r\nHost: 127.0.0.1\r\nX-Consul-Token: {TOKEN}\r\n\r\n");
        line.write_all(head.as_bytes())?;
        let mut answer = String::new();
        line.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.0 200") && answer.contains("127.0.0.1"))
}
