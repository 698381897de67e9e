//! How many events a second go through Redis, and how long a route, a rate and a share take: `cargo bench -p cluster --bench events`.
//! It holds what the house promises: 10 000 events a second, and a route in another process within 50 ms, of a hundred all but one.
#![expect(clippy::print_stdout, reason = "its figures are its output")]

use std::time::{Duration, Instant};

use cluster::redis::{Config, Redis};
use model::{Quota, SandboxId, Secret, TeamId};
use ports::bus::contract::happening;
use ports::catalog::contract::route;
use ports::limits::Rate;
use ports::shares::contract::share;
use tokio::sync::broadcast::error::RecvError;

const EVENTS: usize = 100_000;
/// Events that are told before the reader is waited for: fewer than the bus keeps for Redis.
const BURST: usize = 4000;
const ROUNDS: usize = 5000;

/// Prints them; the 99th of a hundred.
fn figures(what: &str, mut took: Vec<Duration>) -> Duration {
    took.sort();
    let at = |part: usize| took[took.len() * part / 1000];
    println!("{what}: p50 {:?}, p99 {:?}, p999 {:?}", at(500), at(990), at(999));
    at(990)
}

#[tokio::main]
async fn main() {
    // `cargo test` runs benches too, to see that they work.
    let is_short = !std::env::args().any(|argument| argument == "--bench");
    if !testkit::services::redis::Redis::is_installed() {
        return;
    }
    let server = testkit::services::redis::Redis::start().expect("Redis starts");
    let config = Config {
        url: Secret::new(server.url()),
        cluster: "bench".parse().expect("it is a name"),
        ca: None,
        identity: None,
    };
    let one = Redis::connect(config.clone()).await.expect("Redis is there");
    let other = Redis::connect(config).await.expect("Redis is there");
    let rate = events(&one, &other, if is_short { BURST } else { EVENTS }).await;
    let rounds = if is_short { 50 } else { ROUNDS };
    let heard = routes(&one, &other, rounds).await;
    questions(&one, rounds).await;
    if !is_short {
        assert!(rate >= 10_000.0, "{rate:.0} events a second");
        assert!(
            heard <= Duration::from_millis(50),
            "{heard:?} until a route is everywhere"
        );
    }
}

/// From publish in one process to a subscriber in another.
async fn events(one: &Redis, other: &Redis, count: usize) -> f64 {
    let (bus, team) = (one.bus(), TeamId::random());
    let mut heard = other.bus().subscribe();
    let news: Vec<_> = (0..BURST).map(|n| happening(team, n)).collect();
    let began = Instant::now();
    for _ in 0..count / BURST {
        for happening in &news {
            bus.publish(happening.clone()).await;
        }
        let mut seen = 0;
        while seen < BURST {
            match heard.recv().await {
                Ok(_) => seen += 1,
                Err(RecvError::Lagged(missed)) => panic!("{missed} were too fast for the subscriber"),
                Err(RecvError::Closed) => panic!("the bus is gone"),
            }
        }
    }
    let took = began.elapsed();
    let whole = count / BURST * BURST;
    #[expect(clippy::cast_precision_loss, reason = "there are few")]
    let rate = whole as f64 / took.as_secs_f64();
    println!("{whole} events from process to process in {took:?}: {rate:.0}/s");
    rate
}

/// From publish in one process to the change in another.
async fn routes(one: &Redis, other: &Redis, rounds: usize) -> Duration {
    let mut changes = other.catalog().changes();
    let (mut published, mut heard) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        one.catalog()
            .publish(route(SandboxId::random(), 1))
            .await
            .expect("Redis is there");
        published.push(began.elapsed());
        changes.recv().await.expect("the catalog is there");
        heard.push(began.elapsed());
    }
    figures("a route is published", published);
    figures("a route is in another process", heard)
}

async fn questions(one: &Redis, rounds: usize) {
    let (team, quota) = (TeamId::random(), Quota::default());
    let rate = Rate {
        per_second: 1_000_000,
        burst: 1_000_000,
    };
    let (mut taken, mut claimed, mut released) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        one.limits()
            .take(team, "starts", rate)
            .await
            .expect("there is more than enough");
        taken.push(began.elapsed());
        let share = share(team);
        let began = Instant::now();
        one.shares()
            .claim(share, &quota)
            .await
            .expect("there is more than enough");
        claimed.push(began.elapsed());
        let began = Instant::now();
        one.shares().release(share).await;
        released.push(began.elapsed());
    }
    figures("one of a rate is taken", taken);
    figures("a share is claimed", claimed);
    figures("a share is given back", released);
}
