//! Volumes of the node, where the daemon is root.
use std::sync::Arc;

use ports::{RuntimeError, VolumeFiles};
use volumes::Files;

use super::Qemus;
use crate::machine::blocking;

impl Qemus {
    /// The files in the volumes of this node; `None` where the daemon is not root, and there are none.
    #[must_use]
    pub fn volume_files(&self) -> Option<Arc<dyn VolumeFiles>> {
        let (house, volumes) = (Arc::clone(&self.house), self.house.volumes.clone()?);
        let has_room = move || house.has_room().is_ok();
        Some(Arc::new(Files::new(volumes, has_room)))
    }

    /// Unmounts what earlier daemons mounted, before any of it is used again.
    pub(super) async fn recover_volumes(&self) -> Result<(), RuntimeError> {
        let Some(volumes) = self.house.volumes.clone() else {
            return Ok(());
        };
        blocking(move || {
            volumes.recover();
            Ok(())
        })
        .await
    }
}
