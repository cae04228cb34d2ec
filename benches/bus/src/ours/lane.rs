//! Our lane: both memories are sealed memfds, mapped by each side from the descriptor, as after an offer over the bus.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use agentd_bus::channel::{self, Tag};
use agentd_bus::lane::ring::{self, format_cursor, format_data};
use agentd_bus::lane::{Inline, ReceiverOptions, SenderOptions, cursor_words, data_words};
use agentd_bus::shm::memfd::{self, Mapping};
use agentd_bus::shm::park::Closer;
use anyhow::{Context, Result};
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting};

pub const TAG: Tag = Tag {
    kind: 4,
    flags: 0,
    correlation: 0,
};
/// Longer than the watchdog of any measurement.
pub const FOREVER: Duration = Duration::from_secs(600);

pub struct Lane {
    /// As made by its owner, and the descriptor that the other side maps it from.
    data: (Cell<Option<Mapping>>, OwnedFd),
    cursor: (Cell<Option<Mapping>>, OwnedFd),
    waiting: Waiting,
    inline: Inline,
}

/// The same with slots of two lines.
pub struct WideLane(Lane);

#[derive(Debug)]
pub struct Producer(pub ring::Producer<Mapping, Mapping>);

#[derive(Debug)]
pub struct Consumer(pub ring::Consumer<Mapping, Mapping>);

/// All features are on; the waiting is what is compared.
fn options(waiting: Waiting, inline: Inline) -> (SenderOptions, ReceiverOptions) {
    let waiting = match waiting {
        Waiting::Busy => channel::Waiting::Busy,
        Waiting::Adaptive => channel::Waiting::Adaptive,
        Waiting::Blocking => channel::Waiting::Blocking,
    };
    let sender = SenderOptions {
        waiting,
        inline,
        ..SenderOptions::default()
    };
    let receiver = ReceiverOptions {
        waiting,
        ..ReceiverOptions::default()
    };
    (sender, receiver)
}

impl Lane {
    fn of(inline: Inline, setup: &Setup) -> Result<Self> {
        // As many lines in either class: the caches hold as much of both.
        let slots = setup.slots / inline.lines();
        let (data, data_fd) = memfd::create("bench-data", data_words(slots, inline))?;
        let (cursor, cursor_fd) = memfd::create("bench-cursor", cursor_words())?;
        let (sender, receiver) = options(setup.waiting, inline);
        format_data(&data, slots, &sender)?;
        format_cursor(&cursor, &receiver)?;
        Ok(Self {
            data: (Cell::new(Some(data)), data_fd),
            cursor: (Cell::new(Some(cursor)), cursor_fd),
            waiting: setup.waiting,
            inline,
        })
    }
}

impl Transport for WideLane {
    type Sender = Producer;
    type Receiver = Consumer;

    fn prepare(setup: &Setup) -> Result<Self> {
        Lane::of(Inline::Wide, setup).map(Self)
    }

    fn receiver(&self) -> Result<Consumer> {
        self.0.receiver()
    }

    fn sender(&self) -> Result<Producer> {
        self.0.sender()
    }
}

impl Transport for Lane {
    type Sender = Producer;
    type Receiver = Consumer;

    fn prepare(setup: &Setup) -> Result<Self> {
        Self::of(Inline::Small, setup)
    }

    fn receiver(&self) -> Result<Consumer> {
        let cursor = self.cursor.0.take().context("the consumer was made")?;
        let data = memfd::open(self.data.1.as_fd())?;
        Ok(Consumer(ring::Consumer::new(
            data,
            cursor,
            Closer::default(),
            options(self.waiting, self.inline).1,
        )?))
    }

    fn sender(&self) -> Result<Producer> {
        let data = self.data.0.take().context("the producer was made")?;
        let cursor = memfd::open(self.cursor.1.as_fd())?;
        Ok(Producer(ring::Producer::new(
            data,
            cursor,
            Closer::default(),
            options(self.waiting, self.inline).0,
        )?))
    }
}

impl Sender for Producer {
    #[inline(always)]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        Ok(self.0.send(TAG, payload, FOREVER)?)
    }
}

impl Receiver for Consumer {
    #[inline(always)]
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        Ok(self.0.recv_with(FOREVER, |_, payload| see(payload))?)
    }
}
