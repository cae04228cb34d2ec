//! This terminal, lent to an agent: raw mode, detach keys, and the loop that carries bytes.
//!
//! The agent never gets our terminal itself: it has its own, and bytes are copied. Nothing here knows
//! D-Bus. Runs on the main thread with the caller's rights; every way out of it, panics included,
//! leaves the terminal as it was found.

pub mod keys;
pub mod modes;
pub mod raw;
pub mod session;
mod sink;

pub use keys::DetachKeys;
pub use raw::RawTerminal;
pub use session::{Session, SessionEnd};
