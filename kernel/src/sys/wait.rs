//! Waiting: signals as descriptors, children, several descriptors at once, and the clock.

use super::call::call;
use super::{Errno, Fd, FdRef, nr};

/// `SIGCHLD`
pub const SIGCHLD: u32 = 17;
/// `POLL*`
pub const POLLIN: u16 = 1;
/// `POLL*`
pub const POLLOUT: u16 = 4;
/// `POLL*`
pub const POLLERR: u16 = 8;
/// `POLL*`
pub const POLLHUP: u16 = 16;

const SIGSET_LEN: usize = 8;

/// `struct pollfd`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Poll {
    fd: i32,
    events: u16,
    /// What happened.
    pub happened: u16,
}

impl Poll {
    /// Waits for `events`; hang-ups and errors are always told.
    pub fn on(fd: FdRef<'_>, events: u16) -> Poll {
        Poll {
            fd: fd.raw(),
            events,
            happened: 0,
        }
    }

    /// Waits for nothing.
    pub fn off() -> Poll {
        Poll {
            fd: -1,
            events: 0,
            happened: 0,
        }
    }
}

/// Waits until something happens or `timeout_ms` (for ever without) is over; a signal ends the wait early.
pub fn poll(polls: &mut [Poll], timeout_ms: Option<u64>) -> Result<(), Errno> {
    let timeout = timeout_ms.map(|ms| [ms / 1000, ms % 1000 * 1_000_000]);
    let timeout = timeout
        .as_ref()
        .map_or(0, |timeout| timeout.as_ptr().expose_provenance());
    let args = [
        polls.as_mut_ptr().expose_provenance(),
        polls.len(),
        timeout,
        0,
        SIGSET_LEN,
    ];
    // SAFETY: the kernel reads and writes `polls.len()` of `struct pollfd`, and reads and writes the `struct timespec`,
    // a local that outlives the call, if there is one.
    match unsafe { call(nr::PPOLL, args) } {
        Ok(_) => Ok(()),
        Err(Errno::INTR) => {
            polls.iter_mut().for_each(|poll| poll.happened = 0);
            Ok(())
        }
        Err(errno) => Err(errno),
    }
}

/// Milliseconds of the monotonic clock.
pub fn now_ms() -> u64 {
    const CLOCK_MONOTONIC: usize = 1;
    let mut now = [0u64; 2];
    // SAFETY: the kernel writes a `struct timespec` of two words to `now`. This clock always exists.
    unsafe {
        call(
            nr::CLOCK_GETTIME,
            [CLOCK_MONOTONIC, now.as_mut_ptr().expose_provenance()],
        )
    }
    .unwrap_or(0);
    now[0] * 1000 + now[1] / 1_000_000
}

/// Nanoseconds since boot, suspended time included.
pub fn boot_ns() -> u64 {
    const CLOCK_BOOTTIME: usize = 7;
    let mut now = [0u64; 2];
    // SAFETY: the kernel writes a `struct timespec` of two words to `now`. This clock always exists.
    unsafe {
        call(
            nr::CLOCK_GETTIME,
            [CLOCK_BOOTTIME, now.as_mut_ptr().expose_provenance()],
        )
    }
    .unwrap_or(0);
    now[0] * 1_000_000_000 + now[1]
}

/// Replaces the caller's mask of blocked signals; bit 0 is signal 1.
pub fn block_signals(mask: u64) -> Result<(), Errno> {
    const SIG_SETMASK: usize = 2;
    // SAFETY: the kernel reads a signal set of 8 bytes from `mask`; it is not asked for the old one.
    unsafe {
        call(
            nr::RT_SIGPROCMASK,
            [
                SIG_SETMASK,
                (&raw const mask).expose_provenance(),
                0,
                SIGSET_LEN,
            ],
        )
    }
    .map(drop)
}

/// Gives every signal its default action.
pub fn default_signals() -> Result<(), Errno> {
    // struct kernel_sigaction: handler (SIG_DFL), flags, restorer, mask
    let action = [0u64; 4];
    for signal in (1..=64).filter(|signal| ![9, 19].contains(signal)) {
        // SAFETY: the kernel reads a `struct kernel_sigaction` of four words; SIG_DFL is no address. No old one is asked for.
        unsafe {
            call(
                nr::RT_SIGACTION,
                [signal, action.as_ptr().expose_provenance(), 0, SIGSET_LEN],
            )
        }?;
    }
    Ok(())
}

/// What a terminal sends to its foreground: `SIGINT`, `SIGQUIT`, `SIGTSTP`, `SIGWINCH`.
pub const TERMINAL_SIGNALS: [u32; 4] = [2, 3, 20, 28];

/// Bytes of one record of [`signals`]; it begins with the signal's number.
pub const SIGNAL_RECORD: usize = 128;

/// A descriptor that becomes readable when a child changes state or one of `others` arrives; all must be blocked.
pub fn signals(others: &[u32]) -> Result<Fd, Errno> {
    const SFD_NONBLOCK_CLOEXEC: usize = 0o4000 | 0o2_000_000;
    let bit = |signal: &u32| 1u64 << (signal - 1);
    let mask = others
        .iter()
        .map(bit)
        .fold(bit(&SIGCHLD), |all, one| all | one);
    let args = [
        usize::MAX,
        (&raw const mask).expose_provenance(),
        SIGSET_LEN,
        SFD_NONBLOCK_CLOEXEC,
    ];
    // SAFETY: the kernel reads a signal set of 8 bytes from `mask`.
    unsafe { call(nr::SIGNALFD4, args) }.map(Fd::returned)
}

fn wait4(pid: i32, options: usize) -> Result<Option<(u32, i32)>, Errno> {
    let mut status = 0i32;
    // SAFETY: the kernel writes an int to `status`; it is not asked for resource usage.
    match unsafe {
        call(
            nr::WAIT4,
            [
                pid as usize,
                (&raw mut status).expose_provenance(),
                options,
                0,
            ],
        )
    } {
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some((pid as u32, status))),
        Err(errno) => Err(errno),
    }
}

/// A child that ended, stopped or went on since the last call: its pid and wait status.
pub fn next_child_event() -> Result<Option<(u32, i32)>, Errno> {
    const WNOHANG_WUNTRACED_WCONTINUED_WALL: usize = 1 | 2 | 8 | 0x4000_0000;
    wait4(-1, WNOHANG_WUNTRACED_WCONTINUED_WALL)
}

/// Waits until the child has ended.
pub fn wait_for(pid: i32) -> Result<Option<(u32, i32)>, Errno> {
    const WALL: usize = 0x4000_0000;
    loop {
        match wait4(pid, WALL) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// What the reaped children used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Time in user mode.
    pub user_us: u64,
    /// Time in the kernel.
    pub system_us: u64,
    /// The largest resident set of one of them.
    pub maxrss_kb: u64,
}

/// What all reaped children, and theirs, used.
pub fn children_usage() -> Result<Usage, Errno> {
    const RUSAGE_CHILDREN: usize = usize::MAX;
    // struct rusage: two timevals, maxrss, 13 more words
    let mut usage = [0u64; 18];
    // SAFETY: the kernel writes a `struct rusage` of 144 bytes to `usage`.
    unsafe {
        call(
            nr::GETRUSAGE,
            [RUSAGE_CHILDREN, usage.as_mut_ptr().expose_provenance()],
        )
    }?;
    let us = |seconds: u64, rest: u64| seconds * 1_000_000 + rest;
    Ok(Usage {
        user_us: us(usage[0], usage[1]),
        system_us: us(usage[2], usage[3]),
        maxrss_kb: usage[4],
    })
}
