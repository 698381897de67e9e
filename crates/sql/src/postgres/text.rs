//! PostgreSQL's texts, and those in its jsonb, hold every character but U+0000. Names and labels that users give may hold
//! it: it is kept as two other characters, in a way that makes no two texts the same.
//!
//! Bodies need none of this: JSON writes U+0000 as an escape, and they are kept as the text of it.

const MARK: char = '\u{1}';

/// As it is stored. Most texts are stored as they are.
pub(crate) fn stored(text: &str) -> String {
    if !text.contains(['\0', MARK]) {
        return text.to_owned();
    }
    let mut stored = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\0' => stored.extend([MARK, '0']),
            MARK => stored.extend([MARK, '1']),
            other => stored.push(other),
        }
    }
    stored
}

/// The text again.
pub(crate) fn meant(stored: &str) -> String {
    let mut meant = String::with_capacity(stored.len());
    let mut characters = stored.chars();
    while let Some(character) = characters.next() {
        match character {
            MARK => meant.push(if characters.next() == Some('0') {
                '\0'
            } else {
                MARK
            }),
            other => meant.push(other),
        }
    }
    meant
}

#[cfg(test)]
mod tests {
    use super::{meant, stored};

    #[test]
    fn every_text_comes_back_and_no_two_are_the_same() {
        let texts = [
            "", "a", "\0", "\u{1}", "\u{1}0", "\u{1}1", "\u{1}\0", "\0\u{1}", "a\0b", "ключ",
        ];
        let mut all: Vec<_> = texts.iter().map(|text| stored(text)).collect();
        for (text, stored) in texts.iter().zip(&all) {
            assert!(!stored.contains('\0'));
            assert_eq!(meant(stored), *text);
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), texts.len());
    }
}
