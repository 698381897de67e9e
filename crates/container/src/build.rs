//! Builds: what roots are made of, on this node.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::BuildId;
use serde::{Deserialize, Serialize};

use crate::step::{At, Step};

/// A root, as a stack of overlays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// The root first, then what is mounted below it.
    pub(crate) overlays: Vec<Overlay>,
}

/// Read-only layers at one place, with an upper of the sandbox's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overlay {
    /// Where it is mounted.
    pub(crate) target: String,
    /// The topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// Which upper of the disk it writes to.
    pub(crate) upper: String,
}

/// Where builds are kept.
#[derive(Debug)]
pub(crate) struct Builds {
    root: PathBuf,
}

impl Builds {
    pub(crate) fn open(data: &Path) -> Result<Self, Step> {
        for dir in ["builds", "layers"] {
            let dir = data.join(dir);
            fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
        }
        Ok(Self {
            root: data.to_owned(),
        })
    }

    fn path(&self, build: BuildId) -> PathBuf {
        self.root.join("builds").join(format!("{build}.json"))
    }

    /// Where the layers of a build are made.
    pub(crate) fn layers(&self, build: BuildId) -> PathBuf {
        self.root.join("layers").join(build.to_string())
    }

    pub(crate) fn has(&self, build: BuildId) -> bool {
        self.path(build).exists()
    }

    pub(crate) fn get(&self, build: BuildId) -> Result<Option<Build>, Step> {
        let path = self.path(build);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.at(format!("reading {}", path.display()))?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .at(format!("parsing {}", path.display()))
    }

    /// Makes a build known; from then on machines start from it.
    pub(crate) fn put(&self, id: BuildId, build: &Build) -> Result<(), Step> {
        let path = self.path(id);
        crate::record::write(&path, build)
    }
}
