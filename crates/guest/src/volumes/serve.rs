//! Serving one volume to one machine.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use volumes::Export;

use super::Lines;
use crate::line::frame::{FRAME_BYTES_MAX, Frame, UNDER_WAY_MAX};
use crate::line::{Header, LineError, Nothing};

const _: () = assert!(
    FRAME_BYTES_MAX >= volumes::REQUEST_BYTES_MAX && FRAME_BYTES_MAX >= volumes::REPLY_BYTES_MAX,
    "what a volume takes and answers goes over a stream"
);

/// How long is waited before a stream that ended is dialled again, at first and at most: a machine that goes on is there at once,
/// one that stands is not.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was to stop, and everything is answered.
    Quiet,
    /// The guest says what no kernel says: it is not served any more.
    Malformed(String),
    /// It ended by itself.
    Broken,
}

/// Dials and serves until it is to stop.
pub(super) async fn serve(
    tag: u64,
    export: Arc<Export>,
    lines: Arc<dyn Lines>,
    mut stop: watch::Receiver<bool>,
) {
    let mut after = AGAIN_AFTER.0;
    loop {
        let mut asked = stop.clone();
        let dialled = tokio::select! {
            biased;
            // Nothing is under way on a stream that is not there.
            _ = asked.wait_for(|stop| *stop) => return,
            dialled = dial(tag, &lines) => dialled,
        };
        match dialled {
            Ok(stream) => {
                after = AGAIN_AFTER.0;
                match talk(stream, &export, &mut stop).await {
                    End::Quiet => return,
                    End::Malformed(why) => {
                        tracing::warn!(why, "a machine is not served its volume any more");
                        return;
                    }
                    End::Broken => {}
                }
            }
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                "a volume is not served yet"
            ),
        }
        let mut asked = stop.clone();
        tokio::select! {
            _ = asked.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(after) => after = (after * 2).min(AGAIN_AFTER.1),
        }
    }
}

async fn dial(tag: u64, lines: &Arc<dyn Lines>) -> Result<crate::line::LineStream, LineError> {
    let line = lines.line().await.map_err(|source| LineError::Io {
        what: "a stream to a volume".to_owned(),
        source,
    })?;
    let (stream, Nothing {}) = line.open(&Header::Volume { tag }).await?;
    Ok(stream)
}

/// Answers what is asked on a stream until it ends, and returns when nothing of it is under way any more.
pub(super) async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    export: &Arc<Export>,
    stop: &mut watch::Receiver<bool>,
) -> End {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (answered, mut answers) = mpsc::channel(UNDER_WAY_MAX);
    let mut under_way = JoinSet::new();
    let listen = async {
        let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        loop {
            // A guest that asks more at once is heard when something is answered.
            let place = Arc::clone(&places).acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            while under_way.try_join_next().is_some() {}
            let (request, again) = match Frame::read(&mut reader).await {
                Ok(Some(Frame::Request(request))) => (request, false),
                Ok(Some(Frame::Again(request))) => (request, true),
                Ok(Some(Frame::Reply(_) | Frame::Stop)) => {
                    return End::Malformed("a guest has nothing to answer".to_owned());
                }
                Ok(None) => return End::Quiet,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return End::Malformed(error.to_string());
                }
                Err(_) => return End::Broken,
            };
            let (export, answered) = (Arc::clone(export), answered.clone());
            under_way.spawn(async move {
                let _place = place;
                let answer = export.answer(request, again).await;
                if let Some(answer) = answer.transpose() {
                    // Nobody hears it where the stream is over.
                    let _ = answered.send(answer).await;
                }
            });
        }
    };
    let answer = async {
        let mut stopped = false;
        loop {
            let frame = tokio::select! {
                asked = stop.wait_for(|stop| *stop), if !stopped => {
                    stopped = true;
                    match asked {
                        Ok(_) => Frame::Stop,
                        // Whoever could say so is gone: so is the machine.
                        Err(_) => return End::Broken,
                    }
                }
                Some(answer) = answers.recv() => match answer {
                    Ok(bytes) => Frame::Reply(bytes),
                    Err(malformed) => return End::Malformed(malformed.to_string()),
                },
            };
            if frame.write(&mut writer).await.is_err() {
                return End::Broken;
            }
        }
    };
    let end = tokio::select! {
        end = listen => end,
        end = answer => end,
    };
    // What was begun is not begun again beside itself.
    drop(answers);
    while under_way.join_next().await.is_some() {}
    match end {
        // It hung up unasked.
        End::Quiet if !*stop.borrow() => End::Broken,
        end => end,
    }
}
