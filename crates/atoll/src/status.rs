//! `atoll status`.
use std::process::ExitCode;

use anyhow::Result;

use crate::control::{self, Status};
use crate::data::DataDir;
use crate::settings::Resolved;

/// Asks the daemon; fails where none runs.
pub(crate) fn run(settings: &Resolved, json: bool) -> Result<ExitCode> {
    if !DataDir::is_held(&settings.data_dir)? {
        if json {
            println!("{}", serde_json::json!({ "running": false }));
        }
        eprintln!("atoll: no daemon runs on {}", settings.data_dir.display());
        return Ok(ExitCode::FAILURE);
    }
    let status: Status = control::ask(&settings.data_dir, "status")?;
    if json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        println!(
            "daemon      process {}, version {}, since {}",
            status.pid, status.version, status.started_at
        );
        println!("runtime     {}", status.runtime);
        println!("API         {}", status.api_url);
        println!(
            "sandboxes   {} running, {} paused, reached by {}",
            status.running, status.paused, status.sandbox_url
        );
        println!("prepared    {}", status.slots_ready);
    }
    Ok(ExitCode::SUCCESS)
}
