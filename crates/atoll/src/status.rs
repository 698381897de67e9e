//! `atoll status`.
use std::process::ExitCode;

use anyhow::Result;

use crate::control::{self, Request, Status};
use crate::data::DataDir;
use crate::out;
use crate::settings::Resolved;

/// Asks the daemon; fails where none runs.
pub(crate) fn run(settings: &Resolved, json: bool) -> Result<ExitCode> {
    if !DataDir::is_held(&settings.data_dir)? {
        if json {
            out::json(&serde_json::json!({ "running": false }))?;
        }
        out::say(format_args!("no daemon runs on {}", settings.data_dir.display()));
        return Ok(ExitCode::FAILURE);
    }
    let status: Status = control::ask(&settings.data_dir, &Request::Status)?;
    if json {
        out::json(&status)?;
    } else {
        out::text(&format!(
            "\
daemon      process {}, version {}, since {}
runtime     {}
API         {}
sandboxes   {} running, {} paused, reached by {}
prepared    {}
",
            status.pid,
            status.version,
            status.started_at,
            status.runtime,
            status.api_url,
            status.running,
            status.paused,
            status.sandbox_url,
            status.slots_ready
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
