//! After the end of a lane: which of its messages were received, and the others once more.
//!
//! The two sides of a lane hear of its end one after the other, so a message may be committed behind the back of a
//! consumer that has stopped already. A consumer that stops says so in its cursor page, and takes nothing more after
//! that. Until then the slots that it has not read are still in the producer's own memory, which nobody else can
//! write: so the producer knows exactly what was not received, and still has it.
//!
//! The producer's thread; waits for the consumer's word, and fails when it doesn't come in time: then the consumer was
//! killed, or is still reading.

#![forbid(unsafe_code)]

use std::time::Duration;

use zerocopy::IntoBytes as _;

use super::super::{
    EXT, Ext, HEAD, Head, INLINE, Message, REFERENCE, SPILL, SendError, parts, slots_for,
};
use super::Producer;
use crate::shm::atomics::Ordering;
use crate::shm::clock::Deadline;
use crate::shm::counters::DONE_WORD;
use crate::shm::park::{Closer, sleep};
use crate::shm::region::Words;
use crate::wait::{Park, Source as _};

/// Why it is not known what was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettleError {
    #[error("the lane is open: what was not received yet may still be")]
    Open,
    #[error(
        "the receiver has not said that it has stopped: up to {messages} messages may have been received or not"
    )]
    Unknown { messages: u64 },
    #[error(transparent)]
    Corrupt(SendError),
}

impl<D: Words, C: Words> Producer<D, C> {
    /// Of a lane that is closed: waits until the consumer has stopped for good, then hands each message that it has not
    /// received, and never will, to `each`, in order; says how many those are. May be called again.
    pub fn settle(
        &mut self,
        timeout: Duration,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<u64, SettleError> {
        if self.closer.status().is_none() {
            return Err(SettleError::Open);
        }
        let stopped = self.await_stop(timeout);
        self.look_at_cursor().map_err(SettleError::Corrupt)?;
        if !stopped {
            let mut messages = 0;
            self.walk_back(|_| messages += 1);
            return Err(SettleError::Unknown { messages });
        }
        let mut messages = 0;
        self.walk_back(|message| {
            messages += 1;
            each(message);
        });
        Ok(messages)
    }

    fn await_stop(&mut self, timeout: Duration) -> bool {
        let mut deadline = Deadline::after(timeout);
        // The lane's own says that it is over; this sleep is to end by the consumer's word alone.
        let never = Closer::default();
        loop {
            // SYNC: done. Pairs with the release store in `Consumer::end`: the position is final.
            if self.cursor.load(DONE_WORD, Ordering::Acquire) != 0 {
                return true;
            }
            if deadline.passed() {
                return false;
            }
            self.arm(Park::Futex);
            self.patience.barrier();
            let word = self.cursor.word(DONE_WORD);
            sleep(word, 0, &never, deadline.instant());
            self.disarm();
        }
    }

    /// Reads this end's own messages again, from the consumer's position on.
    fn walk_back(&self, mut each: impl FnMut(Message<'_>)) {
        let end = self.next();
        let mut slot = self.consumed;
        let mut words = Vec::new();
        while slot != end {
            let line = self.data.line(self.line_of(slot));
            let head = Head(line.load(HEAD));
            let (len, has_ext) = (head.len(), head.has(EXT));
            let slots = slots_for(self.inline, len, has_ext) as u64;
            // A consumer that lies about its position makes nonsense of where messages begin, never more than was written.
            if slots > end.wrapping_sub(slot) {
                return;
            }
            let first = if has_ext { INLINE + 2 } else { INLINE };
            words.clear();
            self.gather(slot, first, &mut words);
            for further in 1..slots {
                self.gather(slot.wrapping_add(further), SPILL, &mut words);
            }
            each(Message {
                tag: head.tag(),
                slot,
                reference: head.has(REFERENCE),
                ext: has_ext.then(|| Ext {
                    sent_ns: line.load(INLINE),
                    crc: line.load(INLINE + 1) as u32,
                    high_flags: (line.load(INLINE + 1) >> 32) as u32,
                }),
                payload: &words.as_bytes()[..len],
            });
            slot = slot.wrapping_add(slots);
        }
    }

    /// All words of slot number `n` from word `first` on.
    fn gather(&self, n: u64, first: usize, words: &mut Vec<u64>) {
        for (line, at, holds) in parts(self.inline, first) {
            let line = self.data.line(self.line_of(n) + line);
            words.extend((at..at + holds / 8).map(|at| line.load(at)));
        }
    }
}
