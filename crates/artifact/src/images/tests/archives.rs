//! Images out of files.
use super::*;
use crate::testing::gzip;

fn layout(picture: &Picture, annotations: &serde_json::Value) -> Vec<(String, Vec<u8>)> {
    let mut entry = picture.descriptor(own_architecture());
    entry["annotations"] = annotations.clone();
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index(&[entry])),
    ];
    for blob in picture.blobs().chain([picture.manifest.as_slice()]) {
        files.push((format!("blobs/sha256/{}", Digest::of(blob).hex()), blob.to_vec()));
    }
    files
}

fn saved(picture: &Picture, tags: &[&str]) -> Vec<(String, Vec<u8>)> {
    let names: Vec<String> = (0..picture.layers.len())
        .map(|at| format!("{at}/layer.tar"))
        .collect();
    let config = format!("{}.json", Digest::of(&picture.config).hex());
    let mut files = vec![(config.clone(), picture.config.clone())];
    for (name, (layer, kind, _)) in names.iter().zip(&picture.layers) {
        // As Docker writes them: not compressed.
        let mut tar = Vec::new();
        match *kind {
            crate::testing::GZIP => {
                std::io::copy(&mut flate2::read::GzDecoder::new(&layer[..]), &mut tar).unwrap()
            }
            _ => std::io::copy(&mut zstd::Decoder::new(&layer[..]).unwrap(), &mut tar).unwrap(),
        };
        files.push((name.clone(), tar));
    }
    let manifest = serde_json::json!([{"Config": config, "RepoTags": tags, "Layers": names}]);
    files.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    files
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files
        .iter()
        .fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes))
        .end()
}

fn write(house: &House, name: &str, bytes: &[u8]) -> PathBuf {
    let path = house.dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

macro_rules! needs_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: unpacks layers, run it as root");
            return;
        }
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_is_imported_as_a_directory_a_tar_or_a_gzipped_tar() {
    needs_root!();
    let picture = two();
    let files = layout(
        &picture,
        &serde_json::json!({"io.containerd.image.name": "docker.io/library/app:1", "org.opencontainers.image.ref.name": "1"}),
    );
    let house = House::new(&[]);
    let dir = house.dir.path().join("layout");
    for (name, bytes) in &files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let whole = write(&house, "whole.tar", &tar(&files));
    let zipped = write(&house, "whole.tgz", &gzip(&tar(&files)));
    for path in [dir, whole, zipped] {
        let (imported, image) = house.images.import(&path, None, None).await.unwrap();
        assert_eq!(
            (imported.name.as_str(), imported.digest, image.digest),
            ("docker.io/library/app:1", picture.digest(), picture.digest())
        );
        assert_eq!(read(&image.layers[0], "bin/sh"), "shell");
        assert!(house.images.forget("app:1").await.unwrap());
    }
    assert!(!house.images.forget("app:1").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_image_is_found_by_its_name_and_its_layers_stay() {
    needs_root!();
    let picture = two();
    let house = House::new(&[]);
    let path = write(
        &house,
        "saved.tar",
        &tar(&saved(&picture, &["app:1", "other/app:2"])),
    );
    let (imported, image) = house.images.import(&path, None, None).await.unwrap();
    assert_eq!(
        (imported.name.as_str(), imported.digest),
        ("docker.io/library/app:1", Digest::of(&picture.config))
    );
    drop(image);
    let evicted = house
        .images
        .layers
        .evict_unused_for(0, &HashSet::new(), std::time::Duration::ZERO);
    assert_eq!(
        evicted.unwrap().layers,
        2,
        "without what is imported in use, nothing holds them"
    );
    assert!(matches!(
        house.images.pull("app:1", None, None).await,
        Err(PullError::NotFound { .. })
    ));
    house
        .images
        .import(&path, Some("other/app:2"), Some("mine.lan/app"))
        .await
        .unwrap();
    assert_eq!(
        house
            .images
            .imported()
            .await
            .unwrap()
            .iter()
            .map(|image| image.name.as_str())
            .collect::<Vec<_>>(),
        ["docker.io/library/app:1", "mine.lan/app:latest"]
    );
    let image = house.images.pull("mine.lan/app", None, None).await.unwrap();
    assert_eq!(
        house.images.resolve("mine.lan/app", None).await.unwrap(),
        image.digest
    );
    let pinned = format!("mine.lan/app@{}", image.digest);
    assert_eq!(
        house.images.pull(&pinned, None, None).await.unwrap().layers,
        image.layers
    );
    assert_eq!(house.images.evict(0, HashSet::new()).await.unwrap().layers, 0);
    assert_eq!(read(&image.layers[1], "bin/new"), "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_between_layers_of_old_archives_are_followed_within_them() {
    needs_root!();
    let picture = own(&[Tar::new().file("a", b"1").end(), Tar::new().file("a", b"1").end()]);
    let files = saved(&picture, &["app:1"]);
    let mut archive = Tar::new();
    for (name, bytes) in &files {
        archive = match name.as_str() {
            "1/layer.tar" => archive.symlink(name, "../0/layer.tar"),
            _ => archive.file(name, bytes),
        };
    }
    let house = House::new(&[]);
    let path = write(&house, "old.tar", &archive.end());
    assert_eq!(
        house
            .images
            .import(&path, None, None)
            .await
            .unwrap()
            .1
            .layers
            .len(),
        2
    );
    let endless = Tar::new()
        .symlink("index.json", "x")
        .symlink("x", "index.json")
        .end();
    let path = write(&house, "endless.tar", &endless);
    assert!(matches!(
        house.images.import(&path, None, None).await,
        Err(PullError::Archive { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_with_the_reason() {
    needs_root!();
    let house = House::new(&[]);
    let name = serde_json::json!({"org.opencontainers.image.ref.name": "app:1"});
    let picture = two();
    let mut broken = layout(&picture, &name);
    broken.last_mut().unwrap().1.push(b' ');
    let mut cut = tar(&saved(&picture, &["app:1"]));
    cut.truncate(3 * 512);
    let unnamed = layout(&picture, &serde_json::json!({}));
    let foreign = saved(&Picture::of(&[Tar::new().end()], "s390x"), &["app:1"]);
    let mut several = layout(&picture, &name);
    several[1].1 = {
        let mut other = picture.descriptor(own_architecture());
        other["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "app:2"});
        let mut first = other.clone();
        first["annotations"] = name.clone();
        index(&[first, other])
    };
    for (bytes, word) in [
        (b"hello".to_vec(), "broken off or ends"),
        (Tar::new().file("x", b"").end(), "neither an index.json"),
        (tar(&broken), "digest"),
        (cut, ""),
        (tar(&unnamed), "give it a name"),
        (tar(&foreign), "linux/s390x"),
        (tar(&several), "app:2"),
        (Tar::new().file("index.json", b"{}").end(), ""),
        (
            Tar::new()
                .file("manifest.json", br#"[{"Config":"../../etc/passwd","Layers":[]}]"#)
                .end(),
            "no configuration",
        ),
    ] {
        let path = write(&house, "bad.tar", &bytes);
        let error = house.images.import(&path, None, None).await.unwrap_err();
        assert_eq!(error.kind(), model::Kind::Invalid, "{error:?}");
        assert!(
            word == "broken off or ends" || error.to_string().contains(word),
            "{error}"
        );
        assert!(house.layers().is_empty(), "{error}");
    }
    let path = write(&house, "several.tar", &tar(&several));
    assert_eq!(
        house
            .images
            .import(&path, Some("app:2"), None)
            .await
            .unwrap()
            .0
            .name,
        "docker.io/library/app:2"
    );
    assert!(
        house
            .images
            .import(std::path::Path::new("/dev/null"), None, None)
            .await
            .is_err()
    );
    assert!(
        house
            .images
            .import(std::path::Path::new("/nowhere"), None, None)
            .await
            .is_err()
    );
    // A directory whose links lead out of it.
    let dir = house.dir.path().join("linked");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("index.json")).unwrap();
    let error = house.images.import(&dir, None, None).await.unwrap_err();
    assert!(error.to_string().contains("leads out"), "{error}");
}
