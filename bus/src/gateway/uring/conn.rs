//! What is known of one connection, and whether it takes more than its share.

use std::time::Instant;

use super::super::outbox::Outbox;
use super::receive::BUFFER;

/// Buffers in a row that are at most half full until a connection is no longer taken for a flood.
const CALM: u8 = 16;

#[derive(Debug)]
pub(super) struct Conn {
    pub outbox: Outbox,
    pub listener: u16,
    /// The handler knows of it.
    pub told: bool,
    pub ended: bool,
    /// Its descriptor is being given up.
    pub closing: bool,
    pub reading: bool,
    /// The peer sends nothing more.
    pub finished: bool,
    pub dirty: bool,
    /// Something waits in the kernel for its bytes: a receive, or for a quiet one a poll.
    pub receiving: bool,
    /// It has said nothing for a while: a poll is enough, and takes a third of the memory.
    pub quiet: bool,
    /// What waits is the poll.
    pub polled: bool,
    /// The receive operation has been told to stop.
    pub stopping: bool,
    /// Receives one buffer at a time until so many in a row were half empty: what sends more than its share would
    /// otherwise fill the completion queue ahead of everyone else.
    pub heavy: u8,
    /// What it has received in which turn.
    pub turn: u64,
    pub turn_bytes: usize,
    pub sending: bool,
    /// The socket was full: the next send waits, under a time-out.
    pub blocked: bool,
    /// Result of a `send_zc` whose buffer is still in use.
    pub zero_copied: i32,
    /// When a peer that keeps a `send_zc`'s buffer in use is given up. `Some` while a notification is awaited.
    pub notified_by: Option<Instant>,
    /// Operations that will still complete.
    pub in_flight: u32,
}

impl Conn {
    /// Accepted, and asked who it is: one operation is under way.
    pub fn new(listener: u16) -> Self {
        Self {
            outbox: Outbox::default(),
            listener,
            told: false,
            ended: false,
            closing: false,
            reading: true,
            finished: false,
            dirty: false,
            receiving: false,
            quiet: true,
            polled: false,
            stopping: false,
            heavy: 0,
            turn: 0,
            turn_bytes: 0,
            sending: false,
            blocked: false,
            zero_copied: 0,
            notified_by: None,
            in_flight: 1,
        }
    }

    /// Accounts for what was received in this turn, and tells a flood from others by it.
    pub fn share(&mut self, turn: u64, count: usize, budget: usize) {
        if self.turn != turn {
            (self.turn, self.turn_bytes) = (turn, 0);
        }
        self.turn_bytes += count;
        if self.turn_bytes > budget || (self.heavy > 0 && count > BUFFER / 2) {
            self.heavy = CALM;
        } else {
            self.heavy = self.heavy.saturating_sub(1);
        }
    }

    /// Operations that a cancellation brings back; the notification of a `send_zc` comes when its bytes have arrived.
    pub fn is_busy(&self) -> bool {
        self.in_flight > u32::from(self.notified_by.is_some())
    }
}
