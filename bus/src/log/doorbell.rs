//! Who wakes readers that sleep, and how the producer gets to know of them.
//!
//! Nobody but a reader itself can write that it sleeps, and readers share no memory: so 64 readers have 64
//! flags, in 64 pages, and looking at all of them costs several times what a message costs. Hence two modes,
//! in a word of the data page:
//!
//! * **looking** (at first, and whenever somebody sleeps now and then): the producer looks at every flag after
//!   every message. A reader that is about to sleep stores its flag, and that is all.
//! * **ringing**: nobody has slept for a while. The producer looks at its own word only. A reader that is about
//!   to sleep also *rings*: it wakes the futex of its own flag, on which a thread of the producer's process
//!   sleeps. That thread puts the mode back to looking, and wakes who has missed something meanwhile.
//!
//! Nothing is lost between them, because each pair stores, fences, and looks:
//!
//! | stores | looks at | the other stores | and looks at |
//! | --- | --- | --- | --- |
//! | reader: flag | slot and head | producer, looking: slot and head | flags |
//! | reader: flag | mode | producer, to ringing: mode | flags |
//! | thread: mode | head | producer, ringing: head | mode |
//!
//! A reader that rings without need costs the producer what a sleeping reader costs it in any case. No reader
//! depends on another. The thread runs on any CPU (a producer that spins on its own would keep it waiting),
//! allocates when readers come and go, and ends with its [`Doorbell`].

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

use super::producer::Attendant;
use super::{MODE_WORD, READERS_MAX};
use crate::shm::atomics::{AtomicU32, AtomicU64, Ordering, fence};
use crate::shm::barrier;
use crate::shm::bell::Ringer;
use crate::shm::counters::{HEAD_WORD, parked};
use crate::shm::futex;
use crate::shm::region::{Own, Peers, Words};

/// Values of [`MODE_WORD`].
pub(super) mod mode {
    pub const LOOKING: u64 = 0;
    pub const RINGING: u64 = 1;
}

/// From how many readers on that may sleep the doorbell is worth its thread: fewer are looked at for about what
/// looking at the mode costs.
#[cfg(not(loom))]
pub(super) const RINGING_FROM: usize = 5;
#[cfg(loom)]
pub(super) const RINGING_FROM: usize = 1;
/// Messages in a row that found nobody asleep, before readers are asked to ring: having looked at 64 so often
/// has cost about what putting the thread to sleep on 64 flags and waking it costs, so at worst both are paid.
#[cfg(not(loom))]
const QUIET: u32 = 1 << 10;
#[cfg(loom)]
const QUIET: u32 = 1;
/// While readers ring, every how many messages the producer looks itself: the thread may have to wait for a
/// processor.
#[cfg(not(loom))]
const LOOK_EVERY: u32 = 1 << 8;
#[cfg(loom)]
const LOOK_EVERY: u32 = 2;
/// Every how many messages woken readers are taken for new ones, lest anything ever depends on a flag being
/// unique.
const FORGET_EVERY_LOG2: u32 = 16;

/// The list of readers in `changes`, once its owner has gone.
const OVER: u32 = u32::MAX;

/// The flag of a reader that goes to sleep in this way, having seen this head. It can't sleep in two ways with
/// one head without a look in between, so each sleep that a message ends has a flag of its own.
pub(super) const fn flag(how: u64, head: u64) -> u64 {
    how | head << 8
}

const fn how(flag: u64) -> u64 {
    flag & 0xff
}

/// Had this sleeper seen `head` already?
const fn has_seen(flag: u64, head: u64) -> bool {
    flag >> 8 == head & (u64::MAX >> 8)
}

/// A reader that may sleep.
#[derive(Debug)]
pub(super) struct Sleeper<C> {
    cursor: Peers<Arc<C>>,
    /// The word of its flag.
    flag_at: usize,
    place: usize,
    ringer: Option<Arc<Ringer>>,
}

impl<C: Words> Clone for Sleeper<C> {
    fn clone(&self) -> Self {
        Self {
            cursor: Peers(Arc::clone(&self.cursor.0)),
            ringer: self.ringer.clone(),
            ..*self
        }
    }
}

impl<C: Words> Sleeper<C> {
    pub fn new(cursor: Arc<C>, flag_at: usize, place: usize, ringer: Option<Arc<Ringer>>) -> Self {
        Self {
            cursor: Peers(cursor),
            flag_at,
            place,
            ringer,
        }
    }

    fn flag(&self) -> u64 {
        self.cursor.load(self.flag_at, Ordering::Relaxed)
    }
}

/// What the producer and the thread both use.
#[derive(Debug)]
struct Shared<D, C> {
    data: Own<Arc<D>>,
    /// Locked to copy or replace it: nothing happens under the lock.
    list: Mutex<Arc<[Sleeper<C>]>>,
    /// Counts changes of the list. What the thread sleeps on next to the flags.
    changes: AtomicU32,
    /// By place: the flag for which the reader was last woken.
    woken: [AtomicU64; READERS_MAX],
}

/// The producer's end.
#[derive(Debug)]
pub(super) struct Doorbell<D: Words, C: Words> {
    shared: Arc<Shared<D, C>>,
    sleepers: Arc<[Sleeper<C>]>,
    /// What this end last made the mode.
    ringing: bool,
    /// A sleeper issues no barrier.
    fences: bool,
    /// The thread is there, or could be.
    may_ring: bool,
    attendant: Attendant,
    /// Messages since the last that found somebody asleep; while ringing, since the last look.
    quiet: u32,
    forgotten: u64,
    #[cfg(not(loom))]
    thread: Option<std::thread::JoinHandle<()>>,
}

impl<D: Words + 'static, C: Words + 'static> Doorbell<D, C> {
    pub fn new(data: Arc<D>, attendant: Attendant) -> Self {
        Self {
            shared: Arc::new(Shared {
                data: Own(data),
                list: Mutex::new(Arc::new([])),
                changes: AtomicU32::new(0),
                woken: std::array::from_fn(|_| AtomicU64::new(0)),
            }),
            sleepers: Arc::new([]),
            ringing: false,
            fences: false,
            may_ring: false,
            attendant,
            quiet: 0,
            forgotten: 0,
            #[cfg(not(loom))]
            thread: None,
        }
    }

    /// From now on these are the readers that may sleep. `fences`: one of them leaves the barrier to the waker.
    pub fn watch(&mut self, sleepers: Vec<Sleeper<C>>, fences: bool) {
        self.look_again();
        let places: Vec<usize> = sleepers.iter().map(|sleeper| sleeper.place).collect();
        for (place, woken) in self.shared.woken.iter().enumerate() {
            if !places.contains(&place) {
                woken.store(0, Ordering::Relaxed);
            }
        }
        self.sleepers = sleepers.into();
        self.fences = fences || !barrier::register();
        self.may_ring = self.attendant == Attendant::Thread
            && (barrier::register() || cfg!(loom))
            && (RINGING_FROM..futex::WAITV_MAX).contains(&self.sleepers.len())
            && self.start();
        self.shared.replace(Arc::clone(&self.sleepers));
    }

    /// Wakes every reader that sleeps and has not seen the head, because nobody was there to wake it. For
    /// set-up: costs a barrier.
    pub fn wake_missed(&mut self, head: u64) {
        barrier::heavy();
        wake(&self.shared.data, self.sleepers.iter(), head);
    }

    /// Gives the thread to be told of sleepers, for the checker to run.
    #[cfg(all(test, loom))]
    pub fn attendant(&self) -> impl FnOnce() + use<D, C> {
        let shared = Arc::clone(&self.shared);
        move || attend(&shared)
    }

    #[cfg(loom)]
    fn start(&mut self) -> bool {
        true
    }

    /// The thread runs, or is started. A process that may have no threads goes on looking.
    #[cfg(not(loom))]
    fn start(&mut self) -> bool {
        if self.thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("log-doorbell".into());
            self.thread = thread
                .spawn(move || {
                    run_anywhere();
                    attend(&shared);
                })
                .ok();
        }
        self.thread.is_some()
    }

    /// After a message, or several: wakes who sleeps. Says whether anybody was.
    #[inline]
    pub fn after(&mut self, head: u64) -> bool {
        if self.ringing {
            // SYNC: ring. The head above, then the mode; the thread has its mode, a barrier for both, and the head.
            barrier::light();
            if self.shared.data.load(MODE_WORD, Ordering::Relaxed) == mode::RINGING {
                self.quiet += 1;
                return self.quiet >= LOOK_EVERY && self.look_while_ringing(head);
            }
            // The thread has put the mode back.
            self.ringing = false;
            self.quiet = 0;
        }
        if self.sleepers.is_empty() {
            return false;
        }
        self.look(head)
    }

    fn look(&mut self, head: u64) -> bool {
        if self.fences {
            // SYNC: reader-parks. Slot and head above, then this fence, then the flags; a reader has its flag, a
            // fence, and the slot. One of the two sees the other.
            fence(Ordering::SeqCst);
        } else {
            // SYNC: reader-parks. Readers issue the barrier for both.
            barrier::light();
        }
        let found = self.look_at_flags(head);
        if found != Found::Nobody {
            self.quiet = 0;
        } else if self.may_ring {
            self.quiet += 1;
            if self.quiet >= QUIET {
                self.ask_to_ring(head);
            }
        }
        found == Found::Woken
    }

    #[cold]
    fn look_while_ringing(&mut self, head: u64) -> bool {
        self.quiet = 0;
        self.look_at_flags(head) == Found::Woken
    }

    fn look_at_flags(&mut self, head: u64) -> Found {
        if head >> FORGET_EVERY_LOG2 != self.forgotten {
            self.forgotten = head >> FORGET_EVERY_LOG2;
            for woken in &self.shared.woken {
                woken.store(0, Ordering::Relaxed);
            }
        }
        let woken = &self.shared.woken;
        let asleep = self.sleepers.iter().filter(|sleeper| {
            let flag = sleeper.flag();
            flag != parked::AWAKE && flag != woken[sleeper.place].load(Ordering::Relaxed)
        });
        let mut found = Found::Nobody;
        for sleeper in asleep.clone() {
            found = Found::Asleep;
            if !has_seen(sleeper.flag(), head) {
                found = Found::Woken;
                break;
            }
        }
        if found == Found::Woken {
            wake_new(&self.shared.data, asleep, woken, head);
        }
        found
    }

    #[cold]
    fn ask_to_ring(&mut self, head: u64) {
        let shared = &self.shared;
        shared
            .data
            .store(MODE_WORD, mode::RINGING, Ordering::Release);
        // SYNC: to-ringing. The mode above, then the flags; a reader has its flag, a fence, and the mode.
        fence(Ordering::SeqCst);
        self.quiet = 0;
        if self.look_at_flags(head) == Found::Nobody {
            self.ringing = true;
            futex::wake_word(self.shared.data.word(MODE_WORD));
        } else {
            self.shared
                .data
                .store(MODE_WORD, mode::LOOKING, Ordering::Relaxed);
        }
    }

    fn look_again(&mut self) {
        self.ringing = false;
        self.quiet = 0;
        self.shared
            .data
            .store(MODE_WORD, mode::LOOKING, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nobody,
    /// Somebody who has missed nothing.
    Asleep,
    Woken,
}

impl<D: Words, C: Words> Drop for Doorbell<D, C> {
    fn drop(&mut self) {
        self.shared.changes.store(OVER, Ordering::Release);
        futex::wake_flag(&self.shared.changes);
        #[cfg(not(loom))]
        if let Some(thread) = self.thread.take() {
            // It panics only for a broken invariant, and has then said so.
            drop(thread.join());
        }
    }
}

impl<D: Words, C: Words> Shared<D, C> {
    fn replace(&self, sleepers: Arc<[Sleeper<C>]>) {
        // A handle is whole at any time, also after a panic elsewhere.
        *self.list.lock().unwrap_or_else(PoisonError::into_inner) = sleepers;
        let changes = self.changes.load(Ordering::Relaxed);
        // Skips the value that means the end.
        let next = (changes + 1) % OVER;
        // SYNC: list. Pairs with the acquire load in `attend`.
        self.changes.store(next, Ordering::Release);
        futex::wake_flag(&self.changes);
    }

    /// Does somebody sleep who has not been woken?
    fn rung(&self, sleeper: &Sleeper<C>, flag: u64) -> bool {
        flag != parked::AWAKE && flag != self.woken[sleeper.place].load(Ordering::Relaxed)
    }
}

/// The thread: sleeps until a reader rings, or the mode or the list of readers changes.
fn attend<D: Words, C: Words>(shared: &Shared<D, C>) {
    let mut flags = [0; READERS_MAX];
    loop {
        // SYNC: list.
        let changes = shared.changes.load(Ordering::Acquire);
        if changes == OVER {
            return;
        }
        let sleepers = Arc::clone(&shared.list.lock().unwrap_or_else(PoisonError::into_inner));
        while shared.changes.load(Ordering::Relaxed) == changes {
            if shared.data.load(MODE_WORD, Ordering::Acquire) == mode::LOOKING {
                let mode = std::iter::once((shared.data.word(MODE_WORD), mode::LOOKING));
                futex::wait_any(mode, &shared.changes, changes, None);
                continue;
            }
            let mut rung = false;
            for (flag, sleeper) in flags.iter_mut().zip(sleepers.iter()) {
                *flag = sleeper.flag();
                rung |= shared.rung(sleeper, *flag);
            }
            if rung {
                shared
                    .data
                    .store(MODE_WORD, mode::LOOKING, Ordering::Relaxed);
                // SYNC: ring. The mode above, a barrier for the producer too, then the head.
                barrier::heavy();
                let head = shared.data.load(HEAD_WORD, Ordering::Relaxed);
                wake(&shared.data, sleepers.iter(), head);
                continue;
            }
            // A reader that stores another flag after the look above rings after that: this returns at once.
            let words = sleepers.iter().zip(flags);
            let words = words.map(|(sleeper, flag)| (sleeper.cursor.word(sleeper.flag_at), flag));
            futex::wait_any(words, &shared.changes, changes, None);
        }
    }
}

/// Wakes those that sleep and have not seen `head`, and remembers for what.
fn wake_new<'a, D: Words, C: Words + 'a>(
    data: &Own<Arc<D>>,
    asleep: impl Iterator<Item = &'a Sleeper<C>>,
    woken: &[AtomicU64; READERS_MAX],
    head: u64,
) {
    let mut on_futex = false;
    for sleeper in asleep {
        let flag = sleeper.flag();
        if flag == parked::AWAKE || has_seen(flag, head) {
            continue;
        }
        // Whoever has this flag has not seen the head, so it is either woken now or does not fall asleep.
        woken[sleeper.place].store(flag, Ordering::Relaxed);
        on_futex |= ring_or(sleeper, flag);
    }
    if on_futex {
        futex::wake_word(data.word(HEAD_WORD));
    }
}

/// Wakes those that sleep and have not seen `head`.
fn wake<'a, D: Words, C: Words + 'a>(
    data: &Own<Arc<D>>,
    sleepers: impl Iterator<Item = &'a Sleeper<C>>,
    head: u64,
) {
    let mut on_futex = false;
    for sleeper in sleepers {
        let flag = sleeper.flag();
        if flag != parked::AWAKE && !has_seen(flag, head) {
            on_futex |= ring_or(sleeper, flag);
        }
    }
    if on_futex {
        futex::wake_word(data.word(HEAD_WORD));
    }
}

/// Rings the bell of one that sleeps in an event loop; `true`: it sleeps on the head.
fn ring_or<C>(sleeper: &Sleeper<C>, flag: u64) -> bool {
    if how(flag) != parked::BELL {
        return true;
    }
    if let Some(ringer) = &sleeper.ringer {
        ringer.ring();
    }
    false
}

/// Leaves the CPUs that the producer was pinned to.
#[cfg(not(loom))]
fn run_anywhere() {
    let mut all = rustix::thread::CpuSet::new();
    for cpu in 0..rustix::thread::CpuSet::MAX_CPU {
        all.set(cpu);
    }
    // The kernel takes those that this process may use. If it refuses, the thread runs where its maker does.
    if rustix::thread::sched_setaffinity(None, &all).is_err() {}
}
