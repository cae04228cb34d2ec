//! The daemon's side of the bus: sockets around the router, and ports for the daemon's own parts.
//!
//! [`BusServer`] owns the threads of the router ([`agentd_bus::shard`]). Each agent is attached with the listener
//! that sits in its own mount view, so that who speaks is known from where it connected; [`AgentPort`] is the
//! same agent's rights for the MCP server and the drivers.

#[cfg(test)]
mod channel_tests;
mod channels;
pub mod direct;
mod durable;
#[cfg(test)]
mod durable_tests;
#[cfg(test)]
mod fixture;
pub mod gateway;
mod port;
mod queues;
mod record;
mod refusals;
mod requests;
mod rights;
#[cfg(test)]
mod route_tests;
mod server;
mod socket;
mod tap;
#[cfg(test)]
mod tests;
mod types;
mod user;

pub use channels::ChannelInfo;
pub use durable::Durable;
pub use port::AgentPort;
pub use queues::Queued;
pub use record::{MessageSink, Unrecorded};
pub use refusals::{RefusalSink, Refusals, Refused, TakenBack, refusals};
pub use requests::{IncomingRequest, Requests};
pub use server::{AttachError, BusServer, SHARDS_MAX, default_shards};
pub use tap::{Tap, TapFilter, Tapped};
pub use types::{BusError, Inbox, Message, MessageKind, PeerInfo, Reply};
pub use user::{Followed, Following, TopicMessage, USER_READER, UserPort, is_users_name};
