//! What the bus has for one end of a channel besides messages: readers, segments, bells.
//!
//! The reading thread puts it here and never waits; the end's own thread takes it, on its next call or when it
//! misses something. A flag that the end's thread can look at for the price of a load says whether there is
//! anything. Bounded: beyond [`HELD`] the newest is dropped, which the bus's own limits rule out.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::mailbox::wait_changed;
use crate::frame::PeerId;
use crate::wait::{Ringer, RingerSlot};

/// More than the bus lets one channel have of readers and segments together.
const HELD: usize = 1024;

/// News for one end.
#[derive(Debug)]
pub(super) enum News {
    /// Another reader of this log.
    Reader {
        channel: u32,
        from: PeerId,
        reliable: bool,
        cursor: OwnedFd,
    },
    /// A reader of this log has gone.
    ReaderGone {
        channel: u32,
    },
    Segment {
        index: u32,
        sealed: bool,
        memory: OwnedFd,
    },
    SegmentDropped {
        index: u32,
    },
}

/// The other side's bell, and whose it is.
#[derive(Debug)]
pub(super) struct TheirBell {
    pub channel: u32,
    pub bell: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    news: VecDeque<News>,
    /// Apart from the news, because another part of an end takes them.
    bells: VecDeque<TheirBell>,
    /// Of a lane, whose end may sleep when a bell comes: there is one bell, and its ringer goes here.
    ringer: Option<RingerSlot>,
    closed: bool,
}

/// The news of one end.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
    /// There is news.
    waiting: AtomicBool,
    /// There is a bell.
    rings: AtomicBool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, news: News) {
        let mut state = self.lock();
        if state.news.len() < HELD && !state.closed {
            state.news.push_back(news);
            // Under the lock, so that `take` can't clear it for news that came after.
            self.waiting.store(true, Ordering::Release);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Ringers of bells go here from now on, and are rung at once; those that have come do, too.
    pub fn put_ringers_into(&self, slot: RingerSlot) {
        let mut state = self.lock();
        for TheirBell { bell, .. } in state.bells.drain(..) {
            put(&slot, bell);
        }
        self.rings.store(false, Ordering::Release);
        state.ringer = Some(slot);
    }

    pub fn push_bell(&self, bell: TheirBell) {
        let mut state = self.lock();
        if let Some(slot) = &state.ringer {
            // Under the lock, so that the bell that came last is the one that is there.
            return put(slot, bell.bell);
        }
        if state.bells.len() < HELD && !state.closed {
            state.bells.push_back(bell);
            self.rings.store(true, Ordering::Release);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A look for the price of a load.
    #[inline]
    pub fn has_bells(&self) -> bool {
        self.rings.load(Ordering::Acquire)
    }

    /// All bells that have come.
    pub fn take_bells(&self) -> VecDeque<TheirBell> {
        let mut state = self.lock();
        self.rings.store(false, Ordering::Release);
        std::mem::take(&mut state.bells)
    }

    /// Nothing more will come: the channel is over.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// A look for the price of a load.
    pub fn has_news(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// All there is.
    pub fn take(&self) -> VecDeque<News> {
        let mut state = self.lock();
        self.waiting.store(false, Ordering::Release);
        std::mem::take(&mut state.news)
    }

    /// Waits until there is something; `false` once nothing will come, or at `deadline`.
    pub fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        loop {
            if !state.news.is_empty() || !state.bells.is_empty() {
                return true;
            }
            if state.closed {
                return false;
            }
            state = match wait_changed(&self.changed, state, deadline) {
                Some(state) => state,
                None => return false,
            };
        }
    }
}

/// The bus has made sure that it is a bell; if it is not, nobody waits for it.
fn put(slot: &RingerSlot, bell: OwnedFd) {
    if let Ok(ringer) = Ringer::from_fd(bell) {
        slot.put(ringer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::Bell;
    use rustix::event::epoll;

    #[test]
    fn a_bell_is_rung_when_it_comes_whatever_its_end_does() {
        let inbox = Inbox::default();
        let (early, late) = (Bell::new().unwrap(), Bell::new().unwrap());
        let their = |bell: &Bell| TheirBell {
            channel: 1,
            bell: bell.share().unwrap(),
        };
        inbox.push_bell(their(&early));
        assert!(inbox.has_bells());
        let slot = RingerSlot::default();
        inbox.put_ringers_into(slot.clone());
        assert!(!inbox.has_bells());
        inbox.push_bell(their(&late));
        assert!(!inbox.has_bells(), "nobody has to take it");
        // Edge-triggered, and watched only from here on: of what came before nothing is left but that it was.
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&events, &late, epoll::EventData::new_u64(0), edge).unwrap();
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let heard = || {
            let mut room = Vec::with_capacity(4);
            epoll::wait(
                &events,
                rustix::buffer::spare_capacity(&mut room),
                Some(&now),
            )
            .unwrap()
        };
        heard();
        slot.ring();
        assert_eq!(heard(), 1, "the bell that came last");
    }

    #[test]
    fn what_came_is_taken_once_and_the_flag_says_so() {
        let inbox = Inbox::default();
        assert!(!inbox.has_news());
        inbox.push(News::SegmentDropped { index: 3 });
        assert!(inbox.has_news() && inbox.wait(None));
        assert_eq!(inbox.take().len(), 1);
        assert!(!inbox.has_news() && inbox.take().is_empty());
        inbox.close();
        assert!(!inbox.wait(None), "nothing will come");
        inbox.push(News::ReaderGone { channel: 1 });
        assert!(!inbox.has_news(), "and nothing does");
    }
}
