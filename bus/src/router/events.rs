//! Events: to one agent's inbox, to all of a user's, or to whoever follows a topic.
//!
//! Fails towards the sender, with an answer if it asked for one and a notice if not.

#![forbid(unsafe_code)]

use crate::access::Wish;
use crate::frame::{Frame, PeerId, flags, kind};
use crate::message::{Event, GROUP_PREFIX, Status};

use super::dispatch::Refusal;
use super::{ConnId, Descriptor, Effects, Now, Router};

/// How an event's sender hears that it was taken. That it was refused it hears alone, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    No,
    Alone,
    /// With its neighbours.
    Gathered,
}

impl Ack {
    fn of(bits: u32) -> Self {
        match (bits & flags::ACK != 0, bits & flags::GATHER != 0) {
            (false, _) => Self::No,
            (true, false) => Self::Alone,
            (true, true) => Self::Gathered,
        }
    }
}

impl<F: Descriptor> Router<F> {
    pub(super) fn event(&mut self, id: ConnId, mut frame: Frame, now: Now, fx: &mut Effects<F>) {
        let from = self.conns[&id].peer;
        let (to, bits, correlation) = (frame.header.destination, frame.kind(), frame.correlation());
        let how = Ack::of(frame.header.flags.get());
        frame.header.flags = (frame.header.flags.get() & !flags::GATHER).into();
        let payload = frame.payload.clone();
        let bytes = payload.len() as u32;
        let mut named = ("", None);
        let mut word = "send";
        let outcome = match Event::parse(&payload) {
            Err(error) => Err(error.into()),
            Ok(event) => {
                named = (event.event_type, None);
                let kept = frame.header.flags.get() & (flags::RETAIN | flags::DURABLE) != 0;
                if kept && (bits & kind::BROADCAST != 0 || !to.is_bus()) {
                    let text = "only a topic's message can be retained or made durable";
                    Err(Refusal::new(Status::MALFORMED, text))
                } else if bits & kind::BROADCAST != 0 && event.topic.starts_with(GROUP_PREFIX) {
                    (word, named.1) = ("multicast", Some(event.topic));
                    self.multicast(from, event.topic, &frame, fx).map(Some)
                } else if bits & kind::BROADCAST != 0 {
                    word = "broadcast";
                    self.broadcast(from, &frame).map(Some)
                } else if to.is_bus() {
                    (word, named.1) = ("publish", Some(event.topic));
                    self.publish(id, event.topic, &frame, how, fx)
                } else if event.topic.is_empty() {
                    self.send(from, to, frame).map(Some)
                } else {
                    let text = "an event has a destination or a topic, not both";
                    Err(Refusal::new(Status::MALFORMED, text))
                }
            }
        };
        let outcome = match outcome {
            // The store has it: everything else follows from its answer.
            Ok(None) => return,
            Ok(Some(receivers)) => Ok(receivers),
            Err(refusal) => Err(refusal),
        };
        let receiver = (word == "send").then_some(to);
        self.event_done(
            id,
            correlation,
            how,
            from,
            named,
            (word, bytes, receiver),
            outcome,
            now,
            fx,
        );
    }

    /// What became of an event: its sender hears if it wants to, the record in any case, readers that wait wake up.
    #[allow(clippy::too_many_arguments, reason = "the fields of one entry")]
    pub(super) fn event_done(
        &mut self,
        id: ConnId,
        correlation: u32,
        how: Ack,
        from: PeerId,
        (what, topic): (&str, Option<&str>),
        (word, bytes, receiver): (&'static str, u32, Option<PeerId>),
        outcome: Result<u32, Refusal>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let (status, receivers) = match outcome {
            Ok(receivers) => {
                match how {
                    Ack::Gathered => self.gather(id, correlation, receivers, fx),
                    Ack::Alone => {
                        let result = receivers.to_le_bytes();
                        self.answer(id, correlation, Status::OK, "", &result, fx);
                    }
                    Ack::No => {}
                }
                (Status::OK, receivers)
            }
            Err(refusal) => {
                if how == Ack::No {
                    self.notice(id, correlation, refusal.status, &refusal.text, fx);
                } else {
                    self.answer(id, correlation, refusal.status, &refusal.text, &[], fx);
                }
                (refusal.status, 0)
            }
        };
        let to = receiver.map(|to| (to, self.name_of(to)));
        let topic = topic.map(|topic| self.words.get(topic));
        let what = self.words.get(what);
        self.note(
            from, to, topic, word, what, bytes, 0, status, receivers, now, fx,
        );
        if let Some(to) = receiver {
            self.serve_waiters(to, now, fx);
        } else {
            self.serve_roused(now, fx);
        }
    }

    /// Acknowledges an event together with its neighbours: once, when the connection is next given something.
    fn gather(&mut self, id: ConnId, correlation: u32, receivers: u32, fx: &mut Effects<F>) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        fx.wake.push(id);
        if let Some(run) = conn.gathered.add(correlation, receivers) {
            let frame = run.frame(conn.peer);
            self.push_must(id, frame, None, fx);
        }
    }

    fn send(&mut self, from: PeerId, to: PeerId, frame: Frame) -> Result<u32, Refusal> {
        self.may_address(from, to, Wish::Send)?;
        let sender = self.peers[&from].name.clone();
        let peer = self.peers.get_mut(&to).expect("just looked up");
        if peer.accept_direct(&sender, frame, &self.limits) {
            Ok(1)
        } else {
            let text = format!(
                "the inbox of {} is full ({} messages wait); try again later",
                peer.name,
                peer.inbox.len()
            );
            Err(Refusal::new(Status::QUEUE_FULL, text))
        }
    }

    fn broadcast(&mut self, from: PeerId, frame: &Frame) -> Result<u32, Refusal> {
        let sender = &self.peers[&from];
        let (uid, name, access) = (sender.uid, sender.name.clone(), sender.access.clone());
        let mut receivers = 0;
        let roused = &mut self.roused;
        for (id, peer) in self
            .peers
            .iter_mut()
            .filter(|(id, peer)| peer.uid == uid && **id != from)
        {
            if access.may_send(&peer.name) {
                let mut copy = frame.clone();
                copy.header.destination = *id;
                let taken = u32::from(peer.accept_direct(&name, copy, &self.limits));
                peer.counters
                    .count_received(taken.into(), frame.payload.len());
                receivers += taken;
                if !peer.waiters.is_empty() {
                    roused.push(*id);
                }
            }
        }
        Ok(receivers)
    }
}
