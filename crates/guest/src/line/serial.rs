//! The host's end of a serial port: the greeting, and bytes between two tasks that escape and unescape them.
use std::io;

use rand::TryRngCore as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};

use super::escape::{Decoder, Event, Nonce, encode};

/// As much as is read and written at once.
const CHUNK_BYTES: usize = 32 * 1024;

/// Greets the guest, waits for its greeting, however long that takes, and returns a stream of what it says from then on. The
/// stream ends when the guest begins anew, as after a reset. Dropping it hangs up.
///
/// # Errors
/// The other side hung up, or the system has no random bytes.
pub(super) async fn call(serial: impl AsyncRead + AsyncWrite + Send + 'static) -> io::Result<DuplexStream> {
    let (mut reader, mut writer) = tokio::io::split(serial);
    let mut nonce = [0; 16];
    rand::rngs::OsRng
        .try_fill_bytes(&mut nonce)
        .map_err(io::Error::other)?;
    let nonce = Nonce(nonce);
    writer.write_all(&nonce.greeting()).await?;

    let mut decoder = Decoder::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut said = Vec::new();
    'stale: loop {
        let count = reader.read(&mut chunk).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut input = &chunk[..count];
        while let Some(event) = decoder.next(&mut input, &mut said) {
            // Until then, what comes was for another host.
            said.clear();
            if event == Event::Begins(nonce) {
                if decoder.next(&mut input, &mut said).is_some() {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                break 'stale;
            }
        }
        said.clear();
    }

    let (ours, theirs) = tokio::io::duplex(2 * CHUNK_BYTES);
    let (mut to_say, mut heard) = tokio::io::split(theirs);
    let talks = tokio::spawn(async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut wire = Vec::new();
        while let Ok(count) = to_say.read(&mut chunk).await
            && count > 0
        {
            wire.clear();
            encode(&chunk[..count], &mut wire);
            if writer.write_all(&wire).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        let listen = async {
            loop {
                heard.write_all(&said).await?;
                said.clear();
                let count = reader.read(&mut chunk).await?;
                let mut input = &chunk[..count];
                if count == 0 || decoder.next(&mut input, &mut said).is_some() {
                    return io::Result::Ok(());
                }
            }
        };
        tokio::pin!(talks);
        tokio::select! {
            _ = listen => talks.abort(),
            _ = &mut talks => {}
        }
    });
    Ok(ours)
}
