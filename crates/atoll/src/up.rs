//! `atoll up`.
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;

use crate::data::DataDir;
use crate::house::House;
use crate::settings::Resolved;
use crate::tasks::{Tasks, signalled};
use crate::{admin, control, data, out, telemetry};

/// Starts everything and serves until a signal, or `atoll down`.
pub(crate) fn run(settings: Resolved, json: bool) -> Result<ExitCode> {
    settings.check_listeners()?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("atoll")
        .build()?;
    runtime.block_on(serve(settings, json))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(settings: Resolved, json: bool) -> Result<()> {
    anyhow::ensure!(
        settings.cluster.is_none(),
        "the configuration has [cluster]: processes of a fleet are started by `atoll serve`"
    );
    let telemetry = telemetry::start(&settings)?;
    let data = DataDir::open(&settings.data_dir)?;
    // Taken before anything is made, so that a port that is taken costs nothing.
    let api = listen("api", settings.api_listen).await?;
    let edge = listen("edge", settings.edge_listen).await?;
    let admin_listener = listen("admin", settings.admin_listen).await?;
    let tls = match settings.tls_listen {
        Some(address) => Some(listen("tls", address).await?),
        None => None,
    };
    let mut tasks = Tasks::default();
    let opened = admin::begin(admin_listener, &telemetry, &mut tasks);
    let house = Arc::new(House::open(settings, data).await?);
    let stop = tasks.stop();
    tasks.spawn("the orchestrator", Arc::clone(&house.orchestrator).run(stop));
    house.host.tend(&house.settings, &mut tasks);
    let stop = tasks.stop();
    tasks.spawn("the API", Arc::clone(&house.api).serve(api, stop));
    let stop = tasks.stop();
    tasks.spawn("the edge", Arc::clone(&house.edge).serve(edge, stop));
    if let (Some(listener), Some(config)) = (tls, house.tls()?) {
        let (edge, api, stop) = (Arc::clone(&house.edge), house.settings.api_listen, tasks.stop());
        tasks.spawn(
            "the edge's TLS",
            edge.serve_tls(listener, config, Some(api), stop),
        );
    }
    let (controlled, stop) = (Arc::clone(&house), tasks.stop());
    tasks.spawn("the control socket", async move {
        if let Err(error) = control::serve(controlled, stop).await {
            tracing::error!("the control socket: {error:#}");
        }
    });
    let _ = opened.set(Arc::clone(&house) as _);
    out::say(format_args!(
        "ready; API on {}, sandboxes on {}",
        house.credentials.api_url, house.credentials.sandbox_url
    ));
    // It serves all the same where nobody reads this.
    let _ = data::show(&house.credentials, json);

    let lasted = tasks.until(signalled()?).await;
    out::say("stopping; running sandboxes live on, `atoll down` ends them");
    let ended = tasks.end().await;
    house.close().await;
    telemetry.flush();
    Ok(lasted.and(ended)?)
}

pub(crate) async fn listen(name: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; --{name}-listen takes another address"))
}

/// Each sandbox holds a few descriptors, each connection two.
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}
