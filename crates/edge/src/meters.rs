//! What the edge counts.
use std::collections::HashMap;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// Handles kept for good, so that counting needs no look-up.
pub(crate) struct Meters {
    /// `atoll_edge_requests_total{outcome="relayed"}`.
    pub(crate) relayed: Counter,
    /// `atoll_edge_added_seconds`: from the request's head to the moment it goes inside, dialling included.
    pub(crate) added: Histogram,
    /// `atoll_edge_connections`: open now.
    pub(crate) connections: Gauge,
    /// `atoll_edge_lines_total{from="fresh"}`: connections made into sandboxes.
    pub(crate) fresh: Counter,
    /// `atoll_edge_lines_total{from="pool"}`: requests that needed none.
    pub(crate) pooled: Counter,
    /// `atoll_edge_streams_cut_total`: cut because their route was withdrawn, idle ones included.
    pub(crate) cut: Counter,
    /// `atoll_edge_wakes_total`: requests that waited for a sandbox to be resumed.
    pub(crate) wakes: Counter,
    refused: HashMap<&'static str, Counter>,
    other: Counter,
}

/// The outcomes of [`crate::refusal::Refusal::name`].
const REFUSALS: [&str; 13] = [
    "not_found",
    "bad_target",
    "unsigned",
    "control_path",
    "port_closed",
    "token",
    "denied",
    "transitioning",
    "exhausted",
    "crowded",
    "not_resumed",
    "blind",
    "api_away",
];

impl Meters {
    pub(crate) fn new() -> Self {
        let requests = |outcome| counter!("atoll_edge_requests_total", "outcome" => outcome);
        Self {
            relayed: requests("relayed"),
            added: histogram!("atoll_edge_added_seconds"),
            connections: gauge!("atoll_edge_connections"),
            fresh: counter!("atoll_edge_lines_total", "from" => "fresh"),
            pooled: counter!("atoll_edge_lines_total", "from" => "pool"),
            cut: counter!("atoll_edge_streams_cut_total"),
            wakes: counter!("atoll_edge_wakes_total"),
            refused: REFUSALS.iter().map(|&name| (name, requests(name))).collect(),
            other: requests("other"),
        }
    }

    pub(crate) fn refused(&self, name: &'static str) {
        self.refused.get(name).unwrap_or(&self.other).increment(1);
    }
}
