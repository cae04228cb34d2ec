//! Other people's ways between two processes.

pub mod unix;

pub use bench_peers::{nats, redis};
