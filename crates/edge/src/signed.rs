//! Signed file URLs that name no sandbox (contract 1.1, 2.2).
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use http::Method;
use model::Secret;
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};

/// What a signed URL says. Whose it is, only the token tells with which it was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SignedUrl {
    /// The SHA-256 that the signature claims, and the key under which its owner is remembered.
    pub(crate) digest: [u8; 32],
    /// What was hashed before the token: `path:op:user:`.
    before: Vec<u8>,
    /// What was hashed after the token: nothing, or `:expiration`.
    after: Vec<u8>,
}

/// Why a request for `/files` tells no sandbox; the texts are envd's own (contract 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsigned {
    /// There is no signature.
    #[error("missing signature query parameter")]
    Missing,
    /// It is not one, or nobody's.
    #[error("invalid signature")]
    Invalid,
}

impl SignedUrl {
    /// What the request signs, or `None` where it is not one that could be signed.
    pub(crate) fn of(method: &Method, path: &str, query: &str) -> Option<Result<Self, Unsigned>> {
        let operation = match *method {
            _ if path != "/files" => return None,
            Method::GET | Method::HEAD => "read",
            Method::POST => "write",
            _ => return None,
        };
        Some(Self::parse(operation, query))
    }

    fn parse(operation: &str, query: &str) -> Result<Self, Unsigned> {
        let signature = parameter(query, "signature").ok_or(Unsigned::Missing)?;
        let digest = signature
            .strip_prefix(b"v1_")
            .and_then(|text| BASE64_STANDARD_NO_PAD.decode(text).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(Unsigned::Invalid)?;
        let mut before = parameter(query, "path").unwrap_or_default();
        before.push(b':');
        before.extend(operation.as_bytes());
        before.push(b':');
        before.extend(parameter(query, "username").unwrap_or_default());
        before.push(b':');
        let after = parameter(query, "signature_expiration")
            .filter(|text| !text.is_empty())
            .map_or_else(Vec::new, |text| [b":".as_slice(), &text].concat());
        Ok(Self {
            digest,
            before,
            after,
        })
    }

    /// Starts a check against many tokens.
    pub(crate) fn check(&self) -> Check<'_> {
        Check {
            url: self,
            before: Sha256::new_with_prefix(&self.before),
        }
    }
}

/// The part of the hash that all tokens share.
pub(crate) struct Check<'a> {
    url: &'a SignedUrl,
    before: Sha256,
}

impl Check<'_> {
    /// Whether the URL was signed with this token. Says nothing of its expiry, which is envd's to refuse.
    pub(crate) fn is_signed_with(&self, token: &Secret<String>) -> bool {
        let mut hash = self.before.clone();
        hash.update(token.expose());
        hash.update(&self.url.after);
        // Public data against public data: only who knows the token can make the two equal.
        hash.finalize()[..] == self.url.digest
    }
}

/// The first value of a query parameter, decoded as a form is: `+` is a space.
fn parameter(query: &str, name: &str) -> Option<Vec<u8>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| {
            let spaced = value.replace('+', " ");
            percent_decode_str(&spaced).collect()
        })
    })
}

#[cfg(test)]
mod tests;
