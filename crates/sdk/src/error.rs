use std::io;
use std::time::Duration;

use model::Kind;

/// Every way in which a call fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// An address that cannot be one of a server.
    #[error("'{url}' is not the http or https address of a server")]
    Address {
        /// What was given.
        url: String,
    },
    /// A value that no HTTP header can carry.
    #[error("the {what} holds characters that cannot be sent")]
    Unsendable {
        /// Which: it is not shown, as it may be secret.
        what: &'static str,
    },
    /// TLS is asked for, and this machine trusts nobody.
    #[error("this machine has no certificate authorities to trust")]
    Authorities(#[source] io::Error),
    /// No connection, or one that broke before the answer.
    #[error("cannot reach {server}")]
    Unreachable {
        /// Where.
        server: String,
        /// Why.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// No answer in time.
    #[error("{server} did not answer within {within:?}")]
    Late {
        /// Where.
        server: String,
        /// How long it had.
        within: Duration,
    },
    /// It took no more of an upload, or did not say that it has it.
    #[error("{server} took no more of the upload for {within:?}")]
    Stalled {
        /// Where.
        server: String,
        /// How long it had.
        within: Duration,
    },
    /// What was to be uploaded could not be read.
    #[error("what is uploaded cannot be read")]
    Source(#[source] io::Error),
    /// The server says no.
    #[error("{message}")]
    Refused {
        /// In which way.
        kind: Kind,
        /// The server's own words, and the status where it had none.
        message: String,
        /// The server's slug for errors that share a status.
        error_code: Option<String>,
    },
    /// The answer broke off: the sandbox ended, or the way to it did.
    #[error("the answer broke off: the sandbox, or the way to it, is gone")]
    Cut(#[source] hyper::Error),
    /// The stream ended without saying how the program did.
    #[error("the stream ended before the program did")]
    Unended,
    /// A stream that should show signs of life has shown none.
    #[error("nothing was heard from the sandbox for {0:?}")]
    Silent(Duration),
    /// The answer is not what the protocol says.
    #[error("the answer is not understood: {what}")]
    Garbled {
        /// What is wrong with it.
        what: String,
    },
}

impl CallError {
    /// In which way it failed; without an answer, the server counts as away.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Address { .. } | Self::Unsendable { .. } | Self::Source(_) => Kind::Invalid,
            Self::Late { .. } | Self::Stalled { .. } | Self::Silent(_) => Kind::Timeout,
            Self::Authorities(_) | Self::Unreachable { .. } | Self::Cut(_) | Self::Unended => {
                Kind::Unavailable
            }
            Self::Garbled { .. } => Kind::Internal,
        }
    }

    /// An error's body in any of the shapes that servers give it: `{code, message}` of the API, the edge and envd,
    /// with a number, and of the Connect protocol, with a word.
    pub(crate) fn refused(status: u16, body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Body {
            code: Option<serde_json::Value>,
            message: Option<String>,
            error_code: Option<String>,
        }
        let body: Option<Body> = serde_json::from_slice(body).ok();
        let word = body
            .as_ref()
            .and_then(|body| body.code.as_ref()?.as_str().map(wire::status::of_connect));
        let (message, error_code) = body.map_or((None, None), |body| (body.message, body.error_code));
        Self::Refused {
            // A word that is none of that protocol's says less than the status: those of a volume's content are others.
            kind: word
                .filter(|kind| *kind != Kind::Internal)
                .unwrap_or_else(|| wire::status::of_http(status)),
            message: message
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| format!("the server answered {status}")),
            error_code,
        }
    }

    pub(crate) fn garbled(what: impl ToString) -> Self {
        Self::Garbled {
            what: what.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, body: &str, kind: Kind, message: &str) {
        let error = CallError::refused(status, body.as_bytes());
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, message));
    }

    #[test]
    fn refusals_carry_the_words_of_the_server() {
        check(
            404,
            r#"{"code":404,"message":"no such sandbox"}"#,
            Kind::NotFound,
            "no such sandbox",
        );
        check(
            502,
            r#"{"sandboxId":"i","message":"The sandbox was not found","code":502}"#,
            Kind::Unavailable,
            "The sandbox was not found",
        );
        check(
            500,
            r#"{"code":"invalid_argument","message":"cwd '/x' does not exist"}"#,
            Kind::Invalid,
            "cwd '/x' does not exist",
        );
        check(
            404,
            r#"{"code":"no_such_thing","message":"path '/x' does not exist"}"#,
            Kind::NotFound,
            "path '/x' does not exist",
        );
    }

    #[test]
    fn a_refusal_without_words_shows_its_status() {
        check(503, "", Kind::Unavailable, "the server answered 503");
        check(401, "<html>", Kind::Unauthenticated, "the server answered 401");
        check(400, r#"{"code":400}"#, Kind::Invalid, "the server answered 400");
    }
}
