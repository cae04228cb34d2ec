//! What lanes, logs and arenas share: memory between processes that don't trust each other.
//!
//! [`memfd`] makes memory that only its maker can write, on [`pages`] of a known kind; [`region`] says what one may
//! do with it, and `copy` moves larger blocks; [`park`], [`barrier`], [`bell`], [`waker`] and `futex` put a side to
//! sleep and wake it; [`counters`] and [`histogram`] are what a third party may read of a channel while it runs.
//!
//! Everything here is used from any thread and needs no privilege. After set-up nothing allocates,
//! locks or logs.

pub(crate) mod atomics;
pub mod barrier;
pub mod bell;
pub(crate) mod clock;
pub(crate) mod copy;
pub mod counters;
#[cfg(not(loom))]
pub(crate) mod futex;
#[cfg(loom)]
#[path = "futex_model.rs"]
pub(crate) mod futex;
pub mod histogram;
pub mod layout;
#[cfg(not(loom))]
pub mod memfd;
#[cfg(not(loom))]
pub mod pages;
pub mod park;
pub(crate) mod patience;
pub mod region;
pub(crate) mod stamp;
pub mod waker;

/// Words (of 8 bytes) of a control page: the first page of data memory, and the whole of cursor memory.
#[cfg(not(loom))]
pub const PAGE_WORDS: usize = 512;
/// Just enough for what the protocols use: the checker follows every word.
#[cfg(loom)]
pub const PAGE_WORDS: usize = 48;
