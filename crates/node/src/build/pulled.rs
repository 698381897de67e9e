//! Images of registries and archives, as builds start from them.
use artifact::{Images, PullError, PullEvent};
use async_trait::async_trait;
use model::Kind;
use model::recipe::RegistryCredentials;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::images::{Image, ImageError, ImageSource, Resolved, Says};

/// More events of a pull than are heard in one go.
const EVENTS_MAX: usize = 64;

#[async_trait]
impl ImageSource for Images {
    async fn resolve(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
    ) -> Result<Resolved, ImageError> {
        let (images, name, who) = (self.clone(), reference.to_owned(), credentials.cloned());
        let digest = aside(reference, move || async move {
            images.resolve(&name, who.as_ref()).await
        })
        .await?;
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
        let (images, name, who) = (self.clone(), reference.to_owned(), credentials.cloned());
        let pull = aside(reference, move || async move {
            images.pull(&name, who.as_ref(), Some(progress)).await
        });
        let hear = async {
            while let Some(event) = events.recv().await {
                if let Some(text) = describe(event) {
                    let _ = says.try_send(text);
                }
            }
        };
        let (image, ()) = tokio::join!(pull, hear);
        let image = image?;
        Ok(Image {
            digest: image.digest.to_string(),
            env: image.config.env.clone(),
            layers: image.layers.clone(),
            held: Box::new(image),
        })
    }
}

/// Asks a registry on a thread of its own, for what it takes to ask one stays on the thread that it began on. Whoever drops
/// this ends it.
async fn aside<T, F>(reference: &str, ask: impl FnOnce() -> F + Send + 'static) -> Result<T, ImageError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, PullError>>,
{
    let stop = CancellationToken::new();
    let _dropped = stop.clone().drop_guard();
    let (tasks, span) = (tokio::runtime::Handle::current(), tracing::Span::current());
    let answer =
        tokio::task::spawn_blocking(move || tasks.block_on(stop.run_until_cancelled(ask().instrument(span))));
    match answer.await {
        Ok(Some(Ok(answer))) => Ok(answer),
        Ok(Some(Err(error))) => Err(told(reference, error)),
        Ok(None) => Err(away(reference, std::io::Error::other("it was given up"))),
        Err(panic) => Err(away(reference, panic)),
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
        Kind::Unavailable | Kind::Internal | Kind::Timeout => away(reference, error),
        _ => ImageError::Refused(error.to_string()),
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

    #[tokio::test]
    async fn whoever_gives_up_ends_it() {
        let (sender, ended) = tokio::sync::oneshot::channel::<()>();
        let ask = aside("image", move || async move {
            let _ends_with_it = sender;
            std::future::pending::<Result<(), PullError>>().await
        });
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(50), ask).await;
        assert!(given_up.is_err());
        assert!(ended.await.is_err(), "nothing of it is left");
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
