use super::*;

const OLD: &str = r#"{"overlays":[{"target":"/usr","layers":["/a/usr","/usr"],"upper":"usr"}]}"#;

#[test]
fn records_of_the_first_form_are_understood() {
    let build: Build = serde_json::from_str(OLD).unwrap();
    assert_eq!(build.form, 0);
    assert_eq!(build.disk, None);
    assert_eq!(build.memory, Memory::None);
    assert_eq!(
        build.dirs().collect::<Vec<_>>(),
        [Path::new("/a/usr"), Path::new("/usr")]
    );
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let builds = Builds::open(dir.path()).unwrap();
    let (id, sealed) = (BuildId::random(), BuildId::random());
    let build = Build {
        disk: Some(MiB(512)),
        ..Build::of(vec![Overlay {
            target: "/".into(),
            layers: vec![
                Layer::Sealed {
                    sealed,
                    upper: "root".into(),
                },
                Layer::Dir(builds.layers(id).join("root")),
            ],
            upper: "root".into(),
        }])
    };
    builds.put(id, &build).unwrap();
    assert_eq!(builds.get(id).unwrap(), Some(build));
    assert_eq!(builds.all(), [id]);
    let used = builds.in_use().unwrap();
    assert!(used.known.contains(&id) && used.sealed.contains(&sealed) && used.layers.contains(&id));
    builds.forget(id).unwrap();
    builds.forget(id).unwrap();
    assert_eq!(builds.get(id).unwrap(), None);
}

#[test]
fn a_lineage_is_told_from_the_nearest_on_each_once_and_ends_at_a_bound() {
    let ids: Vec<BuildId> = (0..30).map(|_| BuildId::random()).collect();
    let blank = Build::of(Vec::new());
    assert_eq!(lineage(&[], Some((ids[0], &blank))), [], "it began blank");
    assert_eq!(lineage(&ids[..2], Some((ids[5], &blank))), ids[..2]);
    let with_disk = Build {
        disk: Some(MiB(64)),
        lineage: vec![ids[1], ids[3]],
        ..blank
    };
    assert_eq!(lineage(&[], Some((ids[2], &with_disk))), [ids[2], ids[1], ids[3]]);
    assert_eq!(
        lineage(&ids[..2], Some((ids[2], &with_disk))),
        ids[..4],
        "one that is in both is told once"
    );
    assert_eq!(lineage(&ids, Some((ids[0], &with_disk))), ids[..LINEAGE_MAX]);
    // In its record.
    let told = serde_json::to_string(&with_disk).unwrap();
    assert_eq!(serde_json::from_str::<Build>(&told).unwrap(), with_disk);
}

#[test]
fn a_record_of_a_newer_form_is_refused_and_nothing_is_taken_for_unused() {
    let dir = tempfile::tempdir().unwrap();
    let builds = Builds::open(dir.path()).unwrap();
    let id = BuildId::random();
    fs::write(
        builds.path(id),
        format!(r#"{{"form":{},"overlays":[]}}"#, FORM + 1),
    )
    .unwrap();
    assert!(builds.get(id).is_err());
    assert!(builds.in_use().is_err());
}

#[test]
fn roots_have_a_bounded_number_of_layers() {
    let of = |layers: usize| {
        Build::of(vec![Overlay {
            target: "/".into(),
            layers: vec![Layer::Dir("/x".into()); layers],
            upper: "root".into(),
        }])
    };
    assert!(of(LAYERS_MAX).is_bounded().is_ok());
    assert!(
        of(LAYERS_MAX + 1)
            .is_bounded()
            .unwrap_err()
            .contains("129 layers")
    );
}
