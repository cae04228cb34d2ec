//! The waiter: sources, timers and wake-ups, one at a time, in the order of their classes.
//!
//! One thread at a time uses it; it may move between threads. It owns its sources, so nothing that the kernel
//! watches can go away under it.
//!
//! **A wait** looks first, for as long as looking pays ([`Waiting`]), and then sleeps: arm all, one barrier for
//! all, look at all once more, sleep, disarm all. A peer that stored before the barrier is seen by the look; one that
//! stored after it sees the parked word and wakes. The order of arming is of no consequence.
//!
//! **Whose fault.** A source whose peer died or wrote nonsense is ready: its next `try_*` says why, and whoever
//! uses the waiter removes it. A peer can wake this thread needlessly; that costs it as much, and never keeps the
//! thread from looking at the others.

#![forbid(unsafe_code)]

#[cfg(not(loom))]
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

#[cfg(not(loom))]
use super::Armed;
use super::order::Order;
#[cfg(not(loom))]
use super::poll::Poll;
use super::source::barrier_for;
use super::spin::Spin;
use super::timers::{Expired, TimerToken, Timers};
use super::{Park, Parking, Source, WaitError};
use crate::channel::{Class, Waiting};
use crate::shm::futex::{self, WAITV_MAX};
use crate::shm::waker::Waker;

/// Most sources that are waited for by futex; one word is the waiter's own.
pub const FUTEX_SOURCES_MAX: usize = WAITV_MAX - 1;
/// Most sources of a waiter: each costs a descriptor and some hundred bytes.
pub const SOURCES_MAX: usize = 4096;
/// Turns between two looks at everything while something is ready. Sources of class Control are looked at in
/// each turn.
pub const LOOK_EVERY: u32 = 16;
/// Looks at all sources between two looks at the clock, while spinning.
const LOOKS_PER_CLOCK: u32 = 8;

/// Names a source of one waiter. Never reused by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    index: u32,
    generation: u64,
}

/// What a wait is over for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This source has something: its next `try_*` is not in vain. It stays ready, and comes again in its turn, for as
    /// long as that is so.
    Ready(Token),
    /// A timer is due.
    Timer(Expired),
    /// [`Waker::wake`] was called.
    Woken,
}

#[derive(Debug)]
struct Entry<S> {
    source: S,
    class: Class,
    generation: u64,
    /// In `order`.
    queued: bool,
    has_bell: bool,
}

/// Waits for many sources at once.
#[derive(Debug)]
pub struct Waiter<S: Source> {
    /// By [`Token::index`]; never shrinks.
    entries: Vec<Option<Entry<S>>>,
    /// Free places in `entries`.
    free: Vec<u32>,
    /// Sources of class Control, which are looked at every time.
    control: Vec<u32>,
    generation: u64,
    len: usize,
    without_bell: usize,
    order: Order,
    timers: Timers,
    waker: Waker,
    /// A wake-up that is still to be reported.
    woken: bool,
    waiting: Waiting,
    prefers: Park,
    spin: Spin,
    /// Turns until the next look at everything.
    until_look: u32,
    armed: Option<Park>,
    /// Sources that fit one futex call here: 0 where the kernel has no such call.
    futex_max: usize,
    #[cfg(not(loom))]
    poll: Option<Poll>,
    wakeups: Wakeups,
}

/// What waiting cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakeups {
    /// Times that this thread went to sleep.
    pub sleeps: u64,
    /// Of those, times that it woke and found nothing, no timer and no time-out: a signal, or a peer that wakes
    /// for nothing.
    pub spurious: u64,
}

impl<S: Source> Waiter<S> {
    /// Without sources. [`Waiting::Busy`] never sleeps, and is the only way to wait for sources that promised their
    /// peers not to.
    pub fn new(waiting: Waiting) -> Self {
        #[cfg(not(loom))]
        let waitv = crate::shm::park::probe_waitv().is_ok();
        #[cfg(loom)]
        let waitv = true;
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            control: Vec::new(),
            generation: 0,
            len: 0,
            without_bell: 0,
            order: Order::default(),
            timers: Timers::default(),
            waker: Waker::new(),
            woken: false,
            waiting,
            prefers: Park::Futex,
            spin: Spin::default(),
            until_look: 0,
            armed: None,
            futex_max: if waitv { FUTEX_SOURCES_MAX } else { 0 },
            #[cfg(not(loom))]
            poll: None,
            wakeups: Wakeups::default(),
        }
    }

    /// Takes a source. Beyond [`FUTEX_SOURCES_MAX`] all of them must have bells.
    pub fn add(&mut self, source: S, class: Class) -> Result<Token, (WaitError, S)> {
        match self.check(&source) {
            Ok(()) => {}
            Err(error) => return Err((error, source)),
        }
        self.disarm();
        source.closer().tell(self.waker.clone());
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(None);
                self.entries.len() as u32 - 1
            }
        };
        self.generation += 1;
        let generation = self.generation;
        let has_bell = source.bell().is_some();
        self.without_bell += usize::from(!has_bell);
        self.entries[index as usize] = Some(Entry {
            source,
            class,
            generation,
            queued: false,
            has_bell,
        });
        if class == Class::Control {
            self.control.push(index);
        }
        self.len += 1;
        self.until_look = 0;
        Ok(Token { index, generation })
    }

    /// Everything that can fail about taking `source`, before anything is changed; its bell is in the set after this.
    fn check(&mut self, source: &S) -> Result<(), WaitError> {
        if self.len == SOURCES_MAX {
            return Err(WaitError::TooMany { limit: SOURCES_MAX });
        }
        if source.parking() == Parking::NeverParks && self.waiting != Waiting::Busy {
            return Err(WaitError::NeverParks);
        }
        #[cfg(not(loom))]
        {
            let must_ring = self.poll.is_some() || self.len + 1 > self.futex_max;
            if must_ring && self.waiting != Waiting::Busy {
                let deaf = self.without_bell + usize::from(source.bell().is_none());
                if deaf > 0 {
                    return Err(WaitError::NoBell {
                        deaf,
                        futexes: self.futex_max,
                    });
                }
                self.ensure_poll()?;
            }
            if let (Some(poll), Some(bell)) = (&self.poll, source.bell()) {
                poll.add(bell)?;
            }
        }
        Ok(())
    }

    /// Gives a source back. `None`: there is none of this name any more.
    pub fn remove(&mut self, token: Token) -> Option<S> {
        self.get(token)?;
        self.disarm();
        let entry = self.entries[token.index as usize].take()?;
        #[cfg(not(loom))]
        if let (Some(poll), Some(bell)) = (&self.poll, entry.source.bell()) {
            // Fails only if it is not in the set: a bell that was exchanged meanwhile.
            let gone = poll.remove(bell);
            debug_assert!(gone.is_ok(), "a source's bell changed: {gone:?}");
        }
        entry.source.closer().forget(&self.waker);
        if entry.queued {
            self.order.remove(entry.class, token.index);
        }
        self.control.retain(|index| *index != token.index);
        self.without_bell -= usize::from(!entry.has_bell);
        self.free.push(token.index);
        self.len -= 1;
        Some(entry.source)
    }

    /// The source of this name.
    pub fn get(&self, token: Token) -> Option<&S> {
        let entry = self.entries.get(token.index as usize)?.as_ref()?;
        (entry.generation == token.generation).then_some(&entry.source)
    }

    /// The source of this name, to take from it. Its bell must stay the same.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut S> {
        let entry = self.entries.get_mut(token.index as usize)?.as_mut()?;
        (entry.generation == token.generation).then_some(&mut entry.source)
    }

    /// How to sleep where both ways are open: on futexes unless this says otherwise.
    pub fn prefer(&mut self, how: Park) {
        self.disarm();
        self.prefers = how;
    }

    /// How many sources it has.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Wakes this waiter from other threads.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub fn wakeups(&self) -> Wakeups {
        self.wakeups
    }

    /// Starts a timer that is due at `at`, and then every `period`. A period of zero is none.
    pub fn start_timer(&mut self, at: Instant, period: Option<Duration>) -> TimerToken {
        self.disarm();
        self.until_look = 0;
        self.timers
            .start(at, period.filter(|period| !period.is_zero()))
    }

    /// Ends a timer. `false`: it is over.
    pub fn cancel_timer(&mut self, timer: TimerToken) -> bool {
        self.disarm();
        self.timers.cancel(timer)
    }

    /// The next thing to do, waiting up to `timeout` (`None`: for ever) for one. `Ok(None)`: time is up.
    ///
    /// Sources come by class: Control, High, Normal, Bulk. A class that has something ready is passed over at most
    /// [`super::order::PASSED_OVER_MAX`] times; within a class sources take turns. What becomes ready meanwhile is
    /// seen after at most [`LOOK_EVERY`] turns, of class Control in the next one. Timers and wake-ups come before
    /// sources.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, WaitError> {
        self.disarm();
        if let Some(event) = self.take() {
            return Ok(Some(event));
        }
        let start = Instant::now();
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        if timeout == Some(Duration::ZERO) {
            return Ok(None);
        }
        if let Some(event) = self.spin(start, deadline) {
            return Ok(Some(event));
        }
        let mut now = Instant::now();
        loop {
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
            let slept = self.sleep(deadline)?;
            let event = self.take();
            if event.is_some() {
                if slept && self.waiting == Waiting::Adaptive {
                    self.spin.slept(start.elapsed());
                }
                return Ok(event);
            }
            now = Instant::now();
            let in_time = deadline.is_none_or(|deadline| now < deadline);
            self.wakeups.spurious += u64::from(slept && in_time);
        }
    }

    /// Everything that is ready or due, each once: timers and wake-ups, then sources by class, the highest
    /// first. Waits as [`Self::next`] does if there is nothing. Fills `events`, which is cleared first; empty: time is up.
    ///
    /// Whoever serves all of them each time has no need of the turns that `next` keeps.
    pub fn wait(
        &mut self,
        events: &mut Vec<Event>,
        timeout: Option<Duration>,
    ) -> Result<(), WaitError> {
        events.clear();
        match self.next(timeout)? {
            None => return Ok(()),
            Some(Event::Ready(_)) => {}
            Some(other) => events.push(other),
        }
        while let Some(other) = self.look() {
            events.push(other);
        }
        let entries = &self.entries;
        events.extend(self.order.queued().filter_map(|index| {
            let entry = entries[index as usize].as_ref()?;
            let generation = entry.generation;
            entry
                .source
                .is_ready()
                .then_some(Event::Ready(Token { index, generation }))
        }));
        Ok(())
    }

    /// For event loops: after this, unless it says [`Armed::Ready`], the descriptor of [`Self::poll_fd`] becomes
    /// readable when there is something to do, timers included. Call [`Self::next`] with a `timeout` of zero until
    /// there is nothing, then this, then wait for the descriptor, and again. All sources must have bells.
    #[cfg(not(loom))]
    pub fn arm(&mut self) -> Result<Armed, WaitError> {
        self.disarm();
        if self.waiting == Waiting::Busy {
            return Err(WaitError::NeverParks);
        }
        let until = self.timers.next_deadline();
        let bells = self.len;
        self.poll_fd()?;
        let poll = self.ensure_poll()?;
        poll.clear(bells)?;
        poll.set_timer(until)?;
        let due = until.is_some_and(|until| Instant::now() >= until);
        if !due && !self.woken && self.arm_all(Park::Bell) {
            return Ok(Armed::Asleep);
        }
        self.disarm();
        Ok(Armed::Ready)
    }

    /// What an event loop waits for after [`Self::arm`], level- or edge-triggered; it stays the same.
    #[cfg(not(loom))]
    pub fn poll_fd(&mut self) -> Result<BorrowedFd<'_>, WaitError> {
        if self.without_bell > 0 {
            return Err(WaitError::NoBell {
                deaf: self.without_bell,
                futexes: self.futex_max,
            });
        }
        let poll: &Poll = self.ensure_poll()?;
        Ok(poll.as_fd())
    }

    /// What is due, without waiting.
    fn take(&mut self) -> Option<Event> {
        if self.until_look > 0 {
            self.until_look -= 1;
            if !self.control.is_empty() {
                self.look_at_control();
            }
            if let Some(event) = self.turn() {
                return Some(event);
            }
        }
        if let Some(event) = self.look() {
            return Some(event);
        }
        self.turn()
    }

    /// Looks at everything. Timers and wake-ups are taken at once, sources queue.
    fn look(&mut self) -> Option<Event> {
        if self.waker.posted() {
            self.woken |= self.waker.take().woken();
        }
        if self.woken {
            self.woken = false;
            return Some(Event::Woken);
        }
        if !self.timers.is_empty()
            && let Some(expired) = self.timers.pop_due(Instant::now())
        {
            return Some(Event::Timer(expired));
        }
        self.until_look = LOOK_EVERY;
        self.look_at_sources();
        None
    }

    /// Queues the sources that have become ready. Whether any is ready.
    fn look_at_sources(&mut self) -> bool {
        let mut any = false;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if let Some(entry) = entry {
                any |= look_at(entry, index as u32, &mut self.order);
            }
        }
        any
    }

    fn look_at_control(&mut self) {
        for index in &self.control {
            if let Some(entry) = &mut self.entries[*index as usize] {
                look_at(entry, *index, &mut self.order);
            }
        }
    }

    fn turn(&mut self) -> Option<Event> {
        let entries = &mut self.entries;
        let index = self.order.turn(|index| {
            let Some(entry) = &mut entries[index as usize] else {
                return false;
            };
            entry.queued = entry.source.is_ready();
            entry.queued
        })?;
        let generation = self.entries[index as usize].as_ref()?.generation;
        Some(Event::Ready(Token { index, generation }))
    }

    /// Looks for as long as the way of waiting says.
    fn spin(&mut self, start: Instant, deadline: Option<Instant>) -> Option<Event> {
        let budget = match self.waiting {
            Waiting::Blocking => return None,
            Waiting::Adaptive => Some(self.spin.budget()),
            Waiting::Busy => None,
        };
        let until = match (
            budget.and_then(|budget| start.checked_add(budget)),
            deadline,
        ) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if budget == Some(Duration::ZERO) {
            return None;
        }
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                self.until_look = 0;
                let event = self.take();
                if event.is_some() {
                    return event;
                }
                std::hint::spin_loop();
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return None;
            }
        }
    }

    /// Arms everything and sleeps, unless there is something after all. Whether it slept.
    fn sleep(&mut self, deadline: Option<Instant>) -> Result<bool, WaitError> {
        let until = match (deadline, self.timers.next_deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let how = self.how();
        let slept = if self.arm_all(how) {
            self.wakeups.sleeps += 1;
            self.doze(how, until)
        } else {
            Ok(false)
        };
        self.disarm();
        slept
    }

    fn doze(&mut self, how: Park, until: Option<Instant>) -> Result<bool, WaitError> {
        match how {
            Park::Futex => {
                let (flag, asleep) = self.waker.futex();
                let words = self.entries.iter().flatten().map(|entry| {
                    let watch = entry.source.watch();
                    (watch.word, watch.seen)
                });
                futex::wait_any(words, flag, asleep, until);
            }
            Park::Bell => {
                #[cfg(not(loom))]
                {
                    let bells = self.len;
                    let poll = self.ensure_poll()?;
                    poll.set_timer(until)?;
                    poll.sleep()?;
                    poll.clear(bells)?;
                }
            }
        }
        Ok(true)
    }

    fn how(&self) -> Park {
        if self.len <= self.futex_max && (self.prefers == Park::Futex || self.without_bell > 0) {
            Park::Futex
        } else {
            Park::Bell
        }
    }

    /// Says to all other sides that this one is about to sleep, and looks once more. `true`: nothing is ready, and
    /// whatever becomes ready from now on wakes.
    fn arm_all(&mut self, how: Park) -> bool {
        self.armed = Some(how);
        if !self.waker.park(how) {
            return false;
        }
        let mut heavy = false;
        for entry in self.entries.iter_mut().flatten() {
            entry.source.arm(how);
            heavy |= entry.source.parking() == Parking::Heavy;
        }
        barrier_for(heavy);
        !self.look_at_sources()
    }

    fn disarm(&mut self) {
        if self.armed.take().is_some() {
            for entry in self.entries.iter_mut().flatten() {
                entry.source.disarm();
            }
            self.woken |= self.waker.take().woken();
            // What woke us is looked for at once.
            self.until_look = 0;
        }
    }

    #[cfg(not(loom))]
    fn ensure_poll(&mut self) -> Result<&mut Poll, WaitError> {
        let poll = match self.poll.take() {
            Some(poll) => poll,
            None => {
                let (poll, ringer) = Poll::new()?;
                for entry in self.entries.iter().flatten() {
                    if let Some(bell) = entry.source.bell() {
                        poll.add(bell)?;
                    }
                }
                self.waker.set_bell(ringer);
                poll
            }
        };
        Ok(self.poll.insert(poll))
    }
}

impl<S: Source> Drop for Waiter<S> {
    fn drop(&mut self) {
        for entry in self.entries.iter().flatten() {
            entry.source.closer().forget(&self.waker);
        }
    }
}

/// Queues a source if it is ready and not queued. Whether it is ready.
fn look_at<S: Source>(entry: &mut Entry<S>, index: u32, order: &mut Order) -> bool {
    let ready = entry.source.is_ready();
    if ready && !entry.queued {
        entry.queued = true;
        order.push(entry.class, index);
    }
    ready
}
