//! One file out of several: `POST /files/compose`.
use std::fs::{self, File};
use std::io;

use crate::request_body::RequestBody;
use http::{Request, StatusCode};
use serde::Deserialize;

use super::metadata::Metadata;
use super::{Caller, Written, blocking, failed, writing};
use crate::access::Refusal;
use crate::http::{Answer, Envd, json, small_body};
use crate::paths::{passable, passable_entry};
use crate::users::User;

/// Names of some thousand pieces.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What is asked for.
#[derive(Debug, Deserialize)]
struct Compose {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    #[serde(default)]
    username: String,
}

/// Puts the sources together, in their order, and removes them.
pub(crate) async fn compose(envd: &Envd, request: Request<RequestBody>) -> Result<Answer, Refusal> {
    let body = small_body(request.into_body(), BODY_BYTES_MAX).await?;
    let asked: Compose = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad(format!("the body is not a composition: {error}")))?;
    let caller = Caller::named(envd, &asked.username)?;
    if asked.source_paths.is_empty() {
        return Err(Refusal::bad("source_paths is empty"));
    }
    if asked.destination.is_empty() {
        return Err(Refusal::bad("destination is empty"));
    }
    let destination = caller.place(&asked.destination)?;
    let sources = asked
        .source_paths
        .iter()
        .map(|path| caller.place(path))
        .collect::<Result<Vec<_>, _>>()?;
    let written = blocking(move || put_together(&sources, destination, &caller.user)).await?;
    Ok(json(StatusCode::OK, &written))
}

fn put_together(sources: &[String], destination: String, user: &User) -> Result<Written, Refusal> {
    let place = fs::canonicalize(&destination).unwrap_or_else(|_| destination.clone().into());
    for source in sources {
        let found = fs::metadata(&*passable(source)).map_err(|error| failed("reading", source, &error))?;
        if !found.is_file() {
            return Err(Refusal::bad(format!("path '{source}' is not a regular file")));
        }
        if fs::canonicalize(source).is_ok_and(|source| source == place) {
            return Err(Refusal::bad(format!("'{source}' is both source and destination")));
        }
    }
    let mut whole = writing::open(&destination, user)?;
    for source in sources {
        let copied = File::open(&*passable(source)).and_then(|mut part| io::copy(&mut part, &mut whole));
        copied.map_err(|error| failed("copying", source, &error))?;
    }
    // Only what is safely in its new place is removed from the old one.
    whole
        .sync_all()
        .map_err(|error| failed("writing", &destination, &error))?;
    for source in sources {
        if let Err(error) = fs::remove_file(&*passable_entry(source))
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(failed("removing", source, &error));
        }
    }
    Ok(Written::new(destination, Metadata::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_one_and_a_missing_one_spoils_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("a"), "1").unwrap();
        fs::write(at("b"), "2").unwrap();
        let root = User::of_uid(0).unwrap();
        assert!(put_together(&[at("a"), at("missing")], at("whole"), &root).is_err());
        assert!(put_together(&[at("a"), at("whole")], at("a"), &root).is_err());
        assert!(!fs::exists(at("whole")).unwrap());
        put_together(&[at("b"), at("a")], at("whole"), &root).unwrap();
        assert_eq!(fs::read_to_string(at("whole")).unwrap(), "21");
        assert!(!fs::exists(at("a")).unwrap() && !fs::exists(at("b")).unwrap());
    }
}
