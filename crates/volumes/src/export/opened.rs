//! Files that a machine has open, held open here too.
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Files of one volume that are held open for a machine. The rest are opened whenever they are asked for: they are lost when
/// their last name is.
const OPENED_MAX: usize = 256;

/// Those that are held.
#[derive(Debug)]
pub(super) struct Opened(Mutex<Held>);

#[derive(Debug)]
struct Held {
    next: u64,
    files: BTreeMap<u64, (u64, Arc<OwnedFd>)>,
}

impl Default for Opened {
    fn default() -> Self {
        // What an earlier daemon gave out is none of ours.
        let next = u64::from(rand::random::<u32>()) << 32 | 1;
        Self(Mutex::new(Held {
            next,
            files: BTreeMap::new(),
        }))
    }
}

impl Opened {
    /// Holds a file with this number, and says by which word; by none, 0, where as many are held as may be.
    pub(super) fn hold(&self, node: u64, file: Arc<OwnedFd>) -> u64 {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.files.len() >= OPENED_MAX {
            return 0;
        }
        let word = held.next;
        held.next = word.wrapping_add(1).max(1);
        held.files.insert(word, (node, file));
        word
    }

    /// The file behind a word, if it is held and has this number.
    pub(super) fn get(&self, word: u64, node: u64) -> Option<Arc<OwnedFd>> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, file) = held.files.get(&word)?;
        (*of == node).then(|| Arc::clone(file))
    }

    /// Lets one go.
    pub(super) fn let_go(&self, word: u64) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = held.files.remove(&word);
        drop(held);
        // Closing the last of a file that has no name may take the disk a while.
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stands_for_one_file_and_for_none_where_too_many_are_held() {
        let opened = Opened::default();
        let file = || Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let words: Vec<_> = (0..OPENED_MAX as u64)
            .map(|node| opened.hold(node, file()))
            .collect();
        assert!(opened.get(words[7], 7).is_some());
        assert!(opened.get(words[7], 8).is_none());
        assert_eq!(opened.hold(9, file()), 0);
        assert!(opened.get(0, 9).is_none());
        opened.let_go(words[7]);
        opened.let_go(words[7]);
        assert!(opened.get(words[7], 7).is_none());
        assert_ne!(opened.hold(9, file()), 0);
    }
}
