//! `atoll down`.
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::control::{self, Ended};
use crate::data::DataDir;
use crate::house::House;
use crate::settings::Resolved;
use crate::{out, telemetry};

/// What a daemon needs to give back what it had prepared.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// Ends everything: by the daemon where one runs, by ourselves where none does.
pub(crate) fn run(settings: Resolved, json: bool) -> Result<ExitCode> {
    if !settings.data_dir.join("atoll.db").exists() {
        out::say(format_args!(
            "nothing was ever started in {}",
            settings.data_dir.display()
        ));
        return told(0, json);
    }
    let ended = if DataDir::is_held(&settings.data_dir)? {
        let ended: Ended = control::ask(&settings.data_dir, "down")?;
        wait_until_gone(&settings)?;
        ended
    } else {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let _telemetry = telemetry::start(&settings)?;
            let data = DataDir::open(&settings.data_dir)?;
            // Nothing is prepared for sandboxes that are not to come.
            let without_pool = Resolved {
                pool: 0,
                ..settings.clone()
            };
            let house = House::open(without_pool, data).await?;
            let ended = house.end_sandboxes().await;
            house.close().await;
            anyhow::Ok(ended)
        })?
    };
    if let Some(error) = ended.error {
        bail!("not all sandboxes could be ended: {error}");
    }
    out::say(format_args!("ended {} sandboxes; all is given back", ended.ended));
    told(ended.ended, json)
}

fn told(ended: usize, json: bool) -> Result<ExitCode> {
    if json {
        out::json(&serde_json::json!({ "ended": ended }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn wait_until_gone(settings: &Resolved) -> Result<()> {
    let deadline = Instant::now() + GONE_WITHIN;
    while DataDir::is_held(&settings.data_dir)? {
        if Instant::now() > deadline {
            bail!("the daemon has ended its sandboxes and does not stop itself");
        }
        #[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
