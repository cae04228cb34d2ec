//! Waiting on many channels at once: lanes, logs and producers without room, together with timers and
//! wake-ups from other threads, served by class.
//!
//! Start with [`Waiter`]. A few sources, or up to [`waiter::FUTEX_SOURCES_MAX`] without bells, are slept on by one
//! `futex_waitv`; where all have a [`Bell`], beyond that, and in event loops, the sleep is `epoll`'s. [`source`] says what
//! can be waited for.
//!
//! No wake-up is lost, whatever the order: see [`waiter`] for the protocol and `model` for its proof. One thread at a
//! time uses a waiter, without privilege; after set-up nothing allocates, except that a waiter's lists grow with what it is
//! given.
//!
//! # One lane in an event loop
//!
//! ```
//! # use std::os::fd::AsFd;
//! # use agentd_bus::lane::{Inline, ReceiverOptions, SenderOptions, cursor_words, data_words};
//! # use agentd_bus::lane::ring::{Consumer, Producer, Tag, format_cursor, format_data};
//! # use agentd_bus::shm::{memfd, park::Closer};
//! use agentd_bus::wait::{Armed, Bell, Ringer, Source, arm_bell};
//! use rustix::event::epoll;
//!
//! # let (data, data_fd) = memfd::create("data", data_words(64, Inline::Small))?;
//! # let (cursor, cursor_fd) = memfd::create("cursor", cursor_words())?;
//! # let (sender, receiver) = (SenderOptions::default(), ReceiverOptions::default());
//! # format_data(&data, 64, &sender)?;
//! # format_cursor(&cursor, &receiver)?;
//! # let closer = Closer::default;
//! # let mut producer = Producer::new(data, memfd::open(cursor_fd.as_fd())?, closer(), sender)?;
//! # let mut lane = Consumer::new(memfd::open(data_fd.as_fd())?, cursor, closer(), receiver)?;
//! // `lane` is the receiving end; its producer gets a copy of the bell.
//! let bell = Bell::new()?;
//! let for_the_producer = bell.share()?;
//! # producer.set_ringer(Ringer::from_fd(for_the_producer)?);
//!
//! // Any edge-triggered loop: epoll with EPOLLET, tokio's AsyncFd.
//! let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
//! let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
//! epoll::add(&events, &bell, epoll::EventData::new_u64(0), edge)?;
//! lane.set_bell(bell);
//!
//! # let sending = std::thread::spawn(move || producer.try_send(Tag::default(), b"hello"));
//! let mut buffer = Vec::new();
//! let tag = loop {
//!     if let Some(tag) = lane.try_recv(&mut buffer)? {
//!         break tag;
//!     }
//!     if arm_bell(&mut lane) == Armed::Asleep {
//!         let mut rung = Vec::with_capacity(1);
//!         epoll::wait(&events, rustix::buffer::spare_capacity(&mut rung), None)?;
//!         lane.disarm();
//!     }
//! };
//! assert_eq!(buffer, b"hello");
//! # assert_eq!(tag, Tag::default());
//! # sending.join().expect("sent")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Many lanes in a level-triggered loop
//!
//! libuv, GLib and poll(2) are such; the descriptor is the waiter's own, and works edge-triggered as well.
//!
//! ```
//! # use std::time::Duration;
//! # use agentd_bus::channel::{Class, Waiting};
//! # use agentd_bus::lane::ring::Consumer;
//! # use agentd_bus::shm::memfd::Mapping;
//! use agentd_bus::wait::{Armed, Event, Waiter};
//! use rustix::event::{PollFd, PollFlags, poll};
//!
//! let mut waiter: Waiter<Consumer<Mapping, Mapping>> = Waiter::new(Waiting::Blocking);
//! # let waker = waiter.waker();
//! # let waking = std::thread::spawn(move || waker.wake());
//! let event = loop {
//!     if let Some(event) = waiter.next(Some(Duration::ZERO))? {
//!         break event;
//!     }
//!     if waiter.arm()? == Armed::Asleep {
//!         poll(&mut [PollFd::from_borrowed_fd(waiter.poll_fd()?, PollFlags::IN)], None)?;
//!     }
//! };
//! assert_eq!(event, Event::Woken);
//! # waking.join().expect("woke");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(all(test, loom))]
mod model;
pub mod order;
#[cfg(not(loom))]
mod poll;
pub mod source;
mod sources;
mod spin;
#[cfg(all(test, not(loom)))]
mod tests;
pub mod timers;
pub mod waiter;

use std::io;

pub use crate::shm::bell::{Bell, BellError, Ringer, RingerSlot, check_bell};
pub use crate::shm::waker::Waker;
pub use source::{Armed, Park, Parking, Source, Watch, arm_bell};
pub use timers::{Expired, TimerToken};
pub use waiter::{Event, Token, Waiter, Wakeups};

/// Why a source was not taken, or a wait is not possible.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    #[error(
        "{deaf} sources have no bell; one futex call watches {futexes}, and for more, or in an event loop, each \
             source needs one: `set_bell` here, `set_ringer` at its other side"
    )]
    NoBell { deaf: usize, futexes: usize },
    #[error(
        "this side promised its peer never to sleep; wait with `Waiting::Busy`, or open the channel with another"
    )]
    NeverParks,
    #[error("a waiter takes {limit} sources; use another one, in another thread")]
    TooMany { limit: usize },
    #[error(transparent)]
    Bell(#[from] BellError),
    #[error("{call}: {source}")]
    Call {
        call: &'static str,
        source: io::Error,
    },
}
