//! Every role in one process: the one place where parts are chosen and put together.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use api::{Api, ApiParts};
use async_trait::async_trait;
use edge::{Edge, EdgeParts};
use model::{Team, TeamId};
use orchestrator::{Orchestrator, Parts, bootstrap};
use ports::node::{HeldState, Node};
use ports::volumes::OneNode;
use ports::{Clock, SandboxManager, TeamStore};
use sql::Sqlite;

use crate::admin::Ready;
use crate::control::{Ended, Remade, Status};
use crate::data::{Credentials, DataDir};
use crate::host::Host;
use crate::settings::Resolved;
use crate::{base, tls};

/// All parts, recovered and ready to serve.
pub(crate) struct House {
    pub(crate) settings: Resolved,
    pub(crate) data: DataDir,
    pub(crate) credentials: Credentials,
    pub(crate) orchestrator: Arc<Orchestrator>,
    pub(crate) host: Host,
    pub(crate) api: Arc<Api>,
    pub(crate) edge: Arc<Edge>,
    store: Arc<Sqlite>,
    /// The base template is made anew by one at a time.
    making_base: tokio::sync::Mutex<()>,
    team: TeamId,
    started_at: SystemTime,
}

/// The store answers in milliseconds; whoever asks for health waits for a few seconds.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// The reconciler passes every five seconds, and one pass may end many sandboxes.
const PASS_WITHIN: Duration = Duration::from_secs(60);

impl House {
    /// Opens everything, and settles what earlier daemons left, before anybody is served.
    pub(crate) async fn open(settings: Resolved, data: DataDir) -> Result<Self> {
        let store = Sqlite::open(&data.path().join("atoll.db"))
            .await
            .context("the database cannot be opened")?;
        let team = bootstrap::default_team(&*store, settings.quota)
            .await
            .context("the default team cannot be made")?;
        let credentials = credentials(&settings, &data, &store, &team).await?;

        let host = Host::open(&settings, &data).await?;
        base::ensure(&*store, &host.machines, &team).await?;

        let clock: Arc<dyn Clock> = Arc::new(ports::clock::System);
        let catalog = Arc::new(ports::catalog::Memory::default());
        let limits = Arc::new(ports::limits::Memory::default());
        let volume_nodes = Arc::new(OneNode::new(host.node.id(), host.machines.volume_files()));
        let nodes: Vec<Arc<dyn Node>> = vec![Arc::clone(&host.node) as _];
        let orchestrator = Orchestrator::new(Parts {
            sandboxes: Arc::clone(&store) as _,
            templates: Arc::clone(&store) as _,
            builds: Arc::clone(&store) as _,
            volumes: Arc::clone(&store) as _,
            volume_nodes,
            blobs: Arc::clone(&host.blobs),
            config: orchestrator::Config {
                stow: settings.blobs.hold_builds(),
                ..settings.volumes.config()
            },
            teams: Arc::clone(&store) as _,
            catalog: Arc::clone(&catalog) as _,
            limits: Arc::clone(&limits) as _,
            shares: Arc::new(ports::shares::Memory::default()),
            idempotency: Arc::new(ports::idempotency::Memory::default()),
            bus: Arc::new(ports::bus::Memory::default()),
            fleet: Arc::new(ports::fleet::Static::new(nodes)),
            scheduler: None,
            clock: Arc::clone(&clock),
        });
        orchestrator
            .settle_now()
            .await
            .context("stored sandboxes cannot be settled")?;
        let api = Api::new(ApiParts {
            manager: Arc::clone(&orchestrator) as Arc<dyn SandboxManager>,
            teams: Arc::clone(&store) as _,
            templates: Arc::clone(&store) as _,
            templates_manager: Arc::clone(&orchestrator) as _,
            volumes: Arc::clone(&orchestrator) as _,
            volume_files: orchestrator.volume_files(),
            limits,
            clock: Arc::clone(&clock),
            domain: None,
            public_url: None,
            tls_host: settings.tls_listen.map(|_| format!("api.{}", settings.domain)),
            admin_token: settings.admin_token.clone(),
        });
        let edge = Edge::new(EdgeParts {
            catalog,
            guest: Arc::clone(&host.node) as _,
            wake: Arc::clone(&orchestrator) as _,
            domain: settings.domain.clone(),
        });
        Ok(Self {
            settings,
            data,
            credentials,
            orchestrator,
            host,
            api,
            edge,
            store,
            making_base: tokio::sync::Mutex::default(),
            team: team.id,
            started_at: SystemTime::now(),
        })
    }

    /// What it is at.
    pub(crate) async fn status(&self) -> Result<Status> {
        let report = self.host.node.report().await?;
        let count =
            |wanted: fn(HeldState) -> bool| report.held.iter().filter(|held| wanted(held.state)).count();
        Ok(Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime: report.runtime.clone(),
            started_at: humantime::format_rfc3339_seconds(self.started_at).to_string(),
            api_url: self.credentials.api_url.clone(),
            sandbox_url: self.credentials.sandbox_url.clone(),
            running: count(|state| state == HeldState::Running),
            paused: count(|state| matches!(state, HeldState::Paused(..))),
            slots_ready: report.slots_ready,
            criu: self.settings.criu.clone(),
        })
    }

    /// Ends every sandbox.
    pub(crate) async fn end_sandboxes(&self) -> Ended {
        match self.orchestrator.down().await {
            Ok(ended) => Ended {
                ended,
                error: self.still_held().await,
            },
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "not all sandboxes could be ended"
                );
                Ended {
                    ended: 0,
                    error: Some(error.to_string()),
                }
            }
        }
    }

    /// Makes the base template anew, of this machine's own `/usr`.
    pub(crate) async fn import_host(&self) -> Result<Remade> {
        let _one = self.making_base.lock().await;
        let build = base::remake(&*self.store, &self.host.machines, self.team).await?;
        Ok(Remade {
            build_id: build.to_string(),
        })
    }

    /// What is still there once everything was ended: nothing, or a fault.
    async fn still_held(&self) -> Option<String> {
        match self.host.node.report().await {
            Ok(report) if report.held.is_empty() => None,
            Ok(report) => Some(format!("the node still holds {}", report.held.len())),
            Err(_) => Some("the node does not report".to_owned()),
        }
    }

    /// Gives back what was prepared ahead. Sandboxes live on.
    pub(crate) async fn close(&self) {
        self.host.close().await;
    }

    /// TLS for the edge, where it is asked for.
    pub(crate) fn tls(&self) -> Result<Option<Arc<rustls::ServerConfig>>> {
        self.settings
            .tls_listen
            .map(|_| tls::server_config(&self.settings))
            .transpose()
    }
}

#[async_trait]
impl Ready for House {
    async fn ready(&self) -> Result<(), &'static str> {
        let known = tokio::time::timeout(READY_WITHIN, self.store.team(self.team)).await;
        if !matches!(known, Ok(Ok(Some(_)))) {
            return Err("the store does not answer");
        }
        self.host.ready().await?;
        match self.orchestrator.last_pass() {
            Some(past) if past <= PASS_WITHIN => Ok(()),
            _ => Err("the reconciler has not come to an end for long"),
        }
    }
}

async fn credentials(
    settings: &Resolved,
    data: &DataDir,
    store: &Sqlite,
    team: &Team,
) -> Result<Credentials> {
    let api_key = match data.credentials() {
        Some(kept) => kept.api_key,
        None => {
            bootstrap::mint_key(store, team.id, "default")
                .await
                .context("the first API key cannot be made")?
                .1
        }
    };
    let credentials = Credentials {
        api_url: format!("http://{}", settings.api_listen),
        sandbox_url: format!("http://{}", settings.edge_listen),
        api_key,
    };
    data.write_credentials(&credentials)?;
    Ok(credentials)
}
