//! A server, and the processes of a fleet at it.
use std::time::Duration;

use cluster::redis::{Config, Redis};
use model::Secret;
use testkit::services::redis::Redis as Server;

/// Longer than Redis needs to be noticed as away, and shorter than anybody would wait.
pub(crate) const BOUND: Duration = Duration::from_secs(3);

/// A server, where Redis is installed.
pub(crate) fn server() -> Option<Server> {
    Server::is_installed().then(|| Server::start().expect("Redis starts"))
}

pub(crate) fn config(server: &Server, cluster: &str) -> Config {
    Config {
        url: Secret::new(server.url()),
        cluster: cluster.parse().expect("it is a name"),
        ca: None,
        identity: None,
    }
}

/// A process of a cluster.
pub(crate) async fn process(server: &Server) -> Redis {
    Redis::with_terms(
        config(server, "blue"),
        ports::idempotency::contract::terms(),
        ports::queue::contract::terms(),
    )
    .await
    .expect("Redis is there")
}

/// A server with two processes of one cluster.
pub(crate) async fn two() -> Option<(Server, Redis, Redis)> {
    let server = server()?;
    let (one, other) = (process(&server).await, process(&server).await);
    Some((server, one, other))
}

pub(crate) use ports::catalog::contract::eventually;

/// Waits until Redis is noticed as away, or as there.
pub(crate) async fn until(redis: &Redis, is_there: bool) {
    eventually("Redis is noticed", async || {
        redis.ready().await.is_ok() == is_there
    })
    .await;
}

/// Something that is done within the bound.
pub(crate) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(BOUND, work).await;
    done.unwrap_or_else(|_| panic!("{what} hangs"))
}
