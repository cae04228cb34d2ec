//! Work queues and topics as `org.agentd1.Bus` shows them, and what is asked about their messages.
//!
//! Plain data; the same types serve `agentctl bus … --json`. Contents are shown to the user whose queue it is, and to root.

use serde_json::{Value, json};
use zbus::{DeserializeDict, SerializeDict, Type};

/// One work queue.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct BusQueue {
    pub name: String,
    pub uid: u32,
    pub durable: bool,
    /// What happens when it is full: reject, drop-oldest, block.
    pub full: String,
    pub max_messages: u32,
    pub max_bytes: u64,
    pub visibility_ms: u32,
    pub max_deliver: u32,
    /// May be delivered now; was given back and waits for its time; is in a consumer's hands; died.
    pub waiting: u32,
    pub delayed: u32,
    pub in_hand: u32,
    pub dead: u32,
    /// Of all but the dead letters.
    pub bytes: u64,
    /// Names of the consuming agents, one for each connection.
    pub consumers: Vec<String>,
    /// Producers that wait for room.
    pub paused: u32,
    pub produced: u64,
    pub delivered: u64,
    pub redelivered: u64,
    pub acked: u64,
    pub nacked: u64,
    /// Taken back because nobody said in time what became of them, or because their consumer went.
    pub expired: u64,
    pub returned: u64,
    /// Became dead letters, ever; were refused for want of room, in batches.
    pub died: u64,
    pub refused: u64,
}

impl BusQueue {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name, "uid": self.uid, "durable": self.durable, "full": self.full,
            "max_messages": self.max_messages, "max_bytes": self.max_bytes,
            "visibility_ms": self.visibility_ms, "max_deliver": self.max_deliver,
            "waiting": self.waiting, "delayed": self.delayed, "in_hand": self.in_hand,
            "dead": self.dead, "bytes": self.bytes, "consumers": self.consumers,
            "paused": self.paused, "produced": self.produced, "delivered": self.delivered,
            "redelivered": self.redelivered, "acked": self.acked, "nacked": self.nacked,
            "expired": self.expired, "returned": self.returned, "died": self.died,
            "refused": self.refused,
        })
    }
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct BusTopic {
    /// Empty: all topics of the user beyond those that are counted by themselves.
    pub topic: String,
    pub uid: u32,
    pub durable: bool,
    /// Messages that it keeps for late joiners; 0: what publishers flag.
    pub retain: u32,
    pub retained: u32,
    pub retained_bytes: u64,
    pub subscribers: u32,
    pub published: u64,
    pub bytes: u64,
    /// Queues that its messages were put into.
    pub delivered: u64,
    /// Copies that slow readers lost.
    pub dropped: u64,
}

impl BusTopic {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "topic": self.topic, "uid": self.uid, "durable": self.durable, "retain": self.retain,
            "retained": self.retained, "retained_bytes": self.retained_bytes,
            "subscribers": self.subscribers, "published": self.published, "bytes": self.bytes,
            "delivered": self.delivered, "dropped": self.dropped,
        })
    }
}

/// One message of a queue or of a replay.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct BusQueued {
    /// Its id in the queue; of what is stored, the offset.
    pub id: u64,
    /// Unix time.
    pub at_ns: u64,
    pub priority: u32,
    /// How often it was delivered; 0 in a replay.
    pub deliveries: u32,
    /// Why it is a dead letter: max-deliver, rejected, overflow. Absent for others.
    pub dead: Option<String>,
    /// Of a topic's message.
    pub kind: Option<String>,
    pub data: Vec<u8>,
}

impl BusQueued {
    /// The form that `--json` prints: `text` if it is UTF-8, else `base64`, as `base64` makes it.
    pub fn to_json(&self, base64: impl Fn(&[u8]) -> String) -> Value {
        let mut line = json!({
            "id": self.id, "at_ns": self.at_ns, "priority": self.priority,
            "deliveries": self.deliveries, "dead": self.dead, "type": self.kind,
            "bytes": self.data.len(),
        });
        match std::str::from_utf8(&self.data) {
            Ok(text) => line["text"] = text.into(),
            Err(_) => line["base64"] = base64(&self.data).into(),
        }
        line
    }
}

/// Which messages of a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct PeekOptions {
    /// Dead letters instead of live ones.
    pub dead: Option<bool>,
    /// From this id on.
    pub from: Option<u64>,
    /// At most so many; 20 without, 256 at most.
    pub max: Option<u32>,
    /// Whose queue; the caller's own without. For root.
    pub uid: Option<u32>,
}

/// Which part of what is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct ReplayOptions {
    /// A queue's stored messages instead of a topic's.
    pub queue: Option<bool>,
    /// From this offset on, or from this time (Unix, ns) on; from the first without.
    pub offset: Option<u64>,
    pub since_ns: Option<u64>,
    /// At most so many; 100 without.
    pub max: Option<u32>,
    /// Whose; the caller's own without. For root.
    pub uid: Option<u32>,
}
