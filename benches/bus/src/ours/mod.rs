//! The bus as a client has it: sealed memories, closers and counters on.

pub mod arena;
pub mod lane;
pub mod log;
