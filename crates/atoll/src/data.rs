//! The data directory: its lock, and the files by which clients on this machine find the server.
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use model::{NodeId, Secret};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::client::Endpoint;
use crate::out;
use crate::settings::{Resolved, Settings};

/// What a client needs; readable by the owner of the data directory alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    pub(crate) api_key: Secret<String>,
}

/// The data directory, held by this process alone.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)
            .with_context(|| format!("cannot make the data directory {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot close {}", path.display()))?;
        match Self::try_lock(path)? {
            Some(lock) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            None => bail!(
                "another Atoll uses the data directory {}: stop it, or give this one a --data-dir of its own",
                path.display()
            ),
        }
    }

    fn try_lock(path: &Path) -> Result<Option<File>> {
        let lock = path.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock);
        let file = file.with_context(|| format!("cannot open {}", lock.display()))?;
        Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .is_ok()
            .then_some(file))
    }

    /// Whether a daemon holds it.
    pub(crate) fn is_held(path: &Path) -> Result<bool> {
        Ok(path.exists() && Self::try_lock(path)?.is_none())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// This node's name for ever.
    pub(crate) fn node_id(&self) -> Result<NodeId> {
        let path = self.path.join("node-id");
        match fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .with_context(|| format!("{} does not hold a node id", path.display())),
            Err(_) => {
                let id = NodeId::random();
                fs::write(&path, format!("{id}\n"))
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(id)
            }
        }
    }

    /// What was written for clients, if anything was.
    /// Makes it that of one runtime, for good: what sandboxes and templates of another stand on would be missing.
    pub(crate) fn belong_to(&self, runtime: &str) -> Result<()> {
        let path = self.path.join("runtime");
        let owner = match fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().to_owned()),
            // Of before there was a choice.
            Err(_) => self
                .path
                .join("container")
                .is_dir()
                .then(|| "container".to_owned()),
        };
        if let Some(owner) = owner.filter(|owner| owner != runtime) {
            bail!(
                "{} holds sandboxes and templates of the {owner} runtime, which the {runtime} runtime cannot start: choose \
                 another --data-dir, or --runtime {owner}",
                self.path.display()
            );
        }
        let fresh = self.path.join("runtime.new");
        fs::write(&fresh, format!("{runtime}\n"))
            .with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn credentials(&self) -> Option<Credentials> {
        read(&self.path)
    }

    /// Writes what clients need.
    pub(crate) fn write_credentials(&self, credentials: &Credentials) -> Result<()> {
        let path = self.path.join("credentials.json");
        let partial = self.path.join("credentials.partial");
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&partial)?;
            file.write_all(&serde_json::to_vec_pretty(credentials)?)?;
            file.sync_all()?;
            fs::rename(&partial, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

fn read(dir: &Path) -> Option<Credentials> {
    serde_json::from_slice(&fs::read(dir.join("credentials.json")).ok()?).ok()
}

/// The lines that a shell evaluates.
fn exports(credentials: &Credentials) -> String {
    format!(
        "export E2B_API_URL={0}\nexport E2B_SANDBOX_URL={1}\nexport E2B_VOLUME_API_URL={0}\nexport E2B_API_KEY={2}\n",
        credentials.api_url,
        credentials.sandbox_url,
        credentials.api_key.expose()
    )
}

/// `atoll env`.
pub(crate) fn print_env(settings: &Resolved, json: bool) -> Result<ExitCode> {
    let dir = &settings.data_dir;
    let credentials = read(dir).with_context(|| {
        format!(
            "{} holds no credentials: start Atoll there first, by `atoll up`",
            dir.display()
        )
    })?;
    show(&credentials, json)?;
    Ok(ExitCode::SUCCESS)
}

/// `atoll node-id`. A daemon that runs has one.
pub(crate) fn print_node_id(settings: &Resolved, json: bool) -> Result<ExitCode> {
    let id = match DataDir::is_held(&settings.data_dir)? {
        true => fs::read_to_string(settings.data_dir.join("node-id"))
            .context("the process that uses this data directory is no node")?
            .trim()
            .parse()
            .context("node-id does not hold a node id")?,
        false => DataDir::open(&settings.data_dir)?.node_id()?,
    };
    let _: NodeId = id;
    if json {
        out::json(&serde_json::json!({ "id": id.to_string() }))?;
    } else {
        out::line(id)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what clients need, for a shell or as JSON.
pub(crate) fn show(credentials: &Credentials, json: bool) -> Result<()> {
    if !json {
        return out::text(&exports(credentials));
    }
    out::json(&serde_json::json!({
        "E2B_API_URL": credentials.api_url,
        "E2B_SANDBOX_URL": credentials.sandbox_url,
        "E2B_VOLUME_API_URL": credentials.api_url,
        "E2B_API_KEY": credentials.api_key.expose(),
    }))
}

/// A variable of the environment that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The API that an operator's command talks to. A server that knows no operators shows its nodes to its keys.
pub(crate) fn operator() -> Result<sdk::Client> {
    let Some(token) = variable("ATOLL_ADMIN_TOKEN") else {
        let hint = "ATOLL_ADMIN_TOKEN is not set, which is what operators show a server";
        return endpoint().context(hint)?.api();
    };
    let url = match variable("E2B_API_URL") {
        Some(url) => url,
        None => endpoint().context("E2B_API_URL is not set")?.api_url,
    };
    Ok(sdk::Client::of_operator(&url, &Secret::new(token))?)
}

/// The server that a client command talks to: what the environment names, else the one of the data directory.
pub(crate) fn endpoint() -> Result<Endpoint> {
    let settings = Settings::default();
    let data_dir = variable("ATOLL_DATA_DIR").map_or_else(
        || settings.resolve().map(|settings| settings.data_dir),
        |dir| Ok(dir.into()),
    )?;
    let kept = read(&data_dir);
    let missing = |name: &str| {
        format!(
            "{name} is not set, and {} holds no credentials: `atoll up` makes them",
            data_dir.display()
        )
    };
    let choose = |name: &str, kept: Option<String>| variable(name).or(kept).with_context(|| missing(name));
    Ok(Endpoint {
        api_url: choose("E2B_API_URL", kept.as_ref().map(|kept| kept.api_url.clone()))?,
        sandbox_url: choose(
            "E2B_SANDBOX_URL",
            kept.as_ref().map(|kept| kept.sandbox_url.clone()),
        )?,
        api_key: Secret::new(choose(
            "E2B_API_KEY",
            kept.map(|kept| kept.api_key.expose().clone()),
        )?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_one_runtimes_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.belong_to("qemu").unwrap();
        data.belong_to("qemu").unwrap();
        let refused = data.belong_to("container").unwrap_err().to_string();
        assert!(refused.contains("--runtime qemu"), "{refused}");
    }

    #[test]
    fn one_of_before_there_was_a_choice_is_containers() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("container")).unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let refused = data.belong_to("qemu").unwrap_err().to_string();
        assert!(refused.contains("--runtime container"), "{refused}");
        data.belong_to("container").unwrap();
    }
}
