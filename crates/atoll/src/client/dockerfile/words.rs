use std::collections::BTreeMap;

/// A text that may hold variables which only the server knows: those of the image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Value(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// It stands for itself.
    Text(String),
    /// `$NAME`, or `${…}`, as it was written.
    Unknown(String),
}

impl Value {
    /// Text that stands for itself.
    pub(super) fn of(text: &str) -> Self {
        let mut value = Self::default();
        value.push_text(text);
        value
    }

    /// As it is, where it holds nothing unknown; else the first variable that is.
    pub(super) fn known(&self) -> Result<String, String> {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => Ok(text.as_str()),
                Piece::Unknown(variable) => Err(variable.clone()),
            })
            .collect()
    }

    /// As the server evaluates it to the same: there, `$NAME` and `${…}` are variables wherever they stand.
    pub(super) fn for_server(&self) -> Result<String, String> {
        let mut text = String::new();
        for (index, piece) in self.0.iter().enumerate() {
            match piece {
                Piece::Unknown(variable) => text.push_str(variable),
                Piece::Text(piece) => {
                    let is_last = index + 1 == self.0.len();
                    let mut letters = piece.chars().peekable();
                    while let Some(letter) = letters.next() {
                        let begins = |next: char| next.is_alphanumeric() || "_{@*#?$!-[".contains(next);
                        let becomes_one = letters.peek().map_or(!is_last, |next| begins(*next));
                        if letter == '$' && becomes_one {
                            return Err(
                                "a '$' that stands for itself cannot be kept in ENV: set this variable where it is used"
                                    .to_owned(),
                            );
                        }
                        text.push(letter);
                    }
                }
            }
        }
        Ok(text)
    }

    fn chars(&self) -> usize {
        let pieces = self.0.iter();
        pieces
            .map(|piece| match piece {
                Piece::Text(text) | Piece::Unknown(text) => text.len(),
            })
            .sum()
    }

    fn push(&mut self, letter: char) {
        match self.0.last_mut() {
            Some(Piece::Text(text)) => text.push(letter),
            _ => self.0.push(Piece::Text(letter.to_string())),
        }
    }

    fn push_text(&mut self, text: &str) {
        text.chars().for_each(|letter| self.push(letter));
    }

    fn append(&mut self, other: &Self) {
        for piece in &other.0 {
            match piece {
                Piece::Text(text) => self.push_text(text),
                unknown @ Piece::Unknown(_) => self.0.push(unknown.clone()),
            }
        }
    }
}

/// What is known of variables.
pub(super) struct Variables<'a> {
    pub(super) values: &'a BTreeMap<String, Value>,
    pub(super) escape: char,
    /// Whether the server will know others; else those that have a default have that.
    pub(super) passes_unknown: bool,
}

/// How deep `${A:-${B:-…}}` may go.
const DEPTH_MAX: usize = 16;
/// The longest text that variables may come to: no step holds more.
const VALUE_CHARS_MAX: usize = 256 << 10;

impl Variables<'_> {
    /// Takes quotes and escapes out of a text, and puts values in the place of variables.
    pub(super) fn expand(&self, text: &str) -> Result<Value, String> {
        let mut reader = Reader {
            variables: self,
            letters: text.chars().collect(),
            at: 0,
        };
        reader.until(None, 0)
    }
}

struct Reader<'a> {
    variables: &'a Variables<'a>,
    letters: Vec<char>,
    at: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let letter = self.letters.get(self.at).copied();
        self.at += usize::from(letter.is_some());
        letter
    }

    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    /// Reads up to a letter that is neither quoted nor escaped, or to the end.
    fn until(&mut self, end: Option<char>, depth: usize) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err(format!("variables are nested deeper than {DEPTH_MAX}"));
        }
        let escape = self.variables.escape;
        let mut value = Value::default();
        let (mut is_quoted, mut length) = (false, 0);
        loop {
            let Some(letter) = self.next() else {
                return match (is_quoted, end) {
                    (true, _) => Err("a \" has no end".to_owned()),
                    (false, Some(end)) => Err(format!("a ${{ has no '{end}'")),
                    (false, None) => Ok(value),
                };
            };
            match letter {
                letter if Some(letter) == end && !is_quoted => return Ok(value),
                '"' => {
                    is_quoted = !is_quoted;
                    // Two quotes are a text, if an empty one.
                    value.push_text("");
                }
                '\'' if !is_quoted => loop {
                    match self.next() {
                        Some('\'') => break,
                        Some(letter) => value.push(letter),
                        None => return Err("a ' has no end".to_owned()),
                    }
                },
                letter if letter == escape => match self.next() {
                    Some(next) if !is_quoted || next == '"' || next == '$' || next == escape => {
                        value.push(next)
                    }
                    Some(next) => {
                        value.push(letter);
                        value.push(next);
                    }
                    None => value.push(letter),
                },
                '$' => {
                    let variable = self.variable(depth)?;
                    length += variable.chars();
                    if length > VALUE_CHARS_MAX {
                        return Err(format!(
                            "variables come to more than {VALUE_CHARS_MAX} characters"
                        ));
                    }
                    value.append(&variable);
                }
                letter => value.push(letter),
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(letter) = self.peek() {
            let fits = letter == '_'
                || letter.is_ascii_alphabetic()
                || (!name.is_empty() && letter.is_ascii_digit());
            if !fits {
                break;
            }
            name.push(letter);
            self.at += 1;
        }
        name
    }

    /// Reads what follows a `$`.
    fn variable(&mut self, depth: usize) -> Result<Value, String> {
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok(Value::of("$"));
            }
            return Ok(self
                .value_of(&name)
                .unwrap_or_else(|| unknown(format!("${name}"))));
        }
        let begins = self.at;
        self.at += 1;
        let name = self.name();
        if name.is_empty() {
            return Err("a ${ names no variable".to_owned());
        }
        let known = self.value_of(&name);
        let mut operator = String::new();
        match self.next() {
            Some('}') => return Ok(known.unwrap_or_else(|| unknown(format!("${{{name}}}")))),
            Some(':') => operator.push(':'),
            Some(_) => self.at -= 1,
            None => return Err("a ${ has no '}'".to_owned()),
        }
        operator.extend(self.next());
        if !matches!(operator.as_str(), "-" | ":-" | "+" | ":+" | "?" | ":?") {
            return Err(format!(
                "${{{name}{operator}…}} is not supported: ${{{name}:-word}}, ${{{name}:+word}} and ${{{name}:?word}} are"
            ));
        }
        let word_begins = self.at;
        let word = self.until(Some('}'), depth + 1)?;
        let Some(value) = known else {
            return self.unset(begins, word_begins, &name, &operator, word);
        };
        let is_empty = value
            .0
            .iter()
            .all(|piece| matches!(piece, Piece::Text(text) if text.is_empty()));
        let is_missing = operator.starts_with(':') && is_empty;
        Ok(match (operator.trim_start_matches(':'), is_missing) {
            ("-", true) | ("+", false) => word,
            ("-" | "?", false) => value,
            ("+", true) => Value::default(),
            _ => return Err(missing(&name, &word)),
        })
    }

    /// A variable that the Dockerfile does not set: the image may.
    fn unset(
        &self,
        begins: usize,
        word_begins: usize,
        name: &str,
        operator: &str,
        word: Value,
    ) -> Result<Value, String> {
        if !self.variables.passes_unknown {
            return match operator.trim_start_matches(':') {
                "-" => Ok(word),
                "+" => Ok(Value::default()),
                _ => Err(missing(name, &word)),
            };
        }
        let raw: String = self.letters[word_begins..self.at - 1].iter().collect();
        // The server reads quotes and escapes within differently.
        if raw.contains(['$', '"', '\'', '`', '\\', '{', '}']) {
            return Err(format!(
                "the word in ${{{name}{operator}…}} must be plain, as the Dockerfile does not set {name}"
            ));
        }
        Ok(unknown(self.letters[begins - 1..self.at].iter().collect()))
    }

    fn value_of(&self, name: &str) -> Option<Value> {
        self.variables.values.get(name).cloned()
    }
}

fn unknown(text: String) -> Value {
    Value(vec![Piece::Unknown(text)])
}

fn missing(name: &str, word: &Value) -> String {
    let word = word.known().unwrap_or_default();
    let word = if word.is_empty() { "it is not set" } else { &word };
    format!("the variable {name} is missing: {word}")
}

/// Splits a text at whitespace that is neither quoted nor escaped. Words keep their quotes.
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, letter) if letter.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            _ => {}
        }
        word.push(letter);
        if letter == escape && quote != Some('\'') {
            word.extend(letters.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The list that a text is in JSON, if it is one of strings.
pub(super) fn json(text: &str) -> Option<Vec<String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// Words as a shell reads them to the same.
pub(super) fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    words.join(" ")
}

fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"@%+=:,./_-".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
