//! The host's end of Firecracker's vsock: a Unix socket on which each connection says first which port it is for.
use std::io;
use std::path::Path;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::read_line;

/// `OK` and a port number.
const REPLY_BYTES_MAX: usize = 32;

/// Connects to a port of the guest's.
///
/// # Errors
/// `ConnectionRefused` where nobody listens on the port, as Firecracker hangs up then; `InvalidData` where something else than
/// Firecracker answers.
pub(super) async fn connect(path: &Path, port: u32) -> io::Result<BufReader<UnixStream>> {
    let mut stream = BufReader::new(UnixStream::connect(path).await?);
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let reply = match read_line(&mut stream, REPLY_BYTES_MAX).await {
        Ok(reply) => reply,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Err(error) => return Err(error),
    };
    let is_ok = reply
        .strip_prefix(b"OK ")
        .is_some_and(|port| !port.is_empty() && port.iter().all(u8::is_ascii_digit));
    if is_ok {
        Ok(stream)
    } else {
        let message = format!("not a vsock: {}", reply.escape_ascii());
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}
