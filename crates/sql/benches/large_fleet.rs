//! What does a page of a team's sandboxes take among a hundred thousand, with the count beside it as the API asks; what does
//! it take to tell all that live; what does a create pay to PostgreSQL:
//! `cargo bench -p sql --bench large_fleet`. Starts a server of its own, durable as in production.
//!
//! `large_fleet fill URL COUNT` measures nothing: it fills the database of another benchmark, for the team that is there.
#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{BuildId, NodeId, PauseMode, Phase, Sandbox, Secret, State, TeamId};
use ports::store::{Cursor, SandboxQuery, contract};
use ports::{SandboxStore, TeamStore, TemplateStore};
use sql::{Database, Postgres, PostgresConfig};
use testkit::services::postgres::{Postgres as Server, Setup};

const SANDBOXES: usize = 100_000;
const ROUNDS: usize = 500;
const WRITES: usize = 2_000;
const AT_ONCE: usize = 50;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [fill, url, count] = &arguments[..]
        && fill == "fill"
    {
        let count = count.parse().expect("a number of sandboxes");
        runtime.block_on(fill_other(url, count));
        return;
    }
    if !Server::is_installed() {
        return;
    }
    let setup = Setup {
        durable: true,
        ..Setup::default()
    };
    let server = Server::start_with(&setup).expect("a server");
    server.create_database("fleet", None).expect("a database");
    runtime.block_on(async {
        let config = PostgresConfig::new(Secret::new(server.url("fleet")));
        sql::migrate(&Database::Postgres(config.clone()))
            .await
            .expect("a schema");
        let store = Postgres::connect(&config).await.expect("stores");
        tokio::spawn(writes(Arc::clone(&store))).await.expect("measured");
        let team = TeamId::random();
        tokio::spawn(fill(Arc::clone(&store), team, SANDBOXES))
            .await
            .expect("filled");
        // What autovacuum does a minute later.
        server
            .run("vacuumdb", &["--analyze", "--quiet", "fleet"])
            .expect("statistics");
        tokio::spawn(lists(store, team)).await.expect("measured");
    });
}

/// Fills a database that has a schema, and one team.
async fn fill_other(url: &str, count: usize) {
    let config = PostgresConfig::new(Secret::new(url.to_owned()));
    let store = Postgres::connect(&config).await.expect("stores");
    let teams = store.teams().await.expect("read");
    let team = teams.first().expect("a team").id;
    tokio::spawn(fill(store, team, count)).await.expect("filled");
}

/// One in ten is paused, one in a hundred has a label that few have; all have one that all have. Every tenth is another team's.
async fn fill(store: Arc<Postgres>, team: TeamId, count: usize) {
    let other = TeamId::random();
    let template = contract::template(team, "base");
    let mut tasks = tokio::task::JoinSet::new();
    let began = Instant::now();
    for part in 0..AT_ONCE {
        let store = Arc::clone(&store);
        let template = template.id;
        tasks.spawn(async move {
            for number in (part..count + count / 10).step_by(AT_ONCE) {
                let mut sandbox = contract::sandbox(if number < count { team } else { other });
                sandbox.template = template;
                sandbox.started_at +=
                    Duration::from_millis(u64::try_from(number).expect("small") * 37 % 86_400_000);
                sandbox.metadata = BTreeMap::from([("app".to_owned(), "agent".to_owned())]);
                sandbox
                    .metadata
                    .insert("user".to_owned(), format!("user-{}", number % 10_000));
                if number % 100 == 0 {
                    sandbox.metadata.insert("kind".to_owned(), "rare".to_owned());
                }
                if number % 10 == 0 {
                    sandbox.phase = Phase::Paused {
                        snapshot: BuildId::random(),
                        mode: PauseMode::Full,
                        home: NodeId::random(),
                    };
                }
                SandboxStore::insert(&*store, &sandbox).await.expect("stored");
            }
        });
    }
    tasks.join_all().await;
    println!(
        "{:<46} {:>8.0}/s",
        "inserts, 50 at once",
        count as f64 * 1.1 / began.elapsed().as_secs_f64()
    );
}

async fn lists(store: Arc<Postgres>, team: TeamId) {
    let first = SandboxQuery {
        limit: 101,
        ..contract::everything(team)
    };
    let labelled = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let questions = [
        ("first page, newest first", first.clone()),
        (
            "first page, oldest first",
            SandboxQuery {
                ascending: true,
                ..first.clone()
            },
        ),
        (
            "page of the paused",
            SandboxQuery {
                states: vec![State::Paused],
                ..first.clone()
            },
        ),
        (
            "page by a label that all have",
            SandboxQuery {
                metadata: labelled("app", "agent"),
                ..first.clone()
            },
        ),
        (
            "page by a label that one in 100 has",
            SandboxQuery {
                metadata: labelled("kind", "rare"),
                ..first.clone()
            },
        ),
        (
            "page by a label that one in 10000 has",
            SandboxQuery {
                metadata: labelled("user", "user-77"),
                ..first.clone()
            },
        ),
        (
            "page by a label that none has",
            SandboxQuery {
                metadata: labelled("user", "nobody"),
                ..first.clone()
            },
        ),
    ];
    for (what, query) in &questions {
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            let began = Instant::now();
            SandboxStore::list(&*store, query).await.expect("listed");
            took.push(began.elapsed());
        }
        print(what, took);
    }
    for ascending in [false, true] {
        let mut took = Vec::new();
        let mut query = SandboxQuery {
            ascending,
            ..first.clone()
        };
        let mut seen = 0;
        loop {
            let began = Instant::now();
            let page = SandboxStore::list(&*store, &query).await.expect("listed");
            took.push(began.elapsed());
            seen += page.len();
            let Some(last) = page.last() else { break };
            query.after = Some(Cursor {
                started_at: last.started_at,
                id: last.id,
            });
        }
        assert_eq!(seen, SANDBOXES);
        print(
            if ascending {
                "all pages, oldest first"
            } else {
                "all pages, newest first"
            },
            took,
        );
    }
    let mut took = Vec::new();
    let mut both = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let count = SandboxStore::count(&*store, team, State::Running)
            .await
            .expect("counted");
        took.push(began.elapsed());
        assert_eq!(count, (SANDBOXES - SANDBOXES / 10) as u64);
        SandboxStore::list(&*store, &first).await.expect("listed");
        both.push(began.elapsed());
    }
    print("count of 90000 that run", took);
    print("count and first page, as the API asks", both);
    let mut took = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let live = store.live().await.expect("told");
        took.push(began.elapsed());
        assert!(live.len() >= SANDBOXES);
    }
    print("all 110000 that live", took);
}

async fn writes(store: Arc<Postgres>) {
    let template = contract::template(TeamId::random(), "base");
    TemplateStore::insert(&*store, &template).await.expect("stored");
    let create = async |store: &Postgres| {
        let mut sandbox = contract::sandbox(template.team);
        let phase = sandbox.phase;
        let seat = phase.seat().expect("it runs");
        sandbox.phase = Phase::Starting {
            at: seat,
            from: model::Origin::Template(sandbox.build),
        };
        store.named(template.team, "base").await.expect("read");
        SandboxStore::insert(store, &sandbox).await.expect("stored");
        let running = Sandbox { phase, ..sandbox };
        SandboxStore::update(store, &running).await.expect("stored");
        store
            .spawned(template.id, running.started_at)
            .await
            .expect("counted");
    };
    let mut took = Vec::new();
    for _ in 0..WRITES {
        let began = Instant::now();
        create(&store).await;
        took.push(began.elapsed());
    }
    print("a create's four statements, alone", took);
    let began = Instant::now();
    let parts = (0..AT_ONCE).map(|_| async {
        let mut took = Vec::new();
        for _ in 0..WRITES / AT_ONCE {
            let began = Instant::now();
            create(&store).await;
            took.push(began.elapsed());
        }
        took
    });
    let took = futures_util::future::join_all(parts).await.concat();
    let whole = began.elapsed();
    print("a create's four statements, 50 at once", took);
    println!("{:<46} {:>8.0}/s", "creates", WRITES as f64 / whole.as_secs_f64());
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000];
    println!(
        "{what:<46} p50 {:>8.1?}  p95 {:>8.1?}  p99 {:>8.1?}",
        at(500),
        at(950),
        at(990)
    );
}
