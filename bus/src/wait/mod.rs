//! Waiting on many channels at once.
//!
//! [`source`] says what can be waited for.

pub mod source;

pub use source::{Park, Parking, Source, Watch};
