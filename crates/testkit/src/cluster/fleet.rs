//! A fleet under test.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::house::House;

/// A running fleet.
pub(super) struct Fleet {
    /// It, as clients see it: by its first API, and its first edge.
    pub(super) house: House,
    /// Where each of its edges is.
    pub(super) edges: Vec<String>,
}

/// What `atoll dev cluster` writes down of itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    api_url: String,
    sandbox_url: String,
    api_key: String,
    members: Vec<Member>,
    /// Where the numbers of its processes are, by their names.
    processes: PathBuf,
}

#[derive(Deserialize)]
struct Member {
    name: String,
    role: String,
    listen: Option<String>,
}

impl Fleet {
    /// The one that the environment names.
    pub(super) fn started() -> Result<Self> {
        let told = std::env::var("ATOLL_CLUSTER")
            .context("ATOLL_CLUSTER is not set: run `cargo xtask bench cluster`")?;
        let told: Told = read(Path::new(&told))?;
        let of_role = |role: &'static str| told.members.iter().filter(move |member| member.role == role);
        let first = of_role("api").next().context("the fleet has an API")?;
        let processes: BTreeMap<String, u32> = read(&told.processes)?;
        let daemon = processes.get(&first.name).context("the first API runs")?;
        let edges: Vec<_> = of_role("edge")
            .filter_map(|edge| Some(format!("http://{}", edge.listen.as_ref()?)))
            .collect();
        ensure!(
            edges.contains(&told.sandbox_url),
            "one of its edges is for clients"
        );
        Ok(Self {
            house: House::at(
                told.api_url.clone(),
                told.sandbox_url.clone(),
                told.api_key.clone(),
                *daemon,
            )?,
            edges,
        })
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not understood", path.display()))
}
