//! The daemon: start-up, wiring and interfaces.

pub mod bus;
pub mod mcp;
pub mod gateway;
