//! Other people's words on this side's terminal.

/// As much of a text as fits into a message.
const SHORT_CHARS_MAX: usize = 80;

/// The beginning of a text, on one line.
pub(super) fn short(text: &str) -> String {
    let line = plain(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    if line.chars().count() <= SHORT_CHARS_MAX {
        return line;
    }
    let mut short: String = line.chars().take(SHORT_CHARS_MAX - 1).collect();
    short.push('…');
    short
}

/// A text without what a terminal would obey: escape sequences and other control characters, but for tabs and line ends.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => skip(&mut letters),
            // The same sequences in one character.
            '\u{9b}' => skip_parameters(&mut letters),
            '\t' | '\n' => plain.push(letter),
            letter if letter.is_control() || is_direction(letter) => {}
            letter => plain.push(letter),
        }
    }
    plain
}

/// What turns the direction of text, so that it reads as something else.
const fn is_direction(letter: char) -> bool {
    matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Skips what follows an escape (ECMA-48).
fn skip(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match letters.peek() {
        Some('[') => {
            letters.next();
            skip_parameters(letters);
        }
        // A string, up to BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(letter) = letters.next() {
                if letter == '\u{7}' || letter == '\u{9c}' {
                    break;
                }
                if letter == '\u{1b}' {
                    letters.next_if_eq(&'\\');
                    break;
                }
            }
        }
        Some(' '..='/') => {
            while letters.next_if(|letter| matches!(letter, ' '..='/')).is_some() {}
            letters.next();
        }
        Some(letter) if !letter.is_control() => {
            letters.next();
        }
        _ => {}
    }
}

fn skip_parameters(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while letters.next_if(|letter| matches!(letter, ' '..='?')).is_some() {}
    letters.next_if(|letter| matches!(letter, '@'..='~'));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_but_text() {
        assert_eq!(plain("\u{1b}[1;31mred\u{1b}[0m"), "red");
        assert_eq!(plain("\u{1b}]0;title\u{7}a\u{1b}]8;;x\u{1b}\\b"), "ab");
        assert_eq!(plain("a\rb\u{8}c\u{7}\u{9b}2Jd"), "abcd");
        assert_eq!(plain("a\tb\n"), "a\tb\n");
        assert_eq!(plain("\u{1b}(Bx\u{1b}"), "x");
        assert_eq!(plain("\u{202e}abc"), "abc");
        assert_eq!(plain("ü…"), "ü…");
    }

    #[test]
    fn long_texts_are_cut_on_one_line() {
        assert_eq!(short("a\n  b"), "a b");
        assert_eq!(short(&"ä".repeat(200)).chars().count(), SHORT_CHARS_MAX);
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_controls_is_left(text in ".*") {
            let plain = plain(&text);
            proptest::prop_assert!(plain.chars().all(|c| !c.is_control() || c == '\t' || c == '\n'));
        }
    }
}
