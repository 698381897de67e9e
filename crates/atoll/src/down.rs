//! `atoll down`.
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::control::{self, Ended, Request};
use crate::data::DataDir;
use crate::house::House;
use crate::settings::Resolved;
use crate::{host, out, telemetry};

/// What a daemon needs to give back what it had prepared.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// Ends everything: by the daemon where one runs, by ourselves where none does.
pub(crate) fn run(settings: Resolved, json: bool) -> Result<ExitCode> {
    if settings.cluster.is_some() {
        return down_node(&settings, json);
    }
    if !settings.data_dir.join("atoll.db").exists() {
        out::say(format_args!(
            "nothing was ever started in {}",
            settings.data_dir.display()
        ));
        return told(0, json);
    }
    let ended = if DataDir::is_held(&settings.data_dir)? {
        let ended: Ended = control::ask(&settings.data_dir, &Request::Down)?;
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
    let left = records_left(&settings.data_dir);
    if left > 0 {
        bail!(
            "ended {} sandboxes, and {left} slots are not given back yet; `atoll down` once more gives them back",
            ended.ended
        );
    }
    out::say(format_args!("ended {} sandboxes; all is given back", ended.ended));
    told(ended.ended, json)
}

/// Ends what a node of a fleet holds. Its daemon must not run: it would be asked for more.
fn down_node(settings: &Resolved, json: bool) -> Result<ExitCode> {
    if DataDir::is_held(&settings.data_dir)? {
        bail!(
            "the process of a fleet that uses {} runs: stop it first; its sandboxes live on until then",
            settings.data_dir.display()
        );
    }
    if !settings.data_dir.join("node").exists() {
        out::say(format_args!(
            "{} is no node's: there is nothing to be ended",
            settings.data_dir.display()
        ));
        return told(0, json);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let _telemetry = telemetry::start(settings)?;
        host::end_all(settings, &DataDir::open(&settings.data_dir)?).await
    })?;
    let left = records_left(&settings.data_dir);
    if left > 0 {
        bail!(
            "ended {ended} sandboxes, and {left} slots are not given back yet; `atoll down` once more gives them back"
        );
    }
    out::say(format_args!("ended {ended} sandboxes; all is given back"));
    told(ended, json)
}

fn told(ended: usize, json: bool) -> Result<ExitCode> {
    if json {
        out::json(&serde_json::json!({ "ended": ended }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Slots, or machines, that are on record still: whatever a sandbox holds on this machine is found from there, and a record is the last of
/// it that goes.
fn records_left(data: &Path) -> usize {
    let is_record = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "json");
    ["container/slots", "qemu/machines", "fc/machines"]
        .iter()
        .filter_map(|dir| std::fs::read_dir(data.join(dir)).ok())
        .flatten()
        .flatten()
        .filter(is_record)
        .count()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_on_record_is_not_given_back() {
        let data = std::env::temp_dir().join(format!("atoll-down-{}", std::process::id()));
        let slots = data.join("container/slots");
        assert_eq!(records_left(&data), 0);
        std::fs::create_dir_all(&slots).unwrap();
        std::fs::write(slots.join("1.json.new"), "").unwrap();
        assert_eq!(records_left(&data), 0);
        std::fs::write(slots.join("1.json"), "").unwrap();
        assert_eq!(records_left(&data), 1);
        std::fs::remove_dir_all(&data).unwrap();
    }
}
