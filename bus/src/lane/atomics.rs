//! The one place atomics come from, so that a model checker can stand in for the machine.

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
