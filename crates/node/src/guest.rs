//! Connections into sandboxes, for the edge.
use async_trait::async_trait;
use ports::Route;
use ports::guest::{DialError, ENVD_PORT, Guest, Stream};
use ports::node::HeldState;

use crate::node::LocalNode;

#[async_trait]
impl Guest for LocalNode {
    async fn dial(&self, route: &Route, port: u16) -> Result<Box<dyn Stream>, DialError> {
        let sandbox = self.find(route.sandbox).ok_or(DialError::Gone)?;
        // Before the look at its state: what waited here may be paused by now.
        let _open = sandbox.enter().await;
        let machine = {
            let now = sandbox.now();
            let same =
                now.entry.order.execution == route.seat.execution && now.entry.state == HeldState::Running;
            now.machine.clone().filter(|_| same).ok_or(DialError::Gone)?
        };
        if port == ENVD_PORT {
            machine.envd().await
        } else {
            machine.dial(port).await
        }
    }
}
