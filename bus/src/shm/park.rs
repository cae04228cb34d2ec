//! Sleeping for the other side of a lane, and waking it.
//!
//! One always waits on a word that the *other* side writes (the next slot's sequence, or the cursor), so
//! that the kernel's comparison sees the very store one waits for. The sleeper says that it sleeps in its
//! own memory; the other side looks there after its store. Both put a full fence between their store and
//! their load, so at least one sees the other: no wake-up is lost.
//!
//! A [`Closer`] is the second word of every wait: it ends the sleep when the daemon says that the other
//! side has gone.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use super::atomics::{AtomicU32, AtomicU64, Ordering};
use super::futex;
use crate::message::Status;

/// Says to both ends of waiting that a lane is over. Clones share it.
#[derive(Clone, Debug)]
pub struct Closer(Arc<AtomicU32>);

/// The word of a lane that is open.
const OPEN: u32 = 0;

impl Default for Closer {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(OPEN)))
    }
}

impl Closer {
    /// Ends the lane for this side; the first status counts.
    pub fn close(&self, status: Status) {
        let value = status.0.wrapping_add(1).max(1);
        // SYNC: closed. Pairs with the load in `status`; what the closing thread knew is then known.
        if self
            .0
            .compare_exchange(OPEN, value, Ordering::Release, Ordering::Relaxed)
            .is_ok()
        {
            futex::wake_flag(&self.0);
        }
    }

    /// Why the lane is over; `None` while it is not.
    pub fn status(&self) -> Option<Status> {
        // SYNC: closed.
        match self.0.load(Ordering::Acquire) {
            OPEN => None,
            value => Some(Status(value - 1)),
        }
    }
}

/// Whether this kernel can wait on two words at once (Linux 5.16), and the sandbox lets us.
#[cfg(not(loom))]
pub fn probe_waitv() -> Result<(), std::io::Error> {
    futex::probe_waitv()
}

/// Sleeps while the low half of `word` is that of `seen` and the lane is open, until `deadline` at most.
/// May return early; the caller looks again.
pub(crate) fn sleep(word: &AtomicU64, seen: u64, closer: &Closer, deadline: Option<Instant>) {
    futex::wait_either(word, seen, &closer.0, OPEN, deadline);
}

/// Wakes whoever sleeps on `word`, in any process.
pub(crate) fn wake_word(word: &AtomicU64) {
    futex::wake_word(word);
}
