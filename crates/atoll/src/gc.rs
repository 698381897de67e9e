//! `atoll gc`.
use std::process::ExitCode;

use anyhow::Result;

use crate::control::{self, Request};
use crate::images::Removed;
use crate::out;
use crate::settings::Resolved;

/// Has the daemon remove what nothing needs.
pub(crate) fn run(settings: &Resolved, json: bool) -> Result<ExitCode> {
    let removed: Removed = control::ask(&settings.data_dir, &Request::Gc)?;
    if removed.builds_waiting > 0 {
        out::say(format_args!(
            "{} builds that nothing names may be in somebody's hand; they are removed when they were left alone for a minute",
            removed.builds_waiting
        ));
    }
    if removed.silent_nodes > 0 {
        out::say(format_args!(
            "{} nodes did not do their part",
            removed.silent_nodes
        ));
    }
    if json {
        out::json(&removed)?;
    } else {
        out::text(&format!(
            "\
builds      {} removed
steps       {} forgotten
uploads     {} removed
records     {} of builds removed
layers      {} removed, {} MiB; {} MiB are kept
",
            removed.builds,
            removed.steps,
            removed.uploads,
            removed.records,
            removed.layers,
            removed.layer_bytes >> 20,
            removed.layer_bytes_left >> 20
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
