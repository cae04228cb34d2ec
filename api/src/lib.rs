//! The public surface of agentd: what may be asked of the daemon, in which words, and how it
//! answers.
//!
//! Both sides use this crate: the daemon implements the D-Bus tree `org.agentd1` with these types,
//! agentctl and the tests call it through the proxies in [`proxies`]. It holds data types, names
//! and one small codec ([`attach`]). It never opens a socket, never starts a task and never decides
//! anything; it runs under whatever privilege its caller has. Failures are [`Error`] values, each
//! with a stable [`ErrorCode`].
//!
//! Start reading at [`launch::LaunchSpec`], then [`proxies::Manager`](proxies::ManagerProxy).
#![forbid(unsafe_code)]

pub mod agent;
pub mod approvals;
pub mod attach;
pub mod bus;
pub mod denials;
pub mod dirs;
pub mod error;
pub mod exit;
pub mod launch;
mod money;
pub mod plane;
pub mod proxies;
pub mod queues;
pub mod restriction;
pub mod sched;
pub mod tasks;
pub mod units;
pub mod upkeep;
mod vocabulary;

pub use agent::{
    AgentId, AgentIdParseError, AgentIdentity, AgentState, AgentSummary, DaemonInfo, DaemonMode,
};
pub use approvals::ApprovalsProxy;
pub use attach::{AttachFrame, AttachFrameError};
pub use bus::BusProxy;
pub use denials::DenialsProxy;
pub use error::{Error, ErrorCode};
pub use exit::{ExitCause, ExitInfo};
pub use launch::{AttachOptions, Driver, LaunchReply, LaunchSpec, LogOptions, StdioMode};
pub use money::NanoUsd;
pub use plane::{PLANE_GROUPS, PlaneGroup};
pub use proxies::{AgentProxy, ManagerProxy};
pub use restriction::{Restrictions, Revocable, TightenSpec};
pub use sched::{AgentSched, SchedProxy};
pub use units::{UnitState, UnitStatus, UnitsProxy};
pub use upkeep::UpkeepProxy;

/// The version that daemon and clients report.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of the D-Bus tree. Raised when a client of the old one would misunderstand the new.
pub const API_VERSION: u32 = 1;

/// Object path of the manager.
pub const MANAGER_PATH: &str = "/org/agentd1";

/// Prefix of the agents' object paths; see [`AgentId::object_path`].
pub const AGENT_PATH_PREFIX: &str = "/org/agentd1/agent/";

/// Well-known name on a message bus. On the peer-to-peer socket there are no names, and none is
/// looked at.
pub const BUS_NAME: &str = "org.agentd1";

/// File name of the control socket inside the runtime directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Name of the socket in the runtime directory at which brokers follow one another; for agentd alone.
pub const BROKER_SOCKET: &str = "broker.sock";
