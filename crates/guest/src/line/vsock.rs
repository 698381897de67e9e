//! The host's end of Firecracker's vsock
//! ([docs/vsock.md](https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md)): a Unix socket on which each
//! connection says first which port it is for, and another beside it for each port of the host's.
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::{ANSWER_BYTES_MAX, Answer, Done, Hello, READY_PORT, read_line};

/// `OK` and a port number.
const REPLY_BYTES_MAX: usize = 32;
/// Firecracker gives up on a guest after two seconds. One that stands still may not answer at all.
const REPLIES_WITHIN: Duration = Duration::from_secs(5);
/// Whoever calls says at once who it is.
const SAYS_WITHIN: Duration = Duration::from_secs(2);

/// Connects to a port of the guest's.
///
/// # Errors
/// `ConnectionRefused` where nobody listens on the port, as Firecracker hangs up then; `TimedOut` where it does not answer;
/// `InvalidData` where something else than Firecracker answers.
pub async fn connect(vsock: &Path, port: u32) -> io::Result<BufReader<UnixStream>> {
    let replied = timeout(REPLIES_WITHIN, async {
        let mut stream = BufReader::new(UnixStream::connect(vsock).await?);
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
        let reply = read_line(&mut stream, REPLY_BYTES_MAX).await?;
        Ok((stream, reply))
    });
    let (stream, reply) = match replied.await {
        Ok(Ok(replied)) => replied,
        Ok(Err(error)) if has_hung_up(&error) => return Err(io::ErrorKind::ConnectionRefused.into()),
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let port = reply
        .strip_prefix(b"OK ")
        .and_then(|port| std::str::from_utf8(port).ok());
    if port.is_some_and(|port| port.parse::<u32>().is_ok()) {
        Ok(stream)
    } else {
        let message = format!("not a vsock: {}", reply.escape_ascii());
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

fn has_hung_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Waits for the call by which the agent says that its machine is ready: nobody has to ask again and again whether it is.
/// It is to be there before the machine boots, and is over when this is dropped.
///
/// Whoever is inside can call as well, before the agent or in its place: what is told is to be taken for a reason to ask,
/// by [`Line::hello`](super::Line::hello).
#[derive(Debug)]
pub struct Ready {
    listener: UnixListener,
    socket: PathBuf,
}

impl Ready {
    /// Listens beside a machine's vsock, and takes the place of who did before. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// There cannot be a socket: its directory is not there, or its path is too long for one.
    pub fn listen(vsock: &Path) -> io::Result<Self> {
        let mut socket = vsock.as_os_str().to_owned();
        socket.push(format!("_{READY_PORT}"));
        let socket = PathBuf::from(socket);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        Ok(Self { listener, socket })
    }

    /// The socket, which is to be given to the user as whom the VMM runs.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for the call, however long it takes, and returns who is ready. Whoever says something else is not heard.
    ///
    /// # Errors
    /// No more calls can be taken.
    pub async fn called(&self) -> io::Result<Hello> {
        loop {
            let (call, _) = self.listener.accept().await?;
            let mut call = BufReader::new(call);
            match timeout(SAYS_WITHIN, read_line(&mut call, ANSWER_BYTES_MAX)).await {
                Ok(Ok(line)) => match Answer::parse(&line) {
                    Ok(Answer::Done(Done { told, .. })) => return Ok(told),
                    Ok(Answer::Refused(_)) | Err(_) => {
                        tracing::debug!("a machine called and did not say who")
                    }
                },
                Ok(Err(error)) => tracing::debug!(%error, "a call of a machine's broke"),
                Err(_) => tracing::debug!("a machine called and said nothing"),
            }
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests;
