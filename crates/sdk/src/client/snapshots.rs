use std::time::Duration;

use form_urlencoded::Serializer;
use http::Method;
use wire::rest::{ForkSandbox, Forked, NewSnapshot, Snapshot};

use super::{Client, Page, page, segment, with_query};
use crate::error::CallError;

/// Memory is written to disk meanwhile, at the pace of the disk: 32 GiB at 100 MB/s and some more.
const COPIED_WITHIN: Duration = Duration::from_secs(600);

/// Which snapshots are listed.
#[derive(Debug, Clone, Default)]
pub struct SnapshotsQuery {
    /// Those of this sandbox.
    pub sandbox: Option<String>,
    /// Those of this name, `[namespace/]name[:tag]`.
    pub name: Option<String>,
    /// At most so many in a page; 1..=100.
    pub limit: Option<usize>,
    /// [`Page::next`] of the page before.
    pub next: Option<String>,
}

impl Client {
    /// Takes a snapshot of a running sandbox, which goes on.
    ///
    /// # Errors
    /// As of every call.
    pub async fn snapshot(&self, sandbox: &str, wanted: &NewSnapshot) -> Result<Snapshot, CallError> {
        let path = format!("/sandboxes/{}/snapshots", segment(sandbox));
        self.send(Method::POST, &path, wanted, COPIED_WITHIN)
            .await?
            .json()
    }

    /// Lists snapshots, youngest first. One is removed by [`Client::delete_template`].
    ///
    /// # Errors
    /// As of every call.
    pub async fn snapshots(&self, query: &SnapshotsQuery) -> Result<Page<Snapshot>, CallError> {
        page(&self.get(&list_path(query)).await?)
    }

    /// Starts copies of a running sandbox, which goes on. Each answers for itself.
    ///
    /// # Errors
    /// As of every call.
    pub async fn fork(&self, sandbox: &str, wanted: ForkSandbox) -> Result<Vec<Forked>, CallError> {
        let path = format!("/sandboxes/{}/fork", segment(sandbox));
        self.send(Method::POST, &path, &wanted, COPIED_WITHIN)
            .await?
            .json()
    }
}

fn list_path(query: &SnapshotsQuery) -> String {
    let mut pairs = Serializer::new(String::new());
    let limit = query.limit.map(|limit| limit.to_string());
    for (name, value) in [
        ("sandboxID", &query.sandbox),
        ("name", &query.name),
        ("limit", &limit),
        ("nextToken", &query.next),
    ] {
        if let Some(value) = value {
            pairs.append_pair(name, value);
        }
    }
    with_query("/snapshots", &pairs.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_asked_for_as_the_contract_says() {
        assert_eq!(list_path(&SnapshotsQuery::default()), "/snapshots");
        let query = SnapshotsQuery {
            sandbox: Some("i1".to_owned()),
            name: Some("a/b:c".to_owned()),
            limit: Some(5),
            next: Some("x=".to_owned()),
        };
        assert_eq!(
            list_path(&query),
            "/snapshots?sandboxID=i1&name=a%2Fb%3Ac&limit=5&nextToken=x%3D"
        );
    }
}
