//! CLOCK_MONOTONIC as the channels use it: stamps in nanoseconds, and deadlines.
//!
//! Stamps of two processes are comparable because the clock is the host's (time namespaces keep offset 0).
//! Any thread; the vDSO answers without a system call. Never fails.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Now, ns.
#[cfg(not(loom))]
#[inline]
pub(crate) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(now.tv_nsec as u64)
}

/// Under the checker no time passes.
#[cfg(loom)]
pub(crate) fn now_ns() -> u64 {
    1
}

/// When a wait ends, counted from the first look at the clock: a wait that is over before that never looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    timeout: Duration,
    /// The inner `None`: never, the time is beyond what the clock can say.
    at: Option<Option<Instant>>,
}

impl Deadline {
    pub fn after(timeout: Duration) -> Self {
        Self { timeout, at: None }
    }

    pub fn passed(&mut self) -> bool {
        self.instant().is_some_and(|at| Instant::now() >= at)
    }

    pub fn instant(&mut self) -> Option<Instant> {
        *self
            .at
            .get_or_insert_with(|| Instant::now().checked_add(self.timeout))
    }
}
