//! What passes between `agentctl bench` and the agentctl in a sandbox: orders as an argument, commands as lines of stdin,
//! reports as lines of JSON on stdout. And what both must agree on: the contents of a message, and chance.

use serde::{Deserialize, Serialize};

/// Least bytes of a message: its number, and a word for the receiver.
pub const HEAD: usize = 16;

/// How both ends of a lane wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    Busy,
    Adaptive,
    Blocking,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Adaptive => "adaptive",
            Self::Blocking => "blocking",
        }
    }
}

/// What one agent is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orders {
    /// Take so many lanes, check what comes, and measure from the time that each message says.
    Receive {
        lanes: u32,
        mode: Mode,
    },
    /// At `go`: send over so many lanes, each by a thread of its own, as fast as they go.
    Send {
        to: String,
        lanes: u32,
        messages: u64,
        size: usize,
        mode: Mode,
    },
    /// At `go`: send at a fixed rate, each message saying when it was due.
    Pace {
        to: String,
        rate: u64,
        duration_ns: u64,
        size: usize,
        mode: Mode,
    },
    /// Send back what comes.
    Echo {
        to: String,
        mode: Mode,
    },
    /// At `go`: send, wait until it comes back, and measure.
    Bounce {
        to: String,
        duration_ns: u64,
        size: usize,
        mode: Mode,
    },
    Mixed(Mixed),
}

/// One place in a stress run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mixed {
    /// Names are `RUN-SLOT`, topics `RUN.tN`.
    pub run: String,
    pub slot: u32,
    pub agents: u32,
    /// Counts up each time the slot gets another agent.
    pub generation: u32,
    pub seed: u64,
    pub size: usize,
    pub mode: Mode,
}

impl Mixed {
    pub fn name(&self, slot: u32) -> String {
        format!("{}-{slot}", self.run)
    }
}

/// What the other side says on stdin. Any line is a sign of life.
pub const GO: &str = "go";
/// Stress: send no more, close what you send over, and report it.
pub const STOP: &str = "stop";
/// Stress: receive to the end and report.
pub const END: &str = "end";

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// Connected, lanes open: `go` may come.
    Ready,
    /// So many messages so far.
    Progress(u64),
    /// It has sent all, in this time.
    Sent {
        messages: u64,
        elapsed_ns: u64,
    },
    /// All lanes have been read to their end.
    Received(Received),
    /// Round trips that were made.
    Bounced(Received),
    /// Whoever bounced has closed its lane, and everything has been sent back.
    Echoed,
    /// Stress: what it has sent over each lane and log, after `stop`.
    Stopped(Vec<Sent>),
    /// Stress: everything else, after `end`.
    Mixed(Box<MixedReport>),
    Failed(String),
}

impl Report {
    /// Whether the agent has done all it was ordered to.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Sent { .. }
            | Self::Received(_)
            | Self::Bounced(_)
            | Self::Echoed
            | Self::Mixed(_) => true,
            Self::Ready | Self::Progress(_) | Self::Stopped(_) | Self::Failed(_) => false,
        }
    }
}

/// What came, and how late.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    pub messages: u64,
    pub bytes: u64,
    /// Numbers that never came.
    pub missing: u64,
    /// Messages whose contents are not what their number says.
    pub broken: u64,
    /// From the first message to the last.
    pub elapsed_ns: u64,
    /// Lowest value of a bucket in ns, and how many.
    pub latency: Vec<(u64, u64)>,
}

/// One lane or log of a stress run, at its sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Names it in every message: [`key`].
    pub key: u64,
    pub to: u32,
    pub messages: u64,
    /// The sender itself closed it. Otherwise the other side had gone.
    pub complete: bool,
}

impl Sent {
    pub fn is_log(&self) -> bool {
        self.key as u32 >= LOGS_FROM
    }
}

/// One lane or log of a stress run, at one receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Got {
    pub key: u64,
    /// Number of the first message: a log may have been written to before.
    pub first: u64,
    pub messages: u64,
    pub missing: u64,
    /// Of a lossy log: how many the reader was told that it lost.
    pub told: u64,
    pub broken: u64,
    /// Nothing may be missing.
    pub reliable: bool,
    /// It was read to its end.
    pub complete: bool,
    /// The reader was too slow for its writer, and was told so.
    pub cut_off: bool,
}

/// The rest of what a stress agent saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MixedReport {
    pub lanes: Vec<Got>,
    pub logs: Vec<Got>,
    /// Requests made; answered rightly, wrongly; refused or failed by the bus's word; without any end.
    pub requests: u64,
    pub answered: u64,
    pub wrong: u64,
    pub failed: u64,
    pub hung: u64,
    pub served: u64,
    pub published: u64,
    /// Topic messages that came; numbers that are missing; how many the bus said it dropped.
    pub followed: u64,
    pub gaps: u64,
    pub told_lost: u64,
    pub broken: u64,
}

/// The name of a lane: who opened it, in which life, and which of its lanes it is.
pub fn key(slot: u32, generation: u32, serial: u32) -> u64 {
    u64::from(slot) << 48 | u64::from(generation & 0xffff) << 32 | u64::from(serial)
}

/// Serial numbers of logs begin here, those of lanes below.
pub const LOGS_FROM: u32 = 1 << 30;

/// Of a [`key`].
pub fn slot_of(key: u64) -> u32 {
    (key >> 48) as u32
}

/// Of a [`key`].
pub fn generation_of(key: u64) -> u32 {
    (key >> 32) as u32 & 0xffff
}

/// Writes message `number` into `message`, with `word` for the receiver. The rest follows from both.
pub fn fill(message: &mut [u8], number: u64, word: u64) {
    message[..8].copy_from_slice(&number.to_le_bytes());
    message[8..HEAD].copy_from_slice(&word.to_le_bytes());
    for (at, chunk) in message[HEAD..].chunks_mut(8).enumerate() {
        let bytes = filler(number, word, at).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
}

/// Number and word of a message; `None` if its contents don't follow from them.
pub fn check(message: &[u8]) -> Option<(u64, u64)> {
    let number = u64::from_le_bytes(*message.first_chunk()?);
    let word = u64::from_le_bytes(*message.get(8..)?.first_chunk()?);
    let sound = message[HEAD..].chunks(8).enumerate().all(|(at, chunk)| {
        let bytes = filler(number, word, at).to_le_bytes();
        chunk == &bytes[..chunk.len()]
    });
    sound.then_some((number, word))
}

fn filler(number: u64, word: u64, at: usize) -> u64 {
    (number ^ word.rotate_left(32))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add((at as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9))
}

/// Splitmix64: a seed gives the same numbers everywhere.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_seen_wherever_it_is() {
        for size in [16, 17, 48, 100] {
            let mut message = vec![0; size];
            fill(&mut message, 7, 42);
            assert_eq!(check(&message), Some((7, 42)));
            for at in HEAD..size {
                message[at] ^= 1;
                assert_eq!(check(&message), None, "byte {at} of {size}");
                message[at] ^= 1;
            }
        }
        assert_eq!(check(&[0; 15]), None);
    }

    #[test]
    fn keys_say_who_and_when() {
        let key = key(999, 65_537, 3);
        assert_eq!((slot_of(key), generation_of(key)), (999, 1));
    }

    /// An agent that ends behind it has done its work; one that ends without it has not.
    #[test]
    fn each_order_ends_with_a_report_that_is_the_last() {
        for last in [
            Report::Sent {
                messages: 1,
                elapsed_ns: 1,
            },
            Report::Received(Received::default()),
            Report::Bounced(Received::default()),
            Report::Echoed,
            Report::Mixed(Box::default()),
        ] {
            assert!(last.is_last(), "{last:?}");
        }
        for more in [
            Report::Ready,
            Report::Progress(1),
            Report::Stopped(Vec::new()),
        ] {
            assert!(!more.is_last(), "{more:?}");
        }
    }

    #[test]
    fn chance_repeats_itself() {
        let mut chance = Chance::new(1);
        let first: Vec<u64> = (0..4).map(|_| chance.next()).collect();
        let mut again = Chance::new(1);
        assert_eq!(first, (0..4).map(|_| again.next()).collect::<Vec<_>>());
        assert!((0..1000).all(|_| chance.below(7) < 7));
    }
}
