//! Builds that go elsewhere, and that come from there.
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;

use ports::runtime::{MemoryFile, PartError, PartImage, PartImages, Parts};

use super::*;

/// The images of a build, on another node.
pub(super) struct Elsewhere(pub(super) BTreeMap<PartImage, fs::File>);

#[async_trait]
impl PartImages for Elsewhere {
    async fn write(&self, image: PartImage, into: fs::File) -> Result<(), PartError> {
        let none = || PartError::Lost("there is no such image".into());
        let image = self.0.get(&image).ok_or_else(none)?;
        into.set_len(image.metadata().unwrap().len()).unwrap();
        crate::disk::copy_data(image, &into).map_err(|error| PartError::Lost(error.into()))
    }
}

fn elsewhere(parts: Parts) -> (serde_json::Value, Elsewhere) {
    (parts.record, Elsewhere(parts.images))
}

fn of(world: &World, build: BuildId) -> MachineSpec {
    MachineSpec {
        build,
        restore: true,
        ..world.spec()
    }
}

#[tokio::test]
async fn a_build_and_its_memory_are_the_same_wherever_they_were_brought() {
    let (Some(here), Some(there)) = (World::new(), World::new()) else {
        return;
    };
    whole(async {
        let runtime = here.begin().await;
        let (_, machine) = start(&runtime, &here.spec()).await;
        let [first, second] = [BuildId::random(), BuildId::random()];
        machine.checkpoint(first, true).await.unwrap();
        machine.checkpoint(second, true).await.unwrap();
        assert_eq!(runtime.kin_of(second).await, [first, here.build]);
        machine.stop(Fate::Discard).await.unwrap();
        let (record, images) = elsewhere(runtime.parts(second).await.unwrap());
        assert_eq!(images.0.len(), 3);
        runtime.remove_builds(&[first, second, here.build]).await.unwrap();
        here.is_left(0, 0, 0).await;

        let (other, _) = there.daemon().await;
        other
            .assemble(second, &record, Vec::new(), &images)
            .await
            .unwrap();
        assert_eq!(other.memory_of(second).await, model::Memory::Durable);
        let (_, machine) = start(&other, &of(&there, second)).await;
        assert!(machine.is_restored());
        let (did, told) = did(&*machine).await;
        assert!(
            told.ends_with(&format!("on disk {did}, Linux {did}")),
            "{did} {told}"
        );
        machine.stop(Fate::Discard).await.unwrap();
        other.remove_builds(&[second]).await.unwrap();
        there.is_left(0, 0, 0).await;

        // What is not what was written is found out before it is mapped.
        let mut images = images;
        for (part, image) in &mut images.0 {
            if matches!(part, PartImage::Memory(_, MemoryFile::Devices)) {
                let forged = tempfile::tempfile().unwrap();
                let mut content = vec![0; usize::try_from(image.metadata().unwrap().len()).unwrap()];
                image.read_exact_at(&mut content, 0).unwrap();
                content[0] ^= 1;
                forged.write_all_at(&content, 0).unwrap();
                *image = forged;
            }
        }
        other
            .assemble(second, &record, Vec::new(), &images)
            .await
            .unwrap();
        let error = refused(&other, &of(&there, second)).await;
        assert!(
            matches!(&error, RuntimeError::CannotRestore { why, .. } if why.contains("changed")),
            "{error}"
        );
        other.remove_builds(&[second]).await.unwrap();
        there.is_left(0, 0, 0).await;

        let mut longer = record.clone();
        longer["memory"]["state"]["length_bytes"] = u64::MAX.into();
        let mut differs = record;
        let pages = differs["memory"]["pages"]["whole"].take();
        differs["memory"]["pages"] =
            serde_json::json!({"diff": {"diff": pages, "base": Uuid::new_v4(), "base_pages": pages}});
        for (record, expected) in [(longer, "a size that none has"), (differs, "not whole")] {
            let refused = other.assemble(second, &record, Vec::new(), &images).await;
            let error = refused.unwrap_err();
            assert!(
                matches!(&error, RuntimeError::CannotAssemble { why, .. } if why.contains(expected)),
                "{error}"
            );
        }
    })
    .await;
}
