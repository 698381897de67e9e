//! Which volumes a new sandbox has, and where (contract 3.4).
use std::collections::{BTreeSet, HashMap};

use model::{NodeId, TeamId, Volume, VolumeMount, VolumeState};
use ports::{ManagerError, StoreError};

use super::mounts::Taken;
use crate::failure;
use crate::orchestrator::Orchestrator;

/// The most volumes of one sandbox: each is a mount that its node makes and undoes.
const MOUNTS_MAX: usize = 32;
/// The longest place: it is a part of the kernel's own longest path, with what lies in the volume behind it.
const PATH_BYTES_MAX: usize = 1024;
/// Where a sandbox's kernel and its daemon show themselves: nothing is laid over them.
const TAKEN: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// The volumes of a new sandbox. None of them is deleted by this process while this lives.
pub(crate) struct Mounted {
    /// What it is stored with.
    pub(crate) mounts: Vec<VolumeMount>,
    /// Where it must run, as its volumes lie there.
    pub(crate) home: Option<NodeId>,
    _taken: Taken,
}

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
            Some(volume) if volume.state == VolumeState::Making => {
                Some(format!("volume '{}' is being made", volume.name))
            }
            Some(volume) if volume.state == VolumeState::Doomed => {
                Some(format!("volume '{}' is being deleted", volume.name))
            }
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

/// Where all of these volumes lie; a sandbox runs on one node, and those of two it cannot have.
fn one_home<'a>(
    homes: impl Iterator<Item = (&'a str, Option<NodeId>)>,
) -> Result<Option<NodeId>, ManagerError> {
    let mut first: Option<(&str, NodeId)> = None;
    for (name, home) in homes {
        let Some(home) = home else {
            return Err(ManagerError::VolumeLost(format!(
                "it is not known on which node volume '{name}' lies"
            )));
        };
        match first {
            None => first = Some((name, home)),
            Some((_, one)) if one == home => {}
            Some((other, one)) => {
                return Err(ManagerError::Invalid(format!(
                    "invalid mounts:\n\t- volume '{other}' lies on node {one} and volume '{name}' on node {home}: a sandbox runs \
                     on one node, which must have all of its volumes; copy the files of one to a volume beside the other"
                )));
            }
        }
    }
    Ok(first.map(|(_, home)| home))
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
    ) -> Result<Mounted, ManagerError> {
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
        let mounts = mounts(wanted, &known)?;
        let homes = mounts.iter().filter_map(|mount| known.get(mount.name.as_str()));
        let homes = homes.map(|volume| (volume.name.as_str(), self.home_of(volume)));
        let home = one_home(homes)?;
        Ok(Mounted {
            mounts,
            home,
            _taken: taken,
        })
    }

    /// Looks at the volumes of a sandbox that is stored by now, and not started: another process may have deleted one of them
    /// before it could see who has it.
    pub(crate) async fn are_there_still(&self, mounts: &[VolumeMount]) -> Result<(), ManagerError> {
        for mount in mounts {
            let volume: Result<_, StoreError> = self.parts.volumes.volume(mount.volume).await;
            let volume = volume.map_err(failure::store("reading the volumes"))?;
            if volume.is_none_or(|volume| volume.state != VolumeState::Ready) {
                return Err(ManagerError::Invalid(format!(
                    "invalid mounts:\n\t- volume '{}' is being deleted",
                    mount.name
                )));
            }
        }
        Ok(())
    }

    /// Why a sandbox does not start where its volumes lie, and so nowhere.
    pub(crate) fn not_at_home(&self, mounts: &[VolumeMount], home: NodeId, why: &str) -> ManagerError {
        ManagerError::NoCapacity(format!(
            "{}, and what has it starts nowhere else: that node {why}",
            lies(mounts, home)
        ))
    }
}

/// Which volumes lie where.
pub(crate) fn lies(mounts: &[VolumeMount], home: NodeId) -> String {
    let names: BTreeSet<_> = mounts.iter().map(|mount| mount.name.as_str()).collect();
    let names: Vec<_> = names.into_iter().map(|name| format!("'{name}'")).collect();
    match names.as_slice() {
        [one] => format!("volume {one} lies on node {home}"),
        many => format!("volumes {} lie on node {home}", many.join(", ")),
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
            home: None,
            state: VolumeState::Ready,
            version: 0,
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

    #[test]
    fn what_is_being_made_or_deleted_is_not_mounted() {
        for (state, told) in [(VolumeState::Making, "made"), (VolumeState::Doomed, "deleted")] {
            let known = HashMap::from([("a", Volume { state, ..volume("a") })]);
            let error = mounts(&[("a".to_owned(), "/a".to_owned())], &known).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("invalid mounts:\n\t- volume mount #0: volume 'a' is being {told}")
            );
        }
    }

    #[test]
    fn volumes_of_one_node_go_together_and_those_of_two_are_named() {
        let (x, y) = (NodeId::random(), NodeId::random());
        let home = |homes: &[(&'static str, Option<NodeId>)]| one_home(homes.iter().copied());
        assert_eq!(home(&[]).unwrap(), None);
        assert_eq!(home(&[("a", Some(x)), ("b", Some(x))]).unwrap(), Some(x));
        let told = home(&[("a", Some(x)), ("c", Some(x)), ("b", Some(y))]).unwrap_err();
        assert_eq!(told.kind(), model::Kind::Invalid);
        let told = told.to_string();
        let both = format!("volume 'a' lies on node {x} and volume 'b' on node {y}");
        assert!(told.contains(&both), "{told}");
        let told = home(&[("a", None)]).unwrap_err().to_string();
        assert!(told.contains("volume 'a'"), "{told}");
    }
}
