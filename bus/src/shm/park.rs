//! Sleeping for the other side of a lane, and waking it.
//!
//! One always waits on a word that the *other* side writes (the next slot's sequence, or the cursor), so
//! that the kernel's comparison sees the very store one waits for. The sleeper says that it sleeps in its
//! own memory; the other side looks there after its store. Between store and look both have a full fence, or
//! the sleeper issues one for both (`shm::patience`), so at least one sees the other: no wake-up is lost.
//!
//! A [`Closer`] is the second word of every wait: it ends the sleep when the daemon says that the other
//! side has gone. A waiter on many channels does without those second words: it asks each closer to tell
//! its [`Waker`].

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::atomics::{AtomicU32, AtomicU64, Ordering};
use super::futex;
use super::waker::Waker;
use crate::message::Status;

/// Says to both ends of waiting that a lane is over. Clones share it.
#[derive(Clone, Debug)]
pub struct Closer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    word: AtomicU32,
    /// The waiters that hold this side. Locked only to change or copy the list: nothing happens under it.
    told: Mutex<Vec<Waker>>,
}

/// The word of a lane that is open.
const OPEN: u32 = 0;

impl Default for Closer {
    fn default() -> Self {
        Self(Arc::new(Shared {
            word: AtomicU32::new(OPEN),
            told: Mutex::new(Vec::new()),
        }))
    }
}

impl Closer {
    /// Ends the lane for this side; the first status counts.
    pub fn close(&self, status: Status) {
        let value = status.0.wrapping_add(1).max(1);
        // SYNC: closed. Pairs with the load in `status`; what the closing thread knew is then known.
        if self
            .0
            .word
            .compare_exchange(OPEN, value, Ordering::Release, Ordering::Relaxed)
            .is_ok()
        {
            futex::wake_flag(&self.0.word);
            // A waiter that comes too late for this list finds the word when it looks.
            for waker in self.told(|told| told.clone()) {
                waker.nudge();
            }
        }
    }

    /// Has `waker`'s waiter look again when this closes.
    pub(crate) fn tell(&self, waker: Waker) {
        self.told(|told| told.push(waker));
    }

    /// Takes back one [`Self::tell`].
    pub(crate) fn forget(&self, waker: &Waker) {
        self.told(|told| {
            if let Some(at) = told.iter().position(|other| other.is(waker)) {
                told.swap_remove(at);
            }
        });
    }

    fn told<R>(&self, change: impl FnOnce(&mut Vec<Waker>) -> R) -> R {
        // A list of handles is whole at any time, also after a panic elsewhere.
        change(&mut self.0.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why the lane is over; `None` while it is not.
    #[inline]
    pub fn status(&self) -> Option<Status> {
        // SYNC: closed.
        match self.0.word.load(Ordering::Acquire) {
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
    futex::wait_either(word, seen, &closer.0.word, OPEN, deadline);
}

/// As [`sleep`], on several words of channels that end together.
#[cfg(not(loom))]
pub(crate) fn sleep_any<'a>(
    words: impl Iterator<Item = (&'a AtomicU64, u64)>,
    closer: &Closer,
    deadline: Option<Instant>,
) {
    futex::wait_any(words, &closer.0.word, OPEN, deadline);
}

/// Wakes whoever sleeps on `word`, in any process.
pub(crate) fn wake_word(word: &AtomicU64) {
    futex::wake_word(word);
}
