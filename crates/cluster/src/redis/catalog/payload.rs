//! What Redis holds of a route beside its number and version.
use model::{Seat, Secret};
use ports::Route;
use serde::{Deserialize, Serialize};

/// Tokens and mask. They are in clear: who reads Redis may speak to every sandbox.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    envd_token: Option<String>,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    traffic_token: Option<String>,
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    mask_host: Option<String>,
}

impl Kept {
    pub(super) fn of(route: &Route) -> Self {
        let token = |token: &Option<Secret<String>>| token.as_ref().map(|token| token.expose().clone());
        Self {
            envd_token: token(&route.envd_token),
            traffic_token: token(&route.traffic_token),
            mask_host: route.mask_host.as_ref().map(|mask| mask.as_str().to_owned()),
        }
    }

    /// Adds them to the rest of a route; `None` where the mask is none.
    pub(super) fn complete(self, route: Route) -> Option<Route> {
        let mask_host = self.mask_host.map(|mask| mask.parse()).transpose().ok()?;
        Some(Route {
            envd_token: self.envd_token.map(Secret::new),
            traffic_token: self.traffic_token.map(Secret::new),
            mask_host,
            ..route
        })
    }
}

/// A seat as one word.
pub(super) fn seat(seat: Seat) -> String {
    format!("{}/{}", seat.node, seat.execution)
}

pub(super) fn parse_seat(word: &str) -> Option<Seat> {
    let (node, execution) = word.split_once('/')?;
    Some(Seat {
        node: node.parse().ok()?,
        execution: execution.parse().ok()?,
    })
}
