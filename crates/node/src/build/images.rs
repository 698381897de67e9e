//! What a build starts from, where that is an image in a registry.
use std::any::Any;
use std::path::PathBuf;
use std::time::Duration;

use artifact::digest::Digest;
use artifact::{LayerArchives, TravelError};
use async_trait::async_trait;
use model::BuildId;
use model::recipe::RegistryCredentials;
use ports::Blobs;
use sha2::{Digest as _, Sha256};

/// An image, as its name is understood now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What it is called by everybody: the digest of its manifest, for one platform.
    pub digest: String,
}

/// An image whose layers are here.
#[derive(Debug)]
pub struct Image {
    /// As it was resolved, or what its name means by now.
    pub digest: String,
    /// Variables that its programs expect, in order.
    pub env: Vec<(String, String)>,
    /// Its layers, unpacked, the lowest first. They stay while `held` is there, and while a build of the runtime needs
    /// them.
    pub layers: Vec<PathBuf>,
    /// What keeps them here.
    pub held: Box<dyn Any + Send + Sync>,
}

/// Layers that are here.
#[derive(Debug)]
pub struct HeldLayers {
    /// Where, in the order in which they were asked for.
    pub paths: Vec<PathBuf>,
    /// What keeps them here.
    pub held: Box<dyn Any + Send + Sync>,
}

impl Default for HeldLayers {
    /// None.
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            held: Box::new(()),
        }
    }
}

/// Takes what there is to say of a pull while it goes on, in sentences; those that nobody takes in time are lost.
pub type Says = tokio::sync::mpsc::Sender<String>;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name, the credentials or the image: whoever named it is told.
    #[error("{0}")]
    Refused(String),
    /// The registry or the network, or there is no room for it: whoever named it is told. Another try may succeed.
    #[error("getting the image {image} failed")]
    Away {
        /// Which.
        image: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A fault of this node's. Another try may succeed.
    #[error("getting the image {image} failed")]
    Failed {
        /// Which.
        image: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where images come from. Every call may be dropped at any time.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// What a name means now.
    async fn resolve(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
    ) -> Result<Resolved, ImageError>;
    /// Has what a name means here, with all of its layers.
    async fn pull(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
        says: Says,
    ) -> Result<Image, ImageError>;
    /// Brings to the blobs what layers are unpacked from, the highest first; see [`artifact::Images::stow`].
    async fn stow(
        &self,
        blobs: &dyn Blobs,
        layers: &[Digest],
        known: &LayerArchives,
        young: Duration,
    ) -> Result<LayerArchives, TravelError>;
    /// Has layers here, the highest first, from the blobs where they are not; see [`artifact::Images::fetch`].
    async fn fetch(
        &self,
        blobs: &dyn Blobs,
        layers: &[Digest],
        archives: &LayerArchives,
    ) -> Result<HeldLayers, TravelError>;
}

/// What the build that is nothing but an image is called: the same for the same image, on every node and for ever.
pub(super) fn build_of(digest: &str) -> BuildId {
    let hash = Sha256::new()
        .chain_update(b"atoll image\0")
        .chain_update(digest.as_bytes())
        .finalize();
    let bytes = hash.first_chunk().expect("a hash is longer than an id");
    BuildId(uuid::Builder::from_custom_bytes(*bytes).into_uuid())
}

/// The variables of an image that a program can be given.
pub(super) fn variables(env: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    env.iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, value)| !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_the_same_build_for_ever() {
        let id = build_of("sha256:00");
        assert_eq!(id.to_string(), build_of("sha256:00").to_string());
        assert_ne!(id, build_of("sha256:01"));
        assert_eq!(id.0.get_version_num(), 8);
    }

    #[test]
    fn what_is_no_variable_is_left_out() {
        let env = [("A", "1"), ("", "2"), ("B=", "3"), ("C", "a=b"), ("D", "\0")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(variables(&env).collect::<Vec<_>>(), [("A", "1"), ("C", "a=b")]);
    }
}
