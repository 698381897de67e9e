//! Words that errors name as `&'static str`, from peers that may know others than this process.
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// A word is some words of English.
const WORD_BYTES_MAX: usize = 200;
/// More than all versions of Atoll have, and small enough to be kept for ever.
const WORDS_MAX: usize = 2048;
/// What is said in the place of a word that is not kept.
const OTHER: &str = "something that this version has no word for";

static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// The word, kept for as long as the process lives. What cannot be a word, and what is one too many, is another's.
pub(crate) fn word(text: &str) -> &'static str {
    kept(&mut WORDS.lock().unwrap_or_else(PoisonError::into_inner), text)
}

fn kept(words: &mut BTreeSet<&'static str>, text: &str) -> &'static str {
    if let Some(kept) = words.get(text) {
        return kept;
    }
    if text.len() > WORD_BYTES_MAX || words.len() >= WORDS_MAX || text.chars().any(char::is_control) {
        return OTHER;
    }
    let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
    words.insert(kept);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_kept_once_and_what_is_none_is_not() {
        let mut words = BTreeSet::new();
        let other = String::from_utf8(b"a step".to_vec()).unwrap();
        let (first, second) = (kept(&mut words, "a step"), kept(&mut words, &other));
        assert_eq!(first, "a step");
        assert!(std::ptr::eq(first, second));
        assert_eq!(kept(&mut words, &"x".repeat(WORD_BYTES_MAX + 1)), OTHER);
        assert_eq!(kept(&mut words, "a\nstep"), OTHER);
    }

    #[test]
    fn no_peer_makes_it_keep_words_without_end() {
        let mut words = BTreeSet::new();
        for number in 0..WORDS_MAX * 2 {
            kept(&mut words, &format!("word {number}"));
        }
        assert_eq!(words.len(), WORDS_MAX);
        assert_eq!(kept(&mut words, "word 0"), "word 0");
        assert_eq!(kept(&mut words, "another"), OTHER);
    }
}
