//! How long a side looks before it sleeps, and how the other side finds out that it does.
//!
//! The two halves of parking, without the sleep itself (that is [`super::park`]): [`Patience`]
//! belongs to the side that waits, [`Look`] to the side that made something happen. Who pays for
//! the fence between them was settled when the channel was set up, by flags in the control pages
//! ([`setup`]):
//!
//! | the sleeper waits | its flags | the sleeper, before it sleeps | the waker, after its store |
//! | --- | --- | --- | --- |
//! | busy | `NEVER_PARKS` | never sleeps | does not look |
//! | adaptive | `MEMBARRIER`, if this process could be registered and its options don't say otherwise | barrier on every CPU concerned | looks, without a fence |
//! | blocking | none | fence | fence, then looks: it wakes somebody nearly every time, which costs far more |
//!
//! A waker whose own process is not registered fences, whatever the flags say. Nothing here blocks.

#![forbid(unsafe_code)]

use super::atomics::{Ordering, fence};
use super::barrier;
use super::counters::{PARKED_WORD, parked, setup};
use super::region::{Peers, Words};
use crate::channel::Waiting;

/// Most looks of an adaptive side before it sleeps: with a pause between looks, about what a sleep and a
/// wake-up cost together, so that waiting costs at most twice as much as the better choice.
#[cfg(not(loom))]
const LOOKS_MAX: u32 = 512;
/// Fewest: what a message takes that is under way already.
#[cfg(not(loom))]
const LOOKS_MIN: u32 = 16;
/// The checker tries every schedule; looking twice only makes more of them.
#[cfg(loom)]
const LOOKS_MAX: u32 = 0;
#[cfg(loom)]
const LOOKS_MIN: u32 = 0;
/// Every how many waits a side that has learnt to be impatient tries the longest spin again.
const TRY_AGAIN: u32 = 32;

/// The set-up flags of a side that waits like this, to be written before the memory is handed over.
pub(crate) fn setup_flags(waiting: Waiting) -> u64 {
    match waiting {
        Waiting::Busy => setup::NEVER_PARKS,
        Waiting::Adaptive if barrier::register() => setup::MEMBARRIER,
        Waiting::Adaptive | Waiting::Blocking => 0,
    }
}

/// What this side has learnt about waiting.
#[derive(Debug)]
pub(crate) struct Patience {
    waiting: Waiting,
    /// This side's set-up flags say `MEMBARRIER`.
    heavy: bool,
    /// Looks that the next wait begins with (adaptive).
    looks: u32,
    waits: u32,
}

/// How a wait went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slept {
    No,
    Yes,
}

/// The looks of one wait.
#[derive(Debug)]
pub(crate) enum Spin {
    /// Never sleeps; counts its looks.
    ForEver(u32),
    /// Looks that are left.
    Looks(u32),
}

/// What a waiting side does after it has looked in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Look,
    /// Look at the clock first.
    Clock,
    Sleep,
}

/// Every how many looks a side that never sleeps looks at the clock.
const CLOCK_EVERY: u32 = 64;

impl Spin {
    #[inline]
    pub fn step(&mut self) -> Step {
        match self {
            Self::ForEver(looks) => {
                *looks = looks.wrapping_add(1);
                if looks.is_multiple_of(CLOCK_EVERY) {
                    Step::Clock
                } else {
                    Step::Look
                }
            }
            Self::Looks(0) => Step::Sleep,
            Self::Looks(left) => {
                *left -= 1;
                Step::Look
            }
        }
    }
}

impl Patience {
    /// For a side whose page says `flags`.
    pub fn new(waiting: Waiting, flags: u64) -> Self {
        Self {
            waiting,
            heavy: flags & setup::MEMBARRIER != 0,
            looks: LOOKS_MAX,
            waits: 0,
        }
    }

    /// Looks that are made before a wait begins at all.
    #[inline(always)]
    pub fn glances(&self) -> u32 {
        match self.waiting {
            Waiting::Busy => LOOKS_MAX,
            Waiting::Adaptive => LOOKS_MIN,
            Waiting::Blocking => 0,
        }
    }

    /// A wait begins.
    pub fn begin(&mut self) -> Spin {
        match self.waiting {
            Waiting::Busy => Spin::ForEver(0),
            Waiting::Blocking => Spin::Looks(0),
            Waiting::Adaptive => {
                self.waits = self.waits.wrapping_add(1);
                let hopeful = self.waits.is_multiple_of(TRY_AGAIN);
                Spin::Looks(if hopeful { LOOKS_MAX } else { self.looks })
            }
        }
    }

    /// It ended while looking, so looking pays; or not, and the looks were spent for nothing.
    pub fn learn(&mut self, slept: Slept) {
        self.looks = match slept {
            Slept::No => (self.looks * 2).clamp(LOOKS_MIN, LOOKS_MAX),
            Slept::Yes => (self.looks / 2).max(LOOKS_MIN),
        };
    }

    /// Between storing the parked word and the last look.
    pub fn barrier(&self) {
        if self.heavy {
            barrier::heavy();
        } else {
            // SYNC: parks. Pairs with the fence in `Look::parked`: the flag above, then the look below; the waker
            // has its store above and its look at the flag below. One of the two sees the other.
            fence(Ordering::SeqCst);
        }
    }
}

/// How this side finds out, after a store, whether the other one sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The other side never sleeps.
    Never,
    /// The other side issues the barrier for both.
    Light,
    Fenced,
}

impl Look {
    /// For a peer whose page says `flags`. A peer that lies only misses its own wake-ups.
    pub fn after(flags: u64) -> Self {
        if flags & setup::NEVER_PARKS != 0 {
            Self::Never
        } else if flags & setup::MEMBARRIER != 0 && barrier::register() {
            Self::Light
        } else {
            Self::Fenced
        }
    }

    /// The other side's parked word, or `AWAKE` if it need not be looked at. To be called after the store that
    /// the other side may be sleeping for.
    #[inline]
    pub fn parked<W: Words>(self, page: &Peers<W>) -> u64 {
        match self {
            Self::Never => return parked::AWAKE,
            Self::Light => barrier::light(),
            // SYNC: parks. See `Patience::barrier`.
            Self::Fenced => fence(Ordering::SeqCst),
        }
        // SYNC: parked. Pairs with the release store in `arm`: what the sleeper published before is then seen.
        page.load(PARKED_WORD, Ordering::Acquire)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn patience_shrinks_when_spinning_fails_grows_when_it_pays_and_is_bounded() {
        let mut patience = Patience::new(Waiting::Adaptive, 0);
        let looks = |spin| match spin {
            Spin::Looks(looks) => looks,
            Spin::ForEver(_) => panic!("an adaptive side sleeps at last"),
        };
        assert_eq!(looks(patience.begin()), LOOKS_MAX);
        for _ in 0..100 {
            patience.learn(Slept::Yes);
        }
        let tries: Vec<u32> = (0..TRY_AGAIN).map(|_| looks(patience.begin())).collect();
        assert_eq!(tries.iter().filter(|n| **n == LOOKS_MAX).count(), 1);
        assert_eq!(
            tries.iter().filter(|n| **n == LOOKS_MIN).count(),
            tries.len() - 1
        );
        for _ in 0..100 {
            patience.learn(Slept::No);
        }
        assert_eq!(looks(patience.begin()), LOOKS_MAX);
    }

    #[test]
    fn busy_never_gives_up_and_blocking_never_spins() {
        let mut busy = Patience::new(Waiting::Busy, 0).begin();
        let steps: Vec<Step> = (0..4 * CLOCK_EVERY).map(|_| busy.step()).collect();
        assert!(!steps.contains(&Step::Sleep));
        assert_eq!(steps.iter().filter(|s| **s == Step::Clock).count(), 4);
        let mut blocking = Patience::new(Waiting::Blocking, 0).begin();
        assert_eq!(blocking.step(), Step::Sleep);
    }

    #[test]
    fn only_a_sleeper_that_pays_spares_the_waker_its_fence() {
        assert_eq!(Look::after(setup::NEVER_PARKS), Look::Never);
        assert_eq!(Look::after(0), Look::Fenced);
        let asymmetric = if barrier::register() {
            Look::Light
        } else {
            Look::Fenced
        };
        assert_eq!(Look::after(setup::MEMBARRIER), asymmetric);
        assert_eq!(Look::after(setup_flags(Waiting::Blocking)), Look::Fenced);
        assert_eq!(Look::after(setup_flags(Waiting::Adaptive)), asymmetric);
        assert_eq!(Look::after(setup_flags(Waiting::Busy)), Look::Never);
    }
}
