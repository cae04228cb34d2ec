//! Tasks in the daemon: a queue that survives the daemon, and a scheduler that gives work to driven agents.
//!
//! The rules are in `agentd_orchestrator::task`; here they meet the clock, the record and the agents.

pub mod fleet;

pub use fleet::{Fleet, FleetChanged, Lease, NotNow, RunningAgents, Wanted};
