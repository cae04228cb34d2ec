//! What a watcher of a queue is told of its messages.

use super::*;
use crate::router::{QueueStep, QueueStepKind as Kind};

/// Message, step, by whom, deliveries: of those since the last call.
fn told(bus: &mut Bus) -> Vec<(u64, Kind, Option<String>, u16)> {
    let steps = std::mem::take(&mut bus.fx.steps);
    let told = |step: QueueStep| {
        assert_eq!((step.uid, &*step.queue, step.bytes), (1000, "q", 4));
        let by = step.by.map(|(_, name)| name.to_string());
        (step.message, step.kind, by, step.deliveries)
    };
    steps.into_iter().map(told).collect()
}

#[test]
fn each_step_of_each_message_is_told_in_order_and_by_whom() {
    let mut bus = Bus::new(Limits::default());
    let (producer, consumer) = (bus.join(1, "producer"), bus.join(2, "consumer"));
    let spec = QueueSpec {
        visibility_ms: 100,
        max_deliver: 2,
        ..QueueSpec::default()
    };
    bus.router.watch_queue("q");
    let queue = bus.declare(producer, "q", spec);
    bus.open(consumer, "q");
    let other = bus.open(producer, "unwatched");
    bus.put(producer, 0, other, &[(1, "none")]);
    let (by_producer, by_consumer) = (Some("producer".to_owned()), Some("consumer".to_owned()));
    bus.put(producer, 0, queue, &[(1, "work"), (1, "more")]);
    let produced = [1, 2].map(|id| (id, Kind::Produced, by_producer.clone(), 0));
    assert_eq!(told(&mut bus), produced);

    bus.consume(consumer, queue, 2);
    let tags: Vec<u64> = bus.delivered(consumer).iter().map(|one| one.0).collect();
    let delivered = |id, times| (id, Kind::Delivered, by_consumer.clone(), times);
    assert_eq!(told(&mut bus), [delivered(1, 1), delivered(2, 1)]);
    bus.settle(consumer, 0, queue, Outcome::Ack, &tags[..1]);
    bus.settle(
        consumer,
        0,
        queue,
        Outcome::Nack { delay_ms: 50 },
        &tags[1..],
    );
    assert_eq!(
        told(&mut bus),
        [
            (1, Kind::Acked, by_consumer.clone(), 1),
            (2, Kind::Nacked, by_consumer.clone(), 1)
        ]
    );
    bus.advance(60);
    assert_eq!(bus.delivered(consumer).len(), 1);
    assert_eq!(told(&mut bus), [(2, Kind::Due, None, 1), delivered(2, 2)]);
    bus.advance(101);
    assert_eq!(
        told(&mut bus),
        [
            (2, Kind::Expired, by_consumer.clone(), 2),
            (2, Kind::Dead(DeadReason::MaxDeliver), None, 2)
        ]
    );
    let dead = |action| Control::QueueDead {
        queue,
        action,
        ids: Numbers::parse(&[]).unwrap(),
    };
    bus.say(consumer, 3, dead(DeadAction::Requeue));
    bus.take(consumer);
    assert_eq!(bus.delivered(consumer).len(), 1);
    assert_eq!(
        told(&mut bus),
        [(2, Kind::Requeued, None, 0), delivered(2, 1)]
    );
    // Whoever has gone is not named.
    bus.router.disconnect(consumer, bus.now, &mut bus.fx);
    assert_eq!(told(&mut bus), [(2, Kind::Returned, None, 1)]);
}

#[test]
fn only_while_somebody_watches() {
    let mut bus = Bus::new(Limits::default());
    let producer = bus.join(1, "producer");
    let queue = bus.open(producer, "q");
    let put = |bus: &mut Bus| {
        bus.put(producer, 0, queue, &[(1, "work")]);
        told(bus).len()
    };
    assert_eq!(put(&mut bus), 0);
    bus.router.watch_queue("q");
    bus.router.watch_queue("q");
    assert_eq!(put(&mut bus), 1);
    bus.router.unwatch_queue("q");
    assert_eq!(put(&mut bus), 1, "one of two watchers is left");
    bus.router.unwatch_queue("q");
    bus.router.unwatch_queue("q");
    assert_eq!(put(&mut bus), 0);
}
