//! The agent inside a machine, as this runtime needs it.
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use guest::Line;
use guest::line::{Hello, Resume};
use model::SandboxId;
use ports::guest::{DialError, Stream};
use ports::runtime::Usage;

/// What a machine is called inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) hostname: String,
    pub(crate) machine_id: String,
}

impl Name {
    /// A sandbox's, the same for all of its machines.
    pub(crate) fn of(sandbox: SandboxId) -> Self {
        Self {
            hostname: sandbox.to_string(),
            machine_id: sandbox.machine_id(),
        }
    }
}

/// An agent. Nothing here has a deadline: whoever waits on a guest sets one.
#[async_trait]
pub(crate) trait Agent: Send + Sync {
    /// Returns when envd listens; says who is there.
    async fn hello(&self) -> io::Result<String>;
    /// Sets the clock and renews randomness; and gives the machine its name, where its memory may be another's.
    async fn resume(&self, name: Option<&Name>) -> io::Result<()>;
    /// What the machine uses, as it says itself.
    async fn usage(&self) -> io::Result<Usage>;
    /// Brings everything that was written to the disk.
    async fn sync(&self) -> io::Result<()>;
    /// The line, for volumes to be served on.
    fn line(&self) -> Option<Line>;
    /// To envd, at its port, or to a port on the machine's loopback.
    async fn dial(&self, port: u16) -> Result<Box<dyn Stream>, DialError>;
}

/// By Firecracker's vsock. Each question is a connection of its own: none is over before its answer.
pub(crate) fn by_vsock(socket: &Path) -> Arc<dyn Agent> {
    Arc::new(Line::vsock(socket))
}

#[async_trait]
impl Agent for Line {
    async fn hello(&self) -> io::Result<String> {
        Line::hello(self)
            .await
            .map(|hello| told(&hello))
            .map_err(io::Error::other)
    }
    async fn resume(&self, name: Option<&Name>) -> io::Result<()> {
        let resume = Resume {
            hostname: name.map(|name| name.hostname.clone()),
            machine_id: name.map(|name| name.machine_id.clone()),
            ..Resume::now()?
        };
        Line::resume(self, resume).await.map_err(io::Error::other)
    }
    async fn usage(&self) -> io::Result<Usage> {
        Line::usage(self).await.map(Usage::from).map_err(io::Error::other)
    }
    async fn sync(&self) -> io::Result<()> {
        Line::sync(self).await.map_err(io::Error::other)
    }
    fn line(&self) -> Option<Line> {
        Some(self.clone())
    }
    async fn dial(&self, port: u16) -> Result<Box<dyn Stream>, DialError> {
        Line::dial(self, port).await
    }
}

/// A guest may say what it likes.
fn told(hello: &Hello) -> String {
    let said = format!("agent {}, Linux {}", hello.agent, hello.kernel);
    said.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_sandboxs_and_what_a_kernel_takes() {
        let (one, other) = (SandboxId::random(), SandboxId::random());
        assert_eq!(Name::of(one), Name::of(one));
        assert_ne!(Name::of(one).machine_id, Name::of(other).machine_id);
        assert!(guest::boot::is_machine_id(&Name::of(one).machine_id));
        assert!(guest::boot::is_hostname(&Name::of(one).hostname));
    }
}
