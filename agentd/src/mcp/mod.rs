//! The bus for programs that speak the Model Context Protocol: over streamable HTTP on the loopback of
//! the agent's own network namespace ([`serve`]), or in band on a driven agent's stdio ([`InBand`]).
//!
//! Five tools, written for a model to read: `agents`, `send`, `request`, `inbox`, `publish` (in `tools`).
//! Both protocol eras are spoken: sessions with `initialize` (2025-11-25 and before) and the stateless
//! form with `server/discover` (2026-07-28). The server acts with the rights of one [`AgentPort`] and has
//! none of its own. Runs on the daemon's tokio runtime.
//!
//! [`AgentPort`]: crate::bus::AgentPort

mod handler;
mod http;
mod inband;
#[cfg(test)]
mod tests;
mod tools;

pub use http::serve;
pub use inband::InBand;
