//! The calls of `filesystem.Filesystem`, as clients make them.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectrpc::{ConnectError, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use futures_util::stream;
use tokio::sync::Semaphore;
use wire::envd::filesystem as proto;

use super::tree;
use super::watch::{Asked, Watch};
use super::watchers::Watchers;
use crate::access::{keepalive, user_of};
use crate::lines::HangUp;
use crate::paths::expand;
use crate::settings::Settings;
use crate::users::User;

/// Listings at a time: each may be large, and they all wait for the same disk.
const LISTINGS_MAX: usize = 4;

/// The file system as clients see it.
pub(crate) struct Filesystem {
    settings: Arc<Mutex<Settings>>,
    listings: Semaphore,
    watchers: Watchers,
}

#[expect(
    refining_impl_trait,
    reason = "callers are generated, and do not see more than the trait"
)]
impl proto::Filesystem for Filesystem {
    async fn stat(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, proto::StatRequest>,
    ) -> ServiceResult<proto::StatResponse> {
        let (path, _) = self.place(&ctx, request.path)?;
        let entry = blocking(move || tree::stat(&path)).await?;
        Response::ok(proto::StatResponse {
            entry: Some(entry).into(),
            ..Default::default()
        })
    }

    async fn make_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, proto::MakeDirRequest>,
    ) -> ServiceResult<proto::MakeDirResponse> {
        let (path, user) = self.place(&ctx, request.path)?;
        let entry = blocking(move || tree::make(&path, &user)).await?;
        Response::ok(proto::MakeDirResponse {
            entry: Some(entry).into(),
            ..Default::default()
        })
    }

    async fn r#move(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, proto::MoveRequest>,
    ) -> ServiceResult<proto::MoveResponse> {
        let (source, _) = self.place(&ctx, request.source)?;
        let (destination, user) = self.place(&ctx, request.destination)?;
        let entry = blocking(move || tree::rename(&source, &destination, &user)).await?;
        Response::ok(proto::MoveResponse {
            entry: Some(entry).into(),
            ..Default::default()
        })
    }

    async fn list_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, proto::ListDirRequest>,
    ) -> ServiceResult<proto::ListDirResponse> {
        let (path, _) = self.place(&ctx, request.path)?;
        let depth = request.depth;
        let _place = self.listings.acquire().await;
        let entries = blocking(move || tree::list(&path, depth)).await?;
        Response::ok(proto::ListDirResponse {
            entries,
            ..Default::default()
        })
    }

    async fn remove(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, proto::RemoveRequest>,
    ) -> ServiceResult<proto::RemoveResponse> {
        let (path, _) = self.place(&ctx, request.path)?;
        blocking(move || tree::remove(&path)).await?;
        Response::ok(proto::RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, proto::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<proto::WatchDirResponse>> {
        let (path, _) = self.place(&ctx, request.path)?;
        let watch = open(Asked {
            path,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        })
        .await?;
        let told = told(watch, keepalive(ctx.headers()));
        Ok(Response::stream(HangUp::of(&ctx).end(told)))
    }

    async fn create_watcher(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, proto::CreateWatcherRequest>,
    ) -> ServiceResult<proto::CreateWatcherResponse> {
        let (path, _) = self.place(&ctx, request.path)?;
        self.watchers.make_room()?;
        let watch = open(Asked {
            path,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        })
        .await?;
        let watcher_id = self.watchers.add(watch);
        Response::ok(proto::CreateWatcherResponse {
            watcher_id,
            ..Default::default()
        })
    }

    async fn get_watcher_events(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::GetWatcherEventsRequest>,
    ) -> ServiceResult<proto::GetWatcherEventsResponse> {
        let events = self.watchers.take(request.watcher_id)?;
        Response::ok(proto::GetWatcherEventsResponse {
            events,
            ..Default::default()
        })
    }

    async fn remove_watcher(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::RemoveWatcherRequest>,
    ) -> ServiceResult<proto::RemoveWatcherResponse> {
        self.watchers.remove(request.watcher_id)?;
        Response::ok(proto::RemoveWatcherResponse::default())
    }
}

impl Filesystem {
    pub(crate) fn new(settings: Arc<Mutex<Settings>>) -> Self {
        Self {
            settings,
            listings: Semaphore::new(LISTINGS_MAX),
            watchers: Watchers::default(),
        }
    }

    /// Forgets what clients asked to be told of: they are another machine's.
    pub(crate) fn forget_clients(&self) {
        self.watchers.forget();
    }

    /// What a client's path means, and for whom.
    fn place(&self, ctx: &RequestContext, path: &str) -> Result<(String, User), ConnectError> {
        let settings = self
            .settings
            .lock()
            .expect("nothing panics while it holds the settings");
        let user = user_of(&settings, ctx.headers()).map_err(ConnectError::unauthenticated)?;
        let path = expand(path, &user, settings.default_workdir.as_deref())
            .map_err(ConnectError::invalid_argument)?;
        Ok((path, user))
    }
}

async fn open(asked: Asked) -> Result<Watch, ConnectError> {
    let (inotify, opened) = blocking(move || Watch::open(asked)).await?;
    Watch::begin(inotify, opened)
}

/// A watch as a stream: that it began, what happens, and signs of life while nothing does.
fn told(
    watch: Watch,
    keepalive: Duration,
) -> impl stream::Stream<Item = Result<proto::WatchDirResponse, ConnectError>> + Send + 'static {
    use proto::watch_dir_response::{Event, KeepAlive, StartEvent};
    let respond = |event: Event| proto::WatchDirResponse {
        event: Some(event),
        ..Default::default()
    };
    let started = VecDeque::from([respond(StartEvent::default().into())]);
    stream::try_unfold((watch, started), move |(mut watch, mut waiting)| async move {
        if waiting.is_empty() {
            match tokio::time::timeout(keepalive, watch.next()).await {
                Ok(events) => waiting.extend(events?.into_iter().map(|event| respond(event.into()))),
                Err(_quiet) => waiting.push_back(respond(KeepAlive::default().into())),
            }
        }
        Ok(waiting.pop_front().map(|next| (next, (watch, waiting))))
    })
}

/// Does what blocks where blocking harms nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|broken| std::panic::resume_unwind(broken.into_panic()))
}
