//! Disks that nobody writes to any more, mounted so that their uppers serve as layers: each once, when it is first needed,
//! so that all machines over it share what the kernel has read of it.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use model::BuildId;

use crate::disk::Disks;
use crate::step::Step;
use volumes::{How, Places};

/// The mounts of sealed disks.
#[derive(Debug)]
pub(crate) struct Sealed {
    places: Places,
    mounted: Mutex<BTreeSet<BuildId>>,
}

impl Sealed {
    pub(crate) fn open(data: &Path) -> Result<Self, Step> {
        Ok(Self {
            places: Places::open(data, "sealed", How::Sealed)?,
            mounted: Mutex::default(),
        })
    }

    /// Where an upper of a sealed disk lies; it is mounted for that. Whoever clones the mount needs this one no longer.
    pub(crate) fn upper(&self, disks: &Disks, build: BuildId, upper: &str) -> Result<PathBuf, Step> {
        let mut mounted = self.mounted.lock().expect(UNPOISONED);
        let name = build.to_string();
        if !mounted.contains(&build) {
            self.places.mount(&name, &disks.of_sealed(build))?;
            mounted.insert(build);
        }
        Ok(self.places.of(&name).join(upper).join("upper"))
    }

    /// Unmounts one. Machines that stand on it stand on.
    pub(crate) fn unmount(&self, build: BuildId) -> Result<(), Step> {
        let mut mounted = self.mounted.lock().expect(UNPOISONED);
        self.places.unmount(&build.to_string())?;
        mounted.remove(&build);
        Ok(())
    }

    /// Unmounts all, whoever mounted them. They are mounted again when they are needed.
    pub(crate) fn unmount_all(&self) {
        let mut mounted = self.mounted.lock().expect(UNPOISONED);
        for name in self.places.all() {
            if let Err(error) = self.places.unmount(&name) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    cause = %error.source,
                    "a sealed disk stays mounted"
                );
            }
        }
        mounted.clear();
    }
}

const UNPOISONED: &str = "nothing panics while it holds this";
