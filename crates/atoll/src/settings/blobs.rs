use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use cluster::blobs::{Bucket, Stored};
use model::Secret;
use serde::Deserialize;

/// Where uploads are kept, and builds that are to outlive the machine: `[blobs]` of the file. A directory of this machine, or a bucket of a store that speaks S3's
/// protocol.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BlobsSettings {
    /// A directory [default: `blobs` in the data directory].
    directory: Option<PathBuf>,
    /// A bucket's name, in the place of a directory. It must be there.
    bucket: Option<String>,
    /// Where the bucket is [default: us-east-1].
    region: Option<String>,
    /// The store's address, where it is not Amazon's.
    endpoint: Option<String>,
    /// What stands before every key.
    prefix: Option<String>,
    /// Who asks; without it the machine's role is asked for.
    access_key_id: Option<String>,
    /// Its secret.
    secret_access_key: Option<Secret<String>>,
    /// Whether templates and snapshots are kept there too, so that they outlive this machine [default: in a bucket; a
    /// directory would hold them a second time].
    builds: Option<bool>,
}

impl BlobsSettings {
    /// Whether templates and snapshots are kept there too.
    pub(crate) fn hold_builds(&self) -> bool {
        self.builds.unwrap_or(self.bucket.is_some())
    }

    /// The store that is meant.
    pub(crate) fn open(&self, data: &Path) -> Result<Stored> {
        let Some(name) = &self.bucket else {
            if self.region.is_some() || self.endpoint.is_some() || self.access_key_id.is_some() {
                bail!("[blobs] says where a bucket is, and names none: set `bucket`");
            }
            let directory = self.directory.clone().unwrap_or_else(|| data.join("blobs"));
            return Ok(Stored::in_directory(&directory)?);
        };
        if let Some(directory) = &self.directory {
            bail!(
                "[blobs] names the bucket {name} and the directory {}: one of them",
                directory.display()
            );
        }
        let credentials = match (self.access_key_id.clone(), self.secret_access_key.clone()) {
            (Some(id), Some(secret)) => Some((id, secret)),
            (None, None) => None,
            _ => bail!("[blobs] wants access_key_id and secret_access_key, or neither"),
        };
        Ok(Stored::in_bucket(&Bucket {
            name: name.clone(),
            region: self.region.clone().unwrap_or_else(|| "us-east-1".to_owned()),
            endpoint: self.endpoint.clone(),
            prefix: self.prefix.clone().unwrap_or_default(),
            credentials,
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, wrong: Option<&str>) {
        let dir = std::env::temp_dir().join(format!("atoll-blobs-{}", std::process::id()));
        let settings: BlobsSettings = toml::from_str(text).unwrap();
        match (settings.open(&dir), wrong) {
            (Ok(_), None) => {}
            (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{error:#}"),
            (opened, _) => panic!("{text}: {:?}", opened.err()),
        }
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn builds_are_kept_in_a_bucket_unless_told_otherwise() {
        let holds = |text: &str| toml::from_str::<BlobsSettings>(text).unwrap().hold_builds();
        assert!(!holds("") && !holds("directory = '/x'") && !holds("bucket = 'b'\nbuilds = false"));
        assert!(holds("bucket = 'b'") && holds("builds = true"));
    }

    #[test]
    fn blobs_are_in_a_directory_or_in_a_bucket() {
        check("", None);
        check(
            "bucket = 'b'\nendpoint = 'http://127.0.0.1:9'\naccess_key_id = 'a'\nsecret_access_key = 's'",
            None,
        );
        check("bucket = 'b'\ndirectory = '/x'", Some("one of them"));
        check("endpoint = 'http://127.0.0.1:9'", Some("names none"));
        check("bucket = 'b'\naccess_key_id = 'a'", Some("or neither"));
    }
}
