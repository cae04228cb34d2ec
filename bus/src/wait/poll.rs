//! The set of bells that a waiter sleeps on when it has more sources than one futex call watches, or when an
//! event loop does the sleeping.
//!
//! One epoll instance holds, edge-triggered, the bell of each source, the waiter's own, and one timerfd.
//! Nothing in it is ever read. Bells are taken out by hand: a peer's copy keeps a closed one alive in the set.
//!
//! The waiter's thread, no privilege. Three descriptors, and the kernel's memory per bell.

#![forbid(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::{Bell, Ringer, WaitError};
use crate::shm::futex::monotonic_in;

const NEVER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
/// Events taken from the kernel in one call.
const BATCH: usize = 64;
/// What the set's own bell and the timer are reported as.
const NO_SOURCE: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Poll {
    set: OwnedFd,
    timer: OwnedFd,
    /// What the timer is set to, to save the call.
    timer_at: Option<Instant>,
    /// What rang in the last call.
    rung: Vec<u64>,
    /// Kept for its descriptor in the set; the waiter's `Waker` has a copy to ring.
    _own: Bell,
}

fn failed(call: &'static str) -> impl Fn(Errno) -> WaitError {
    move |errno| WaitError::Call {
        call,
        source: errno.into(),
    }
}

impl Poll {
    /// Also gives what rings the set's own bell.
    pub fn new() -> Result<(Self, Ringer), WaitError> {
        let own = Bell::new()?;
        let ringer = Ringer::from_fd(own.share()?)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let poll = Self {
            set: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create1"))?,
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)
                .map_err(failed("timerfd_create"))?,
            timer_at: None,
            rung: Vec::with_capacity(BATCH),
            _own: own,
        };
        poll.add(poll._own.as_fd(), NO_SOURCE)?;
        poll.add(poll.timer.as_fd(), NO_SOURCE)?;
        Ok((poll, ringer))
    }

    /// Has the set report `bell` as `source`.
    pub fn add(&self, bell: BorrowedFd<'_>, source: u64) -> Result<(), WaitError> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.set, bell, epoll::EventData::new_u64(source), flags)
            .map_err(failed("EPOLL_CTL_ADD"))
    }

    pub fn remove(&self, bell: BorrowedFd<'_>) -> Result<(), WaitError> {
        epoll::delete(&self.set, bell).map_err(failed("EPOLL_CTL_DEL"))
    }

    /// Has the set report `at` as well.
    pub fn set_timer(&mut self, at: Option<Instant>) -> Result<(), WaitError> {
        if self.timer_at == at {
            return Ok(());
        }
        let value = match at {
            None => NEVER,
            // A time in the past rings at once; all zeros would mean never, which the monotonic clock is past.
            Some(at) => monotonic_in(at.saturating_duration_since(Instant::now())),
        };
        let once = Itimerspec {
            it_interval: NEVER,
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)
            .map_err(failed("timerfd_settime"))?;
        self.timer_at = at;
        Ok(())
    }

    /// Sleeps until a bell or the timer rings, and says which sources' did. May return early; the caller looks.
    pub fn sleep(&mut self) -> Result<&[u64], WaitError> {
        self.take(None)
    }

    /// Some of the sources whose bells have rung, without sleeping.
    pub fn rung(&mut self) -> Result<&[u64], WaitError> {
        self.take(Some(&NEVER))
    }

    /// How many calls of [`Self::rung`] take all there can be.
    pub fn calls_for(bells: usize) -> usize {
        // Its own bell and the timer are in the set as well.
        (bells + 2).div_ceil(BATCH)
    }

    fn take(&mut self, timeout: Option<&Timespec>) -> Result<&[u64], WaitError> {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; BATCH];
        self.rung.clear();
        match epoll::wait(&self.set, &mut events[..], timeout) {
            Ok((taken, _)) => {
                let sources = taken.iter().map(|event| {
                    let data = event.data;
                    data.u64()
                });
                self.rung
                    .extend(sources.filter(|source| *source != NO_SOURCE));
                Ok(&self.rung)
            }
            Err(Errno::INTR) => Ok(&[]),
            Err(errno) => Err(failed("epoll_wait")(errno)),
        }
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}
