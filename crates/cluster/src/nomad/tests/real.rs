//! On a real Nomad, where there is one: `ATOLL_TEST_NOMAD` names the program, or it is on the path.
use std::sync::{Arc, Weak};

use model::SandboxId;
use testkit::services::nomad::Nomad as Server;

use super::super::*;

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

async fn scheduler() -> Option<(Arc<Server>, Arc<Nomad>)> {
    if !Server::is_installed() {
        return None;
    }
    let server = {
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::start().unwrap());
            *shared = Arc::downgrade(&server);
            server
        })
    };
    let config = Config {
        program: "/bin/sleep".to_owned(),
        arguments: Some(vec!["3600".to_owned()]),
        cpu_mhz: 100,
        drain_within: Duration::from_secs(1),
        ..Config::new(
            server.address(),
            format!("t{}", SandboxId::random()).parse().unwrap(),
        )
    };
    Some((server, Nomad::connect(config).await.unwrap()))
}

mod keeps_the_contract {
    ports::scheduler_contract!(super::scheduler());
}

/// Every job of `deploy/nomad` is one to Nomad's own program.
#[test]
fn nomad_takes_the_jobs_that_deploy_atoll() {
    if !Server::is_installed() {
        return;
    }
    let server = Server::start().unwrap();
    let jobs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/nomad");
    let mut count = 0;
    for entry in std::fs::read_dir(jobs).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "hcl") {
            server.validate(&path).unwrap();
            count += 1;
        }
    }
    assert_eq!(count, 5);
}
