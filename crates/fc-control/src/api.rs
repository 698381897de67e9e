//! Firecracker's API: HTTP/1.1 over a Unix socket in the jail, one request after the other.
//!
//! Success is 204 without a body, or 200 with one where something is asked; everything else comes with
//! `{"fault_message": "…"}`. Whoever answers is trusted less than we are: a guest may have taken it over. So an answer has
//! a bound in bytes, in headers and in time, and what it says is made plain before anybody reads it.
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

pub(crate) mod request;

use request::{
    Action, ActionType, BootSource, Drive, DriveChange, Entropy, InstanceInfo, MachineConfig, MmdsConfig,
    NetworkInterface, SnapshotCreate, SnapshotLoad, VersionInfo, VmChange, VmState, Vsock,
};

/// An answer is a message, or some facts: less than a kilobyte.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Firecracker sends five.
const HEADERS_MAX: usize = 32;
/// What of a fault is passed on.
const FAULT_CHARS_MAX: usize = 500;
/// A request before the boot takes some milliseconds; on a machine that is out of breath it takes a while.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// A boot's request reads a kernel and an initramfs, a load's maps memory.
const BEGUN_WITHIN: Duration = Duration::from_secs(60);
/// Memory is written as fast as the host's disk takes it.
const WRITTEN_WITHIN: Duration = Duration::from_secs(600);

/// Why Firecracker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Nobody listens, or nobody does any more.
    #[error("{what}: there is no Firecracker at {path}")]
    Gone {
        what: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It says no.
    #[error("{what}: Firecracker refused it with {status}: {fault}")]
    Refused {
        what: String,
        status: u16,
        /// Its `fault_message`, made plain.
        fault: String,
    },
    /// It does not speak as it should, or hung up.
    #[error("{what}: Firecracker's answer is not one: {why}")]
    Garbled { what: String, why: String },
    /// It says more than there is to say.
    #[error("{what}: Firecracker's answer has more than {ANSWER_BYTES_MAX} bytes")]
    Endless { what: String },
    /// It says nothing.
    #[error("{what}: Firecracker did not answer within {within:?}")]
    Late { what: String, within: Duration },
}

impl From<ApiError> for io::Error {
    fn from(error: ApiError) -> Self {
        let kind = match &error {
            ApiError::Gone { .. } => io::ErrorKind::NotConnected,
            ApiError::Late { .. } => io::ErrorKind::TimedOut,
            ApiError::Refused { .. } => io::ErrorKind::Other,
            ApiError::Garbled { .. } | ApiError::Endless { .. } => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// One Firecracker's API. Connects when it is asked something, and again when the connection is no use any more.
#[derive(Debug)]
pub(crate) struct Api {
    socket: PathBuf,
    /// Held for one request and its answer: Firecracker takes them one by one anyway.
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Api {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            connection: Mutex::default(),
        }
    }

    /// Whether anybody listens yet.
    pub(crate) async fn listens(&self) -> io::Result<()> {
        UnixStream::connect(&self.socket).await.map(drop)
    }

    pub(crate) async fn version(&self) -> Result<String, ApiError> {
        let told: VersionInfo = self.get("/version").await?;
        Ok(plain(&told.firecracker_version))
    }

    /// How its machine is. One that is writing memory down answers when it has written it.
    pub(crate) async fn instance(&self, within: Duration) -> Result<InstanceInfo, ApiError> {
        let body = self.ask(Method::GET, "/", Bytes::new(), within).await?;
        understood("GET /", &body)
    }

    pub(crate) async fn machine_config(&self, config: &MachineConfig) -> Result<(), ApiError> {
        self.put("/machine-config", config, ANSWERED_WITHIN).await
    }

    pub(crate) async fn boot_source(&self, source: &BootSource) -> Result<(), ApiError> {
        self.put("/boot-source", source, ANSWERED_WITHIN).await
    }

    pub(crate) async fn drive(&self, drive: &Drive) -> Result<(), ApiError> {
        self.put(&format!("/drives/{}", drive.drive_id), drive, ANSWERED_WITHIN)
            .await
    }

    /// Puts another file behind a drive, also of a machine whose memory was loaded and that stands. If this fails it must
    /// not go on: it would write to somebody else's disk.
    pub(crate) async fn change_drive(&self, change: &DriveChange) -> Result<(), ApiError> {
        self.patch(&format!("/drives/{}", change.drive_id), change).await
    }

    pub(crate) async fn network_interface(&self, interface: &NetworkInterface) -> Result<(), ApiError> {
        let path = format!("/network-interfaces/{}", interface.iface_id);
        self.put(&path, interface, ANSWERED_WITHIN).await
    }

    pub(crate) async fn mmds_config(&self, config: &MmdsConfig) -> Result<(), ApiError> {
        self.put("/mmds/config", config, ANSWERED_WITHIN).await
    }

    /// What is told inside. It is not part of a snapshot.
    pub(crate) async fn mmds(&self, data: &serde_json::Value) -> Result<(), ApiError> {
        self.put("/mmds", data, ANSWERED_WITHIN).await
    }

    pub(crate) async fn vsock(&self, vsock: &Vsock) -> Result<(), ApiError> {
        self.put("/vsock", vsock, ANSWERED_WITHIN).await
    }

    pub(crate) async fn entropy(&self) -> Result<(), ApiError> {
        self.put("/entropy", &Entropy {}, ANSWERED_WITHIN).await
    }

    /// Lets the kernel boot.
    pub(crate) async fn start(&self) -> Result<(), ApiError> {
        let action = Action {
            action_type: ActionType::InstanceStart,
        };
        self.put("/actions", &action, BEGUN_WITHIN).await
    }

    /// Stops all of its processors. Of one that stands already that is nothing.
    pub(crate) async fn pause(&self) -> Result<(), ApiError> {
        let state = VmState::Paused;
        self.patch("/vm", &VmChange { state }).await
    }

    /// Lets them go on.
    pub(crate) async fn resume(&self) -> Result<(), ApiError> {
        let state = VmState::Resumed;
        self.patch("/vm", &VmChange { state }).await
    }

    /// Writes down a machine that stands.
    pub(crate) async fn snapshot(&self, create: &SnapshotCreate) -> Result<(), ApiError> {
        self.put("/snapshot/create", create, WRITTEN_WITHIN).await
    }

    /// Brings a machine back that was written down.
    pub(crate) async fn load(&self, load: &SnapshotLoad) -> Result<(), ApiError> {
        self.put("/snapshot/load", load, BEGUN_WITHIN).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let body = self.ask(Method::GET, path, Bytes::new(), ANSWERED_WITHIN).await?;
        understood(&format!("GET {path}"), &body)
    }

    async fn put(&self, path: &str, body: &impl Serialize, within: Duration) -> Result<(), ApiError> {
        self.ask(Method::PUT, path, json(body), within).await.map(drop)
    }

    async fn patch(&self, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        self.ask(Method::PATCH, path, json(body), BEGUN_WITHIN)
            .await
            .map(drop)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, ApiError> {
        let what = format!("{method} {path}");
        let asked = async {
            let mut held = self.connection.lock().await;
            // Taken out: what is cut off in its middle is not used again.
            let mut sender = held.take();
            if let Some(kept) = &mut sender
                && kept.ready().await.is_err()
            {
                sender = None;
            }
            let sender = match sender {
                Some(sender) => sender,
                None => self.connect(&what).await?,
            };
            let (sender, body) = exchange(sender, &what, method, path, body).await?;
            *held = Some(sender);
            Ok(body)
        };
        match tokio::time::timeout(within, asked).await {
            Ok(answered) => answered,
            Err(_) => Err(ApiError::Late { what, within }),
        }
    }

    async fn connect(&self, what: &str) -> Result<SendRequest<Full<Bytes>>, ApiError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ApiError::Gone {
                what: what.to_owned(),
                path: self.socket.clone(),
                source,
            })?;
        let connected = Builder::new()
            .max_buf_size(ANSWER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = connected.map_err(|error| garbled(what, &error))?;
        // It ends when the sender is dropped, or when the other side hangs up.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }
}

async fn exchange(
    mut sender: SendRequest<Full<Bytes>>,
    what: &str,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(SendRequest<Full<Bytes>>, Bytes), ApiError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "localhost")
        .header(http::header::ACCEPT, "application/json")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| garbled(what, &error))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| garbled(what, &error))?;
    let status = answer.status();
    let body = match Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(ApiError::Endless {
                what: what.to_owned(),
            });
        }
        Err(error) => return Err(garbled(what, &*error)),
    };
    match status {
        StatusCode::OK | StatusCode::NO_CONTENT => Ok((sender, body)),
        refused => Err(ApiError::Refused {
            what: what.to_owned(),
            status: refused.as_u16(),
            fault: fault(&body),
        }),
    }
}

fn json(body: &impl Serialize) -> Bytes {
    let bytes = serde_json::to_vec(body).expect("strings, numbers and paths that are UTF-8 are JSON");
    bytes.into()
}

fn understood<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| garbled(what, &error))
}

fn garbled(what: &str, error: &dyn std::error::Error) -> ApiError {
    let mut why = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        why = format!("{why}: {error}");
        cause = error.source();
    }
    ApiError::Garbled {
        what: what.to_owned(),
        why: plain(&why),
    }
}

/// The fault that a body tells, or what it says instead.
fn fault(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Fault {
        fault_message: String,
    }
    match serde_json::from_slice::<Fault>(body) {
        Ok(Fault { fault_message }) => plain(&fault_message),
        Err(_) => plain(&String::from_utf8_lossy(body)),
    }
}

/// Without what could steer a terminal or feign another line, and not longer than anybody reads.
pub(crate) fn plain(said: &str) -> String {
    let calm = |c: char| if c.is_control() { ' ' } else { c };
    let said: String = said.trim().chars().map(calm).take(FAULT_CHARS_MAX).collect();
    said.trim_end().to_owned()
}

#[cfg(test)]
mod tests;
