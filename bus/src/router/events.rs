//! Events: to one agent's inbox, to all of a user's, or to whoever follows a topic.
//!
//! Fails towards the sender, with an answer if it asked for one and a notice if not.

#![forbid(unsafe_code)]

use crate::access::{Wish, check_publish};
use crate::frame::{Frame, PeerId, flags, kind};
use crate::message::{Event, Status};
use crate::topic::{check_topic, matches};

use super::dispatch::Refusal;
use super::{ConnId, Descriptor, Effects, Now, Router};

impl<F: Descriptor> Router<F> {
    pub(super) fn event(&mut self, id: ConnId, frame: Frame, now: Now, fx: &mut Effects<F>) {
        let from = self.conns[&id].peer;
        let (to, bits, correlation) = (frame.header.destination, frame.kind(), frame.correlation());
        let ack = frame.header.flags.get() & flags::ACK != 0;
        let bytes = frame.payload.len() as u32;
        let (mut what, mut topic) = (String::new(), None);
        let outcome = match Event::parse(&frame.payload) {
            Err(error) => Err(error.into()),
            Ok(event) => {
                event.event_type.clone_into(&mut what);
                if bits & kind::BROADCAST != 0 {
                    self.broadcast(from, &frame)
                } else if to.is_bus() {
                    topic = Some(event.topic.to_owned());
                    self.publish(from, event.topic, &frame, fx)
                } else if event.topic.is_empty() {
                    self.send(from, to, frame)
                } else {
                    let text = "an event has a destination or a topic, not both";
                    Err(Refusal::new(Status::MALFORMED, text))
                }
            }
        };
        let (status, receivers) = match outcome {
            Ok(receivers) => {
                if ack {
                    self.answer(
                        id,
                        correlation,
                        Status::OK,
                        "",
                        &receivers.to_le_bytes(),
                        fx,
                    );
                }
                (Status::OK, receivers)
            }
            Err(refusal) => {
                if ack {
                    self.answer(id, correlation, refusal.status, &refusal.text, &[], fx);
                } else {
                    self.notice(id, correlation, refusal.status, &refusal.text, fx);
                }
                (refusal.status, 0)
            }
        };
        let kind = match (bits & kind::BROADCAST != 0, topic.is_some()) {
            (true, _) => "broadcast",
            (false, true) => "publish",
            (false, false) => "send",
        };
        let receiver = (kind == "send").then(|| (to, self.name_of(to)));
        self.note(
            from, receiver, topic, kind, what, bytes, 0, status, receivers, now, fx,
        );
        if kind == "send" {
            self.serve_waiters(to, now, fx);
        } else if let Some(uid) = self.peers.get(&from).map(|peer| peer.uid) {
            self.serve_all_waiters(uid, now, fx);
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
            }
        }
        Ok(receivers)
    }

    fn publish(
        &mut self,
        from: PeerId,
        topic: &str,
        frame: &Frame,
        fx: &mut Effects<F>,
    ) -> Result<u32, Refusal> {
        check_topic(topic).map_err(|error| Refusal::new(Status::MALFORMED, error.to_string()))?;
        let sender = &self.peers[&from];
        check_publish(Self::party(sender), &*sender.access, topic)
            .map_err(|text| Refusal::new(Status::DENIED, text))?;
        let (uid, name) = (sender.uid, sender.name.clone());
        Ok(self.spread(from, uid, topic, frame, &name, fx))
    }

    /// Puts a topic message into every queue of `uid` that follows it, the sender's own left out. One
    /// copy per connection and per inbox, however many of its patterns match.
    pub(super) fn spread(
        &mut self,
        from: PeerId,
        uid: u32,
        topic: &str,
        frame: &Frame,
        from_name: &str,
        fx: &mut Effects<F>,
    ) -> u32 {
        let mut receivers = 0;
        for (id, peer) in self
            .peers
            .iter_mut()
            .filter(|(id, peer)| peer.uid == uid && **id != from)
        {
            let before = receivers;
            if peer
                .subscriptions
                .iter()
                .any(|pattern| matches(pattern, topic))
            {
                receivers += u32::from(peer.accept_topic(from_name, frame.clone(), &self.limits));
            }
            for conn_id in &peer.conns {
                let conn = self
                    .conns
                    .get_mut(conn_id)
                    .expect("a peer's connections are in the map");
                if conn
                    .subscriptions
                    .iter()
                    .any(|pattern| matches(pattern, topic))
                {
                    let mut copy = frame.clone();
                    copy.header.destination = *id;
                    peer.counters.dropped += conn.push_droppable(copy, &self.limits);
                    fx.wake.push(*conn_id);
                    receivers += 1;
                }
            }
            peer.counters
                .count_received(u64::from(receivers - before), frame.payload.len());
        }
        receivers
    }
}
