//! Two processes, one transport between them, and what it costs.
//!
//! Every contender implements [`Transport`], and every figure comes out of the same three loops in [`measure`]: round
//! trips, throughput, and open-loop latency. [`stage`] puts the two ends into two real processes, pinned to two CPUs.
//! A peer with a heavy build is a program of its own around [`extra::serve`], run by the driver for each sample.
//!
//! What makes the comparison fair: same payload, same CPUs, same scheduling class, same clock, payload written by the
//! sender and read in full by the receiver (a sum over every word, compared at the end), warm-up dropped.

pub mod clock;
pub mod extra;
pub mod helper;
pub mod measure;
pub mod report;
pub mod stage;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// How the receiving side waits for the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// Spins and never gives the CPU away.
    Busy,
    /// Spins for a while, then sleeps.
    Adaptive,
    /// Sleeps at once.
    Blocking,
}

/// What a transport is asked to carry, known to both sides before they part.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Payload of each message.
    pub bytes: usize,
    pub waiting: Waiting,
    /// Messages that rings and queues of a chosen size have room for.
    pub slots: usize,
    /// Unlike that of any other transport alive: for addresses and topics.
    pub name: String,
}

/// One direction of communication between two processes.
pub trait Transport: Sized {
    type Sender: Sender;
    type Receiver: Receiver;

    /// Before the two processes part. Starts no thread.
    fn prepare(setup: &Setup) -> Result<Self>;

    /// In the receiving process, before the sender is made; returns once a message sent from now on would arrive.
    fn receiver(&self) -> Result<Self::Receiver>;

    /// In the sending process.
    fn sender(&self) -> Result<Self::Sender>;
}

pub trait Sender {
    /// Sends one message by one call of the contender's interface, waiting for room if there is none.
    fn send(&mut self, payload: &[u8]) -> Result<()>;

    /// Sends what a contender that gathers messages still holds back.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

pub trait Receiver {
    /// Waits for the next message and shows it.
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T>;

    /// Waits for at least one message, and shows as many as one call of the contender's interface brings, up to `most`.
    #[inline]
    fn drain(&mut self, most: u64, see: impl FnMut(&[u8])) -> Result<u64> {
        let _: u64 = most;
        self.receive(see)?;
        Ok(1)
    }
}

/// Sum of all words of a payload: what reading it in full means here.
#[inline]
pub fn sum(payload: &[u8]) -> u64 {
    // The common size without a loop: at ten nanoseconds per message a loop's overhead shows.
    if let Ok(payload) = <&[u8; 48]>::try_from(payload) {
        return sum_words(payload.as_chunks::<8>().0);
    }
    let (words, rest) = payload.as_chunks::<8>();
    rest.iter().fold(sum_words(words), |sum, byte| {
        sum.wrapping_add(u64::from(*byte))
    })
}

#[inline]
fn sum_words(words: &[[u8; 8]]) -> u64 {
    words.iter().fold(0, |sum: u64, word| {
        sum.wrapping_add(u64::from_le_bytes(*word))
    })
}

/// First and last word of a payload that the contender has copied out in full: reading all of it once more would only
/// hide what the copies cost.
pub fn edges(payload: &[u8]) -> u64 {
    let first = payload
        .first_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word));
    let last = payload
        .last_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word));
    std::hint::black_box(payload);
    first.wrapping_add(last)
}
