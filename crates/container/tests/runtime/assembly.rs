//! Builds that went elsewhere and come back, and what must not come in with them.
use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use async_trait::async_trait;
use model::BuildId;
use ports::runtime::{Disk, DiskOrigin, PartError, PartImage, PartImages};
use ports::{MachineSpec, Runtime as _, RuntimeError};

use crate::client::run;
use crate::copies::{begin, copy};
use crate::house::{eventually, with_house};
use crate::images::busybox;

/// Images as they were opened.
struct Taken(BTreeMap<PartImage, File>);

#[async_trait]
impl PartImages for Taken {
    async fn write(&self, image: PartImage, into: File) -> Result<(), PartError> {
        let from = self
            .0
            .get(&image)
            .ok_or(PartError::Lost("no such image".into()))?;
        let copied = from.try_clone().and_then(|mut from| {
            io::Seek::rewind(&mut from)?;
            io::copy(&mut from, &mut &into)?;
            into.sync_all()
        });
        copied.map_err(|error| PartError::Lost(error.into()))
    }
}

#[test]
fn a_build_goes_elsewhere_and_comes_back() {
    with_house(async |house| {
        let source = house.start().await;
        run(&*source, "user", "echo sealed > ~/low").await;
        let (below, above) = (copy(&source).await, BuildId::random());
        house.runtime.seal(below, above).await.expect("it is sealed");
        let over = begin(house, above).await;
        run(&*over, "user", "echo own > ~/high").await;
        let build = copy(&over).await;
        let parts = house.runtime.parts(build).await.expect("its parts");
        assert_eq!(
            parts.images.keys().copied().collect::<Vec<_>>(),
            [PartImage::Own, PartImage::Sealed(above)]
        );
        house.stop_all().await;
        eventually("all slots are given back", || house.records() == 0).await;
        house
            .runtime
            .remove_builds(&[below, above, build])
            .await
            .expect("they are removed");
        assert!(!house.on_volume(&format!("sealed/{above}.img")).exists());
        let images = Taken(parts.images);
        for again in 0..2 {
            let assembled = house
                .runtime
                .assemble(build, &parts.record, parts.given.clone(), &images);
            assembled.await.expect("it comes back");
            let machine = begin(house, build).await;
            let said = run(&*machine, "user", "cat ~/low ~/high").await;
            assert_eq!(said, "sealed\nown\n", "{again}");
        }
    });
}

#[test]
fn what_is_ours_over_an_image_is_made_again_where_it_is_not() {
    with_house(async |house| {
        let image = BuildId::random();
        let base = busybox(house);
        let given = || vec![base.clone()];
        house
            .runtime
            .import(image, given())
            .await
            .expect("it is imported");
        let source = begin(house, image).await;
        run(&*source, "user", "echo low > ~/low").await;
        let (below, above) = (copy(&source).await, BuildId::random());
        house.runtime.seal(below, above).await.expect("it is sealed");
        let over = begin(house, above).await;
        run(&*over, "user", "echo own > ~/high; sudo touch /etc/ours").await;
        let build = copy(&over).await;
        let parts = house.runtime.parts(build).await.expect("its parts");
        assert_eq!(parts.given, given());
        house.stop_all().await;
        eventually("all slots are given back", || house.records() == 0).await;
        let all = [image, below, above, build];
        house.runtime.remove_builds(&all).await.expect("they are removed");
        let ours = || {
            let layers = std::fs::read_dir(house.dir.join("layers")).expect("the directory");
            layers
                .map(|entry| entry.expect("an entry").path())
                .collect::<Vec<_>>()
        };
        assert!(ours().is_empty(), "as on a node that never saw the image");
        let (record, images) = (parts.record, Taken(parts.images));
        // It is not made for a build that cannot be put together.
        let none = Taken(BTreeMap::new());
        let failed = house.runtime.assemble(build, &record, given(), &none).await;
        assert!(
            matches!(failed, Err(RuntimeError::CannotAssemble { .. })),
            "{failed:?}"
        );
        assert!(ours().is_empty() && !house.runtime.has_build(build).await);
        // Nor over nothing: that no image was below it.
        let text = record.to_string();
        let bare = serde_json::from_str(&text.replace(r#",{"given":0}"#, "")).expect("JSON");
        assert_ne!(bare, record);
        let refused = house.runtime.assemble(build, &bare, given(), &images).await;
        assert!(
            matches!(refused, Err(RuntimeError::CannotAssemble { .. })),
            "{refused:?}"
        );
        let assembled = house.runtime.assemble(build, &record, given(), &images).await;
        assembled.expect("it comes back");
        assert_eq!(house.runtime.layers_of(build).await, given());
        let made = ours();
        assert_eq!(made.len(), 1);
        assert_ne!(
            made[0].file_name(),
            Some(image.to_string().as_ref()),
            "its name is of what is below"
        );
        let machine = begin(house, build).await;
        let said = run(
            &*machine,
            "user",
            "cat ~/low ~/high; test -e /etc/ours; id -un; sudo id -u",
        )
        .await;
        assert_eq!(said, "low\nown\nuser\n0\n");
        // The image comes after all, and has its own.
        house
            .runtime
            .import(image, given())
            .await
            .expect("it is imported");
        assert_eq!(ours().len(), 2);
        assert_eq!(run(&*machine, "user", "cat ~/low").await, "low\n");
        assert_eq!(
            run(&*begin(house, image).await, "user", "sudo id -u").await,
            "0\n"
        );
        // What came goes on from here, as it came.
        let told = house.runtime.parts(build).await.expect("its parts");
        assert_eq!(told.given, given());
        let again = house
            .runtime
            .assemble(BuildId::random(), &told.record, given(), &images)
            .await;
        again.expect("it is put together");
        assert_eq!(ours().len(), 2);
        // It goes when nothing stands on it.
        house.stop_all().await;
        eventually("all slots are given back", || house.records() == 0).await;
        let all = house.runtime.builds().await;
        house.runtime.remove_builds(&all).await.expect("they are removed");
        assert!(ours().is_empty(), "{:?}", ours());
    });
}

#[test]
fn an_image_that_comes_again_leaves_alone_what_others_stand_on() {
    use std::os::unix::fs::MetadataExt as _;
    with_house(async |house| {
        let (image, base) = (BuildId::random(), busybox(house));
        let import = async || {
            house
                .runtime
                .import(image, vec![base.clone()])
                .await
                .expect("it is imported")
        };
        import().await;
        let machine = begin(house, image).await;
        let build = copy(&machine).await;
        house.stop_all().await;
        eventually("all slots are given back", || house.records() == 0).await;
        house
            .runtime
            .remove_builds(&[image])
            .await
            .expect("it is removed");
        let over = begin(house, build).await;
        let root = house.dir.join("layers").join(image.to_string()).join("root");
        let inode = || std::fs::metadata(&root).expect("it is there").ino();
        let before = inode();
        import().await;
        assert_eq!(inode(), before);
        assert_eq!(run(&*over, "user", "sudo id -u").await, "0\n");
    });
}

#[test]
fn whose_disk_began_as_a_copy_of_whose_is_remembered() {
    with_house(async |house| {
        let source = house.start().await;
        let first = copy(&source).await;
        assert!(
            house.runtime.kin_of(first).await.is_empty(),
            "its disk began blank"
        );
        // Whoever of a sandbox's machines has its disk.
        let sandbox = source.sandbox();
        source.stop(Disk::Keep).await.expect("it stops");
        let kept = MachineSpec {
            sandbox,
            disk: DiskOrigin::Kept,
            ..house.spec()
        };
        let again = house.runtime.start(kept).await.expect("it starts again");
        let again = house.adopt(again);
        let second = copy(&again).await;
        assert_eq!(house.runtime.kin_of(second).await, [first]);
        let child = begin(house, second).await;
        let (third, fourth) = (copy(&child).await, copy(&child).await);
        assert_eq!(house.runtime.kin_of(third).await, [second, first]);
        assert_eq!(house.runtime.kin_of(fourth).await, [third, second, first]);
        let sealed = BuildId::random();
        house.runtime.seal(fourth, sealed).await.expect("it is sealed");
        assert_eq!(house.runtime.kin_of(sealed).await, [fourth, third, second, first]);
        let over = begin(house, sealed).await;
        let fifth = copy(&over).await;
        assert_eq!(house.runtime.kin_of(fifth).await, [sealed], "it stands on that");
        assert!(house.runtime.kin_of(BuildId::random()).await.is_empty());
        let copies = || {
            let kept = house.on_volume("kept/x");
            let entries = std::fs::read_dir(kept.parent().expect("its directory")).expect("the directory");
            entries.count()
        };
        assert_eq!(copies(), 3, "notes of three disks");
        house.stop_all().await;
        eventually("what is gone is forgotten", || copies() == 0).await;
    });
}

#[test]
fn what_cannot_be_put_together_leaves_nothing() {
    with_house(async |house| {
        let source = house.start().await;
        let build = copy(&source).await;
        let parts = house.runtime.parts(build).await.expect("its parts");
        let none = Taken(BTreeMap::new());
        let into = BuildId::random();
        let refused = house
            .runtime
            .assemble(into, &parts.record, parts.given.clone(), &none)
            .await;
        assert!(
            matches!(refused, Err(RuntimeError::CannotAssemble { .. })),
            "{refused:?}"
        );
        let whole = Taken(parts.images);
        let text = parts.record.to_string();
        let made = |build: &str, part: &str| format!(r#"{{"made":{{"build":"{build}","part":"{part}"}}}}"#);
        let (here, elsewhere) = (house.spec().build.to_string(), BuildId::random().to_string());
        let layer = r#"{"given":0}"#;
        assert!(
            text.contains(layer) && text.contains("\"upper\":\"root\""),
            "{text}"
        );
        let wrongs = [
            // Made on another machine; names that lead out; layers that nobody gave; another form; more than is known.
            text.replace(layer, &made(&elsewhere, "root")),
            text.replace(layer, &made(&here, "../../builds")),
            text.replace(layer, &made(&here, "/etc")),
            text.replace(layer, r#"{"given":77}"#),
            text.replace("\"upper\":\"root\"", "\"upper\":\"../../etc\""),
            text.replace("\"target\":\"/\"", "\"target\":\"/../x\""),
            text.replace("\"form\":1", "\"form\":99"),
            text.replacen('{', "{\"more\":1,", 1),
            r#"{"form":1,"overlays":[],"disk":null}"#.to_owned(),
        ];
        for wrong in wrongs {
            assert_ne!(wrong, text);
            let record = serde_json::from_str(&wrong).expect("JSON");
            let refused = house
                .runtime
                .assemble(into, &record, parts.given.clone(), &whole)
                .await;
            assert!(
                matches!(refused, Err(RuntimeError::CannotAssemble { .. })),
                "{wrong}: {refused:?}"
            );
        }
        assert!(!house.runtime.has_build(into).await);
        let own = house.on_volume(&format!("builds/{build}.img"));
        let left = std::fs::read_dir(own.parent().expect("its directory")).expect("the directory");
        assert_eq!(left.count(), 1, "the copy alone");
    });
}
