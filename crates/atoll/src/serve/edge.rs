//! The role `edge`.
use std::sync::Arc;

use anyhow::Result;
use cluster::redis::Redis;
use edge::{Edge, EdgeParts};
use rpc::guest::RemoteGuest;
use rpc::tls::Tls;
use rpc::wake::RemoteWake;
use tokio::net::TcpListener;

use super::members::Members;
use crate::settings::Resolved;
use crate::tasks::Tasks;
use crate::tls;
use crate::up::listen;

/// Passes traffic on until it is told to stop.
pub(crate) async fn serve(
    settings: &Resolved,
    members: &Members,
    identity: &Tls,
    redis: &Redis,
    listener: TcpListener,
    tasks: &mut Tasks,
) -> Result<()> {
    let edge = Edge::new(EdgeParts {
        catalog: redis.catalog(),
        guest: RemoteGuest::new(members.node_addresses(), identity),
        wake: RemoteWake::new(members.control_addresses(), identity),
        domain: settings.domain.clone(),
    });
    if let Some(address) = settings.tls_listen {
        let listener = listen("tls", address).await?;
        let (edge, config, stop) = (Arc::clone(&edge), tls::server_config(settings)?, tasks.stop());
        tasks.spawn("the edge's TLS", edge.serve_tls(listener, config, None, stop));
    }
    let stop = tasks.stop();
    tasks.spawn("the edge", edge.serve(listener, stop));
    Ok(())
}
