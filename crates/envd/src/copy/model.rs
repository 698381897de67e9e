//! COPY in a few lines of pure code: what the files of a sandbox are afterwards. What really happens is compared with it.
use std::collections::{BTreeMap, BTreeSet};

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link(String),
}

/// A file system: nodes by absolute paths without dots. The root is `/`, and has no node.
pub(super) type Files = BTreeMap<String, Node>;

/// A COPY step.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// A place in the context; empty for the context.
    pub(super) source: String,
    /// Absolute.
    pub(super) destination: String,
    pub(super) mode: Option<u32>,
}

/// It is refused; what is there by then is not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused;

/// Files after a step. The context comes in the order of the archive; its links lead out of it, or nowhere: nothing lies
/// behind them.
pub(super) fn copy(files: &Files, context: &[(String, Node)], step: &Step) -> Result<Files, Refused> {
    let mut files = files.clone();
    let below = |path: &str| match path.strip_prefix(step.source.as_str())? {
        rest if step.source.is_empty() || rest.is_empty() => Some(rest.to_owned()),
        rest => rest.strip_prefix('/').map(str::to_owned),
    };
    let meant: Vec<(String, &Node)> = context
        .iter()
        .filter_map(|(path, node)| Some((below(path)?, node)))
        .collect();
    let with_mode = |node: &Node| match (node.clone(), step.mode) {
        (Node::Directory { .. }, Some(mode)) => Node::Directory { mode },
        (Node::File { content, .. }, Some(mode)) => Node::File { mode, content },
        (node, _) => node,
    };
    match meant.as_slice() {
        [] => Err(Refused),
        // It cannot be a file, and hold others.
        [_, _, ..] if meant.iter().any(|(rest, node)| rest.is_empty() && !is_dir(node)) => Err(Refused),
        [(rest, node)] if rest.is_empty() && !is_dir(node) => {
            let name = step.source.rsplit('/').next().unwrap_or_default();
            let is_directory =
                step.destination.ends_with('/') || leads_to_directory(&files, &step.destination);
            let path = if is_directory {
                format!("{}/{name}", step.destination)
            } else {
                step.destination.clone()
            };
            let (dir, name) = path.rsplit_once('/').ok_or(Refused)?;
            let dir = make_all(&mut files, dir)?;
            let place = join(&dir, name);
            if matches!(files.get(&place), Some(Node::Directory { .. })) {
                return Err(Refused);
            }
            files.insert(place, with_mode(node));
            Ok(files)
        }
        _ => {
            let root = make_all(&mut files, &step.destination)?;
            let mut own = Own::default();
            for (rest, node) in meant {
                put(&mut files, &root, &rest, with_mode(node), step.mode, &mut own)?;
            }
            Ok(files)
        }
    }
}

/// What was brought by the step itself, by paths as the archive has them.
#[derive(Default)]
struct Own {
    directories: BTreeSet<String>,
    links: BTreeSet<String>,
}

fn is_dir(node: &Node) -> bool {
    matches!(node, Node::Directory { .. })
}

/// One entry of a directory that is copied.
fn put(
    files: &mut Files,
    root: &str,
    rest: &str,
    node: Node,
    mode: Option<u32>,
    own: &mut Own,
) -> Result<(), Refused> {
    if rest.is_empty() {
        return Ok(());
    }
    let mut dir = root.to_owned();
    let parts: Vec<&str> = rest.split('/').collect();
    let (name, above) = parts.split_last().ok_or(Refused)?;
    let mut way = String::new();
    for part in above {
        way = if way.is_empty() {
            (*part).to_owned()
        } else {
            format!("{way}/{part}")
        };
        let place = join(&dir, part);
        dir = match real(files, &place) {
            Some(real) if is_directory(files, &real) => real,
            _ => {
                files.insert(
                    place.clone(),
                    Node::Directory {
                        mode: mode.unwrap_or(0o755),
                    },
                );
                own.directories.insert(way.clone());
                place
            }
        };
    }
    let place = join(&dir, name);
    let has_children = files.keys().any(|path| path.starts_with(&format!("{place}/")));
    let was_link = own.links.remove(rest);
    match &node {
        Node::Directory { .. } if was_link => drop(own.directories.insert(rest.to_owned())),
        Node::Directory { .. } if leads_to_directory(files, &place) => {
            if own.directories.contains(rest)
                && let Some(place) = real(files, &place)
            {
                files.insert(place, node);
            }
            return Ok(());
        }
        Node::Directory { .. } => drop(own.directories.insert(rest.to_owned())),
        _ if has_children => return Err(Refused),
        Node::Link(_) => drop(own.links.insert(rest.to_owned())),
        Node::File { .. } => {}
    }
    if !is_dir(&node) {
        own.directories.remove(rest);
    }
    files.insert(place, node);
    Ok(())
}

/// Makes a directory and those above it; where it really is. What is in the way is not replaced.
fn make_all(files: &mut Files, path: &str) -> Result<String, Refused> {
    let mut dir = "/".to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let place = join(&dir, part);
        dir = match (real(files, &place), files.contains_key(&place)) {
            (Some(real), _) if is_directory(files, &real) => real,
            (_, true) => return Err(Refused),
            (_, false) => {
                files.insert(place.clone(), Node::Directory { mode: 0o755 });
                place
            }
        };
    }
    Ok(dir)
}

fn leads_to_directory(files: &Files, path: &str) -> bool {
    real(files, path).is_some_and(|real| is_directory(files, &real))
}

fn is_directory(files: &Files, path: &str) -> bool {
    path == "/" || matches!(files.get(path), Some(Node::Directory { .. }))
}

/// Where a path leads, all links followed; none, if nothing is there.
fn real(files: &Files, path: &str) -> Option<String> {
    let mut left: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let (mut place, mut hops) = ("/".to_owned(), 0);
    while let Some(part) = left.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                place = parent(&place);
                continue;
            }
            _ if !is_directory(files, &place) => return None,
            _ => place = join(&place, &part),
        }
        match files.get(&place)? {
            Node::Link(_) if hops == 40 => return None,
            Node::Link(target) => {
                hops += 1;
                place = if target.starts_with('/') {
                    "/".to_owned()
                } else {
                    parent(&place)
                };
                left.extend(target.split('/').rev().map(str::to_owned));
            }
            _ => {}
        }
    }
    Some(place)
}

fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        None | Some(("", _)) => "/".to_owned(),
        Some((parent, _)) => parent.to_owned(),
    }
}

fn join(dir: &str, name: &str) -> String {
    if dir == "/" {
        format!("/{name}")
    } else {
        format!("{dir}/{name}")
    }
}
