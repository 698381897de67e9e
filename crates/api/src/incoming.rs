//! Bodies that are passed on as they come, and never held whole.
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use model::{TeamId, VolumeId};
use ports::blobs::ByteStream;
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// How long nothing may come of a body.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Bodies that are passed on at a time: each keeps a few MiB on their way.
const TRANSFERS_MAX: usize = 128;
/// Those of one team, or of one volume: so that those who send slowly keep nobody else waiting.
const OWN_TRANSFERS_MAX: usize = 32;
/// How long another waits for its turn: less than clients wait for an answer to anything.
const TURN_WITHIN: Duration = Duration::from_secs(30);
/// Owners that are remembered before those are forgotten who send nothing any more.
const OWNERS_KEPT: usize = 1_024;
/// What a refused request may still send, so that its client reads the refusal instead of a broken connection.
const HEARD_BYTES_MAX: usize = 1 << 20;
/// How long it may take.
const HEARD_WITHIN: Duration = Duration::from_millis(500);
/// What may still come of a body that was refused on its way, behind the refusal: as much as is under way in the kernels of
/// both sides, and what a client sends before it looks.
const REST_BYTES_MAX: u64 = 64 << 20;
/// How long it may take.
const REST_WITHIN: Duration = Duration::from_secs(10);

/// Whose turn it is to send a body.
pub(crate) struct Transfers {
    all: Arc<Semaphore>,
    /// Of everybody who sends, or waits for it.
    owners: Mutex<HashMap<Owner, Weak<Semaphore>>>,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// Uploads of a team.
    Team(TeamId),
    /// Files of a volume, of which no more is known.
    Volume(VolumeId),
}

/// A turn. It ends when this is dropped.
pub(crate) struct Turn {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Default for Transfers {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(TRANSFERS_MAX)),
            owners: Mutex::default(),
        }
    }
}

impl Transfers {
    /// Waits for a turn.
    pub(crate) async fn turn(&self, owner: Owner) -> Result<Turn, ApiError> {
        let own = self.of(owner);
        let both = async {
            let own = own.acquire_owned().await.expect("never closed");
            let all = Arc::clone(&self.all).acquire_owned().await.expect("never closed");
            Turn { _own: own, _all: all }
        };
        tokio::time::timeout(TURN_WITHIN, both).await.map_err(|_| {
            ApiError::busy(
                format!("{OWN_TRANSFERS_MAX} uploads of your own, or {TRANSFERS_MAX} of all, are under way; try again"),
                Duration::from_secs(1),
            )
        })
    }

    fn of(&self, owner: Owner) -> Arc<Semaphore> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = owners.get(&owner).and_then(Weak::upgrade) {
            return own;
        }
        if owners.len() >= OWNERS_KEPT {
            owners.retain(|_, own| own.strong_count() > 0);
        }
        let own = Arc::new(Semaphore::new(OWN_TRANSFERS_MAX));
        owners.insert(owner, Arc::downgrade(&own));
        own
    }
}

/// Why a body was not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Silent,
    TooLong(u64),
    Short,
    Broken,
}

/// What went wrong with a body while it was passed on: whoever took it only knows that it broke off.
#[derive(Clone)]
pub(crate) struct Account {
    fault: Arc<Mutex<Option<Fault>>>,
    /// The body, as long as nobody reads it.
    rest: Arc<AsyncMutex<BodyDataStream>>,
}

impl Account {
    fn note(&self, fault: Fault) -> io::Error {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        let (kind, what) = match fault {
            Fault::Silent => (io::ErrorKind::TimedOut, "nothing came of the body for too long"),
            Fault::TooLong(_) => (io::ErrorKind::FileTooLarge, "the body is too long"),
            Fault::Short => (
                io::ErrorKind::UnexpectedEof,
                "the body ended before its Content-Length",
            ),
            Fault::Broken => (io::ErrorKind::ConnectionAborted, "the body broke off"),
        };
        io::Error::new(kind, what)
    }

    /// What the client is told of a failure: the body's own fault, where it is one.
    pub(crate) fn blame(&self, failure: impl Into<ApiError>) -> ApiError {
        match *self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            None => failure.into(),
            Some(Fault::Silent) => ApiError::http(
                StatusCode::REQUEST_TIMEOUT,
                format!("nothing came of the body for {IDLE_MAX:?}"),
            ),
            Some(Fault::TooLong(max)) => too_long(max),
            Some(Fault::Short) => ApiError::invalid("the body ended before its Content-Length"),
            Some(Fault::Broken) => ApiError::invalid("the body broke off"),
        }
    }

    /// Reads more of a body that nobody takes any more, while its refusal is on its way: a client that is still sending would
    /// find a broken connection in the place of the reason. It is its sender's turn until then.
    pub(crate) fn hear_out(self, turn: Turn) {
        tokio::spawn(async move {
            let hear = async {
                let (mut rest, mut heard) = (self.rest.lock().await, 0);
                while let Some(Ok(piece)) = rest.next().await {
                    heard += piece.len() as u64;
                    if heard > REST_BYTES_MAX {
                        return;
                    }
                }
            };
            let _ = tokio::time::timeout(REST_WITHIN, hear).await;
            drop(turn);
        });
    }
}

pub(crate) fn too_long(max: u64) -> ApiError {
    ApiError::http(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is longer than {max} bytes"),
    )
}

/// How long a body says it is. `Err`: it says something else.
pub(crate) fn declared(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    headers
        .get(header::CONTENT_LENGTH)
        .map(|length| {
            let length = length.to_str().ok().and_then(|length| length.parse().ok());
            length.ok_or_else(|| ApiError::invalid("Content-Length must be a number of bytes"))
        })
        .transpose()
}

/// A body as it comes: exactly as long as it says it is, where it does, and no longer than `max`.
pub(crate) fn stream(body: Body, declared: Option<u64>, max: u64) -> (ByteStream, Account) {
    let account = Account {
        fault: Arc::default(),
        rest: Arc::new(AsyncMutex::new(body.into_data_stream())),
    };
    let noted = account.clone();
    let bytes = futures_util::stream::try_unfold(0_u64, move |seen| {
        let account = noted.clone();
        async move {
            let piece = {
                let mut pieces = account.rest.lock().await;
                tokio::time::timeout(IDLE_MAX, pieces.next()).await
            };
            let piece: Option<Bytes> = piece
                .map_err(|_| account.note(Fault::Silent))?
                .transpose()
                .map_err(|_| account.note(Fault::Broken))?;
            let Some(piece) = piece else {
                return match declared {
                    Some(length) if length != seen => Err(account.note(Fault::Short)),
                    _ => Ok(None),
                };
            };
            let seen = seen + piece.len() as u64;
            if seen > max {
                return Err(account.note(Fault::TooLong(max)));
            }
            Ok(Some((piece, seen)))
        }
    });
    (bytes.boxed(), account)
}

/// Reads a little of the body of a request that is refused; nothing of one that waits for leave to send it.
pub(crate) async fn hear_out(headers: &HeaderMap, body: Body) {
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let mut pieces = body.into_data_stream();
    let hear = async {
        let mut heard = 0;
        while let Some(Ok(piece)) = pieces.next().await {
            heard += piece.len();
            if heard > HEARD_BYTES_MAX {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(HEARD_WITHIN, hear).await;
}

#[cfg(test)]
mod tests {
    use model::Kind;

    use super::*;

    async fn drained(mut bytes: ByteStream) -> io::Result<usize> {
        let mut length = 0;
        while let Some(piece) = bytes.next().await {
            length += piece?.len();
        }
        Ok(length)
    }

    fn blamed(account: &Account) -> u16 {
        account
            .blame(ApiError::new(Kind::Internal, "?"))
            .status()
            .as_u16()
    }

    #[tokio::test]
    async fn a_body_is_as_long_as_it_says_and_no_longer_than_it_may_be() {
        let (bytes, account) = stream(Body::from("abc"), Some(3), 3);
        assert_eq!(drained(bytes).await.unwrap(), 3);
        assert_eq!(blamed(&account), 500);
        let (bytes, account) = stream(Body::from("abc"), Some(4), 4);
        assert!(drained(bytes).await.is_err());
        assert_eq!(blamed(&account), 400);
        let (bytes, account) = stream(Body::from("abc"), None, 2);
        assert!(drained(bytes).await.is_err());
        assert_eq!(blamed(&account), 413);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_given_up() {
        let never = futures_util::stream::pending::<io::Result<Bytes>>();
        let (bytes, account) = stream(Body::from_stream(never), None, 10);
        let begun = tokio::time::Instant::now();
        assert!(drained(bytes).await.is_err());
        assert_eq!(begun.elapsed(), IDLE_MAX);
        assert_eq!(blamed(&account), 408);
        let never = futures_util::stream::pending::<io::Result<Bytes>>();
        hear_out(&HeaderMap::new(), Body::from_stream(never)).await;
        assert_eq!(begun.elapsed(), IDLE_MAX + HEARD_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_wait_for_their_turn_and_not_for_ever() {
        let transfers = Transfers::default();
        let owners = [(); TRANSFERS_MAX / OWN_TRANSFERS_MAX].map(|()| Owner::Volume(VolumeId::random()));
        let mut turns = Vec::new();
        for number in 0..TRANSFERS_MAX {
            let owner = owners[number % owners.len()];
            turns.push(transfers.turn(owner).await.ok().unwrap());
        }
        let other = Owner::Team(TeamId::random());
        assert_eq!(transfers.turn(other).await.err().unwrap().status(), 503);
        turns.pop();
        assert!(transfers.turn(other).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_much_keeps_nobody_else_waiting() {
        let transfers = Transfers::default();
        let (greedy, other) = (Owner::Team(TeamId::random()), Owner::Team(TeamId::random()));
        let mut turns = Vec::new();
        for _ in 0..OWN_TRANSFERS_MAX {
            turns.push(transfers.turn(greedy).await.ok().unwrap());
        }
        assert_eq!(transfers.turn(greedy).await.err().unwrap().status(), 503);
        assert!(transfers.turn(other).await.is_ok());
        turns.clear();
        assert!(transfers.turn(greedy).await.is_ok());
        for _ in 0..2 * OWNERS_KEPT {
            drop(transfers.turn(Owner::Volume(VolumeId::random())).await);
        }
        assert!(transfers.owners.lock().unwrap().len() <= OWNERS_KEPT);
    }
}
