//! Builds whose machines begin with blank disks over what was on the disk of another.
use std::fs;

use model::BuildId;
use ports::RuntimeError;

use crate::build::{Build, Layer, lineage};
use crate::house::House;
use crate::step::At;

impl House {
    /// Makes the build `into` of what lies on the disk of `from`.
    pub(crate) fn seal(&self, from: BuildId, into: BuildId) -> Result<(), RuntimeError> {
        let _under_way = self.builds.begin(&[from, into]);
        if self.builds.has(into) {
            return Ok(());
        }
        let base = self.builds.get(from)?.ok_or(RuntimeError::NoBuild(from))?;
        let lineage = lineage(&[], Some((from, &base)));
        let mut build = Build {
            lineage,
            ..Build::of(base.overlays)
        };
        if base.disk.is_some() {
            self.disks.has_room()?;
            let partial = self.disks.seal(from, into)?;
            self.disks.finish(&partial, &self.disks.of_sealed(into))?;
            failpoint::reach("container/disk-sealed");
            let laid = self.lay_sealed(&mut build, into).and_then(|()| bounded(&build));
            if let Err(failed) = laid {
                let _ = self.sealed.unmount(into);
                let _ = fs::remove_file(self.disks.of_sealed(into));
                return Err(failed);
            }
        }
        self.builds.put(into, &build)?;
        failpoint::reach("container/build-recorded");
        Ok(())
    }

    /// Lays the uppers of a sealed disk over the layers that they were over; one in which there is nothing is left out.
    fn lay_sealed(&self, build: &mut Build, sealed: BuildId) -> Result<(), RuntimeError> {
        for overlay in &mut build.overlays {
            let upper = self.sealed.upper(&self.disks, sealed, &overlay.upper)?;
            let mut entries = fs::read_dir(&upper).at(format!("reading {}", upper.display()))?;
            if entries.next().is_some() {
                overlay.layers.insert(
                    0,
                    Layer::Sealed {
                        sealed,
                        upper: overlay.upper.clone(),
                    },
                );
            }
        }
        Ok(())
    }
}

/// Refuses what no machine could start from.
pub(crate) fn bounded(build: &Build) -> Result<(), RuntimeError> {
    build.is_bounded().map_err(|what| RuntimeError::Unsupported {
        runtime: "container",
        what,
    })
}
