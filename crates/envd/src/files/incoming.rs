//! A request's body, unpacked, in bounded pieces.
use std::io::{self, Write as _};
use std::time::Duration;

use crate::request_body::RequestBody;
use bytes::{Buf as _, Bytes};
use flate2::write::MultiGzDecoder;
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;

use super::{PIECE_BYTES, blocking};
use crate::access::Refusal;

/// A client that is refused must still be heard out, or it sees a broken connection instead of the refusal. But not
/// for ever.
const HEARD_OUT_WITHIN: Duration = Duration::from_secs(10);

/// What a client sends.
pub(super) struct Content {
    body: RequestBody,
    gunzip: Option<Gunzip>,
    /// It waits to be asked for the body, so there is nothing to be heard out.
    waits_to_be_asked: bool,
}

impl Content {
    pub(super) fn new(headers: &HeaderMap, body: RequestBody) -> Result<Self, Refusal> {
        let encoding = headers
            .get(header::CONTENT_ENCODING)
            .map(http::HeaderValue::as_bytes)
            .unwrap_or_default();
        let gunzip = match encoding.trim_ascii().to_ascii_lowercase().as_slice() {
            b"" | b"identity" => None,
            b"gzip" => Some(Gunzip::default()),
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(Refusal::bad(format!(
                    "unsupported Content-Encoding: {other}, supported: gzip"
                )));
            }
        };
        Ok(Self {
            body,
            gunzip,
            waits_to_be_asked: headers.contains_key(header::EXPECT),
        })
    }

    /// The next piece; `None`: that was all.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        self.waits_to_be_asked = false;
        let Some(mut gunzip) = self.gunzip.take() else {
            return self.received().await;
        };
        loop {
            if gunzip.packed.is_empty() && !gunzip.is_over {
                match self.received().await? {
                    Some(packed) => gunzip.packed = packed,
                    None => gunzip.is_over = true,
                }
            }
            let (returned, unpacked) = blocking(move || {
                let unpacked = gunzip.step();
                (gunzip, unpacked)
            })
            .await;
            gunzip = returned;
            let unpacked =
                unpacked.map_err(|error| Refusal::bad(format!("the body is not gzip: {error}")))?;
            if !unpacked.is_empty() || gunzip.is_over {
                let is_end = unpacked.is_empty();
                self.gunzip = Some(gunzip);
                return Ok((!is_end).then(|| unpacked.into()));
            }
        }
    }

    async fn received(&mut self) -> Result<Option<Bytes>, Refusal> {
        // A body that does not go on is given up by itself.
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| Refusal::bad(format!("the body is broken: {error}")))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Takes the rest and forgets it.
    pub(super) async fn hear_out(&mut self) {
        if !self.waits_to_be_asked {
            let rest = async { while self.body.frame().await.is_some_and(|frame| frame.is_ok()) {} };
            let _ = tokio::time::timeout(HEARD_OUT_WITHIN, rest).await;
        }
    }
}

/// Unpacks what is packed, whatever it grows to, in bounded steps.
#[derive(Default)]
struct Gunzip {
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
    packed: Bytes,
    is_over: bool,
}

impl Gunzip {
    fn step(&mut self) -> io::Result<Vec<u8>> {
        let decoder = self
            .decoder
            .get_or_insert_with(|| MultiGzDecoder::new(Vec::new()));
        while !self.packed.is_empty() && decoder.get_ref().len() < PIECE_BYTES {
            let taken = decoder.write(&self.packed)?;
            if taken == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "something follows its end",
                ));
            }
            self.packed.advance(taken);
        }
        if self.is_over {
            decoder.try_finish()?;
        }
        Ok(std::mem::take(decoder.get_mut()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut gunzip = Gunzip {
            packed: Bytes::copy_from_slice(packed),
            ..Gunzip::default()
        };
        let mut all = Vec::new();
        while !gunzip.packed.is_empty() {
            let piece = gunzip.step()?;
            assert!(piece.len() <= 2 * PIECE_BYTES, "a step is bounded");
            all.extend(piece);
        }
        gunzip.is_over = true;
        all.extend(gunzip.step()?);
        Ok(all)
    }

    #[test]
    fn what_grows_a_thousandfold_is_unpacked_step_by_step() {
        let plain = vec![0; 32 << 20];
        assert_eq!(unpack(&gzip(&plain)).unwrap().len(), plain.len());
    }

    #[test]
    fn broken_and_cut_bodies_are_errors() {
        let packed = gzip(b"hello hello hello hello");
        assert_eq!(unpack(&packed).unwrap(), b"hello hello hello hello");
        assert!(unpack(&packed[..packed.len() - 3]).is_err());
        assert!(unpack(&packed[..6]).is_err());
        assert!(unpack(b"this is no gzip at all").is_err());
    }
}
