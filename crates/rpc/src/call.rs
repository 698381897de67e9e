//! One call to a peer: its deadline, its one repetition, and what its failure means.
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use buffa::Message;
use connectrpc::client::CallOptions;
use connectrpc::{ConnectError, ErrorCode, ErrorDetail};
use tokio::time::Instant;
use wire::node as proto;

use crate::channel::CallFailed;

/// What an answer may hold.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;
/// What is not worth another try any more.
const REST_MIN: Duration = Duration::from_millis(50);

/// How a call may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Once, where the connection was lost: doing it twice is the same as doing it once.
    Once,
    /// Not at all.
    Never,
}

/// What became of a call that did not succeed.
#[derive(Debug)]
pub(crate) enum Outcome<D> {
    /// The peer says why.
    Told(D),
    /// The peer did not let it in.
    Refused(proto::Refusal),
    /// Nothing was done: the peer was not reached, or does not know the call.
    Undone(ConnectError),
    /// Its time was over: what was done is not known.
    Late,
    /// The answer was lost: what was done is not known.
    Lost(ConnectError),
}

impl<D: Detail> Outcome<D> {
    pub(crate) fn of(error: ConnectError) -> Self {
        if let Some(told) = detail(&error) {
            return Outcome::Told(told);
        }
        if let Some(refusal) = detail(&error) {
            return Outcome::Refused(refusal);
        }
        match failed(&error) {
            Some(CallFailed::Open(..) | CallFailed::Unreached { .. }) => return Outcome::Undone(error),
            // The peer looks at the protocol before anything else.
            Some(CallFailed::Foreign(..)) => return Outcome::Undone(error),
            Some(CallFailed::Lost { .. }) => return Outcome::Lost(error),
            None => {}
        }
        match error.code {
            ErrorCode::DeadlineExceeded => Outcome::Late,
            ErrorCode::Unimplemented
            | ErrorCode::InvalidArgument
            | ErrorCode::PermissionDenied
            | ErrorCode::Unauthenticated
            | ErrorCode::NotFound => Outcome::Undone(error),
            _ => Outcome::Lost(error),
        }
    }
}

/// Why it was not carried, if that is why.
pub(crate) fn failed(error: &ConnectError) -> Option<CallFailed> {
    error.source_arc()?.downcast_ref::<CallFailed>().cloned()
}

/// Carries out a call within a time, and says what became of it.
pub(crate) async fn call<T, D, F>(
    limit: Duration,
    repeat: Repeat,
    mut send: impl FnMut(CallOptions) -> F,
) -> Result<T, Outcome<D>>
where
    F: Future<Output = Result<T, ConnectError>>,
    D: Detail,
{
    let end = Instant::now() + limit;
    let options = |left| {
        CallOptions::default()
            .with_timeout(left)
            .with_max_message_size(ANSWER_BYTES_MAX)
            .with_element_memory_limit(ANSWER_BYTES_MAX)
    };
    let first = match send(options(limit)).await {
        Ok(answer) => return Ok(answer),
        Err(error) => Outcome::of(error),
    };
    let left = end.saturating_duration_since(Instant::now());
    let Outcome::Lost(lost) = first else {
        return Err(first);
    };
    if repeat == Repeat::Never || left < REST_MIN {
        return Err(Outcome::Lost(lost));
    }
    tracing::debug!(
        error = crate::causes(&lost),
        "a call is repeated: its answer was lost"
    );
    metrics::counter!("atoll_rpc_repeats_total").increment(1);
    match send(options(left)).await {
        Ok(answer) => Ok(answer),
        Err(error) => Err(match Outcome::of(error) {
            // The first may have been carried out.
            Outcome::Undone(error) => Outcome::Lost(error),
            Outcome::Refused(_) => Outcome::Lost(lost),
            other => other,
        }),
    }
}

/// An error with what it means, typed.
pub(crate) fn with_detail<D: Detail>(
    code: ErrorCode,
    message: impl Into<String>,
    detail: &D,
) -> ConnectError {
    ConnectError::new(code, message).with_detail(ErrorDetail::from_message(D::NAME, detail))
}

/// What an error means, if it says that in these terms.
pub(crate) fn detail<D: Detail>(error: &ConnectError) -> Option<D> {
    let is_it = |detail: &&ErrorDetail| detail.type_url.rsplit('/').next() == Some(D::NAME);
    let found = error.details.iter().find(is_it)?;
    let value = found.value.as_deref()?;
    let bytes = STANDARD_NO_PAD.decode(value).or_else(|_| STANDARD.decode(value));
    D::decode_from_slice(&bytes.ok()?).ok()
}

/// A message that errors carry.
pub(crate) trait Detail: Message {
    /// Its full name.
    const NAME: &'static str;
}

macro_rules! details {
    ($($name:ident)*) => {
        $(impl Detail for proto::$name {
            const NAME: &'static str = concat!("atoll.rpc.v1.", stringify!($name));
        })*
    };
}

details! { NodeFailure BuildFailure Refusal WakeFailure FileFailure BlobFailure }
