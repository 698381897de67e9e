use super::DockerfileError;

/// Instructions, and what escapes a character in them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) instructions: Vec<Instruction>,
    pub(super) escape: char,
}

/// One instruction, its lines joined.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    /// Where it begins, from 1.
    pub(super) line: usize,
    /// In capitals.
    pub(super) name: String,
    /// Everything after the name.
    pub(super) rest: String,
    /// What follows it, of RUN, COPY and ADD.
    pub(super) documents: Vec<Document>,
}

/// A here-document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document {
    /// What ends it.
    pub(super) name: String,
    /// Whether tabs at the beginning of its lines do not count: `<<-`.
    pub(super) is_indented: bool,
    /// Its lines as they are, each with its end.
    pub(super) content: String,
}

impl Document {
    /// Its lines, without tabs at their beginning where those do not count.
    pub(super) fn text(&self) -> String {
        if !self.is_indented {
            return self.content.clone();
        }
        self.content
            .split_inclusive('\n')
            .map(|line| line.trim_start_matches('\t'))
            .collect()
    }
}

/// Reads all instructions.
pub(super) fn read(text: &str) -> Result<Source, DockerfileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .collect();
    let escape = escape(&lines)?;
    let mut instructions = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let begins = at;
        let Some(joined) = join(&lines, &mut at, escape) else {
            continue;
        };
        let (name, rest) = joined.split_once(char::is_whitespace).unwrap_or((&joined, ""));
        let (name, rest) = (name.to_ascii_uppercase(), rest.trim().to_owned());
        if !name.bytes().all(|b| b.is_ascii_alphabetic()) {
            return Err(DockerfileError::at(
                begins + 1,
                format!("'{}' is no instruction", super::super::words::short(&name)),
            ));
        }
        let mut documents = Vec::new();
        if matches!(name.as_str(), "RUN" | "COPY" | "ADD") {
            for (name, is_indented) in markers(&rest, escape) {
                let content = content(&lines, &mut at, &name, is_indented).ok_or_else(|| {
                    DockerfileError::at(begins + 1, format!("the here-document '{name}' does not end"))
                })?;
                documents.push(Document {
                    name,
                    is_indented,
                    content,
                });
            }
        }
        instructions.push(Instruction {
            line: begins + 1,
            name,
            rest,
            documents,
        });
    }
    Ok(Source { instructions, escape })
}

/// What the directives at the beginning say of escapes.
fn escape(lines: &[&str]) -> Result<char, DockerfileError> {
    for (index, line) in lines.iter().enumerate() {
        let directive = line
            .trim()
            .strip_prefix('#')
            .and_then(|line| line.split_once('='));
        let Some((name, value)) = directive else { break };
        match (name.trim().to_ascii_lowercase().as_str(), value.trim()) {
            ("escape", "\\") => return Ok('\\'),
            ("escape", "`") => return Ok('`'),
            ("escape", other) => {
                return Err(DockerfileError::at(
                    index + 1,
                    format!(
                        "'{}' cannot be what escapes: it is \\ or `",
                        super::super::words::short(other)
                    ),
                ));
            }
            ("syntax" | "check", _) => {}
            _ => break,
        }
    }
    Ok('\\')
}

/// Joins the lines of the next instruction; none where there is a comment, or nothing.
fn join(lines: &[&str], at: &mut usize, escape: char) -> Option<String> {
    let first = lines[*at].trim_start();
    *at += 1;
    if first.is_empty() || first.starts_with('#') {
        return None;
    }
    let mut joined = String::new();
    let mut line = first;
    loop {
        match continued(line, escape) {
            None => {
                joined.push_str(line);
                break;
            }
            Some(part) => joined.push_str(part),
        }
        // Comments and empty lines do not end it.
        let mut next = None;
        while let Some(candidate) = lines.get(*at) {
            *at += 1;
            let trimmed = candidate.trim_start();
            if !trimmed.is_empty() && !trimmed.starts_with('#') {
                next = Some(*candidate);
                break;
            }
        }
        match next {
            Some(next) => line = next,
            None => break,
        }
    }
    let joined = joined.trim();
    (!joined.is_empty()).then(|| joined.to_owned())
}

/// A line without what says that it goes on; none where it does not.
fn continued(line: &str, escape: char) -> Option<&str> {
    let part = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    // An escaped escape is a character like others.
    (!part.ends_with(escape)).then_some(part)
}

/// Names of the here-documents that a line begins: `<<NAME`, `<<-NAME`, at the beginning of a word, not quoted.
fn markers(line: &str, escape: char) -> Vec<(String, bool)> {
    super::words::split(line, escape)
        .iter()
        .filter_map(|word| marker(word))
        .collect()
}

/// What a word begins, if it is `<<NAME` or `<<-NAME`, after digits.
pub(super) fn marker(word: &str) -> Option<(String, bool)> {
    let rest = word
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .strip_prefix("<<")?;
    let (rest, is_indented) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let name: &str = match quote {
        Some(quote) => rest[1..].split(quote).next()?,
        None => rest.split(['<', '>', '|', '&', ';', '(', ')']).next()?,
    };
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!name.is_empty() && name.chars().all(plain)).then(|| (name.to_owned(), is_indented))
}

/// The lines up to a name.
fn content(lines: &[&str], at: &mut usize, name: &str, is_indented: bool) -> Option<String> {
    let mut content = String::new();
    loop {
        let line = lines.get(*at)?;
        *at += 1;
        let compared = if is_indented {
            line.trim_start_matches('\t')
        } else {
            line
        };
        if compared == name {
            return Some(content);
        }
        content.push_str(line);
        content.push('\n');
    }
}
