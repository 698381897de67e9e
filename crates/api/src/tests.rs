//! Requests and answers, over stores in memory and a manager that notes what it is asked.
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::body::Body;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use model::{
    Memory as Kept, NetworkPolicy, NodeId, Origin, PauseMode, Phase, Sandbox, SandboxId, Seat, State, TeamId,
    TemplateRef,
};
use ports::manager::{Connected, Drained, Granted, NodeWish, Page};
use ports::node::{Draining, Report};
use ports::store::{Memory, SandboxQuery, contract};
use ports::templates::SnapshotInfo;
use ports::{CreateSandbox, LogLine, LogQuery, ManagerError, MetricSample, TemplateStore as _};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;

mod builds;
mod snapshots;
mod volumes;

const KEY: &str = "e2b_0123";
/// Another team's.
const STRANGER: &str = "e2b_4567";
const ADMIN: &str = "admin-token";

/// What the manager was asked, in its own words.
#[derive(Default)]
struct Notes {
    asked: Mutex<Vec<String>>,
    sandbox: Mutex<Option<Sandbox>>,
    listed: Mutex<Vec<Sandbox>>,
    logged: Mutex<Option<LogQuery>>,
    snapshots: Mutex<Vec<SnapshotInfo>>,
    created: Mutex<Option<CreateSandbox>>,
    nodes: Mutex<Vec<Report>>,
}

impl Notes {
    fn note(&self, what: impl Into<String>) {
        self.asked.lock().unwrap().push(what.into());
    }

    fn granted(&self) -> Result<Granted, ManagerError> {
        let sandbox = self.sandbox.lock().unwrap().clone();
        let sandbox = sandbox.ok_or(ManagerError::NotFound(SandboxId::random()))?;
        Ok(Granted {
            sandbox,
            envd_token: None,
            traffic_token: None,
        })
    }
}

#[async_trait]
impl SandboxManager for Notes {
    async fn create(&self, _: TeamId, request: CreateSandbox) -> Result<Granted, ManagerError> {
        *self.created.lock().unwrap() = Some(request);
        Err(ManagerError::Exhausted {
            message: "too many sandboxes".to_owned(),
            retry_after: None,
        })
    }
    async fn connect(
        &self,
        _: TeamId,
        _: SandboxId,
        _: Duration,
        mode: PauseMode,
    ) -> Result<Connected, ManagerError> {
        self.note(format!("connect {mode:?}"));
        self.granted().map(Connected::Resumed)
    }
    async fn resume(
        &self,
        _: TeamId,
        _: SandboxId,
        timeout: Duration,
        mode: PauseMode,
        auto_pause: Option<bool>,
    ) -> Result<Granted, ManagerError> {
        self.note(format!("resume {timeout:?} {mode:?} {auto_pause:?}"));
        self.granted()
    }
    async fn pause(
        &self,
        _: TeamId,
        _: SandboxId,
        mode: PauseMode,
        healthy: bool,
    ) -> Result<(), ManagerError> {
        self.note(format!("pause {mode:?} {healthy}"));
        Ok(())
    }
    async fn snapshot(
        &self,
        _: TeamId,
        id: SandboxId,
        name: Option<TemplateRef>,
        memory: bool,
    ) -> Result<SnapshotInfo, ManagerError> {
        self.note(format!("snapshot {name:?} {memory}"));
        let taken = self.snapshots.lock().unwrap().first().cloned();
        taken.ok_or(ManagerError::NotFound(id))
    }
    async fn fork(
        &self,
        _: TeamId,
        id: SandboxId,
        count: u32,
        timeout: Duration,
    ) -> Result<Vec<Result<Granted, ManagerError>>, ManagerError> {
        self.note(format!("fork {count} {timeout:?}"));
        let granted = self.granted()?;
        if granted.sandbox.phase.state() == Some(State::Paused) {
            return Err(ManagerError::ForkPaused(id));
        }
        let full = || Err(ManagerError::NoCapacity("it is full".to_owned()));
        Ok((0..count)
            .map(|copy| if copy == 0 { Ok(granted.clone()) } else { full() })
            .collect())
    }
    async fn restart(&self, _: TeamId, _: SandboxId) -> Result<Granted, ManagerError> {
        self.granted()
    }
    async fn kill(&self, _: TeamId, _: SandboxId) -> Result<(), ManagerError> {
        Ok(())
    }
    async fn get(&self, _: TeamId, _: SandboxId) -> Result<Granted, ManagerError> {
        self.granted()
    }
    async fn list(&self, query: SandboxQuery) -> Result<Page, ManagerError> {
        let listed = self.listed.lock().unwrap().clone();
        let of_template =
            |sandbox: &Sandbox| query.template.is_none_or(|template| sandbox.template == template);
        Ok(Page {
            total_running: Some(listed.len() as u64),
            sandboxes: listed.into_iter().filter(of_template).take(query.limit).collect(),
            next: None,
        })
    }
    async fn set_timeout(&self, _: TeamId, _: SandboxId, _: Duration) -> Result<(), ManagerError> {
        Ok(())
    }
    async fn refresh(&self, _: TeamId, _: SandboxId, timeout: Duration) -> Result<(), ManagerError> {
        self.note(format!("refresh {timeout:?}"));
        Ok(())
    }
    async fn set_network(&self, _: TeamId, _: SandboxId, _: NetworkPolicy) -> Result<(), ManagerError> {
        Ok(())
    }
    async fn metrics(
        &self,
        _: TeamId,
        id: SandboxId,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, ManagerError> {
        match self.sandbox.lock().unwrap().as_ref() {
            Some(broken) if broken.id == id => Err(ManagerError::Timeout("reading the metrics")),
            _ => Err(ManagerError::NotFound(id)),
        }
    }
    async fn logs(&self, _: TeamId, _: SandboxId, query: LogQuery) -> Result<Vec<LogLine>, ManagerError> {
        *self.logged.lock().unwrap() = Some(query);
        Ok(Vec::new())
    }
    async fn nodes(&self) -> Result<Vec<Report>, ManagerError> {
        Ok(self.nodes.lock().unwrap().clone())
    }
    async fn set_node(&self, node: NodeId, wish: NodeWish) -> Result<(), ManagerError> {
        let mut nodes = self.nodes.lock().unwrap();
        let report = nodes.iter_mut().find(|report| report.node == node);
        let report = report.ok_or(ManagerError::NoNode(node))?;
        report.accepts = wish == NodeWish::Ready;
        report.draining = match wish {
            NodeWish::Draining { within, kills } => Some(Draining {
                deadline: SystemTime::UNIX_EPOCH + within,
                kills,
            }),
            _ => None,
        };
        Ok(())
    }
    async fn drained(&self, node: NodeId) -> Result<Option<Drained>, ManagerError> {
        let nodes = self.nodes.lock().unwrap();
        let report = nodes.iter().find(|report| report.node == node);
        Ok(report.and_then(|report| report.draining).map(|how| Drained {
            deadline: how.deadline,
            kills: how.kills,
            moving: 1,
            waiting: 2,
            left: 3,
            carried: 4,
            is_over: false,
        }))
    }
}

struct House {
    api: Arc<Api>,
    notes: Arc<Notes>,
    builds: Arc<builds::Builds>,
    volumes: Arc<volumes::Volumes>,
    store: Arc<Memory>,
    team: model::Team,
}

impl House {
    async fn open(admin: Option<&str>) -> Self {
        Self::open_at(admin, None).await
    }

    async fn open_at(admin: Option<&str>, public_url: Option<&str>) -> Self {
        let (notes, store) = (Arc::<Notes>::default(), Arc::<Memory>::default());
        let team = contract::team("ours");
        store.insert_team(&team).await.unwrap();
        let hash = auth::hash_of(KEY).unwrap();
        store.insert_key(&contract::key(team.id, &hash)).await.unwrap();
        let strangers = contract::team("strangers");
        store.insert_team(&strangers).await.unwrap();
        let hash = auth::hash_of(STRANGER).unwrap();
        store
            .insert_key(&contract::key(strangers.id, &hash))
            .await
            .unwrap();
        let builds = Arc::new(builds::Builds::over(store.clone(), notes.clone()));
        let volumes = Arc::<volumes::Volumes>::default();
        let api = Api::new(ApiParts {
            manager: notes.clone(),
            teams: store.clone(),
            templates: store.clone(),
            templates_manager: builds.clone(),
            volumes: volumes.clone(),
            volume_files: volumes.clone(),
            limits: Arc::new(ports::limits::Memory::default()),
            clock: Arc::new(ports::clock::System),
            domain: None,
            public_url: public_url.map(str::to_owned),
            tls_host: Some("api.atoll.test".to_owned()),
            admin_token: admin.map(|token| Secret::new(token.to_owned())),
        });
        Self {
            api,
            notes,
            builds,
            volumes,
            store,
            team,
        }
    }

    async fn send(&self, request: http::request::Builder, body: Body) -> Answer {
        let response = self
            .api
            .router()
            .oneshot(request.body(body).unwrap())
            .await
            .unwrap();
        Answer::of(response).await
    }

    /// With the team's key, and JSON where there is some.
    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-api-key", KEY);
        self.send(
            request,
            body.map_or_else(Body::empty, |body| Body::from(body.to_string())),
        )
        .await
    }

    /// As another team.
    async fn stranger(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-api-key", STRANGER);
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.send(request, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None).await
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.asked.lock().unwrap())
    }

    fn sandbox(&self) -> Sandbox {
        let sandbox = contract::sandbox(self.team.id);
        *self.notes.sandbox.lock().unwrap() = Some(sandbox.clone());
        sandbox
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
    bytes: bytes::Bytes,
}

impl Answer {
    async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Self {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            bytes,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.body.as_array().unwrap().len()
    }
}

#[tokio::test]
async fn a_resume_says_what_is_used_and_what_becomes_of_it() {
    let house = House::open(None).await;
    let id = house.sandbox().id;
    let path = format!("/sandboxes/{id}/resume");
    for (body, asked) in [
        (None, "resume 15s Full None"),
        (
            Some(json!({"memory": false, "timeout": 60})),
            "resume 60s Filesystem None",
        ),
        (Some(json!({"autoPause": true})), "resume 15s Full Some(true)"),
    ] {
        let answer = house.ask("POST", &path, body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        assert_eq!(answer.body["sandboxID"], id.as_str());
        assert_eq!(house.asked(), [asked]);
    }
}

#[tokio::test]
async fn refreshes_are_bounded() {
    let house = House::open(None).await;
    let path = format!("/sandboxes/{}/refreshes", house.sandbox().id);
    for (body, status, asked) in [
        (None, 204, Some("refresh 15s")),
        (Some(json!({"duration": 3600})), 204, Some("refresh 3600s")),
        (Some(json!({"duration": 3601})), 400, None),
        (Some(json!({"duration": -1})), 400, None),
    ] {
        assert_eq!(house.ask("POST", &path, body).await.status, status);
        assert_eq!(house.asked(), Vec::from_iter(asked.map(str::to_owned)));
    }
}

#[tokio::test]
async fn keys_are_renamed_and_deleted_and_work_no_longer() {
    let house = House::open(None).await;
    let made = house
        .ask("POST", "/api-keys", Some(json!({"name": "second"})))
        .await;
    assert_eq!(made.status, 201);
    let (id, key) = (
        made.body["id"].as_str().unwrap(),
        made.body["key"].as_str().unwrap(),
    );
    let path = format!("/api-keys/{id}");
    let renamed = house.ask("PATCH", &path, Some(json!({"name": "third"}))).await;
    assert_eq!(renamed.status, 204);
    let keys = house.get("/api-keys").await;
    let names = |keys: &Value| -> Vec<Value> {
        keys.as_array()
            .unwrap()
            .iter()
            .map(|key| key["name"].clone())
            .collect()
    };
    assert_eq!(names(&keys.body), ["laptop", "third"]);
    // The CLI carries the same key as a bearer token.
    let bearer = format!("Bearer sk_{key}");
    let teams = || Request::get("/teams").header("authorization", bearer.as_str());
    let answer = house.send(teams(), Body::empty()).await;
    assert_eq!(answer.body[0]["teamID"], house.team.id.to_string());
    assert_eq!(answer.body[0]["apiKey"], key);
    assert_eq!(house.ask("DELETE", &path, None).await.status, 204);
    assert_eq!(house.send(teams(), Body::empty()).await.status, 401);
}

#[tokio::test]
async fn operators_act_for_a_team_and_alone_see_nodes() {
    let house = House::open(Some(ADMIN)).await;
    let admin = |path: &str, token: &str| Request::get(path).header("x-admin-token", token);
    let team = house.team.id.to_string();
    let answer = house
        .send(admin("/teams", ADMIN).header("x-team-id", &team), Body::empty())
        .await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body[0]["teamID"]),
        (200, &json!(team))
    );
    assert_eq!(
        house.send(admin("/teams", ADMIN), Body::empty()).await.status,
        400
    );
    assert_eq!(
        house.send(admin("/nodes", ADMIN), Body::empty()).await.status,
        200
    );
    assert_eq!(
        house.send(admin("/nodes", "other"), Body::empty()).await.status,
        401
    );
    assert_eq!(house.get("/nodes").await.status, 403);
    assert_eq!(
        house.send(Request::get("/nodes"), Body::empty()).await.status,
        401
    );
    // Where there is no operator, the one team sees the one node.
    assert_eq!(House::open(None).await.get("/nodes").await.status, 200);
}

#[tokio::test]
async fn operators_alone_tell_nodes_what_to_take() {
    let house = House::open(Some(ADMIN)).await;
    let report = crate::nodes::tests::report();
    let path = format!("/nodes/{}", report.node);
    house.notes.nodes.lock().unwrap().push(report);
    let send = async |method: &str, path: &str, body: Value| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-admin-token", ADMIN)
            .header("content-type", "application/json");
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        house.send(request, body).await
    };
    let look = async || send("GET", &path, Value::Null).await.body;
    assert_eq!(look().await["status"], "ready");
    for status in ["cordoned", "draining", "cordoned", "ready"] {
        let answer = send("POST", &path, json!({ "status": status })).await;
        assert_eq!(answer.status, 204, "{status}");
        let told = look().await;
        assert_eq!(told["status"], status);
        assert_eq!(told.get("drain").is_some(), status == "draining");
        let listed = send("GET", "/nodes", Value::Null).await.body;
        assert_eq!(listed[0]["status"], status);
    }
    let body = json!({ "status": "draining", "withinSeconds": 60, "kill": true });
    assert_eq!(send("POST", &path, body).await.status, 204);
    let expected = json!({
        "deadline": "1970-01-01T00:01:00.000000Z", "kill": true, "moving": 1, "waiting": 2, "left": 3, "carried": 4, "isOver": false,
    });
    assert_eq!(look().await["drain"], expected);

    let unknown = format!("/nodes/{}", NodeId::random());
    let ready = json!({ "status": "ready" });
    assert_eq!(send("POST", &unknown, ready.clone()).await.status, 404);
    assert_eq!(send("POST", "/nodes/x", ready.clone()).await.status, 400);
    for body in [
        json!({}),
        json!({ "status": 5 }),
        json!({ "status": "unhealthy" }),
    ] {
        assert_eq!(send("POST", &path, body).await.status, 400);
    }
    assert_eq!(look().await["status"], "draining");
    // A key is none of an operator's, with an admin token and without.
    assert_eq!(house.ask("POST", &path, Some(ready.clone())).await.status, 403);
    let house = House::open(None).await;
    assert_eq!(house.ask("POST", &path, Some(ready)).await.status, 403);
}

#[tokio::test]
async fn templates_have_builds_aliases_tags_and_pages() {
    let house = House::open(None).await;
    for name in ["one", "two", "three"] {
        house
            .store
            .insert(&contract::template(house.team.id, name))
            .await
            .unwrap();
    }
    let detail = house.get("/templates/one").await;
    let build = &detail.body["builds"][0];
    assert_eq!(build["buildID"], detail.body["buildID"]);
    for field in ["createdAt", "updatedAt", "finishedAt", "envdVersion"] {
        assert!(build[field].is_string(), "{field}");
    }
    assert!(build["status"] == "ready" && build["cpuCount"].is_u64() && build["memoryMB"].is_u64());
    let alias = house.get("/templates/aliases/one").await;
    assert_eq!(alias.body["templateID"], detail.body["templateID"]);
    let tags = house.get("/templates/one/tags").await;
    assert_eq!(tags.body[0]["tag"], "default");

    let (mut seen, mut next) = (Vec::new(), String::new());
    for left in [2, 1, 0] {
        let page = house.get(&format!("/v2/templates?limit=1{next}")).await;
        assert_eq!(page.count(), 1);
        seen.push(page.body[0]["templateID"].to_string());
        let token = page.header("x-next-token");
        assert_eq!(token.is_some(), left > 0);
        next = token.map_or_else(String::new, |token| format!("&nextToken={token}"));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3);
    assert_eq!(house.get("/v2/templates").await.count(), 3);
    for wrong in ["limit=0", "nextToken=x"] {
        assert_eq!(house.get(&format!("/v2/templates?{wrong}")).await.status, 400);
    }
}

#[tokio::test]
async fn the_first_list_tells_all_that_run_and_the_second_pages() {
    let house = House::open(None).await;
    *house.notes.listed.lock().unwrap() = vec![contract::sandbox(house.team.id); 150];
    assert_eq!(house.get("/sandboxes").await.count(), 150);
    assert_eq!(house.get("/v2/sandboxes").await.count(), 100);
    let unknown = house.get("/v2/sandboxes?template=nobodys").await;
    assert_eq!(
        (unknown.count(), unknown.header("x-total-running")),
        (0, Some("150"))
    );
}

#[tokio::test]
async fn a_sandbox_tells_how_it_was_paused_until_it_runs() {
    let house = House::open(None).await;
    let mut sandbox = house.sandbox();
    let path = format!("/sandboxes/{}", sandbox.id);
    assert!(house.get(&path).await.body["pauseMode"].is_null());
    let at: Seat = sandbox.phase.seat().unwrap();
    let from = Origin::Snapshot {
        build: sandbox.build,
        mode: PauseMode::Filesystem,
        home: at.node,
    };
    sandbox.phase = Phase::Starting { at, from };
    *house.notes.sandbox.lock().unwrap() = Some(sandbox);
    let resuming = house.get(&path).await.body;
    assert_eq!(
        (&resuming["state"], &resuming["pauseMode"]),
        (&json!("paused"), &json!("filesystem"))
    );
}

#[tokio::test]
async fn a_paused_sandbox_tells_how_safe_its_memory_is_and_every_sandbox_its_volumes() {
    let house = House::open(None).await;
    let mut sandbox = house.sandbox();
    sandbox.volumes = vec![model::VolumeMount {
        volume: model::VolumeId::random(),
        name: "data".to_owned(),
        path: "/mnt/data".to_owned(),
    }];
    let path = format!("/sandboxes/{}", sandbox.id);
    let at: Seat = sandbox.phase.seat().unwrap();
    for (kept, told) in [
        (Kept::Durable, "durable"),
        (Kept::Volatile, "volatile"),
        (Kept::None, "none"),
    ] {
        sandbox.phase = Phase::Paused {
            snapshot: sandbox.build,
            mode: PauseMode::Full,
            home: at.node,
        };
        sandbox.kept = kept;
        *house.notes.sandbox.lock().unwrap() = Some(sandbox.clone());
        *house.notes.listed.lock().unwrap() = vec![sandbox.clone()];
        for shown in [
            house.get(&path).await.body,
            house.get("/v2/sandboxes").await.body[0].clone(),
        ] {
            assert_eq!(shown["memory"], told);
            assert_eq!(
                shown["volumeMounts"],
                json!([{"name": "data", "path": "/mnt/data"}])
            );
        }
    }
    sandbox.phase = Phase::Running { at };
    *house.notes.sandbox.lock().unwrap() = Some(sandbox);
    assert!(house.get(&path).await.body["memory"].is_null());
}

#[tokio::test]
async fn volumes_of_a_new_sandbox_are_passed_on_by_name() {
    let house = House::open(None).await;
    let body = json!({"templateID": "base", "volumeMounts": [{"name": "data", "path": "/mnt/data"}]});
    for path in ["/sandboxes", "/v2/sandboxes"] {
        house.ask("POST", path, Some(body.clone())).await;
        let asked = house.notes.created.lock().unwrap().take().unwrap();
        assert_eq!(asked.volumes, [("data".to_owned(), "/mnt/data".to_owned())]);
    }
}

#[tokio::test]
async fn logs_are_asked_for_as_the_query_says() {
    let house = House::open(None).await;
    let path = format!("/v2/sandboxes/{}/logs", house.sandbox().id);
    let asked = "direction=forward&level=warn&search=a%20b&cursor=1500&limit=7";
    assert_eq!(house.get(&format!("{path}?{asked}")).await.status, 200);
    let expected = LogQuery {
        from: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)),
        limit: 7,
        forward: true,
        level: Some(ports::logs::Level::Warn),
        search: Some("a b".to_owned()),
    };
    assert_eq!(house.notes.logged.lock().unwrap().take(), Some(expected));
    let long = "x".repeat(257);
    for wrong in [
        format!("search={long}"),
        "level=fatal".into(),
        "direction=up".into(),
    ] {
        assert_eq!(house.get(&format!("{path}?{wrong}")).await.status, 400, "{wrong}");
        assert_eq!(house.notes.logged.lock().unwrap().take(), None);
    }
}

#[tokio::test]
async fn metrics_of_several_leave_out_the_unknown_and_nothing_else() {
    let house = House::open(None).await;
    let ask = async |ids: &str| {
        house
            .get(&format!("/sandboxes/metrics?sandbox_ids={ids}"))
            .await
            .status
    };
    assert_eq!(ask(&format!("{},abc", SandboxId::random())).await, 200);
    assert_eq!(ask("NOT-AN-ID").await, 400);
    assert_eq!(ask(house.sandbox().id.as_str()).await, 504);
}

#[tokio::test]
async fn what_is_missing_is_named_and_a_refusal_says_whether_to_try_again() {
    let house = House::open(None).await;
    for (path, feature) in [
        ("/default-templates", "default templates"),
        ("/secrets", "secrets"),
        ("/access-tokens", "access tokens"),
    ] {
        let answer = house.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (501, &json!(501)),
            "{path}"
        );
        assert!(
            answer.body["message"].as_str().unwrap().contains(feature),
            "{path}"
        );
    }
    for path in [
        "/templates",
        "/v2/templates",
        "/templates/x",
        "/templates/x/builds/y",
    ] {
        let answer = house.ask("POST", path, Some(json!({}))).await;
        assert_eq!(answer.status, 501, "{path}");
        assert!(
            answer.message().starts_with("template builds of older clients"),
            "{path}"
        );
    }
    let refused = house
        .ask("POST", "/v2/sandboxes", Some(json!({"templateID": "base"})))
        .await;
    assert_eq!(
        (refused.status.as_u16(), refused.header("should-retry")),
        (429, Some("false"))
    );
}

#[tokio::test]
async fn connections_that_ask_for_nothing_are_closed() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let house = House::open(None).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(house.api.clone().serve(listener, stop.clone()));
    let mut silent = Vec::new();
    for says in [
        "",
        "P",
        "GET /hea",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0",
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(says.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    for mut stream in silent {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    assert!(
        begun.elapsed() < Duration::from_secs(120),
        "{:?}",
        begun.elapsed()
    );
    stop.cancel();
}

#[tokio::test]
async fn no_operation_that_is_described_is_open_to_strangers() {
    let house = House::open(None).await;
    let document = serde_json::to_value(document()).unwrap();
    let (mut open, mut asked) = (Vec::new(), 0);
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            if operation["security"] == json!([{}]) {
                open.push(format!("{method} {path}"));
                continue;
            }
            let mut parts: Vec<&str> = path.split('/').collect();
            for part in parts.iter_mut().filter(|part| part.starts_with('{')) {
                *part = "iaaaaaaaaaaaaaaaaaaaa";
            }
            for key in [None, Some("e2b_"), Some("e2b_zz"), Some("e2b_9999")] {
                let request = Request::builder()
                    .method(method.to_uppercase().as_str())
                    .uri(parts.join("/"));
                let request = match key {
                    Some(key) => request.header("x-api-key", key),
                    None => request,
                };
                let answer = house.send(request, Body::from("{}")).await;
                assert_eq!(answer.status, 401, "{method} {path}");
                let code = if path.starts_with("/volumecontent/") {
                    json!("unauthenticated")
                } else {
                    json!(401)
                };
                assert_eq!(answer.body["code"], code, "{method} {path}");
            }
            asked += 1;
        }
    }
    // The address of an upload is a permission by itself.
    assert_eq!(
        open,
        ["get /health", "get /openapi.json", "put /uploads/{teamID}/{hash}"]
    );
    assert!(asked > 50, "{asked}");
}
