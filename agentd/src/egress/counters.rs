//! What went through one agent's proxy. Plain counters, readable at any time.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// The counters of one agent. Each stands for itself, so relaxed order is enough.
#[derive(Debug, Default)]
pub struct EgressCounters {
    sent: AtomicU64,
    received: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    denied: AtomicU64,
}

/// Their values at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EgressSnapshot {
    /// Bytes from the agent to the network.
    pub sent_bytes: u64,
    /// Bytes from the network to the agent.
    pub received_bytes: u64,
    /// Connections made.
    pub connections: u64,
    /// Connections that are open.
    pub open: u64,
    /// Requests refused.
    pub denied: u64,
}

impl EgressCounters {
    /// The values now.
    pub fn snapshot(&self) -> EgressSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EgressSnapshot {
            sent_bytes: get(&self.sent),
            received_bytes: get(&self.received),
            connections: get(&self.connections),
            open: get(&self.open),
            denied: get(&self.denied),
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection as open until the guard is dropped.
    pub(super) fn opened(self: &std::sync::Arc<Self>) -> OpenGuard {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenGuard(self.clone())
    }
}

/// One open connection.
#[derive(Debug)]
pub(super) struct OpenGuard(std::sync::Arc<EgressCounters>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
