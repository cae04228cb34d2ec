//! The asymmetric fence: who is about to sleep pays for both sides.
//!
//! A waker stores and then looks whether somebody sleeps; a sleeper says that it sleeps and then looks
//! whether something was stored. Each needs a full fence in between, or both may miss the other. With
//! `membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED)` the sleeper runs that fence on every CPU that executes a
//! *registered* process, so a registered waker needs none. Registration is per process, is lost at exec,
//! and can be refused (Linux before 4.16, a sandbox): [`register`] says so, and both sides then fence.
//!
//! Any thread, no privilege. See membarrier(2).

#![forbid(unsafe_code)]

use super::atomics::{Ordering, fence};

/// Whether this process has been registered, which is tried once: may its fast path go without fences?
#[cfg(not(any(loom, miri)))]
pub fn register() -> bool {
    use rustix::thread::{MembarrierCommand, membarrier};
    static REGISTERED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *REGISTERED.get_or_init(|| {
        // A child made by fork shares the answer and, since the kernel copies it, the registration.
        membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
    })
}

/// The checkers know no membarrier: everybody fences.
#[cfg(any(loom, miri))]
pub fn register() -> bool {
    false
}

/// The waker's half, when the sleeper issues [`heavy`]: the compiler keeps the order of store and look, the
/// processor is left alone.
#[inline]
pub fn light() {
    // SYNC: light. Pairs with heavy.
    #[cfg(not(loom))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    // Nobody is registered under the checker, so nobody calls this; were it called, it must hold.
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// A full fence here and, if this process could be registered, on every CPU that runs a registered one.
/// For a side that is about to sleep: costs an interrupt of each such CPU.
pub fn heavy() {
    // SYNC: heavy. Orders this side's own store before its look, with or without the call below.
    fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    if register() {
        use rustix::thread::{MembarrierCommand, membarrier};
        // Registered processes may issue it; the kernel gives no other reason to fail.
        let done = membarrier(MembarrierCommand::GlobalExpedited);
        debug_assert!(done.is_ok(), "membarrier: {done:?}");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn registration_is_answered_alike_every_time_and_the_fence_returns() {
        let first = register();
        heavy();
        assert_eq!(register(), first);
    }
}
