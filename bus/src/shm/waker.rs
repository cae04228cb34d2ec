//! Waking a waiter from another thread of its own process.
//!
//! One word, private to the process: how the waiter sleeps, and what was posted to it. Posting and going to
//! sleep are read-modify-writes of that one word, so one of the two always sees the other; no fence is needed.
//! A waiter sleeps on this word next to those of its sources, whose [`super::park::Closer`]s post here
//! when they close: that is why a source costs one word of a wait, not two.
//!
//! Any thread, no privilege, no allocation after set-up.

#![forbid(unsafe_code)]

use std::sync::{Arc, OnceLock};

use super::atomics::{AtomicU32, Ordering};
use super::bell::Ringer;
use super::futex;

const AWAKE: u32 = 0;
/// The waiter sleeps on this word.
const ON_FUTEX: u32 = 1;
/// The waiter sleeps in `epoll_wait`, its own bell among the rest.
const ON_BELL: u32 = 2;
/// Somebody called [`Waker::wake`].
const WOKEN: u32 = 4;
/// A source has something to say: look again.
const NUDGED: u32 = 8;

/// Wakes one [`crate::wait::Waiter`]. Clones wake the same one.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    word: AtomicU32,
    /// Set before the waiter first sleeps in `epoll_wait`.
    bell: OnceLock<Ringer>,
}

/// What was posted while the waiter was elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Posted(u32);

impl Posted {
    pub fn any(self) -> bool {
        self.0 & (WOKEN | NUDGED) != 0
    }

    pub fn woken(self) -> bool {
        self.0 & WOKEN != 0
    }
}

impl Waker {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            word: AtomicU32::new(AWAKE),
            bell: OnceLock::new(),
        }))
    }

    /// Ends the waiter's present wait, or its next one, with [`crate::wait::Event::Woken`]. Several calls before
    /// it looks are one event.
    pub fn wake(&self) {
        self.post(WOKEN);
    }

    /// Makes the waiter look at its sources again.
    pub(crate) fn nudge(&self) {
        self.post(NUDGED);
    }

    fn post(&self, what: u32) {
        // SYNC: posted. Pairs with `take` and `park`: whoever sees the bit sees what was done before.
        let before = self.0.word.fetch_or(what, Ordering::AcqRel);
        if Posted(before).any() {
            // Whoever posted first wakes, if there is anyone to wake.
            return;
        }
        if before & ON_FUTEX != 0 {
            futex::wake_flag(&self.0.word);
        }
        if before & ON_BELL != 0
            && let Some(bell) = self.0.bell.get()
        {
            bell.ring();
        }
    }

    /// Gives the waker the bell that it rings while the waiter is in `epoll_wait`.
    #[cfg(not(loom))]
    pub(crate) fn set_bell(&self, bell: Ringer) {
        let first = self.0.bell.set(bell);
        debug_assert!(first.is_ok(), "a waiter has one bell");
    }

    /// Says that the waiter is going to sleep. `false`: something was posted, it must not.
    pub(crate) fn park(&self, how: crate::wait::Park) -> bool {
        let flag = match how {
            crate::wait::Park::Futex => ON_FUTEX,
            crate::wait::Park::Bell => ON_BELL,
        };
        // SYNC: posted.
        self.0
            .word
            .compare_exchange(AWAKE, flag, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The word to sleep on and its value while nothing is posted, between `park(Futex)` and `take`.
    pub(crate) fn futex(&self) -> (&AtomicU32, u32) {
        (&self.0.word, ON_FUTEX)
    }

    /// Whether something is posted; leaves it there.
    pub(crate) fn posted(&self) -> bool {
        // Relaxed: `take` acquires.
        Posted(self.0.word.load(Ordering::Relaxed)).any()
    }

    /// Is awake again, and takes what was posted.
    pub(crate) fn take(&self) -> Posted {
        // SYNC: posted.
        Posted(self.0.word.swap(AWAKE, Ordering::AcqRel))
    }

    /// Whether both wake the same waiter.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
