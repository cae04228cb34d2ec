//! What the machine itself can do: no transport between two processes is faster than these.

pub mod inline;
pub mod memcpy;
pub mod pingpong;
pub mod ring;
