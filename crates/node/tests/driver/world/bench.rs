//! Builds of templates in a world, with a shelf and a registry in memory.
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use artifact::digest::Digest;
use artifact::{LayerArchives, TravelError};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use model::recipe::{Action, Base, Key, Recipe, RegistryCredentials, Step};
use model::{BuildFailure, BuildId, Resources, TeamId};
use node::{HeldLayers, Image, ImageError, ImageSource, Resolved, Says};
use ports::blobs::{BlobError, ByteStream};
use ports::builds::{BuildError, BuildLine, BuildOrder, BuildShelf, BuildTalk, Built, CachedStep};
use ports::{Blobs, Level, Node};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::World;

/// What a team has on its shelf.
#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) kept: Mutex<BTreeMap<Key, CachedStep>>,
    /// By hash; a broken one ends with an error.
    pub(crate) uploads: Mutex<BTreeMap<String, io::Result<Bytes>>>,
}

#[async_trait]
impl BuildShelf for Shelf {
    async fn cached(&self, key: Key) -> Option<CachedStep> {
        self.kept.lock().unwrap().get(&key).cloned()
    }

    async fn cache(&self, key: Key, step: CachedStep) {
        self.kept.lock().unwrap().insert(key, step);
    }

    async fn upload(&self, files: &str) -> Result<ByteStream, BlobError> {
        let uploads = self.uploads.lock().unwrap();
        let upload = uploads
            .get(files)
            .ok_or_else(|| BlobError::Missing(files.to_owned()))?;
        let pieces = match upload {
            Ok(bytes) => bytes
                .chunks(3)
                .map(|piece| Ok(Bytes::copy_from_slice(piece)))
                .collect(),
            Err(error) => vec![
                Ok(Bytes::from_static(b"some")),
                Err(io::Error::new(error.kind(), error.to_string())),
            ],
        };
        Ok(futures_util::stream::iter(pieces).boxed())
    }

    async fn discard_upload(&self, files: &str) {
        self.uploads.lock().unwrap().remove(files);
    }
}

/// A registry with one image, `image`.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) pulls: Mutex<usize>,
    /// The name means something else by the time it is pulled.
    pub(crate) is_moved: Mutex<bool>,
    /// A pull waits for this.
    pub(crate) wait: Mutex<Option<Arc<Notify>>>,
}

#[async_trait]
impl ImageSource for Registry {
    async fn resolve(
        &self,
        reference: &str,
        _: Option<&RegistryCredentials>,
    ) -> Result<Resolved, ImageError> {
        match reference {
            "image" => Ok(Resolved {
                digest: "sha256:00".to_owned(),
            }),
            "away" => Err(ImageError::Away {
                image: reference.to_owned(),
                source: "the registry is away".into(),
            }),
            _ => Err(ImageError::Refused(format!("there is no image {reference}"))),
        }
    }

    async fn pull(&self, _: &str, _: Option<&RegistryCredentials>, says: Says) -> Result<Image, ImageError> {
        says.try_send("1 layers".to_owned()).unwrap();
        let wait = self.wait.lock().unwrap().take();
        if let Some(wait) = wait {
            wait.notified().await;
        }
        *self.pulls.lock().unwrap() += 1;
        Ok(Image {
            digest: if *self.is_moved.lock().unwrap() {
                "sha256:01"
            } else {
                "sha256:00"
            }
            .to_owned(),
            env: vec![("LANG".to_owned(), "C".to_owned())],
            layers: vec![PathBuf::from("/layer")],
            held: Box::new(()),
        })
    }

    async fn stow(
        &self,
        _: &dyn Blobs,
        layers: &[Digest],
        _: &LayerArchives,
        _: Duration,
    ) -> Result<LayerArchives, TravelError> {
        assert!(layers.is_empty(), "what is built here is not brought away");
        Ok(LayerArchives::new())
    }

    async fn fetch(
        &self,
        _: &dyn Blobs,
        layers: &[Digest],
        _: &LayerArchives,
    ) -> Result<HeldLayers, TravelError> {
        assert!(layers.is_empty(), "what is built here is not brought back");
        Ok(HeldLayers::default())
    }
}

/// A world in which templates are built.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) registry: Arc<Registry>,
}

/// What came of a build, and what it said.
pub(crate) struct Outcome {
    pub(crate) built: Result<Built, BuildError>,
    pub(crate) lines: Vec<BuildLine>,
}

impl Outcome {
    /// What was said, of what matters at least so much.
    pub(crate) fn said(&self, level: Level) -> Vec<&str> {
        let said = self.lines.iter().filter(|line| line.level >= level);
        said.map(|line| line.message.as_str()).collect()
    }

    /// What its owner is told.
    pub(crate) fn failure(self) -> BuildFailure {
        match self.built {
            Err(BuildError::Recipe(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn run(command: &str) -> Step {
    step(Action::Run {
        command: command.to_owned(),
        user: None,
    })
}

pub(crate) fn step(action: Action) -> Step {
    Step { action, force: false }
}

impl Bench {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let registry = Arc::new(Registry::default());
        world.node.build_from(registry.clone());
        Self {
            world,
            shelf: Arc::default(),
            registry,
        }
    }

    /// A recipe on top of the image.
    pub(crate) fn recipe(&self, steps: Vec<Step>) -> Recipe {
        Recipe {
            from: Base::Image {
                reference: "image".to_owned(),
                credentials: None,
            },
            steps,
            start: None,
            ready: None,
            force: false,
        }
    }

    pub(crate) fn order(&self, recipe: Recipe) -> BuildOrder {
        BuildOrder {
            build: BuildId::random(),
            team: TeamId::random(),
            template: "aaaaaaaaaaaaaaaaaaaa".parse().unwrap(),
            resources: Resources::default(),
            recipe,
            base: None,
        }
    }

    pub(crate) fn talk(&self) -> (BuildTalk, mpsc::Receiver<BuildLine>) {
        let (lines, heard) = mpsc::channel(10_000);
        let talk = BuildTalk {
            lines,
            cancel: CancellationToken::new(),
            shelf: self.shelf.clone(),
        };
        (talk, heard)
    }

    pub(crate) async fn build(&self, order: &BuildOrder) -> Outcome {
        let (talk, mut heard) = self.talk();
        let built = self.world.node.build(order.clone(), talk).await;
        let lines = std::iter::from_fn(|| heard.try_recv().ok()).collect();
        Outcome { built, lines }
    }

    pub(crate) async fn build_steps(&self, steps: Vec<Step>) -> (BuildId, Outcome) {
        let order = self.order(self.recipe(steps));
        (order.build, self.build(&order).await)
    }

    /// Builds that are on the node and that the shelf does not name, without the image.
    pub(crate) fn loose(&self) -> Vec<BuildId> {
        let kept = self.shelf.kept.lock().unwrap();
        let is_kept = |build: &BuildId| kept.values().any(|step| step.build == *build);
        let runtime = &self.world.runtime;
        let is_image = |build: &BuildId| runtime.content(*build).unwrap().disk.is_empty();
        let loose = runtime
            .all_builds()
            .into_iter()
            .filter(|build| !is_kept(build) && !is_image(build));
        loose.collect()
    }
}
