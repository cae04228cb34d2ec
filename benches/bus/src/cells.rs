//! What is measured, and which two figures make up each promised row.
//!
//! A [`Cell`] is one contender doing one thing in one way of waiting. Cells of a [`GROUPS`] entry alternate with each
//! other, round after round, so that a busy moment of the machine hits all of them.

use agentd_bus::log::Delivery;
use bench_kit::Waiting::{self, Adaptive, Blocking, Busy};
use bench_kit::report::Limit;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    PingPong,
    Futex,
    Bare,
    /// The bare ring with messages over several slots, and with larger slots.
    Spilled,
    Wide,
    Memcpy,
    Lane,
    /// A lane whose slots have two lines.
    LaneWide,
    Arena,
    Log,
    Iceoryx2,
    Aeron,
    Zmq,
    Seqpacket,
    Stream,
    Pipe,
    Nats,
    Redis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    RoundTrip,
    Throughput,
    /// Throughput of messages that take more than one cache line.
    Inline,
    /// Copied in by one process, copied out by the other.
    Bulk,
    /// Messages due per second.
    OpenLoop(u64),
    /// One sender, so many readers.
    /// To so many readers; held up by the slowest of them, or not.
    FanOut(u32, Delivery),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub who: Who,
    pub waiting: Waiting,
    pub work: Work,
    pub bytes: usize,
}

/// Which number of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    P50,
    P99,
    P999,
    Rate,
    /// CPU time of the sender per message.
    Cpu,
}
/// A promised ratio: `figure` of ours divided by that of the peer; of several pairs, the worst.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    pub id: &'static str,
    pub pairs: &'static [(Cell, Cell)],
    pub figure: Figure,
    pub limit: Limit,
}

const fn cell(who: Who, waiting: Waiting, work: Work, bytes: usize) -> Cell {
    Cell {
        who,
        waiting,
        work,
        bytes,
    }
}

const fn oneway(who: Who, waiting: Waiting, bytes: usize) -> Cell {
    cell(who, waiting, Work::RoundTrip, bytes)
}

const fn throughput(who: Who, waiting: Waiting) -> Cell {
    cell(who, waiting, Work::Throughput, 48)
}

const fn open(who: Who, waiting: Waiting, rate: u64) -> Cell {
    cell(who, waiting, Work::OpenLoop(rate), 48)
}

const fn inline(who: Who, bytes: usize) -> Cell {
    cell(who, Busy, Work::Inline, bytes)
}

const fn bulk(who: Who, bytes: usize) -> Cell {
    cell(who, Waiting::Busy, Work::Bulk, bytes)
}

const fn fan_out(readers: u32, delivery: Delivery) -> Cell {
    cell(
        Who::Log,
        Waiting::Adaptive,
        Work::FanOut(readers, delivery),
        48,
    )
}

/// Messages due per second, where both sides spin and where the receiver sleeps.
const FAST: u64 = 1_000_000;
const SLOW: u64 = 10_000;

const LANE_48: Cell = oneway(Who::Lane, Busy, 48);
/// The class that is made for messages of this size.
const LANE_64: Cell = oneway(Who::LaneWide, Busy, 64);
const ARENA_4K: Cell = oneway(Who::Arena, Busy, 4096);
const LANE_RATE: Cell = throughput(Who::Lane, Busy);
const LANE_WAKE: Cell = oneway(Who::Lane, Blocking, 48);

/// Every row of the benchmark, in order.
pub const PROMISES: &[Promise] = &[
    promise(
        "p50",
        &[(LANE_48, oneway(Who::PingPong, Busy, 48))],
        Figure::P50,
        Limit::AtMost(1.15),
    ),
    promise(
        "p99",
        &[(LANE_48, oneway(Who::PingPong, Busy, 48))],
        Figure::P99,
        Limit::AtMost(1.3),
    ),
    promise(
        "vs_iceoryx2_64",
        &[(LANE_64, oneway(Who::Iceoryx2, Busy, 64))],
        Figure::P50,
        Limit::AtMost(0.25),
    ),
    promise(
        "vs_iceoryx2_4k",
        &[(ARENA_4K, oneway(Who::Iceoryx2, Busy, 4096))],
        Figure::P50,
        Limit::AtMost(0.65),
    ),
    promise(
        "vs_aeron_p50",
        &[(LANE_48, oneway(Who::Aeron, Busy, 48))],
        Figure::P50,
        Limit::AtMost(0.5),
    ),
    promise(
        "vs_aeron_tput",
        &[(LANE_RATE, throughput(Who::Aeron, Busy))],
        Figure::Rate,
        Limit::AtLeast(1.5),
    ),
    promise(
        "tput_bare",
        &[(LANE_RATE, throughput(Who::Bare, Busy))],
        Figure::Rate,
        Limit::AtLeast(0.6),
    ),
    promise(
        "tput_iceoryx2",
        &[(LANE_RATE, throughput(Who::Iceoryx2, Busy))],
        Figure::Rate,
        Limit::AtLeast(40.0),
    ),
    promise(
        "tput_seqpacket",
        &[(LANE_RATE, throughput(Who::Seqpacket, Blocking))],
        Figure::Rate,
        Limit::AtLeast(60.0),
    ),
    promise(
        "tput_stream",
        &[(LANE_RATE, throughput(Who::Stream, Blocking))],
        Figure::Rate,
        Limit::AtLeast(3.0),
    ),
    promise(
        "tput_zmq",
        &[(LANE_RATE, throughput(Who::Zmq, Blocking))],
        Figure::Rate,
        Limit::AtLeast(25.0),
    ),
    promise(
        "tput_nats",
        &[(LANE_RATE, throughput(Who::Nats, Blocking))],
        Figure::Rate,
        Limit::AtLeast(40.0),
    ),
    promise(
        "tput_redis",
        &[(LANE_RATE, throughput(Who::Redis, Blocking))],
        Figure::Rate,
        Limit::AtLeast(100.0),
    ),
    promise(
        "wake",
        &[(LANE_WAKE, oneway(Who::Futex, Blocking, 48))],
        Figure::P50,
        Limit::AtMost(1.1),
    ),
    promise(
        "wake_iceoryx2",
        &[(LANE_WAKE, oneway(Who::Iceoryx2, Blocking, 48))],
        Figure::P50,
        Limit::AtMost(0.87),
    ),
    promise(
        "wake_nats",
        &[(LANE_WAKE, oneway(Who::Nats, Blocking, 48))],
        Figure::P50,
        Limit::AtMost(0.45),
    ),
    promise(
        "adaptive",
        &[(throughput(Who::Lane, Adaptive), LANE_RATE)],
        Figure::Rate,
        Limit::AtLeast(0.9),
    ),
    promise(
        "open_p999",
        &[(open(Who::Lane, Busy, FAST), open(Who::Bare, Busy, FAST))],
        Figure::P999,
        Limit::AtMost(1.2),
    ),
    promise(
        "bulk",
        &[
            (bulk(Who::Arena, 4 << 10), bulk(Who::Memcpy, 4 << 10)),
            (bulk(Who::Arena, 64 << 10), bulk(Who::Memcpy, 64 << 10)),
            (bulk(Who::Arena, 1 << 20), bulk(Who::Memcpy, 1 << 20)),
        ],
        Figure::Rate,
        Limit::AtLeast(0.9),
    ),
    promise(
        "log_fanout",
        &[(fan_out(64, Delivery::Lossy), fan_out(1, Delivery::Lossy))],
        Figure::Cpu,
        Limit::AtMost(1.25),
    ),
];

const fn promise(
    id: &'static str,
    pairs: &'static [(Cell, Cell)],
    figure: Figure,
    limit: Limit,
) -> Promise {
    Promise {
        id,
        pairs,
        figure,
        limit,
    }
}

/// Every cell, in the groups that alternate: one table each.
pub const GROUPS: &[&[Cell]] = &[
    &[
        oneway(Who::PingPong, Busy, 48),
        LANE_48,
        oneway(Who::Bare, Busy, 48),
        oneway(Who::Aeron, Busy, 48),
        oneway(Who::Iceoryx2, Busy, 48),
        oneway(Who::Seqpacket, Busy, 48),
        oneway(Who::Stream, Busy, 48),
        oneway(Who::Pipe, Busy, 48),
    ],
    &[
        LANE_64,
        oneway(Who::Lane, Busy, 64),
        oneway(Who::Iceoryx2, Busy, 64),
    ],
    &[
        ARENA_4K,
        oneway(Who::Lane, Busy, 4096),
        oneway(Who::Iceoryx2, Busy, 4096),
    ],
    &[
        LANE_RATE,
        throughput(Who::Bare, Busy),
        throughput(Who::Aeron, Busy),
        throughput(Who::Iceoryx2, Busy),
        throughput(Who::Lane, Adaptive),
        throughput(Who::Lane, Blocking),
        throughput(Who::Seqpacket, Blocking),
        throughput(Who::Stream, Blocking),
        throughput(Who::Pipe, Blocking),
        throughput(Who::Zmq, Blocking),
        throughput(Who::Nats, Blocking),
        throughput(Who::Redis, Blocking),
    ],
    &[
        inline(Who::Lane, 64),
        inline(Who::LaneWide, 64),
        inline(Who::Spilled, 64),
        inline(Who::Wide, 64),
    ],
    &[
        inline(Who::Lane, 112),
        inline(Who::LaneWide, 112),
        inline(Who::Spilled, 112),
        inline(Who::Wide, 112),
    ],
    &[
        inline(Who::Lane, 200),
        inline(Who::Spilled, 200),
        inline(Who::Wide, 200),
    ],
    &[
        oneway(Who::Spilled, Busy, 112),
        oneway(Who::Wide, Busy, 112),
        oneway(Who::Lane, Busy, 112),
        oneway(Who::LaneWide, Busy, 112),
    ],
    &[oneway(Who::Lane, Adaptive, 48)],
    &[
        oneway(Who::Futex, Blocking, 48),
        LANE_WAKE,
        oneway(Who::Iceoryx2, Blocking, 48),
        oneway(Who::Seqpacket, Blocking, 48),
        oneway(Who::Stream, Blocking, 48),
        oneway(Who::Pipe, Blocking, 48),
        oneway(Who::Zmq, Blocking, 48),
        oneway(Who::Nats, Blocking, 48),
        oneway(Who::Redis, Blocking, 48),
    ],
    &[
        open(Who::Bare, Busy, FAST),
        open(Who::Lane, Busy, FAST),
        open(Who::Aeron, Busy, FAST),
        open(Who::Iceoryx2, Busy, FAST),
    ],
    &[
        open(Who::Lane, Blocking, SLOW),
        open(Who::Iceoryx2, Blocking, SLOW),
        open(Who::Seqpacket, Blocking, SLOW),
        open(Who::Stream, Blocking, SLOW),
        open(Who::Zmq, Blocking, SLOW),
        open(Who::Nats, Blocking, SLOW),
        open(Who::Redis, Blocking, SLOW),
    ],
    &[bulk(Who::Memcpy, 4 << 10), bulk(Who::Arena, 4 << 10)],
    &[bulk(Who::Memcpy, 64 << 10), bulk(Who::Arena, 64 << 10)],
    &[bulk(Who::Memcpy, 1 << 20), bulk(Who::Arena, 1 << 20)],
    &[
        fan_out(1, Delivery::Lossy),
        fan_out(64, Delivery::Lossy),
        fan_out(1, Delivery::Reliable),
        fan_out(64, Delivery::Reliable),
    ],
];

impl Who {
    pub fn name(self) -> &'static str {
        match self {
            Self::PingPong => "pingpong",
            Self::Futex => "futex",
            Self::Bare => "bare",
            Self::Spilled => "spilled",
            Self::Wide => "wide",
            Self::Memcpy => "memcpy",
            Self::Lane => "lane",
            Self::LaneWide => "lane_wide",
            Self::Arena => "arena",
            Self::Log => "log",
            Self::Iceoryx2 => "iceoryx2",
            Self::Aeron => "aeron",
            Self::Zmq => "zmq",
            Self::Seqpacket => "seqpacket",
            Self::Stream => "stream",
            Self::Pipe => "pipe",
            Self::Nats => "nats",
            Self::Redis => "redis",
        }
    }
}

impl Who {
    /// The name of a peer that needs a build or a server of its own.
    pub fn peer(self) -> Option<&'static str> {
        match self {
            Self::Iceoryx2 | Self::Aeron | Self::Zmq | Self::Nats | Self::Redis => {
                Some(self.name())
            }
            _ => None,
        }
    }
}

impl Cell {
    /// `busy.oneway48.lane`
    pub fn id(&self) -> String {
        let waiting = match self.waiting {
            Busy => "busy",
            Adaptive => "adaptive",
            Blocking => "blocking",
        };
        let work = match self.work {
            Work::RoundTrip => "oneway".to_owned(),
            Work::Throughput => "throughput".to_owned(),
            Work::Inline => "inline".to_owned(),
            Work::Bulk => "bulk".to_owned(),
            Work::FanOut(readers, Delivery::Lossy) => format!("fanout{readers}_"),
            Work::FanOut(readers, Delivery::Reliable) => format!("fanout{readers}_reliable_"),
            Work::OpenLoop(FAST) => "open1m_".to_owned(),
            Work::OpenLoop(rate) => format!("open{}k_", rate / 1000),
        };
        format!("{waiting}.{work}{}.{}", self.bytes, self.who.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_promised_cell_is_in_exactly_one_group() {
        let all: Vec<Cell> = GROUPS.concat();
        for promise in PROMISES {
            for cell in promise.pairs.iter().flat_map(|(ours, peer)| [ours, peer]) {
                let times = all.iter().filter(|other| *other == cell).count();
                assert_eq!(times, 1, "{} of {}", cell.id(), promise.id);
            }
        }
    }

    #[test]
    fn no_cell_is_measured_twice() {
        let mut ids: Vec<String> = GROUPS.concat().iter().map(Cell::id).collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
