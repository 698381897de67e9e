//! What goes over a stream of a volume: requests of the machine's kernel, and their replies, as they lie on `/dev/fuse`.
//!
//! ```text
//! 4 bytes   how many follow, little-endian
//! 1 byte    what it is
//! the rest  a request or a reply
//! ```
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A request or a reply is longer than this only if it is none. `volumes` says the same of what it answers.
pub const FRAME_BYTES_MAX: usize = (128 << 10) + 8192;
/// Requests that are under way on a stream; the guest keeps more to itself until one of them is answered.
pub const UNDER_WAY_MAX: usize = 16;

/// One thing that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// By the guest: a request.
    Request(Vec<u8>),
    /// By the guest: one that was asked on an earlier stream, and not answered there.
    Again(Vec<u8>),
    /// By the host: a reply.
    Reply(Vec<u8>),
    /// By the host: no more is to be asked. The guest ends the stream when what it asked was answered.
    Stop,
}

impl Frame {
    const fn kind(&self) -> u8 {
        match self {
            Self::Request(_) => 0,
            Self::Again(_) => 1,
            Self::Reply(_) => 2,
            Self::Stop => 3,
        }
    }

    /// Says it.
    ///
    /// # Errors
    /// The stream's.
    pub async fn write(&self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let bytes = match self {
            Self::Request(bytes) | Self::Again(bytes) | Self::Reply(bytes) => bytes.as_slice(),
            Self::Stop => &[],
        };
        let length = u32::try_from(bytes.len() + 1).map_err(io::Error::other)?;
        // Whole, so that it is carried at once.
        let mut whole = Vec::with_capacity(5 + bytes.len());
        whole.extend_from_slice(&length.to_le_bytes());
        whole.push(self.kind());
        whole.extend_from_slice(bytes);
        writer.write_all(&whole).await?;
        writer.flush().await
    }

    /// Reads the next one; `None` where the stream ends before it.
    ///
    /// # Errors
    /// `UnexpectedEof` where the stream ends within it, `InvalidData` where it is none.
    pub async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        if reader.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        reader.read_exact(&mut head[1..]).await?;
        let [a, b, c, d, kind] = head;
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let length = length
            .checked_sub(1)
            .filter(|length| *length <= FRAME_BYTES_MAX)
            .ok_or_else(|| invalid(format!("a frame of {length} bytes")))?;
        let mut bytes = Vec::new();
        // As it comes, not as it says.
        let read = reader.take(length as u64).read_to_end(&mut bytes).await?;
        if read < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match kind {
            0 => Ok(Some(Self::Request(bytes))),
            1 => Ok(Some(Self::Again(bytes))),
            2 => Ok(Some(Self::Reply(bytes))),
            3 if length == 0 => Ok(Some(Self::Stop)),
            kind => Err(invalid(format!("a frame of kind {kind} and {length} bytes"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(work)
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(
            kinds in prop::collection::vec((0_u8..4, prop::collection::vec(any::<u8>(), 0..300)), 0..8)
        ) {
            let said: Vec<Frame> = kinds
                .into_iter()
                .map(|(kind, bytes)| match kind {
                    0 => Frame::Request(bytes),
                    1 => Frame::Again(bytes),
                    2 => Frame::Reply(bytes),
                    _ => Frame::Stop,
                })
                .collect();
            now(async {
                let mut wire = Vec::new();
                for frame in &said {
                    frame.write(&mut wire).await.unwrap();
                }
                let mut rest = wire.as_slice();
                for frame in &said {
                    assert_eq!(Frame::read(&mut rest).await.unwrap().as_ref(), Some(frame));
                }
                assert_eq!(Frame::read(&mut rest).await.unwrap(), None);
                // Cut off anywhere, nothing is made up.
                if let Some(last) = wire.len().checked_sub(1) {
                    let mut rest = &wire[..last];
                    for frame in &said[..said.len() - 1] {
                        assert_eq!(Frame::read(&mut rest).await.unwrap().as_ref(), Some(frame));
                    }
                    let cut = Frame::read(&mut rest).await.unwrap_err();
                    assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
                }
            });
        }
    }

    #[test]
    fn a_frame_that_is_none_is_refused_before_it_is_kept() {
        for wire in [
            &[0, 0, 0, 0, 0][..],
            &[1, 0, 0, 0, 9],
            &[2, 0, 0, 0, 3, 7],
            &[0xff, 0xff, 0xff, 0xff, 0],
        ] {
            let refused = now(async { Frame::read(&mut &*wire).await.unwrap_err() });
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{wire:?}");
        }
    }
}
