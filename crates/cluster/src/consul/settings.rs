//! Settings, below one key of Consul's.
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ports::discovery::{DiscoveryError, Known, SETTING_BYTES_MAX, Values, check_setting};
use reqwest::Method;
use serde::Deserialize;

use super::Agent;
use super::follow::Followed;
use crate::peer::Call;

/// A key of Consul's, and what is behind it.
#[derive(Debug, Deserialize)]
pub(super) struct Pair {
    #[serde(rename = "Key")]
    pub(super) key: String,
    #[serde(rename = "Value", default)]
    value: Option<String>,
    #[serde(rename = "Session", default)]
    pub(super) session: Option<String>,
    #[serde(rename = "ModifyIndex", default)]
    pub(super) modified: u64,
}

impl Pair {
    /// What is behind it, if that is text.
    pub(super) fn text(&self) -> Option<String> {
        let bytes = STANDARD.decode(self.value.as_deref().unwrap_or_default()).ok()?;
        String::from_utf8(bytes).ok()
    }
}

impl Agent {
    fn settings_prefix(&self) -> String {
        format!("atoll/{}/config/", self.config.cluster)
    }

    async fn values(&self, after: Option<u64>) -> Result<(Values, Option<u64>), DiscoveryError> {
        let what = "tell the settings";
        let prefix = self.settings_prefix();
        let path = key_path(&prefix);
        let recurse = vec![("recurse", String::new())];
        let answer = self.read(what, &path, recurse, after).await?;
        let mut values = Values {
            known: Known::Current,
            ..Values::default()
        };
        match answer.status {
            200 => {
                let pairs: Vec<Pair> = answer.json().map_err(|error| self.failed(what, error))?;
                for pair in pairs {
                    let key = pair
                        .key
                        .strip_prefix(&prefix)
                        .filter(|key| check_setting(key).is_ok());
                    let Some((key, text)) = key.zip(pair.text()) else {
                        tracing::warn!(
                            key = pair.key,
                            "a setting in Consul is no text, or its key is none: left out"
                        );
                        continue;
                    };
                    values.values.insert(key.to_owned(), text);
                }
            }
            // Nothing is set.
            404 => {}
            _ => return Err(self.refused(what, &answer)),
        }
        Ok((values, answer.number("x-consul-index")))
    }

    pub(super) async fn put_setting(&self, key: &str, value: &str) -> Result<(), DiscoveryError> {
        check_setting(key)?;
        if value.len() > SETTING_BYTES_MAX {
            return Err(DiscoveryError::Invalid(format!("the setting {key} is too long")));
        }
        self.write_setting(Method::PUT, key, Some(value)).await
    }

    pub(super) async fn remove_setting(&self, key: &str) -> Result<(), DiscoveryError> {
        check_setting(key)?;
        self.write_setting(Method::DELETE, key, None).await
    }

    async fn write_setting(
        &self,
        method: Method,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), DiscoveryError> {
        let what = format!("change the setting {key}");
        let key = format!("{}{key}", self.settings_prefix());
        let call = Call {
            method,
            path: &key_path(&key),
            query: self.scope(true),
            body: value.map(|value| value.as_bytes().to_vec()),
            within: self.config.within,
        };
        let answer = self
            .peer
            .call(call)
            .await
            .map_err(|error| self.failed(&what, error))?;
        if answer.status != 200 || answer.body.trim_ascii() != b"true" {
            return Err(self.refused(&what, &answer));
        }
        Ok(())
    }
}

/// The path to a key of Consul's.
pub(super) fn key_path(key: &str) -> Vec<&str> {
    ["v1", "kv"].into_iter().chain(key.split('/')).collect()
}

/// All settings of the cluster.
pub(super) struct OfCluster;

impl fmt::Display for OfCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("settings")
    }
}

impl Followed for Values {
    type Of = OfCluster;

    fn ask(
        agent: &Agent,
        _: &OfCluster,
        after: Option<u64>,
    ) -> impl Future<Output = Result<(Self, Option<u64>), DiscoveryError>> + Send {
        agent.values(after)
    }

    fn known(&mut self) -> &mut Known {
        &mut self.known
    }
}
