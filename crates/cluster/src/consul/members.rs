//! Reading who is there.
use std::collections::BTreeMap;

use ports::discovery::{DiscoveryError, Found, Known, MEMBERS_MAX, Members, Role};
use serde_json::Value;

use super::Agent;
use super::follow::Followed;
use super::record::{Entry, found};

impl Agent {
    /// All instances of a role, and the index of this answer: at once, or, with an index, when something has changed.
    pub(super) async fn members(
        &self,
        role: Role,
        after: Option<u64>,
    ) -> Result<(Members, Option<u64>), DiscoveryError> {
        let what = format!("tell who is {role}");
        let path = ["v1", "health", "service", &self.name(role)];
        let answer = self.read(&what, &path, Vec::new(), after).await?;
        if answer.status != 200 {
            return Err(self.refused(&what, &answer));
        }
        let entries: Vec<Value> = answer.json().map_err(|error| self.failed(&what, error))?;
        Ok((self.understood(role, entries), answer.number("x-consul-index")))
    }

    fn understood(&self, role: Role, entries: Vec<Value>) -> Members {
        let mut refused = entries.len().saturating_sub(MEMBERS_MAX);
        let mut by_id: BTreeMap<String, (u64, Found)> = BTreeMap::new();
        for entry in entries.into_iter().take(MEMBERS_MAX) {
            let entry = serde_json::from_value::<Entry>(entry).map_err(|error| error.to_string());
            let read = entry.and_then(|entry| {
                let modified = entry.service.modified;
                Ok((modified, found(&self.config.cluster, role, entry)?))
            });
            match read {
                Ok((modified, found)) => {
                    let id = found.instance.id.clone();
                    // Two agents were told of one id: whoever came last is believed, for it may have moved.
                    let former = by_id.get(&id).map(|(modified, _)| *modified);
                    if let Some(former) = former {
                        refused += 1;
                        tracing::warn!(%role, id, "two of one id are registered");
                        if former > modified {
                            continue;
                        }
                    }
                    by_id.insert(id, (modified, found));
                }
                Err(why) => {
                    refused += 1;
                    tracing::debug!(%role, why, "an entry of Consul's is left out");
                }
            }
        }
        Members {
            found: by_id.into_values().map(|(_, found)| found).collect(),
            known: Known::Current,
            refused,
        }
    }
}

impl Followed for Members {
    type Of = Role;

    fn ask(
        agent: &Agent,
        of: &Role,
        after: Option<u64>,
    ) -> impl Future<Output = Result<(Self, Option<u64>), DiscoveryError>> + Send {
        agent.members(*of, after)
    }

    fn known(&mut self) -> &mut Known {
        &mut self.known
    }
}
