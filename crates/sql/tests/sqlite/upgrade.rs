//! A database of an earlier version opens, and means what it meant.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use model::{
    Memory, MiB, Phase, Resources, Settings, StartCommand, State, Team, TeamId, Template, TemplateOrigin,
    VolumeState,
};
use ports::store::{SandboxQuery, contract, find_template};
use ports::{SandboxStore, StoreError, TemplateStore, VolumeStore};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

const TEAM: &str = "183b0d7a-ced0-4a22-962c-0881bf0002d3";
const BASE: &str = "87e5r5jlnmcbob0r01fq";
const BASE_BUILD: &str = "1a5cd813-9232-4ad3-bd56-e64f53b3e26b";

/// As the first version wrote it when it first started.
const BASE_BODY: &str = r#"{"id":"87e5r5jlnmcbob0r01fq","team":"183b0d7a-ced0-4a22-962c-0881bf0002d3","public":true,"names":["base"],"tags":{"default":"1a5cd813-9232-4ad3-bd56-e64f53b3e26b"},"resources":{"cpu":2,"memory":1024,"disk":10240},"env":{},"user":"user","workdir":"/home/user","start":null,"created_at":{"secs_since_epoch":1795725359,"nanos_since_epoch":137147912},"updated_at":{"secs_since_epoch":1795725359,"nanos_since_epoch":137147912},"last_spawned_at":null,"spawn_count":0,"build_count":1}"#;

/// Three tags of two builds, with everything set.
const RICH: &str = "aaaaaaaaaaaaaaaaaaaa";
const RICH_BODY: &str = r#"{"id":"aaaaaaaaaaaaaaaaaaaa","team":"183b0d7a-ced0-4a22-962c-0881bf0002d3","public":false,"names":["rich","wealthy"],"tags":{"default":"00000000-0000-4000-8000-000000000001","v1":"00000000-0000-4000-8000-000000000002","v2":"00000000-0000-4000-8000-000000000001"},"resources":{"cpu":4,"memory":2048,"disk":77},"env":{"A":"","Ä \"q\" \\ \n":"$.x"},"user":"root","workdir":null,"start":{"command":"serve \"all\"","user":"root","cwd":"/srv"},"created_at":{"secs_since_epoch":1795725360,"nanos_since_epoch":5},"updated_at":{"secs_since_epoch":1795725361,"nanos_since_epoch":0},"last_spawned_at":{"secs_since_epoch":1,"nanos_since_epoch":0},"spawn_count":0,"build_count":2}"#;

/// No tag.
const BARE: &str = "bbbbbbbbbbbbbbbbbbbb";
const BARE_BODY: &str = r#"{"id":"bbbbbbbbbbbbbbbbbbbb","team":"183b0d7a-ced0-4a22-962c-0881bf0002d3","public":false,"names":["bare"],"tags":{},"resources":{"cpu":2,"memory":1024,"disk":10240},"env":{},"user":"user","workdir":null,"start":null,"created_at":{"secs_since_epoch":1795725362,"nanos_since_epoch":0},"updated_at":{"secs_since_epoch":1795725362,"nanos_since_epoch":0},"last_spawned_at":null,"spawn_count":0,"build_count":0}"#;

const RUNNING: &str = r#"{"phase":"running","at":{"node":"67be335e-a92d-4cdd-bd14-50e0f30cd337","execution":"0377131f-d2c3-495d-9435-18f0d7748c94"}}"#;
const PAUSED: &str = r#"{"phase":"paused","snapshot":"0377131f-d2c3-495d-9435-18f0d7748c94","mode":"full","home":"67be335e-a92d-4cdd-bd14-50e0f30cd337"}"#;
const PAUSED_DISK: &str = r#"{"phase":"paused","snapshot":"0377131f-d2c3-495d-9435-18f0d7748c94","mode":"filesystem","home":"67be335e-a92d-4cdd-bd14-50e0f30cd337"}"#;
const RESUMING: &str = r#"{"phase":"starting","at":{"node":"67be335e-a92d-4cdd-bd14-50e0f30cd337","execution":"0377131f-d2c3-495d-9435-18f0d7748c94"},"from":{"snapshot":{"build":"0377131f-d2c3-495d-9435-18f0d7748c94","mode":"full","home":"67be335e-a92d-4cdd-bd14-50e0f30cd337"}}}"#;

fn sandbox_body(id: &str, template: &str, phase: &str) -> String {
    let body = r#"{"id":"ID","team":"183b0d7a-ced0-4a22-962c-0881bf0002d3","template":"TEMPLATE","build":"1a5cd813-9232-4ad3-bd56-e64f53b3e26b","alias":"base","phase":PHASE,"version":0,"started_at":{"secs_since_epoch":1795725369,"nanos_since_epoch":611981000},"end_at":{"secs_since_epoch":1795728969,"nanos_since_epoch":611981000},"timeout_seconds":3600,"resources":{"cpu":2,"memory":1024,"disk":10240},"metadata":{"a \"\\ \u0001ключ":"1\n/"},"env":{"MINE":"1"},"lifecycle":{"on_timeout":"kill","auto_resume":false},"network":{"allow":[],"deny":[],"internet":null,"public_traffic":null,"mask_host":null},"secure":true,"envd_unresponsive_at_pause":false}"#;
    body.replace("ID", id)
        .replace("TEMPLATE", template)
        .replace("PHASE", phase)
}

/// The first migration, and no later one.
async fn first_version(directory: &Path) -> (PathBuf, SqliteConnection) {
    version_of(directory, &["0001_begin.sql"]).await
}

/// These migrations, and no other.
async fn version_of(directory: &Path, files: &[&str]) -> (PathBuf, SqliteConnection) {
    let migrations = directory.join("migrations");
    std::fs::create_dir(&migrations).unwrap();
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
    for file in files {
        std::fs::copy(all.join(file), migrations.join(file)).unwrap();
    }
    let path = directory.join("atoll.db");
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let migrator = sqlx::migrate::Migrator::new(migrations).await.unwrap();
    migrator.run(&mut connection).await.unwrap();
    (path, connection)
}

async fn old_template(connection: &mut SqliteConnection, id: &str, public: bool, names: &[&str], body: &str) {
    sqlx::query("INSERT INTO templates VALUES (?, ?, ?, 1795725359137147, 3, 1795725369611981, ?)")
        .bind(id)
        .bind(TEAM)
        .bind(public)
        .bind(body)
        .execute(&mut *connection)
        .await
        .unwrap();
    for name in names {
        sqlx::query("INSERT INTO template_names VALUES (?, ?, ?)")
            .bind(TEAM)
            .bind(name)
            .bind(id)
            .execute(&mut *connection)
            .await
            .unwrap();
    }
}

async fn old_sandbox(connection: &mut SqliteConnection, id: &str, template: &str, phase: &str) {
    let seen: Phase = serde_json::from_str(phase).unwrap();
    let state = seen.state().map(|state| i32::from(state == State::Paused));
    sqlx::query("INSERT INTO sandboxes VALUES (?, ?, ?, 3, ?, 1795725369611981, NULL, ?)")
        .bind(id)
        .bind(TEAM)
        .bind(template)
        .bind(state)
        .bind(sandbox_body(id, template, phase))
        .execute(connection)
        .await
        .unwrap();
}

async fn old_team(connection: &mut SqliteConnection) -> Team {
    let team = Team {
        id: TEAM.parse().unwrap(),
        ..contract::team("default")
    };
    sqlx::query("INSERT INTO teams VALUES (?, ?, ?)")
        .bind(TEAM)
        .bind(team.slug.clone())
        .bind(serde_json::to_string(&team).unwrap())
        .execute(connection)
        .await
        .unwrap();
    team
}

fn base_settings() -> Settings {
    Settings {
        workdir: Some("/home/user".to_owned()),
        created_at: UNIX_EPOCH + Duration::new(1_795_725_359, 137_147_912),
        ..Settings::default()
    }
}

async fn resolve(store: &Arc<sql::Sqlite>, team: TeamId, name: &str) -> Option<Template> {
    find_template(&**store, &**store, team, &name.parse().unwrap())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_template_of_the_first_version_resolves_with_its_settings() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut connection) = first_version(directory.path()).await;
    let team = old_team(&mut connection).await;
    old_template(&mut connection, BASE, true, &["base"], BASE_BODY).await;
    old_template(&mut connection, RICH, false, &["rich", "wealthy"], RICH_BODY).await;
    old_template(&mut connection, BARE, false, &["bare"], BARE_BODY).await;
    connection.close().await.unwrap();

    let store = sql::Sqlite::open(&path).await.unwrap();
    let stranger = TeamId::random();
    for (asks, name) in [
        (team.id, "base"),
        (stranger, "base"),
        (stranger, "default/base"),
        (team.id, BASE),
    ] {
        let base = resolve(&store, asks, name).await.unwrap();
        assert_eq!(base.id, BASE.parse().unwrap());
        assert_eq!(
            base.tagged(None),
            Some((BASE_BUILD.parse().unwrap(), &base_settings()))
        );
        assert_eq!(base.origin, TemplateOrigin::Build);
        assert_eq!((base.version, base.spawn_count, base.build_count), (0, 3, 1));
    }

    let mut rich = resolve(&store, team.id, "wealthy").await.unwrap();
    let settings = Settings {
        resources: Resources {
            cpu: 4,
            memory: MiB(2048),
            disk: MiB(77),
        },
        env: [("A", ""), ("Ä \"q\" \\ \n", "$.x")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        user: "root".to_owned(),
        workdir: None,
        start: Some(StartCommand {
            command: "serve \"all\"".to_owned(),
            user: "root".to_owned(),
            cwd: Some("/srv".to_owned()),
        }),
        memory: Memory::None,

        home: None,
        created_at: UNIX_EPOCH + Duration::new(1_795_725_360, 5),
    };
    let one = "00000000-0000-4000-8000-000000000001".parse().unwrap();
    let two = "00000000-0000-4000-8000-000000000002".parse().unwrap();
    assert_eq!(rich.tagged(None), Some((one, &settings)));
    assert_eq!(rich.tagged(Some("v2")), Some((one, &settings)));
    assert_eq!(rich.tagged(Some("v1")), Some((two, &settings)));
    assert_eq!(rich.builds.len(), 2);
    assert_eq!(rich.names, ["rich", "wealthy"]);
    let bare = resolve(&store, team.id, "bare").await.unwrap();
    assert!(bare.tags.is_empty() && bare.builds.is_empty());
    let mut builds = store.builds().await.unwrap();
    builds.sort_unstable();
    assert_eq!(builds, [one, two, BASE_BUILD.parse().unwrap()]);

    // They are written as new ones are: with a version, and with nothing of the old form left.
    let stale = rich.clone();
    rich.public = true;
    rich.version = TemplateStore::update(&*store, &rich).await.unwrap();
    assert!(matches!(
        TemplateStore::update(&*store, &stale).await,
        Err(StoreError::Conflict)
    ));
    assert_eq!(resolve(&store, stranger, "rich").await, Some(rich));
}

#[tokio::test]
async fn nothing_of_the_old_form_is_left_in_a_template() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut connection) = first_version(directory.path()).await;
    old_template(&mut connection, RICH, false, &["rich"], RICH_BODY).await;
    connection.close().await.unwrap();
    let store = sql::Sqlite::open(&path).await.unwrap();
    let template = TemplateStore::get(&*store, RICH.parse().unwrap()).await.unwrap();
    let options = SqliteConnectOptions::new().filename(&path);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let body: String = sqlx::query_scalar("SELECT body FROM templates")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let kept: serde_json::Value = serde_json::from_str(&body).unwrap();
    let written = serde_json::to_value(template.unwrap()).unwrap();
    let unknown = kept
        .as_object()
        .unwrap()
        .keys()
        .find(|key| written.get(key).is_none());
    assert_eq!(unknown, None);
    assert_eq!(kept["builds"], written["builds"]);
}

#[tokio::test]
async fn a_sandbox_of_the_first_version_has_the_settings_of_its_template() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut connection) = first_version(directory.path()).await;
    old_template(&mut connection, BASE, true, &["base"], BASE_BODY).await;
    let gone = "cccccccccccccccccccc";
    let cases = [
        (
            "i00000000000000000001",
            BASE,
            RUNNING,
            base_settings(),
            Memory::None,
        ),
        (
            "i00000000000000000002",
            BASE,
            PAUSED,
            base_settings(),
            Memory::Volatile,
        ),
        (
            "i00000000000000000003",
            BASE,
            PAUSED_DISK,
            base_settings(),
            Memory::None,
        ),
        (
            "i00000000000000000004",
            BASE,
            RESUMING,
            base_settings(),
            Memory::Volatile,
        ),
        (
            "i00000000000000000005",
            gone,
            PAUSED,
            Settings::default(),
            Memory::Volatile,
        ),
    ];
    for (id, template, phase, ..) in &cases {
        old_sandbox(&mut connection, id, template, phase).await;
    }
    connection.close().await.unwrap();

    let store = sql::Sqlite::open(&path).await.unwrap();
    for (id, template, phase, settings, kept) in cases {
        let mut sandbox = SandboxStore::get(&*store, id.parse().unwrap())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(sandbox.template, template.parse().unwrap());
        assert_eq!(sandbox.phase, serde_json::from_str(phase).unwrap());
        assert_eq!((&sandbox.settings, sandbox.kept), (&settings, kept), "{id}");
        assert_eq!((sandbox.version, &*sandbox.env["MINE"]), (3, "1"));
        assert!(sandbox.volumes.is_empty());
        sandbox.version = SandboxStore::update(&*store, &sandbox).await.unwrap();
        assert_eq!(
            SandboxStore::get(&*store, sandbox.id).await.unwrap(),
            Some(sandbox)
        );
    }
}

#[tokio::test]
async fn a_sandbox_of_the_first_version_is_found_by_its_metadata() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut connection) = first_version(directory.path()).await;
    old_template(&mut connection, BASE, true, &["base"], BASE_BODY).await;
    old_sandbox(&mut connection, "i00000000000000000001", BASE, RUNNING).await;
    connection.close().await.unwrap();
    let store = sql::Sqlite::open(&path).await.unwrap();
    for (value, found) in [("1\n/", 1), ("1", 0)] {
        let query = SandboxQuery {
            metadata: [("a \"\\ \u{1}ключ".to_owned(), value.to_owned())].into(),
            ..contract::everything(TEAM.parse().unwrap())
        };
        let page = SandboxStore::list(&*store, &query).await.unwrap();
        assert_eq!(page.len(), found);
    }
}

#[tokio::test]
async fn a_volume_of_before_there_were_fleets_is_there_and_lies_on_the_one_node() {
    let directory = tempfile::tempdir().unwrap();
    let files = ["0001_begin.sql", "0002_builds.sql", "0003_stowed.sql"];
    let (path, mut connection) = version_of(directory.path(), &files).await;
    let id = "5d0f7c2e-94a5-4ac1-9e8c-52a8b5a3a0f1";
    let body = r#"{"id":"5d0f7c2e-94a5-4ac1-9e8c-52a8b5a3a0f1","team":"183b0d7a-ced0-4a22-962c-0881bf0002d3","name":"data","size":10240,"created_at":{"secs_since_epoch":1795725369,"nanos_since_epoch":611981000}}"#;
    sqlx::query(
        "INSERT INTO volumes (id, team, name, created_us, body) VALUES (?, ?, 'data', 1795725369611981, ?)",
    )
    .bind(id)
    .bind(TEAM)
    .bind(body)
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    let store = sql::Sqlite::open(&path).await.unwrap();
    let mut volume = store.volume(id.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(
        (volume.home, volume.state, volume.version),
        (None, VolumeState::Ready, 0)
    );
    volume.state = VolumeState::Doomed;
    volume.version = store.update_volume(&volume).await.unwrap();
    store.give_up_volume(&volume).await.unwrap();
    assert_eq!(store.volume_remains().await.unwrap(), [volume]);
}
