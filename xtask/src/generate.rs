//! What is generated from the code and checked in, so that reviews see it change.
use std::fs;

use anyhow::{Result, bail};

use crate::shell::{cargo, read, root};

/// A file and the command that prints it.
struct Generated {
    path: &'static str,
    arguments: &'static [&'static str],
}

const ALL: &[Generated] = &[
    Generated {
        path: "openapi/atoll.json",
        arguments: &["run", "--quiet", "--package", "api", "--example", "openapi"],
    },
    Generated {
        path: "docs/cli.md",
        arguments: &["run", "--quiet", "--package", "atoll", "--", "gen-docs"],
    },
];

/// Writes the files, or with `check` fails where they differ.
pub(crate) fn run(check: bool) -> Result<()> {
    for Generated { path, arguments } in ALL {
        let fresh = read(cargo().args(*arguments))?;
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
