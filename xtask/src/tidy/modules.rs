//! Which files the compiler reads, from the roots of the crates on.
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// All files of the crates with these roots.
pub(super) fn of<'a>(roots: impl Iterator<Item = &'a Path>) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    // A root's modules lie beside it, whatever it is called.
    let mut open: Vec<(PathBuf, PathBuf)> = roots
        .map(|root| (root.to_owned(), parent(root).to_owned()))
        .collect();
    while let Some((file, modules)) = open.pop() {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for declared in declared(&text) {
            let (file, modules) = match declared {
                Declared::At(path) => {
                    let file = tidied(&parent(&file).join(path));
                    let modules = parent(&file).to_owned();
                    (file, modules)
                }
                Declared::Named(name) => {
                    let flat = modules.join(format!("{name}.rs"));
                    let deep = modules.join(name).join("mod.rs");
                    let file = if flat.exists() { flat } else { deep };
                    (file, modules.join(name))
                }
            };
            if file.exists() && !found.contains(&file) {
                open.push((file, modules));
            }
        }
        found.insert(file);
    }
    Ok(found)
}

/// A module whose text is in another file.
#[derive(Debug, PartialEq, Eq)]
enum Declared<'a> {
    Named(&'a str),
    At(&'a str),
}

fn declared(text: &str) -> Vec<Declared<'_>> {
    let mut found = Vec::new();
    let mut path = None;
    for line in text.lines().map(str::trim) {
        if let Some(at) = line.strip_prefix("#[path = \"") {
            path = at.strip_suffix("\"]");
        } else if let Some(name) = module(line) {
            found.push(path.take().map_or(Declared::Named(name), Declared::At));
        }
    }
    found
}

/// The name in `mod name;`, `pub mod name;`, `pub(crate) mod name;`.
fn module(line: &str) -> Option<&str> {
    let declaration = match line.strip_prefix("pub(") {
        Some(rest) => rest.split_once(") ")?.1,
        None => line.strip_prefix("pub ").unwrap_or(line),
    };
    let name = declaration.strip_prefix("mod ")?.strip_suffix(';')?;
    name.chars()
        .all(|c| c.is_alphanumeric() || c == '_')
        .then_some(name)
}

fn parent(file: &Path) -> &Path {
    file.parent().expect("a file lies in a directory")
}

/// The path without `..`: nothing here is a symbolic link.
fn tidied(path: &Path) -> PathBuf {
    let mut tidied = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            tidied.pop();
        } else {
            tidied.push(part);
        }
    }
    tidied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read() {
        let text =
            "mod a;\npub mod b;\npub(crate) mod c;\nmod d {\n}\n#[path = \"../e.rs\"]\nmod e;\n// mod f;\n";
        assert_eq!(
            declared(text),
            [
                Declared::Named("a"),
                Declared::Named("b"),
                Declared::Named("c"),
                Declared::At("../e.rs")
            ]
        );
    }

    #[test]
    fn a_file_that_no_module_declares_is_not_among_the_compiled() {
        let dir = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        fs::create_dir_all(dir.join("a")).unwrap();
        for (file, text) in [
            ("main.rs", "mod a;\n"),
            ("a.rs", "mod b;\n"),
            ("a/b.rs", ""),
            ("a/dead.rs", ""),
        ] {
            fs::write(dir.join(file), text).unwrap();
        }
        let compiled = of([dir.join("main.rs").as_path()].into_iter()).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let expected = ["main.rs", "a.rs", "a/b.rs"].map(|file| dir.join(file));
        assert_eq!(compiled, BTreeSet::from(expected));
    }
}
