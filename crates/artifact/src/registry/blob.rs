//! A blob on its way: in pieces, and from where it broke off when it does.
use std::ops::ControlFlow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{AskError, Client, Seat, again, length, pause, piece};
use crate::images::PullError;

/// So many bytes make a try a good one: those that failed before it count no more.
const GOOD_BYTES: u64 = 1 << 20;

/// What becomes of a blob's bytes.
pub(crate) trait Sink: Send {
    /// Takes the next bytes; `Break` where nobody wants more.
    fn take(&mut self, bytes: Bytes) -> impl Future<Output = ControlFlow<()>> + Send;
    /// Hears that it broke off, and goes on from so many bytes.
    fn broke(&mut self, why: &str, at: u64);
}

/// How a download ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// All bytes were taken.
    Whole,
    /// Nobody wanted more.
    Unwanted,
}

impl Client {
    /// Fetches a blob of this length from the first of these servers that has it, and goes on at the same or the next one when
    /// it breaks off. What comes is not verified here.
    pub(crate) async fn blob(
        &self,
        seats: &[&Seat<'_>],
        digest: &str,
        size: u64,
        sink: &mut impl Sink,
    ) -> Result<Fetched, PullError> {
        let mut at = 0;
        let mut last = None;
        for seat in seats.iter().filter(|seat| !seat.is_away()) {
            let mut tries = 0;
            loop {
                let start = at;
                let error = match self.part(seat, digest, size, &mut at, sink).await {
                    Ok(fetched) => return Ok(fetched),
                    Err(error) => error,
                };
                if at - start >= GOOD_BYTES {
                    tries = 0;
                }
                match error {
                    AskError::Again { why, after, is_limit } => {
                        tries += 1;
                        let is_over = tries >= seat.tries_max();
                        last = Some(if is_limit {
                            PullError::Limited {
                                registry: seat.server.authority.clone(),
                                why: why.clone(),
                            }
                        } else {
                            PullError::Away {
                                registry: seat.server.authority.clone(),
                                why: why.clone(),
                            }
                        });
                        if is_over {
                            seat.give_up();
                            break;
                        }
                        sink.broke(&why, at);
                        tokio::time::sleep(pause(tries, after)).await;
                    }
                    AskError::Status(status, says) => {
                        last = Some(seat.refused(status, &says, digest));
                        break;
                    }
                    AskError::Never(error) => {
                        last = Some(error);
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| PullError::Away {
            registry: String::new(),
            why: "there is nobody to ask".to_owned(),
        }))
    }

    async fn part(
        &self,
        seat: &Seat<'_>,
        digest: &str,
        size: u64,
        at: &mut u64,
        sink: &mut impl Sink,
    ) -> Result<Fetched, AskError> {
        let odd = |why: &str| {
            AskError::Never(PullError::Odd {
                registry: seat.server.authority.clone(),
                why: why.to_owned(),
            })
        };
        if *at == size {
            return Ok(Fetched::Whole);
        }
        let mut headers = HeaderMap::new();
        // A registry that compresses what is compressed would change what is counted.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if *at > 0 {
            let range = format!("bytes={at}-");
            headers.insert(header::RANGE, HeaderValue::from_str(&range).expect("digits"));
        }
        let answer = self.get(seat, &format!("blobs/{digest}"), &headers).await?;
        let mut passed_over = 0;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer
                    .headers()
                    .get(header::CONTENT_RANGE)
                    .and_then(|range| range.to_str().ok());
                let starts = range.and_then(|range| {
                    range
                        .strip_prefix("bytes ")?
                        .split_once('-')?
                        .0
                        .parse::<u64>()
                        .ok()
                });
                if starts != Some(*at) {
                    return Err(odd("it sends another part of a blob than it was asked for"));
                }
            }
            // It knows no parts: what is there is passed over.
            _ => {
                if length(answer.headers()).is_some_and(|length| length != size) {
                    return Err(odd("a blob of it is not as long as the manifest says"));
                }
                passed_over = *at;
            }
        }
        let mut body = answer.into_body();
        loop {
            let Some(mut bytes) = piece(&mut body)
                .await
                .map_err(|why| again(format!("{}: {why}", seat.server.authority)))?
            else {
                return Err(again(format!(
                    "{}: it broke off after {at} of {size} bytes",
                    seat.server.authority
                )));
            };
            if passed_over > 0 {
                let skip = usize::try_from(passed_over)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let _ = bytes.split_to(skip);
                passed_over -= skip as u64;
                if bytes.is_empty() {
                    continue;
                }
            }
            let more = bytes.len() as u64;
            if *at + more > size {
                return Err(odd("a blob of it is longer than the manifest says"));
            }
            if sink.take(bytes).await.is_break() {
                return Ok(Fetched::Unwanted);
            }
            *at += more;
            if *at == size {
                return Ok(Fetched::Whole);
            }
        }
    }
}

impl Seat<'_> {
    /// What an answer means that is no success and will be none.
    pub(crate) fn refused(&self, status: StatusCode, says: &str, what: &str) -> PullError {
        let registry = self.server.authority.clone();
        let repository = self.repository.to_owned();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => PullError::Unauthorized {
                registry,
                repository,
                has_credentials: self.basic.is_some(),
                says: says.to_owned(),
            },
            StatusCode::NOT_FOUND | StatusCode::GONE => PullError::NotFound {
                registry,
                repository,
                what: what.to_owned(),
            },
            status => PullError::Odd {
                registry,
                why: format!("it answers {status} {says}"),
            },
        }
    }
}
