//! Hearing a node's events over connections that come and go.
use std::time::Duration;

use connectrpc::client::CallOptions;
use model::{BuildId, ExecutionId, NodeId, SandboxId};
use ports::NodeEvent;
use tokio::sync::broadcast;
use wire::node as proto;

use crate::channel::Channel;
use crate::node::client::EVENTS_MAX;
use crate::node::told;

/// A node that has just gone may be back at once.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
/// One that stays away is asked so often.
const AGAIN_MAX: Duration = Duration::from_secs(2);

/// Up to where a node was heard.
#[derive(Debug, Clone, Copy)]
struct Heard {
    life: u64,
    number: u64,
}

/// Tells all listeners what a node tells, for ever. Where something was missed they are told that.
pub(crate) async fn hear(
    node: NodeId,
    client: proto::NodeClient<Channel>,
    listeners: broadcast::Sender<NodeEvent>,
) {
    let mut heard = None;
    let mut again = AGAIN_FIRST;
    loop {
        if listen(node, &client, &listeners, &mut heard).await {
            again = AGAIN_FIRST;
        }
        // Not all of a node's listeners come back in the same moment.
        tokio::time::sleep(again.mul_f64(rand::random_range(0.5..1.0))).await;
        again = (again * 2).min(AGAIN_MAX);
    }
}

/// Hears until the stream ends; says whether there was one.
async fn listen(
    node: NodeId,
    client: &proto::NodeClient<Channel>,
    listeners: &broadcast::Sender<NodeEvent>,
    heard: &mut Option<Heard>,
) -> bool {
    let request = proto::EventsRequest {
        life: heard.map_or(0, |heard| heard.life),
        after: heard.map(|heard| heard.number),
        ..Default::default()
    };
    let mut events = match client.events_with_options(request, CallOptions::default()).await {
        Ok(events) => events,
        Err(error) => {
            tracing::debug!(%node, error = crate::causes(&error), "the events of a node are not to be heard");
            return false;
        }
    };
    let mut was_heard = false;
    loop {
        let event = match events.message::<proto::Event>().await {
            Ok(Some(event)) => event.to_owned_message(),
            Ok(None) => return was_heard,
            Err(error) => {
                tracing::debug!(%node, error = crate::causes(&error), "the events of a node broke off");
                return was_heard;
            }
        };
        was_heard = true;
        *heard = Some(Heard {
            life: event.life,
            number: event.number,
        });
        if event.gap {
            tracing::info!(%node, "events of a node were missed: its report tells what they said");
            tell_of_gap(listeners);
        }
        match told::from_event(event) {
            Ok(Some(event)) => {
                let _ = listeners.send(event);
            }
            // News of a newer node; what they are about its report says.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%node, error = crate::causes(&error), "an event of a node is not understood");
                tell_of_gap(listeners);
            }
        }
    }
}

/// Makes every listener lag, which is how it hears that it missed something: pushes out whatever it has not heard. What pushes is
/// about a sandbox that nobody has, and so is old news to everybody.
fn tell_of_gap(listeners: &broadcast::Sender<NodeEvent>) {
    let nothing = NodeEvent::PauseFailed(SandboxId::random(), ExecutionId::random(), BuildId::random());
    for _ in 0..=EVENTS_MAX {
        let _ = listeners.send(nothing.clone());
    }
}
