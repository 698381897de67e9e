use model::Secret;
use serde_json::{Value, json};

use super::*;

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn parsed(body: Value) -> Result<Recipe, ApiError> {
    recipe(serde_json::from_value(body).unwrap())
}

/// One step's action.
#[track_caller]
fn check(step: Value, expected: Action) {
    let recipe = parsed(json!({"steps": [step]})).unwrap();
    assert_eq!(recipe.steps[0].action, expected);
}

#[track_caller]
fn refused(body: Value, names: &str) {
    let error = parsed(body).unwrap_err();
    assert_eq!(error.status(), 400);
    assert!(error.message().contains(names), "{}", error.message());
}

fn copied(destination: &str, owner: Option<&str>, mode: Option<u32>) -> Action {
    Action::Copy {
        source: "src/*.py".to_owned(),
        destination: destination.to_owned(),
        owner: owner.map(str::to_owned),
        mode,
        files: HASH.to_owned(),
    }
}

#[test]
fn steps_are_read_as_the_sdks_write_them() {
    let copy = |args: Value| json!({"type": "COPY", "args": args, "force": false, "filesHash": HASH});
    check(
        copy(json!(["src/*.py", "/app/", "", ""])),
        copied("/app/", None, None),
    );
    check(
        copy(json!(["src/*.py", ".", "root:root", "0755"])),
        copied(".", Some("root:root"), Some(0o755)),
    );
    check(
        json!({"type": "add", "args": ["src/*.py", "."], "filesHash": HASH, "forceUpload": true, "force": true}),
        copied(".", None, None),
    );
    let run = |user: Option<&str>| Action::Run {
        command: "apt-get update && apt-get install -y curl".to_owned(),
        user: user.map(str::to_owned),
    };
    check(
        json!({"type": "RUN", "args": ["apt-get update && apt-get install -y curl", "root"], "force": false}),
        run(Some("root")),
    );
    check(
        json!({"type": "run", "args": ["apt-get update && apt-get install -y curl"]}),
        run(None),
    );
    let pairs = [("A", "1"), ("B", "$A b")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    check(
        json!({"type": "ENV", "args": ["A", "1", "B", "$A b"]}),
        Action::Env(pairs.to_vec()),
    );
    check(
        json!({"type": "Arg", "args": ["A", "1", "B", "$A b"]}),
        Action::Env(pairs.to_vec()),
    );
    check(
        json!({"type": "WORKDIR", "args": ["/app"]}),
        Action::Workdir("/app".to_owned()),
    );
    let user = |sudo| Action::User {
        name: "alice".to_owned(),
        sudo,
    };
    check(json!({"type": "USER", "args": ["alice"]}), user(false));
    check(json!({"type": "USER", "args": ["alice", "true"]}), user(true));
}

#[test]
fn what_is_wrong_with_a_step_is_told_with_its_number() {
    let second = |step: Value| json!({"steps": [{"type": "RUN", "args": ["true"]}, step]});
    for (step, names) in [
        (json!({"type": "EXPOSE", "args": ["80"]}), "step 2 (EXPOSE)"),
        (
            json!({"type": "COPY", "args": ["a"], "filesHash": HASH}),
            "step 2 (COPY): its arguments",
        ),
        (
            json!({"type": "COPY", "args": ["a", "b", "", "", "c"], "filesHash": HASH}),
            "step 2 (COPY): its arguments",
        ),
        (json!({"type": "COPY", "args": ["a", "b"]}), "filesHash"),
        (
            json!({"type": "COPY", "args": ["a", "b"], "filesHash": "../../x"}),
            "filesHash",
        ),
        (
            json!({"type": "COPY", "args": ["a", "b"], "filesHash": HASH.to_uppercase()}),
            "filesHash",
        ),
        (
            json!({"type": "COPY", "args": ["a", "b", "", "0999"], "filesHash": HASH}),
            "octal",
        ),
        (
            json!({"type": "COPY", "args": ["a", "b", "", "10000"], "filesHash": HASH}),
            "octal",
        ),
        (
            json!({"type": "COPY", "args": ["a", "b", "", "+7"], "filesHash": HASH}),
            "octal",
        ),
        (
            json!({"type": "COPY", "args": ["a", "b", "x:", ""], "filesHash": HASH}),
            "owner",
        ),
        (json!({"type": "RUN"}), "step 2 (RUN)"),
        (json!({"type": "RUN", "args": [" "]}), "step 2 (RUN)"),
        (json!({"type": "RUN", "args": ["a", "b c"]}), "no name of a user"),
        (json!({"type": "RUN", "args": ["a\u{0}b"]}), "step 2"),
        (json!({"type": "ENV", "args": ["A"]}), "pairs"),
        (json!({"type": "ENV", "args": []}), "pairs"),
        (
            json!({"type": "ENV", "args": ["A=B", "c"]}),
            "no name of a variable",
        ),
        (json!({"type": "WORKDIR", "args": []}), "step 2 (WORKDIR)"),
        (json!({"type": "USER", "args": ["-r"]}), "no name of a user"),
        (json!({"type": "USER", "args": ["a", "maybe"]}), "sudo"),
    ] {
        refused(second(step), names);
    }
    refused(
        json!({"steps": vec![json!({"type": "RUN", "args": ["true"]}); 1001]}),
        "at most 1000 steps",
    );
}

#[test]
fn a_build_starts_from_an_image_or_a_template() {
    let from = |body: Value| parsed(body).unwrap().from;
    let image = |reference: &str, credentials| Base::Image {
        reference: reference.to_owned(),
        credentials,
    };
    assert_eq!(from(json!({})), image("e2bdev/base", None));
    assert_eq!(
        from(json!({"fromImage": "", "fromTemplate": ""})),
        image("e2bdev/base", None)
    );
    assert_eq!(
        from(json!({"fromTemplate": "acme/base:v1"})),
        Base::Template("acme/base:v1".parse().unwrap())
    );
    let registry = json!({"type": "registry", "username": "u", "password": "p"});
    let basic = RegistryCredentials::Basic {
        username: "u".to_owned(),
        password: Secret::new("p".to_owned()),
    };
    assert_eq!(
        from(json!({"fromImage": "r.example/a:1", "fromImageRegistry": registry})),
        image("r.example/a:1", Some(basic))
    );
    refused(
        json!({"fromImage": "a", "fromTemplate": "b"}),
        "exclude each other",
    );
    refused(
        json!({"fromTemplate": "a", "fromImageRegistry": registry}),
        "fromImageRegistry",
    );
    refused(json!({"fromTemplate": "a/b/c"}), "fromTemplate");
    refused(json!({"fromImage": "a b"}), "fromImage");
    let empty = json!({"type": "gcp", "serviceAccountJson": ""});
    refused(
        json!({"fromImage": "a", "fromImageRegistry": empty}),
        "serviceAccountJson",
    );
}

#[test]
fn commands_are_bounded_and_an_empty_one_is_none() {
    let body = json!({"startCmd": "serve", "readyCmd": "", "force": true});
    let recipe = parsed(body).unwrap();
    assert_eq!(
        (recipe.start.as_deref(), recipe.ready, recipe.force),
        (Some("serve"), None, true)
    );
    refused(json!({"startCmd": "a".repeat(COMMAND_BYTES_MAX + 1)}), "startCmd");
    refused(json!({"readyCmd": "a\u{0}"}), "readyCmd");
}

#[test]
fn tags_are_words_and_no_uuids() {
    assert_eq!(tag(" V1.2-rc_3 ").unwrap(), "v1.2-rc_3");
    assert_eq!(tag("default").unwrap(), "default");
    for wrong in [
        "",
        "a b",
        "a:b",
        "a/b",
        "ä",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    ] {
        assert!(
            tag(wrong).unwrap_err().message().starts_with("Invalid tag"),
            "{wrong}"
        );
    }
}
