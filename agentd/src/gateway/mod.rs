//! The model gateway: what an agent's model requests go through, and the only place where providers' keys are.
//!
//! An agent speaks plain HTTP to a port of its own network namespace; the daemon accepts there. Each request is
//! checked against the policy, stripped of whatever credentials the agent put in, given the daemon's key, metered,
//! and held to the agent's token ceiling, streams included. Start reading at [`budget`] for what is counted and at
//! [`upstream`] for where keys come from. Runs in the daemon's runtime, without privilege.

pub mod api;
pub mod budget;
pub mod config;
mod secret;
pub mod upstream;

pub use api::Provider;
pub use budget::{BudgetSnapshot, TokenBudget, TokenCounts};
pub use config::ModelConfig;
pub use upstream::{Upstreams, UpstreamsError};
