//! The privileged process and its protocol.
//!
//! `agentd-broker` is the only process of agentd that keeps privilege. It does a score of fixed things for its one client,
//! agentd, over one SOCK_SEQPACKET socket, and holds a floor that the client can't lower. This library has both sides of
//! the protocol; the program itself is `src/main.rs`.
//!
//! Start reading at [`protocol`], then `docs/broker-protocol.md`.

pub mod client;
pub mod protocol;
