//! Sleeping for the other side of a lane, and waking it.
//!
//! One always waits on a word that the *other* side writes (the next slot's sequence, or the cursor), so
//! that the kernel's comparison sees the very store one waits for. The sleeper says that it sleeps in its
//! own memory; the other side looks there after its store. Both put a full fence between their store and
//! their load, so at least one sees the other: no wake-up is lost.
//!
//! A [`Closer`] is the second word of every wait: it ends the sleep when the daemon says that the other
//! side has gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::futex;

use super::atomics::{AtomicU32, AtomicU64, Ordering};
use crate::message::Status;

/// Says to both ends of waiting that a lane is over. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Closer(Arc<AtomicU32>);

/// The word of a lane that is open.
const OPEN: u32 = 0;

impl Closer {
    /// Ends the lane for this side; the first status counts.
    pub fn close(&self, status: Status) {
        let value = status.0.wrapping_add(1).max(1);
        // SYNC: closed. Pairs with the load in `status`; what the closing thread knew is then known.
        if self
            .0
            .compare_exchange(OPEN, value, Ordering::Release, Ordering::Relaxed)
            .is_ok()
        {
            wake(&self.0);
        }
    }

    /// Why the lane is over; `None` while it is not.
    pub fn status(&self) -> Option<Status> {
        // SYNC: closed.
        match self.0.load(Ordering::Acquire) {
            OPEN => None,
            value => Some(Status(value - 1)),
        }
    }
}

/// Whether this kernel can wait on two words at once (Linux 5.16), and the sandbox lets us.
pub fn probe_waitv() -> Result<(), std::io::Error> {
    // An empty list is refused as such where the call exists.
    match futex::waitv(
        &[],
        futex::WaitvFlags::empty(),
        None,
        rustix::thread::ClockId::Monotonic,
    ) {
        Err(Errno::INVAL) | Ok(_) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Sleeps while the low half of `word` is that of `seen` and the lane is open, until `deadline` at most.
/// May return early; the caller looks again.
pub(super) fn sleep(word: &AtomicU64, seen: u64, closer: &Closer, deadline: Option<Instant>) {
    let timeout = match deadline {
        None => None,
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            Some(monotonic_in(left))
        }
    };
    let mut on_peer = futex::Wait::new();
    on_peer.val = seen & u64::from(u32::MAX);
    on_peer.uaddr = futex::WaitPtr::new(std::ptr::from_ref(low_half(word)).cast_mut().cast());
    on_peer.flags = futex::WaitFlags::SIZE_U32;
    let mut on_close = futex::Wait::new();
    on_close.val = u64::from(OPEN);
    on_close.uaddr = futex::WaitPtr::new(std::ptr::from_ref(&*closer.0).cast_mut().cast());
    on_close.flags = futex::WaitFlags::SIZE_U32;
    let waited = futex::waitv(
        &[on_peer, on_close],
        futex::WaitvFlags::empty(),
        timeout.as_ref(),
        rustix::thread::ClockId::Monotonic,
    );
    match waited {
        // Woken; or the word had changed; or a signal; or time is up: the caller looks in each case.
        Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
        // `probe_waitv` said that the call is there. Sleep blind for a moment rather than spin.
        Err(_) => std::thread::sleep(Duration::from_millis(1)),
    }
}

/// Wakes whoever sleeps on `word`, in any process.
pub(super) fn wake_word(word: &AtomicU64) {
    wake(low_half(word));
}

fn wake(word: &AtomicU32) {
    let woken = futex::wake(word, futex::Flags::empty(), u32::MAX >> 1);
    // Waking needs no right to write; it fails only for an address that is not mapped.
    debug_assert!(woken.is_ok(), "futex wake: {woken:?}");
}

/// The half of a sequence that changes with every message: the futex word.
fn low_half(word: &AtomicU64) -> &AtomicU32 {
    const _: () = assert!(cfg!(target_endian = "little"), "the low half comes first");
    // SAFETY: an AtomicU64 is 8 valid, 8-aligned bytes, so its first 4 are a valid, aligned AtomicU32 for as
    // long as the borrow lasts. It is used as an address for the kernel only; no Rust code loads or stores
    // through it, so no access mixes sizes.
    unsafe { &*std::ptr::from_ref(word).cast::<AtomicU32>() }
}

/// `waitv` takes an absolute time.
fn monotonic_in(left: Duration) -> rustix::thread::Timespec {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let left_s = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
    let mut at = rustix::thread::Timespec {
        tv_sec: now.tv_sec.saturating_add(left_s),
        tv_nsec: now.tv_nsec + i64::from(left.subsec_nanos()),
    };
    if at.tv_nsec >= 1_000_000_000 {
        at.tv_nsec -= 1_000_000_000;
        at.tv_sec = at.tv_sec.saturating_add(1);
    }
    at
}
