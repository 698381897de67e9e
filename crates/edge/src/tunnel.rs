//! Connections that go on with another protocol: WebSocket, above all.
use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::task::TaskTracker;

use crate::body::{Body, Carrier};
use crate::cut::Cuts;
use crate::exchange::{Call, Lost, Upstream};
use crate::forward;
use crate::lines::Lines;
use crate::meters::Meters;

/// Bytes on their way in each direction of a tunnel: a few large WebSocket frames.
const BUFFER_BYTES: usize = 16 * 1024;

/// A request that wants to go on with another protocol.
pub(crate) struct Upgrade {
    pub(crate) protocol: HeaderValue,
    pub(crate) client: OnUpgrade,
}

/// What a tunnel needs of its listener.
pub(crate) struct Ends<'a> {
    pub(crate) tasks: &'a TaskTracker,
    pub(crate) closing: &'a Arc<Cuts>,
}

/// Sends a request that asks for another protocol. Where the service agrees, both sides are joined until one of
/// them ends, the execution is withdrawn, or the listener closes.
pub(crate) async fn open(
    upstream: Upstream<'_>,
    lines: &Arc<Lines>,
    call: &mut Call,
    upgrade: &mut Option<Upgrade>,
    meters: &Meters,
    ends: Ends<'_>,
) -> Result<Response<Body>, Lost> {
    let line = upstream.open(lines).await?;
    let request = call.request.take().expect("a call is exchanged with its request");
    meters.fresh.increment(1);
    meters.added.record(call.begun.elapsed());
    let (sending, task, ticket) = line.into_upgradeable(request).ok_or(Lost::Closed)?;
    let response = tokio::select! {
        biased;
        () = ticket.cut() => return Err(Lost::Gone),
        response = sending => response.map_err(|error| {
            tracing::debug!(%error, "a service broke off before it answered");
            Lost::Closed
        })?,
    };
    let (mut parts, incoming) = response.into_parts();
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        forward::response(&mut parts);
        let detached = Some(task);
        return Ok(Response::from_parts(
            parts,
            Body::relay(incoming, Carrier::Task { detached, ticket }),
        ));
    }
    let protocol = parts.headers.get(UPGRADE).cloned();
    let inside = parts.extensions.remove::<OnUpgrade>().ok_or(Lost::Closed)?;
    forward::response(&mut parts);
    parts
        .headers
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        parts.headers.insert(UPGRADE, protocol);
    }
    let closing = ends.closing.enter();
    let client = upgrade.take().ok_or(Lost::Closed)?.client;
    ends.tasks.spawn(async move {
        let joined = async {
            let (client, inside) = futures_util::future::try_join(client, inside).await?;
            drop(task);
            let (mut client, mut inside) = (TokioIo::new(client), TokioIo::new(inside));
            let copied = tokio::io::copy_bidirectional_with_sizes(
                &mut client,
                &mut inside,
                BUFFER_BYTES,
                BUFFER_BYTES,
            )
            .await;
            // A peer that hangs up without a word is how most tunnels end.
            if let Err(error) = copied {
                tracing::debug!(%error, "a tunnel broke");
            }
            Ok::<_, hyper::Error>(())
        };
        let Some(closing) = closing else { return };
        tokio::select! {
            () = ticket.cut() => {}
            () = closing.cut() => {}
            joined = joined => if let Err(error) = joined {
                tracing::debug!(%error, "a tunnel was not joined");
            }
        }
    });
    Ok(Response::from_parts(parts, Body::empty()))
}
