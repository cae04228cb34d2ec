//! The one place atomics come from, so that a model checker can stand in for the machine
//! (`RUSTFLAGS="--cfg loom"`, see `lane::model`).

#[cfg(not(loom))]
pub use std::hint::spin_loop;
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// The checker runs the other thread meanwhile: what one spins for comes from there.
#[cfg(loom)]
pub use loom::thread::yield_now as spin_loop;
