//! Snapshots and forks.
use model::{BuildId, Settings, TemplateOrigin};

use super::*;

fn snapshot(house: &House, name: Option<&str>, tag: &str, second: u64, memory: Kept) -> SnapshotInfo {
    let mut template = contract::template(house.team.id, name.unwrap_or_default());
    template.names = name.iter().map(|name| (*name).to_owned()).collect();
    template.origin = TemplateOrigin::Snapshot(SandboxId::random());
    let build = BuildId::random();
    let settings = Settings {
        memory,
        created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
        ..Settings::default()
    };
    template.tag([tag.to_owned()], build, settings);
    SnapshotInfo {
        template,
        build,
        tag: tag.to_owned(),
    }
}

#[tokio::test]
async fn a_snapshot_tells_how_it_is_used_and_what_it_holds() {
    let house = House::open(None).await;
    let path = format!("/sandboxes/{}/snapshots", house.sandbox().id);
    for (body, taken, asked) in [
        (json!({}), (None, "default", Kept::Durable), "snapshot None true"),
        (
            json!({"name": "snap"}),
            (Some("snap"), "default", Kept::None),
            r#"snapshot Some(TemplateRef { namespace: None, name: "snap", tag: None }) true"#,
        ),
        (
            json!({"name": "ours/Snap:v1", "memory": false}),
            (Some("snap"), "v1", Kept::None),
            r#"snapshot Some(TemplateRef { namespace: Some("ours"), name: "snap", tag: Some("v1") }) false"#,
        ),
    ] {
        let (name, tag, memory) = taken;
        let taken = snapshot(&house, name, tag, 1, memory);
        let expected = match name {
            Some(name) => {
                json!({"snapshotID": format!("ours/{name}:{tag}"), "names": [format!("ours/{name}:{tag}")], "memory": "none"})
            }
            None => {
                json!({"snapshotID": format!("{}:default", taken.template.id), "names": [], "memory": "durable"})
            }
        };
        *house.notes.snapshots.lock().unwrap() = vec![taken];
        let answer = house.ask("POST", &path, Some(body)).await;
        assert_eq!((answer.status.as_u16(), answer.body), (201, expected));
        assert_eq!(house.asked(), [asked]);
    }
    for (body, message) in [
        (None, "body is missing"),
        (Some(json!({"name": "a b"})), "Invalid name"),
        (
            Some(json!({"name": "theirs/a"})),
            "namespace 'theirs' must match your team 'ours'",
        ),
        (
            Some(json!({"name": "a:6ba7b810-9dad-11d1-80b4-00c04fd430c8"})),
            "Invalid tag",
        ),
        (Some(json!({"memory": "yes"})), "memory"),
    ] {
        let answer = house.ask("POST", &path, body).await;
        assert_eq!(answer.status, 400);
        assert!(answer.message().contains(message), "{}", answer.message());
    }
    house.notes.snapshots.lock().unwrap().clear();
    assert_eq!(house.ask("POST", &path, Some(json!({}))).await.status, 404);
    let nobody = Request::post(&path);
    assert_eq!(house.send(nobody, Body::from("{}")).await.status, 401);
}

#[tokio::test]
async fn what_a_snapshot_is_called_is_what_sandboxes_are_created_from() {
    let house = House::open(None).await;
    let id = model::TemplateId::random();
    for (told, name, tag) in [
        (format!("{id}:default"), id.to_string(), None),
        ("ours/snap:v1".to_owned(), "snap".to_owned(), Some("v1")),
        ("ours/snap:default".to_owned(), "snap".to_owned(), None),
    ] {
        house
            .ask("POST", "/v2/sandboxes", Some(json!({"templateID": told})))
            .await;
        let asked = house.notes.created.lock().unwrap().take().unwrap().template;
        assert_eq!((asked.name, asked.tag.as_deref()), (name, tag));
    }
}

#[tokio::test]
async fn snapshots_are_paged_newest_first() {
    let house = House::open(None).await;
    let made = [
        snapshot(&house, Some("a"), "default", 3, Kept::None),
        snapshot(&house, Some("b"), "has__underscores", 2, Kept::None),
        snapshot(&house, None, "default", 2, Kept::None),
        snapshot(&house, Some("c"), "v1.0", 1, Kept::None),
    ];
    *house.notes.snapshots.lock().unwrap() = made.to_vec();
    let all = house.get("/snapshots").await;
    assert_eq!((all.count(), all.header("x-next-token")), (4, None));
    assert_eq!(
        (&all.body[0]["snapshotID"], &all.body[3]["snapshotID"]),
        (&json!("ours/a:default"), &json!("ours/c:v1.0"))
    );
    let (mut seen, mut next) = (Vec::new(), String::new());
    loop {
        let page = house.get(&format!("/snapshots?limit=1{next}")).await;
        seen.push(page.body[0].clone());
        match page.header("x-next-token") {
            Some(token) => next = format!("&nextToken={token}"),
            None => break,
        }
    }
    assert_eq!(Value::Array(seen), all.body);
    for wrong in [
        "limit=0",
        "limit=101",
        "nextToken=x",
        "name=a%20b",
        "sandboxID=NO",
    ] {
        assert_eq!(
            house.get(&format!("/snapshots?{wrong}")).await.status,
            400,
            "{wrong}"
        );
    }
    assert_eq!(
        house.send(Request::get("/snapshots"), Body::empty()).await.status,
        401
    );
}

#[tokio::test]
async fn snapshots_are_filtered_as_the_query_says() {
    let house = House::open(None).await;
    let id = SandboxId::random();
    house
        .get(&format!("/snapshots?sandboxID={id}&name=ours%2Fa%3Av1"))
        .await;
    let asked = house.asked().remove(0);
    assert!(
        asked.contains(id.as_str()) && asked.contains(r#"name: "a", tag: Some("v1")"#),
        "{asked}"
    );
    // An id that cannot be one of ours has no snapshots, and nobody is asked for them.
    assert_eq!(house.get("/snapshots?sandboxID=abc").await.count(), 0);
    assert!(house.asked().is_empty());
}

#[tokio::test]
async fn each_fork_comes_up_or_says_why_not() {
    let house = House::open(None).await;
    let mut sandbox = house.sandbox();
    let path = format!("/sandboxes/{}/fork", sandbox.id);
    let one = house.ask("POST", &path, None).await;
    assert_eq!(
        (one.status.as_u16(), one.count(), house.asked()),
        (201, 1, vec!["fork 1 15s".to_owned()])
    );
    assert_eq!(one.body[0]["sandbox"]["sandboxID"], sandbox.id.as_str());
    assert!(one.body[0].get("error").is_none());
    let two = house
        .ask("POST", &path, Some(json!({"count": 2, "timeout": 60})))
        .await;
    assert_eq!(house.asked(), ["fork 2 60s"]);
    let error = &two.body[1]["error"];
    assert_eq!(
        (&error["code"], &error["error_code"]),
        (&json!(503), &json!("sandbox_capacity_unavailable"))
    );
    assert!(two.body[1].get("sandbox").is_none() && error["message"].is_string());
    for wrong in [
        json!({"count": 0}),
        json!({"count": 101}),
        json!({"count": "2"}),
        json!({"timeout": 0}),
        json!([1]),
    ] {
        assert_eq!(
            house.ask("POST", &path, Some(wrong.clone())).await.status,
            400,
            "{wrong}"
        );
    }
    assert!(house.asked().is_empty());
    let at = sandbox.phase.seat().unwrap();
    sandbox.phase = Phase::Paused {
        snapshot: sandbox.build,
        mode: PauseMode::Full,
        home: at.node,
    };
    *house.notes.sandbox.lock().unwrap() = Some(sandbox);
    let paused = house.ask("POST", &path, None).await;
    assert_eq!(paused.status, 409);
    assert!(
        paused
            .message()
            .ends_with("is paused and cannot be forked; resume it first")
    );
    *house.notes.sandbox.lock().unwrap() = None;
    assert_eq!(house.ask("POST", &path, None).await.status, 404);
    assert_eq!(house.send(Request::post(&path), Body::empty()).await.status, 401);
}

#[tokio::test]
async fn copies_are_fewer_than_the_sandboxes_that_a_team_may_have() {
    let house = House::open(None).await;
    let path = format!("/sandboxes/{}/fork", house.sandbox().id);
    let quota = model::Quota {
        sandboxes: 3,
        ..model::Quota::default()
    };
    house.store.set_quota(house.team.id, quota).await.unwrap();
    assert_eq!(
        house.ask("POST", &path, Some(json!({"count": 2}))).await.status,
        201
    );
    let many = house.ask("POST", &path, Some(json!({"count": 3}))).await;
    assert_eq!(many.status, 400);
    assert!(many.message().contains("at once, 3"));
}
