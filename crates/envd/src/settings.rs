//! What `/init` said: environment, token, default user and directory.
use std::collections::BTreeMap;
use std::fs;
use std::time::SystemTime;

use model::Secret;
use wire::init::Init;

use crate::users::User;

/// Where processes find programs, unless they are told otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is in force.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// The user's environment.
    pub(crate) env: BTreeMap<String, String>,
    /// What `X-Access-Token` must be; `None` is an open door.
    pub(crate) token: Option<Secret<String>>,
    /// User of requests that name none.
    pub(crate) default_user: Option<String>,
    /// Directory of commands that name none.
    pub(crate) default_workdir: Option<String>,
    /// What the system tells processes; no `/init` overrides it.
    system: BTreeMap<&'static str, String>,
    decided_at: Option<SystemTime>,
}

impl Settings {
    pub(crate) fn new() -> Self {
        let system = BTreeMap::from([("E2B_SANDBOX", "true".to_owned())]);
        Self {
            default_user: Some("root".to_owned()),
            system,
            ..Self::default()
        }
    }

    /// Takes a call to `/init`, unless a newer one was taken before. Says whether it was taken.
    pub(crate) fn take(&mut self, init: &Init) -> bool {
        let decided_at = init
            .timestamp
            .as_deref()
            .and_then(|text| humantime::parse_rfc3339(text).ok());
        if decided_at.is_some() && decided_at < self.decided_at {
            return false;
        }
        self.decided_at = decided_at.or(self.decided_at);
        if let Some(env) = &init.env_vars {
            self.env = env.clone();
        }
        self.token = init
            .access_token
            .clone()
            .filter(|token| !token.is_empty())
            .map(Secret::new);
        if let Some(user) = init.default_user.clone().filter(|user| !user.is_empty()) {
            self.default_user = Some(user);
        }
        if let Some(workdir) = init.default_workdir.clone().filter(|dir| !dir.is_empty()) {
            self.default_workdir = Some(workdir);
        }
        if let Some(id) = &init.sandbox_id {
            self.system.insert("E2B_SANDBOX_ID", id.clone());
        }
        if let Some(id) = &init.template_id {
            self.system.insert("E2B_TEMPLATE_ID", id.clone());
        }
        true
    }

    /// The environment of a process of `user`: later sources win, except over the system's.
    pub(crate) fn env_of(&self, user: &User, own: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), user.home.clone()),
            ("USER".to_owned(), user.name.clone()),
            ("LOGNAME".to_owned(), user.name.clone()),
        ]);
        env.extend(self.env.clone());
        env.extend(
            self.system
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone())),
        );
        env.extend(own);
        env
    }

    /// Leaves the files by which programs recognise a sandbox (contract 5.1).
    pub(crate) fn leave_marks(&self) {
        let _ = fs::create_dir_all("/run/e2b");
        for (name, value) in &self.system {
            let _ = fs::write(format!("/run/e2b/.{name}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            name: "user".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/user".into(),
        }
    }

    #[test]
    fn an_older_call_changes_nothing() {
        let mut settings = Settings::new();
        let at = |timestamp: &str, token: &str| Init {
            timestamp: Some(timestamp.into()),
            access_token: Some(token.into()),
            ..Init::default()
        };
        assert!(settings.take(&at("2026-01-01T00:00:02Z", "new")));
        assert!(!settings.take(&at("2026-01-01T00:00:01Z", "old")));
        assert!(settings.token.as_ref().unwrap().matches(b"new"));
        assert!(settings.take(&Init::default()));
        assert!(settings.token.is_none(), "an absent token clears it");
    }

    #[test]
    fn the_system_is_overridden_by_a_process_and_not_by_init() {
        let mut settings = Settings::new();
        settings.take(&Init {
            env_vars: Some(BTreeMap::from([
                ("E2B_SANDBOX".into(), "no".into()),
                ("A".into(), "init".into()),
                ("HOME".into(), "/x".into()),
            ])),
            ..Init::default()
        });
        let env = settings.env_of(&user(), BTreeMap::from([("A".into(), "process".into())]));
        assert_eq!(
            (
                env["E2B_SANDBOX"].as_str(),
                env["A"].as_str(),
                env["HOME"].as_str()
            ),
            ("true", "process", "/x")
        );
        let env = settings.env_of(&user(), BTreeMap::from([("E2B_SANDBOX".into(), "mine".into())]));
        assert_eq!(env["E2B_SANDBOX"], "mine");
    }
}
