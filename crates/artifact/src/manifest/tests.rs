use serde_json::{Value, json};

use super::*;

fn digest() -> Value {
    json!(Digest::of(b""))
}

fn descriptor(media: &str) -> Value {
    json!({"mediaType": media, "digest": digest(), "size": 1})
}

fn manifest() -> Value {
    json!({"schemaVersion": 2, "config": descriptor(CONFIGS[0]), "layers": [descriptor(LAYERS[1])]})
}

fn parse(value: &Value) -> Result<Document, ManifestError> {
    Document::parse(value.to_string().as_bytes())
}

fn refused(value: &Value) -> String {
    parse(value).unwrap_err().to_string()
}

#[test]
fn manifests_of_oci_and_of_docker_are_understood() {
    assert!(matches!(parse(&manifest()), Ok(Document::Manifest(_))));
    let docker = json!({"schemaVersion": 2, "mediaType": MANIFESTS[1], "config": descriptor(CONFIGS[1]), "layers": [descriptor(LAYERS[4])]});
    assert!(matches!(parse(&docker), Ok(Document::Manifest(_))));
    let index = json!({"schemaVersion": 2, "mediaType": INDEXES[1], "manifests": []});
    assert_eq!(parse(&index), Ok(Document::Index(Vec::new())));
}

#[test]
fn what_is_no_image_of_a_machine_is_refused_with_the_reason() {
    let with = |key: &str, value: Value| {
        let mut manifest = manifest();
        manifest[key] = value;
        refused(&manifest)
    };
    for (why, word) in [
        (with("schemaVersion", json!(1)), "first schema"),
        (with("schemaVersion", json!(3)), "schemaVersion"),
        (with("mediaType", json!("text/plain")), "text/plain"),
        (
            with("config", descriptor("application/vnd.cncf.helm.config.v1+json")),
            "helm",
        ),
        (
            with(
                "config",
                json!({"mediaType": CONFIGS[0], "digest": digest(), "size": 5 << 20}),
            ),
            "longer",
        ),
        (
            with(
                "config",
                json!({"mediaType": CONFIGS[0], "digest": "sha256:..", "size": 1}),
            ),
            "digest",
        ),
        (
            with(
                "config",
                json!({"mediaType": CONFIGS[0], "digest": digest(), "size": -1}),
            ),
            "invalid",
        ),
        (with("layers", json!([])), "no layers"),
        (
            with(
                "layers",
                json!([descriptor(
                    "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
                )]),
            ),
            "encrypted",
        ),
        (
            with(
                "layers",
                json!([{"mediaType": LAYERS[1], "digest": digest(), "size": 1, "urls": ["https://x"]}]),
            ),
            "outside",
        ),
        (
            with(
                "layers",
                Value::Array(vec![descriptor(LAYERS[1]); LAYERS_MAX + 1]),
            ),
            "256",
        ),
        (with("manifests", json!([])), "at once"),
        (with("layers", Value::Null), "neither"),
    ] {
        assert!(why.contains(word), "{why} does not say {word}");
    }
    assert!(Document::parse(&vec![b' '; 5 << 20]).is_err());
    assert!(Document::parse("[".repeat(100_000).as_bytes()).is_err());
}

#[test]
fn this_machines_image_is_chosen_and_none_that_may_not_run() {
    let own = Platform::own().architecture;
    let entry = |os: &str, architecture: &str, variant: &str| -> Descriptor {
        serde_json::from_value(json!({"digest": Digest::of(variant.as_bytes()), "size": 1,
            "platform": {"os": os, "architecture": architecture, "variant": variant}}))
        .unwrap()
    };
    let all = [
        entry("windows", &own, ""),
        entry("linux", "s390x", ""),
        entry("linux", &own, "old"),
        entry("linux", &own, ""),
        entry("unknown", "unknown", ""),
    ];
    assert_eq!(choose(&all).unwrap().digest, Digest::of(b""));
    assert_eq!(choose(&all[..3]).unwrap().digest, Digest::of(b"old"));
    assert_eq!(
        choose(&[all[1].clone(), all[4].clone()]).unwrap_err(),
        ["linux/s390x"]
    );
    assert_eq!(choose(&[]).unwrap_err(), Vec::<String>::new());
    if own == "amd64" {
        assert_eq!(
            choose(&[entry("linux", "amd64", "v3")]).unwrap_err(),
            ["linux/amd64/v3"]
        );
    }
    let alone = Descriptor {
        platform: None,
        ..all[0].clone()
    };
    assert!(
        choose(std::slice::from_ref(&alone)).is_ok(),
        "its configuration will say"
    );
}

#[test]
fn a_configuration_is_read_within_its_bounds() {
    let config = |run: Value| {
        let text = json!({"os": "linux", "architecture": "amd64", "config": run, "history": [{}], "rootfs": {"type": "layers", "diff_ids": [digest()]}});
        Config::parse(text.to_string().as_bytes())
    };
    let whole = config(json!({"Env": ["A=b=c", "E="], "WorkingDir": "", "User": "1:2", "Entrypoint": ["/x"], "Cmd": null, "ExposedPorts": {"1/tcp": {}}, "Labels": {"a": "b"}})).unwrap();
    assert_eq!(
        whole.run.env,
        [
            ("A".to_owned(), "b=c".to_owned()),
            ("E".to_owned(), String::new())
        ]
    );
    assert_eq!(
        (whole.run.workdir, whole.run.user.as_deref(), whole.run.cmd.len()),
        (None, Some("1:2"), 0)
    );
    assert_eq!(config(Value::Null).unwrap().run, ImageConfig::default());
    for run in [
        json!({"Env": ["=x"]}),
        json!({"Env": ["x"]}),
        json!({"Env": ["x=a\0b"]}),
        json!({"Cmd": vec!["x"; WORDS_MAX + 1]}),
        json!({"Cmd": ["x".repeat(WORD_BYTES_MAX + 1)]}),
        json!({"Cmd": vec!["x".repeat(100_000); 11]}),
        json!({"User": "a\0"}),
    ] {
        assert!(config(run).is_err());
    }
    for root in [
        json!({"type": "tree", "diff_ids": []}),
        json!({"type": "layers", "diff_ids": ["sha512:x"]}),
        json!({"type": "layers", "diff_ids": vec![digest(); LAYERS_MAX + 1]}),
    ] {
        assert!(Config::parse(json!({"rootfs": root}).to_string().as_bytes()).is_err());
    }
}
