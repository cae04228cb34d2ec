//! An agent's rights on the bus, for the daemon's own parts that act in its name.

use std::sync::Arc;
use std::time::Duration;

use agentd_api::AgentIdentity;
use agentd_bus::message::Status;
use uuid::Uuid;

use super::types::{BusError, Inbox, PeerInfo, Reply};

/// One agent on the bus. Clones share it.
#[derive(Clone, Debug)]
pub struct AgentPort {
    identity: Arc<AgentIdentity>,
}

fn detached() -> BusError {
    BusError::new(Status::PEER_GONE, "this agent has left the bus")
}

impl AgentPort {
    pub(super) fn new(identity: AgentIdentity) -> Self {
        Self {
            identity: Arc::new(identity),
        }
    }

    /// Whose port this is.
    pub fn identity(&self) -> &AgentIdentity {
        &self.identity
    }

    /// The live agents of the same user, this one left out.
    pub async fn agents(&self) -> Result<Vec<PeerInfo>, BusError> {
        Err(detached())
    }

    /// Puts a message into the inbox of the agent named (or with the id) `to`.
    pub async fn send(
        &self,
        to: &str,
        event_type: &str,
        payload: impl Into<Vec<u8>>,
    ) -> Result<(), BusError> {
        drop((to, event_type, payload.into()));
        Err(detached())
    }

    /// Asks the agent `to` and waits for its answer.
    pub async fn request(
        &self,
        to: &str,
        method: &str,
        payload: impl Into<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Reply, BusError> {
        drop((to, method, payload.into(), timeout));
        Err(detached())
    }

    /// Answers a request that was read from the inbox.
    pub async fn respond(
        &self,
        request_id: u32,
        result: Result<Vec<u8>, String>,
    ) -> Result<(), BusError> {
        drop((request_id, result));
        Err(detached())
    }

    /// Takes up to `max` messages; with none there, waits up to `wait` for the first.
    pub async fn inbox(&self, max: usize, wait: Duration) -> Result<Inbox, BusError> {
        drop((max, wait));
        Err(detached())
    }

    /// Publishes to `topic`; the number of subscribers reached.
    pub async fn publish(
        &self,
        topic: &str,
        event_type: &str,
        payload: impl Into<Vec<u8>>,
    ) -> Result<u32, BusError> {
        drop((topic, event_type, payload.into()));
        Err(detached())
    }

    /// From now on, messages to topics that `pattern` covers come into this agent's inbox.
    pub async fn subscribe(&self, pattern: &str) -> Result<(), BusError> {
        drop((pattern,));
        Err(detached())
    }

    /// Undoes [`Self::subscribe`].
    pub async fn unsubscribe(&self, pattern: &str) -> Result<(), BusError> {
        drop((pattern,));
        Err(detached())
    }

    /// From now on the caller answers requests to this agent, at most `window` open ones at a time.
    /// Dropping the receiver stops it.
    pub fn serve_requests(&self, window: u32) -> Result<Requests, BusError> {
        drop((window,));
        Err(detached())
    }

    /// The agent has ended: everyone who waits for it is told, its connections close. Idempotent.
    pub fn detach(&self) {}
}

/// Incoming requests for an agent that the daemon answers for.
#[derive(Debug)]
pub struct Requests {
    _private: (),
}

impl Requests {
    /// The next request; `None` once the agent was detached. Cancel safe.
    pub async fn next(&mut self) -> Option<IncomingRequest> {
        None
    }
}

/// One request. Dropping it unanswered tells the requester that it failed.
#[derive(Debug)]
pub struct IncomingRequest {
    pub from: String,
    pub from_id: Uuid,
    pub method: String,
    pub payload: Vec<u8>,
    /// How long the requester still waits, as of arrival.
    pub timeout: Duration,
}

impl IncomingRequest {
    /// Answers; `Err` carries a text of at most 256 bytes for the requester.
    pub async fn respond(self, result: Result<Vec<u8>, String>) -> Result<(), BusError> {
        drop(result);
        Err(detached())
    }

    /// Resolves when the requester no longer waits: it cancelled, died, or its deadline passed.
    pub async fn cancelled(&self) {
        std::future::pending::<()>().await;
    }
}
