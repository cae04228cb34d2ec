//! The bus for programs that speak the Model Context Protocol: over streamable HTTP on the loopback of
//! the agent's own network namespace ([`serve`]), or in band on a driven agent's stdio ([`InBand`]).
//!
//! Tools, written for a model to read: `agents`, `send`, `request`, `inbox`, `publish` (in `tools`), `queue_put`,
//! `queue_take`, `queue_ack` (in `queues`), and with a [`Delegation`] those that give tasks to other agents (in `tasks`).
//! Both protocol eras are spoken: sessions with `initialize` (2025-11-25 and before) and the stateless
//! form with `server/discover` (2026-07-28). The server acts with the rights of one [`AgentPort`] and has
//! none of its own. Runs on the daemon's tokio runtime.
//!
//! [`AgentPort`]: crate::bus::AgentPort
//! [`Delegation`]: crate::tasks::Delegation

mod handler;
mod http;
mod inband;
mod queues;
mod tasks;
#[cfg(test)]
mod tests;
mod tools;

pub use handler::Rights;
pub use http::serve;
pub use inband::InBand;
