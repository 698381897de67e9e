//! Files that clients upload for COPY steps (contract 4.1): a tar each, under a hash that the client computes. Uploads are
//! a team's own: nobody else can ask what is in one, nor bring another's into a template.
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use model::recipe::{Action, Recipe};
use model::{TeamId, TemplateId};
use ports::blobs::{BlobInfo, ByteStream};
use ports::{BlobError, TemplateError};

use crate::failure;
use crate::orchestrator::Orchestrator;

/// Under what uploads are kept: `uploads/<team>/<hash>`.
pub(crate) const UPLOADS: &str = "uploads";
/// The largest upload: of a build's context, which is the user's source, not data.
const UPLOAD_BYTES_MAX: u64 = 8 << 30;
/// What a team's uploads may hold in sum.
const TEAM_BYTES_MAX: u64 = 64 << 30;
/// How long an upload is kept.
pub(crate) const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// A client that is told that its upload is there begins its build within this time.
const NOTICE: Duration = Duration::from_secs(24 * 3600);
const HASH_LEN: usize = 64;

/// The name of an upload.
pub(super) fn key(team: TeamId, files: &str) -> Result<String, TemplateError> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if files.len() != HASH_LEN || !files.bytes().all(is_hex) {
        return Err(TemplateError::Invalid(format!(
            "Invalid files hash: it is {HASH_LEN} lower-case hex digits"
        )));
    }
    Ok(format!("{UPLOADS}/{team}/{files}"))
}

/// The uploads that a team's recipe names.
pub(crate) fn keys_of(team: TeamId, recipe: &Recipe) -> impl Iterator<Item = String> {
    recipe.steps.iter().filter_map(move |step| match &step.action {
        Action::Copy { files, .. } => key(team, files).ok(),
        Action::Run { .. } | Action::Env(_) | Action::Workdir(_) | Action::User { .. } => None,
    })
}

/// Whether an upload is not of use to anybody any more.
pub(crate) fn is_old(upload: &BlobInfo, now: SystemTime) -> bool {
    now.duration_since(upload.modified).is_ok_and(|age| age >= KEPT)
}

/// The bytes, ended with an error where they are more than `most`; the flag is set then.
fn bounded(bytes: ByteStream, most: u64) -> (ByteStream, Arc<AtomicBool>) {
    let is_over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_over);
    let mut left = most;
    let bounded = bytes.map(move |piece| {
        let piece = piece?;
        match left.checked_sub(piece.len() as u64) {
            Some(rest) => {
                left = rest;
                Ok(piece)
            }
            None => {
                told.store(true, Ordering::Relaxed);
                Err(io::Error::other("it is too large"))
            }
        }
    });
    (bounded.boxed(), is_over)
}

impl Orchestrator {
    /// Whether an upload is there, and will be long enough for a build that begins now.
    pub(super) async fn find_upload(
        &self,
        team: TeamId,
        template: TemplateId,
        files: &str,
    ) -> Result<bool, TemplateError> {
        let key = key(team, files)?;
        self.own_by_id(team, template).await?;
        let found = self.parts.blobs.find(&key).await;
        let found = found.map_err(failure::blobs("looking for the upload"))?;
        let now = self.now() + NOTICE;
        Ok(found.is_some_and(|upload| !is_old(&upload, now)))
    }

    /// Takes an upload; how many bytes it had.
    #[tracing::instrument(name = "template.upload", skip_all, fields(%team))]
    pub(super) async fn take_upload(
        &self,
        team: TeamId,
        files: &str,
        bytes: ByteStream,
    ) -> Result<u64, TemplateError> {
        let key = key(team, files)?;
        let _uploading = self.uploading.read().await;
        let held = self.parts.blobs.list(&format!("{UPLOADS}/{team}")).await;
        let held = held.map_err(failure::blobs("looking at the team's uploads"))?;
        let others = held.iter().filter(|upload| upload.key != key);
        let room = TEAM_BYTES_MAX.saturating_sub(others.map(|upload| upload.bytes).sum());
        let (bytes, is_over) = bounded(bytes, room.min(UPLOAD_BYTES_MAX));
        match self.parts.blobs.put(&key, bytes).await {
            Ok(bytes) => Ok(bytes),
            Err(_) if is_over.load(Ordering::Relaxed) && room < UPLOAD_BYTES_MAX => {
                Err(TemplateError::Exhausted(format!(
                    "The team's uploads have reached their limit of {} GiB; they are kept for {} days",
                    TEAM_BYTES_MAX >> 30,
                    KEPT.as_secs() / (24 * 3600)
                )))
            }
            Err(_) if is_over.load(Ordering::Relaxed) => Err(TemplateError::Invalid(format!(
                "The upload is larger than {} GiB: leave out what the template does not need",
                UPLOAD_BYTES_MAX >> 30
            ))),
            Err(BlobError::Source(_, error)) => {
                tracing::debug!(%team, %error, "an upload broke off");
                Err(TemplateError::Invalid(
                    "The upload broke off; send it again".to_owned(),
                ))
            }
            Err(error) => Err(failure::blobs("storing the upload")(error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ports::Blobs;
    use ports::blobs::Memory;

    use super::*;

    #[test]
    fn an_upload_is_named_by_its_hash_and_nothing_else() {
        let team = TeamId::random();
        let hash = "0123456789abcdef".repeat(4);
        assert_eq!(key(team, &hash).unwrap(), format!("uploads/{team}/{hash}"));
        for bad in [
            "",
            "abc",
            &hash.to_uppercase(),
            &format!("{}/../x", &hash[..59]),
            &"g".repeat(64),
        ] {
            assert!(key(team, bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn bytes_beyond_the_bound_end_the_upload_and_leave_nothing() {
        let blobs = Memory::default();
        let put = async |sizes: &[usize], most| {
            let pieces: Vec<io::Result<_>> = sizes.iter().map(|size| Ok(vec![0; *size].into())).collect();
            let (bytes, is_over) = bounded(futures_util::stream::iter(pieces).boxed(), most);
            let put = blobs.put("uploads/x", bytes).await;
            (put.ok(), is_over.load(Ordering::Relaxed))
        };
        assert_eq!(put(&[4, 4, 1], 8).await, (None, true));
        assert_eq!(blobs.list("").await.unwrap(), []);
        assert_eq!(put(&[4, 4], 8).await, (Some(8), false));
        assert_eq!(put(&[], 0).await, (Some(0), false));
    }

    #[test]
    fn an_upload_is_kept_for_a_month() {
        let now = SystemTime::now();
        let upload = |age: Duration| BlobInfo {
            key: String::new(),
            bytes: 1,
            modified: now - age,
        };
        assert!(!is_old(&upload(KEPT - Duration::from_secs(1)), now));
        assert!(is_old(&upload(KEPT), now));
        assert!(!is_old(
            &BlobInfo {
                modified: now + KEPT,
                ..upload(KEPT)
            },
            now
        ));
    }
}
