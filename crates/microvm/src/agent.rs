//! The agent inside a machine, as runtimes need it, and the way to it.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use guest::Line;
use guest::line::{Hello, Resume};
use model::SandboxId;
use ports::guest::{DialError, Stream};
use ports::runtime::Usage;
use tokio::net::UnixStream;

/// What a machine is called inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Its host name.
    pub hostname: String,
    /// Its `/etc/machine-id`.
    pub machine_id: String,
}

impl Name {
    /// A sandbox's, the same for all of its machines.
    #[must_use]
    pub fn of(sandbox: SandboxId) -> Self {
        Self {
            hostname: sandbox.to_string(),
            machine_id: sandbox.machine_id(),
        }
    }
}

/// An agent. Nothing here has a deadline: whoever waits on a guest sets one.
#[async_trait]
pub trait Agent: Send + Sync {
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
    /// Returns when there is no way to it any more.
    async fn over(&self);
}

/// How agents are reached.
#[async_trait]
pub trait Agents: Send + Sync {
    /// By the socket of a machine's line. Returns when the agent takes the line.
    async fn call(&self, socket: &Path) -> io::Result<Arc<dyn Agent>>;
}

/// By a serial port, which takes one caller at a time.
#[derive(Debug)]
pub struct BySerial;

#[async_trait]
impl Agents for BySerial {
    async fn call(&self, socket: &Path) -> io::Result<Arc<dyn Agent>> {
        let socket = UnixStream::connect(socket).await?;
        Ok(Arc::new(Line::connect(socket).await.map_err(io::Error::other)?))
    }
}

/// By Firecracker's vsock. Each question is a connection of its own: none is over before its answer.
#[derive(Debug)]
pub struct ByVsock;

#[async_trait]
impl Agents for ByVsock {
    async fn call(&self, socket: &Path) -> io::Result<Arc<dyn Agent>> {
        Ok(Arc::new(Line::vsock(socket)))
    }
}

#[async_trait]
impl Agent for Line {
    async fn hello(&self) -> io::Result<String> {
        let hello = Line::hello(self).await.map_err(io::Error::other)?;
        Ok(told(&hello))
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
    async fn over(&self) {
        Line::over(self).await;
    }
}

/// A guest may say what it likes.
fn told(hello: &Hello) -> String {
    let said = format!("agent {}, Linux {}", hello.agent, hello.kernel);
    said.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The way to one machine's agent: called when somebody wants it, and again when the line was over.
pub struct Link {
    agents: Arc<dyn Agents>,
    socket: PathBuf,
    line: tokio::sync::Mutex<Option<Called>>,
}

struct Called {
    agent: Arc<dyn Agent>,
    over: tokio::task::JoinHandle<()>,
}

impl Drop for Called {
    fn drop(&mut self) {
        self.over.abort();
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// That by the socket of a machine's line. Nobody is called yet.
    #[must_use]
    pub fn new(agents: Arc<dyn Agents>, socket: PathBuf) -> Self {
        Self {
            agents,
            socket,
            line: tokio::sync::Mutex::default(),
        }
    }

    /// The agent. Waits until it takes the line.
    ///
    /// # Errors
    /// There is no way to it.
    pub async fn agent(&self) -> io::Result<Arc<dyn Agent>> {
        let mut line = self.line.lock().await;
        if let Some(called) = line.as_ref().filter(|called| !called.over.is_finished()) {
            return Ok(Arc::clone(&called.agent));
        }
        // A serial port takes one caller at a time: the one before hangs up first.
        *line = None;
        let agent = self.agents.call(&self.socket).await?;
        let watched = Arc::clone(&agent);
        let over = tokio::spawn(async move { watched.over().await });
        *line = Some(Called {
            agent: Arc::clone(&agent),
            over,
        });
        Ok(agent)
    }

    /// Hangs up.
    pub async fn hang_up(&self) {
        *self.line.lock().await = None;
    }

    /// Calls and hangs up, where nobody is on the line: see [`knock`].
    pub async fn knock(&self) {
        let line = self.line.lock().await;
        if line.as_ref().is_none_or(|called| called.over.is_finished()) {
            knock(&self.socket).await;
        }
    }
}

/// Calls by a socket and hangs up at once. QEMU does not notice who hangs up while its machine stands: it takes no more from the guest then
/// once that has said something to nobody, until it notices the end of another call. What cannot be called has nothing to notice.
pub async fn knock(socket: &Path) {
    drop(UnixStream::connect(socket).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Is there until it is hung up.
    struct Caller;

    #[async_trait]
    impl Agent for Caller {
        async fn hello(&self) -> io::Result<String> {
            Ok(String::new())
        }
        async fn resume(&self, _: Option<&Name>) -> io::Result<()> {
            Ok(())
        }
        async fn usage(&self) -> io::Result<Usage> {
            Ok(Usage::default())
        }
        async fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn line(&self) -> Option<Line> {
            None
        }
        async fn dial(&self, _: u16) -> Result<Box<dyn Stream>, DialError> {
            Err(DialError::Gone)
        }
        async fn over(&self) {
            std::future::pending().await
        }
    }

    struct Callers;

    #[async_trait]
    impl Agents for Callers {
        async fn call(&self, _: &Path) -> io::Result<Arc<dyn Agent>> {
            Ok(Arc::new(Caller))
        }
    }

    #[tokio::test]
    async fn a_port_is_knocked_at_where_nobody_is_on_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("line");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let link = Link::new(Arc::new(Callers), socket);
        link.knock().await;
        let (mut caller, _) = listener.accept().await.unwrap();
        let said = tokio::io::AsyncReadExt::read(&mut caller, &mut [0]).await;
        assert_eq!(said.unwrap(), 0, "it hangs up at once");
        link.agent().await.unwrap();
        link.knock().await;
        let another = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept());
        assert!(another.await.is_err(), "somebody is on the line");
    }

    #[test]
    fn a_name_is_one_sandboxs_and_what_a_kernel_takes() {
        let (one, other) = (SandboxId::random(), SandboxId::random());
        assert_eq!(Name::of(one), Name::of(one));
        assert_ne!(Name::of(one).machine_id, Name::of(other).machine_id);
        assert!(guest::boot::is_machine_id(&Name::of(one).machine_id));
        assert!(guest::boot::is_hostname(&Name::of(one).hostname));
    }
}
