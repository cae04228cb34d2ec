//! The wire plan, the floor and the static agentd-launch program that applies a plan.
//!
//! - [`plan`]: the bytes that describe one launch; written by agentd, read by the broker and the launcher.
//! - [`floor`]: what no plan gets, whoever wrote it.
//! - [`status`]: the messages between the launcher and agentd.
//! - [`refusal`]: what the sandbox's init tells of system calls that it refused.
//! - [`layers`]: the names of what confines an agent.
//! - [`parent`]: what whoever starts the launcher owes it.
//! - [`apply`]: the launcher itself, which applies a plan; [`LAUNCHER_ELF`] is the program made of it.
//!
//! Without the feature `std` the crate needs `core` only; `build.rs` compiles it that way into the program.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod apply;
pub mod floor;
pub mod layers;
pub mod parent;
pub mod plan;
pub mod refusal;
pub mod status;

/// The static program, to be executed from a sealed memfd as [`parent`] says.
#[cfg(feature = "std")]
pub static LAUNCHER_ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agentd-launch"));
