//! The daemon: start-up, wiring and interfaces. Algorithms live in the planes; here they meet.
//!
//! - [`startup`]: from a program of root's (or the user's) to a confined process, in phases.
//! - [`daemon`]: what every part shares, and the main loop.
//! - [`agents`]: launching, following and ending agents.
//! - [`approvals`]: questions that a person decides.
//! - [`control`]: the D-Bus tree, per caller.
//! - [`gateway`], [`egress`], [`bus`], [`mcp`]: what an agent finds inside its sandbox, served from outside.
//! - [`plane`]: the kernel plane's tables; [`sched`] and [`counters`]: what they say of agents.
//! - [`revocation`]: what is taken from an agent that runs; [`denials`]: what was refused, and by which line.
//! - [`ssh`]: the caller's ssh-agent inside a sandbox, filtered.
//! - [`driver`]: speaking an agent's own protocol.
//! - [`tasks`]: work that survives restarts, and who gets it.
//! - [`units`]: agents that are declared: started, restarted, lent to tasks.
//! - [`record`]: what the planes say, put on record; [`upkeep`]: how much of it is kept; [`audit`]: whether it is whole.
//! - [`config`], [`ceilings`], [`options`]: what the administrator says.
//! - [`service`]: what the service manager is told.
//!
//! Start reading at `main.rs`, then [`startup`].
#![forbid(unsafe_code)]

pub mod agents;
pub mod approvals;
pub mod audit;
pub mod bus;
pub mod ceilings;
pub mod config;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod denials;
pub mod driver;
pub mod egress;
pub mod gateway;
pub mod logging;
pub mod mcp;
pub mod options;
pub mod plane;
pub mod record;
pub mod revocation;
pub mod sched;
pub mod service;
pub mod ssh;
pub mod startup;
pub mod tasks;
pub mod units;
pub mod upkeep;
