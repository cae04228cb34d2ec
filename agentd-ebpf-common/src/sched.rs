//! The scheduler's tables: what each agent ran, waited and slept, counted where the kernel decides it.
//!
//! | table | one entry for each | written by | read by |
//! | --- | --- | --- | --- |
//! | [`Sched`] (`SCHED`) | slot and stripe of processors | the programs; cleared by the broker for a new agent | agentd |
//! | [`Seat`] (`SEATS`) | processor | the programs | agentd |
//! | [`Spell`] (`SPELLS`) | task, by pid | the programs | nobody else |
//!
//! A row is striped so that processors don't fight for its lines: row `slot × STRIPES + cpu mod STRIPES`, and an agent's count is the
//! sum over its stripes. With as many stripes as processors every count has one writer at a time, because all of it happens with
//! interrupts off on that processor; with fewer, the programs add atomically.

use crate::ROWS;

/// Rows for each agent; a power of two. The table is memory of the kernel for as long as the programs are there: [`ROWS`] × 448 bytes
/// a stripe, 7 MB.
pub const STRIPES: u32 = 4;

/// Rows of `SCHED`: those of slot `s` begin at `s × STRIPES`.
pub const SCHED_ROWS: usize = ROWS * STRIPES as usize;

/// Processors that the programs can tell apart. What runs on others is not counted.
pub const SEATS: usize = 1024;

/// Tasks whose last change of state is known at once; a power of two. Two living tasks of agents whose pids are equal modulo this
/// displace each other, which costs each a sample ([`Sched::unseen`]).
pub const SPELLS: usize = 1 << 16;

/// Buckets of the run-queue latency histogram.
pub const BUCKETS: usize = 32;

/// The bucket of a wait: bucket 0 is below 256 ns, each next one reaches twice as far, the last (from 275 s) has no end.
#[inline(always)]
pub const fn bucket(wait_ns: u64) -> usize {
    let doubled = u64::BITS - (wait_ns >> 8).leading_zeros();
    if doubled as usize >= BUCKETS {
        BUCKETS - 1
    } else {
        doubled as usize
    }
}

/// The first wait, in ns, that is too long for this bucket; `None` for the last.
pub const fn bucket_end_ns(bucket: usize) -> Option<u64> {
    if bucket + 1 < BUCKETS {
        Some(1 << (8 + bucket))
    } else {
        None
    }
}

/// Why a task was off its processor without wanting one: indexes of [`Sched::off_ns`].
pub mod off {
    /// Interruptible sleep: a timer, a socket, a pipe, a futex, a child.
    pub const SLEEP: usize = 0;
    /// Uninterruptible sleep that is not input or output: a lock in the kernel, memory being reclaimed.
    pub const BLOCKED: usize = 1;
    /// Waits for a disk (`in_iowait`).
    pub const IO: usize = 2;
    /// Stopped by a signal or a debugger.
    pub const STOPPED: usize = 3;
    /// Frozen with its cgroup.
    pub const FROZEN: usize = 4;
    /// None of these.
    pub const OTHER: usize = 5;
    pub const REASONS: usize = 6;
    /// Places of the table: a power of two, so that a mask bounds an index.
    pub const PLACES: usize = 8;
}

/// What one agent's tasks did since its launch, on the processors of one stripe. Each field only grows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sched {
    /// On a processor. What runs right now is in [`Seat`].
    pub run_ns: u64,
    /// Runnable and on none: the sum of what the histogram counts.
    pub wait_ns: u64,
    /// Neither, by reason ([`off`]); added when the task wakes up.
    pub off_ns: [u64; off::PLACES],
    /// Switches away because the task had nothing to do, as `nvcsw` counts them.
    pub voluntary: u64,
    /// Switches away although it had, as `nivcsw` counts them.
    pub involuntary: u64,
    pub wakeups: u64,
    /// Moves between processors, as `nr_migrations` counts them.
    pub migrations: u64,
    /// Tasks (threads too) that began.
    pub begun: u64,
    /// Tasks that ended.
    pub ended: u64,
    /// Times on a processor whose wait before is not known: a task from before the programs, or displaced ([`SPELLS`]).
    pub unseen: u64,
    /// The longest wait.
    pub wait_max_ns: u64,
    /// Waits by length ([`bucket`]).
    pub waits: [u64; BUCKETS],
    /// Whole cache lines, so that stripes share none.
    pub _zero: [u64; 6],
}

/// Who is on a processor now, if it is an agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    /// `CLOCK_MONOTONIC`, ns, when it came. Written before `slot`.
    pub since_ns: u64,
    /// 0: no agent.
    pub slot: u32,
    pub _zero: u32,
}

/// The present spell of one task: what it is doing, and since when.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spell {
    pub since_ns: u64,
    /// Whose this is; 0 for nobody's.
    pub pid: u32,
    /// A value of [`doing`].
    pub doing: u32,
}

/// Values of [`Spell::doing`]. Off by reason `r` is `OFF + r`.
pub mod doing {
    pub const RUNS: u32 = 0;
    pub const WAITS: u32 = 1;
    pub const OFF: u32 = 2;
}

const _: () = {
    assert!(size_of::<Sched>() == 448);
    assert!(size_of::<Seat>() == 16);
    assert!(size_of::<Spell>() == 16);
    assert!(STRIPES.is_power_of_two());
    assert!(SPELLS.is_power_of_two());
    assert!(BUCKETS.is_power_of_two() && off::PLACES.is_power_of_two());
    assert!(bucket(0) == 0 && bucket(255) == 0 && bucket(256) == 1 && bucket(511) == 1);
    assert!(bucket(512) == 2 && bucket(u64::MAX) == BUCKETS - 1);
};
