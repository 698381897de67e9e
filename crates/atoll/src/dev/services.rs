//! What a fleet stands on, started as this machine's packages bring it.
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpStream;

use super::layout::Layout;
use super::process::{Processes, Spawn, User, run_as};
use super::programs::Programs;

const UP_WITHIN: Duration = Duration::from_secs(60);

/// Starts all, and waits until they answer.
pub(super) async fn start(layout: &Layout, programs: &Programs, processes: &mut Processes) -> Result<()> {
    postgres(layout, programs, processes).await?;
    redis(layout, programs, processes).await?;
    consul(layout, programs, processes).await?;
    for (name, address) in [
        ("PostgreSQL", layout.postgres),
        ("Redis", layout.redis),
        ("Consul", layout.consul),
    ] {
        let deadline = Instant::now() + UP_WITHIN;
        while TcpStream::connect(address).await.is_err() {
            if Instant::now() > deadline {
                bail!(
                    "{name} does not listen on {address}; its log is below {}",
                    layout.dir.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    create_database(layout, programs).await
}

/// Who runs PostgreSQL: it refuses root.
fn unprivileged() -> Result<User> {
    User::named("postgres").or_else(|_| User::named("nobody"))
}

async fn postgres(layout: &Layout, programs: &Programs, processes: &mut Processes) -> Result<()> {
    let (dir, user) = (layout.dir.join("postgres"), unprivileged()?);
    std::fs::create_dir_all(&dir)?;
    chown(&dir, Some(user.uid), Some(user.gid))?;
    let data = dir.join("data");
    if !data.join("PG_VERSION").exists() {
        let initdb = programs.postgres.join("initdb").display().to_string();
        let data = data.display().to_string();
        let arguments = [
            "-D",
            &data,
            "-U",
            "atoll",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
        ];
        run_as(Path::new(&initdb), &arguments, user).await?;
    }
    let argv = [
        programs.postgres.join("postgres").display().to_string(),
        "-D".to_owned(),
        data.display().to_string(),
        format!("-clisten_addresses={}", layout.postgres.ip()),
        format!("-cport={}", layout.postgres.port()),
        format!("-cunix_socket_directories={}", dir.display()),
        "-cmax_connections=200".to_owned(),
    ];
    let spawn = Spawn {
        name: "postgres".to_owned(),
        argv: argv.to_vec(),
        user: Some(user),
        log: layout.dir.join("postgres.log"),
    };
    processes.start(spawn).await
}

async fn create_database(layout: &Layout, programs: &Programs) -> Result<()> {
    let (host, port) = (
        layout.postgres.ip().to_string(),
        layout.postgres.port().to_string(),
    );
    let createdb = programs.postgres.join("createdb");
    let arguments = ["-h", &host, "-p", &port, "-U", "atoll", "atoll"];
    let deadline = Instant::now() + UP_WITHIN;
    loop {
        match run_as(&createdb, &arguments, unprivileged()?).await {
            Ok(_) => return Ok(()),
            Err(error) if error.to_string().contains("already exists") => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("the database cannot be made");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn redis(layout: &Layout, programs: &Programs, processes: &mut Processes) -> Result<()> {
    let dir = layout.dir.join("redis");
    std::fs::create_dir_all(&dir)?;
    let argv = [
        programs.redis.display().to_string(),
        "--bind".to_owned(),
        layout.redis.ip().to_string(),
        "--port".to_owned(),
        layout.redis.port().to_string(),
        "--dir".to_owned(),
        dir.display().to_string(),
        // All that it holds is made anew from the database and the nodes.
        "--save".to_owned(),
        String::new(),
        "--appendonly".to_owned(),
        "no".to_owned(),
    ];
    let spawn = Spawn {
        name: "redis".to_owned(),
        argv: argv.to_vec(),
        user: None,
        log: layout.dir.join("redis.log"),
    };
    processes.start(spawn).await
}

async fn consul(layout: &Layout, programs: &Programs, processes: &mut Processes) -> Result<()> {
    let dir = layout.dir.join("consul");
    std::fs::create_dir_all(&dir)?;
    let argv = [
        programs.consul.display().to_string(),
        "agent".to_owned(),
        "-server".to_owned(),
        "-bootstrap-expect=1".to_owned(),
        format!("-data-dir={}", dir.display()),
        format!("-bind={}", layout.gateway),
        format!("-client={}", layout.gateway),
        format!("-http-port={}", layout.consul.port()),
        "-dns-port=-1".to_owned(),
        "-log-level=warn".to_owned(),
    ];
    let spawn = Spawn {
        name: "consul".to_owned(),
        argv: argv.to_vec(),
        user: None,
        log: layout.dir.join("consul.log"),
    };
    processes.start(spawn).await
}
