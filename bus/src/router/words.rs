//! Topics, types and methods as the record names them: each kept once, however many messages name it.
//!
//! A table of fixed size: a word that is not in its place is made anew and takes it. So it never grows, and agents that use
//! many words lose nothing but the saving. Pure; can't fail.

#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

const PLACES: usize = 256;

#[derive(Debug)]
pub(super) struct Words {
    /// With a secret, so that nobody can have another's words put out on purpose.
    hash: RandomState,
    places: Box<[Option<Arc<str>>; PLACES]>,
    empty: Arc<str>,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            hash: RandomState::new(),
            places: Box::new([const { None }; PLACES]),
            empty: "".into(),
        }
    }
}

impl Words {
    /// The word, shared with whoever got it before.
    pub fn get(&mut self, word: &str) -> Arc<str> {
        if word.is_empty() {
            return self.empty.clone();
        }
        let place = &mut self.places[self.hash.hash_one(word) as usize % PLACES];
        match place {
            Some(held) if **held == *word => held.clone(),
            _ => place.insert(word.into()).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_made_once_and_never_mistaken_for_another() {
        let mut words = Words::default();
        let first = words.get("build.done");
        assert!(Arc::ptr_eq(&first, &words.get("build.done")));
        for n in 0..10_000 {
            let word = format!("t{n}");
            assert_eq!(*words.get(&word), *word);
        }
        assert_eq!((&*first, &*words.get("")), ("build.done", ""));
    }
}
