//! Our lane: both memories are sealed memfds, mapped by each side from the descriptor, as after an offer over the bus.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use agentd_bus::channel::Tag;
use agentd_bus::lane::ring::{self, format_cursor, format_data};
use agentd_bus::lane::{cursor_words, data_words};
use agentd_bus::shm::memfd::{self, Mapping};
use agentd_bus::shm::park::Closer;
use anyhow::{Context, Result};
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting};

use crate::floor::ring::SLOTS;

const TAG: Tag = Tag {
    kind: 4,
    flags: 0,
    correlation: 0,
};
/// Longer than the watchdog of any measurement.
const FOREVER: Duration = Duration::from_secs(600);

pub struct Lane {
    /// As made by its owner, and the descriptor that the other side maps it from.
    data: (Cell<Option<Mapping>>, OwnedFd),
    cursor: (Cell<Option<Mapping>>, OwnedFd),
    waiting: Waiting,
}

#[derive(Debug)]
pub struct Producer {
    lane: ring::Producer<Mapping, Mapping>,
    waiting: Waiting,
}

#[derive(Debug)]
pub struct Consumer {
    lane: ring::Consumer<Mapping, Mapping>,
    waiting: Waiting,
    buffer: Vec<u8>,
}

impl Transport for Lane {
    type Sender = Producer;
    type Receiver = Consumer;

    fn prepare(setup: &Setup) -> Result<Self> {
        let slots = SLOTS as usize;
        let (data, data_fd) = memfd::create("bench-data", data_words(slots))?;
        let (cursor, cursor_fd) = memfd::create("bench-cursor", cursor_words())?;
        format_data(&data, slots)?;
        format_cursor(&cursor)?;
        Ok(Self {
            data: (Cell::new(Some(data)), data_fd),
            cursor: (Cell::new(Some(cursor)), cursor_fd),
            waiting: setup.waiting,
        })
    }

    fn receiver(&self) -> Result<Consumer> {
        let cursor = self.cursor.0.take().context("the consumer was made")?;
        let data = memfd::open(self.data.1.as_fd())?;
        Ok(Consumer {
            lane: ring::Consumer::new(data, cursor, Closer::default())?,
            waiting: self.waiting,
            buffer: Vec::with_capacity(64 << 10),
        })
    }

    fn sender(&self) -> Result<Producer> {
        let data = self.data.0.take().context("the producer was made")?;
        let cursor = memfd::open(self.cursor.1.as_fd())?;
        Ok(Producer {
            lane: ring::Producer::new(data, cursor, Closer::default())?,
            waiting: self.waiting,
        })
    }
}

impl Sender for Producer {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        if self.waiting != Waiting::Busy {
            return Ok(self.lane.send(TAG, payload, FOREVER)?);
        }
        loop {
            match self.lane.try_send(TAG, payload) {
                Err(ring::SendError::Full) => std::hint::spin_loop(),
                other => return Ok(other?),
            }
        }
    }
}

impl Receiver for Consumer {
    #[inline]
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        if self.waiting == Waiting::Busy {
            while self.lane.try_recv(&mut self.buffer)?.is_none() {
                std::hint::spin_loop();
            }
        } else {
            self.lane.recv(&mut self.buffer, FOREVER)?;
        }
        Ok(see(&self.buffer))
    }
}
