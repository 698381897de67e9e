use super::*;

fn checked_in() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/nomad")
}

/// `ATOLL_TEST_RENDER=1 cargo test -p cluster deploy_nomad` writes them anew.
#[test]
fn deploy_nomad_is_what_is_rendered_by_default() {
    let files = render(&Deployment::default()).unwrap();
    if std::env::var_os("ATOLL_TEST_RENDER").is_some() {
        for file in &files {
            std::fs::write(checked_in().join(&file.name), &file.content).unwrap();
        }
    }
    for file in &files {
        let found = std::fs::read_to_string(checked_in().join(&file.name)).unwrap_or_default();
        assert_eq!(found, file.content, "{} is not what is rendered", file.name);
    }
    let there = std::fs::read_dir(checked_in()).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.ends_with(".hcl").then_some(name)
    });
    assert_eq!(there.count(), files.len(), "nothing else is there");
}

#[test]
fn what_nomad_could_take_for_something_else_is_refused() {
    let good = Deployment::default;
    let share = |count| Share { count, ..good().api };
    for (wrong, what) in [
        (
            Deployment {
                region: Some("${x}".to_owned()),
                ..good()
            },
            "region",
        ),
        (
            Deployment {
                namespace: Some("A".to_owned()),
                ..good()
            },
            "namespace",
        ),
        (
            Deployment {
                datacenters: Vec::new(),
                ..good()
            },
            "datacentres",
        ),
        (
            Deployment {
                datacenters: vec!["dc1".to_owned(), "x\n".to_owned()],
                ..good()
            },
            "datacentre",
        ),
        (
            Deployment {
                program: "atoll".to_owned(),
                ..good()
            },
            "program",
        ),
        (
            Deployment {
                program: "/bin/sh -c x".to_owned(),
                ..good()
            },
            "program",
        ),
        (
            Deployment {
                data: "/var/../etc".to_owned(),
                ..good()
            },
            "data",
        ),
        (
            Deployment {
                configuration: Configuration::File("/etc/${x}".to_owned()),
                ..good()
            },
            "configuration",
        ),
        (
            Deployment {
                api_port: 0,
                ..good()
            },
            "ports",
        ),
        (
            Deployment {
                api_port: 5008,
                ..good()
            },
            "ports",
        ),
        (
            Deployment {
                api: share(0),
                ..good()
            },
            "count",
        ),
        (
            Deployment {
                node: Share {
                    count: 3,
                    ..good().node
                },
                ..good()
            },
            "count",
        ),
        (
            Deployment {
                edge: Share {
                    memory_mib: 1,
                    ..good().edge
                },
                ..good()
            },
            "share",
        ),
        (
            Deployment {
                canaries: 3,
                ..good()
            },
            "canaries",
        ),
        (
            Deployment {
                node_pools: ("a b".to_owned(), "default".to_owned()),
                ..good()
            },
            "pool",
        ),
    ] {
        let refused = render(&wrong).unwrap_err();
        assert!(refused.what.contains(what), "{refused}");
    }
}

#[test]
fn secrets_of_a_variable_are_written_for_the_task_alone() {
    let deployment = Deployment {
        configuration: Configuration::Variable,
        region: Some("eu".to_owned()),
        namespace: Some("atoll".to_owned()),
        ..Deployment::default()
    };
    for file in render(&deployment).unwrap() {
        assert!(
            file.content.contains("perms                = \"0600\""),
            "{}",
            file.content
        );
        assert!(
            file.content.contains("${NOMAD_SECRETS_DIR}/atoll.toml"),
            "{}",
            file.content
        );
        assert!(
            file.content.contains("nomadVar \"nomad/jobs/atoll-"),
            "{}",
            file.content
        );
        assert!(!file.content.contains("/etc/atoll"), "{}", file.content);
        assert!(file.content.contains("region      = \"eu\""), "{}", file.content);
    }
}
