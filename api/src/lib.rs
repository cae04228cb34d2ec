//! The public surface: D-Bus tree org.agentd1, error codes, versions.

pub mod identity;

pub use identity::AgentIdentity;
