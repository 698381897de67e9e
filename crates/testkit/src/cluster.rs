//! `atoll-bench cluster`: a whole fleet beside one house, under the same load; and what a fleet stands on, by itself.
//!
//! ```text
//! placement, events, rpc   programs of their crates, which time themselves
//! list                     an API alone, among a hundred thousand sandboxes in PostgreSQL
//! creates, routes, burst   `atoll dev cluster`: three nodes, PostgreSQL, Redis, Consul; and for the first `atoll up`
//! ```
mod burst;
mod creates;
mod fleet;
mod list;
mod programs;
mod routes;

use anyhow::Result;

use self::fleet::Fleet;
use crate::figures::Figures;
use crate::house::House;
use crate::options::Options;

/// The parts of a run, in its order. `cargo xtask bench cluster` starts what each of them needs.
const PARTS: [&str; 7] = ["placement", "events", "rpc", "list", "creates", "routes", "burst"];

/// Measures what the arguments ask for.
pub(crate) async fn bench(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments, &PARTS)?;
    let scale = options.scale;
    let mut figures = Figures::default();
    for part in &options.parts {
        match *part {
            "placement" => programs::placement(scale, &mut figures)?,
            "events" => programs::events(scale, &mut figures)?,
            "rpc" => programs::rpc(&mut figures)?,
            "list" => list::measure(scale, &mut figures).await?,
            "creates" => creates::measure(scale, &House::of("")?, &Fleet::started()?, &mut figures).await?,
            "routes" => routes::measure(scale, &Fleet::started()?, &mut figures).await?,
            _ => burst::measure(scale, &Fleet::started()?, &mut figures).await?,
        }
    }
    options.tell(&figures)
}
