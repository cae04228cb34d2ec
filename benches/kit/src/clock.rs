//! The clock of all measurements: the CPU's time-stamp counter where it is the same and constant on all CPUs, the
//! monotonic clock elsewhere.
//!
//! Reading the counter costs a few nanoseconds, a call of the clock tens; at a hundred nanoseconds per message that
//! is the difference. Whether the counter may be used is the kernel's word (its flags in /proc/cpuinfo).

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long the counter runs beside the monotonic clock to learn its rate.
const CALIBRATION: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug)]
struct Clock {
    counter: bool,
    /// Ticks per nanosecond.
    rate: f64,
}

static CLOCK: OnceLock<Clock> = OnceLock::new();

fn clock() -> Clock {
    *CLOCK.get_or_init(|| {
        if !counter_is_steady() {
            return Clock {
                counter: false,
                rate: 1.0,
            };
        }
        let (begun, first) = (Instant::now(), counter());
        while begun.elapsed() < CALIBRATION {}
        let (last, took) = (counter(), begun.elapsed());
        Clock {
            counter: true,
            rate: (last - first) as f64 / took.as_nanos() as f64,
        }
    })
}

/// Learns the clock's rate. Called once before the processes part, so that no measurement pays for it.
pub fn calibrate() {
    clock();
}

/// Now, in ticks. Comparable between processes of this machine.
#[inline(always)]
pub fn now() -> u64 {
    if CLOCK.get().is_some_and(|clock| !clock.counter) {
        return monotonic();
    }
    counter()
}

/// What `ticks` are in nanoseconds.
pub fn nanoseconds(ticks: u64) -> f64 {
    ticks as f64 / clock().rate
}

/// How many ticks `ns` nanoseconds are.
pub fn ticks(ns: f64) -> f64 {
    ns * clock().rate
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn counter() -> u64 {
    // SAFETY: the instruction is part of the base instruction set of x86_64; Linux lets programs use it (PR_SET_TSC is
    // not called here).
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    monotonic()
}

fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn counter_is_steady() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags"));
    cfg!(target_arch = "x86_64")
        && flags.is_some_and(|line| line.contains(" constant_tsc") && line.contains(" nonstop_tsc"))
}
