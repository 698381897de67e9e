//! Writing HCL as `nomad fmt` has it.
use std::fmt::Write as _;

/// A value of an attribute.
pub(super) enum Value {
    /// A text that is what it says: nothing in it is interpolated.
    Text(String),
    /// A text of ours in which Nomad fills in what it knows.
    Filled(String),
    Number(u64),
    Is(bool),
    List(Vec<Value>),
    /// Lines of ours, as they are.
    Lines(String),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Value {
    fn from(is: bool) -> Self {
        Self::Is(is)
    }
}

impl From<&[String]> for Value {
    fn from(all: &[String]) -> Self {
        Self::List(all.iter().map(|text| Self::Text(text.clone())).collect())
    }
}

/// A text in quotes.
fn quoted(text: &str, is_filled: bool) -> String {
    let mut quoted = String::from('"');
    for (place, c) in text.char_indices() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '$' | '%' if !is_filled && text[place + 1..].starts_with('{') => {
                quoted.push(c);
                quoted.push(c);
            }
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

impl Value {
    fn written(&self) -> String {
        match self {
            Self::Text(text) => quoted(text, false),
            Self::Filled(text) => quoted(text, true),
            Self::Number(number) => number.to_string(),
            Self::Is(is) => is.to_string(),
            Self::List(all) => {
                let all: Vec<String> = all.iter().map(Self::written).collect();
                format!("[{}]", all.join(", "))
            }
            Self::Lines(lines) => format!("<<EOT\n{lines}\nEOT"),
        }
    }
}

/// What is between braces.
#[derive(Default)]
pub(super) struct Body {
    attributes: Vec<(&'static str, Value)>,
    written: String,
    depth: usize,
}

impl Body {
    /// Names a value.
    pub(super) fn set(&mut self, name: &'static str, value: impl Into<Value>) -> &mut Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Writes the values named since the last block, their signs below each other.
    fn flush(&mut self) {
        let indent = "  ".repeat(self.depth);
        let longest = self
            .attributes
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or(0);
        for (name, value) in std::mem::take(&mut self.attributes) {
            let value = value.written();
            // A document of lines ends at the margin.
            let _ = writeln!(self.written, "{indent}{name:longest$} = {value}");
        }
    }

    /// Opens a block.
    pub(super) fn block(
        &mut self,
        kind: &str,
        label: Option<&str>,
        fill: impl FnOnce(&mut Self),
    ) -> &mut Self {
        self.flush();
        if !self.written.is_empty() && !self.written.ends_with("{\n") {
            self.written.push('\n');
        }
        let indent = "  ".repeat(self.depth);
        let label = label
            .map(|label| format!(" {}", quoted(label, false)))
            .unwrap_or_default();
        let mut body = Self {
            depth: self.depth + 1,
            ..Self::default()
        };
        fill(&mut body);
        body.flush();
        let _ = writeln!(
            self.written,
            "{indent}{kind}{label} {{\n{}{indent}}}",
            body.written
        );
        self
    }

    /// All that was written.
    pub(super) fn done(mut self) -> String {
        self.flush();
        self.written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_says_what_it_says_and_nothing_else() {
        for (text, expected) in [
            ("plain", r#""plain""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("${env.HOME}", r#""$${env.HOME}""#),
            ("%{ if x }", r#""%%{ if x }""#),
            ("$5 100%", r#""$5 100%""#),
            ("a\nb\u{1}", r#""a\nb\u0001""#),
        ] {
            assert_eq!(quoted(text, false), expected);
        }
        assert_eq!(quoted("${NOMAD_PORT_http}", true), r#""${NOMAD_PORT_http}""#);
    }
}
