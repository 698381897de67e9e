//! Builds that go elsewhere, and that come from there.
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;

use ports::runtime::{PartError, PartImage, PartImages, Parts};
use uuid::Uuid;

use super::*;

/// The images of a build, wherever that is; notes which were asked for.
struct Elsewhere {
    images: BTreeMap<PartImage, fs::File>,
    asked: Mutex<Vec<PartImage>>,
}

impl Elsewhere {
    fn of(parts: Parts) -> (serde_json::Value, Self) {
        assert!(parts.given.is_empty());
        let (images, asked) = (parts.images, Mutex::default());
        (parts.record, Self { images, asked })
    }

    fn asked(&self) -> usize {
        std::mem::take(&mut *self.asked.lock().unwrap()).len()
    }
}

#[async_trait]
impl PartImages for Elsewhere {
    async fn write(&self, image: PartImage, into: fs::File) -> Result<(), PartError> {
        self.asked.lock().unwrap().push(image);
        // What is half written is nothing.
        into.write_all_at(b"half", 0).unwrap();
        let none = || PartError::Lost("there is no such image".into());
        let file = self.images.get(&image).ok_or_else(none)?;
        let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        into.write_all_at(&content, 0).unwrap();
        Ok(())
    }
}

fn of(layer: &serde_json::Value) -> Uuid {
    serde_json::from_value(layer["id"].clone()).unwrap()
}

fn why(refused: RuntimeError) -> String {
    match refused {
        RuntimeError::CannotAssemble { why, .. } => why,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_build_starts_machines_wherever_it_was_brought() {
    let (Some(here), Some(there)) = (World::new(), World::new()) else {
        return;
    };
    whole(async {
        let runtime = here.begin().await;
        let spec = here.spec();
        let (_, machine) = start(&runtime, &spec).await;
        let [first, second] = [BuildId::random(), BuildId::random()];
        machine.checkpoint(first, true).await.unwrap();
        machine.checkpoint(second, false).await.unwrap();
        assert_eq!(runtime.kin_of(second).await, [first, here.build]);
        assert_eq!(runtime.kin_of(here.build).await, []);
        machine.stop(Fate::Discard).await.unwrap();
        let (record, images) = Elsewhere::of(runtime.parts(second).await.unwrap());
        let (warm, its_images) = Elsewhere::of(runtime.parts(first).await.unwrap());
        // They may be removed meanwhile.
        runtime.remove_builds(&[first, second, here.build]).await.unwrap();
        assert_eq!(here.files("images"), 0);

        let (other, _) = there.daemon().await;
        let assemble = || other.assemble(second, &record, Vec::new(), &images);
        assemble().await.unwrap();
        assert_eq!(images.asked(), 3);
        assert_eq!(
            (there.files("images"), other.memory_of(second).await),
            (3, model::Memory::None)
        );
        assemble().await.unwrap();
        // One that shares its images needs no more of them, but its memory.
        let again = other.assemble(first, &warm, Vec::new(), &its_images);
        again.await.unwrap();
        assert_eq!((images.asked(), its_images.asked()), (0, 1));
        assert_eq!(other.memory_of(first).await, model::Memory::Durable);
        let restored = MachineSpec {
            build: first,
            restore: true,
            ..there.spec()
        };
        let (vm, machine) = start(&other, &restored).await;
        assert!(machine.is_restored());
        says(&vm, 1).await;
        machine.stop(Fate::Discard).await.unwrap();
        let copy = MachineSpec {
            build: second,
            ..there.spec()
        };
        let (vm, machine) = start(&other, &copy).await;
        assert!(says(&vm, 1).await.starts_with('a'));
        machine.stop(Fate::Keep).await.unwrap();

        // And so does what is kept of a sandbox.
        let kept = BuildId::random();
        assert!(matches!(
            other.copy_kept(SandboxId::random(), kept).await,
            Err(RuntimeError::NoDisk(_))
        ));
        other.copy_kept(copy.sandbox, kept).await.unwrap();
        other.copy_kept(copy.sandbox, kept).await.unwrap();
        assert_eq!(other.kin_of(kept).await, [second]);
        let moved = other.parts(kept).await.unwrap();
        assert_eq!(moved.images.len(), 4);
        other.discard(copy.sandbox).await.unwrap();

        // As many as there are when a machine is copied again and again: they are made one when one starts from them.
        let deep = BuildId::random();
        let (mut record, images) = (record, images);
        let top = record["disk"]["layers"][2].clone();
        let written = images.images[&PartImage::Drawn(of(&top))].try_clone().unwrap();
        let mut more = images.images;
        for _ in 0..2 * crate::disk::DEPTH_STARTED_MAX {
            let mut next = top.clone();
            next["id"] = Uuid::new_v4().to_string().into();
            more.insert(PartImage::Drawn(of(&next)), written.try_clone().unwrap());
            record["disk"]["layers"].as_array_mut().unwrap().push(next);
        }
        let images = Elsewhere {
            images: more,
            asked: Mutex::default(),
        };
        other.assemble(deep, &record, Vec::new(), &images).await.unwrap();
        let spec = MachineSpec {
            build: deep,
            ..there.spec()
        };
        let (vm, machine) = start(&other, &spec).await;
        assert!(vm.record().disk.layers.len() <= crate::disk::DEPTH_STARTED_MAX);
        assert!(says(&vm, 1).await.starts_with('a'));
        machine.stop(Fate::Discard).await.unwrap();
        other.remove_builds(&[deep]).await.unwrap();

        // A disk is not lost with its memory, nor is memory brought that fits no machine here.
        let mut its_images = its_images;
        its_images
            .images
            .retain(|part, _| matches!(part, PartImage::Drawn(_)));
        let mut foreign = warm.clone();
        foreign["memory"]["fits"]["bundle"] = "another".into();
        for (record, asked) in [(&warm, 1), (&foreign, 0)] {
            let cold = BuildId::random();
            its_images.asked();
            other.remove_builds(&[first]).await.unwrap();
            other
                .assemble(cold, record, Vec::new(), &its_images)
                .await
                .unwrap();
            let asked_for_memory = |asked: Vec<PartImage>| {
                asked
                    .into_iter()
                    .filter(|part| matches!(part, PartImage::Memory(..)))
                    .count()
            };
            assert_eq!(
                asked_for_memory(std::mem::take(&mut *its_images.asked.lock().unwrap())),
                asked
            );
            assert_eq!(other.memory_of(cold).await, model::Memory::None);
            other.remove_builds(&[cold]).await.unwrap();
        }
        other.remove_builds(&[first, second, kept]).await.unwrap();
        assert_eq!((there.files("images"), there.files("states")), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn what_can_be_no_disk_of_ours_is_refused_and_nothing_of_it_is_left() {
    let (Some(here), Some(there)) = (World::new(), World::new()) else {
        return;
    };
    whole(async {
        let runtime = here.begin().await;
        let (_, machine) = start(&runtime, &here.spec()).await;
        let build = BuildId::random();
        machine.checkpoint(build, true).await.unwrap();
        machine.stop(Fate::Discard).await.unwrap();
        let (record, images) = Elsewhere::of(runtime.parts(build).await.unwrap());
        let (other, _) = there.daemon().await;
        let with = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut changed = record.clone();
            change(&mut changed);
            changed
        };
        let refused = |record: serde_json::Value| {
            let (other, images) = (&other, &images);
            async move {
                why(other
                    .assemble(build, &record, Vec::new(), images)
                    .await
                    .unwrap_err())
            }
        };
        let bottom = record["disk"]["layers"][0].clone();
        for (record, expected) in [
            (serde_json::json!({"form": 1}), "not understood"),
            (with(&|record| record["form"] = 9.into()), "a form"),
            (with(&|record| record["more"] = 1.into()), "not understood"),
            (
                with(&|record| record["disk"]["layers"] = serde_json::json!([])),
                "as no disk has",
            ),
            (
                with(&|record| record["disk"]["layers"] = vec![bottom.clone(); 999].into()),
                "as no disk has",
            ),
            (
                with(&|record| record["disk"]["size_bytes"] = u64::MAX.into()),
                "a size that none has",
            ),
            (
                with(&|record| record["disk"]["layers"][1] = bottom.clone()),
                "hides those below",
            ),
            (
                with(&|record| record["memory"]["length_bytes"] = u64::MAX.into()),
                "a size that none has",
            ),
        ] {
            assert!(refused(record).await.contains(expected), "{expected}");
        }
        assert_eq!(images.asked(), 0);
        for (record, expected) in [
            (
                with(&|record| record["disk"]["layers"][0]["id"] = Uuid::new_v4().to_string().into()),
                "cannot be had",
            ),
            (
                with(&|record| record["disk"]["layers"][0]["format"] = "qcow2".into()),
                "none of a disk of that size",
            ),
            (
                with(&|record| record["disk"]["size_bytes"] = 4096.into()),
                "none of a disk of that size",
            ),
        ] {
            assert!(refused(record).await.contains(expected), "{expected}");
        }
        let given = vec![PathBuf::from("/")];
        let stands_on_layers = other.assemble(build, &record, given, &images).await;
        assert!(why(stands_on_layers.unwrap_err()).contains("stand on layers"));
        assert!(!other.has_build(build).await);
        // What came of them is swept behind the answer.
        let deadline = Instant::now() + SOON;
        while there.files("images") + there.files("states") > 0 {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        other.assemble(build, &record, Vec::new(), &images).await.unwrap();
    })
    .await;
}
