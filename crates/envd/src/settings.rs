//! What `/init` said: environment, token, default user and directory.
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use model::Secret;
use wire::init::Init;

use crate::system_file;
use crate::users::User;

/// Where processes find programs, unless they are told otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the system tells processes, and nobody else does, told or not.
const SYSTEM: [&str; 4] = [
    "E2B_SANDBOX",
    "E2B_SANDBOX_ID",
    "E2B_TEMPLATE_ID",
    "E2B_EVENTS_ADDRESS",
];

/// What the machine may use, where the kernel tells what its host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    pub(crate) cpu_count: Option<u32>,
    pub(crate) memory_bytes: Option<u64>,
}

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
    pub(crate) limits: Limits,
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

    /// Takes a call to `/init`, unless a newer one was taken before. Says whether it was taken. A copy begins anew: what
    /// its source was told does not hold for it.
    ///
    /// # Errors
    /// What of it cannot be taken; then nothing is.
    pub(crate) fn take(&mut self, init: &Init) -> Result<bool, String> {
        if !init.renew {
            return self.take_as_it_is(init);
        }
        let mut anew = Self::new();
        let taken = anew.take_as_it_is(init)?;
        *self = anew;
        Ok(taken)
    }

    fn take_as_it_is(&mut self, init: &Init) -> Result<bool, String> {
        let decided_at = init
            .timestamp
            .as_deref()
            .map(|text| instant(text).ok_or("timestamp is no time of RFC 3339"))
            .transpose()?;
        if decided_at.is_some() && decided_at < self.decided_at {
            return Ok(false);
        }
        self.decided_at = decided_at.or(self.decided_at);
        if let Some(env) = &init.env_vars {
            self.env = env.clone();
            self.env.retain(|name, _| !SYSTEM.contains(&name.as_str()));
        }
        self.limits = Limits {
            cpu_count: init.cpu_count.or(self.limits.cpu_count),
            memory_bytes: init.memory_bytes.or(self.limits.memory_bytes),
        };
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
        Ok(true)
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

    /// The environment in which a login of `user` begins, where nothing was set by anybody.
    pub(crate) fn bare_env_of(&self, user: &User) -> BTreeMap<String, String> {
        let bare = Self {
            env: BTreeMap::new(),
            ..self.clone()
        };
        bare.env_of(user, BTreeMap::new())
    }

    /// Leaves the files by which programs recognise a sandbox (contract 5.1).
    pub(crate) fn leave_marks(&self) {
        let _ = fs::create_dir_all("/run/e2b");
        for (name, value) in &self.system {
            let _ = system_file::write(&format!("/run/e2b/.{name}"), value);
        }
    }
}

/// A time of RFC 3339, whatever its distance from UTC.
pub(crate) fn instant(text: &str) -> Option<SystemTime> {
    let text = text.to_ascii_uppercase();
    if text.ends_with('Z') {
        return humantime::parse_rfc3339(&text).ok();
    }
    let (local, distance) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
    let (is_ahead, distance) = match (distance.strip_prefix('+'), distance.strip_prefix('-')) {
        (Some(distance), _) => (true, distance),
        (_, distance) => (false, distance?),
    };
    let (hours, minutes) = distance.split_once(':')?;
    let number = |digits: &str, below: u64| {
        let is_number = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit());
        let number: u64 = digits.parse().ok().filter(|_| is_number)?;
        (number < below).then_some(number)
    };
    let distance = Duration::from_secs(number(hours, 24)? * 3600 + number(minutes, 60)? * 60);
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    if is_ahead {
        local.checked_sub(distance)
    } else {
        local.checked_add(distance)
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
        assert_eq!(settings.take(&at("2026-01-01T00:00:02Z", "new")), Ok(true));
        assert_eq!(settings.take(&at("2026-01-01T00:00:01Z", "old")), Ok(false));
        assert_eq!(settings.take(&at("2026-01-01T01:00:01+01:00", "old")), Ok(false));
        assert!(settings.take(&at("yesterday", "odd")).is_err());
        assert!(settings.token.as_ref().unwrap().matches(b"new"));
        assert_eq!(settings.take(&Init::default()), Ok(true));
        assert!(settings.token.is_none(), "an absent token clears it");
    }

    #[test]
    fn a_copy_keeps_nothing_of_its_source() {
        let mut settings = Settings::new();
        let of_source = Init {
            timestamp: Some("2026-01-01T00:00:02Z".into()),
            env_vars: Some(BTreeMap::from([("A".into(), "1".into())])),
            access_token: Some("source's".into()),
            default_user: Some("user".into()),
            default_workdir: Some("/work".into()),
            sandbox_id: Some("source".into()),
            cpu_count: Some(4),
            ..Init::default()
        };
        assert_eq!(settings.take(&of_source), Ok(true));
        // As told by a node whose clock is late.
        let of_copy = Init {
            timestamp: Some("2026-01-01T00:00:01Z".into()),
            sandbox_id: Some("copy".into()),
            renew: true,
            ..Init::default()
        };
        let broken = Init {
            timestamp: Some("yesterday".into()),
            ..of_copy.clone()
        };
        assert!(settings.take(&broken).is_err());
        assert!(settings.token.is_some(), "what is refused changes nothing");
        assert_eq!(settings.take(&of_copy), Ok(true));
        assert!(settings.env.is_empty() && settings.token.is_none());
        assert_eq!(settings.default_user.as_deref(), Some("root"));
        assert_eq!(
            (settings.default_workdir.as_deref(), settings.limits),
            (None, Limits::default())
        );
        assert_eq!(
            settings.env_of(&user(), BTreeMap::new())["E2B_SANDBOX_ID"],
            "copy"
        );
        assert_eq!(
            settings.take(&of_source),
            Ok(true),
            "from now on its own calls count"
        );
    }

    #[test]
    fn times_have_any_distance_from_utc() {
        let at = |text: &str| instant(text).map(|time| humantime::format_rfc3339(time).to_string());
        let noon = Some("2026-01-01T12:00:00Z".to_owned());
        for text in [
            "2026-01-01T12:00:00Z",
            "2026-01-01t12:00:00z",
            "2026-01-01T12:00:00+00:00",
            "2026-01-01T14:30:00+02:30",
            "2026-01-01T00:59:00-11:01",
        ] {
            assert_eq!(at(text), noon, "{text}");
        }
        assert!(at("2026-01-01T14:30:00.123456789+02:30").is_some());
        for text in [
            "",
            "Z",
            "+00:00",
            "2026-01-01",
            "2026-01-01T12:00:00",
            "2026-01-01T12:00:00+24:00",
            "2026-01-01T12:00:00+0100",
            "2026-01-01T12:00:00ä00:00",
            "2026-01-01T12:00:00+0ä:0",
        ] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    #[test]
    fn the_system_is_overridden_by_a_process_and_not_by_init() {
        let mut settings = Settings::new();
        let taken = settings.take(&Init {
            env_vars: Some(BTreeMap::from([
                ("E2B_SANDBOX".into(), "no".into()),
                ("E2B_EVENTS_ADDRESS".into(), "http://elsewhere".into()),
                ("A".into(), "init".into()),
                ("HOME".into(), "/x".into()),
            ])),
            ..Init::default()
        });
        assert_eq!(taken, Ok(true));
        let env = settings.env_of(&user(), BTreeMap::from([("A".into(), "process".into())]));
        assert_eq!(env.get("E2B_EVENTS_ADDRESS"), None);
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
