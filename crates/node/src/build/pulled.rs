//! Images of registries and archives, as builds start from them.
use std::time::Duration;

use artifact::digest::Digest;
use artifact::{Images, LayerArchives, PullError, PullEvent, TravelError};
use async_trait::async_trait;
use model::Kind;
use model::recipe::RegistryCredentials;
use ports::Blobs;

use super::images::{HeldLayers, Image, ImageError, ImageSource, Resolved, Says};

/// More events of a pull than are heard in one go.
const EVENTS_MAX: usize = 64;

#[async_trait]
impl ImageSource for Images {
    async fn resolve(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
    ) -> Result<Resolved, ImageError> {
        let digest = Images::resolve(self, reference, credentials)
            .await
            .map_err(|error| told(reference, error))?;
        Ok(Resolved {
            digest: digest.to_string(),
        })
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
        says: Says,
    ) -> Result<Image, ImageError> {
        let (progress, mut events) = tokio::sync::mpsc::channel(EVENTS_MAX);
        let pull = Images::pull(self, reference, credentials, Some(progress));
        let hear = async {
            while let Some(event) = events.recv().await {
                if let Some(text) = describe(event) {
                    let _ = says.try_send(text);
                }
            }
        };
        let (image, ()) = tokio::join!(pull, hear);
        let image = image.map_err(|error| told(reference, error))?;
        Ok(Image {
            digest: image.digest.to_string(),
            env: image.config.env.clone(),
            layers: image.layers.clone(),
            held: Box::new(image),
        })
    }

    async fn stow(
        &self,
        blobs: &dyn Blobs,
        layers: &[Digest],
        known: &LayerArchives,
        young: Duration,
    ) -> Result<LayerArchives, TravelError> {
        Images::stow(self, blobs, layers, known, young).await
    }

    async fn fetch(
        &self,
        blobs: &dyn Blobs,
        layers: &[Digest],
        archives: &LayerArchives,
    ) -> Result<HeldLayers, TravelError> {
        let here = Images::fetch(self, blobs, layers, archives).await?;
        Ok(HeldLayers {
            paths: here.paths.clone(),
            held: Box::new(here),
        })
    }
}

/// What there is to say of a pull; of most that happens there is nothing.
fn describe(event: PullEvent) -> Option<String> {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    match event {
        PullEvent::Resolved {
            digest,
            layers,
            bytes,
        } => Some(format!("{digest}: {layers} layers, {} MiB", mib(bytes))),
        PullEvent::Unpacked { layer, bytes } => Some(format!("{layer}: unpacked, {} MiB", mib(bytes))),
        PullEvent::Again { layer, bytes, why } => Some(format!(
            "{layer}: broke off, and goes on from {} MiB: {why}",
            mib(bytes)
        )),
        PullEvent::Present { .. } | PullEvent::Progress { .. } => None,
    }
}

/// Who is told of it: whoever named the image, or whoever runs the node.
fn told(reference: &str, error: PullError) -> ImageError {
    match error.kind() {
        Kind::Unavailable | Kind::Timeout => away(reference, error),
        Kind::Internal => ImageError::Failed {
            image: reference.to_owned(),
            source: Box::new(error),
        },
        _ => ImageError::Refused(error.public()),
    }
}

fn away(reference: &str, error: impl std::error::Error + Send + Sync + 'static) -> ImageError {
    ImageError::Away {
        image: reference.to_owned(),
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(dir: &std::path::Path) -> Images {
        Images::open(dir, artifact::Policy::default()).expect("a directory of our own")
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_told_to_whoever_gave_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "Not A Name", "a:b:c"] {
            let refused = ImageSource::resolve(&images(dir.path()), name, None).await;
            assert!(
                matches!(refused, Err(ImageError::Refused(_))),
                "{name}: {refused:?}"
            );
        }
    }

    #[test]
    fn faults_of_the_node_are_not_told_as_the_owner_s() {
        let away = PullError::Away {
            registry: "r".to_owned(),
            why: "no route".to_owned(),
        };
        assert!(matches!(told("image", away), ImageError::Away { .. }));
        let denied = PullError::Denied {
            registry: "r".to_owned(),
        };
        assert!(matches!(told("image", denied), ImageError::Refused(_)));
    }
}
