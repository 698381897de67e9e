//! Removing builds, and what no build needs any more.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::BuildId;
use ports::RuntimeError;

use crate::build::Build;
use crate::disk::Image;
use crate::house::{Fate, House};
use crate::pool::Pool;
use crate::step::{At, Step};

impl House {
    /// Makes builds unknown, but for those that a machine stands on or a kept disk is over, and removes what then no build
    /// needs. First the record, then what it named: what is left by a death in between is found by recovery.
    pub(crate) fn remove_builds(&self, pool: &Pool, builds: &[BuildId]) -> Result<(), RuntimeError> {
        for slot in pool.forget(builds) {
            self.give_back(slot.number, Fate::Discard);
        }
        let gone = {
            let _alone = self.builds.alone();
            let needed = self.needed()?;
            for build in builds {
                if needed.contains(build) {
                    tracing::info!(%build, "a build is in use, and stays");
                    continue;
                }
                self.builds.forget(*build)?;
                failpoint::reach("container/build-forgotten");
            }
            self.set_aside(false)?
        };
        // Not while others wait.
        self.builds.write_through()?;
        Ok(delete(&gone)?)
    }

    /// Removes what was never finished, or was about to be removed, when an earlier daemon, or the host, ended.
    pub(crate) fn clear_builds(&self) -> Result<(), Step> {
        let gone = {
            let _alone = self.builds.alone();
            for id in self.builds.all() {
                let build = self.builds.get(id)?;
                if build.is_some_and(|build| build.disk.is_some()) && !self.disks.of_build(id).exists() {
                    self.builds.forget(id)?;
                }
            }
            self.set_aside(true)?
        };
        self.builds.write_through()?;
        delete(&gone)
    }

    /// Builds that machines stand on, and those that are under way.
    fn needed(&self) -> Result<BTreeSet<BuildId>, Step> {
        let mut needed = self.builds.under_way();
        for (number, record) in self.records.all() {
            match record {
                Some(record) => needed.extend(record.starts_from()),
                None if self.records.has(number) => {
                    return Err(io::Error::from(io::ErrorKind::InvalidData))
                        .at(format!("reading what slot {number} stands on"));
                }
                None => {}
            }
        }
        let kept = self.disks.kept_over();
        if kept.contains(&None) {
            // An earlier Atoll kept it, over one of the builds of its time.
            let is_old = |id: &BuildId| {
                let build: Option<Build> = self.builds.get(*id).ok().flatten();
                build.is_some_and(|build| build.form == 0)
            };
            needed.extend(self.builds.all().into_iter().filter(is_old));
        }
        needed.extend(kept.into_iter().flatten());
        Ok(needed)
    }

    /// Renames what no build needs, so that it is nobody's. To be called while nobody begins to use a build.
    fn set_aside(&self, unfinished: bool) -> Result<Vec<PathBuf>, Step> {
        let used = self.builds.in_use()?;
        let under_way = self.builds.under_way();
        let mut gone = Vec::new();
        let mut aside = |path: PathBuf| -> Result<(), Step> {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".gone");
            let target = path.with_file_name(name);
            fs::rename(&path, &target).at(format!("setting {} aside", path.display()))?;
            gone.push(target);
            Ok(())
        };
        for (path, image) in self.disks.of_builds() {
            match image {
                Image::Own(id) if used.known.contains(&id) || under_way.contains(&id) => {}
                Image::Sealed(id) if used.sealed.contains(&id) || under_way.contains(&id) => {}
                Image::Sealed(id) => {
                    self.sealed.unmount(id)?;
                    aside(path)?;
                }
                Image::Own(_) => aside(path)?,
                Image::Unfinished if unfinished => aside(path)?,
                Image::Unfinished => {}
            }
        }
        let dir = self.builds.all_layers();
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let id = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<BuildId>().ok());
            let is_used = match id {
                Some(id) => used.known.contains(&id) || used.layers.contains(&id) || under_way.contains(&id),
                None => !unfinished,
            };
            if !is_used {
                aside(entry.path())?;
            }
        }
        Ok(gone)
    }
}

fn delete(paths: &[PathBuf]) -> Result<(), Step> {
    paths.iter().try_for_each(|path| remove(path))
}

fn remove(path: &Path) -> Result<(), Step> {
    let removed = match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at(format!("deleting {}", path.display())),
    }
}
