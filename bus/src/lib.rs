//! Frames, lanes, router and client of the agent bus.
//!
//! Start with [`frame`] (what is on a socket) and [`router`] (what happens to it). [`client`] is
//! what an agent links; [`lane`] is the shared-memory path between two agents that the bus
//! introduced to each other, and [`shm`] what all shared-memory paths are made of. Nothing here
//! knows tokio, the sandbox or storage: the daemon wires those up.

pub mod access;
pub mod arena;
pub mod channel;
#[cfg(not(loom))]
pub mod client;
pub mod frame;
#[cfg(all(feature = "gateway", not(loom)))]
pub mod gateway;
pub mod lane;
pub mod listing;
pub mod log;
pub mod message;
#[cfg(not(loom))]
pub mod protect;
pub mod router;
#[cfg(not(loom))]
pub mod shard;
pub mod shm;
pub mod simd;
pub mod topic;
pub mod view;
pub mod wait;
mod wire;
