use super::pattern::{Pattern, clean};

/// What `.dockerignore` says: the last rule that names a path, or a directory above it, decides.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    /// `!`: what it names is not ignored.
    is_exception: bool,
}

impl Ignore {
    /// Reads rules, one a line. What is wrong is told with its line, from 1.
    pub(super) fn parse(text: &[u8]) -> Result<Self, (usize, &'static str)> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut rules = Vec::new();
        for (index, line) in text.split(|b| *b == b'\n').enumerate() {
            let rule = line.trim_ascii();
            if rule.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let (rule, is_exception) = rule
                .strip_prefix(b"!")
                .map_or((rule, false), |rule| (rule.trim_ascii(), true));
            if rule.is_empty() {
                return Err((index + 1, "'!' names nothing"));
            }
            let Some(glob) = clean(rule) else {
                return Err((index + 1, "it leads out of the context"));
            };
            // The context itself is never ignored.
            if glob.is_empty() {
                continue;
            }
            let pattern = Pattern::parse(&glob).ok_or((index + 1, "a [ has no end"))?;
            rules.push(Rule {
                pattern,
                is_exception,
            });
        }
        Ok(Self { rules })
    }

    /// Whether a path is ignored.
    pub(super) fn names(&self, path: &[u8]) -> bool {
        let decides = |rule: &&Rule| above(path).any(|path| rule.pattern.matches(path));
        self.rules
            .iter()
            .rev()
            .find(decides)
            .is_some_and(|rule| !rule.is_exception)
    }

    /// Whether something in an ignored directory may not be ignored.
    pub(super) fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|rule| rule.is_exception)
    }
}

/// A path, and the directories above it.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'/')
        .map(|(at, _)| at);
    slashes.chain([path.len()]).map(|at| &path[..at])
}
