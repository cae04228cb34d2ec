//! Other people's ways between two processes.

pub mod unix;
