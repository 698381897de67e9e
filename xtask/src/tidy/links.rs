//! Where the documents lead: links to files and headings, and paths in `code` that name a file of the tree.
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::files;

/// Documents outside `docs/`.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "README.zh.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "benches/README.md",
];

/// Where the paths begin that documents name in full. Those of sources may leave `crates/` out.
const TREES: &[&str] = &[
    "crates/",
    "xtask/src/",
    "tests/",
    "fuzz/",
    "docs/",
    "openapi/",
    "benches/",
];

/// What leads nowhere.
pub(super) fn wrong(root: &Path) -> Result<Vec<String>> {
    let mut documents: Vec<_> = DOCUMENTS.iter().map(|name| root.join(name)).collect();
    documents.extend(files(&root.join("docs"), "md")?);
    let mut wrong = Vec::new();
    for document in documents {
        let name = document
            .strip_prefix(root)
            .unwrap_or(&document)
            .display()
            .to_string();
        let Ok(text) = fs::read_to_string(&document) else {
            wrong.push(format!("{name} is not there"));
            continue;
        };
        let prose = prose(&text);
        for link in links(&prose) {
            if !leads(&document, &text, link) {
                wrong.push(format!("{name} links to {link}, which is not there"));
            }
        }
        for path in prose.split('`').skip(1).step_by(2).filter_map(path) {
            let there = |path: &str| root.join(path).exists() || root.join("crates").join(path).exists();
            if !there(path) {
                wrong.push(format!("{name} names {path}, which is not there"));
            }
        }
    }
    Ok(wrong)
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// What `[…](target)` names.
fn links(prose: &str) -> impl Iterator<Item = &str> {
    let targets = prose.split("](").skip(1);
    targets.filter_map(|rest| rest.split([')', ' ']).next())
}

fn leads(document: &Path, text: &str, link: &str) -> bool {
    if link.contains("://") || link.starts_with("mailto:") {
        return true;
    }
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    if file.is_empty() {
        return has_heading(text, heading);
    }
    let file = document.with_file_name("").join(file);
    if heading.is_empty() {
        file.exists()
    } else {
        fs::read_to_string(file).is_ok_and(|text| has_heading(&text, heading))
    }
}

fn has_heading(text: &str, wanted: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .any(|found| found == wanted)
}

/// As GitHub makes it out of a heading.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// The file that a piece of code names, if it names one of the tree.
fn path(code: &str) -> Option<&str> {
    let path = code.split("::").next().unwrap_or_default();
    let is_plain = path
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let is_ours =
        TREES.iter().any(|tree| path.starts_with(tree)) || (path.contains("/src/") && !path.starts_with('/'));
    (is_plain && is_ours).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_paths_are_found_in_prose_alone() {
        let text = "[a](a.md) and [b](b.md#c 'd')\n```\n[x](x.md)\n```\n`crates/api/src/auth.rs`";
        let prose = prose(text);
        assert_eq!(links(&prose).collect::<Vec<_>>(), ["a.md", "b.md#c"]);
        assert_eq!(path("orchestrator/src/wake.rs"), Some("orchestrator/src/wake.rs"));
        assert_eq!(
            path("container/src/runtime.rs::settle"),
            Some("container/src/runtime.rs")
        );
        assert_eq!(path("crates/<name>/src"), None);
        assert_eq!(path("atoll up"), None);
        assert_eq!(path("/usr/src/linux"), None);
    }

    #[test]
    fn headings_are_found_as_they_are_linked() {
        assert!(has_heading("# x\n## `atoll up`\n", "atoll-up"));
        assert!(!has_heading("# x\n", "y"));
    }
}
