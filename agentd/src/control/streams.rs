//! Queues, topics and their messages, in the words of the API. Changes nothing, never waits.

use agentd_api::queues::{BusQueue, BusQueued, BusTopic};
use agentd_bus::message::{Event, QueuePart, Replayed, StreamKind};
use agentd_bus::router::{DeadReason, QueueStatus, TopicStatus};

use crate::bus::Queued;

pub fn queue(queue: QueueStatus) -> BusQueue {
    BusQueue {
        name: queue.name,
        uid: queue.uid,
        durable: queue.spec.durable,
        full: queue.spec.full.as_str().to_owned(),
        max_messages: queue.spec.max_messages,
        max_bytes: queue.spec.max_bytes,
        visibility_ms: queue.spec.visibility_ms,
        max_deliver: queue.spec.max_deliver,
        waiting: queue.waiting,
        delayed: queue.delayed,
        in_hand: queue.in_hand,
        dead: queue.dead,
        bytes: queue.bytes,
        consumers: queue.consumers,
        paused: queue.paused,
        produced: queue.counters.produced,
        delivered: queue.counters.delivered,
        redelivered: queue.counters.redelivered,
        acked: queue.counters.acked,
        nacked: queue.counters.nacked,
        expired: queue.counters.expired,
        returned: queue.counters.returned,
        died: queue.counters.dead,
        refused: queue.counters.refused,
    }
}

pub fn topic(topic: TopicStatus) -> BusTopic {
    BusTopic {
        topic: topic.topic,
        uid: topic.uid,
        durable: topic.spec.durable,
        retain: topic.spec.retain.into(),
        retained: topic.retained,
        retained_bytes: topic.retained_bytes,
        subscribers: topic.subscribers,
        published: topic.counters.published,
        bytes: topic.counters.bytes,
        delivered: topic.counters.delivered,
        dropped: topic.counters.dropped,
    }
}

pub fn queued(message: Queued, part: QueuePart) -> BusQueued {
    let reason = || {
        let code = u8::try_from(message.tag).ok()?;
        DeadReason::from_code(code).map(|reason| reason.as_str().to_owned())
    };
    BusQueued {
        id: message.id,
        at_ns: message.sent_ns,
        priority: message.priority.into(),
        deliveries: message.deliveries.into(),
        dead: (part == QueuePart::Dead).then(reason).flatten(),
        kind: None,
        data: message.data,
    }
}

pub fn replayed(message: Replayed, kind: StreamKind) -> BusQueued {
    let event = match kind {
        StreamKind::Queue => None,
        StreamKind::Topic => Event::parse(&message.data).ok(),
    };
    let (kind, data) = match event {
        Some(event) => (Some(event.event_type.to_owned()), event.data.to_vec()),
        None => (None, message.data),
    };
    BusQueued {
        id: message.offset,
        at_ns: message.at_ns,
        priority: message.priority.into(),
        deliveries: 0,
        dead: None,
        kind,
        data,
    }
}
