//! Byte streams into sandboxes.
use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::catalog::Route;

/// A connection, whatever carries it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// The port on which envd is reached from outside (contract 1.2).
pub const ENVD_PORT: u16 = 49_983;

/// Reaches into sandboxes through their nodes' guest proxies.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Opens a connection to `port` of the execution that `route` names. [`ENVD_PORT`] is envd's host-side socket.
    /// Never reaches another execution of the same sandbox: a stale route is [`DialError::Gone`].
    async fn dial(&self, route: &Route, port: u16) -> Result<Box<dyn Stream>, DialError>;
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The sandbox, or this execution of it, is not there any more.
    #[error("the sandbox is not running here")]
    Gone,
    /// Nothing listens on the port.
    #[error("port {0} is not open")]
    Closed(u16),
    /// The connection could not be made.
    #[error("dialling port {port} failed")]
    Io {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
