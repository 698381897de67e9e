//! Which volumes a new sandbox has, and where (contract 3.4).
use std::collections::{BTreeSet, HashMap};

use model::{TeamId, Volume, VolumeMount};
use ports::ManagerError;

use super::mounts::Taken;
use crate::failure;
use crate::orchestrator::Orchestrator;

/// The most volumes of one sandbox: each is a mount that its node makes and undoes.
const MOUNTS_MAX: usize = 32;
/// The longest place: it is a part of the kernel's own longest path, with what lies in the volume behind it.
const PATH_BYTES_MAX: usize = 1024;
/// Where a sandbox's kernel and its daemon show themselves: nothing is laid over them.
const TAKEN: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// What is wrong with a path at which a volume is to be mounted.
fn wrong_path(path: &str) -> Option<String> {
    if path.is_empty() {
        return Some("path cannot be empty".to_owned());
    }
    if !path.starts_with('/') {
        return Some("path must be absolute".to_owned());
    }
    if path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) {
        return Some("path must be a path".to_owned());
    }
    if path == "/" {
        return Some("path must not be the root".to_owned());
    }
    let is_clean = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !path[1..].split('/').all(is_clean) {
        return Some("path must not contain any '.' or '..' components".to_owned());
    }
    let is_under = |place: &&&str| {
        path.strip_prefix(**place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    TAKEN
        .iter()
        .find(is_under)
        .map(|place| format!("path must not be in {place}"))
}

/// The mounts of a request, or everything that is wrong with them. Mounts are counted from 0, as they were given.
fn mounts(
    wanted: &[(String, String)],
    known: &HashMap<&str, Volume>,
) -> Result<Vec<VolumeMount>, ManagerError> {
    if wanted.len() > MOUNTS_MAX {
        return Err(ManagerError::Invalid(format!(
            "invalid mounts:\n\t- volume mount #{MOUNTS_MAX}: a sandbox has at most {MOUNTS_MAX} volume mounts"
        )));
    }
    let mut paths = BTreeSet::new();
    let (mut mounts, mut wrong) = (Vec::new(), Vec::new());
    for (index, (name, path)) in wanted.iter().enumerate() {
        let reason = match known.get(name.as_str()) {
            None => Some(format!("volume '{}' not found", shown(name))),
            Some(_) => wrong_path(path)
                .or_else(|| (!paths.insert(path)).then(|| format!("path '{path}' is already used"))),
        };
        match (reason, known.get(name.as_str())) {
            (None, Some(volume)) => mounts.push(VolumeMount {
                volume: volume.id,
                name: volume.name.clone(),
                path: path.clone(),
            }),
            (reason, _) => wrong.push(format!(
                "\n\t- volume mount #{index}: {}",
                reason.unwrap_or_default()
            )),
        }
    }
    if wrong.is_empty() {
        Ok(mounts)
    } else {
        Err(ManagerError::Invalid(format!(
            "invalid mounts:{}",
            wrong.concat()
        )))
    }
}

/// A name as clients are told of it, whatever they sent.
fn shown(name: &str) -> String {
    name.chars().take(128).collect()
}

impl Orchestrator {
    /// The mounts that a request asks for. None of the volumes is deleted while what comes with them lives.
    pub(crate) async fn mounts_of(
        &self,
        team: TeamId,
        wanted: &[(String, String)],
    ) -> Result<(Vec<VolumeMount>, Taken), ManagerError> {
        let step = "reading the volumes";
        let volumes = &self.parts.volumes;
        let mut known = HashMap::new();
        for (name, _) in wanted.iter().take(MOUNTS_MAX) {
            if let Some(volume) = volumes
                .volume_named(team, name)
                .await
                .map_err(failure::store(step))?
            {
                known.insert(name.as_str(), volume);
            }
        }
        let ids: Vec<_> = known.values().map(|volume| volume.id).collect();
        let taken = self.mounts.take_all(&ids);
        // Whoever deleted one did so before it was taken.
        for id in ids {
            let is_there = taken.has(id) && volumes.volume(id).await.map_err(failure::store(step))?.is_some();
            if !is_there {
                known.retain(|_, volume| volume.id != id);
            }
        }
        Ok((mounts(wanted, &known)?, taken))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use model::{MiB, VolumeId};

    use super::*;

    fn volume(name: &str) -> Volume {
        Volume {
            id: VolumeId::random(),
            team: TeamId::random(),
            name: name.to_owned(),
            size: MiB(1),
            created_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn check(wanted: &[(&str, &str)], told: Result<usize, &str>) {
        let known = HashMap::from([("a", volume("a")), ("b", volume("b"))]);
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(name, path)| ((*name).to_owned(), (*path).to_owned()))
            .collect();
        let outcome = mounts(&wanted, &known);
        let outcome = outcome.as_ref().map(Vec::len).map_err(ToString::to_string);
        assert_eq!(outcome, told.map_err(str::to_owned));
    }

    #[test]
    fn everything_that_is_wrong_with_mounts_is_told_at_once() {
        check(&[], Ok(0));
        check(&[("a", "/data"), ("a", "/data/more"), ("b", "/b")], Ok(3));
        check(
            &[
                ("x", "/x"),
                ("a", "data"),
                ("a", "/ok"),
                ("b", "/ok"),
                ("b", "/a/../b"),
                ("b", ""),
            ],
            Err(
                "invalid mounts:\n\t- volume mount #0: volume 'x' not found\n\t- volume mount #1: path must be absolute\
                \n\t- volume mount #3: path '/ok' is already used\
                \n\t- volume mount #4: path must not contain any '.' or '..' components\
                \n\t- volume mount #5: path cannot be empty",
            ),
        );
    }

    #[test]
    fn a_mount_is_at_a_clean_path_that_hides_nothing_of_the_sandboxs_kernel() {
        for good in ["/a", "/a/b", "/home/user/data", "/procs", "/...", "/ä ö"] {
            assert_eq!(wrong_path(good), None, "{good}");
        }
        for bad in [
            "",
            "a",
            "/",
            "//",
            "/a/",
            "/a//b",
            "/./a",
            "/a/..",
            "/proc",
            "/proc/self",
            "/sys/fs",
            "/dev/shm",
            "/run",
            "/a\nb",
            "/a\0b",
            &format!("/{}", "a".repeat(PATH_BYTES_MAX)),
        ] {
            assert!(wrong_path(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn mounts_are_bounded() {
        let wanted: Vec<_> = (0..=MOUNTS_MAX)
            .map(|n| ("a".to_owned(), format!("/{n}")))
            .collect();
        let known = HashMap::from([("a", volume("a"))]);
        assert!(mounts(&wanted, &known).is_err());
        assert_eq!(mounts(&wanted[..MOUNTS_MAX], &known).unwrap().len(), MOUNTS_MAX);
    }
}
