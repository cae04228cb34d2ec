//! `futex` for the model checker: the kernel's promise (the comparison and going to sleep are one step, as
//! seen by a waker) and nothing else. A wake-up that the protocol loses shows as a deadlock.

use std::time::Instant;

use loom::sync::{Condvar, Mutex};

use super::atomics::{AtomicU32, AtomicU64, Ordering};

loom::lazy_static! {
    static ref BUCKET: Mutex<()> = Mutex::new(());
    static ref SLEEPERS: Condvar = Condvar::new();
}

/// As the kernel's.
pub(crate) const WAITV_MAX: usize = 128;

pub(crate) fn wait_either(
    word: &AtomicU64,
    seen: u64,
    flag: &AtomicU32,
    open: u32,
    deadline: Option<Instant>,
) {
    wait_any(std::iter::once((word, seen)), flag, open, deadline);
}

pub(crate) fn wait_any<'a>(
    mut words: impl Iterator<Item = (&'a AtomicU64, u64)>,
    flag: &AtomicU32,
    open: u32,
    _deadline: Option<Instant>,
) {
    let bucket = BUCKET.lock().expect("no panics while it is held");
    if words.all(|(word, seen)| word.load(Ordering::Relaxed) as u32 == seen as u32)
        && flag.load(Ordering::Relaxed) == open
    {
        drop(SLEEPERS.wait(bucket).expect("no panics while it is held"));
    }
}

pub(crate) fn wake_word(_word: &AtomicU64) {
    wake();
}

pub(crate) fn wake_flag(_word: &AtomicU32) {
    wake();
}

fn wake() {
    let bucket = BUCKET.lock().expect("no panics while it is held");
    SLEEPERS.notify_all();
    drop(bucket);
}
