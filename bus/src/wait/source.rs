//! What can be waited for: the one thing that lanes, logs and producers without room have in common.
//!
//! Each watches a word that its *other* side writes next, and says in its own memory that it sleeps. The
//! [`super::Waiter`] arms all its sources, issues one barrier for all, looks at all, sleeps, and disarms:
//! the same steps as a channel takes by itself (see [`crate::shm::park`]).

#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use crate::shm::atomics::{AtomicU64, Ordering, fence};
use crate::shm::barrier;
use crate::shm::counters::{parked, setup};
use crate::shm::park::Closer;

/// How a side is going to sleep, and so how it is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Park {
    /// On a futex: the waker wakes the word that it wrote.
    Futex,
    /// In an event loop: the waker rings this side's [`super::Bell`].
    Bell,
}

impl Park {
    /// The value of the parked word ([`crate::shm::counters::PARKED_WORD`]).
    pub const fn flag(self) -> u64 {
        match self {
            Self::Futex => parked::FUTEX,
            Self::Bell => parked::BELL,
        }
    }
}

/// What this side promised its waker when the channel was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parking {
    /// That it never sleeps: the waker doesn't look, so it must not.
    NeverParks,
    /// That it issues the process-wide barrier before it sleeps: the waker has no fence.
    Heavy,
    /// Nothing: the waker fences, and so does this side.
    Light,
}

impl Parking {
    /// What the set-up flags of a control page say ([`setup`]).
    pub const fn from_setup(flags: u64) -> Self {
        if flags & setup::NEVER_PARKS != 0 {
            Self::NeverParks
        } else if flags & setup::MEMBARRIER != 0 {
            Self::Heavy
        } else {
            Self::Light
        }
    }
}

/// The word that the other side writes next.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    pub word: &'a AtomicU64,
    /// Its value while there is nothing to be had. The kernel compares the low halves.
    pub seen: u64,
}

/// One thing to wait for.
///
/// Implementations answer for their own end only: a peer that writes nonsense makes its own source ready
/// (so that the next `try_*` reports it), and no other.
pub trait Source {
    /// Which word, and which value means that there is nothing.
    fn watch(&self) -> Watch<'_>;

    /// First publishes whatever the other side may be waiting for (the position read, credits): both sides
    /// could sleep otherwise, each waiting for the other. Then stores `how` in this side's parked word, relaxed.
    /// The caller issues the barrier.
    fn arm(&mut self, how: Park);

    /// Takes back [`Self::arm`].
    fn disarm(&mut self);

    /// Would the next `try_*` return anything else than "nothing yet"? A closed or corrupt channel is ready.
    /// Only looks.
    fn is_ready(&self) -> bool {
        let Watch { word, seen } = self.watch();
        // Relaxed: only a hint; `try_*` acquires what it reads. After `arm` and a barrier it can't miss a store
        // whose writer missed the parked word.
        word.load(Ordering::Relaxed) != seen || self.closer().status().is_some()
    }

    /// Ends this source from another thread. A waiter asks it to be told.
    fn closer(&self) -> &Closer;

    /// What was promised to the other side about sleeping.
    fn parking(&self) -> Parking;

    /// What the other side rings after `arm(Park::Bell)`; `None`: it has no bell, so this source can't be
    /// waited for in an event loop.
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What to do after arming for an event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// Something is ready already, and nothing is armed any more: take it.
    Ready,
    /// Wait: the descriptor tells when there is something.
    Asleep,
}

/// Has the other side ring this source's bell from now on, for an event loop that waits for one source. Take until
/// there is nothing; then this; unless it says [`Armed::Ready`], wait for the bell (**edge-triggered**: a bell is
/// always readable), [`Source::disarm`], and take again. For level-triggered loops, or several sources, there is
/// [`super::Waiter::arm`].
pub fn arm_bell(source: &mut (impl Source + ?Sized)) -> Armed {
    source.arm(Park::Bell);
    barrier_for(source.parking() == Parking::Heavy);
    if source.is_ready() {
        source.disarm();
        Armed::Ready
    } else {
        Armed::Asleep
    }
}

/// Between storing parked words and the last look: once, for however many sources.
pub(crate) fn barrier_for(heavy: bool) {
    // SYNC: consumer-parks, producer-parks. The parked words were stored before, the looks come after.
    if heavy {
        barrier::heavy();
    } else {
        fence(Ordering::SeqCst);
    }
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn watch(&self) -> Watch<'_> {
        (**self).watch()
    }

    fn arm(&mut self, how: Park) {
        (**self).arm(how);
    }

    fn disarm(&mut self) {
        (**self).disarm();
    }

    fn is_ready(&self) -> bool {
        (**self).is_ready()
    }

    fn closer(&self) -> &Closer {
        (**self).closer()
    }

    fn parking(&self) -> Parking {
        (**self).parking()
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        (**self).bell()
    }
}
