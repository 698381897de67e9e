/// A glob over a path: `*` and `?` match within a part, `**` over parts, `[…]` one of several characters, and `\` makes
/// any character stand for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// This one.
    Same(Letter),
    /// Any character but a slash.
    Any,
    /// Any of these, or none of them.
    Class {
        is_negated: bool,
        ranges: Vec<(Letter, Letter)>,
    },
    /// Anything without a slash.
    Star,
    /// Anything.
    Deep,
    /// Nothing, or anything that ends with a slash: the second token is where it is within.
    DeepSlash,
    Within,
}

impl Pattern {
    /// Reads a cleaned glob; none where a `[` has no end.
    pub(super) fn parse(glob: &[u8]) -> Option<Self> {
        let glob: Vec<Letter> = letters(glob).collect();
        let is = |at: usize, letter: char| glob.get(at) == Some(&Letter::from(letter));
        let mut tokens = Vec::new();
        let mut at = 0;
        while let Some(&letter) = glob.get(at) {
            at += 1;
            match letter.as_char() {
                Some('*') if is(at, '*') => {
                    while is(at, '*') {
                        at += 1;
                    }
                    if is(at, '/') {
                        at += 1;
                        tokens.extend([Token::DeepSlash, Token::Within]);
                    } else {
                        tokens.push(Token::Deep);
                    }
                }
                Some('*') => tokens.push(Token::Star),
                Some('?') => tokens.push(Token::Any),
                Some('[') => {
                    let (class, length) = class(&glob[at..])?;
                    at += length;
                    tokens.push(class);
                }
                Some('\\') => {
                    tokens.push(Token::Same(glob.get(at).copied().unwrap_or(letter)));
                    at += 1;
                }
                _ => tokens.push(Token::Same(letter)),
            }
        }
        Some(Self(tokens))
    }

    /// Whether all of a path matches; the beginning itself does where nothing else is named. It takes time by the product
    /// of both lengths at most.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        if path.is_empty() {
            return self.0.is_empty();
        }
        let mut states = vec![false; self.0.len() + 1];
        states[0] = true;
        self.settle(&mut states);
        for letter in letters(path) {
            let is_slash = letter == Letter::SLASH;
            let mut next = vec![false; states.len()];
            for (at, token) in self.0.iter().enumerate().filter(|(at, _)| states[*at]) {
                match token {
                    Token::Same(wanted) => next[at + 1] |= letter == *wanted,
                    Token::Any => next[at + 1] |= !is_slash,
                    Token::Class { is_negated, ranges } => {
                        let is_in = ranges.iter().any(|(low, high)| (*low..=*high).contains(&letter));
                        next[at + 1] |= is_in != *is_negated && !is_slash;
                    }
                    Token::Star => next[at] |= !is_slash,
                    Token::Deep => next[at] = true,
                    Token::DeepSlash => {
                        next[at + 1] = true;
                        next[at + 2] |= is_slash;
                    }
                    Token::Within => {
                        next[at] = true;
                        next[at + 1] |= is_slash;
                    }
                }
            }
            states = next;
            self.settle(&mut states);
        }
        states[self.0.len()]
    }

    /// Goes on over what may match nothing.
    fn settle(&self, states: &mut [bool]) {
        for (at, token) in self.0.iter().enumerate() {
            if states[at] {
                match token {
                    Token::Star | Token::Deep => states[at + 1] = true,
                    Token::DeepSlash => states[at + 2] = true,
                    _ => {}
                }
            }
        }
    }
}

/// A character, or a byte that belongs to none: beyond all characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Letter(u32);

impl Letter {
    const SLASH: Self = Self('/' as u32);

    fn as_char(self) -> Option<char> {
        char::from_u32(self.0)
    }
}

impl From<char> for Letter {
    fn from(letter: char) -> Self {
        Self(letter.into())
    }
}

fn letters(bytes: &[u8]) -> impl Iterator<Item = Letter> + '_ {
    const NO_CHARS: u32 = 0x11_0000;
    bytes.utf8_chunks().flat_map(|chunk| {
        let odd = chunk
            .invalid()
            .iter()
            .map(|byte| Letter(NO_CHARS + u32::from(*byte)));
        chunk.valid().chars().map(Letter::from).chain(odd)
    })
}

/// Reads a class behind its `[`, and says how long it is; none where it has no end.
fn class(glob: &[Letter]) -> Option<(Token, usize)> {
    let mut at = 0;
    let is_negated = matches!(glob.first()?.as_char(), Some('^' | '!'));
    at += usize::from(is_negated);
    let mut ranges = Vec::new();
    loop {
        let low = *glob.get(at)?;
        if low.as_char() == Some(']') && !ranges.is_empty() {
            return Some((Token::Class { is_negated, ranges }, at + 1));
        }
        let low = escaped(glob, &mut at)?;
        let mut high = low;
        let is_range = glob.get(at)?.as_char() == Some('-') && glob.get(at + 1)?.as_char() != Some(']');
        if is_range {
            at += 1;
            high = escaped(glob, &mut at)?;
        }
        ranges.push((low, high));
    }
}

fn escaped(glob: &[Letter], at: &mut usize) -> Option<Letter> {
    let mut letter = *glob.get(*at)?;
    *at += 1;
    if letter.as_char() == Some('\\') {
        letter = *glob.get(*at)?;
        *at += 1;
    }
    Some(letter)
}

/// A path without empty parts and dots, from its beginning on; empty for the beginning itself, none where it leads out.
pub(super) fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// Where all that a cleaned glob matches lies: its parts before the first that is no plain name, without escapes.
pub(super) fn literal(glob: &[u8]) -> Vec<u8> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for part in glob.split(|b| *b == b'/') {
        let mut name = Vec::new();
        let mut bytes = part.iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'*' | b'?' | b'[' => return parts.join(&b'/'),
                b'\\' => name.extend(bytes.next().copied().or(Some(b'\\'))),
                byte => name.push(*byte),
            }
        }
        parts.push(name);
    }
    parts.join(&b'/')
}
