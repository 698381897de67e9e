//! What of an upload a COPY step is about: the part of its glob that matches nothing but itself.
use std::fmt;

/// Where in the context lies what is copied. The client has matched the glob when it made the upload, so that everything
/// below this place is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// As the user wrote it, for errors.
    glob: String,
    /// A path without dots; empty for the context itself.
    place: Vec<u8>,
}

/// What is no source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceError {
    /// It is not said, or holds what no path does.
    Empty,
    /// It leads out of the context.
    Outside(String),
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceError::Empty => write!(f, "COPY has no source, or one with a NUL byte in it"),
            SourceError::Outside(glob) => {
                write!(
                    f,
                    "the source '{glob}' of COPY leads out of the directory that is copied from"
                )
            }
        }
    }
}

impl Source {
    /// Reads a glob: `*`, `?`, `[` and `{` begin what matches, and `\` makes any byte stand for itself.
    pub(crate) fn parse(glob: &str) -> Result<Self, SourceError> {
        if glob.is_empty() || glob.contains('\0') {
            return Err(SourceError::Empty);
        }
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut part = Vec::new();
        let mut bytes = glob.bytes();
        // What is after the last slash belongs to the place if the glob ends without anything that matches.
        loop {
            match bytes.next() {
                Some(b'*' | b'?' | b'[' | b'{') => break,
                Some(b'\\') => match bytes.next() {
                    // No name holds one.
                    Some(b'/') => step(&mut parts, std::mem::take(&mut part), glob)?,
                    byte => part.extend(byte),
                },
                Some(b'/') => step(&mut parts, std::mem::take(&mut part), glob)?,
                Some(byte) => part.push(byte),
                None => {
                    step(&mut parts, part, glob)?;
                    break;
                }
            }
        }
        Ok(Self {
            glob: glob.to_owned(),
            place: parts.join(&b'/'),
        })
    }

    /// As the user wrote it.
    pub(crate) fn glob(&self) -> &str {
        &self.glob
    }

    /// Its place in the context; empty for the context itself.
    pub(crate) fn place(&self) -> &[u8] {
        &self.place
    }

    /// The last part of its place; none for the context itself.
    pub(crate) fn name(&self) -> Option<&[u8]> {
        self.place
            .rsplit(|byte| *byte == b'/')
            .next()
            .filter(|name| !name.is_empty())
    }

    /// Where a path of the context lies from here; empty for the source itself, none for what lies elsewhere.
    pub(crate) fn relative<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        if self.place.is_empty() {
            return Some(path);
        }
        match path.strip_prefix(&*self.place)? {
            [] => Some(&[]),
            [b'/', rest @ ..] => Some(rest),
            _ => None,
        }
    }
}

fn step(parts: &mut Vec<Vec<u8>>, part: Vec<u8>, glob: &str) -> Result<(), SourceError> {
    match part.as_slice() {
        b"" | b"." => {}
        b".." => {
            parts.pop().ok_or_else(|| SourceError::Outside(glob.to_owned()))?;
        }
        _ => parts.push(part),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(glob: &str, place: &str) {
        let source = Source::parse(glob).unwrap();
        assert_eq!(std::str::from_utf8(source.place()).unwrap(), place, "{glob}");
    }

    #[test]
    fn the_place_of_a_glob_is_what_stands_before_anything_that_matches() {
        check("a.txt", "a.txt");
        check("src/", "src");
        check("./src//a/.", "src/a");
        check(".", "");
        check("a/../b", "b");
        check("*.txt", "");
        check("**/*", "");
        check("src/*.txt", "src");
        check("src/a?/b", "src");
        check("src/[ab]/c", "src");
        check("src/x{a,b}", "src");
        check(".hidden/.a", ".hidden/.a");
        check("/src/a", "src/a");
        check("a\\*b/c", "a*b/c");
        check("a\\*b/c*", "a*b");
        check("a\\", "a");
        check("a\\/b", "a/b");
        check("ä/ö*", "ä");
    }

    #[test]
    fn what_leads_out_is_no_source() {
        for glob in ["", "a\0", "*\0"] {
            assert_eq!(Source::parse(glob), Err(SourceError::Empty));
        }
        for glob in ["..", "../a", "a/../../b", "a/../..", "../*", "a\\/../.."] {
            assert_eq!(Source::parse(glob), Err(SourceError::Outside(glob.to_owned())));
        }
    }

    #[test]
    fn a_path_is_told_from_where_the_source_is() {
        let relative = |glob: &str, path: &'static str| {
            let found = Source::parse(glob).unwrap();
            found
                .relative(path.as_bytes())
                .map(|path| std::str::from_utf8(path).unwrap().to_owned())
        };
        assert_eq!(relative("src", "src/a/b").as_deref(), Some("a/b"));
        assert_eq!(relative("src", "src").as_deref(), Some(""));
        assert_eq!(relative("src", "srcs/a"), None);
        assert_eq!(relative("src", ""), None);
        assert_eq!(relative("*", "a").as_deref(), Some("a"));
        assert_eq!(Source::parse("a/b").unwrap().name(), Some(&b"b"[..]));
        assert_eq!(Source::parse("*").unwrap().name(), None);
    }
}
