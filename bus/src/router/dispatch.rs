//! A frame as it comes in: who it is from, whether it may be, and where it goes. What all kinds of frames have in common:
//! admission, notices, the record.

use std::sync::Arc;

use crate::access::{Wish, check_address};
use crate::channel::Overflow;
use crate::frame::{Frame, PeerId, flags, kind};
use crate::message::{MessageError, Response, Status};

use super::{CloseReason, ConnId, Descriptor, Effects, MessageMeta, Now, Outgoing, Router, clip};

/// Why a message was not delivered, for its sender.
pub(super) struct Refusal {
    pub status: Status,
    pub text: String,
}

impl Refusal {
    pub fn new(status: Status, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }
}

impl From<MessageError> for Refusal {
    fn from(error: MessageError) -> Self {
        Self::new(Status::MALFORMED, error.to_string())
    }
}

impl<F: Descriptor> Router<F> {
    pub(super) fn dispatch(
        &mut self,
        id: ConnId,
        mut frame: Frame,
        fd: Option<F>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.heard_ns = now.mono_ns;
        self.clock = now;
        let owner = conn.peer;
        let bits = frame.kind();
        if !conn.greeted && bits != kind::COMMAND {
            fx.close.push((id, CloseReason::NotGreeted { kind: bits }));
            return;
        }
        let claimed = frame.header.source;
        if !claimed.is_bus() && claimed != owner {
            fx.close
                .push((id, CloseReason::ForgedSource { claimed, owner }));
            return;
        }
        if fd.is_some() && bits & (kind::COMMAND | kind::RESPONSE) == 0 {
            fx.close.push((id, CloseReason::StrayDescriptor));
            return;
        }
        frame.clear_crc();
        frame.header.source = owner;
        frame.header.timestamp_ns = now.wall_ns.into();
        match bits {
            kind::COMMAND => self.control(id, &frame, fd, now, fx),
            kind::REQUEST => self.request(id, frame, now, fx),
            kind::HEARTBEAT if frame.header.flags.get() & flags::ACK != 0 => {
                let echo = Frame::new(kind::HEARTBEAT, owner, frame.correlation(), []);
                self.push_droppable(id, echo, fx);
            }
            _ if bits & kind::RESPONSE != 0 => self.response(id, frame, fd, now, fx),
            _ if bits & kind::EVENT != 0 => self.event(id, frame, now, fx),
            // A heartbeat has done its work by arriving; a lone ERROR is for a log at the other end.
            _ => {}
        }
    }

    /// Bounds what one connection may have open at a time: requests and offers of lanes.
    pub(super) fn check_inflight(&self, id: ConnId) -> Result<(), Refusal> {
        let limit = self.limits.max_inflight;
        if self.conns[&id].inflight.len() < limit {
            return Ok(());
        }
        let text = format!(
            "{limit} requests are open on this connection, the most allowed; await some answers"
        );
        Err(Refusal::new(Status::QUEUE_FULL, text))
    }

    /// The one question before anything goes from one agent to another.
    pub(super) fn may_address(&self, from: PeerId, to: PeerId, wish: Wish) -> Result<(), Refusal> {
        self.could_address(from, to, wish).inspect_err(|refusal| {
            if refusal.status == Status::DENIED {
                let to = self.name_of(to);
                self.peers[&from].access.refused(wish.right(), &to);
            }
        })
    }

    /// The same, of what is under way already.
    pub(super) fn could_address(
        &self,
        from: PeerId,
        to: PeerId,
        wish: Wish,
    ) -> Result<(), Refusal> {
        let sender = &self.peers[&from];
        // Another user's agent is not "denied" but not there: its existence is no one else's business.
        let Some(receiver) = self.peers.get(&to).filter(|peer| peer.uid == sender.uid) else {
            let text =
                format!("no agent with id {to} is on the bus; list the agents to see who is");
            return Err(Refusal::new(Status::NO_SUCH_AGENT, text));
        };
        check_address(
            Self::party(sender),
            &*sender.access,
            Self::party(receiver),
            wish,
        )
        .map_err(|text| Refusal::new(Status::DENIED, text))
    }

    pub(super) fn push_droppable(&mut self, id: ConnId, frame: Frame, fx: &mut Effects<F>) {
        if let Some(conn) = self.conns.get_mut(&id) {
            let mut dropped = Vec::new();
            conn.offer(frame, Overflow::DropOldest, &self.limits, &mut dropped);
            fx.wake.push(id);
            if let Some(peer) = self.peers.get_mut(&conn.peer) {
                peer.counters.dropped += dropped.len() as u64;
            }
        }
    }

    /// Tells a connection what was wrong with a frame to which no answer is due.
    pub(super) fn notice(
        &mut self,
        id: ConnId,
        correlation: u32,
        status: Status,
        text: &str,
        fx: &mut Effects<F>,
    ) {
        let payload = Response {
            status,
            error: clip(text),
            result: &[],
        }
        .encode()
        .expect("the text was clipped");
        self.push_droppable(
            id,
            Frame::new(kind::ERROR, PeerId::BUS, correlation, payload),
            fx,
        );
    }

    pub(super) fn name_of(&self, id: PeerId) -> Arc<str> {
        self.peers
            .get(&id)
            .map_or_else(|| "".into(), |peer| peer.name.clone())
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one record")]
    pub(super) fn note(
        &mut self,
        from: PeerId,
        to: Option<(PeerId, Arc<str>)>,
        topic: Option<Arc<str>>,
        kind: &'static str,
        what: Arc<str>,
        bytes: u32,
        correlation: u32,
        outcome: Status,
        receivers: u32,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let seq = self.next_seq;
        self.next_seq += self.seq_step;
        self.count(from, &to, kind, bytes, outcome, receivers);
        // Both sides belong to one user; the one that has gone is not the only one that was there.
        let there = to.as_ref().and_then(|(to, _)| self.peers.get(to));
        let uid = self.peers.get(&from).or(there).map(|peer| peer.uid);
        fx.record.push(MessageMeta {
            seq,
            uid,
            from,
            from_name: self.name_of(from),
            to,
            topic,
            kind,
            what,
            bytes,
            correlation,
            at_ns: now.wall_ns,
            outcome,
            receivers,
        });
    }

    /// An entry about something that no agent did.
    #[allow(clippy::too_many_arguments, reason = "the fields of one record")]
    pub(super) fn note_of_bus(
        &mut self,
        uid: u32,
        topic: Arc<str>,
        kind: &'static str,
        what: Arc<str>,
        messages: u32,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let seq = self.next_seq;
        self.next_seq += self.seq_step;
        fx.record.push(MessageMeta {
            seq,
            uid: Some(uid),
            from: PeerId::BUS,
            from_name: self.words.get("agentd"),
            to: None,
            topic: Some(topic),
            kind,
            what,
            bytes: 0,
            correlation: 0,
            at_ns: now.wall_ns,
            outcome: Status::OK,
            receivers: messages,
        });
    }

    /// Counts a message for both its sides. Topic messages and broadcasts were counted where they were put in.
    fn count(
        &mut self,
        from: PeerId,
        to: &Option<(PeerId, Arc<str>)>,
        kind: &str,
        bytes: u32,
        outcome: Status,
        receivers: u32,
    ) {
        let by_the_bus = outcome.is_bus_only();
        if let Some(peer) = self.peers.get_mut(&from) {
            match (by_the_bus, kind) {
                (false, _) => {
                    peer.counters.sent += 1;
                    peer.counters.sent_bytes += u64::from(bytes);
                }
                // An answer that the bus gave in its place is nothing that it said.
                (true, "response") => {}
                (true, _) => peer.counters.refused += 1,
            }
        }
        if let Some((to, _)) = to
            && !by_the_bus
            && receivers > 0
            && let Some(peer) = self.peers.get_mut(to)
        {
            peer.counters.count_received(1, bytes as usize);
        }
    }

    pub(super) fn push_out(&mut self, id: ConnId, out: Outgoing<F>, fx: &mut Effects<F>) -> bool {
        self.push_must(id, out.frame, out.fd, fx)
    }
}
