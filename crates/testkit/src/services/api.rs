//! An API of Atoll alone: a fleet of one process, over a PostgreSQL and a Redis of its own. Nobody acts on what its database holds.
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::postgres::Postgres;
use super::program::{Program, free_ports};
use super::redis::Redis;

/// Its database, and its name as a fleet.
const NAME: &str = "alone";

/// A running API, with a key for it.
pub struct Api {
    // In the order in which they end.
    _program: Program,
    _redis: Redis,
    _postgres: Postgres,
    _directory: TempDir,
    port: u16,
    key: String,
}

impl Api {
    /// Starts one of the program `atoll`, over a database that `fill` was told the URL of: it has a schema, and the default team.
    ///
    /// # Errors
    /// Where PostgreSQL or Redis is not there, `fill` fails, or the API does not start: with the end of its log.
    pub fn start(atoll: &Path, fill: impl FnOnce(&str) -> Result<()>) -> Result<Self> {
        let (postgres, redis) = (Postgres::start()?, Redis::start()?);
        postgres.create_database(NAME, None)?;
        let directory = tempfile::Builder::new().prefix("atoll-api-").tempdir()?;
        let dir = directory.path();
        let [port, admin, rpc] = free_ports()?;
        let (ca, settings, data) = (dir.join("ca"), dir.join("atoll.toml"), dir.join("data"));
        let of_it: [(&str, &Path); 2] = [("--config", &settings), ("--data-dir", &data)];
        let mut arguments = vec!["serve".into(), "api".into()];
        for (option, path) in of_it {
            arguments.extend([option.into(), path.into()]);
        }
        // From here on the directory goes with this process, however that ends.
        let mut program = Program::new(atoll.to_owned(), arguments, dir)?;
        let run = |words: &[&str], paths: &[(&str, &Path)]| {
            let mut command = Command::new(atoll);
            // What the environment says is meant for others.
            command.args(words).stdin(Stdio::null()).env_clear();
            for (option, path) in paths {
                command.arg(option).arg(path);
            }
            let output = command
                .output()
                .with_context(|| format!("cannot run {}", atoll.display()))?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.success(),
                "atoll {words:?} ended with {}: {said}",
                output.status
            );
            Ok(output.stdout)
        };
        run(&["ca", "init", "--cluster", NAME], &[("--dir", &ca)])?;
        run(
            &["ca", "issue", "--role", "api", "--name", "api-1"],
            &[("--dir", &ca)],
        )?;
        let url = postgres.url(NAME);
        let file = |name: &str| ca.join(name).display().to_string();
        std::fs::write(
            &settings,
            format!(
                "api_listen = '127.0.0.1:{port}'
admin_listen = '127.0.0.1:{admin}'
[cluster]
name = '{NAME}'
rpc_listen = '127.0.0.1:{rpc}'
ca = '{}'
certificate = '{}'
key = '{}'
[cluster.database]
url = '{url}'
[cluster.redis]
url = '{}'
[[cluster.peers]]
role = 'api'
address = '127.0.0.1:{rpc}'
",
                file("ca.pem"),
                file("api-1.pem"),
                file("api-1-key.pem"),
                redis.url(),
            ),
        )?;
        run(&["migrate"], &of_it)?;
        let made: serde_json::Value = serde_json::from_slice(&run(&["bootstrap", "--json"], &of_it)?)?;
        let key = made["key"].as_str().context("a key was made")?.to_owned();
        fill(&url)?;
        // What autovacuum does a minute later.
        postgres.run("vacuumdb", &["--analyze", "--quiet", NAME])?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        program.start(|| TcpStream::connect(address).is_ok())?;
        Ok(Self {
            _program: program,
            _redis: redis,
            _postgres: postgres,
            _directory: directory,
            port,
            key,
        })
    }

    /// Where clients reach it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A key of the default team.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}
