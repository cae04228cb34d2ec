//! The wire plan, the floor and the static agentd-launch program that applies a plan.
//!
//! - [`plan`]: the bytes that describe one launch; written by agentd, read by the broker and the launcher.
//! - [`floor`]: what no plan gets, whoever wrote it.
//! - [`status`]: the messages between the launcher and agentd.
//! - [`layers`]: the names of what confines an agent.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod floor;
pub mod layers;
pub mod plan;
pub mod status;
