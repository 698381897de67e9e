//! Templates and their builds, over a manager in memory.
use std::collections::{BTreeMap, BTreeSet};

use model::recipe::Recipe;
use model::{
    Build, BuildFailure, BuildId, BuildStatus, BuildStep, Resources, Settings, Template, TemplateId,
};
use ports::blobs::{self, ByteStream};
use ports::builds::{BuildLine, LinesQuery};
use ports::store::find_template;
use ports::templates::{RegisterBuild, SnapshotQuery};
use ports::{Blobs as _, TeamStore as _, TemplateError};

use super::*;

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A manager that does what it is told and builds nothing.
pub(super) struct Builds {
    store: Arc<Memory>,
    notes: Arc<Notes>,
    builds: Mutex<BTreeMap<BuildId, Build>>,
    lines: Mutex<Vec<BuildLine>>,
    blobs: blobs::Memory,
    started: Mutex<Option<Recipe>>,
}

impl Builds {
    pub(super) fn over(store: Arc<Memory>, notes: Arc<Notes>) -> Self {
        Self {
            store,
            notes,
            builds: Mutex::default(),
            lines: Mutex::default(),
            blobs: blobs::Memory::default(),
            started: Mutex::default(),
        }
    }

    fn set(&self, id: BuildId, status: BuildStatus) {
        self.builds.lock().unwrap().get_mut(&id).unwrap().status = status;
    }

    async fn own(&self, team: TeamId, name: &TemplateRef) -> Result<Template, TemplateError> {
        let found = find_template(&*self.store, &*self.store, team, name)
            .await
            .unwrap();
        let found = found.ok_or_else(|| TemplateError::NotFound(name.name.clone()))?;
        if found.team == team {
            Ok(found)
        } else {
            Err(TemplateError::Forbidden(name.name.clone()))
        }
    }
}

#[async_trait]
impl TemplateManager for Builds {
    async fn register(
        &self,
        team: TeamId,
        request: RegisterBuild,
    ) -> Result<(Template, Build), TemplateError> {
        self.notes.note(format!("{request:?}"));
        let template = match self.store.named(team, &request.name.name).await.unwrap() {
            Some(template) => template,
            None => {
                let mut template = contract::template(team, &request.name.name);
                template.tags.clear();
                template.builds.clear();
                self.store.insert(&template).await.unwrap();
                template
            }
        };
        let now = SystemTime::now();
        let build = Build {
            id: BuildId::random(),
            template: template.id,
            team,
            status: BuildStatus::Waiting,
            tags: request.tags,
            resources: Resources {
                cpu: request.cpu.unwrap_or(2),
                ..Resources::default()
            },
            recipe: None,
            node: None,
            runner: None,
            created_at: now,
            updated_at: now,
            finished_at: None,
            version: 0,
        };
        self.builds.lock().unwrap().insert(build.id, build.clone());
        Ok((template, build))
    }
    async fn has_upload(&self, team: TeamId, _: TemplateId, files: &str) -> Result<bool, TemplateError> {
        let found = self.blobs.find(&format!("{team}/{files}")).await.unwrap();
        Ok(found.is_some())
    }
    async fn upload(&self, team: TeamId, files: &str, bytes: ByteStream) -> Result<u64, TemplateError> {
        let put = self.blobs.put(&format!("{team}/{files}"), bytes).await;
        put.map_err(|error| TemplateError::Invalid(error.to_string()))
    }
    async fn start(
        &self,
        _: TeamId,
        template: TemplateId,
        build: BuildId,
        recipe: Recipe,
    ) -> Result<(), TemplateError> {
        let mut builds = self.builds.lock().unwrap();
        let found = builds.get_mut(&build).filter(|found| found.template == template);
        let found = found.ok_or(TemplateError::NoBuild(build))?;
        if found.status != BuildStatus::Waiting {
            return Err(TemplateError::NotWaiting);
        }
        found.status = BuildStatus::Building;
        *self.started.lock().unwrap() = Some(recipe);
        Ok(())
    }
    async fn cancel(&self, _: TeamId, _: TemplateId, _: BuildId) -> Result<(), TemplateError> {
        Ok(())
    }
    async fn build(&self, _: TeamId, template: TemplateId, build: BuildId) -> Result<Build, TemplateError> {
        let builds = self.builds.lock().unwrap();
        let found = builds.get(&build).filter(|found| found.template == template);
        found.cloned().ok_or(TemplateError::NoBuild(build))
    }
    async fn builds(&self, _: TeamId, template: TemplateId) -> Result<Vec<Build>, TemplateError> {
        let builds = self.builds.lock().unwrap();
        let mut found: Vec<Build> = builds
            .values()
            .filter(|build| build.template == template)
            .cloned()
            .collect();
        found.sort_by_key(|build| std::cmp::Reverse(build.created_at));
        Ok(found)
    }
    async fn lines(&self, _: BuildId, query: LinesQuery) -> Result<Vec<BuildLine>, TemplateError> {
        let lines = self.lines.lock().unwrap();
        Ok(lines
            .iter()
            .filter(|line| line.level >= query.level)
            .skip(usize::try_from(query.offset).unwrap())
            .take(query.limit as usize)
            .cloned()
            .collect())
    }
    async fn tag(
        &self,
        team: TeamId,
        target: &TemplateRef,
        tags: Vec<String>,
    ) -> Result<BuildId, TemplateError> {
        let mut template = self.own(team, target).await?;
        let found = template
            .tagged(target.tag.as_deref())
            .map(|(build, settings)| (build, settings.clone()));
        let (build, settings) = found.ok_or_else(|| TemplateError::NoTag {
            template: target.name.clone(),
            tag: target.tag.clone().unwrap_or_default(),
        })?;
        template.tag(tags, build, settings);
        self.store.update(&template).await.unwrap();
        Ok(build)
    }
    async fn untag(&self, team: TeamId, name: &TemplateRef, tags: Vec<String>) -> Result<(), TemplateError> {
        let mut template = self.own(team, name).await?;
        template.untag(tags.iter().map(String::as_str));
        self.store.update(&template).await.unwrap();
        Ok(())
    }
    async fn publish(
        &self,
        team: TeamId,
        name: &TemplateRef,
        public: bool,
    ) -> Result<Template, TemplateError> {
        let mut template = self.own(team, name).await?;
        template.public = public;
        self.store.update(&template).await.unwrap();
        Ok(template)
    }
    async fn delete(&self, team: TeamId, name: &TemplateRef) -> Result<(), TemplateError> {
        self.notes.note(format!("delete {name:?}"));
        let template = self.own(team, name).await?;
        if template.spawn_count > 0 {
            return Err(TemplateError::InUse {
                template: name.name.clone(),
                state: "running",
            });
        }
        self.store.remove(template.id).await.unwrap();
        Ok(())
    }
    async fn snapshots(&self, _: TeamId, query: SnapshotQuery) -> Result<Vec<SnapshotInfo>, TemplateError> {
        self.notes.note(format!("{query:?}"));
        Ok(self.notes.snapshots.lock().unwrap().clone())
    }
}

impl House {
    /// A registered build: the path of its template's builds, and its id.
    async fn registered(&self, body: Value) -> (String, BuildId, Value) {
        let answer = self.ask("POST", "/v3/templates", Some(body)).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let id: BuildId = answer.body["buildID"].as_str().unwrap().parse().unwrap();
        let template = answer.body["templateID"].as_str().unwrap();
        (template.to_owned(), id, answer.body)
    }

    async fn put(&self, url: &str, body: &'static str) -> Answer {
        let request = Request::put(url).header("content-length", body.len());
        self.send(request, Body::from(body)).await
    }
}

#[tokio::test]
async fn a_build_is_registered_as_the_sdks_ask_for_it() {
    let house = House::open(None).await;
    let (template, build, body) = house.registered(json!({"name": "my-app"})).await;
    let expected = json!({
        "templateID": template, "buildID": build.to_string(), "public": false,
        "names": ["ours/my-app"], "tags": ["default"], "aliases": ["my-app"],
    });
    assert_eq!(body, expected);
    let asked = house.asked().remove(0);
    assert!(
        asked.contains("cpu: None, memory: None, free_disk: None"),
        "{asked}"
    );

    let body = json!({
        "name": "ours/My-App:V1", "tags": ["v1", "latest"], "cpuCount": 4, "memoryMB": 2048, "minFreeDiskMb": 0,
        "alias": null, "teamID": house.team.id.to_string(),
    });
    let (again, _, body) = house.registered(body).await;
    assert_eq!((&again, &body["tags"]), (&template, &json!(["v1", "latest"])));
    let asked = house.asked().remove(0);
    assert!(
        asked.contains("cpu: Some(4), memory: Some(MiB(2048)), free_disk: Some(MiB(0))"),
        "{asked}"
    );
    let (_, _, body) = house
        .registered(json!({"name": "my-app:default", "tags": ["v2"]}))
        .await;
    assert_eq!(body["tags"], json!(["default", "v2"]));
    let (_, _, body) = house.registered(json!({"alias": "older"})).await;
    assert_eq!(body["aliases"], json!(["older"]));
}

#[tokio::test]
async fn a_build_that_cannot_be_registered_is_refused_by_its_field() {
    let house = House::open(None).await;
    house.asked();
    for (body, status, message) in [
        (json!({}), 400, "Name is required"),
        (json!({"name": "  "}), 400, "Name is required"),
        (json!({"name": "a b"}), 400, "Invalid name"),
        (json!({"name": "a/b/c"}), 400, "Invalid name"),
        (
            json!({"name": "a:6ba7b810-9dad-11d1-80b4-00c04fd430c8"}),
            400,
            "Invalid tag",
        ),
        (
            json!({"name": "a", "tags": ["6ba7b810-9dad-11d1-80b4-00c04fd430c8"]}),
            400,
            "Invalid tag",
        ),
        (json!({"name": "a", "tags": ["b c"]}), 400, "Invalid tag"),
        (json!({"name": "a", "tags": vec!["t"; 101]}), 400, "'tags'"),
        (
            json!({"name": "theirs/a"}),
            400,
            "namespace 'theirs' must match your team 'ours'",
        ),
        (json!({"name": "a", "cpuCount": 3}), 400, "'cpuCount'"),
        (json!({"name": "a", "cpuCount": 0}), 400, "'cpuCount'"),
        (json!({"name": "a", "cpuCount": 34}), 400, "'cpuCount'"),
        (json!({"name": "a", "memoryMB": 127}), 400, "'memoryMB'"),
        (json!({"name": "a", "memoryMB": 129}), 400, "'memoryMB'"),
        (json!({"name": "a", "minFreeDiskMb": -1}), 400, "'minFreeDiskMb'"),
        (json!({"name": "a", "teamID": "somebody"}), 403, "team"),
        (json!(["a"]), 400, "the body"),
    ] {
        let answer = house.ask("POST", "/v3/templates", Some(body.clone())).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (status, &json!(status)),
            "{body}"
        );
        assert!(answer.message().contains(message), "{body}: {}", answer.message());
    }
    assert!(house.asked().is_empty());
}

#[tokio::test]
async fn files_are_put_where_the_link_leads() {
    let house = House::open(None).await;
    let (template, ..) = house.registered(json!({"name": "a"})).await;
    let path = format!("/templates/{template}/files/{HASH}");
    let ask = async |host: &str| {
        let request = Request::get(&path).header("x-api-key", KEY).header("host", host);
        house.send(request, Body::empty()).await
    };
    let link = ask("127.0.0.1:3000").await;
    assert_eq!(
        (link.status.as_u16(), &link.body["present"]),
        (201, &json!(false))
    );
    let url = link.body["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("http://127.0.0.1:3000/uploads/"), "{url}");
    assert_eq!(house.put(&url, "tar").await.status, 200);
    // The address is told whether they are there or not: they may be put again.
    let link = ask("API.atoll.test:8443").await;
    assert_eq!(link.body["present"], true);
    let url = link.body["url"].as_str().unwrap();
    assert!(url.starts_with("https://API.atoll.test:8443/uploads/"), "{url}");
    assert_eq!(house.put(url, "tar").await.status, 200);
    // What is forwarded is anybody's word.
    let request = Request::get(&path)
        .header("x-api-key", KEY)
        .header("host", "a")
        .header("x-forwarded-host", "evil.example")
        .header("x-forwarded-proto", "https");
    let link = house.send(request, Body::empty()).await;
    assert!(
        link.body["url"]
            .as_str()
            .unwrap()
            .starts_with("http://a/uploads/")
    );
    assert_eq!(ask("a@b").await.status, 400);
    assert_eq!(house.get(&path).await.status, 400, "no host");

    for (path, status) in [
        (
            format!("/templates/{template}/files/{}", HASH.to_uppercase()),
            400,
        ),
        (format!("/templates/{template}/files/..%2F..%2Fx"), 400),
        (format!("/templates/nobodys/files/{HASH}"), 404),
    ] {
        assert_eq!(house.get(&path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn a_link_opens_one_upload_of_one_team_for_an_hour() {
    let house = House::open(None).await;
    let (template, ..) = house.registered(json!({"name": "a"})).await;
    let path = format!("/templates/{template}/files/{HASH}");
    let request = Request::get(&path).header("x-api-key", KEY).header("host", "a");
    let link = house.send(request, Body::empty()).await;
    let url = link.body["url"].as_str().unwrap().to_owned();
    let team = house.team.id.to_string();
    let (_, signature) = url.split_once("signature=").unwrap();
    let (start, _) = url.split_once("expires=").unwrap();
    let other_hash = format!("{}f", &HASH[..63].replace('0', "1"));
    let old = house.api.now() - 1;
    let signed_long_ago = house.api.signed(house.team.id, HASH, old).await.ok().unwrap();
    let signed_long_ago = hex::encode(hmac::Mac::finalize(signed_long_ago).into_bytes());
    for (wrong, says) in [
        (url.replace(HASH, &other_hash), "not an address"),
        (
            url.replace(&team, &TeamId::random().to_string()),
            "not an address",
        ),
        (url.replace(&team, "x"), "not an address"),
        (
            format!("{start}expires=99999999999&signature={signature}"),
            "not an address",
        ),
        (
            format!("{start}expires=x&signature={signature}"),
            "not an address",
        ),
        (format!("{start}signature={signature}"), "not an address"),
        (url.replace(signature, &signature[..62]), "not an address"),
        (url.replace(signature, "zz"), "not an address"),
        (
            format!("{start}expires={old}&signature={signed_long_ago}"),
            "expired",
        ),
    ] {
        let answer = house.put(&wrong, "tar").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (403, &json!(403)),
            "{wrong}"
        );
        assert!(answer.message().contains(says), "{wrong}");
    }
    assert_eq!(house.put(&url, "tar").await.status, 200);

    let put = |length: Option<&str>| {
        let request = Request::put(&url);
        match length {
            Some(length) => request.header("content-length", length),
            None => request,
        }
    };
    for (length, status) in [
        (None, 411),
        (Some("x"), 400),
        (Some("99999999999999"), 413),
        (Some("4"), 400),
        (Some("2"), 400),
    ] {
        let answer = house.send(put(length), Body::from("tar")).await;
        assert_eq!(answer.status, status, "{length:?}");
    }
}

#[tokio::test]
async fn a_foreign_template_is_an_unknown_one_and_a_public_one_is_not_to_be_changed() {
    let house = House::open(None).await;
    let (template, build, _) = house.registered(json!({"name": "a"})).await;
    let tags = json!({"target": "ours/a", "tags": ["x"]});
    let untag = json!({"name": "ours/a", "tags": ["x"]});
    let all = [
        ("GET", format!("/templates/{template}"), None),
        ("GET", format!("/templates/{template}/files/{HASH}"), None),
        ("GET", format!("/templates/{template}/tags"), None),
        ("GET", format!("/templates/{template}/tags/count"), None),
        ("GET", format!("/templates/{template}/tags/exists?tag=x"), None),
        ("GET", format!("/templates/{template}/tags/groups"), None),
        (
            "GET",
            format!("/templates/{template}/tags/default/assignments"),
            None,
        ),
        (
            "GET",
            format!("/templates/{template}/builds/{build}/status"),
            None,
        ),
        ("GET", format!("/templates/{template}/builds/{build}/logs"), None),
        (
            "POST",
            format!("/v2/templates/{template}/builds/{build}"),
            Some(json!({})),
        ),
        (
            "PATCH",
            format!("/templates/{template}"),
            Some(json!({"public": true})),
        ),
        (
            "PATCH",
            format!("/v2/templates/{template}"),
            Some(json!({"public": true})),
        ),
        ("DELETE", format!("/templates/{template}"), None),
        ("POST", "/templates/tags".to_owned(), Some(tags)),
        ("DELETE", "/templates/tags".to_owned(), Some(untag)),
    ];
    for (method, path, body) in &all {
        let request = Request::builder().method(*method).uri(path);
        let text = body.as_ref().map_or_else(String::new, Value::to_string);
        assert_eq!(
            house.send(request, Body::from(text)).await.status,
            401,
            "{method} {path}"
        );
        let answer = house.stranger(method, path, body.clone()).await;
        assert_eq!(answer.status, 404, "{method} {path}");
    }
    let published = house
        .ask(
            "PATCH",
            &format!("/v2/templates/{template}"),
            Some(json!({"public": true})),
        )
        .await;
    assert_eq!(
        (published.status.as_u16(), published.body),
        (200, json!({"names": ["ours/a"]}))
    );
    for (method, path, body) in &all {
        let answer = house.stranger(method, path, body.clone()).await;
        let seen = *method == "GET" && (path.ends_with(&template) || path.ends_with("/tags"));
        let about_tags = *method == "GET" && path.contains("/tags/");
        let expected = if seen {
            200
        } else if about_tags {
            404
        } else {
            403
        };
        assert_eq!(answer.status, expected, "{method} {path}");
    }
    let nothing = house
        .ask("PATCH", &format!("/templates/{template}"), Some(json!({})))
        .await;
    assert_eq!((nothing.status.as_u16(), nothing.bytes.len()), (200, 0));
    assert_eq!(
        house.get(&format!("/templates/{template}")).await.body["public"],
        true
    );
}

#[tokio::test]
async fn a_build_is_started_once_with_what_it_was_told() {
    let house = House::open(None).await;
    let (template, build, _) = house.registered(json!({"name": "a"})).await;
    let path = format!("/v2/templates/{template}/builds/{build}");
    let body = json!({
        "steps": [
            {"type": "RUN", "args": ["apt-get update", "root"], "force": false},
            {"type": "COPY", "args": [".", "/app", "", ""], "force": true, "filesHash": HASH, "forceUpload": true},
        ],
        "force": false, "fromImage": "ubuntu:22.04", "startCmd": "serve", "readyCmd": "curl localhost",
    });
    let wrong = json!({"steps": [{"type": "FROM", "args": ["x"]}]});
    let refused = house.ask("POST", &path, Some(wrong)).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.message().starts_with("step 1 (FROM)"),
        "{}",
        refused.message()
    );
    assert!(house.builds.started.lock().unwrap().is_none());
    let started = house.ask("POST", &path, Some(body.clone())).await;
    assert_eq!((started.status.as_u16(), started.bytes.len()), (202, 0));
    let recipe = house.builds.started.lock().unwrap().take().unwrap();
    assert_eq!((recipe.steps.len(), recipe.start.as_deref()), (2, Some("serve")));
    assert!(recipe.steps[1].force && !recipe.steps[0].force);
    let again = house.ask("POST", &path, Some(body.clone())).await;
    assert_eq!(
        (again.status.as_u16(), again.message()),
        (400, "build is not in waiting state")
    );
    for (path, status) in [
        (format!("/v2/templates/{template}/builds/x"), 400),
        (
            format!("/v2/templates/{template}/builds/{}", BuildId::random()),
            404,
        ),
    ] {
        assert_eq!(house.ask("POST", &path, Some(body.clone())).await.status, status);
    }
}

fn line(number: u32, level: ports::Level) -> BuildLine {
    BuildLine {
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(number)),
        level,
        step: (number > 0).then_some(BuildStep::Step(number)),
        message: format!("line {number}"),
    }
}

#[tokio::test]
async fn a_build_is_watched_until_it_is_over_and_its_log_is_drained() {
    let house = House::open(None).await;
    let (template, build, _) = house.registered(json!({"name": "a"})).await;
    let path = format!("/templates/{template}/builds/{build}/status");
    let first = house.get(&format!("{path}?logsOffset=0")).await;
    let expected = json!({"templateID": template, "buildID": build.to_string(), "status": "waiting", "logEntries": [], "logs": []});
    assert_eq!((first.status.as_u16(), first.body), (200, expected));

    house.builds.set(build, BuildStatus::Building);
    house
        .builds
        .lines
        .lock()
        .unwrap()
        .extend((0..250).map(|number| line(number, ports::Level::Info)));
    let failure = BuildFailure {
        message: "step 3 failed: exit status 1".to_owned(),
        step: Some(BuildStep::Step(3)),
    };
    house.builds.set(build, BuildStatus::Failed(failure));
    let (mut offset, mut seen) = (0, BTreeSet::new());
    for expected in [100, 100, 50, 0] {
        let answer = house.get(&format!("{path}?logsOffset={offset}")).await;
        assert_eq!(
            (&answer.body["status"], &answer.body["reason"]["step"]),
            (&json!("error"), &json!("3"))
        );
        assert!(
            answer.body["reason"]["message"]
                .as_str()
                .unwrap()
                .starts_with("step 3 failed")
        );
        let entries = answer.body["logEntries"].as_array().unwrap();
        assert_eq!(
            (entries.len(), answer.body["logs"].as_array().unwrap().len()),
            (expected, expected)
        );
        offset += entries.len();
        seen.extend(entries.iter().map(|entry| entry["message"].to_string()));
    }
    assert_eq!(seen.len(), 250);
    house
        .builds
        .lines
        .lock()
        .unwrap()
        .push(line(250, ports::Level::Error));
    let errors = house.get(&format!("{path}?level=error&limit=5")).await;
    assert_eq!(errors.body["logEntries"][0]["step"], "250");
    assert_eq!(
        house.get(&format!("{path}?limit=0")).await.body["logEntries"],
        json!([])
    );
    house.builds.set(build, BuildStatus::Ready);
    let ready = house.get(&path).await.body;
    assert_eq!((&ready["status"], ready.get("reason")), (&json!("ready"), None));
    for wrong in [
        "limit=101",
        "limit=x",
        "logsOffset=-1",
        "logsOffset=2147483648",
        "level=fatal",
    ] {
        assert_eq!(house.get(&format!("{path}?{wrong}")).await.status, 400, "{wrong}");
    }
    let unknown = format!("/templates/{template}/builds/{}/status", BuildId::random());
    let unknown = house.get(&unknown).await;
    assert_eq!(unknown.status, 400);
    assert!(unknown.message().ends_with("not found"), "{}", unknown.message());
    assert_eq!(
        house
            .get(&format!("/templates/{template}/builds/x/status"))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn the_log_of_a_build_is_read_from_either_end() {
    let house = House::open(None).await;
    let (template, build, _) = house.registered(json!({"name": "a"})).await;
    house
        .builds
        .lines
        .lock()
        .unwrap()
        .extend((0..2500).map(|number| line(number, ports::Level::Info)));
    let path = format!("/templates/{template}/builds/{build}/logs");
    let read = async |query: &str| -> Vec<String> {
        let answer = house.get(&format!("{path}?{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        let entries = answer.body["logs"].as_array().unwrap();
        entries
            .iter()
            .map(|entry| entry["message"].as_str().unwrap().replace("line ", ""))
            .collect()
    };
    assert_eq!(read("limit=2").await, ["0", "1"]);
    assert_eq!(read("").await.len(), 100);
    assert_eq!(
        read("cursor=1700000&limit=2&direction=forward&source=persistent").await,
        ["1700", "1701"]
    );
    assert_eq!(
        read("cursor=1700000&limit=2&direction=backward").await,
        ["1699", "1698"]
    );
    assert_eq!(read("direction=backward&limit=2").await, ["2499", "2498"]);
    assert_eq!(read("level=warn").await.len(), 0);
    assert_eq!(read("limit=0").await.len(), 0);
    for wrong in ["source=x", "direction=up", "cursor=-1", "limit=101"] {
        assert_eq!(house.get(&format!("{path}?{wrong}")).await.status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn a_template_is_listed_from_its_registration_on_and_a_snapshot_never() {
    let house = House::open(None).await;
    let (template, build, _) = house.registered(json!({"name": "a", "cpuCount": 4})).await;
    let mut snapshot = contract::template(house.team.id, "snap");
    snapshot.origin = model::TemplateOrigin::Snapshot(SandboxId::random());
    house.store.insert(&snapshot).await.unwrap();
    for path in ["/templates", "/v2/templates"] {
        let list = house.get(path).await;
        assert_eq!(list.count(), 1);
        let shown = &list.body[0];
        assert_eq!(
            (&shown["templateID"], &shown["buildID"]),
            (&json!(template), &json!(build.to_string()))
        );
        assert_eq!(
            (&shown["buildStatus"], &shown["cpuCount"]),
            (&json!("waiting"), &json!(4))
        );
        assert_eq!(shown["names"], json!(["ours/a"]));
    }
    house.builds.set(build, BuildStatus::Building);
    assert_eq!(house.get("/templates").await.body[0]["buildStatus"], "building");
    let detail = house.get(&format!("/templates/{template}")).await;
    assert_eq!(detail.body["builds"][0]["status"], "building");
    assert!(detail.body["builds"][0].get("finishedAt").is_none());
    // A name whose only build has failed is there, and says so.
    let why = BuildFailure {
        message: "exit status 1".to_owned(),
        step: None,
    };
    house.builds.set(build, BuildStatus::Failed(why));
    for path in ["/templates", "/v2/templates"] {
        let shown = &house.get(path).await.body[0];
        assert_eq!(
            (&shown["buildStatus"], &shown["buildID"]),
            (&json!("error"), &json!(build.to_string()))
        );
    }
    // Once it is ready, it is known by what sandboxes start from, also while another is under way.
    let mut stored = house.store.named(house.team.id, "a").await.unwrap().unwrap();
    stored.tag(["default".to_owned()], build, Settings::default());
    house.store.update(&stored).await.unwrap();
    house.builds.set(build, BuildStatus::Ready);
    let (_, second, _) = house.registered(json!({"name": "a"})).await;
    let shown = &house.get("/templates").await.body[0];
    assert_eq!(
        (&shown["buildStatus"], &shown["buildID"]),
        (&json!("ready"), &json!(build.to_string()))
    );
    let detail = house.get("/templates/a?limit=1").await;
    assert_eq!(detail.body["builds"][0]["buildID"], second.to_string());
    let next = detail.header("x-next-token").unwrap();
    let rest = house.get(&format!("/templates/a?limit=1&nextToken={next}")).await;
    assert_eq!(rest.body["builds"][0]["buildID"], build.to_string());
    assert_eq!(
        (
            rest.body["builds"].as_array().unwrap().len(),
            rest.header("x-next-token")
        ),
        (1, None)
    );
    assert_eq!(house.get("/templates/a?nextToken=x").await.status, 400);
}

#[tokio::test]
async fn a_template_is_deleted_by_whatever_names_it() {
    let house = House::open(None).await;
    for (path, expected) in [
        (
            "ours%2Fa%3Av1",
            r#"TemplateRef { namespace: Some("ours"), name: "a", tag: Some("v1") }"#,
        ),
        (
            "a:default",
            r#"TemplateRef { namespace: None, name: "a", tag: None }"#,
        ),
        ("a%253Av1", ""),
    ] {
        house
            .store
            .insert(&contract::template(house.team.id, "a"))
            .await
            .unwrap_or_default();
        let answer = house.ask("DELETE", &format!("/templates/{path}"), None).await;
        let asked = house.asked();
        if expected.is_empty() {
            // What was encoded twice is decoded once.
            assert_eq!((answer.status.as_u16(), asked.len()), (400, 0));
        } else {
            assert_eq!(
                (answer.status.as_u16(), &asked[..]),
                (204, &[format!("delete {expected}")][..]),
                "{path}"
            );
        }
    }
    let gone = house.ask("DELETE", "/templates/nobodys", None).await;
    assert_eq!(
        (gone.status.as_u16(), gone.message()),
        (404, "template 'nobodys' not found")
    );
    let used = contract::template(house.team.id, "used");
    house.store.insert(&used).await.unwrap();
    house.store.spawned(used.id, SystemTime::now()).await.unwrap();
    let refused = house.ask("DELETE", "/templates/used", None).await;
    assert_eq!(refused.status, 400);
    assert!(refused.message().contains("running sandboxes"));
}

#[tokio::test]
async fn tags_are_given_and_taken() {
    let house = House::open(None).await;
    let template = contract::template(house.team.id, "a");
    let build = template.tags["default"].to_string();
    house.store.insert(&template).await.unwrap();
    let give = |body: Value| house.ask("POST", "/templates/tags", Some(body));
    let given = give(json!({"target": "a:default", "tags": ["V1", "stable", "v1"]})).await;
    assert_eq!(
        (given.status.as_u16(), given.body),
        (201, json!({"buildID": build, "tags": ["v1", "stable"]}))
    );
    assert_eq!(
        give(json!({"target": "ours/a:v1", "tags": ["v2"]})).await.status,
        201
    );
    let list = house.get("/templates/a/tags").await;
    let tags: Vec<&str> = list
        .body
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| tag["tag"].as_str().unwrap())
        .collect();
    assert_eq!(tags, ["default", "stable", "v1", "v2"]);
    assert!(list.body[0]["createdAt"].is_string() && list.body[0]["buildID"] == build);
    assert_eq!(
        house.get("/templates/a/tags/count").await.body,
        json!({"total": 4})
    );
    let exists = house.get("/templates/a/tags/exists?tag=V1").await.body;
    assert_eq!(exists, json!({"exists": true, "normalizedTag": "v1"}));
    assert_eq!(
        house.get("/templates/a/tags/exists?tag=v9").await.body["exists"],
        false
    );
    for (body, status) in [
        (json!({"target": "a", "tags": []}), 400),
        (json!({"target": "a", "tags": ["x y"]}), 400),
        (json!({"target": "a b", "tags": ["x"]}), 400),
        (json!({"target": "a:v9", "tags": ["x"]}), 404),
        (json!({"target": "nobodys", "tags": ["x"]}), 404),
        (json!({"tags": ["x"]}), 400),
    ] {
        assert_eq!(give(body.clone()).await.status, status, "{body}");
    }
    let take = |body: Value| house.ask("DELETE", "/templates/tags", Some(body));
    for (body, status) in [
        (json!({"name": "a", "tags": ["default"]}), 400),
        (json!({"name": "a:v1", "tags": ["v1"]}), 400),
        (json!({"name": "a", "tags": []}), 400),
        (json!({"name": "nobodys", "tags": ["v1"]}), 404),
        (json!({"name": "a", "tags": ["v1", "v2"]}), 204),
    ] {
        assert_eq!(take(body.clone()).await.status, status, "{body}");
    }
    assert_eq!(
        house.get("/templates/a/tags/count").await.body,
        json!({"total": 2})
    );
    for wrong in [
        "exists",
        "exists?tag=a%20b",
        "groups?sort=x",
        "groups?tagsLimit=0",
        "groups?tagsCursor=x",
        "v1/assignments?limit=101",
        "v1/assignments?cursor=x",
    ] {
        assert_eq!(
            house.get(&format!("/templates/a/tags/{wrong}")).await.status,
            400,
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn tags_remember_what_they_named() {
    let house = House::open(None).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        let (_, id, _) = house
            .registered(json!({"name": "a", "tags": ["default", "old"]}))
            .await;
        house.builds.set(id, BuildStatus::Ready);
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        house
            .builds
            .builds
            .lock()
            .unwrap()
            .get_mut(&id)
            .unwrap()
            .finished_at = Some(at);
        ids.push(id);
    }
    let (_, failed, _) = house.registered(json!({"name": "a"})).await;
    let failure = BuildFailure {
        message: "no".to_owned(),
        step: None,
    };
    house.builds.set(failed, BuildStatus::Failed(failure));
    let mut template = house.store.named(house.team.id, "a").await.unwrap().unwrap();
    template.tag(["default".to_owned()], ids[2], Settings::default());
    template.tag(
        ["old".to_owned(), "extra".to_owned()],
        ids[0],
        Settings::default(),
    );
    house.store.update(&template).await.unwrap();
    let of = async |tag: &str| -> Vec<Value> {
        let answer = house.get(&format!("/templates/a/tags/{tag}/assignments")).await;
        assert_eq!(answer.body["nextCursor"], Value::Null);
        answer.body["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["buildId"].clone())
            .collect()
    };
    let named =
        |order: &[usize]| -> Vec<Value> { order.iter().map(|at| json!(ids[*at].to_string())).collect() };
    assert_eq!(of("default").await, named(&[2, 1, 0]));
    // It was given back to the first by hand.
    assert_eq!(of("old").await, named(&[0, 2, 1]));
    assert_eq!(of("extra").await, named(&[0]));
    assert_eq!(of("never").await, named(&[]));

    let (mut seen, mut next) = (Vec::new(), String::new());
    for more in [true, true, false] {
        let page = house
            .get(&format!("/templates/a/tags/default/assignments?limit=1{next}"))
            .await
            .body;
        let one = &page["data"][0];
        assert_eq!(one["assignmentId"].as_str().unwrap().len(), 36);
        assert!(one["assignmentId"].as_str().unwrap().parse::<BuildId>().is_ok());
        assert!(
            one["assignedAt"].is_string()
                && one["buildCreatedAt"].is_string()
                && one["buildFinishedAt"].is_string()
        );
        seen.push(one["buildId"].clone());
        assert_eq!(page["nextCursor"].is_string(), more);
        next = format!("&cursor={}", page["nextCursor"].as_str().unwrap_or_default());
    }
    assert_eq!(seen, named(&[2, 1, 0]));

    for (sort, expected) in [
        ("", vec!["old", "default", "extra"]),
        ("&sort=latest_asc", vec!["extra", "default", "old"]),
        ("&sort=name_asc", vec!["default", "extra", "old"]),
        ("&sort=name_desc", vec!["old", "extra", "default"]),
        ("&search=E", vec!["default", "extra"]),
    ] {
        let (mut seen, mut next) = (Vec::new(), String::new());
        loop {
            let page = house
                .get(&format!(
                    "/templates/a/tags/groups?tagsLimit=1&assignmentLimit=2{sort}{next}"
                ))
                .await
                .body;
            let group = &page["tags"][0];
            assert_eq!(group["hasMore"], group["tag"] != "extra", "{group}");
            seen.push(group["tag"].as_str().unwrap().to_owned());
            match page["nextCursor"].as_str() {
                Some(cursor) => next = format!("&tagsCursor={cursor}"),
                None => break,
            }
        }
        assert_eq!(seen, expected, "{sort}");
    }
}

#[tokio::test]
async fn seeds_of_other_houses_sign_other_addresses() {
    let (one, other) = (House::open(None).await, House::open(None).await);
    assert_ne!(
        one.store.seed().await.unwrap().expose(),
        other.store.seed().await.unwrap().expose()
    );
    let signed = async |house: &House| {
        let mac = house.api.signed(one.team.id, HASH, 1).await.ok().unwrap();
        hmac::Mac::finalize(mac).into_bytes()
    };
    assert_ne!(signed(&one).await, signed(&other).await);
    assert_eq!(signed(&one).await, signed(&one).await);
}

#[tokio::test]
async fn behind_a_proxy_uploads_are_put_where_it_is() {
    let house = House::open_at(None, Some("https://sandboxes.example/")).await;
    let (template, ..) = house.registered(json!({"name": "a"})).await;
    let link = house.get(&format!("/templates/{template}/files/{HASH}")).await;
    let url = link.body["url"].as_str().unwrap();
    assert!(url.starts_with("https://sandboxes.example/uploads/"), "{url}");
}
