//! The waiter: sources, timers and wake-ups, one at a time, in the order of their classes.
//!
//! One thread at a time uses it; it may move between threads. It owns its sources, so nothing that
//! the kernel watches can go away under it.
//!
//! **A wait** looks first, for as long as looking pays ([`Waiting`]), and then sleeps: arm all, one
//! barrier for all, look at all once more, sleep, disarm all (by bells only what changed: see
//! `sources`). A peer that stored before the barrier is seen by the look; one that stored after it
//! sees the parked word and wakes. The order of arming is of no consequence.
//!
//! **Whose fault.** A source whose peer died or wrote nonsense is ready: its next `try_*` says why,
//! and whoever uses the waiter removes it. A peer can wake this thread needlessly; that costs it as
//! much, and never keeps the thread from looking at the others.

#![forbid(unsafe_code)]

#[cfg(not(loom))]
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

#[cfg(not(loom))]
use super::Armed;
#[cfg(not(loom))]
use super::poll::Poll;
use super::sources::Sources;
use super::spin::Spin;
use super::timers::{Expired, TimerToken, Timers};
use super::{Park, Parking, Source, WaitError};
use crate::channel::{Class, Waiting};
use crate::shm::futex::{self, WAITV_MAX};
use crate::shm::waker::Waker;

/// Most sources that are waited for by futex; one word is the waiter's own.
pub const FUTEX_SOURCES_MAX: usize = WAITV_MAX - 1;
/// Most sources that are slept on by futex although all have bells: the kernel takes about 0.7 µs a word for each sleep
/// on memory that is mapped for reading only, so that bells, of which only those that changed cost anything, soon win
/// (docs/journal).
pub const BELLS_PAY_FROM: usize = 8;
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
    pub(super) index: u32,
    pub(super) generation: u64,
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

/// Waits for many sources at once.
#[derive(Debug)]
pub struct Waiter<S: Source> {
    sources: Sources<S>,
    timers: Timers,
    waker: Waker,
    /// A wake-up that is still to be reported.
    woken: bool,
    /// A source was closed, and it is not known which.
    nudged: bool,
    waiting: Waiting,
    /// `None`: whichever is quicker.
    prefers: Option<Park>,
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
            sources: Sources::default(),
            timers: Timers::default(),
            waker: Waker::new(),
            woken: false,
            nudged: false,
            waiting,
            prefers: None,
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
        self.until_look = 0;
        Ok(self.sources.insert(source, class))
    }

    /// Everything that can fail about taking `source`, before anything is changed; its bell is in the set after this.
    fn check(&mut self, source: &S) -> Result<(), WaitError> {
        if self.len() == SOURCES_MAX {
            return Err(WaitError::TooMany { limit: SOURCES_MAX });
        }
        if source.parking() == Parking::NeverParks && self.waiting != Waiting::Busy {
            return Err(WaitError::NeverParks);
        }
        #[cfg(not(loom))]
        {
            let must_ring = self.poll.is_some() || self.len() + 1 > self.futex_max;
            if must_ring && self.waiting != Waiting::Busy {
                let deaf = self.sources.deaf() + usize::from(source.bell().is_none());
                if deaf > 0 {
                    return Err(WaitError::NoBell {
                        deaf,
                        futexes: self.futex_max,
                    });
                }
                self.ensure_poll()?;
            }
            if let (Some(poll), Some(bell)) = (&self.poll, source.bell()) {
                poll.add(bell, u64::from(self.sources.next_index()))?;
            }
        }
        Ok(())
    }

    /// Gives a source back. `None`: there is none of this name any more.
    pub fn remove(&mut self, token: Token) -> Option<S> {
        self.disarm();
        let source = self.sources.remove(token)?;
        #[cfg(not(loom))]
        if let (Some(poll), Some(bell)) = (&self.poll, source.bell()) {
            // Fails only if it is not in the set: a bell that was exchanged meanwhile.
            let gone = poll.remove(bell);
            debug_assert!(gone.is_ok(), "a source's bell changed: {gone:?}");
        }
        source.closer().forget(&self.waker);
        Some(source)
    }

    /// The source of this name.
    pub fn get(&self, token: Token) -> Option<&S> {
        self.sources.get(token)
    }

    /// The source of this name, to take from it. Its bell must stay the same.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut S> {
        self.sources.get_mut(token)
    }

    /// How to sleep where both ways are open: `None`, as from the start, is by futex with up to [`BELLS_PAY_FROM`]
    /// sources and by bell with more.
    pub fn prefer(&mut self, how: Option<Park>) {
        self.disarm();
        self.prefers = how;
    }

    /// How many sources it has.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
        if let Some(event) = self.take()? {
            return Ok(Some(event));
        }
        let start = Instant::now();
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        if timeout == Some(Duration::ZERO) {
            return Ok(None);
        }
        if let Some(event) = self.spin(start, deadline)? {
            return Ok(Some(event));
        }
        let mut now = Instant::now();
        loop {
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
            let slept = self.sleep(deadline)?;
            let event = self.take()?;
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
        while let Some(other) = self.look()? {
            events.push(other);
        }
        events.extend(self.sources.ready().map(Event::Ready));
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
        self.poll_fd()?;
        // Whatever rings after this makes the descriptor readable.
        self.listen()?;
        let until = self.timers.next_deadline();
        self.ensure_poll()?.set_timer(until)?;
        let due = until.is_some_and(|until| Instant::now() >= until);
        let ready = due || self.woken || self.nudged || self.sources.ready().next().is_some();
        if !ready && self.arm_all(Park::Bell) {
            return Ok(Armed::Asleep);
        }
        self.disarm();
        Ok(Armed::Ready)
    }

    /// What an event loop waits for after [`Self::arm`], level- or edge-triggered; it stays the same.
    #[cfg(not(loom))]
    pub fn poll_fd(&mut self) -> Result<BorrowedFd<'_>, WaitError> {
        if self.sources.deaf() > 0 {
            return Err(WaitError::NoBell {
                deaf: self.sources.deaf(),
                futexes: self.futex_max,
            });
        }
        let poll: &Poll = self.ensure_poll()?;
        Ok(poll.as_fd())
    }

    /// What is due, without waiting.
    fn take(&mut self) -> Result<Option<Event>, WaitError> {
        if self.until_look > 0 {
            self.until_look -= 1;
            self.sources.look_at_control();
            if let Some(token) = self.sources.turn() {
                return Ok(Some(Event::Ready(token)));
            }
        }
        if let Some(event) = self.look()? {
            return Ok(Some(event));
        }
        Ok(self.sources.turn().map(Event::Ready))
    }

    /// Looks at everything. Timers and wake-ups are taken at once, sources queue.
    fn look(&mut self) -> Result<Option<Event>, WaitError> {
        if self.waker.posted() {
            self.nudged = true;
            self.woken |= self.waker.take().woken();
        }
        if std::mem::take(&mut self.nudged) || self.how() == Park::Futex {
            // A nudge is from a source that was closed: no bell tells which.
            self.sources.look_at_all();
        } else {
            self.listen()?;
            self.sources.look_at_cold();
        }
        if std::mem::take(&mut self.woken) {
            return Ok(Some(Event::Woken));
        }
        if !self.timers.is_empty()
            && let Some(expired) = self.timers.pop_due(Instant::now())
        {
            return Ok(Some(Event::Timer(expired)));
        }
        self.until_look = LOOK_EVERY;
        Ok(None)
    }

    /// Looks at the sources whose bells have rung.
    fn listen(&mut self) -> Result<(), WaitError> {
        #[cfg(not(loom))]
        if let Some(poll) = &mut self.poll {
            for _ in 0..Poll::calls_for(self.sources.len()) {
                let rung = poll.rung()?;
                if rung.is_empty() {
                    break;
                }
                for source in rung {
                    self.sources.rung(*source as u32);
                }
            }
        }
        Ok(())
    }

    /// Looks for as long as the way of waiting says.
    fn spin(
        &mut self,
        start: Instant,
        deadline: Option<Instant>,
    ) -> Result<Option<Event>, WaitError> {
        let budget = match self.waiting {
            Waiting::Blocking => return Ok(None),
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
            return Ok(None);
        }
        loop {
            // Not by their bells: asking the kernel takes longer than looking at memory.
            for _ in 0..LOOKS_PER_CLOCK {
                if self.sources.look_at_all() || self.waker.posted() {
                    break;
                }
                std::hint::spin_loop();
            }
            if let Some(token) = self.sources.turn() {
                return Ok(Some(Event::Ready(token)));
            }
            if (self.waker.posted() || !self.timers.is_empty())
                && let Some(event) = self.look()?
            {
                return Ok(Some(event));
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(None);
            }
        }
    }

    /// Arms everything and sleeps, unless there is something after all. Whether it slept.
    fn sleep(&mut self, deadline: Option<Instant>) -> Result<bool, WaitError> {
        let until = match (deadline, self.timers.next_deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let how = self.way()?;
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
                let words = self.sources.words();
                futex::wait_any(words, flag, asleep, until);
            }
            Park::Bell => {
                #[cfg(not(loom))]
                {
                    self.ensure_poll()?.set_timer(until)?;
                    if let Some(poll) = &mut self.poll {
                        for source in poll.sleep()? {
                            self.sources.rung(*source as u32);
                        }
                    }
                }
            }
        }
        Ok(true)
    }

    /// How to sleep now: as [`Self::how`] has it, unless there are no descriptors for that.
    fn way(&mut self) -> Result<Park, WaitError> {
        let how = self.how();
        #[cfg(not(loom))]
        if how == Park::Bell {
            let few = self.len() <= self.futex_max;
            match self.ensure_poll() {
                Ok(_) => {}
                Err(_) if few => return Ok(Park::Futex),
                Err(error) => return Err(error),
            }
        }
        Ok(how)
    }

    fn how(&self) -> Park {
        let len = self.len();
        if len > self.futex_max {
            return Park::Bell;
        }
        if self.sources.deaf() > 0 {
            return Park::Futex;
        }
        self.prefers.unwrap_or(if len > BELLS_PAY_FROM {
            Park::Bell
        } else {
            Park::Futex
        })
    }

    /// Says to all other sides that this one is about to sleep, and looks once more. `true`: nothing is ready, and
    /// whatever becomes ready from now on wakes.
    fn arm_all(&mut self, how: Park) -> bool {
        self.armed = Some(how);
        self.waker.park(how) && self.sources.arm(how)
    }

    /// Is awake. Sources that ring go on ringing.
    fn disarm(&mut self) {
        let Some(how) = self.armed.take() else {
            return;
        };
        let posted = self.waker.take();
        self.woken |= posted.woken();
        self.nudged |= posted.any();
        self.until_look = match how {
            // Any of them may have woken us.
            Park::Futex => {
                self.sources.disarm();
                0
            }
            // Whose bell rang is queued.
            Park::Bell => u32::from(!self.nudged),
        };
    }

    #[cfg(not(loom))]
    fn ensure_poll(&mut self) -> Result<&mut Poll, WaitError> {
        let poll = match self.poll.take() {
            Some(poll) => poll,
            None => {
                let (poll, ringer) = Poll::new()?;
                for (index, source) in self.sources.iter() {
                    if let Some(bell) = source.bell() {
                        poll.add(bell, u64::from(index))?;
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
        for (_, source) in self.sources.iter() {
            source.closer().forget(&self.waker);
        }
    }
}
