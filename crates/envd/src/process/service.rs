//! The calls of `process.Process`, as clients make them.
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use connectrpc::{
    ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures_util::{Stream, StreamExt as _};
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use wire::envd::process as proto;
use wire::envd::process::process_event as event;

use crate::access::{keepalive, user_of};
use crate::lines::HangUp;
use crate::paths::expand;
use crate::process::launch::{Launch, LaunchError};
use crate::process::running::{End, Event, InputError, Output, Running};
use crate::process::table::{Found, Processes, Selector};

/// A terminal without a size is one of the oldest.
const TERMINAL_SIZE: (u16, u16) = (80, 24);

#[expect(
    refining_impl_trait,
    reason = "callers are generated, and do not see more than the trait"
)]
impl proto::Process for Processes {
    async fn list(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, proto::ListRequest>,
    ) -> ServiceResult<proto::ListResponse> {
        let processes = self.live().iter().map(|process| info(process)).collect();
        Response::ok(proto::ListResponse {
            processes,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, proto::StartRequest>,
    ) -> ServiceResult<ServiceStream<proto::StartResponse>> {
        let launch = self.launch(&ctx, request.to_owned_message())?;
        let running = self.shared()?.start(launch).map_err(refused)?;
        if let Some(within) = ctx.time_remaining() {
            kill_after(&running, within);
        }
        let events = Events::new(&running, keepalive(ctx.headers())).map(|event| {
            Ok(proto::StartResponse {
                event: Some(event).into(),
                ..Default::default()
            })
        });
        Ok(Response::stream(HangUp::of(&ctx).end(events)))
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, proto::ConnectRequest>,
    ) -> ServiceResult<ServiceStream<proto::ConnectResponse>> {
        let selector = selector(request.to_owned_message().process.into_option())?;
        let every = keepalive(ctx.headers());
        let events = match self.find(&selector).ok_or_else(|| missing(&selector))? {
            Found::Running(running) => Events::new(&running, every),
            Found::Ended(ended) => Events::of_ended(ended.pid, ended.end, every),
        };
        let events = events.map(|event| {
            Ok(proto::ConnectResponse {
                event: Some(event).into(),
                ..Default::default()
            })
        });
        Ok(Response::stream(HangUp::of(&ctx).end(events)))
    }

    async fn update(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::UpdateRequest>,
    ) -> ServiceResult<proto::UpdateResponse> {
        let request = request.to_owned_message();
        let running = self.selected(request.process.into_option())?;
        if let Some(pty) = request.pty.into_option() {
            let (cols, rows) = size(&pty);
            let resized = running
                .resize(cols, rows)
                .ok_or_else(|| ConnectError::internal("error resizing tty: tty not assigned to process"))?;
            resized.map_err(|error| ConnectError::internal(format!("error resizing tty: {error}")))?;
        }
        Response::ok(proto::UpdateResponse::default())
    }

    async fn stream_input(
        &self,
        _: RequestContext,
        mut requests: InboundStream<proto::StreamInputRequest>,
    ) -> ServiceResult<proto::StreamInputResponse> {
        use proto::stream_input_request::Event as E;
        let mut running: Option<Arc<Running>> = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(E::Start(start)) => running = Some(self.selected(start.process.into_option())?),
                Some(E::Data(data)) => {
                    let running = running.as_ref().ok_or_else(|| {
                        ConnectError::invalid_argument("the first message must name the process")
                    })?;
                    write(running, data.input.into_option()).await?;
                }
                Some(E::Keepalive(_)) => {}
                None => return Err(ConnectError::unimplemented("unknown kind of message")),
            }
        }
        Response::ok(proto::StreamInputResponse::default())
    }

    async fn send_input(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::SendInputRequest>,
    ) -> ServiceResult<proto::SendInputResponse> {
        let request = request.to_owned_message();
        let running = self.selected(request.process.into_option())?;
        write(&running, request.input.into_option()).await?;
        Response::ok(proto::SendInputResponse::default())
    }

    async fn send_signal(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::SendSignalRequest>,
    ) -> ServiceResult<proto::SendSignalResponse> {
        let request = request.to_owned_message();
        let running = self.selected(request.process.into_option())?;
        let signal = match request.signal.as_known() {
            Some(proto::Signal::SIGNAL_SIGKILL) => Signal::KILL,
            Some(proto::Signal::SIGNAL_SIGTERM) => Signal::TERM,
            _ => {
                return Err(ConnectError::unimplemented(
                    "only SIGKILL and SIGTERM can be sent",
                ));
            }
        };
        running.signal(signal);
        Response::ok(proto::SendSignalResponse::default())
    }

    async fn close_stdin(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::CloseStdinRequest>,
    ) -> ServiceResult<proto::CloseStdinResponse> {
        let selector = selector(request.to_owned_message().process.into_option())?;
        let closed = match self.find(&selector).ok_or_else(|| missing(&selector))? {
            Found::Running(running) => running.close_stdin().await,
            Found::Ended(_) => true,
        };
        if !closed {
            return Err(ConnectError::unknown(
                "cannot close stdin for PTY process — send Ctrl+D (0x04) instead",
            ));
        }
        Response::ok(proto::CloseStdinResponse::default())
    }
}

impl Processes {
    fn launch(&self, ctx: &RequestContext, request: proto::StartRequest) -> Result<Launch, ConnectError> {
        let config = request
            .process
            .into_option()
            .ok_or_else(|| ConnectError::invalid_argument("process is missing"))?;
        if config.cmd.is_empty() {
            return Err(ConnectError::invalid_argument("process.cmd is empty"));
        }
        let settings = self
            .settings
            .lock()
            .expect("nothing panics while it holds the settings");
        let user = user_of(&settings, ctx.headers()).map_err(ConnectError::unauthenticated)?;
        let cwd = expand(
            config.cwd.as_deref().unwrap_or_default(),
            &user,
            settings.default_workdir.as_deref(),
        );
        let envs: BTreeMap<String, String> = config.envs.into_iter().collect();
        let broken = envs
            .iter()
            .any(|(key, value)| key.is_empty() || key.contains(['=', '\0']) || value.contains('\0'));
        if broken || config.cmd.contains('\0') || config.args.iter().any(|arg| arg.contains('\0')) {
            return Err(ConnectError::invalid_argument(
                "process.envs, cmd or args hold what the kernel does not take",
            ));
        }
        Ok(Launch {
            env: settings.env_of(&user, envs.clone()),
            cmd: config.cmd,
            args: config.args,
            envs,
            cwd: cwd.map_err(ConnectError::invalid_argument)?,
            asked_cwd: config.cwd,
            user,
            tag: request.tag,
            stdin: request.stdin.unwrap_or(true),
            terminal: request.pty.into_option().map(|pty| size(&pty)),
        })
    }

    /// The table as something that tasks can hold.
    fn shared(&self) -> Result<Arc<Processes>, ConnectError> {
        self.this
            .upgrade()
            .ok_or_else(|| ConnectError::unavailable("envd is ending"))
    }

    /// The program that a client names, as long as it has not ended.
    fn selected(&self, selector_: Option<proto::ProcessSelector>) -> Result<Arc<Running>, ConnectError> {
        let selector = selector(selector_)?;
        match self.find(&selector) {
            Some(Found::Running(running)) if running.end().is_none() => Ok(running),
            _ => Err(missing(&selector)),
        }
    }
}

fn selector(selector: Option<proto::ProcessSelector>) -> Result<Selector, ConnectError> {
    use proto::process_selector::Selector as S;
    match selector.and_then(|selector| selector.selector) {
        Some(S::Pid(pid)) => Ok(Selector::Pid(pid)),
        Some(S::Tag(tag)) => Ok(Selector::Tag(tag)),
        None => Err(ConnectError::unimplemented("invalid process selector")),
    }
}

fn missing(selector: &Selector) -> ConnectError {
    ConnectError::not_found(format!("process with {selector} not found"))
}

fn refused(error: LaunchError) -> ConnectError {
    ConnectError::invalid_argument(error.to_string())
}

async fn write(running: &Running, input: Option<proto::ProcessInput>) -> Result<(), ConnectError> {
    use proto::process_input::Input;
    let (what, written) = match input.and_then(|input| input.input) {
        Some(Input::Stdin(data)) => ("stdin", running.write_stdin(&data).await),
        Some(Input::Pty(data)) => ("tty", running.write_terminal(&data).await),
        None => return Err(ConnectError::unimplemented("invalid input type")),
    };
    written.map_err(|error| match error {
        InputError::NotEnabled(why) => ConnectError::internal(format!("error writing to {what}: {why}")),
        InputError::Broken(error) => ConnectError::internal(format!("error writing to {what}: {error}")),
    })
}

fn size(pty: &proto::PTY) -> (u16, u16) {
    let clamp = |n: u32, default: u16| {
        if n == 0 {
            default
        } else {
            u16::try_from(n).unwrap_or(u16::MAX)
        }
    };
    let size = pty.size.as_option();
    (
        clamp(size.map_or(0, |s| s.cols), TERMINAL_SIZE.0),
        clamp(size.map_or(0, |s| s.rows), TERMINAL_SIZE.1),
    )
}

fn info(process: &Running) -> proto::ProcessInfo {
    let launch = &process.launch;
    let config = proto::ProcessConfig {
        cmd: launch.cmd.clone(),
        args: launch.args.clone(),
        envs: launch.envs.clone().into_iter().collect(),
        cwd: launch.asked_cwd.clone(),
        ..Default::default()
    };
    proto::ProcessInfo {
        config: Some(config).into(),
        pid: process.pid,
        tag: launch.tag.clone(),
        ..Default::default()
    }
}

/// The deadline of the call that started it is the program's too (contract 5.3).
fn kill_after(running: &Arc<Running>, within: Duration) {
    let running = Arc::clone(running);
    tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(within) => running.signal(Signal::KILL),
            () = running.wait_for_end() => {}
        }
    });
}

/// What a listener is sent: the start, then what it hears, a sign of life when it is quiet, and the end.
struct Events {
    start: Option<u32>,
    hear: mpsc::Receiver<Event>,
    every: Duration,
    quiet: Pin<Box<Sleep>>,
    over: bool,
}

impl Events {
    fn new(running: &Running, every: Duration) -> Self {
        Self::hearing(running.pid, running.subscribe(), every)
    }

    fn of_ended(pid: u32, end: End, every: Duration) -> Self {
        let (tell, hear) = mpsc::channel(1);
        let _ = tell.try_send(Event::End(end));
        Self::hearing(pid, hear, every)
    }

    fn hearing(pid: u32, hear: mpsc::Receiver<Event>, every: Duration) -> Self {
        Self {
            start: Some(pid),
            hear,
            every,
            quiet: Box::pin(tokio::time::sleep(every)),
            over: false,
        }
    }
}

impl Stream for Events {
    type Item = proto::ProcessEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(pid) = self.start.take() {
            return Poll::Ready(Some(wrap(event::StartEvent {
                pid,
                ..Default::default()
            })));
        }
        let next = Instant::now() + self.every;
        match self.hear.poll_recv(cx) {
            Poll::Ready(Some(Event::Data(output))) => {
                self.quiet.as_mut().reset(next);
                Poll::Ready(Some(wrap(data(output))))
            }
            Poll::Ready(Some(Event::End(end))) => {
                self.over = true;
                Poll::Ready(Some(wrap(ended(end))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                if self.quiet.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.quiet.as_mut().reset(next);
                Poll::Ready(Some(wrap(event::KeepAlive::default())))
            }
        }
    }
}

fn wrap(event: impl Into<event::Event>) -> proto::ProcessEvent {
    proto::ProcessEvent {
        event: Some(event.into()),
        ..Default::default()
    }
}

fn data(output: Output) -> event::DataEvent {
    use event::data_event::Output as O;
    let output = match output {
        Output::Stdout(bytes) => O::Stdout(bytes.into()),
        Output::Stderr(bytes) => O::Stderr(bytes.into()),
        Output::Terminal(bytes) => O::Pty(bytes.into()),
    };
    event::DataEvent {
        output: Some(output),
        ..Default::default()
    }
}

fn ended(end: End) -> event::EndEvent {
    event::EndEvent {
        exit_code: end.exit_code,
        exited: end.exited,
        status: end.status,
        error: end.error,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_lives_for_as_long_as_clients_expect() {
        let (tell, hear) = mpsc::channel(1);
        let mut events = Events::hearing(7, hear, keepalive(&http::HeaderMap::new()));
        let begun = Instant::now();
        let mut next = async || events.next().await.and_then(|event| event.event);
        assert!(matches!(next().await, Some(event::Event::Start(_))));
        for quiet in 1..=2 {
            assert!(matches!(next().await, Some(event::Event::Keepalive(_))));
            assert_eq!(begun.elapsed().as_secs(), 90 * quiet);
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let said = Output::Stdout(bytes::Bytes::from_static(b"x"));
        tell.try_send(Event::Data(said)).unwrap();
        assert!(matches!(next().await, Some(event::Event::Data(_))));
        assert!(matches!(next().await, Some(event::Event::Keepalive(_))));
        assert_eq!(
            begun.elapsed().as_secs(),
            180 + 60 + 90,
            "since something was said"
        );
    }
}
