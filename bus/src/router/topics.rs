//! Topics: who gets a message now, what is kept for those who come later, and what was counted.
//!
//! A topic is known to the bus from its first message or its declaration on. It retains the last messages that
//! publishers flag, or the last N of a declared one, within a bound for each user. A durable topic's message is stored
//! before anybody gets it. Counters are kept for [`Limits::max_topics`](super::Limits::max_topics) topics of a user;
//! what goes to others is counted in one sum. Fails towards the publisher.

#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::access::{ask_publish, ask_subscribe};
use crate::channel::Overflow;
use crate::frame::{Frame, PeerId, flags, kind};
use crate::message::{Delivery, Event, Status, StreamKind, SubscribeOptions, TopicSpec};
use crate::topic::{check_pattern, check_topic, matches};

use super::audience::Audiences;
use super::conn::Subscription;
use super::dispatch::Refusal;
use super::events::Ack;
use super::persist::{Batch, Persist, PersistError, Restored, StreamId, StreamSpec};
use super::tickets::Ticket;
use super::{ConnId, Descriptor, Effects, Now, Router};

/// Most messages that one topic retains.
pub(super) const RETAIN_MAX: u16 = 1024;

/// What went through one topic. Since the daemon began; never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicCounters {
    pub published: u64,
    pub bytes: u64,
    /// Queues that it was put into.
    pub delivered: u64,
    /// Copies that a slow reader lost.
    pub dropped: u64,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicStatus {
    pub uid: u32,
    /// Empty: all that are not counted by themselves.
    pub topic: String,
    pub spec: TopicSpec,
    /// Subscriptions that cover it now.
    pub subscribers: u32,
    pub retained: u32,
    pub retained_bytes: u64,
    pub counters: TopicCounters,
}

#[derive(Debug, Default)]
pub(super) struct Topic {
    pub spec: TopicSpec,
    /// With the sender's name, as inboxes want it.
    retained: VecDeque<(Arc<str>, Frame)>,
    retained_bytes: usize,
    pub counters: TopicCounters,
}

/// What a user's agents share.
#[derive(Debug, Default)]
pub(super) struct Space {
    pub queues: HashMap<Arc<str>, u32>,
    /// Bytes that all queues hold.
    pub queue_bytes: u64,
    pub groups: HashMap<Arc<str>, super::groups::Group>,
    pub topics: HashMap<Arc<str>, Topic>,
    retained_bytes: usize,
    /// Who follows the topics that were published to lately.
    pub audiences: Audiences,
    /// Topics beyond the bound.
    others: TopicCounters,
}

/// An event that is being stored.
#[derive(Debug)]
pub(super) struct StoringEvent {
    pub conn: ConnId,
    correlation: u32,
    pub how: Ack,
    frame: Frame,
}

impl Space {
    fn counters(&mut self, topic: &str) -> &mut TopicCounters {
        match self.topics.get_mut(topic) {
            Some(topic) => &mut topic.counters,
            None => &mut self.others,
        }
    }
}

impl<F: Descriptor> Router<F> {
    pub(super) fn space(&mut self, uid: u32) -> &mut Space {
        self.spaces.entry(uid).or_default()
    }

    /// The topic, made if there is room for another.
    fn topic(&mut self, uid: u32, name: &str) -> Option<&mut Topic> {
        let limit = self.limits.max_topics;
        let space = self.space(uid);
        if !space.topics.contains_key(name) {
            if space.topics.len() >= limit {
                return None;
            }
            space.topics.insert(name.into(), Topic::default());
        }
        space.topics.get_mut(name)
    }

    /// What the bus keeps of a topic from now on. Who may publish to it may say so.
    pub(super) fn topic_declare(
        &mut self,
        id: ConnId,
        correlation: u32,
        topic: &str,
        spec: TopicSpec,
        fx: &mut Effects<F>,
    ) {
        match self.declare(id, topic, spec) {
            Ok(stored) if stored || spec.durable => {
                let uid = self.peers[&self.conns[&id].peer].uid;
                let stream = StreamId {
                    uid,
                    kind: StreamKind::Topic,
                    name: topic.into(),
                };
                if !spec.durable {
                    fx.persist.push(Persist::Drop { stream });
                    self.answer(id, correlation, Status::OK, "", &[], fx);
                    return;
                }
                let ticket = self.ticket(Ticket::Topic {
                    conn: id,
                    correlation,
                });
                fx.persist.push(Persist::Declare {
                    stream,
                    ticket,
                    spec: StreamSpec::Topic(spec),
                });
            }
            Ok(_) => self.answer(id, correlation, Status::OK, "", &[], fx),
            Err(refusal) => {
                self.answer(id, correlation, refusal.status, &refusal.text, &[], fx);
            }
        }
    }

    /// Whether it was durable before.
    fn declare(&mut self, id: ConnId, topic: &str, spec: TopicSpec) -> Result<bool, Refusal> {
        check_topic(topic).map_err(|error| Refusal::new(Status::MALFORMED, error.to_string()))?;
        let peer = &self.peers[&self.conns[&id].peer];
        ask_publish(Self::party(peer), &*peer.access, topic)
            .map_err(|text| Refusal::new(Status::DENIED, text))?;
        if spec.retain > RETAIN_MAX {
            let text = format!(
                "a topic retains at most {RETAIN_MAX} messages, not {}",
                spec.retain
            );
            return Err(Refusal::new(Status::MALFORMED, text));
        }
        let (uid, limit) = (peer.uid, self.limits.max_topics);
        let Some(entry) = self.topic(uid, topic) else {
            let text = format!("{limit} topics are known already, the most allowed");
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        };
        let before = std::mem::replace(&mut entry.spec, spec);
        let keep = usize::from(spec.retain.max(1));
        self.trim(uid, topic, keep);
        Ok(before.durable)
    }

    /// Lets go of all but the last `keep` retained messages.
    fn trim(&mut self, uid: u32, topic: &str, keep: usize) {
        let space = self.space(uid);
        let Some(entry) = space.topics.get_mut(topic) else {
            return;
        };
        while entry.retained.len() > keep {
            if let Some((_, old)) = entry.retained.pop_front() {
                entry.retained_bytes -= old.wire_len();
                space.retained_bytes -= old.wire_len();
            }
        }
    }

    /// An event for a topic. `None`: it is being stored, and everything else follows from that.
    pub(super) fn publish(
        &mut self,
        id: ConnId,
        topic: &str,
        frame: &Frame,
        how: Ack,
        fx: &mut Effects<F>,
    ) -> Result<Option<u32>, Refusal> {
        let from = self.conns[&id].peer;
        let sender = &self.peers[&from];
        let (uid, short) = (sender.uid, sender.short);
        let space = self.spaces.get(&uid);
        let known = space.and_then(|space| space.topics.get(topic));
        if known.is_none() {
            check_topic(topic)
                .map_err(|error| Refusal::new(Status::MALFORMED, error.to_string()))?;
        }
        ask_publish(Self::party(sender), &*sender.access, topic)
            .map_err(|text| Refusal::new(Status::DENIED, text))?;
        let spec = match known {
            Some(topic) => topic.spec,
            None => self
                .topic(uid, topic)
                .map_or_else(TopicSpec::default, |t| t.spec),
        };
        let durable = spec.durable;
        let bits = frame.header.flags.get();
        if bits & flags::DURABLE != 0 && !durable {
            let text = format!(
                "topic {topic} is not durable, so nothing of it is stored: declare it so, or leave the flag out"
            );
            return Err(Refusal::new(Status::UNSUPPORTED, text));
        }
        if spec.retain > 0 || bits & flags::RETAIN != 0 {
            self.check_retained(uid, topic, frame)?;
        }
        self.check_blocking(from, uid, topic, frame.wire_len())?;
        if durable {
            let batch = Batch::event(
                from,
                short,
                frame.header.timestamp_ns.get(),
                frame.payload.clone(),
                (bits & flags::PRIORITY_MASK) as u8,
            );
            let ticket = self.ticket(Ticket::Event(StoringEvent {
                conn: id,
                correlation: frame.correlation(),
                how,
                frame: frame.clone(),
            }));
            fx.persist.push(Persist::Append {
                stream: StreamId {
                    uid,
                    kind: StreamKind::Topic,
                    name: topic.into(),
                },
                ticket,
                batch,
            });
            return Ok(None);
        }
        Ok(Some(self.pass_on(Some(id), from, uid, topic, frame, fx)))
    }

    /// A durable topic's message is in the store, or not.
    pub(super) fn event_stored(
        &mut self,
        storing: StoringEvent,
        outcome: Result<u64, PersistError>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let StoringEvent {
            conn,
            correlation,
            how,
            frame,
        } = storing;
        let from = frame.header.source;
        let payload = frame.payload.clone();
        let event = Event::parse(&payload).expect("it was read before it was stored");
        let uid = self.peers.get(&from).map(|peer| peer.uid);
        let outcome = match (outcome, uid) {
            (Ok(_), Some(uid)) => Ok(self.pass_on(Some(conn), from, uid, event.topic, &frame, fx)),
            (Ok(_), None) => Ok(0),
            (Err(error), _) => Err(Refusal::new(Status::NOT_STORED, error.to_string())),
        };
        self.event_done(
            conn,
            correlation,
            how,
            from,
            (event.event_type, Some(event.topic)),
            ("publish", payload.len() as u32, None),
            outcome,
            now,
            fx,
        );
    }

    /// Keeps a message if it is to be kept, and gives it to everybody who follows its topic.
    fn pass_on(
        &mut self,
        conn: Option<ConnId>,
        from: PeerId,
        uid: u32,
        topic: &str,
        frame: &Frame,
        fx: &mut Effects<F>,
    ) -> u32 {
        let name = self.name_of(from);
        let mut plain = frame.clone();
        let bits = frame.header.flags.get();
        plain.header.flags = (bits & !(flags::RETAIN | flags::DURABLE)).into();
        let (receivers, paused) = self.spread(from, uid, topic, &plain, &name, fx);
        let bytes = frame.payload.len() as u64;
        let space = self.space(uid);
        let declared = space.topics.get(topic).map_or(0, |t| t.spec.retain);
        let counters = space.counters(topic);
        counters.published += 1;
        counters.bytes += bytes;
        counters.delivered += u64::from(receivers);
        if declared > 0 || bits & flags::RETAIN != 0 {
            self.retain(uid, topic, &name, frame);
        }
        if let Some(conn) = conn {
            self.pause(conn, &paused);
        }
        receivers
    }

    /// How many retained messages this one makes of its topic; 0: it is not kept.
    fn keeps(&self, uid: u32, topic: &str, frame: &Frame) -> usize {
        let spec = self
            .spaces
            .get(&uid)
            .and_then(|space| space.topics.get(topic));
        let declared = spec.map_or(0, |topic| usize::from(topic.spec.retain));
        let flagged = frame.header.flags.get() & flags::RETAIN != 0;
        if flagged { declared.max(1) } else { declared }
    }

    /// Whether what is retained stays within its bound with this message.
    fn check_retained(&self, uid: u32, topic: &str, frame: &Frame) -> Result<(), Refusal> {
        let keep = self.keeps(uid, topic, frame);
        let Some(space) = self.spaces.get(&uid).filter(|_| keep > 0) else {
            return Ok(());
        };
        let freed = space.topics.get(topic).map_or(0, |entry| {
            let over = (entry.retained.len() + 1).saturating_sub(keep);
            let old = entry.retained.iter().take(over);
            old.map(|(_, frame)| frame.wire_len()).sum()
        });
        let limit = self.limits.retained_bytes;
        if space.retained_bytes + frame.wire_len() > limit + freed {
            let text = format!(
                "the topics of this user retain {} bytes, of at most {limit}; publish an empty message with the flag to forget those of a topic",
                space.retained_bytes
            );
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        if !space.topics.contains_key(topic) {
            let text = format!(
                "{} topics are known already, the most allowed",
                space.topics.len()
            );
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        Ok(())
    }

    fn retain(&mut self, uid: u32, topic: &str, from: &Arc<str>, frame: &Frame) {
        let keep = self.keeps(uid, topic, frame);
        if keep == 0 {
            return;
        }
        let flagged = frame.header.flags.get() & flags::RETAIN != 0;
        let forget =
            flagged && Event::parse(&frame.payload).is_ok_and(|event| event.data.is_empty());
        if forget {
            self.trim(uid, topic, 0);
            return;
        }
        let space = self.space(uid);
        let Some(entry) = space.topics.get_mut(topic) else {
            return;
        };
        let mut kept = frame.clone();
        let bits = frame.header.flags.get() & !flags::DURABLE;
        kept.header.flags = (bits | flags::RETAIN).into();
        entry.retained_bytes += kept.wire_len();
        space.retained_bytes += kept.wire_len();
        entry.retained.push_back((from.clone(), kept));
        self.trim(uid, topic, keep);
    }

    /// Counts a copy that a slow reader lost, with its topic.
    pub(super) fn count_dropped(&mut self, uid: u32, frame: &Frame) {
        if let Ok(event) = Event::parse(&frame.payload)
            && !event.topic.is_empty()
        {
            self.space(uid).counters(event.topic).dropped += 1;
        }
    }

    /// Nothing more is read from a publisher until these have read some.
    fn pause(&mut self, publisher: ConnId, readers: &[ConnId]) {
        for reader in readers {
            let Some(conn) = self.conns.get_mut(reader) else {
                continue;
            };
            if conn.pauses.contains(&publisher) {
                continue;
            }
            conn.pauses.push(publisher);
            if let Some(publisher) = self.conns.get_mut(&publisher) {
                publisher.paused_by += 1;
            }
        }
    }

    /// Lets publishers go on that waited for this connection to read.
    pub(super) fn unpause(&mut self, publishers: Vec<ConnId>, fx: &mut Effects<F>) {
        for id in publishers {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.paused_by -= 1;
                if conn.paused_by == 0 {
                    fx.resume.push(id);
                }
            }
        }
    }

    pub(super) fn subscribe(
        &mut self,
        id: ConnId,
        delivery: Delivery,
        options: SubscribeOptions,
        pattern: &str,
        fx: &mut Effects<F>,
    ) -> Result<(), Refusal> {
        check_pattern(pattern)
            .map_err(|error| Refusal::new(Status::MALFORMED, error.to_string()))?;
        let owner = self.conns[&id].peer;
        let peer = &self.peers[&owner];
        ask_subscribe(Self::party(peer), &*peer.access, pattern)
            .map_err(|text| Refusal::new(Status::DENIED, text))?;
        let uid = peer.uid;
        let limit = self.limits.max_subscriptions;
        let full = || {
            let text = format!("{limit} subscriptions are held already, the most allowed");
            Refusal::new(Status::QUEUE_FULL, text)
        };
        match delivery {
            Delivery::Push => {
                let conn = self.conns.get_mut(&id).expect("dispatch has it");
                if let Some(held) = conn.subscriptions.iter_mut().find(|h| h.pattern == pattern) {
                    let was = std::mem::replace(&mut held.overflow, options.overflow);
                    self.blocking -= usize::from(was == Overflow::Block);
                    self.blocking += usize::from(options.overflow == Overflow::Block);
                    self.audiences_changed(uid);
                    return Ok(());
                }
                if conn.subscriptions.len() >= limit {
                    return Err(full());
                }
                conn.subscriptions.push(Subscription {
                    pattern: pattern.to_owned(),
                    overflow: options.overflow,
                });
                self.blocking += usize::from(options.overflow == Overflow::Block);
            }
            Delivery::Inbox => {
                let peer = self.peers.get_mut(&owner).expect("its connection is there");
                if peer.subscriptions.iter().any(|held| held == pattern) {
                    return Ok(());
                }
                if peer.subscriptions.len() >= limit {
                    return Err(full());
                }
                peer.subscriptions.push(pattern.to_owned());
            }
        }
        self.audiences_changed(uid);
        if options.retained {
            self.give_retained(id, owner, uid, delivery, pattern, fx);
        }
        Ok(())
    }

    /// What the topics of a new subscription have retained, topic by topic, oldest first.
    fn give_retained(
        &mut self,
        id: ConnId,
        owner: PeerId,
        uid: u32,
        delivery: Delivery,
        pattern: &str,
        fx: &mut Effects<F>,
    ) {
        let Some(space) = self.spaces.get(&uid) else {
            return;
        };
        let mut topics: Vec<(&Arc<str>, &Topic)> = space
            .topics
            .iter()
            .filter(|(name, topic)| !topic.retained.is_empty() && matches(pattern, name))
            .collect();
        topics.sort_unstable_by_key(|(name, _)| *name);
        let kept: Vec<(Arc<str>, Frame)> = topics
            .into_iter()
            .flat_map(|(_, topic)| &topic.retained)
            .filter(|(_, frame)| frame.header.source != owner)
            .cloned()
            .collect();
        let mut dropped = Vec::new();
        for (name, mut frame) in kept {
            if delivery == Delivery::Inbox {
                let peer = self.peers.get_mut(&owner).expect("it subscribes");
                peer.accept_topic(&name, frame, &self.limits, &mut dropped);
            } else {
                frame.header.destination = owner;
                let conn = self.conns.get_mut(&id).expect("it subscribes");
                conn.offer(frame, Overflow::DropOldest, &self.limits, &mut dropped);
                fx.wake.push(id);
            }
        }
        for lost in dropped {
            self.count_dropped(uid, &lost);
        }
    }

    pub(super) fn unsubscribe(&mut self, id: ConnId, delivery: Delivery, pattern: &str) {
        let conn = self.conns.get_mut(&id).expect("dispatch has it");
        let owner = conn.peer;
        match delivery {
            Delivery::Push => {
                let blocking = &mut self.blocking;
                conn.subscriptions.retain(|held| {
                    let keep = held.pattern != pattern;
                    *blocking -= usize::from(!keep && held.overflow == Overflow::Block);
                    keep
                });
            }
            Delivery::Inbox => {
                let peer = self
                    .peers
                    .get_mut(&conn.peer)
                    .expect("its connection is there");
                peer.subscriptions.retain(|held| held != pattern);
            }
        }
        let uid = self.peers[&owner].uid;
        self.audiences_changed(uid);
    }

    /// A topic as the store has it. Before anybody connects.
    pub(super) fn restore_topic(
        &mut self,
        stream: &StreamId,
        spec: TopicSpec,
        records: Vec<Restored>,
    ) {
        let Some(entry) = self.topic(stream.uid, &stream.name) else {
            return;
        };
        entry.spec = spec;
        for record in records {
            let mut frame = Frame::new(kind::EVENT, PeerId::BUS, 0, record.data);
            frame.header.source = record.from;
            frame.header.timestamp_ns = record.at_ns.into();
            frame.header.flags = u32::from(record.priority & 3).into();
            if spec.retain > 0 {
                self.retain(stream.uid, &stream.name, &"".into(), &frame);
            }
        }
    }

    /// The topics of a user, or of all, by name; what is not counted by itself has no name.
    pub fn topics(&self, uid: Option<u32>) -> Vec<TopicStatus> {
        let mut list = Vec::new();
        for (owner, space) in self
            .spaces
            .iter()
            .filter(|(owner, _)| uid.is_none_or(|uid| uid == **owner))
        {
            for (name, topic) in &space.topics {
                list.push(TopicStatus {
                    uid: *owner,
                    topic: name.to_string(),
                    spec: topic.spec,
                    subscribers: self.subscribers(*owner, name),
                    retained: topic.retained.len() as u32,
                    retained_bytes: topic.retained_bytes as u64,
                    counters: topic.counters,
                });
            }
            if space.others != TopicCounters::default() {
                list.push(TopicStatus {
                    uid: *owner,
                    topic: String::new(),
                    spec: TopicSpec::default(),
                    subscribers: 0,
                    retained: 0,
                    retained_bytes: 0,
                    counters: space.others,
                });
            }
        }
        list.sort_by(|a, b| (a.uid, &a.topic).cmp(&(b.uid, &b.topic)));
        list
    }
}
