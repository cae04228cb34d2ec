//! After the end of a log: what its reliable readers may not have read, and where another log goes on.
//!
//! A log ends for its sides one after the other, so messages may be committed behind the back of a reader that has
//! stopped. They are still in the producer's own memory, which nobody else can write: a reliable reader holds it up before
//! anything is overwritten that this reader has not read. Positions are published in steps, so some of what is left has
//! been read; message numbers say which, because the next log goes on with them.
//!
//! The producer's thread; waits for nobody, allocates only to put a message of several slots together.

#![forbid(unsafe_code)]

use zerocopy::IntoBytes as _;

use super::super::sequence::begins;
use super::super::{HEAD, INLINE, SEQUENCE, SPILL, line_of, slots_for};
use super::Writer;
use crate::channel::Tag;
use crate::lane::ring::Head;
use crate::shm::region::{LINE_WORDS, Words};

/// Where a log begins that goes on where another has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// What all logs that continue each other say of themselves; 0: this one continues none, and none will continue it.
    pub series: u64,
    /// The number of its first slot.
    pub slot: u64,
    /// The number of its first message.
    pub number: u64,
}

/// One message that a reliable reader may not have read.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    pub number: u64,
    pub tag: Tag,
    pub payload: &'a [u8],
}

impl<D: Words + 'static, C: Words + 'static> Writer<D, C> {
    /// Hands each message that some reliable reader has not said to have read to `each`, in order; says where a log begins
    /// that is to have these first. Not for logs with references: what those refer to goes with the log.
    pub fn left(&mut self, mut each: impl FnMut(Left<'_>)) -> Place {
        let mut slot = self.read_by_reliable();
        let mut place = Place {
            series: self.series,
            slot: self.next,
            number: self.number,
        };
        let mut words = Vec::new();
        while slot < self.next {
            let line = self.data.line(line_of(slot, self.capacity));
            let Some(number) = begins(line.load(SEQUENCE)) else {
                // A reader that lies about its position may be in the middle of a message.
                slot += 1;
                continue;
            };
            if number < place.number {
                (place.slot, place.number) = (slot, number);
            }
            let head = Head(line.load(HEAD));
            let slots = slots_for(head.len()) as u64;
            words.clear();
            words.extend((INLINE..LINE_WORDS).map(|at| line.load(at)));
            for further in 1..slots {
                let line = self.data.line(line_of(slot + further, self.capacity));
                words.extend((SPILL..LINE_WORDS).map(|at| line.load(at)));
            }
            each(Left {
                number,
                tag: head.tag(),
                payload: &words.as_bytes()[..head.len()],
            });
            slot += slots;
        }
        place
    }
}
