//! `atoll sandbox export`: a sandbox's root as an image in OCI's layout.
//!
//! ```text
//! the server's tar ──sha256──▶ diff id ──gzip──sha256──▶ blob      then configuration, manifest, index
//! ```
//!
//! It is made beside the place where it goes, and gets its name when it is whole.
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use sdk::FileReader;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use wire::rest::ExportedConfig;

use super::Endpoint;
use crate::out;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What is exported, and where to.
#[derive(Args)]
pub(crate) struct Export {
    /// Which.
    id: String,
    /// Where: a directory that is not there yet, or a file that ends in `.tar`.
    #[arg(long, short, value_name = "DIR_OR_TAR")]
    output: PathBuf,
    /// What the image is called [default: sandbox-ID].
    #[arg(long, value_name = "REF")]
    name: Option<String>,
}

impl Export {
    pub(super) async fn run(self, endpoint: &Endpoint, json: bool) -> Result<()> {
        let output = std::path::absolute(&self.output)?;
        let is_tar = output.extension().is_some_and(|end| end == "tar");
        if !is_tar && output.exists() {
            bail!("{} is there already", output.display());
        }
        let above = output.parent().context("there is no place for it")?;
        let making = tempfile::Builder::new()
            .prefix(".atoll-export-")
            .tempdir_in(above)
            .with_context(|| format!("cannot write into {}", above.display()))?;
        let (config, tar) = endpoint.api()?.export(&self.id).await?;
        let name = self.name.unwrap_or_else(|| format!("sandbox-{}", self.id));
        let made = layout(making.path(), &name, config, tar).await?;
        if is_tar {
            pack(making, &output)?;
        } else {
            let whole = making.keep();
            let named = open_to_others(&whole).and_then(|()| fs::rename(&whole, &output));
            if let Err(error) = named {
                let _ = fs::remove_dir_all(&whole);
                return Err(error).with_context(|| format!("cannot write {}", output.display()));
            }
        }
        out::say(format_args!(
            "{name}: {} MiB; `atoll image import {}` takes it",
            made.bytes >> 20,
            self.output.display()
        ));
        if json {
            out::json(&json!({
                "sandboxID": self.id,
                "name": name,
                "digest": made.digest,
                "output": output,
            }))?;
        } else {
            out::line(made.digest)?;
        }
        Ok(())
    }
}

/// Temporary directories are their owner's alone, and an image is what people pass on.
fn open_to_others(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

/// What was made.
struct Made {
    /// Of the manifest.
    digest: String,
    /// Of the layer, compressed.
    bytes: u64,
}

/// Counts and digests what goes by.
struct Hashed<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            hash: Sha256::new(),
            bytes: 0,
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn digest(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob(dir: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    dir.join("blobs/sha256").join(hex)
}

/// Writes a document as a blob; answers with what names it.
fn document(dir: &Path, media_type: &str, document: &serde_json::Value) -> Result<serde_json::Value> {
    let text = serde_json::to_vec(document)?;
    let digest = digest(Sha256::new_with_prefix(&text));
    fs::write(blob(dir, &digest), &text).context("cannot write the image")?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": text.len() }))
}

async fn layout(dir: &Path, name: &str, config: ExportedConfig, mut tar: FileReader) -> Result<Made> {
    fs::create_dir_all(dir.join("blobs/sha256")).context("cannot write the image")?;
    let partial = dir.join("blobs/partial");
    let file = File::create(&partial).context("cannot write the image")?;
    let mut layer = Hashed::new(GzEncoder::new(
        Hashed::new(io::BufWriter::new(file)),
        Compression::fast(),
    ));
    while let Some(piece) = tar
        .chunk()
        .await
        .context("the sandbox was not exported to its end")?
    {
        layer.write_all(&piece).context("cannot write the image")?;
    }
    let Hashed { to, hash, .. } = layer;
    let diff = digest(hash);
    let Hashed { mut to, hash, bytes } = to.finish().context("cannot write the image")?;
    to.flush().context("cannot write the image")?;
    let layer = digest(hash);
    fs::rename(&partial, blob(dir, &layer)).context("cannot write the image")?;

    let env: Vec<String> = config
        .env_vars
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let mut run = json!({ "Env": env, "User": config.user });
    if let Some(workdir) = config.workdir {
        run["WorkingDir"] = workdir.into();
    }
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [diff] },
        "history": [{ "created_by": "atoll sandbox export" }],
    });
    let config = document(dir, CONFIG, &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [{ "mediaType": LAYER, "digest": layer, "size": bytes }],
    });
    let mut named = document(dir, MANIFEST, &manifest)?;
    let digest = named["digest"].as_str().unwrap_or_default().to_owned();
    named["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    named["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [named] });
    fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)
        .and_then(|()| fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#))
        .context("cannot write the image")?;
    Ok(Made { digest, bytes })
}

/// As images call it.
const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

/// Packs a layout into one file.
fn pack(making: TempDir, output: &Path) -> Result<()> {
    let step = || format!("cannot write {}", output.display());
    let above = output.parent().context("there is no place for it")?;
    let packed = tempfile::NamedTempFile::new_in(above).with_context(step)?;
    let mut tar = tar::Builder::new(io::BufWriter::new(packed.as_file()));
    tar.mode(tar::HeaderMode::Deterministic);
    tar.append_dir_all("", making.path()).with_context(step)?;
    tar.into_inner()
        .and_then(|mut out| out.flush())
        .with_context(step)?;
    packed
        .persist(output)
        .map_err(|error| error.error)
        .with_context(step)?;
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(output, fs::Permissions::from_mode(0o644)).with_context(step)
}
