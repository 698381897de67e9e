//! What is generated from the code and checked in, so that reviews see it change.
use std::fs;

use anyhow::{Result, bail};

use crate::build;
use crate::shell::{command, read, root};

/// A file and what prints it: a program of the tests' profile, with its arguments.
struct Generated {
    path: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
}

const ALL: &[Generated] = &[
    Generated {
        path: "openapi/atoll.json",
        program: "examples/openapi",
        arguments: &[],
    },
    Generated {
        path: "docs/cli.md",
        program: "atoll",
        arguments: &["gen-docs"],
    },
];

/// Writes the files, or with `check` fails where they differ.
pub(crate) fn run(check: bool) -> Result<()> {
    let programs = build::debug(&["--bins", "--examples"])?;
    for Generated {
        path,
        program,
        arguments,
    } in ALL
    {
        let fresh = read(command(programs.join(program)).args(*arguments))?;
        let file = root().join(path);
        if fs::read_to_string(&file).is_ok_and(|found| found == fresh) {
            continue;
        }
        if check {
            bail!("{path} is not what the code generates: run `cargo xtask gen` and commit it");
        }
        fs::write(&file, fresh)?;
        eprintln!("gen: {path}");
    }
    Ok(())
}
