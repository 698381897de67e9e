use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> Dockerfile {
    match Dockerfile::parse(text, &BTreeMap::new()) {
        Ok(parsed) => parsed,
        Err(error) => panic!("{error}\n{text}"),
    }
}

/// Steps behind the two that every Dockerfile begins with, and before those that it ends with.
#[track_caller]
fn check(instructions: &str, expected: &[Action]) {
    let parsed = parsed(&format!("FROM a\n{instructions}\nUSER u\nWORKDIR /w"));
    let steps: Vec<Action> = parsed.steps.into_iter().map(|step| step.action).collect();
    assert_eq!(steps[..2], [user("root"), workdir("/")]);
    assert_eq!(steps[2..steps.len() - 2], *expected, "{instructions}");
}

#[track_caller]
fn refused(text: &str, line: usize, names: &str) {
    let error = Dockerfile::parse(text, &BTreeMap::new()).unwrap_err();
    assert!(
        error.line == line && error.what.contains(names),
        "{text}\n{error}"
    );
}

fn run(command: &str) -> Action {
    Action::Run(command.to_owned())
}

fn user(name: &str) -> Action {
    Action::User(name.to_owned())
}

fn workdir(path: &str) -> Action {
    Action::Workdir(path.to_owned())
}

fn env(pairs: &[(&str, &str)]) -> Action {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Action::Env(pairs.iter().map(owned).collect())
}

fn copy(source: &str, destination: &str, owner: Option<&str>, mode: Option<u32>) -> Action {
    Action::Copy {
        source: source.to_owned(),
        destination: destination.to_owned(),
        owner: owner.map(str::to_owned),
        mode,
    }
}

#[test]
fn a_dockerfile_is_left_as_the_sdks_leave_it() {
    let file = parsed("# a comment\n\nFROM python:3.12 AS app\nRUN pip install x\n");
    assert_eq!((file.base.as_str(), file.base_line), ("python:3.12", 3));
    let steps: Vec<(usize, Action)> = file
        .steps
        .into_iter()
        .map(|step| (step.line, step.action))
        .collect();
    let expected = [
        (3, user("root")),
        (3, workdir("/")),
        (4, run("pip install x")),
        (4, user("user")),
        (4, workdir("/home/user")),
    ];
    assert_eq!(steps, expected);
    assert_eq!(file.start, None);
    assert!(file.remarks.is_empty());
}

#[test]
fn lines_are_joined_and_comments_within_are_none() {
    check(
        "run  a \\\n  && b \\  \n# no\n\n  # neither\n && c",
        &[run("a   && b  && c")],
    );
    check("RUN a \\\\\nRUN b", &[run("a \\\\"), run("b")]);
    check("RUN a \\\r\n b\r", &[run("a  b")]);
    let last = parsed("FROM a\nRUN a \\\n# the end");
    assert_eq!(last.steps[2].action, run("a"));
    let other = Dockerfile::parse(
        "# escape=`\nFROM a\nRUN a `\n b \\\nUSER u\nWORKDIR /w",
        &BTreeMap::new(),
    )
    .unwrap();
    assert_eq!(other.steps[2].action, run("a  b \\"));
    refused("# escape=x\nFROM a", 1, "escapes");
    let late = parsed("# words\n# escape=`\nFROM a\nRUN a \\\n b");
    assert_eq!(late.steps[2].action, run("a  b"));
}

#[test]
fn commands_are_read_in_both_forms() {
    check(
        r#"RUN ["echo", "a b", "it's", ""]"#,
        &[run(r"echo 'a b' 'it'\''s' ''")],
    );
    check(r#"RUN ["not json]"#, &[run(r#"["not json]"#)]);
    check(
        "RUN echo $HOME \"${X:-y}\" `date`",
        &[run("echo $HOME \"${X:-y}\" `date`")],
    );
    check(
        "RUN --mount=type=cache,target=/c --network=none make",
        &[run("make")],
    );
    refused("FROM a\nRUN", 2, "no command");
    refused("FROM a\nRUN []", 2, "no command");
    refused("FROM a\nRUN --mount=type=secret,id=x cat", 2, "--mount");
    refused("FROM a\nRUN --device=x y", 2, "no flag --device");
}

#[test]
fn here_documents_are_for_bash() {
    check(
        "RUN <<EOF\na\n# b\n\nc\nEOF\nRUN d",
        &[run("a\n# b\n\nc\n"), run("d")],
    );
    check("RUN <<-'END'\n\ta\n\t\tb\n\tEND", &[run("a\nb\n")]);
    check(
        "RUN cat <<EOF > /x && true\na\nEOF",
        &[run("cat <<EOF > /x && true\na\nEOF")],
    );
    check("RUN cat <<A <<B\n1\nA\n2\nB", &[run("cat <<A <<B\n1\nA\n2\nB")]);
    check(
        "RUN echo $((1<<2)) '<<EOF' <<<word",
        &[run("echo $((1<<2)) '<<EOF' <<<word")],
    );
    refused("FROM a\nRUN <<EOF\nabc", 2, "does not end");
    refused(
        "FROM a\nRUN <<EOF\n#!/usr/bin/python3\nprint()\nEOF",
        2,
        "interpreter",
    );
    refused("FROM a\nCOPY <<EOF /x\nabc\nEOF", 2, "here-document");
}

#[test]
fn copies_are_read_with_owner_and_mode() {
    check("COPY a b", &[copy("a", "b", None, None)]);
    check(
        "COPY --chown=app:staff --chmod=0755 --link a b/ c/",
        &[
            copy("a", "c/", Some("app:staff"), Some(0o755)),
            copy("b/", "c/", Some("app:staff"), Some(0o755)),
        ],
    );
    check(r#"ADD ["a b", "/c d/"]"#, &[copy("a b", "/c d/", None, None)]);
    check(
        "ARG D=/x\nCOPY a* $D/${D}",
        &[env(&[("D", "/x")]), copy("a*", "/x//x", None, None)],
    );
    check("COPY \\$a 'b'", &[copy("$a", "b", None, None)]);
    for (instruction, names) in [
        ("COPY a", "sources and a destination"),
        ("COPY a b c", "ends with '/'"),
        ("COPY --from=build a b", "--from"),
        ("COPY --chmod=u+x a b", "octal"),
        ("COPY --exclude=*.md a b", "--exclude"),
        ("COPY --unheard a b", "no flag --unheard"),
        ("COPY a $NOWHERE", "$NOWHERE"),
        ("ADD https://example.com/a b", "address"),
        ("ADD git@example.com:a/b.git b", "address"),
    ] {
        refused(&format!("FROM a\n{instruction}"), 2, names);
    }
    let archive = parsed("FROM a\nADD a.tar.gz /x/");
    assert!(archive.remarks[0].contains("line 2") && archive.remarks[0].contains("unpack"));
}

#[test]
fn variables_are_set_in_both_forms() {
    check(
        "ENV A=1 B=\"a b\" C='x y' D=a\\ b E=",
        &[env(&[
            ("A", "1"),
            ("B", "a b"),
            ("C", "x y"),
            ("D", "a b"),
            ("E", ""),
        ])],
    );
    check("ENV A b  c \"d\"", &[env(&[("A", "b  c d")])]);
    check("ENV A \\\n  b", &[env(&[("A", "b")])]);
    check("ENV A=\"\\n\\\"\"", &[env(&[("A", "\\n\"")])]);
}

#[test]
fn what_the_dockerfile_sets_is_put_in_and_what_the_image_sets_is_left_to_the_server() {
    check(
        "ENV A=1\nENV A=2 B=$A C=${A}x",
        &[env(&[("A", "1")]), env(&[("A", "2"), ("B", "1"), ("C", "1x")])],
    );
    check("ENV PATH=/app/bin:$PATH", &[env(&[("PATH", "/app/bin:$PATH")])]);
    check(
        "ENV PATH=/a:$PATH\nENV PATH=/b:${PATH}",
        &[env(&[("PATH", "/a:$PATH")]), env(&[("PATH", "/b:/a:$PATH")])],
    );
    check(
        "ENV A=${NONE:-x}\nENV B=${A:-y}${A:+z}${NONE2:+w}",
        &[
            env(&[("A", "${NONE:-x}")]),
            env(&[("B", "${NONE:-x}z${NONE2:+w}")]),
        ],
    );
    check(
        "ARG V\nENV A=${V:-d} B=${V-e}",
        &[env(&[("V", "")]), env(&[("A", "d"), ("B", "")])],
    );
    check("ENV P=100$ Q=a$,b", &[env(&[("P", "100$"), ("Q", "a$,b")])]);
    refused("FROM a\nENV A=$PATH\nWORKDIR $A", 3, "$PATH");
    refused("FROM a\nWORKDIR $HOME/x", 2, "$HOME");
    refused("FROM a\nENV A='$HOME'", 2, "stands for itself");
    refused("FROM a\nENV A=\\$HOME", 2, "stands for itself");
    refused("FROM a\nENV A=${B%x}", 2, "not supported");
    refused("FROM a\nENV A=${B:?gone}\nWORKDIR ${C:?gone}", 3, "gone");
    refused("FROM a\nENV A=\"b", 2, "no end");
    refused("FROM a\nENV A=${b", 2, "no '}'");
    refused("FROM a\nENV", 2, "sets nothing");
    refused("FROM a\nENV A", 2, "no value");
    refused("FROM a\nENV A=1 B", 2, "NAME=VALUE");
    refused("FROM a\nENV A;B=1", 2, "no name");
}

#[test]
fn arguments_are_variables_that_a_build_may_give() {
    let text = "ARG TAG=3.12\nARG UNUSED\nFROM python:$TAG\nARG TAG\nARG MODE=fast\nENV SET=1\nARG SET=2\nWORKDIR /$MODE$SET";
    let steps = |arguments: &[(&str, &str)]| {
        let arguments = arguments
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let parsed = Dockerfile::parse(text, &arguments.collect()).unwrap();
        let steps: Vec<Action> = parsed.steps.into_iter().map(|step| step.action).collect();
        (parsed.base, steps[2..steps.len() - 1].to_vec())
    };
    let rest = |tag: &str, mode: &str, dir: &str| {
        vec![
            env(&[("TAG", tag)]),
            env(&[("MODE", mode)]),
            env(&[("SET", "1")]),
            workdir(dir),
        ]
    };
    assert_eq!(
        steps(&[]),
        ("python:3.12".to_owned(), rest("3.12", "fast", "/fast1"))
    );
    assert_eq!(
        steps(&[("TAG", "3.13"), ("MODE", "slow")]),
        ("python:3.13".to_owned(), rest("3.13", "slow", "/slow1"))
    );
    let error = Dockerfile::parse(text, &[("OTHER".to_owned(), String::new())].into()).unwrap_err();
    assert!(error.what.contains("OTHER"));
    assert!(parsed("FROM a\nARG X").remarks[0].contains("ARG X"));
    refused("FROM a:$TAG", 1, "$TAG");
}

#[test]
fn entrypoint_and_command_become_the_start_command() {
    let start = |text: &str| {
        parsed(&format!("FROM a\n{text}"))
            .start
            .map(|(command, _)| command)
    };
    let is = |text: &str, expected: &str| assert_eq!(start(text).as_deref(), Some(expected), "{text}");
    is("CMD python app.py", "python app.py");
    is(r#"CMD ["python", "my app.py"]"#, "python 'my app.py'");
    is("CMD a\nCMD b", "b");
    is(r#"ENTRYPOINT ["serve"]"#, "serve");
    is(
        "ENTRYPOINT [\"serve\"]\nCMD [\"--port\", \"80\"]",
        "serve --port 80",
    );
    is("ENTRYPOINT [\"serve\"]\nCMD a b", "serve /bin/sh -c 'a b'");
    is("ENTRYPOINT serve\nCMD [\"x\"]", "serve");
    is("CMD [\"x\"]\nENTRYPOINT [\"serve\"]", "serve x");
    assert_eq!(start("CMD []"), None);
    assert_eq!(start("LABEL a=b\nEXPOSE 80\nVOLUME /v\nMAINTAINER m"), None);
    assert_eq!(parsed("FROM a\n\nCMD x").start, Some(("x".to_owned(), 3)));
}

#[test]
fn what_changes_nothing_is_remarked_upon_and_the_rest_is_refused() {
    let remarks =
        parsed("FROM --platform=linux/amd64 a\nSHELL [\"/bin/sh\"]\nHEALTHCHECK NONE\nSTOPSIGNAL 9").remarks;
    assert_eq!(remarks.len(), 4);
    assert!(remarks[0].starts_with("line 1: --platform") && remarks[1].starts_with("line 2: SHELL"));
    refused("", 1, "no FROM");
    refused("RUN a\nFROM b", 1, "before FROM");
    refused("FROM a\nFROM b", 2, "several stages");
    refused("FROM scratch", 1, "scratch");
    refused("FROM", 1, "one image");
    refused("FROM a b", 1, "one image");
    refused("FROM a\nFETCH b", 2, "no instruction");
    refused("FROM a\n<html>", 2, "no instruction");
    refused("FROM a\nUSER a:b", 2, "group");
    refused("FROM a\nUSER a b", 2, "one argument");
    refused("FROM a\nWORKDIR", 2, "one argument");
    refused("FROM a\nCMD --x", 2, "no flag");
    refused(&"#".repeat(BYTES_MAX + 1), 1, "bytes");
}

/// Texts that are nearly Dockerfiles.
fn nearly() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("FROM a\n".to_owned()),
        prop::sample::select(vec![
            "RUN ",
            "COPY ",
            "ENV ",
            "ARG ",
            "CMD ",
            "USER ",
            "WORKDIR ",
            "ENTRYPOINT ",
            "ADD ",
            "# escape=`\n",
            "\\\n",
            "`\n",
            "<<EOF",
            "\nEOF\n",
            "${",
            "}",
            "$A",
            "\"",
            "'",
            "=",
            "[\"",
            "\"]",
            "--chown=",
            "--from",
            ":-",
            "\n",
            " ",
            "\u{feff}",
            "\r\n",
            "ä",
            "a",
            "/",
        ])
        .prop_map(str::to_owned),
        ".{0,6}",
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader(text in nearly()) {
        let lines = text.split('\n').count();
        match Dockerfile::parse(&text, &BTreeMap::new()) {
            Ok(file) => prop_assert!(file.steps.iter().all(|step| (1..=lines).contains(&step.line))),
            Err(error) => prop_assert!((1..=lines).contains(&error.line)),
        }
    }

    #[test]
    fn quoted_words_are_read_as_they_were(words in prop::collection::vec("[^\0]{0,8}", 1..4)) {
        let text = super::words::quoted(&words);
        let read = super::words::split(&text, '\\').len();
        prop_assert!(read >= 1);
        let variables = super::words::Variables { values: &BTreeMap::new(), escape: '\\', passes_unknown: false };
        prop_assert_eq!(variables.expand(&text).unwrap().known().unwrap(), words.join(" "));
    }
}
