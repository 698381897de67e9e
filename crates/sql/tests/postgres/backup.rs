//! The procedures of docs/database.md: what was backed up is there again.
use std::time::Duration;

use model::{Phase, Quota, TeamId};
use ports::Level;
use ports::builds::{BuildLine, CachedStep, LinesQuery};
use ports::store::contract;
use sql::{Database, Stores};

use crate::server::{beside, config, database, migrate, name, say, shared};

/// Everything that the stores can tell of what [`fill`] stored.
#[derive(Debug, PartialEq)]
struct Told {
    sandboxes: Vec<model::Sandbox>,
    templates: Vec<Option<model::Template>>,
    builds: Vec<model::Build>,
    lines: Vec<BuildLine>,
    cached: Option<CachedStep>,
    used: Vec<(model::BuildId, std::time::SystemTime)>,
    stowed: std::collections::BTreeMap<model::BuildId, String>,
    volumes: Vec<model::Volume>,
    teams: Vec<model::Team>,
    keys: Vec<model::ApiKey>,
    seed: model::Secret<Vec<u8>>,
}

/// One of everything, with odd texts in it.
struct Filled {
    team: TeamId,
    build: model::Build,
    key: model::recipe::Key,
}

async fn fill(stores: &Stores) -> Filled {
    let odd = "ключ \0 \u{1} \"'\\ \n";
    let team = contract::team(odd);
    stores.teams.insert_team(&team).await.unwrap();
    let quota = Quota {
        sandboxes: 7,
        ..team.quota
    };
    stores.teams.set_quota(team.id, quota).await.unwrap();
    let key = contract::key(team.id, odd);
    stores.teams.insert_key(&key).await.unwrap();
    stores.teams.key_used(key.id, key.created_at).await.unwrap();
    for number in 0..20 {
        let mut sandbox = contract::sandbox(team.id);
        sandbox.metadata.insert(odd.to_owned(), number.to_string());
        stores.sandboxes.insert(&sandbox).await.unwrap();
        if number % 2 == 0 {
            sandbox.phase = Phase::Gone {
                why: model::KillReason::Requested,
            };
        }
        stores.sandboxes.update(&sandbox).await.unwrap();
    }
    let template = contract::template(team.id, odd);
    stores.templates.insert(&template).await.unwrap();
    stores
        .templates
        .spawned(template.id, template.created_at)
        .await
        .unwrap();
    let build = contract::build(template.id);
    stores.builds.insert_build(&build).await.unwrap();
    let lines = [
        contract::line(Level::Info, odd),
        contract::line(Level::Warn, "two"),
    ];
    stores.builds.append_lines(build.id, &lines).await.unwrap();
    let step = CachedStep {
        build: build.id,
        context: model::recipe::Context {
            user: "root".to_owned(),
            workdir: None,
            env: vec![(odd.to_owned(), odd.to_owned())],
        },
    };
    let step_key = model::recipe::Key::of_build(build.id);
    stores
        .builds
        .cache_step(team.id, step_key, &step, template.created_at)
        .await
        .unwrap();
    stores.builds.note_stowed(build.id, "sha256:1").await.unwrap();
    let volume = contract::volume(team.id, odd);
    stores.volumes.insert_volume(&volume).await.unwrap();
    Filled {
        team: team.id,
        build,
        key: step_key,
    }
}

async fn tell(stores: &Stores, filled: &Filled) -> Told {
    let all = ports::store::SandboxQuery {
        limit: 1000,
        ..contract::everything(filled.team)
    };
    let templates = stores.templates.list(filled.team).await.unwrap();
    let mut by_name = Vec::new();
    for template in &templates {
        by_name.push(
            stores
                .templates
                .named(filled.team, &template.names[0])
                .await
                .unwrap(),
        );
    }
    let lines = LinesQuery {
        offset: 0,
        limit: 100,
        level: Level::Debug,
    };
    let builds = &stores.builds;
    Told {
        sandboxes: stores.sandboxes.list(&all).await.unwrap(),
        templates: by_name,
        builds: builds.builds_of(filled.build.template).await.unwrap(),
        lines: builds.lines(filled.build.id, lines).await.unwrap(),
        cached: builds
            .cached_step(filled.team, filled.key, std::time::UNIX_EPOCH)
            .await
            .unwrap(),
        used: builds.cached_builds().await.unwrap(),
        stowed: builds.stowed().await.unwrap(),
        volumes: stores.volumes.volumes(filled.team).await.unwrap(),
        teams: stores.teams.teams().await.unwrap(),
        keys: stores.teams.keys(filled.team).await.unwrap(),
        seed: stores.teams.seed().await.unwrap(),
    }
}

/// What is restored is no picture: the laws hold on it, and what was there can be written.
async fn is_alive(stores: &Stores, told: &Told) {
    contract::pages_join_without_gap_or_overlap_in_both_orders(&*stores.sandboxes).await;
    contract::lines_of_many_writers_are_all_kept(&*stores.builds).await;
    contract::a_team_slug_is_taken_once(&*stores.teams).await;
    let sandbox = &told.sandboxes[0];
    assert_eq!(
        stores.sandboxes.update(sandbox).await.unwrap(),
        sandbox.version + 1
    );
}

#[tokio::test]
async fn what_pg_dump_wrote_is_there_again_after_a_restore() {
    let Some(config) = database().await else { return };
    let server = shared().unwrap();
    let database = Database::Postgres(config.clone());
    let stores = Stores::open(&database).await.unwrap();
    let filled = fill(&stores).await;
    let told = tell(&stores, &filled).await;
    assert_eq!(told.sandboxes.len(), 10);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("atoll.dump");
    let file = file.to_str().unwrap();
    let mut other = beside(&config).await;
    let name: String = sqlx::query_scalar("SELECT current_database()")
        .fetch_one(&mut other)
        .await
        .unwrap();
    server
        .run("pg_dump", &["--format=custom", "--file", file, &name])
        .unwrap();
    // What comes after the backup is not in it.
    stores
        .sandboxes
        .insert(&contract::sandbox(filled.team))
        .await
        .unwrap();
    server.drop_database(&name).unwrap();
    assert!(stores.sandboxes.live().await.is_err());
    server.create_database(&name, Some("template0")).unwrap();
    server
        .run(
            "pg_restore",
            &["--exit-on-error", "--single-transaction", "--dbname", &name, file],
        )
        .unwrap();
    // The same stores, without being opened again.
    assert_eq!(tell(&stores, &filled).await, told);
    let migrated = sql::migrate(&database).await.unwrap();
    assert_eq!((migrated.applied, migrated.generation), (Vec::new(), 2));
    is_alive(&Stores::open(&database).await.unwrap(), &told).await;
}

#[tokio::test]
async fn what_pg_basebackup_copied_is_a_server_with_everything() {
    let Some(server) = shared() else { return };
    let name = name();
    server.create_database(&name, None).unwrap();
    migrate(server, &name).await;
    let stores = Stores::open(&Database::Postgres(config(server, &name)))
        .await
        .unwrap();
    let filled = fill(&stores).await;
    let told = tell(&stores, &filled).await;
    let copy = server.copy(false).unwrap();
    stores
        .sandboxes
        .insert(&contract::sandbox(filled.team))
        .await
        .unwrap();
    let restored = Stores::open(&Database::Postgres(config(&copy, &name)))
        .await
        .unwrap();
    assert_eq!(tell(&restored, &filled).await, told);
    is_alive(&restored, &told).await;
}

#[tokio::test]
async fn what_sqlite_vacuumed_into_a_file_is_there_again() {
    use sqlx::Connection as _;
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (
        directory.path().join("atoll.db"),
        directory.path().join("atoll.backup"),
    );
    let stores = Stores::open(&Database::Sqlite(path.clone())).await.unwrap();
    let filled = fill(&stores).await;
    let told = tell(&stores, &filled).await;
    // From another process' connection, while the daemon runs.
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("VACUUM INTO ?")
        .bind(copy.to_str().unwrap())
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    stores
        .sandboxes
        .insert(&contract::sandbox(filled.team))
        .await
        .unwrap();
    drop(stores);
    let restored = directory.path().join("restored.db");
    std::fs::rename(&copy, &restored).unwrap();
    let stores = Stores::open(&Database::Sqlite(restored)).await.unwrap();
    assert_eq!(tell(&stores, &filled).await, told);
    is_alive(&stores, &told).await;
}

/// A counter may lose its last moments in a crash, and nothing else may.
#[tokio::test]
async fn an_answered_write_waits_for_the_disk_and_a_counter_does_not() {
    let Some(config) = database().await else { return };
    let mut other = beside(&config).await;
    say(
        &mut other,
        "CREATE TABLE seen (what TEXT, how TEXT);
         CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO seen VALUES (TG_TABLE_NAME, current_setting('synchronous_commit')); RETURN NEW; END $$;
         CREATE TRIGGER look AFTER INSERT OR UPDATE ON templates FOR EACH ROW EXECUTE FUNCTION look();
         CREATE TRIGGER look AFTER INSERT OR UPDATE ON sandboxes FOR EACH ROW EXECUTE FUNCTION look()",
    )
    .await;
    let stores = Stores::open(&Database::Postgres(sql::PostgresConfig {
        connections_max: 1,
        idle_timeout: Duration::from_secs(60),
        ..config
    }))
    .await
    .unwrap();
    let template = contract::template(TeamId::random(), "counted");
    stores.templates.insert(&template).await.unwrap();
    stores
        .templates
        .spawned(template.id, template.created_at)
        .await
        .unwrap();
    stores
        .sandboxes
        .insert(&contract::sandbox(template.team))
        .await
        .unwrap();
    let seen: Vec<(String, String)> = sqlx::query_as("SELECT what, how FROM seen")
        .fetch_all(&mut other)
        .await
        .unwrap();
    let expected = [("templates", "on"), ("templates", "off"), ("sandboxes", "on")];
    assert_eq!(
        seen,
        expected.map(|(what, how)| (what.to_owned(), how.to_owned()))
    );
}
