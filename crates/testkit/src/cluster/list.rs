//! Lists of the API among a hundred thousand sandboxes in PostgreSQL, over HTTP.
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use model::Secret;
use sdk::{Client, ListQuery};
use testkit::services::api::Api;
use wire::rest::SandboxState;

use crate::figures::{Figures, Goal};
use crate::scale::Scale;

/// The longest page that the API gives.
const PAGE: usize = 100;
/// The first ones open connections, and bring rows into memory.
const WARM: usize = 5;

pub(super) async fn measure(scale: Scale, figures: &mut Figures) -> Result<()> {
    let variable = |name: &str| {
        std::env::var(name).with_context(|| format!("{name} is not set: run `cargo xtask bench cluster`"))
    };
    let (atoll, filler) = (variable("ATOLL_BIN")?, variable("ATOLL_BENCH_LARGE_FLEET")?);
    // No orchestrator is there, to which the sandboxes would be lost ones.
    let server = Api::start(Path::new(&atoll), |url| {
        let status = Command::new(&filler)
            .args(["fill", url, &scale.listed.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("cannot run {filler}"))?;
        ensure!(status.success(), "{filler} ended with {status}");
        Ok(())
    })?;
    let api = Client::new(&server.url(), &Secret::new(server.key().to_owned()))?;
    let count = scale.listed;
    let labelled = |key: &str, value: &str| ListQuery {
        metadata: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        ..ListQuery::default()
    };
    let paused = ListQuery {
        states: vec![SandboxState::Paused],
        ..ListQuery::default()
    };
    let goal = Goal::p99_ms(20.0);
    for (what, query) in [
        ("the first page", ListQuery::default()),
        ("the first page of the paused, one in 10", paused),
        ("by a label that all have", labelled("app", "agent")),
        ("by a label that one in 100 has", labelled("kind", "rare")),
        ("by a label that one in 10000 has", labelled("user", "user-70")),
        ("by a label that none has", labelled("user", "nobody")),
    ] {
        let query = ListQuery {
            limit: Some(PAGE),
            ..query
        };
        let mut took = Vec::new();
        for number in 0..WARM + scale.lists {
            let began = Instant::now();
            api.sandboxes(&query).await?;
            if number >= WARM {
                took.push(began.elapsed());
            }
        }
        figures.times(format!("list of {PAGE} among {count}: {what}"), goal, took);
    }
    let (mut took, mut seen) = (Vec::new(), 0);
    let mut query = ListQuery {
        limit: Some(PAGE),
        ..ListQuery::default()
    };
    loop {
        let began = Instant::now();
        let page = api.sandboxes(&query).await?;
        took.push(began.elapsed());
        seen += page.items.len();
        if page.next.is_none() {
            break;
        }
        query.next = page.next;
    }
    ensure!(seen == count, "{seen} of {count} were listed");
    figures.times(
        format!("list of {PAGE} among {count}: every page, to the last"),
        goal,
        took,
    );
    Ok(())
}
