use http::Uri;
use http::uri::{Authority, Scheme};

use crate::error::CallError;

/// Where a server is: `http://host:port`, or `https://…`, with or without a path before everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    scheme: Scheme,
    authority: Authority,
    /// Without a slash at its end.
    path: String,
}

impl BaseUrl {
    /// Reads an address.
    ///
    /// # Errors
    /// [`CallError::Address`] for anything but an absolute HTTP address without user, query and fragment.
    pub fn parse(url: &str) -> Result<Self, CallError> {
        let refused = || CallError::Address { url: url.to_owned() };
        let parts = url.trim().parse::<Uri>().map_err(|_| refused())?.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(refused());
        };
        let path = parts
            .path_and_query
            .map_or_else(String::new, |path| path.as_str().to_owned());
        let known = scheme == Scheme::HTTP || scheme == Scheme::HTTPS;
        if !known || authority.as_str().contains('@') || path.contains('?') {
            return Err(refused());
        }
        Ok(Self {
            scheme,
            authority,
            path: path.trim_end_matches('/').to_owned(),
        })
    }

    /// Whether it is spoken to through TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// The address of something below; `path` begins with a slash and is encoded already.
    pub(crate) fn join(&self, path: &str) -> Uri {
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(format!("{}{path}", self.path))
            .build()
            .expect("a checked address and an encoded path are an address")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(base: &str) -> String {
        BaseUrl::parse(base)
            .expect("an address")
            .join("/v2/sandboxes?limit=1")
            .to_string()
    }

    #[test]
    fn paths_are_joined_with_one_slash() {
        assert_eq!(
            joined("http://127.0.0.1:3000"),
            "http://127.0.0.1:3000/v2/sandboxes?limit=1"
        );
        assert_eq!(
            joined("http://127.0.0.1:3000/"),
            "http://127.0.0.1:3000/v2/sandboxes?limit=1"
        );
        assert_eq!(
            joined("https://atoll.example/below/"),
            "https://atoll.example/below/v2/sandboxes?limit=1"
        );
    }

    #[test]
    fn what_is_not_an_http_address_is_refused() {
        for url in [
            "",
            "3000",
            "localhost:3000",
            "ftp://host",
            "http://",
            "http://user:word@host",
            "http://host/?a=b",
        ] {
            assert!(BaseUrl::parse(url).is_err(), "{url}");
        }
    }
}
