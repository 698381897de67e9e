//! Images from a real registry, from ways that break, from liars, and from archives.
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use model::Secret;
use model::recipe::RegistryCredentials;
use rand::RngCore as _;
use tokio::sync::mpsc;

use super::*;
use crate::testing::{INDEX, Picture, Raw, Tar, index, own_architecture};

mod archives;
mod house;
mod liars;

use house::{Cutter, House, PASSWORD, Registry, USER, cannot, policy};

macro_rules! needs_registry {
    () => {
        if let Some(why) = cannot() {
            eprintln!("SKIPPED: {why}");
            return;
        }
    };
}

fn own(tars: &[Vec<u8>]) -> Picture {
    Picture::of(tars, own_architecture())
}

/// Two layers: the upper deletes, adds and replaces.
fn two() -> Picture {
    own(&[
        Tar::new()
            .dir("bin")
            .file("bin/old", b"old")
            .file("bin/sh", b"shell")
            .end(),
        Tar::new()
            .dir("bin")
            .file("bin/.wh.old", b"")
            .file("bin/new", b"new")
            .end(),
    ])
}

fn random(bytes: usize) -> Vec<u8> {
    let mut random = vec![0; bytes];
    rand::rng().fill_bytes(&mut random);
    random
}

fn password() -> RegistryCredentials {
    RegistryCredentials::Basic {
        username: USER.to_owned(),
        password: Secret::new(PASSWORD.to_owned()),
    }
}

fn events() -> (Progress, mpsc::Receiver<PullEvent>) {
    mpsc::channel(10_000)
}

async fn all(mut receive: mpsc::Receiver<PullEvent>) -> Vec<PullEvent> {
    let mut all = Vec::new();
    while let Some(event) = receive.recv().await {
        all.push(event);
    }
    all
}

fn read(path: &Path, name: &str) -> String {
    fs::read_to_string(path.join(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_with_its_layers_its_settings_and_its_digest() {
    needs_registry!();
    let registry = Registry::start(false).await;
    let picture = two();
    registry.push("team/app", "1.0", &picture).await;
    let house = House::new(&[registry.address]);
    let name = format!("{}/team/app:1.0", registry.address);
    assert_eq!(house.images.resolve(&name, None).await.unwrap(), picture.digest());
    let (send, receive) = events();
    let image = house.images.pull(&name, None, Some(send)).await.unwrap();
    assert_eq!(image.digest, picture.digest());
    assert_eq!(
        image.config.env,
        [("PATH".into(), "/bin".into()), ("EMPTY".into(), String::new())]
    );
    assert_eq!(
        (image.config.workdir.as_deref(), image.config.user.as_deref()),
        (Some("/srv"), Some("1000:1000"))
    );
    assert_eq!(
        (image.config.cmd.as_slice(), image.config.ports.as_slice()),
        (["sh".to_owned()].as_slice(), ["80/tcp".to_owned()].as_slice())
    );
    let [lower, upper] = image.layers.as_slice() else {
        panic!("{:?}", image.layers)
    };
    assert_eq!(
        (
            read(lower, "bin/old"),
            read(lower, "bin/sh"),
            read(upper, "bin/new")
        ),
        ("old".into(), "shell".into(), "new".into())
    );
    let gone = fs::symlink_metadata(upper.join("bin/old")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(lower.ends_with(picture.layers[0].2.hex()));
    let events = all(receive).await;
    assert!(
        matches!(&events[0], PullEvent::Resolved { digest, layers: 2, .. } if *digest == picture.digest())
    );
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, PullEvent::Unpacked { .. }))
            .count(),
        2
    );
    let whole = |layer: &Vec<u8>| PullEvent::Progress {
        layer: Digest::of(layer),
        bytes: layer.len() as u64,
        total: layer.len() as u64,
    };
    assert!(
        picture
            .layers
            .iter()
            .all(|(layer, ..)| events.contains(&whole(layer)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_there_are_not_fetched_again_also_after_a_restart() {
    needs_registry!();
    let registry = Registry::start(false).await;
    registry.push("app", "a", &two()).await;
    let mut house = House::new(&[registry.address]);
    let name = format!("{}/app:a", registry.address);
    house.images.pull(&name, None, None).await.unwrap();
    let dir = house.dir.path().join("images");
    for junk in [".partial-7", ".trash-1"] {
        fs::create_dir_all(dir.join("layers").join(junk).join("deep")).unwrap();
    }
    drop(house.images);
    house.images = Images::open(&dir, policy(&[registry.address])).unwrap();
    assert_eq!(house.layers().len(), 2, "what was half made is swept");
    let (send, receive) = events();
    house.images.pull(&name, None, Some(send)).await.unwrap();
    let events = all(receive).await;
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, PullEvent::Present { .. }))
            .count(),
        2,
        "{events:?}"
    );
    assert_eq!(events.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_this_machines_image_is_taken() {
    needs_registry!();
    let registry = Registry::start(false).await;
    let (mine, other) = (two(), Picture::of(&[Tar::new().file("x", b"").end()], "s390x"));
    for picture in [&mine, &other] {
        registry
            .push("multi", &picture.digest().to_string(), picture)
            .await;
    }
    let both = index(&[other.descriptor("s390x"), mine.descriptor(own_architecture())]);
    registry.push_document("multi", "both", INDEX, &both).await;
    registry
        .push_document("multi", "foreign", INDEX, &index(&[other.descriptor("s390x")]))
        .await;
    let house = House::new(&[registry.address]);
    let name = |tag: &str| format!("{}/multi{tag}", registry.address);
    let image = house.images.pull(&name(":both"), None, None).await.unwrap();
    assert_eq!(image.digest, mine.digest());
    let by_digest = house
        .images
        .pull(&name(&format!("@{}", Digest::of(&both))), None, None)
        .await
        .unwrap();
    assert_eq!(by_digest.digest, mine.digest());
    for foreign in [":foreign".to_owned(), format!("@{}", other.digest())] {
        match house.images.pull(&name(&foreign), None, None).await {
            Err(PullError::Architecture { offers, .. }) => assert_eq!(offers, ["linux/s390x"]),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_needs_the_right_password_and_says_so() {
    needs_registry!();
    let registry = Registry::start(true).await;
    registry.push("app", "a", &two()).await;
    let house = House::new(&[registry.address]);
    let name = format!("{}/app:a", registry.address);
    let wrong = RegistryCredentials::Basic {
        username: USER.to_owned(),
        password: Secret::new("close sesame".to_owned()),
    };
    for (credentials, word) in [
        (None, "give credentials"),
        (Some(&wrong), "check the name, and that the credentials"),
    ] {
        let error = house.images.pull(&name, credentials, None).await.unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(house.layers().is_empty());
    assert_eq!(
        house
            .images
            .pull(&name, Some(&password()), None)
            .await
            .unwrap()
            .layers
            .len(),
        2
    );
    // What was fetched for one is not given to another who cannot read it.
    assert!(house.images.pull(&name, None, None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_there_are_told_as_such() {
    needs_registry!();
    let registry = Registry::start(false).await;
    registry.push("app", "a", &two()).await;
    let house = House::new(&[registry.address]);
    for name in ["app:b", "nothing:a"] {
        let error = house
            .images
            .resolve(&format!("{}/{name}", registry.address), None)
            .await
            .unwrap_err();
        assert!(matches!(error, PullError::NotFound { .. }), "{error:?}");
        assert_eq!(error.kind(), model::Kind::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_gone_on_with_where_it_broke() {
    needs_registry!();
    let registry = Registry::start(false).await;
    let body = random(3 << 20);
    let picture = own(&[Tar::new().file("big", &body).end()]);
    registry.push("app", "a", &picture).await;
    let cutter = Cutter::start(registry.address, 1 << 20, 3).await;
    let house = House::new(&[cutter.address]);
    let (send, receive) = events();
    let image = house
        .images
        .pull(&format!("{}/app:a", cutter.address), None, Some(send))
        .await
        .unwrap();
    assert_eq!(fs::read(image.layers[0].join("big")).unwrap(), body);
    assert_eq!(cutter.cuts.load(Ordering::SeqCst), 3);
    let from: Vec<u64> = all(receive)
        .await
        .into_iter()
        .filter_map(|event| match event {
            PullEvent::Again { bytes, .. } => Some(bytes),
            _ => None,
        })
        .collect();
    assert_eq!(from.len(), 3);
    assert!(
        from.iter().all(|at| *at > 0) && from.windows(2).all(|pair| pair[0] < pair[1]),
        "{from:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_always_breaks_is_given_up_and_leaves_nothing() {
    needs_registry!();
    let registry = Registry::start(false).await;
    registry
        .push(
            "app",
            "a",
            &own(&[Tar::new().file("big", &random(1 << 20)).end()]),
        )
        .await;
    let cutter = Cutter::start(registry.address, 4096, usize::MAX).await;
    let house = House::new(&[cutter.address]);
    let error = house
        .images
        .pull(&format!("{}/app:a", cutter.address), None, None)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Away { .. }), "{error:?}");
    assert!(house.layers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_the_registry_when_they_have_it_not() {
    needs_registry!();
    let (origin, mirror) = (Registry::start(true).await, Registry::start(false).await);
    let (there, here) = (two(), own(&[Tar::new().file("mirrored", b"").end()]));
    origin.push("app", "a", &there).await;
    origin.push("app", "b", &there).await;
    mirror.push("hub/app", "a", &here).await;
    let mut policy = policy(&[origin.address]);
    policy
        .registries
        .get_mut(&origin.address.to_string())
        .unwrap()
        .mirrors = vec!["127.0.0.1:1".to_owned(), format!("{}/hub", mirror.address)];
    let house = House::with(policy.clone());
    let name = |tag: &str| format!("{}/app:{tag}", origin.address);
    assert_eq!(
        house.images.resolve(&name("a"), None).await.unwrap(),
        here.digest()
    );
    assert_eq!(
        house
            .images
            .pull(&name("b"), Some(&password()), None)
            .await
            .unwrap()
            .digest,
        there.digest()
    );
    policy
        .registries
        .get_mut(&origin.address.to_string())
        .unwrap()
        .mirrors_only = true;
    let alone = House::with(policy);
    assert!(matches!(
        alone.images.resolve(&name("b"), Some(&password())).await,
        Err(PullError::NotFound { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_of_one_image_fetch_it_once() {
    needs_registry!();
    let registry = Registry::start(false).await;
    registry
        .push(
            "app",
            "a",
            &own(&[Tar::new().file("big", &random(1 << 20)).end()]),
        )
        .await;
    let house = House::new(&[registry.address]);
    let name = format!("{}/app:a", registry.address);
    let (send, receive) = events();
    let pulls = (0..8).map(|_| house.images.pull(&name, None, Some(send.clone())));
    let done = futures_util::future::join_all(pulls).await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    drop(send);
    let events = all(receive).await;
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, PullEvent::Unpacked { .. }))
            .count(),
        1
    );
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, PullEvent::Present { .. }))
            .count(),
        7
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_given_up_leaves_nothing_half_made() {
    needs_registry!();
    let registry = Registry::start(false).await;
    registry
        .push(
            "app",
            "a",
            &own(&[Tar::new().file("big", &random(8 << 20)).end()]),
        )
        .await;
    let house = House::new(&[registry.address]);
    let name = format!("{}/app:a", registry.address);
    let (send, mut receive) = events();
    {
        let pull = house.images.pull(&name, None, Some(send));
        tokio::pin!(pull);
        tokio::select! {
            done = &mut pull => panic!("{done:?} was not to be awaited"),
            _ = async { while !matches!(receive.recv().await, Some(PullEvent::Progress { .. })) {} } => {}
        }
    }
    for _ in 0..400 {
        if house.layers().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("{:?}", house.layers());
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_upper_layers_imply_stay_as_lower_ones_say() {
    needs_registry!();
    let registry = Registry::start(false).await;
    let lower = Tar::new()
        .raw(&Raw {
            path: b"tmp",
            flag: b'5',
            mode: 0o1777,
            ..Raw::PLAIN
        })
        .dir("home")
        .raw(&Raw {
            path: b"home/user",
            flag: b'5',
            mode: 0o750,
            uid: 1000,
            gid: 1000,
            ..Raw::PLAIN
        })
        .dir("gone")
        .end();
    let middle = Tar::new()
        .file("home/user/.ssh/config", b"")
        .file("tmp/x", b"")
        .file("own/y", b"")
        .end();
    let upper = Tar::new()
        .raw(&Raw {
            path: b"home",
            flag: b'5',
            mode: 0o711,
            ..Raw::PLAIN
        })
        .file(".wh.gone", b"")
        .file("gone/z", b"")
        .file("home/user/f", b"")
        .end();
    registry.push("app", "a", &own(&[lower, middle, upper])).await;
    let house = House::new(&[registry.address]);
    let image = house
        .images
        .pull(&format!("{}/app:a", registry.address), None, None)
        .await
        .unwrap();
    assert_eq!(image.layers.len(), 4);
    let top = image.layers.last().unwrap();
    let meta = |path: &str| fs::metadata(top.join(path)).unwrap();
    assert_eq!(
        (meta("tmp").mode() & 0o7777, meta("tmp").mtime()),
        (0o1777, 1_500_000_000)
    );
    assert_eq!(
        (meta("home/user").mode() & 0o7777, meta("home/user").uid()),
        (0o750, 1000)
    );
    assert_eq!(
        meta("home").mode() & 0o7777,
        0o711,
        "the way there is as it is seen"
    );
    assert!(!top.join("gone").exists() && !top.join("own").exists() && !top.join("home/user/.ssh").exists());
    // It is made once.
    let again = house
        .images
        .pull(&format!("{}/app:a", registry.address), None, None)
        .await
        .unwrap();
    assert_eq!(again.layers, image.layers);
    assert_eq!(house.layers().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_no_larger_than_allowed() {
    needs_registry!();
    let registry = Registry::start(false).await;
    registry
        .push(
            "app",
            "bomb",
            &own(&[Tar::new().file("zeros", &vec![0; 4 << 20]).end()]),
        )
        .await;
    registry
        .push(
            "app",
            "sum",
            &own(&[
                Tar::new().file("a", &vec![0; 700 << 10]).end(),
                Tar::new().file("b", &vec![0; 700 << 10]).end(),
            ]),
        )
        .await;
    let house = House::with(Policy {
        image_bytes_max: 1 << 20,
        ..policy(&[registry.address])
    });
    let error = house
        .images
        .pull(&format!("{}/app:bomb", registry.address), None, None)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PullError::Layer {
                source: crate::layer::LayerError::TooLarge { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert!(house.layers().is_empty());
    let error = house
        .images
        .pull(&format!("{}/app:sum", registry.address), None, None)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::TooLarge { .. }), "{error:?}");
}

/// What a shell sees in the root that overlayfs makes of layers.
fn seen(layers: &[PathBuf], script: &str) -> String {
    let (root, nothing) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A mount without an upper has at least two layers.
    let lower = layers.iter().rev().map(PathBuf::as_path).chain([nothing.path()]);
    let lower: Vec<String> = lower.map(|layer| layer.display().to_string()).collect();
    let place = root.path().display();
    let mount = format!(
        "mount -t overlay overlay -o ro,lowerdir={} {place} && cd {place} && {script}",
        lower.join(":")
    );
    let done = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-ec", &mount])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn overlayfs_sees_what_the_layers_say() {
    needs_registry!();
    let registry = Registry::start(false).await;
    let lower = Tar::new()
        .raw(&Raw {
            path: b"tmp",
            flag: b'5',
            mode: 0o1777,
            ..Raw::PLAIN
        })
        .dir("d")
        .file("d/deleted", b"")
        .file("d/kept", b"")
        .dir("o")
        .file("o/hidden", b"")
        .dir("r")
        .file("r/hidden", b"")
        .file("f", b"lower");
    let upper = Tar::new()
        .dir("d")
        .file("d/.wh.deleted", b"")
        .dir("o")
        .file("o/.wh..wh..opq", b"")
        .file("o/new", b"")
        .file(".wh.r", b"")
        .file("r/new", b"")
        .file("tmp/x", b"")
        .file("f", b"upper");
    registry.push("app", "a", &own(&[lower.end(), upper.end()])).await;
    let hides = Tar::new().file(".wh..wh..opq", b"").file("alone", b"");
    registry
        .push(
            "app",
            "b",
            &own(&[Tar::new().file("below", b"").end(), hides.end()]),
        )
        .await;
    let house = House::new(&[registry.address]);
    let pull = async |tag: &str| {
        house
            .images
            .pull(&format!("{}/app:{tag}", registry.address), None, None)
            .await
            .unwrap()
    };
    let image = pull("a").await;
    assert_eq!(
        seen(&image.layers, "find . -type f | sort; cat f; stat -c %a tmp"),
        "./d/kept\n./f\n./o/new\n./r/new\n./tmp/x\nupper1777\n"
    );
    assert_eq!(seen(&pull("b").await.layers, "find . -type f"), "./alone\n");
}
