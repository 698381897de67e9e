//! A registry on loopback, with images that are made up.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, LOCATION};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::archive::{Layer, digest};

const UP_WITHIN: Duration = Duration::from_secs(20);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BYTES: &str = "application/octet-stream";

/// Debian's `docker-registry`, with its files in a directory that goes with it.
pub(crate) struct Registry {
    /// `host:port`.
    pub(crate) address: String,
    process: Child,
    files: PathBuf,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Registry {
    /// Starts it at this address.
    pub(crate) async fn start(address: &str, dir: &Path) -> Result<Self> {
        let files = dir.join("registry");
        fs::create_dir_all(&files)?;
        let config = json!({
            "version": "0.1",
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": files.join("files") } },
            "http": { "addr": address },
        });
        // JSON is YAML.
        let path = files.join("config.yml");
        fs::write(&path, config.to_string())?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run docker-registry: run `cargo xtask bench`")?;
        let registry = Self {
            address: address.to_owned(),
            process,
            files,
            client: Client::builder(TokioExecutor::new()).build_http(),
        };
        let until = Instant::now() + UP_WITHIN;
        while registry
            .ask(Method::GET, "/v2/", BYTES, Bytes::new())
            .await
            .is_err()
        {
            ensure!(Instant::now() < until, "docker-registry did not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(registry)
    }

    /// Pushes an image of layers, the lowest first, and returns its reference.
    pub(crate) async fn push(&self, name: &str, layers: &[Layer]) -> Result<String> {
        let diffs: Vec<&str> = layers.iter().map(|layer| layer.diff.as_str()).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": diffs },
        });
        let config = Bytes::from(config.to_string());
        let config = self
            .blob(name, "application/vnd.oci.image.config.v1+json", config)
            .await?;
        let mut told = Vec::new();
        for layer in layers {
            let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
            told.push(self.blob(name, kind, layer.blob.clone()).await?);
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": told,
        });
        let manifest = Bytes::from(manifest.to_string());
        self.ask(
            Method::PUT,
            &format!("/v2/{name}/manifests/1"),
            MANIFEST,
            manifest,
        )
        .await?;
        Ok(format!("{}/{name}:1", self.address))
    }

    async fn blob(&self, name: &str, kind: &str, bytes: Bytes) -> Result<Value> {
        let told = json!({ "mediaType": kind, "digest": digest(&bytes), "size": bytes.len() });
        let uploads = format!("/v2/{name}/blobs/uploads/");
        let place = self
            .ask(Method::POST, &uploads, BYTES, Bytes::new())
            .await?
            .context("the registry names no place for an upload")?;
        let mark = if place.contains('?') { '&' } else { '?' };
        let place = format!("{place}{mark}digest={}", digest(&bytes));
        self.ask(Method::PUT, &place, BYTES, bytes).await?;
        Ok(told)
    }

    /// Asks, and returns where the answer leads.
    async fn ask(&self, method: Method, place: &str, kind: &str, body: Bytes) -> Result<Option<String>> {
        let uri = if place.starts_with('/') {
            format!("http://{}{place}", self.address)
        } else {
            place.to_owned()
        };
        let request = Request::builder()
            .method(method)
            .uri(&uri)
            .header(CONTENT_TYPE, kind)
            .body(Full::new(body))?;
        let answer = self.client.request(request).await?;
        let status: StatusCode = answer.status();
        let place = answer.headers().get(LOCATION).cloned();
        let said = answer.into_body().collect().await?.to_bytes();
        ensure!(
            status.is_success(),
            "{uri} was answered with {status}: {}",
            String::from_utf8_lossy(&said)
        );
        Ok(place.map(|place| place.to_str().map(str::to_owned)).transpose()?)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.files);
    }
}
