//! The store against a model that is plainly right: a list of messages, each with what it is now.
//!
//! Random histories of producers, consumers that take, settle late or never, die and come back, and time that passes.
//! After each step the two agree on every message, and the store's own accounts are in order.

use proptest::prelude::*;

use super::super::ConnId;
use super::super::persist::DeadReason;
use super::store::{Consumer, Store};
use crate::message::{Deliveries, Full, Outcome, QueueSpec};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Waiting,
    Held { by: u64, tag: u64, until: u64 },
    Delayed { until: u64 },
    Dead(DeadReason),
    Gone,
}

#[derive(Clone, Debug)]
struct Message {
    id: u64,
    priority: u8,
    bytes: usize,
    deliveries: u32,
    /// Was in somebody's hands since it was produced or requeued.
    came_back: bool,
    is: Is,
}

#[derive(Clone, Debug)]
enum Step {
    Produce {
        priority: u8,
        bytes: usize,
    },
    Consume {
        who: u64,
        credit: u32,
    },
    Take {
        who: u64,
    },
    Settle {
        who: u64,
        which: usize,
        outcome: Outcome,
    },
    /// As a client that has not heard the answer would.
    SettleAgain {
        which: usize,
    },
    Die {
        who: u64,
    },
    Pass {
        millis: u64,
    },
    Requeue,
    DropDead,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 1u64..4;
    let outcome = prop_oneof![
        4 => Just(Outcome::Ack),
        2 => (0u32..200).prop_map(|delay_ms| Outcome::Nack { delay_ms }),
        1 => (1u32..300).prop_map(|visibility_ms| Outcome::Extend { visibility_ms }),
        1 => Just(Outcome::Reject),
    ];
    let step = prop_oneof![
        6 => (0u8..4, 0usize..100).prop_map(|(priority, bytes)| Step::Produce { priority, bytes }),
        2 => (who.clone(), 0u32..5).prop_map(|(who, credit)| Step::Consume { who, credit }),
        5 => who.clone().prop_map(|who| Step::Take { who }),
        5 => (who.clone(), 0usize..8, outcome)
            .prop_map(|(who, which, outcome)| Step::Settle { who, which, outcome }),
        1 => (0usize..64).prop_map(|which| Step::SettleAgain { which }),
        1 => who.prop_map(|who| Step::Die { who }),
        3 => (0u64..150).prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::Requeue),
        1 => Just(Step::DropDead),
    ];
    proptest::collection::vec(step, 1..120)
}

const SPEC: QueueSpec = QueueSpec {
    durable: true,
    full: Full::Reject,
    class: crate::channel::Class::Normal,
    max_messages: 8,
    max_bytes: 500,
    visibility_ms: 100,
    max_deliver: 3,
    dead_messages: 4,
};

struct Model {
    spec: QueueSpec,
    now: u64,
    messages: Vec<Message>,
    /// Dead letters, oldest first.
    dead: Vec<u64>,
    tags: Vec<(u64, u64)>,
}

impl Model {
    fn live(&self) -> impl Iterator<Item = &Message> {
        self.messages
            .iter()
            .filter(|m| !matches!(m.is, Is::Dead(_) | Is::Gone))
    }

    fn fits(&self, bytes: usize) -> bool {
        let held: usize = self.live().map(|m| m.bytes).sum();
        self.live().count() < self.spec.max_messages as usize
            && held + bytes <= self.spec.max_bytes as usize
    }

    fn message(&mut self, id: u64) -> &mut Message {
        let found = self.messages.iter_mut().find(|m| m.id == id);
        found.expect("the store knows no message that was never produced")
    }

    fn bury(&mut self, id: u64, why: DeadReason) {
        self.message(id).is = Is::Dead(why);
        self.dead.push(id);
        if self.dead.len() > self.spec.dead_messages as usize {
            let oldest = self.dead.remove(0);
            self.message(oldest).is = Is::Gone;
        }
    }

    fn give_back(&mut self, id: u64, until: Option<u64>) {
        let most = self.spec.max_deliver;
        let message = self.message(id);
        message.came_back = true;
        if message.deliveries >= most {
            self.bury(id, DeadReason::MaxDeliver);
        } else {
            message.is = until.map_or(Is::Waiting, |until| Is::Delayed { until });
        }
    }

    fn held_by(&self, who: u64) -> Vec<(u64, u64)> {
        let held = |m: &Message| match m.is {
            Is::Held { by, tag, .. } if by == who => Some((m.id, tag)),
            _ => None,
        };
        self.messages.iter().filter_map(held).collect()
    }
}

fn millis(millis: u64) -> u64 {
    millis * 1_000_000
}

fn check(store: &Store, model: &Model) {
    store.check();
    let count = |is: fn(&Message) -> bool| model.messages.iter().filter(|m| is(m)).count() as u32;
    assert_eq!(store.waiting(), count(|m| m.is == Is::Waiting), "waiting");
    assert_eq!(
        store.in_hand(),
        count(|m| matches!(m.is, Is::Held { .. })),
        "in hand"
    );
    assert_eq!(
        store.delayed(),
        count(|m| matches!(m.is, Is::Delayed { .. })),
        "delayed"
    );
    assert_eq!(store.dead().0, model.dead.len() as u32, "dead");
    let ids: Vec<u64> = store
        .peek(false, 0, 100)
        .iter()
        .map(|slot| slot.id)
        .collect();
    let live: Vec<u64> = model.live().map(|m| m.id).collect();
    assert_eq!(ids, live, "no live message is lost, none is invented");
}

fn run(spec: QueueSpec, steps: Vec<Step>) {
    let mut store = Store::new(spec);
    let mut model = Model {
        spec,
        now: millis(1000),
        messages: Vec::new(),
        dead: Vec::new(),
        tags: Vec::new(),
    };
    let payload = [7u8; 100];
    for step in steps {
        match step {
            Step::Produce { priority, bytes } => {
                let fitted = model.fits(bytes);
                let fits = store.make_room(1, bytes as u64);
                assert!(fits || !fitted);
                // Which ones made room is the store's choice among those that nobody holds; it says so.
                for (id, why) in std::mem::take(&mut store.settling.dead) {
                    assert!(!fitted && spec.full == Full::DropOldest);
                    assert_eq!(model.message(id).is, Is::Waiting);
                    model.bury(id, why);
                }
                assert_eq!(fits, model.fits(bytes));
                if fits {
                    let id = store.push(1, 9, priority, &payload[..bytes]);
                    assert!(model.messages.iter().all(|m| m.id < id));
                    model.messages.push(Message {
                        id,
                        priority,
                        bytes,
                        deliveries: 0,
                        came_back: false,
                        is: Is::Waiting,
                    });
                }
            }
            Step::Consume { who, credit } => match store.consumer(ConnId(who)) {
                Some(at) => store.consumers[at].credit = credit,
                None => store.consumers.push(Consumer {
                    conn: ConnId(who),
                    credit,
                    held: 0,
                    woken: false,
                }),
            },
            Step::Take { who } => {
                let Some(at) = store.consumer(ConnId(who)) else {
                    continue;
                };
                let held = model.held_by(who).len() as u32;
                let waiting = store.waiting();
                let credit = store.consumers[at].credit;
                let given = store.deliver(at, &[], 100_000, model.now);
                let count = given.as_ref().map_or(0, |(_, count)| *count);
                assert!(
                    count <= credit.saturating_sub(held),
                    "no more than the credit"
                );
                assert!(
                    count > 0 || waiting == 0 || held >= credit,
                    "somebody who may is given"
                );
                let Some((bytes, _)) = given else { continue };
                for delivery in Deliveries::parse(&bytes).unwrap().iter() {
                    let first_of_class = model
                        .messages
                        .iter()
                        .find(|m| {
                            m.is == Is::Waiting && m.priority == delivery.priority && !m.came_back
                        })
                        .map(|m| m.id);
                    let now = model.now;
                    let message = model.message(delivery.id);
                    assert_eq!(
                        message.is,
                        Is::Waiting,
                        "nothing settled is delivered again"
                    );
                    if !message.came_back {
                        assert_eq!(first_of_class, Some(delivery.id), "in order");
                    }
                    message.deliveries += 1;
                    assert_eq!(u32::from(delivery.deliveries), message.deliveries);
                    assert!(message.deliveries <= spec.max_deliver);
                    assert_eq!(delivery.data.len(), message.bytes);
                    message.is = Is::Held {
                        by: who,
                        tag: delivery.tag,
                        until: now + millis(u64::from(spec.visibility_ms)),
                    };
                    model.tags.push((who, delivery.tag));
                }
            }
            Step::Settle {
                who,
                which,
                outcome,
            } => {
                let held = model.held_by(who);
                let Some((id, tag)) = held.get(which).copied() else {
                    continue;
                };
                let at = store.consumer(ConnId(who)).expect("it holds something");
                assert!(store.settle(at, tag, outcome, model.now));
                let now = model.now;
                match outcome {
                    Outcome::Ack => model.message(id).is = Is::Gone,
                    Outcome::Nack { delay_ms } => {
                        let until = now + millis(u64::from(delay_ms));
                        model.give_back(id, (delay_ms > 0).then_some(until));
                    }
                    Outcome::Extend { visibility_ms } => {
                        let until = now + millis(u64::from(visibility_ms));
                        model.message(id).is = Is::Held {
                            by: who,
                            tag,
                            until,
                        };
                    }
                    Outcome::Reject => model.bury(id, DeadReason::Rejected),
                }
            }
            Step::SettleAgain { which } => {
                let Some((who, tag)) = model.tags.get(which).copied() else {
                    continue;
                };
                let still = model.held_by(who).iter().any(|(_, held)| *held == tag);
                if let (false, Some(at)) = (still, store.consumer(ConnId(who))) {
                    // A tag of a slot's earlier use, or of a message that is back, settles nothing. A message that
                    // came back keeps its tag until it is delivered to somebody else, or settled.
                    assert!(!store.settle(at, tag, Outcome::Ack, model.now));
                }
            }
            Step::Die { who } => {
                store.release(ConnId(who));
                store.consumers.retain(|c| c.conn != ConnId(who));
                let mut held: Vec<(u64, u64, u64)> = Vec::new();
                for message in &model.messages {
                    if let Is::Held { by, tag, until } = message.is
                        && by == who
                    {
                        held.push((until, message.id, tag));
                    }
                }
                // In which order they die is the store's choice; it says so.
                for (id, why) in std::mem::take(&mut store.settling.dead) {
                    assert!(held.iter().any(|(_, of, _)| *of == id));
                    held.retain(|(_, of, _)| *of != id);
                    assert!(model.message(id).deliveries >= spec.max_deliver);
                    model.bury(id, why);
                }
                for (_, id, _) in held {
                    model.give_back(id, None);
                }
            }
            Step::Pass { millis: passed } => {
                model.now += millis(passed);
                let now = model.now;
                store.expire(now);
                let mut due: Vec<u64> = Vec::new();
                for message in &mut model.messages {
                    match message.is {
                        Is::Held { until, .. } if until <= now => due.push(message.id),
                        Is::Delayed { until } if until <= now => message.is = Is::Waiting,
                        _ => {}
                    }
                }
                for (id, why) in std::mem::take(&mut store.settling.dead) {
                    assert!(due.contains(&id));
                    due.retain(|of| *of != id);
                    model.bury(id, why);
                }
                for id in due {
                    assert!(model.message(id).deliveries < spec.max_deliver);
                    model.give_back(id, None);
                }
                assert!(store.next_due_ns().is_none_or(|at| at > now));
            }
            Step::Requeue => {
                let mut expected = 0;
                for id in model.dead.clone() {
                    let bytes = model.message(id).bytes;
                    if !model.fits(bytes) {
                        break;
                    }
                    model.dead.retain(|of| *of != id);
                    expected += 1;
                    let message = model.message(id);
                    message.is = Is::Waiting;
                    message.deliveries = 0;
                    // It lies behind what was produced since: its order is its own.
                    message.came_back = true;
                }
                assert_eq!(store.requeue(&Default::default()), expected);
            }
            Step::DropDead => {
                let dead = std::mem::take(&mut model.dead);
                assert_eq!(store.drop_letters(&Default::default()), dead.len() as u32);
                for id in dead {
                    model.message(id).is = Is::Gone;
                }
            }
        }
        store.settling.clear();
        check(&store, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_store_does_what_the_model_says(steps in steps()) {
        run(SPEC, steps);
    }

    #[test]
    fn so_it_does_when_the_oldest_make_room(steps in steps()) {
        run(QueueSpec { full: Full::DropOldest, ..SPEC }, steps);
    }
}
