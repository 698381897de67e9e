//! One Firecracker on the host, as it is started in its jail, and how its API is reached.
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use microvm::process::{Heard, Process};
use ports::step::{At, Step};

use crate::api::Api;
use crate::jail::Jail;

/// The jailer is done in some ten milliseconds; with many mounts on the host, and many beside it, it takes ten times as long.
const JAILED_WITHIN: Duration = Duration::from_secs(30);

/// Who starts Firecrackers.
#[async_trait]
pub(crate) trait Launch: Send + Sync {
    /// Starts one in a jail that is furnished, with the jailer's arguments, and returns its process id. It says what it says
    /// into `output`.
    async fn launch(&self, jail: &Jail, arguments: &[OsString], output: Output) -> Result<u32, Step>;
}

/// Where a program writes, on both its outputs.
#[derive(Debug)]
pub(crate) struct Output(pub(crate) io::PipeWriter);

impl Output {
    pub(crate) fn both(self) -> io::Result<(Stdio, Stdio)> {
        Ok((self.0.try_clone()?.into(), self.0.into()))
    }
}

/// The real one: the jailer, which leaves a Firecracker behind in namespaces of its own.
#[derive(Debug)]
pub(crate) struct Jailer(pub(crate) PathBuf);

#[async_trait]
impl Launch for Jailer {
    async fn launch(&self, jail: &Jail, arguments: &[OsString], output: Output) -> Result<u32, Step> {
        let step = || format!("running {}", self.0.display());
        let (stdout, stderr) = output.both().at(step())?;
        let mut command = tokio::process::Command::new(&self.0);
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            // What a terminal tells the daemon is not for it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .kill_on_drop(true);
        let mut child = command.spawn().at(step())?;
        drop(command);
        let ended = tokio::time::timeout(JAILED_WITHIN, child.wait()).await;
        let status = ended
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
            .at(step())?
            .at(step())?;
        if !status.success() {
            return Err(io::Error::other(status.to_string())).at(step());
        }
        jail.pid()
    }
}

/// Starts one.
pub(crate) async fn start(
    launcher: &dyn Launch,
    jail: &Jail,
    arguments: &[OsString],
) -> Result<Process, Step> {
    let step = || "starting Firecracker";
    let (reader, writer) = io::pipe().at(step())?;
    let heard = Heard::by(reader).at(step())?;
    let launched = launcher.launch(jail, arguments, Output(writer)).await;
    let pid = match launched {
        Ok(pid) => pid,
        Err(failed) => {
            let said = heard.last_words().await;
            return Err(io::Error::other(format!("{}: {said}", failed.source))).at(failed.step);
        }
    };
    // It lives, or nobody has waited for it yet but whoever inherits it: what has become of its number is looked at below.
    let process = Process::watch(pid, heard)?;
    if !process.is_alive() {
        return Err(process.last_words().await).at(step());
    }
    Ok(process)
}

/// Waits until its API listens.
pub(crate) async fn listen(process: &Process, socket: &Path) -> Result<Api, Step> {
    let step = || format!("connecting to Firecracker, process {}", process.identity.pid);
    let api = Api::new(socket);
    process.reach(|| api.listens()).await.at(step())?;
    Ok(api)
}
