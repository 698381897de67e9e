//! A service that is spoken to by HTTP and JSON: one client with its bounds, for Consul and for Nomad.
use std::error::Error;
use std::time::Duration;

use model::Secret;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, Method, Url};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// Bytes of an answer that are read: ten thousand services with all their metadata are 20 MiB.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes of what a service says of a failure that are passed on.
const SAID_BYTES_MAX: usize = 300;

/// How a service is known, and how we are to it. Nothing of it: what the machine's own certificates say.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// The authorities that may vouch for it, in PEM, and no others.
    pub ca_pem: Option<String>,
    /// Our certificate and its key, in PEM, one after the other, where it asks for them.
    pub identity_pem: Option<Secret<String>>,
}

/// The service, and who asks it.
pub(crate) struct Peer {
    http: Client,
    base: Url,
    header: Option<(HeaderName, HeaderValue)>,
}

/// What is asked.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// Parts of the path; each is encoded.
    pub(crate) path: &'a [&'a str],
    pub(crate) query: Vec<(&'a str, String)>,
    pub(crate) body: Option<Vec<u8>>,
    /// In which time the whole answer is to be there.
    pub(crate) within: Duration,
}

/// What was answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// Why nothing was.
#[derive(Debug)]
pub(crate) enum PeerError {
    Away(Box<dyn Error + Send + Sync>),
    Slow(Duration),
    Strange(String),
}

impl Peer {
    /// A client of the service at an address, which nobody has spoken to yet. What it must be told of the address and of TLS
    /// is told in words.
    pub(crate) fn new(
        address: &str,
        tls: &Tls,
        header: Option<(&'static str, &Secret<String>)>,
    ) -> Result<Self, String> {
        // One provider of cryptography for the whole program. A second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base: Url = address
            .parse()
            .map_err(|error| format!("{address:?} is not an address: {error}"))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(format!("{address:?} is not an address of http or https"));
        }
        if base.path() != "/" || base.query().is_some() || !base.username().is_empty() {
            return Err(format!("{address:?} says more than scheme, host and port"));
        }
        let mut http = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(Duration::from_secs(30));
        if let Some(pem) = &tls.ca_pem {
            let authorities = Certificate::from_pem_bundle(pem.as_bytes())
                .ok()
                .filter(|all| !all.is_empty())
                .ok_or("the authorities' certificates are not in PEM")?;
            http = http.tls_certs_only(authorities);
        }
        if let Some(pem) = &tls.identity_pem {
            let identity = Identity::from_pem(pem.expose().as_bytes())
                .map_err(|_| "our certificate and its key are not in PEM")?;
            http = http.identity(identity);
        }
        let header = match header {
            Some((name, token)) => {
                let mut value = HeaderValue::from_str(token.expose())
                    .map_err(|_| "the token has bytes that no token has")?;
                value.set_sensitive(true);
                Some((HeaderName::from_static(name), value))
            }
            None => None,
        };
        let http = http.build().map_err(|error| told(&error))?;
        Ok(Self { http, base, header })
    }

    /// Where the service is.
    pub(crate) fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Asks, and reads the whole answer, whatever its status.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Answer, PeerError> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(call.path);
        }
        if !call.query.is_empty() {
            let mut pairs = url.query_pairs_mut();
            for (name, value) in &call.query {
                pairs.append_pair(name, value);
            }
        }
        let mut request = self.http.request(call.method, url);
        if let Some((name, value)) = &self.header {
            request = request.header(name, value);
        }
        if let Some(body) = call.body {
            request = request.header("content-type", "application/json").body(body);
        }
        match timeout(call.within, read(request)).await {
            Ok(read) => read,
            Err(_) => Err(PeerError::Slow(call.within)),
        }
    }
}

async fn read(request: reqwest::RequestBuilder) -> Result<Answer, PeerError> {
    let away = |error: reqwest::Error| PeerError::Away(error.without_url().into());
    let mut response = request.send().await.map_err(away)?;
    let too_long = || PeerError::Strange(format!("it is longer than {ANSWER_BYTES_MAX} bytes"));
    if response
        .content_length()
        .is_some_and(|length| length > ANSWER_BYTES_MAX as u64)
    {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(away)? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(too_long());
        }
        body.extend_from_slice(&piece);
    }
    Ok(Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body,
    })
}

impl Answer {
    /// A number of the head.
    pub(crate) fn number(&self, header: &str) -> Option<u64> {
        self.headers.get(header)?.to_str().ok()?.parse().ok()
    }

    /// A word of the head.
    pub(crate) fn word(&self, header: &str) -> Option<&str> {
        self.headers.get(header)?.to_str().ok()
    }

    /// The body as what it should be.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, PeerError> {
        serde_json::from_slice(&self.body).map_err(|error| PeerError::Strange(error.to_string()))
    }

    /// What it says of a failure, cut short.
    pub(crate) fn said(&self) -> String {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(SAID_BYTES_MAX)]);
        let plain: String = text.chars().filter(|c| !c.is_control()).collect();
        if plain.trim().is_empty() {
            format!("status {}", self.status)
        } else {
            plain.trim().to_owned()
        }
    }
}

/// A name of a datacentre, a region, a namespace: letters in lower case, digits and `-`, at most 64.
pub(crate) fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(plain)
}

/// A time that is configured, and the least and the most that it can be.
pub(crate) type Bounded = (&'static str, Duration, Duration, Duration);

/// Whether all times are within their bounds; else the first that is not, in words.
pub(crate) fn check_times(of: &str, times: &[Bounded]) -> Result<(), String> {
    match times.iter().find(|(_, is, least, most)| is < least || is > most) {
        None => Ok(()),
        Some((what, is, least, most)) => Err(format!(
            "{what} of {of} is {is:?}, and {least:?} to {most:?} is possible"
        )),
    }
}

/// An error with its causes, for those who cannot carry them.
pub(crate) fn told(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// How long to wait before asking again what failed so often: it doubles up to a bound, and no two wait for the same time.
pub(crate) fn pause(failures: u32, longest: Duration) -> Duration {
    let doubled = Duration::from_millis(200).saturating_mul(1 << failures.min(10));
    let most = doubled.min(longest);
    most.mul_f64(rand::random_range(0.5..1.0))
}

/// The index to ask with next, after one was asked with and one was answered: 0, which waits for nothing, where it went
/// backwards (the service was restored, or began anew) or is missing.
pub(crate) const fn next_index(asked: u64, answered: Option<u64>) -> u64 {
    match answered {
        Some(index) if index >= asked => index,
        Some(_) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_backwards_begins_anew() {
        for (asked, answered, expected) in [
            (0, Some(7), 7),
            (7, Some(7), 7),
            (7, Some(8), 8),
            (7, Some(6), 0),
            (7, Some(0), 0),
            (7, None, 0),
        ] {
            assert_eq!(next_index(asked, answered), expected, "{asked} {answered:?}");
        }
    }

    #[test]
    fn pauses_grow_up_to_a_bound_and_differ() {
        let longest = Duration::from_secs(10);
        for failures in 0..40 {
            let pause = pause(failures, longest);
            assert!(
                pause >= Duration::from_millis(100) && pause <= longest,
                "{pause:?}"
            );
        }
        assert!(pause(30, longest) >= Duration::from_secs(5));
    }

    #[test]
    fn an_address_is_an_address_and_no_more() {
        let new = |address: &str| Peer::new(address, &Tls::default(), None).map(|_| ());
        assert_eq!(new("http://127.0.0.1:8500"), Ok(()));
        assert_eq!(new("https://consul.example:8501"), Ok(()));
        for wrong in [
            "127.0.0.1:8500",
            "ftp://x",
            "http://x/y",
            "http://x?y",
            "http://u:p@x",
            "",
        ] {
            assert!(new(wrong).is_err(), "{wrong}");
        }
        let pem = Tls {
            ca_pem: Some("no certificate".to_owned()),
            ..Tls::default()
        };
        assert!(Peer::new("https://x", &pem, None).is_err());
        let token = Secret::new("a\nb".to_owned());
        assert!(Peer::new("https://x", &Tls::default(), Some(("x-token", &token))).is_err());
    }
}
