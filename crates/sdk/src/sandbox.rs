use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use model::{Kind, Secret};
use wire::envd::process as proto;
use wire::host::{SANDBOX_ID_HEADER, SANDBOX_PORT_HEADER};

use crate::base::BaseUrl;
use crate::body::{Body, whole};
use crate::error::CallError;
use crate::process::{Process, Program};
use crate::rpc;
use crate::transport::{ANSWER_WITHIN, Transport, header_value};

/// Where envd listens in every sandbox (contract 1.2).
const ENVD_PORT: HeaderValue = HeaderValue::from_static("49983");

/// Files and programs of one sandbox, as envd in it has them (contract, section 5). Clones share connections.
#[derive(Debug, Clone)]
pub struct SandboxClient {
    base: BaseUrl,
    transport: Transport,
    sandbox: HeaderValue,
    token: Option<HeaderValue>,
}

impl SandboxClient {
    /// A client for a sandbox. `sandbox_url` is where the edge listens; `token` is what the API gave as
    /// `envdAccessToken`.
    ///
    /// # Errors
    /// [`CallError::Address`], [`CallError::Unsendable`], and [`CallError::Authorities`] where TLS is asked for.
    pub fn new(
        sandbox_url: &str,
        sandbox_id: &str,
        token: Option<&Secret<String>>,
    ) -> Result<Self, CallError> {
        let base = BaseUrl::parse(sandbox_url)?;
        let transport = Transport::new(base.is_secure())?;
        let token = token
            .map(|token| header_value("access token", token.expose()))
            .transpose()?;
        let hide = |mut token: HeaderValue| {
            token.set_sensitive(true);
            token
        };
        Ok(Self {
            base,
            transport,
            sandbox: header_value("sandbox id", sandbox_id)?,
            token: token.map(hide),
        })
    }

    /// Whether its envd answers. A sandbox that is not there, or paused, does not.
    ///
    /// # Errors
    /// What kept the question from being answered.
    pub async fn is_running(&self) -> Result<bool, CallError> {
        let asked = self.request(Method::GET, "/health", None, Bytes::new())?;
        match self.transport.call(asked, Some(ANSWER_WITHIN)).await {
            Ok(_) => Ok(true),
            Err(error @ CallError::Refused { .. }) if error.kind() == Kind::Unavailable => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Starts a program.
    ///
    /// # Errors
    /// [`CallError::Refused`] with [`Kind::Invalid`] where it cannot be started as told.
    pub async fn start(&self, program: Program) -> Result<Process, CallError> {
        let user = program.user.clone();
        let messages = rpc::stream(
            self,
            "/process.Process/Start",
            user.as_deref(),
            &program.into_request(),
        )
        .await?;
        Process::begun(self.clone(), messages).await
    }

    /// Programs that run, as `(pid, command, arguments)`.
    ///
    /// # Errors
    /// As of every call.
    pub async fn programs(&self) -> Result<Vec<(u32, String, Vec<String>)>, CallError> {
        let question = proto::ListRequest::default();
        let list: proto::ListResponse = rpc::unary(
            self,
            "/process.Process/List",
            None,
            &question,
            Some(ANSWER_WITHIN),
        )
        .await?;
        let told = |process: proto::ProcessInfo| {
            let config = process.config.into_option().unwrap_or_default();
            (process.pid, config.cmd, config.args)
        };
        Ok(list.processes.into_iter().map(told).collect())
    }

    pub(crate) const fn transport(&self) -> &Transport {
        &self.transport
    }

    /// A request to envd; `user` is whose rights a call has, by HTTP's Basic scheme without a password (contract 2.2).
    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        user: Option<&str>,
        body: Bytes,
    ) -> Result<Request<Body>, CallError> {
        let mut request = Request::new(whole(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.base.join(path);
        let headers = request.headers_mut();
        headers.insert(SANDBOX_ID_HEADER, self.sandbox.clone());
        headers.insert(SANDBOX_PORT_HEADER, ENVD_PORT);
        if let Some(token) = &self.token {
            headers.insert("x-access-token", token.clone());
        }
        if let Some(user) = user {
            let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:")));
            headers.insert(header::AUTHORIZATION, header_value("user", &basic)?);
        }
        Ok(request)
    }
}
