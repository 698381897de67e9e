//! Telling the agent what it is to know, and telling it again when it forgot.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use ports::discovery::{Check, DiscoveryError, Health, Instance, Role, Settled};
use reqwest::Method;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::record::{Service, registration, status};
use super::{AT_A_TIME, Agent, lock};
use crate::peer::told;

/// An instance that is kept registered.
pub(super) struct Kept {
    instance: Instance,
    check: Check,
    said: Mutex<(Health, String)>,
    /// One speaks to the agent of it at a time, so that no late word brings back what was deregistered.
    line: Arc<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
}

impl Kept {
    /// How often it is seen to.
    fn every(&self) -> Duration {
        let every = match &self.check {
            Check::Ttl(ttl) => *ttl / 3,
            Check::Http { every, .. } => *every,
        };
        every.clamp(Duration::from_millis(300), Duration::from_secs(60))
    }
}

impl Agent {
    /// Registers an instance, and keeps it so.
    pub(super) async fn keep(
        agent: &Arc<Self>,
        instance: Instance,
        check: Check,
    ) -> Result<(), DiscoveryError> {
        let (least, what) = match &check {
            Check::Ttl(ttl) => (*ttl, "TTL"),
            Check::Http { every, within, .. } => ((*every).min(*within), "interval or timeout"),
        };
        if least < Duration::from_secs(1) {
            return Err(DiscoveryError::Invalid(format!(
                "a {what} of {least:?} is too short for a check"
            )));
        }
        let key = (instance.role, instance.id.clone());
        let former = lock(&agent.kept).get(&key).cloned();
        let kept = Arc::new(Kept {
            instance,
            check,
            said: Mutex::new((Health::Passing, String::new())),
            line: former
                .as_ref()
                .map(|former| Arc::clone(&former.line))
                .unwrap_or_default(),
            stop: agent.stop.child_token(),
        });
        if let Some(former) = former {
            former.stop.cancel();
        }
        lock(&agent.kept).insert(key.clone(), Arc::clone(&kept));
        let told = {
            let _line = kept.line.lock().await;
            agent.tell(&kept).await
        };
        match told {
            // It is away: it is told as soon as it is back.
            Ok(()) | Err(DiscoveryError::Away { .. } | DiscoveryError::Slow { .. }) => {
                tokio::spawn(see_to(Arc::downgrade(agent), Arc::clone(&kept)));
            }
            Err(_) => {
                let mut all = lock(&agent.kept);
                if all.get(&key).is_some_and(|other| Arc::ptr_eq(other, &kept)) {
                    all.remove(&key);
                }
            }
        }
        told
    }

    async fn tell(&self, kept: &Kept) -> Result<(), DiscoveryError> {
        let (health, notes) = lock(&kept.said).clone();
        let body = registration(
            &self.config.cluster,
            &kept.instance,
            Some((&kept.check, health, &notes)),
            None,
            self.config.forget_after,
        );
        self.put_service(&kept.instance, body).await?;
        // What is said of it is the check's output only by an update.
        if matches!(kept.check, Check::Ttl(_)) {
            self.pass(kept).await?;
        }
        Ok(())
    }

    async fn put_service(&self, instance: &Instance, body: serde_json::Value) -> Result<(), DiscoveryError> {
        let what = format!("register {} {}", instance.role, instance.id);
        let path = ["v1", "agent", "service", "register"];
        let replace = vec![("replace-existing-checks", "true".to_owned())];
        let answer = self.ask(&what, Method::PUT, &path, replace, Some(body)).await?;
        if answer.status != 200 {
            return Err(self.refused(&what, &answer));
        }
        Ok(())
    }

    /// Says that it lives, and how it is. `false`: the agent does not know it.
    async fn pass(&self, kept: &Kept) -> Result<bool, DiscoveryError> {
        let (role, id) = (kept.instance.role, &kept.instance.id);
        let what = format!("note that {role} {id} lives");
        let check = format!("service:{}", self.service_id(role, id));
        let (health, notes) = lock(&kept.said).clone();
        let body = json!({ "Status": status(health), "Output": notes });
        let path = ["v1", "agent", "check", "update", &check];
        let answer = self
            .ask(&what, Method::PUT, &path, Vec::new(), Some(body))
            .await?;
        match answer.status {
            200 => Ok(true),
            404 => Ok(false),
            // Agents of before 1.12 say so in words.
            500 if answer.said().contains("associated TTL") || answer.said().contains("nknown check") => {
                Ok(false)
            }
            _ => Err(self.refused(&what, &answer)),
        }
    }

    /// Whether the agent knows it.
    async fn knows(&self, kept: &Kept) -> Result<bool, DiscoveryError> {
        let (role, id) = (kept.instance.role, &kept.instance.id);
        let what = format!("tell of {role} {id}");
        let path = ["v1", "agent", "service", &self.service_id(role, id)];
        let answer = self.ask(&what, Method::GET, &path, Vec::new(), None).await?;
        match answer.status {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(self.refused(&what, &answer)),
        }
    }

    pub(super) async fn report(
        &self,
        role: Role,
        id: &str,
        health: Health,
        notes: &str,
    ) -> Result<(), DiscoveryError> {
        let kept = lock(&self.kept).get(&(role, id.to_owned())).cloned();
        let Some(kept) = kept.filter(|kept| matches!(kept.check, Check::Ttl(_))) else {
            return Err(DiscoveryError::Unknown {
                role,
                id: id.to_owned(),
            });
        };
        *lock(&kept.said) = (health, notes.chars().take(512).collect());
        let _line = kept.line.lock().await;
        if !kept.stop.is_cancelled() && !self.pass(&kept).await? {
            self.tell(&kept).await?;
        }
        Ok(())
    }

    pub(super) async fn deregister(&self, role: Role, id: &str) -> Result<(), DiscoveryError> {
        let kept = lock(&self.kept).remove(&(role, id.to_owned()));
        if let Some(kept) = &kept {
            kept.stop.cancel();
        }
        let line = kept.map(|kept| Arc::clone(&kept.line)).unwrap_or_default();
        let _line = line.lock().await;
        self.remove_service(&self.service_id(role, id)).await
    }

    async fn remove_service(&self, service: &str) -> Result<(), DiscoveryError> {
        let what = format!("deregister {service}");
        let path = ["v1", "agent", "service", "deregister", service];
        let answer = self.ask(&what, Method::PUT, &path, Vec::new(), None).await?;
        match answer.status {
            200 | 404 => Ok(()),
            500 if answer.said().contains("nknown service") => Ok(()),
            _ => Err(self.refused(&what, &answer)),
        }
    }

    /// Makes an owner's instances exactly these, by what the agent says that it has.
    pub(super) async fn settle(
        &self,
        owner: &str,
        role: Role,
        instances: &[Instance],
    ) -> Result<Settled, DiscoveryError> {
        let what = format!("tell which {role} instances {owner} has");
        // An id holds nothing that has a meaning in a filter.
        let filter = format!(
            "Meta.atoll_owner == \"{owner}\" and Meta.atoll_cluster == \"{}\"",
            self.config.cluster
        );
        let path = ["v1", "agent", "services"];
        let answer = self
            .ask(&what, Method::GET, &path, vec![("filter", filter)], None)
            .await?;
        if answer.status != 200 {
            return Err(self.refused(&what, &answer));
        }
        let mut there: BTreeMap<String, Service> =
            answer.json().map_err(|error| self.failed(&what, error))?;
        let prefix = self.service_id(role, "");
        there.retain(|id, service| {
            let owned = service.meta.as_ref().and_then(|meta| meta.get("atoll_owner"));
            id.starts_with(&prefix) && owned.is_some_and(|is| is == owner)
        });
        let mut settled = Settled::default();
        let mut new = Vec::new();
        for instance in instances {
            if there.remove(&self.service_id(role, &instance.id)).is_some() {
                settled.kept += 1;
            } else {
                new.push(instance.clone());
            }
        }
        (settled.added, settled.removed) = (new.len(), there.len());
        let removals = there
            .into_keys()
            .map(|service: String| async move { self.remove_service(&service).await });
        let removed: Vec<_> = stream::iter(removals).buffer_unordered(AT_A_TIME).collect().await;
        let additions = new.into_iter().map(|instance: Instance| async move {
            let forget_after = self.config.forget_after;
            let body = registration(&self.config.cluster, &instance, None, Some(owner), forget_after);
            self.put_service(&instance, body).await
        });
        let added: Vec<_> = stream::iter(additions)
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await;
        removed
            .into_iter()
            .chain(added)
            .collect::<Result<(), DiscoveryError>>()?;
        Ok(settled)
    }
}

/// Sees to an instance until it is deregistered, or told anew.
async fn see_to(agent: Weak<Agent>, kept: Arc<Kept>) {
    loop {
        tokio::select! {
            biased;
            () = kept.stop.cancelled() => return,
            () = sleep(kept.every()) => {}
        }
        let Some(agent) = agent.upgrade() else { return };
        let _line = kept.line.lock().await;
        if kept.stop.is_cancelled() {
            return;
        }
        let known = match kept.check {
            Check::Ttl(_) => agent.pass(&kept).await,
            Check::Http { .. } => agent.knows(&kept).await,
        };
        let (role, id) = (kept.instance.role, &kept.instance.id);
        let told_again = match known {
            Ok(true) => continue,
            Ok(false) => {
                tracing::warn!(%role, id, "Consul's agent forgot it; it is registered again");
                agent.tell(&kept).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = told_again {
            tracing::warn!(%role, id, error = told(&error), "Consul could not be told that it lives");
        }
    }
}

/// Sees to it that the agent has what was settled, again and again.
pub(super) async fn agree(agent: Weak<Agent>, stop: CancellationToken) {
    loop {
        let Some(every) = agent.upgrade().map(|agent| agent.config.agree_every) else {
            return;
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(every) => {}
        }
        let Some(agent) = agent.upgrade() else { return };
        let _one = agent.settling.lock().await;
        let all = lock(&agent.settled).clone();
        for ((owner, role), instances) in all {
            match agent.settle(&owner, role, &instances).await {
                Ok(settled) if settled.added + settled.removed > 0 => {
                    tracing::warn!(owner, %role, ?settled, "Consul's agent had others than were settled");
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(owner, %role, error = told(&error), "Consul could not be made to agree")
                }
            }
        }
    }
}
