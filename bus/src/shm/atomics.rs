//! The one place atomics come from, so that a model checker can stand in for the machine
//! (`RUSTFLAGS="--cfg loom"`, see `lane::model`).

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
