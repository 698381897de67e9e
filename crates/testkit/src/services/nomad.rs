//! A Nomad of a test's own: one agent that is server and client, on free ports of loopback, ended with the process that started it.
//! Nothing brings the program: a machine has one, or the tests that need it are skipped.
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::program::{Program, find, free_ports};

/// Names the program, where it is not on the path.
pub const VARIABLE: &str = "ATOLL_TEST_NOMAD";

/// A running, or stopped, agent.
pub struct Nomad {
    program: Program,
    _directory: TempDir,
    path: PathBuf,
    port: u16,
}

impl Nomad {
    /// Whether there is a program to start; says loudly where there is none, so that a test can return.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub fn is_installed() -> bool {
        match find("nomad", VARIABLE) {
            Ok(_) => true,
            Err(error) => {
                eprintln!("SKIPPED: {error:#}");
                false
            }
        }
    }

    /// Starts one, which runs tasks by `raw_exec`. Blocks for some seconds; wants root.
    ///
    /// # Errors
    /// Where Nomad is not there (see [`Nomad::is_installed`]), or does not start: with the end of its log.
    pub fn start() -> Result<Self> {
        let path = find("nomad", VARIABLE)?;
        let directory = tempfile::Builder::new().prefix("atoll-nomad-").tempdir()?;
        let [port, rpc, serf] = free_ports()?;
        let config = json!({
            "bind_addr": "127.0.0.1",
            "disable_update_check": true,
            "log_level": "warn",
            "ports": { "http": port, "rpc": rpc, "serf": serf },
            "data_dir": directory.path().join("data"),
            "server": { "enabled": true, "bootstrap_expect": 1 },
            "client": { "enabled": true, "cpu_total_compute": 8000 },
            "plugin": [{ "raw_exec": [{ "config": [{ "enabled": true }] }] }],
            "consul": { "auto_advertise": false, "client_auto_join": false, "server_auto_join": false },
        });
        let file = directory.path().join("agent.json");
        std::fs::write(&file, config.to_string())?;
        let arguments = vec!["agent".into(), "-dev".into(), "-config".into(), file.into()];
        let program = Program::new(path.clone(), arguments, directory.path())?;
        let mut nomad = Self {
            program,
            _directory: directory,
            path,
            port,
        };
        nomad.program.start(|| is_ready(port))?;
        Ok(nomad)
    }

    /// Where it is: `http://127.0.0.1:…`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Has it say whether a file is a job that it would take.
    ///
    /// # Errors
    /// It is none: with what Nomad says.
    pub fn validate(&self, job: &Path) -> Result<()> {
        let output = Command::new(&self.path)
            .args(["job", "validate", "-address", &self.address()])
            .arg(job)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "{} is no job: {}{}",
            job.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Nomad {
    fn drop(&mut self) {
        // In development mode it ends its tasks when it is asked to end.
        let _ = self.program.stop();
    }
}

/// Whether it has a leader, and a machine that takes work.
fn is_ready(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut line = TcpStream::connect(("127.0.0.1", port))?;
        line.set_read_timeout(Some(Duration::from_secs(2)))?;
        line.write_all(b"GET /v1/nodes HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
        let mut answer = String::new();
        line.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"Status\":\"ready\""))
}
