//! The words of a slot, by its size: one line or two, what is inline in them, and what goes on in further slots.
//!
//! Copies out of the producer's memory, word by word, and judges nothing: that is [`Consumer`](super::Consumer)'s.

#![forbid(unsafe_code)]

use zerocopy::IntoBytes;

use crate::lane::ring::{INLINE, INLINE_BYTES, Inline, Tag, line_of, parts};
use crate::shm::atomics::Ordering;
use crate::shm::region::{Line, Peers, Words, load_pair};

/// A slot of one size: what the quick ways of receiving are made for, one by one.
pub(super) trait Slot {
    const INLINE: Inline;
    /// All words of payload.
    type Words: IntoBytes + zerocopy::Immutable;
    /// Copies at least `len` bytes of the payload of the slot whose first line is `line`, number `at`.
    fn words<D: Words>(data: &Peers<D>, line: &Line, at: usize, len: usize) -> Self::Words;
}

pub(super) struct OneLine;
pub(super) struct TwoLines;

impl Slot for OneLine {
    const INLINE: Inline = Inline::Small;
    type Words = [[u64; 2]; 3];

    #[inline(always)]
    fn words<D: Words>(_: &Peers<D>, line: &Line, _: usize, _: usize) -> Self::Words {
        inline_words(line)
    }
}

impl Slot for TwoLines {
    const INLINE: Inline = Inline::Wide;
    type Words = [[u64; 2]; 7];

    #[inline(always)]
    fn words<D: Words>(data: &Peers<D>, line: &Line, at: usize, len: usize) -> Self::Words {
        let [a, b, c] = inline_words(line);
        if len <= INLINE_BYTES {
            return [a, b, c, [0; 2], [0; 2], [0; 2], [0; 2]];
        }
        let more = data.line(at + 1);
        let [d, e] = [load_pair(more, 0), load_pair(more, 2)];
        [a, b, c, d, e, load_pair(more, 4), load_pair(more, 6)]
    }
}

/// A copy of a message that is whole in one slot.
pub(super) struct Plain<S: Slot> {
    pub(super) tag: Tag,
    pub(super) len: usize,
    pub(super) words: S::Words,
}

impl<S: Slot> Plain<S> {
    #[inline(always)]
    pub(super) fn payload(&self) -> &[u8] {
        &self.words.as_bytes()[..self.len]
    }
}

/// The inline words of a slot's first line: all of them, whatever the length, since the line is here.
#[inline(always)]
pub(super) fn inline_words(line: &Line) -> [[u64; 2]; INLINE_BYTES / 16] {
    [
        load_pair(line, INLINE),
        load_pair(line, INLINE + 2),
        load_pair(line, INLINE + 4),
    ]
}

/// The slots of a lane, apart from the scratch that they are copied to.
pub(super) struct Lines<'a, D> {
    pub(super) data: &'a Peers<D>,
    pub(super) capacity: usize,
    pub(super) inline: Inline,
}

impl<D: Words> Lines<'_, D> {
    /// Copies the words of slot number `n` from word `first` on, as many as `to` has room for.
    pub(super) fn gather(&self, n: u64, first: usize, to: &mut [u64]) {
        let mut to = to.iter_mut();
        let begins = line_of(n, self.capacity, self.inline);
        for (line, at, _) in parts(self.inline, first) {
            // In this order: `zip` looks for a place only when there is a word for it.
            for (from, to) in self.data.line(begins + line)[at..].iter().zip(to.by_ref()) {
                *to = from.load(Ordering::Relaxed);
            }
        }
    }
}
