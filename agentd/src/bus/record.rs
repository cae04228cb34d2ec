//! The hook by which every message's metadata reaches the record. Never its contents.
//!
//! Called after the message was routed, outside the router's lock; a slow sink holds up the task that
//! sent the message and nobody else.

use std::future::Future;
use std::pin::Pin;

use agentd_bus::router::MessageMeta;

/// Where the metadata of messages goes.
pub trait MessageSink: Send + Sync + 'static {
    /// Takes one entry; waiting here is how the record pushes back on a flooding sender.
    fn record(&self, meta: MessageMeta) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Keeps nothing: for tests and tools that have no record.
#[derive(Clone, Copy, Debug)]
pub struct Unrecorded;

impl MessageSink for Unrecorded {
    fn record(&self, _meta: MessageMeta) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}
