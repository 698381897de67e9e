use std::time::Instant;

use model::{BuildId, MiB};
use ports::discovery::Known;
use ports::discovery::contract::until;
use ports::scheduler::{BlockChange, BlockState, Purpose, Size};

use self::double::{Double, MACHINE, TOKEN};
use super::*;

mod double;
mod real;

fn config(double: &Double, cluster: &str) -> Config {
    Config {
        within: Duration::from_secs(2),
        wait: Duration::from_secs(2),
        ..Config::new(double.address(), cluster.parse().unwrap())
    }
}

async fn scheduler() -> Option<(Double, Arc<Nomad>)> {
    let double = Double::start(Size {
        cpu: 8,
        memory: MiB(4096),
    })
    .await;
    let nomad = Nomad::connect(config(&double, "atoll")).await.unwrap();
    Some((double, nomad))
}

/// On a double of Nomad's, which keeps its API's promises as its documentation has them.
mod keeps_the_contract_on_a_double {
    ports::scheduler_contract!(super::scheduler());
}

fn ask() -> Ask {
    Ask {
        token: BuildId::random().to_string(),
        size: Size {
            cpu: 1,
            memory: MiB(64),
        },
        zone: None,
        purpose: Purpose::Shared,
    }
}

async fn running(nomad: &Nomad) -> Block {
    let block = nomad.schedule(ask()).await.unwrap();
    let mut view = nomad.watch();
    let blocks = until(&mut view, "it runs", |blocks| {
        blocks
            .all
            .get(&block.id)
            .is_some_and(|block| block.state == BlockState::Running)
    })
    .await;
    blocks.all[&block.id].clone()
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_by_name() {
    let good = || Config::new("http://127.0.0.1:4646", "atoll".parse().unwrap());
    good().check().unwrap();
    for (wrong, what) in [
        (
            Config {
                region: Some("x\"y".to_owned()),
                ..good()
            },
            "region",
        ),
        (
            Config {
                datacenters: Vec::new(),
                ..good()
            },
            "datacentres",
        ),
        (
            Config {
                driver: "docker".to_owned(),
                ..good()
            },
            "docker",
        ),
        (
            Config {
                program: "atoll".to_owned(),
                ..good()
            },
            "program",
        ),
        (Config { cpu_mhz: 1, ..good() }, "MHz"),
        (
            Config {
                wait: Duration::ZERO,
                ..good()
            },
            "wait",
        ),
    ] {
        let refused = wrong.check().unwrap_err().to_string();
        assert!(refused.contains(what), "{refused}");
    }
}

#[tokio::test]
async fn blocks_of_a_machine_that_drains_are_told_to_be_emptied_then_over() {
    let (double, nomad) = scheduler().await.unwrap();
    let block = running(&nomad).await;
    let mut view = nomad.watch();
    let before = view.borrow().clone();
    double.slow_to_stop(true);
    double.drain();
    let blocks = until(&mut view, "it drains", |blocks| {
        blocks.all[&block.id].state == BlockState::Draining
    })
    .await;
    let changes = blocks.since(&before);
    assert!(
        matches!(&changes[..], [BlockChange::Draining(told)] if told.id == block.id),
        "{changes:?}"
    );
    assert!(
        blocks.all[&block.id].reason.contains("drain"),
        "{}",
        blocks.all[&block.id].reason
    );
    double.slow_to_stop(false);
    let over = until(&mut view, "it is over", |blocks| {
        blocks.all[&block.id].state == BlockState::Stopped
    })
    .await;
    assert!(matches!(&over.since(&blocks)[..], [BlockChange::Ended(_)]));
}

#[tokio::test]
async fn blocks_of_a_machine_that_is_lost_are_lost() {
    let (double, nomad) = scheduler().await.unwrap();
    let block = running(&nomad).await;
    let mut view = nomad.watch();
    let before = view.borrow().clone();
    double.machine_says("unknown");
    let blocks = until(&mut view, "it is silent", |blocks| {
        blocks.all[&block.id].state == BlockState::Unreachable
    })
    .await;
    assert_eq!(blocks.since(&before), [], "what is silent may come back");
    double.machine_says("lost");
    let blocks = until(&mut view, "it is lost", |blocks| {
        blocks.all[&block.id].state == BlockState::Lost
    })
    .await;
    let changes = blocks.since(&before);
    assert!(
        matches!(&changes[..], [BlockChange::Lost(told)] if told.id == block.id),
        "{changes:?}"
    );
}

#[tokio::test]
async fn two_clusters_on_one_nomad_do_not_meet() {
    let (double, here) = scheduler().await.unwrap();
    // Their jobs begin with the same words.
    let there = Nomad::connect(config(&double, "atoll-block-1c-64m"))
        .await
        .unwrap();
    let theirs = running(&there).await;
    assert!(
        theirs.id.0.starts_with("atoll-block-1c-64m-block-"),
        "{}",
        theirs.id
    );
    let block = running(&here).await;
    let listed = async |nomad: &Nomad| {
        let page = nomad.list(&Filter::default(), None, 10).await.unwrap();
        page.blocks.into_iter().map(|block| block.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(&there).await, std::slice::from_ref(&theirs.id));
    assert_eq!(listed(&here).await, std::slice::from_ref(&block.id));
    here.stop(&theirs.id).await.unwrap();
    assert_eq!(there.get(&block.id).await.unwrap(), None);
    there.stop(&block.id).await.unwrap();
    here.stop(&BlockId("somebody-elses-job".to_owned()))
        .await
        .unwrap();
    let still = here.get(&block.id).await.unwrap().unwrap();
    assert_eq!(still.state, BlockState::Running);
    assert!(double.stopped().is_empty(), "nothing was stopped");
}

#[tokio::test]
async fn what_others_call_as_our_blocks_is_left_out() {
    let (double, nomad) = scheduler().await.unwrap();
    let block = running(&nomad).await;
    double.put_job(
        "atoll-block-1c-64m/dispatch-1-evil",
        json!({ "atoll_token": "../x", "atoll_cpu": "9" }),
    );
    double.put_job("atoll-block-x", json!({}));
    let all = nomad.list(&Filter::default(), None, 10).await.unwrap().blocks;
    assert_eq!(all.iter().map(|block| &block.id).collect::<Vec<_>>(), [&block.id]);
}

#[tokio::test]
async fn lists_of_many_pages_and_of_old_nomads_are_read_whole() {
    let (double, nomad) = scheduler().await.unwrap();
    double.page_at_most(2);
    double.tell_meta_in_lists(false);
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(running(&nomad).await.id);
    }
    ids.sort();
    let all = nomad.list(&Filter::default(), None, 100).await.unwrap();
    assert_eq!(
        all.blocks.into_iter().map(|block| block.id).collect::<Vec<_>>(),
        ids
    );
    assert_eq!(all.next, None);
}

#[tokio::test]
async fn a_nomad_that_is_away_costs_the_view_nothing_and_one_that_forgot_is_told_again() {
    let (mut double, nomad) = scheduler().await.unwrap();
    let block = running(&nomad).await;
    let mut view = nomad.watch();
    let before = view.borrow().clone();
    double.stop().await;
    let stale = until(&mut view, "away", |blocks| {
        matches!(blocks.known, Known::Stale(_))
    })
    .await;
    assert_eq!(stale.all, before.all, "the last known view stays");
    assert_eq!(stale.since(&before), []);
    let away = nomad.schedule(ask()).await.unwrap_err();
    assert!(matches!(away, ScheduleError::Away { .. }), "{away:?}");
    // It comes back from nothing: jobs, allocations and indices begin anew.
    double.start_anew().await;
    let anew = until(&mut view, "back", |blocks| blocks.known == Known::Current).await;
    assert!(anew.all.is_empty());
    assert!(matches!(&anew.since(&before)[..], [BlockChange::Lost(told)] if told.id == block.id));
    running(&nomad).await;
}

#[tokio::test]
async fn a_nomad_that_stands_still_holds_nobody_up() {
    let (double, nomad) = scheduler().await.unwrap();
    running(&nomad).await;
    let mut view = nomad.watch();
    double.stand_still(true);
    let began = Instant::now();
    let away = nomad.schedule(ask()).await.unwrap_err();
    assert!(
        told(&away).contains("did not answer within 2s"),
        "{}",
        told(&away)
    );
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let blocks = until(&mut view, "stale", |blocks| {
        matches!(blocks.known, Known::Stale(_))
    })
    .await;
    assert_eq!(blocks.all.len(), 1);
    double.stand_still(false);
    until(&mut view, "current", |blocks| blocks.known == Known::Current).await;
}

#[tokio::test]
async fn a_wrong_token_is_refused_with_its_reason() {
    let double = Double::start(Size {
        cpu: 8,
        memory: MiB(4096),
    })
    .await;
    double.ask_for_token();
    let with = |token: &str| Config {
        token: Some(Secret::new(token.to_owned())),
        ..config(&double, "atoll")
    };
    let refused = Nomad::connect(with("wrong")).await.err().unwrap();
    assert!(matches!(refused, ScheduleError::Refused { .. }), "{refused:?}");
    assert!(refused.to_string().contains("Permission denied"), "{refused}");
    assert!(!format!("{refused:?}").contains("wrong\""), "{refused:?}");
    let nomad = Nomad::connect(with(TOKEN)).await.unwrap();
    assert_eq!(running(&nomad).await.place.unwrap().machine, MACHINE);
}

/// What Nomad is told, checked in, so that its own client's types can be held against it.
#[test]
fn the_parent_job_is_what_is_checked_against_nomads_types() {
    let ask = Ask {
        zone: Some("dc1".to_owned()),
        ..ask()
    };
    let mut job = job::parent(
        &Config::new("http://127.0.0.1:4646", "atoll".parse().unwrap()),
        &ask,
    );
    job["Region"] = "global".into();
    job["Namespace"] = "default".into();
    let written = serde_json::to_string_pretty(&json!({ "Job": job })).unwrap() + "\n";
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/tools/jobs/testdata/block.json");
    if std::env::var_os("ATOLL_TEST_RENDER").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &written).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), written);
}

fn holder(id: &str, allocation: &str) -> Holder {
    Holder {
        id: id.to_owned(),
        allocation: allocation.to_owned(),
        sandbox: None,
        size: Size {
            cpu: 2,
            memory: MiB(512),
        },
    }
}

#[tokio::test]
async fn a_block_is_counted_while_its_process_lives_and_emptied_before_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("blocks.sock");
    let holds = Holds::listen(&socket).unwrap();
    let mut watched = holds.watch();
    let stop = CancellationToken::new();
    let (at, stopped) = (socket.clone(), stop.clone());
    let held = tokio::spawn(async move { hold(&at, &holder("b", "1"), stopped).await });
    until(&mut watched, "it is held", |holds| holds.contains_key("b")).await;
    assert_eq!(
        usable(&watched.borrow()),
        Size {
            cpu: 2,
            memory: MiB(512)
        }
    );
    stop.cancel();
    until(&mut watched, "it drains", |holds| {
        holds.get("b").is_some_and(|hold| hold.draining)
    })
    .await;
    assert_eq!(usable(&watched.borrow()), Size::default());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!held.is_finished(), "it waits until nothing is in it");
    holds.emptied("b", "1");
    assert!(held.await.unwrap());
    until(&mut watched, "it is gone", |holds| holds.is_empty()).await;
}

#[tokio::test]
async fn a_block_whose_process_is_killed_is_gone_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("blocks.sock");
    let holds = Holds::listen(&socket).unwrap();
    let mut watched = holds.watch();
    let at = socket.clone();
    let held = tokio::spawn(async move { hold(&at, &holder("b", "1"), CancellationToken::new()).await });
    until(&mut watched, "it is held", |holds| holds.contains_key("b")).await;
    held.abort();
    until(&mut watched, "it is gone", |holds| holds.is_empty()).await;
}

#[tokio::test]
async fn a_daemon_that_starts_anew_is_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("blocks.sock");
    let stop = CancellationToken::new();
    let (at, stopped) = (socket.clone(), stop.clone());
    // The block is there before the daemon is.
    let held = tokio::spawn(async move { hold(&at, &holder("b", "1"), stopped).await });
    for _ in 0..2 {
        let holds = Holds::listen(&socket).unwrap();
        let mut watched = holds.watch();
        until(&mut watched, "it is held", |holds| holds.contains_key("b")).await;
    }
    let holds = Holds::listen(&socket).unwrap();
    let mut watched = holds.watch();
    until(&mut watched, "it is held", |holds| holds.contains_key("b")).await;
    stop.cancel();
    until(&mut watched, "it drains", |holds| {
        holds.get("b").is_some_and(|hold| hold.draining)
    })
    .await;
    holds.emptied("b", "1");
    assert!(held.await.unwrap());
}

#[tokio::test]
async fn nonsense_at_the_socket_holds_nothing() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("blocks.sock");
    let holds = Holds::listen(&socket).unwrap();
    let long = format!("{}\n", "x".repeat(10_000));
    for (said, expected) in [
        ("\n", ""),
        ("{}\n", ""),
        (long.as_str(), ""),
        (r#"{"say":"drain"}"#, ""),
        (
            "{\"say\":\"hold\",\"id\":\"\",\"allocation\":\"1\",\"cpu\":1,\"memory_mib\":1}\n",
            "refused",
        ),
        (
            "{\"say\":\"hold\",\"id\":\"a\",\"allocation\":\"1\",\"cpu\":0,\"memory_mib\":1}\n",
            "refused",
        ),
        (
            "{\"say\":\"hold\",\"id\":\"a\",\"allocation\":\"1\",\"cpu\":1,\"memory_mib\":1,\"x\":1}\n",
            "",
        ),
    ] {
        let mut line = tokio::net::UnixStream::connect(&socket).await.unwrap();
        line.write_all(said.as_bytes()).await.unwrap();
        line.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // One that said too much is cut off.
        let _ = line.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.contains(expected) && (expected.is_empty() == answer.is_empty()),
            "{said:?}: {answer:?}"
        );
    }
    assert!(holds.watch().borrow().is_empty());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
