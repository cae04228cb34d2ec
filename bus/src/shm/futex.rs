//! The kernel calls behind `park`: wait on two words at once, wake one.
//!
//! Any process that maps the word, any thread, no privilege.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::futex;

use super::atomics::{AtomicU32, AtomicU64};

/// Asks for the call with an empty list, which is refused as such where the call exists.
pub(crate) fn probe_waitv() -> Result<(), std::io::Error> {
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

/// Most words that the kernel watches in one call (`FUTEX_WAITV_MAX`).
pub(crate) const WAITV_MAX: usize = 128;

/// Sleeps while the low half of `word` is that of `seen` and `flag` is `open`.
pub(crate) fn wait_either(
    word: &AtomicU64,
    seen: u64,
    flag: &AtomicU32,
    open: u32,
    deadline: Option<Instant>,
) {
    wait_on(
        &[watch(low_half(word), seen as u32), watch(flag, open)],
        deadline,
    );
}

/// Sleeps while the low half of each word is that of its value and `flag` is `open`: of at most
/// [`WAITV_MAX`] words, the flag included. Those beyond are not watched.
pub(crate) fn wait_any<'a>(
    words: impl Iterator<Item = (&'a AtomicU64, u64)>,
    flag: &AtomicU32,
    open: u32,
    deadline: Option<Instant>,
) {
    let mut list = [const { futex::Wait::new() }; WAITV_MAX];
    list[0] = watch(flag, open);
    let mut len = 1;
    for (entry, (word, seen)) in list[1..].iter_mut().zip(words) {
        *entry = watch(low_half(word), seen as u32);
        len += 1;
    }
    wait_on(&list[..len], deadline);
}

fn wait_on(list: &[futex::Wait], deadline: Option<Instant>) {
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
    let waited = futex::waitv(
        list,
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

fn watch(word: &AtomicU32, value: u32) -> futex::Wait {
    let mut entry = futex::Wait::new();
    entry.val = u64::from(value);
    entry.uaddr = futex::WaitPtr::new(std::ptr::from_ref(word).cast_mut().cast());
    entry.flags = futex::WaitFlags::SIZE_U32;
    entry
}

/// Wakes whoever sleeps on `word`, in any process.
pub(crate) fn wake_word(word: &AtomicU64) {
    wake_flag(low_half(word));
}

/// Wakes whoever sleeps on `word`, in any process.
pub(crate) fn wake_flag(word: &AtomicU32) {
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
pub(crate) fn monotonic_in(left: Duration) -> rustix::thread::Timespec {
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
