//! Registries, as the distribution's specification has them: documents by name or digest, blobs in parts.
//!
//! The public client crate for this has no bound on what a registry answers and no say in which addresses are connected to; here
//! every answer is bounded, and every address, also behind redirects, is looked at before it is spoken to.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::images::PullError;
use crate::policy::{Policy, Server};

pub(crate) mod auth;
pub(crate) mod blob;
mod ecr;
mod reach;

pub(crate) use auth::Basic;
use reach::{Reach, Refused};

/// How long an answer may take to begin.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long a body may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Registries send to a store of blobs once, sometimes through a second name.
const REDIRECTS_MAX: usize = 5;
/// What is read of an error's body.
const ERROR_BYTES_MAX: u64 = 16 << 10;
/// Tries of one question, while nothing comes of it.
pub(crate) const TRIES_MAX: u32 = 5;
/// Tries of one question where somebody else can be asked: a mirror that is away costs a moment, once.
const TRIES_OF_MIRRORS_MAX: u32 = 2;
/// Between the first two of them; it doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// Longer is not waited, whatever a registry asks for.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What a body is: nothing, most of the time.
type Body = Full<Bytes>;

/// A way to all registries.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pool: Pool<HttpsConnector<Reach>, Body>,
    policy: Arc<Policy>,
}

/// Why a question had no good answer.
#[derive(Debug)]
pub(crate) enum AskError {
    /// Another try may have one.
    Again {
        why: String,
        /// The registry said when.
        after: Option<Duration>,
        /// It said that it was asked too often.
        is_limit: bool,
    },
    /// It answered, but not as hoped.
    Status(StatusCode, String),
    /// It cannot be asked.
    Never(PullError),
}

impl Client {
    /// Reads the authorities that are trusted.
    pub(crate) fn new(policy: Arc<Policy>) -> std::io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in rustls_native_certs::load_native_certs().certs {
            // One that is not understood is one that is not trusted.
            let _ = roots.add(certificate);
        }
        for file in &policy.authorities {
            let wrong =
                |why: String| std::io::Error::other(format!("authorities: {}: {why}", file.display()));
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
        }
        let provider = rustls::crypto::ring::default_provider();
        let tls = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Reach::new(Arc::clone(&policy)));
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { pool, policy })
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Asks once, whoever it is, and returns the head of whatever answer there is.
    async fn send(
        &self,
        method: Method,
        url: &Uri,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, AskError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = url.clone();
        *request.headers_mut() = headers.clone();
        let agent = HeaderValue::from_static(concat!("atoll/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, agent);
        let host = url.authority().map_or("", |authority| authority.as_str());
        let sent = tokio::time::timeout(ANSWER_WITHIN, self.pool.request(request)).await;
        match sent {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => match refused(&error) {
                Some(Refused { host, address }) => {
                    tracing::info!(host, %address, "a registry was not asked: its address is not public");
                    Err(AskError::Never(PullError::Private {
                        host: host.clone(),
                        address: *address,
                    }))
                }
                None => Err(again(format!("{host}: {}", chain(&error)))),
            },
            Err(_) => Err(again(format!(
                "{host} did not answer within {} s",
                ANSWER_WITHIN.as_secs()
            ))),
        }
    }

    /// Asks a server for a path of a repository, with what it is to be told of who asks, and goes where it sends.
    async fn get(
        &self,
        seat: &Seat<'_>,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, AskError> {
        let first = seat.url(path)?;
        let mut asked = headers.clone();
        let mut url = first.clone();
        let mut is_told = false;
        let mut redirects = 0;
        loop {
            let is_home = url.authority() == first.authority() && url.scheme() == first.scheme();
            asked.remove(header::AUTHORIZATION);
            if is_home && let Some(told) = seat.told().await {
                asked.insert(header::AUTHORIZATION, told);
            }
            let answer = self.send(Method::GET, &url, &asked, Bytes::new()).await?;
            let status = answer.status();
            if status == StatusCode::UNAUTHORIZED && is_home && !is_told {
                is_told = true;
                let challenges = auth::challenges(answer.headers());
                drop(answer);
                if self.answer_challenge(seat, &challenges).await? {
                    continue;
                }
                return Err(AskError::Status(status, String::new()));
            }
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                redirects += 1;
                if redirects > REDIRECTS_MAX {
                    let why = "it sends from one place to another without end".to_owned();
                    return Err(AskError::Never(PullError::Odd {
                        registry: seat.server.authority.clone(),
                        why,
                    }));
                }
                url = self.redirect(seat, &url, answer.headers())?;
                continue;
            }
            if status.is_success() {
                return Ok(answer);
            }
            return Err(self.bad(seat, answer).await);
        }
    }

    fn redirect(&self, seat: &Seat<'_>, from: &Uri, headers: &HeaderMap) -> Result<Uri, AskError> {
        let odd = |why: &str| {
            AskError::Never(PullError::Odd {
                registry: seat.server.authority.clone(),
                why: why.to_owned(),
            })
        };
        let to = headers.get(header::LOCATION).and_then(|to| to.to_str().ok());
        let to = to.ok_or_else(|| odd("it sends elsewhere without saying where"))?;
        let parsed: Uri = to.parse().map_err(|_| odd("it sends to what is no address"))?;
        let url = match (parsed.scheme(), parsed.authority()) {
            (Some(_), Some(_)) => parsed,
            (None, None) if to.starts_with('/') => {
                let mut parts = from.clone().into_parts();
                parts.path_and_query = parsed.into_parts().path_and_query;
                Uri::from_parts(parts).map_err(|_| odd("it sends to what is no address"))?
            }
            _ => return Err(odd("it sends to what is no address")),
        };
        self.may_ask(&url).map_err(|why| odd(&why))?;
        Ok(url)
    }

    /// Plain HTTP only where the policy names the host.
    fn may_ask(&self, url: &Uri) -> Result<(), String> {
        let authority = url.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("it sends to an address with a password in it".to_owned());
        }
        match url.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.policy.is_plain(&authority.to_ascii_lowercase()) => Ok(()),
            _ => Err(format!(
                "it sends to http://{authority}, which is not encrypted; if that is meant, name it in leads_to of the registry's table"
            )),
        }
    }

    /// What an answer that is no success means.
    async fn bad(&self, seat: &Seat<'_>, answer: Response<Incoming>) -> AskError {
        let status = answer.status();
        let after = answer.headers().get(header::RETRY_AFTER);
        let after = after
            .and_then(|after| after.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let body = read(answer.into_body(), ERROR_BYTES_MAX)
            .await
            .unwrap_or_default();
        let says = auth::message(&body);
        match status {
            StatusCode::TOO_MANY_REQUESTS => AskError::Again {
                why: format!("{} limits how often it is asked: {says}", seat.server.authority),
                after,
                is_limit: true,
            },
            StatusCode::REQUEST_TIMEOUT | StatusCode::MISDIRECTED_REQUEST => {
                again(format!("{}: {status}", seat.server.authority))
            }
            status if status.is_server_error() => AskError::Again {
                why: format!("{}: {status} {says}", seat.server.authority),
                after,
                is_limit: false,
            },
            status => AskError::Status(status, says),
        }
    }

    /// A document that is read whole.
    pub(crate) async fn document(
        &self,
        seat: &Seat<'_>,
        path: &str,
        accept: &str,
        limit: u64,
    ) -> Result<Bytes, AskError> {
        let mut headers = HeaderMap::new();
        if let Ok(accept) = HeaderValue::from_str(accept) {
            headers.insert(header::ACCEPT, accept);
        }
        let answer = self.get(seat, path, &headers).await?;
        let too_large = || {
            AskError::Never(PullError::TooLarge {
                what: "a document of the image".to_owned(),
                limit,
            })
        };
        if length(answer.headers()).is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        match read(answer.into_body(), limit).await {
            Ok(bytes) => Ok(bytes),
            Err(ReadError::Long) => Err(too_large()),
            Err(ReadError::Broke(why)) => Err(again(format!("{}: {why}", seat.server.authority))),
        }
    }
}

/// A server, and one who asks it for one repository.
pub(crate) struct Seat<'a> {
    pub(crate) server: Server,
    pub(crate) repository: &'a str,
    pub(crate) basic: Option<Basic>,
    /// What the server wants to be told, once it has said what.
    authorization: tokio::sync::Mutex<Option<HeaderValue>>,
    /// It did not answer, and others can be asked.
    is_away: AtomicBool,
    is_last: bool,
}

impl<'a> Seat<'a> {
    /// `is_last` where nobody else can be asked.
    pub(crate) fn new(server: Server, repository: &'a str, basic: Option<Basic>, is_last: bool) -> Self {
        Self {
            is_away: AtomicBool::new(false),
            is_last,
            server,
            repository,
            basic,
            authorization: tokio::sync::Mutex::default(),
        }
    }

    /// How often a question is asked.
    pub(crate) fn tries_max(&self) -> u32 {
        if self.is_last {
            TRIES_MAX
        } else {
            TRIES_OF_MIRRORS_MAX
        }
    }

    /// It is not asked again, for this image, while there are others.
    pub(crate) fn give_up(&self) {
        self.is_away.store(!self.is_last, Ordering::Relaxed);
    }

    pub(crate) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    async fn told(&self) -> Option<HeaderValue> {
        self.authorization.lock().await.clone()
    }

    /// The repository's name at this server.
    fn name(&self) -> String {
        if self.server.prefix.is_empty() {
            self.repository.to_owned()
        } else {
            format!("{}/{}", self.server.prefix, self.repository)
        }
    }

    fn url(&self, path: &str) -> Result<Uri, AskError> {
        let scheme = if self.server.is_plain { "http" } else { "https" };
        let text = format!("{scheme}://{}/v2/{}/{path}", self.server.authority, self.name());
        text.parse().map_err(|_| {
            AskError::Never(PullError::Odd {
                registry: self.server.authority.clone(),
                why: format!("{text} is no address"),
            })
        })
    }
}

fn again(why: String) -> AskError {
    AskError::Again {
        why,
        after: None,
        is_limit: false,
    }
}

/// How long to wait before the next try: twice as long each time, and never in step with others.
pub(crate) fn pause(tries: u32, asked: Option<Duration>) -> Duration {
    let doubled = PAUSE.saturating_mul(1 << tries.saturating_sub(1).min(6));
    let pause = asked.unwrap_or(doubled).clamp(PAUSE, PAUSE_MAX);
    pause.mul_f64(rand::random_range(0.75..1.25))
}

/// Why a body was not read.
enum ReadError {
    Long,
    Broke(String),
}

async fn read(mut body: Incoming, limit: u64) -> Result<Bytes, ReadError> {
    let mut whole = BytesMut::new();
    while let Some(piece) = piece(&mut body).await.map_err(ReadError::Broke)? {
        if whole.len() as u64 + piece.len() as u64 > limit {
            return Err(ReadError::Long);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// The next bytes of a body; none at its end.
async fn piece(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    loop {
        match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
            Err(_) => return Err(format!("nothing came for {} s", SILENCE_MAX.as_secs())),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(chain(&error)),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Ok(Some(bytes)),
                Err(_) => {}
            },
        }
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.chars().take(400).collect()
}

fn refused<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Refused> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Some(refused);
        }
        // An error of I/O tells its cause's source, not its cause.
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && let Some(inner) = io.get_ref()
            && let Some(refused) = inner.downcast_ref::<Refused>()
        {
            return Some(refused);
        }
        next = error.source();
    }
    None
}
