use std::path::PathBuf;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::client) enum Place {
    /// On this machine.
    Local(PathBuf),
    /// Standard input or output.
    Stream,
    /// In a sandbox or a volume.
    Remote {
        /// Which.
        of: String,
        /// An absolute path there.
        path: String,
    },
}

impl Place {
    /// Reads `-`, `WHERE:/path`, or a path: what has a slash before its first colon is a path.
    pub(in crate::client) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            _ if text == "-" => Ok(Self::Stream),
            _ if text.is_empty() => Err("a path cannot be empty".to_owned()),
            Some((of, path)) if !of.contains('/') => {
                if of.is_empty() || of.starts_with('.') {
                    return Err(format!(
                        "'{text}' is not WHERE:/path; a file of this name is ./{text}"
                    ));
                }
                if !path.starts_with('/') {
                    return Err(format!("the path in '{text}' must be absolute: {of}:/…"));
                }
                if path.contains('\0') {
                    return Err("a path holds no NUL".to_owned());
                }
                Ok(Self::Remote {
                    of: of.to_owned(),
                    path: path.to_owned(),
                })
            }
            _ => Ok(Self::Local(text.into())),
        }
    }
}

/// The last part of a path, where it has one that is a name; with it, something is put below a directory.
pub(super) fn base_name(path: &str) -> Option<&str> {
    // `dir/.` is what is in it.
    if path.ends_with("/.") {
        return None;
    }
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .filter(|name| is_plain(name))
}

/// Whether a name is one of an entry, and leads nowhere else.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && name.len() <= 255 && !name.contains(['/', '\0'])
}

/// A path below another.
pub(super) fn below(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}
