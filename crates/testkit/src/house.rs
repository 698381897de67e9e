//! A house under test.
use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use model::Secret;
use sdk::{CallError, Client, Connected, Program, SandboxClient};
use wire::rest::{ConnectSandbox, ForkSandbox, NewSandbox, Sandbox};

/// Longer than a run takes.
const LIFE_SECONDS: u32 = 3600;

/// A running Atoll, and the way in.
#[derive(Clone)]
pub(crate) struct House {
    pub(crate) api: Client,
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    pub(crate) key: String,
    /// The daemon's process.
    pub(crate) daemon: u32,
}

impl House {
    /// The house that the environment names with this prefix.
    pub(crate) fn of(prefix: &str) -> Result<Self> {
        let variable = |name: &str| {
            let name = format!("{prefix}{name}");
            std::env::var(&name).with_context(|| format!("{name} is not set: run `cargo xtask bench`"))
        };
        let daemon = variable("ATOLL_BENCH_DAEMON")?;
        Self::at(
            variable("E2B_API_URL")?,
            variable("E2B_SANDBOX_URL")?,
            variable("E2B_API_KEY")?,
            daemon.parse().context("the daemon is a process number")?,
        )
    }

    /// The house behind these addresses.
    pub(crate) fn at(api_url: String, sandbox_url: String, key: String, daemon: u32) -> Result<Self> {
        Ok(Self {
            api: Client::new(&api_url, &Secret::new(key.clone()))?,
            api_url,
            sandbox_url,
            key,
            daemon,
        })
    }

    pub(crate) async fn create(&self) -> Result<Sandbox> {
        self.create_from("base").await
    }

    pub(crate) async fn create_from(&self, template: &str) -> Result<Sandbox> {
        Ok(self.try_create(template).await?)
    }

    /// The same, for whoever wants to know how it failed.
    pub(crate) async fn try_create(&self, template: &str) -> Result<Sandbox, CallError> {
        let wanted = NewSandbox {
            template_id: template.to_owned(),
            timeout: Some(LIFE_SECONDS.into()),
            ..NewSandbox::default()
        };
        self.api.create(&wanted).await
    }

    pub(crate) fn inside(&self, sandbox: &Sandbox) -> Result<SandboxClient> {
        inside_by(&self.sandbox_url, sandbox)
    }

    pub(crate) async fn kill(&self, sandbox: &Sandbox) -> Result<()> {
        Ok(self.api.kill(&sandbox.sandbox_id).await?)
    }

    /// Resumes a sandbox that is paused.
    pub(crate) async fn resume(&self, id: &str) -> Result<()> {
        let how = ConnectSandbox {
            timeout: Some(LIFE_SECONDS.into()),
            memory: None,
        };
        let connected = self.api.connect(id, how).await?;
        ensure!(
            matches!(connected, Connected::Resumed(_)),
            "a paused sandbox was said to run"
        );
        Ok(())
    }

    /// Starts copies of a sandbox; every one of them must come up.
    pub(crate) async fn fork(&self, sandbox: &Sandbox, count: u32) -> Result<Vec<Sandbox>> {
        let wanted = ForkSandbox {
            timeout: Some(LIFE_SECONDS.into()),
            count: Some(count.into()),
        };
        let copies = self.api.fork(&sandbox.sandbox_id, wanted).await?;
        let copies = copies.into_iter().map(|copy| {
            let why = copy.error.map(|error| error.message).unwrap_or_default();
            copy.sandbox
                .with_context(|| format!("a copy did not come up: {why}"))
        });
        copies.collect()
    }

    /// Sees that each of many answers, and ends them.
    pub(crate) async fn check_and_kill(&self, sandboxes: &[Sandbox]) -> Result<()> {
        for sandbox in sandboxes {
            command(&self.inside(sandbox)?, &["/bin/true"])
                .await
                .with_context(|| format!("{} does not answer", sandbox.sandbox_id))?;
        }
        try_join_all(sandboxes.iter().map(|sandbox| self.kill(sandbox))).await?;
        Ok(())
    }

    /// Whether its machine keeps the memory of processes.
    pub(crate) async fn keeps_memory(&self) -> Result<bool> {
        let nodes = self.api.nodes().await?;
        Ok(!nodes.is_empty() && nodes.iter().all(|node| node.capabilities.durable_memory))
    }
}

/// The way into a sandbox by an edge, on connections of its own.
pub(crate) fn inside_by(edge: &str, sandbox: &Sandbox) -> Result<SandboxClient> {
    let token = sandbox.envd_access_token.clone().map(Secret::new);
    Ok(SandboxClient::new(edge, &sandbox.sandbox_id, token.as_ref())?)
}

/// Runs a program and waits for its end.
pub(crate) async fn command(inside: &SandboxClient, words: &[&str]) -> Result<()> {
    let (cmd, args) = words.split_first().context("a command has a word")?;
    let program = Program {
        cmd: (*cmd).to_owned(),
        args: args.iter().map(|word| (*word).to_owned()).collect(),
        ..Program::default()
    };
    let exit = inside.start(program).await?.wait().await?;
    ensure!(exit.exit_code == 0, "{words:?} ended with {}", exit.status);
    Ok(())
}
