//! The last of what a machine said on its serial port, and its VMM beside it. A guest may say as much as it likes.
use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What is kept.
const KEPT_BYTES: usize = 64 * 1024;
const CHUNK_BYTES: usize = 4096;
const UNPOISONED: &str = "nothing panics while it holds the log";

/// The end of a text that may be endless.
#[derive(Debug, Default)]
pub struct Log(Mutex<VecDeque<u8>>);

impl Log {
    /// Takes in what comes, until nothing does.
    pub async fn take_in(&self, mut from: impl AsyncRead + Unpin) {
        let mut chunk = [0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            self.add(chunk.get(..read).unwrap_or_default());
        }
    }

    fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().expect(UNPOISONED);
        kept.extend(bytes);
        let over = kept.len().saturating_sub(KEPT_BYTES);
        kept.drain(..over);
    }

    /// Its last lines, at most so many bytes; what could steer a terminal is left out.
    #[must_use]
    pub fn tail(&self, bytes_max: usize) -> String {
        let kept = self.0.lock().expect(UNPOISONED);
        let from = kept.len().saturating_sub(bytes_max);
        let bytes: Vec<u8> = kept.iter().skip(from).copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let plain = text.chars().filter(|c| *c == '\n' || !c.is_control());
        plain.collect::<String>().trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn however_much_is_said_the_end_is_kept() {
        let log = Log::default();
        let flood = vec![b'x'; 1 << 20];
        log.take_in(&flood[..]).await;
        log.take_in(&b"\n\x1b[31mlast words\r\n"[..]).await;
        assert_eq!(log.0.lock().unwrap().len(), KEPT_BYTES);
        assert_eq!(log.tail(18), "[31mlast words");
        assert!(log.tail(usize::MAX).ends_with("x\n[31mlast words"));
    }
}
