//! An envd that does as it is told, and notes what it was told.
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use wire::host_calls::{Copied, Copy, EnterWorkdir, Entered, Evaluate, Evaluated, MakeUser, UserMade};
use wire::init::Init;

use super::fake::Fake;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A program that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) command: String,
    pub(crate) user: String,
    pub(crate) cwd: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
}

/// How a program behaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Act {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// `None`: it does not end.
    pub(crate) exit: Option<i32>,
    /// envd does not start it.
    pub(crate) refused: Option<&'static str>,
    /// It behaves so this often, and then as others do; always, where it is 0.
    pub(crate) times: usize,
}

/// What programs do, and what was heard.
#[derive(Debug, Default)]
pub(crate) struct Script {
    acts: Mutex<BTreeMap<String, Act>>,
    ran: Mutex<Vec<Ran>>,
    copied: Mutex<Vec<(Copy, Bytes)>>,
    odd: Mutex<BTreeMap<&'static str, Bytes>>,
}

impl Script {
    /// What a command does; others end well and say nothing.
    pub(crate) fn act(&self, command: &str, act: Act) {
        self.acts.lock().unwrap().insert(command.to_owned(), act);
    }

    /// What is answered to a call, in the place of an answer.
    pub(crate) fn say_instead(&self, path: &'static str, what: impl Into<Bytes>) {
        self.odd.lock().unwrap().insert(path, what.into());
    }

    pub(crate) fn ran(&self) -> Vec<Ran> {
        std::mem::take(&mut self.ran.lock().unwrap())
    }

    pub(crate) fn copied(&self) -> Vec<(Copy, Bytes)> {
        std::mem::take(&mut self.copied.lock().unwrap())
    }

    fn how(&self, command: &str) -> Act {
        let ends_well = Act {
            exit: Some(0),
            ..Act::default()
        };
        let mut acts = self.acts.lock().unwrap();
        let Some(act) = acts.get_mut(command) else {
            return ends_well;
        };
        let now = act.clone();
        if act.times == 1 {
            acts.remove(command);
        } else {
            act.times = act.times.saturating_sub(1);
        }
        now
    }
}

pub(crate) async fn serve(machine: Arc<Fake>, stream: tokio::io::DuplexStream) {
    let service = service_fn(|request| answer(Arc::clone(&machine), request));
    let _ = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Nothing comes back from the dead: the connection breaks.
#[derive(Debug, thiserror::Error)]
#[error("dead")]
struct Dead;

async fn answer(machine: Arc<Fake>, request: Request<Incoming>) -> Result<Response<Body>, Dead> {
    let (head, body) = request.into_parts();
    let heard = body.collect().await.map_err(|_| Dead)?.to_bytes();
    let path = head.uri.path().to_owned();
    let step = match path.as_str() {
        "/init" => "init",
        "/host/shutdown" => "shut down",
        "/host/quiesce" => "quiesce",
        "/host/copy" => "copy",
        "/host/env" => "env",
        "/host/workdir" => "workdir",
        "/host/user" => "user",
        "/process.Process/Start" if is_look(&heard) => "look",
        "/process.Process/Start" => "run",
        _ => "word",
    };
    let said = machine.shared.step(step, Some(&machine)).await;
    if machine.is_dead() {
        return Err(Dead);
    }
    if said.is_err() {
        return Ok(json(
            StatusCode::INTERNAL_SERVER_ERROR,
            &json!({"message": "as the script says"}),
        ));
    }
    if let Some(odd) = machine.shared.guest.odd.lock().unwrap().get(path.as_str()) {
        let kind = if path.starts_with("/host/") {
            "application/json"
        } else {
            "application/connect+json"
        };
        let body = Full::new(odd.clone()).boxed_unsync();
        return Ok(Response::builder()
            .header("content-type", kind)
            .body(body)
            .unwrap());
    }
    let wrote = |what: String| machine.content.lock().unwrap().disk.push(what);
    Ok(match path.as_str() {
        "/init" => {
            let init: Init = serde_json::from_slice(&heard).unwrap();
            if let Some(start) = &init.start_command {
                machine.programs.lock().unwrap().push(start.command.clone());
            }
            machine.shared.take(init);
            json(StatusCode::OK, &json!({}))
        }
        "/host/shutdown" => {
            machine.programs.lock().unwrap().clear();
            json(StatusCode::OK, &json!({}))
        }
        "/host/copy" => {
            let copy = Copy::of_query(head.uri.query().unwrap()).unwrap();
            wrote(format!("copy {} {}", copy.source, copy.destination));
            let bytes = heard.len() as u64;
            machine.shared.guest.copied.lock().unwrap().push((copy, heard));
            json(StatusCode::OK, &Copied { files: 1, bytes })
        }
        "/host/env" => {
            let asked: Evaluate = serde_json::from_slice(&heard).unwrap();
            let values = asked
                .values
                .into_iter()
                .map(|(name, value)| (name, value.replace("$HOME", "/root")));
            json(
                StatusCode::OK,
                &Evaluated {
                    values: values.collect(),
                },
            )
        }
        "/host/workdir" => {
            let asked: EnterWorkdir = serde_json::from_slice(&heard).unwrap();
            let previous = asked.previous.unwrap_or_else(|| "/".to_owned());
            let path = std::path::Path::new(&previous).join(asked.path);
            let path = path.to_str().unwrap().to_owned();
            wrote(format!("mkdir {path}"));
            json(StatusCode::OK, &Entered { path })
        }
        "/host/user" => {
            let asked: MakeUser = serde_json::from_slice(&heard).unwrap();
            wrote(format!("user {}", asked.name));
            let made = UserMade {
                home: format!("/home/{}", asked.name),
                name: asked.name,
                uid: 1000,
                gid: 1000,
                is_new: true,
            };
            json(StatusCode::OK, &made)
        }
        "/process.Process/Start" => run(&machine, &head, &heard),
        _ => json(StatusCode::OK, &json!({"next": 0, "entries": []})),
    })
}

/// What a build runs to see whether anything can be run.
const LOOK: &str = ":";

fn is_look(heard: &[u8]) -> bool {
    let asked: Option<Value> = heard
        .get(5..)
        .and_then(|asked| serde_json::from_slice(asked).ok());
    asked.is_some_and(|asked| asked["process"]["args"][2] == LOOK)
}

fn run(machine: &Arc<Fake>, head: &http::request::Parts, heard: &[u8]) -> Response<Body> {
    let asked: Value = serde_json::from_slice(&heard[5..]).unwrap();
    let process = &asked["process"];
    assert_eq!(process["cmd"], "/bin/bash");
    let command = process["args"][2].as_str().unwrap().to_owned();
    let user = head.headers[http::header::AUTHORIZATION].to_str().unwrap();
    let user = BASE64_STANDARD
        .decode(user.strip_prefix("Basic ").unwrap())
        .unwrap();
    let user = String::from_utf8(user).unwrap();
    let is_look = command == LOOK;
    if !is_look {
        machine.shared.guest.ran.lock().unwrap().push(Ran {
            command: command.clone(),
            user: user.strip_suffix(':').unwrap().to_owned(),
            cwd: process["cwd"].as_str().map(str::to_owned),
            env: serde_json::from_value(process.get("envs").cloned().unwrap_or(json!({}))).unwrap(),
        });
    }
    let act = machine.shared.guest.how(&command);
    if let Some(why) = act.refused {
        let end = json!({"error": {"code": "invalid_argument", "message": why}});
        return stream(vec![envelope(2, &end)], true);
    }
    if !is_look {
        let mut content = machine.content.lock().unwrap();
        content.disk.push(format!("run {command}"));
    }
    let event = |event: Value| envelope(0, &json!({"event": event}));
    let mut events = vec![event(json!({"start": {"pid": 7}}))];
    for (name, bytes) in [("stdout", &act.stdout), ("stderr", &act.stderr)] {
        for piece in bytes.chunks(7) {
            events.push(event(json!({"data": {name: BASE64_STANDARD.encode(piece)}})));
        }
    }
    match act.exit {
        Some(code) => {
            let status = format!("exit status {code}");
            events.push(event(
                json!({"end": {"exitCode": code, "exited": true, "status": status}}),
            ));
            events.push(envelope(2, &json!({})));
            stream(events, true)
        }
        None => {
            machine.programs.lock().unwrap().push(command);
            stream(events, false)
        }
    }
}

fn envelope(flags: u8, message: &Value) -> Bytes {
    let message = serde_json::to_vec(message).unwrap();
    let length = u32::try_from(message.len()).unwrap();
    [&[flags][..], &length.to_be_bytes(), &message].concat().into()
}

fn stream(events: Vec<Bytes>, ends: bool) -> Response<Body> {
    let events = futures_util::stream::iter(events).map(|event| Ok(Frame::data(event)));
    let body = if ends {
        StreamBody::new(events).boxed_unsync()
    } else {
        StreamBody::new(events.chain(futures_util::stream::pending())).boxed_unsync()
    };
    Response::builder()
        .header("content-type", "application/connect+json")
        .body(body)
        .unwrap()
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response<Body> {
    let body = Full::new(Bytes::from(serde_json::to_vec(body).unwrap()));
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body.boxed_unsync())
        .unwrap()
}
