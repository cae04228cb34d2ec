//! Joins the planes to the record: what the bus says of a message becomes an [`Event`].

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};

use agentd_bus::router::MessageMeta;
use agentd_storage::{Event, Fact, Message, MessageKind, Store};
use uuid::Uuid;

use crate::bus::{MessageSink, is_users_name};
use crate::daemon::Daemon;

/// Records the metadata of every message.
#[derive(Debug)]
pub struct BusRecord {
    store: Store,
    /// Whose units wait for messages; nobody's until it is known.
    daemon: OnceLock<Weak<Daemon>>,
}

impl BusRecord {
    pub fn new(store: Store) -> Self {
        Self {
            store,
            daemon: OnceLock::new(),
        }
    }

    /// From here on units hear of what is published.
    pub fn connect(&self, daemon: &Arc<Daemon>) {
        // A second call would name the same daemon.
        self.daemon.get_or_init(|| Arc::downgrade(daemon));
    }
}

impl MessageSink for BusRecord {
    fn record(&self, meta: MessageMeta) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if let (Some(topic), Some(daemon)) =
                (&meta.topic, self.daemon.get().and_then(Weak::upgrade))
            {
                let from = Uuid::from_bytes(meta.from.0).into();
                daemon.units.heard(&daemon, from, topic);
            }
            let Some(event) = event_of(meta) else {
                return;
            };
            if let Err(error) = self.store.record(event).await {
                tracing::error!("a message is missing from the record: {error}");
            }
        })
    }
}

/// A message belongs to its sender's launch. What a user says belongs to the launch that it was said to, and what it
/// published to none: then there is no event.
fn event_of(meta: MessageMeta) -> Option<Event> {
    let by_user = is_users_name(&meta.from_name);
    let launch = match &meta.to {
        Some((to, _)) if by_user => *to,
        None if by_user => return None,
        _ => meta.from,
    };
    let to_launch = meta
        .to
        .as_ref()
        .filter(|(to, name)| *to != launch && !is_users_name(name))
        .map(|(to, _)| launch_of(to.0).into());
    let kind = match meta.kind {
        "request" => MessageKind::Request,
        "response" => MessageKind::Response,
        "publish" | "broadcast" => MessageKind::Publish,
        _ => MessageKind::Send,
    };
    let to = match (&meta.to, &meta.topic) {
        (Some((_, name)), _) => name.to_string(),
        (None, Some(topic)) => topic.to_string(),
        (None, None) => "everyone".into(),
    };
    let message = Message {
        id: meta.seq.to_string(),
        from: meta.from_name.to_string(),
        to,
        to_launch,
        kind,
        subject: Some(meta.what)
            .filter(|what| !what.is_empty())
            .or(meta.topic)
            .map(|subject| subject.to_string()),
        correlation: (meta.correlation != 0).then(|| meta.correlation.to_string()),
        bytes: meta.bytes.into(),
        outcome: meta.outcome.to_string(),
    };
    Some(Event {
        launch: launch_of(launch.0).into(),
        at_ms: i64::try_from(meta.at_ns / 1_000_000).unwrap_or(i64::MAX),
        fact: Fact::Message(message),
    })
}

/// A bus id is the launch's UUID.
fn launch_of(id: [u8; 16]) -> String {
    Uuid::from_bytes(id).to_string()
}
