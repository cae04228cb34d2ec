//! Requests, responses and events: the traffic between agents.

use crate::access::{Wish, check_address, check_publish};
use crate::frame::{Frame, PeerId, flags, kind};
use crate::listing::InboxBatch;
use crate::message::{Control, Event, MessageError, Request, Response, Status};
use crate::topic::{check_topic, matches};

use super::{
    CloseReason, ConnId, Descriptor, Effects, MessageMeta, Now, Outgoing, Pending, PendingKind,
    PendingState, Router, Timer, clip,
};

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

    /// An open request: from `id`, to the agent in the frame's destination.
    fn request(&mut self, id: ConnId, frame: Frame, now: Now, fx: &mut Effects<F>) {
        let correlation = frame.correlation();
        let conn = &self.conns[&id];
        let asker = conn.peer;
        if correlation == 0 || conn.inflight.contains_key(&correlation) {
            fx.close
                .push((id, CloseReason::CorrelationInUse { correlation }));
            return;
        }
        let to = frame.header.destination;
        let bytes = frame.payload.len() as u32;
        let (what, timeout_ms) = match Request::parse(&frame.payload) {
            Ok(request) => (request.method.to_owned(), request.timeout_ms),
            Err(error) => {
                self.answer(
                    id,
                    correlation,
                    Status::MALFORMED,
                    &error.to_string(),
                    &[],
                    fx,
                );
                return;
            }
        };
        let outcome = self.admit_request(id, to).and_then(|()| {
            let wire = self.open(
                id,
                correlation,
                to,
                &what,
                timeout_ms,
                PendingKind::Request,
                now,
            );
            self.hand_out(wire, frame, fx)
        });
        let (status, wire) = match outcome {
            Ok(wire) => (Status::OK, wire),
            Err(refusal) => {
                self.answer(id, correlation, refusal.status, &refusal.text, &[], fx);
                (refusal.status, 0)
            }
        };
        let to = Some((to, self.name_of(to)));
        let receivers = u32::from(status == Status::OK);
        self.note(
            asker, to, None, "request", what, bytes, wire, status, receivers, now, fx,
        );
        self.serve_waiters(
            self.pending
                .get(&wire)
                .map_or(PeerId::BUS, |open| open.server),
            now,
            fx,
        );
    }

    fn admit_request(&self, id: ConnId, to: PeerId) -> Result<(), Refusal> {
        self.check_inflight(id)?;
        self.may_address(self.conns[&id].peer, to, Wish::Request)
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

    /// Registers a request under a correlation id of our own.
    #[allow(clippy::too_many_arguments, reason = "the fields of one open request")]
    pub(super) fn open(
        &mut self,
        id: ConnId,
        correlation: u32,
        server: PeerId,
        what: &str,
        timeout_ms: u32,
        kind_of: PendingKind<F>,
        now: Now,
    ) -> u32 {
        let wire = self.fresh_number();
        let timeout_ms = if timeout_ms == 0 {
            self.limits.default_timeout_ms
        } else {
            timeout_ms
        };
        let timeout_ms = timeout_ms.min(self.limits.max_timeout_ms);
        let deadline_ns = now
            .mono_ns
            .saturating_add(u64::from(timeout_ms) * 1_000_000);
        let conn = self.conns.get_mut(&id).expect("the caller has it");
        conn.inflight.insert(correlation, wire);
        let pending = Pending {
            asker: conn.peer,
            asker_conn: id,
            asker_correlation: correlation,
            server,
            state: PendingState::Taken,
            deadline_ns,
            what: what.to_owned(),
            kind: kind_of,
        };
        self.open_pending(wire, pending);
        wire
    }

    pub(super) fn open_pending(&mut self, wire: u32, pending: Pending<F>) {
        self.timers
            .insert((pending.deadline_ns, Timer::Request(wire)));
        self.pending.insert(wire, pending);
    }

    /// Gives a fresh request to a connection that serves, or lets it wait.
    fn hand_out(
        &mut self,
        wire: u32,
        mut frame: Frame,
        fx: &mut Effects<F>,
    ) -> Result<u32, Refusal> {
        frame.header.correlation = wire.into();
        let server = self.pending[&wire].server;
        let peer = self.peers.get_mut(&server).expect("admission looked it up");
        if peer.waiting.len() >= self.limits.max_waiting_requests {
            let text = format!(
                "{} requests already wait for {}, the most allowed; try again later",
                peer.waiting.len(),
                peer.name
            );
            self.close_pending(wire);
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        peer.waiting.push_back(wire);
        self.pending.get_mut(&wire).expect("just opened").state = PendingState::Waiting(frame);
        self.pump(server, fx);
        Ok(wire)
    }

    /// Hands waiting requests of `server` to its connections that have room in their windows.
    pub(super) fn pump(&mut self, server: PeerId, fx: &mut Effects<F>) {
        loop {
            let Some(peer) = self.peers.get_mut(&server) else {
                return;
            };
            let Some(wire) = peer.waiting.front().copied() else {
                return;
            };
            let PendingState::Waiting(frame) = &self.pending[&wire].state else {
                unreachable!("a queued request is in state Waiting")
            };
            let bytes = frame.wire_len();
            let conns = &self.conns;
            let limits = &self.limits;
            let chosen = peer
                .conns
                .iter()
                .filter(|id| {
                    conns[id].serving < conns[id].window && conns[id].has_room_for(bytes, limits)
                })
                .min_by_key(|id| conns[id].serving)
                .copied();
            let Some(chosen) = chosen else { return };
            peer.waiting.pop_front();
            let open = self.pending.get_mut(&wire).expect("looked up above");
            let PendingState::Waiting(frame) =
                std::mem::replace(&mut open.state, PendingState::With(chosen))
            else {
                unreachable!("checked above")
            };
            self.conns
                .get_mut(&chosen)
                .expect("chosen from the map")
                .serving += 1;
            self.push_must(chosen, frame, None, fx);
        }
    }

    /// An answer: only from whom the request went to, and only once.
    fn response(
        &mut self,
        id: ConnId,
        mut frame: Frame,
        fd: Option<F>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let wire = frame.correlation();
        let responder = self.conns[&id].peer;
        let mine = self.pending.get(&wire).is_some_and(|open| {
            open.server == responder
                && match open.state {
                    PendingState::With(with) => with == id,
                    PendingState::Taken => true,
                    PendingState::Waiting(_) => false,
                }
        });
        if !mine {
            let text = "no request of that id waits for an answer from here: it was answered, cancelled or too late";
            self.notice(id, wire, Status::NO_SUCH_REQUEST, text, fx);
            return;
        }
        let status = match Response::parse(&frame.payload) {
            Ok(response) if response.status.is_bus_only() => {
                let text = format!(
                    "status {} is the bus's own; use 0 or 100 and up",
                    response.status.0
                );
                Err(Refusal::new(Status::MALFORMED, text))
            }
            Ok(response) => Ok(response.status),
            Err(error) => Err(error.into()),
        };
        let status = match status {
            Ok(status) => status,
            Err(refusal) => {
                self.notice(id, wire, refusal.status, &refusal.text, fx);
                self.fail_request(
                    wire,
                    Status::MALFORMED,
                    "the answer could not be read",
                    now,
                    fx,
                );
                return;
            }
        };
        let open = self.close_pending(wire).expect("checked above");
        let bytes = frame.payload.len() as u32;
        let asker = Some((open.asker, self.name_of(open.asker)));
        if matches!(open.kind, PendingKind::Lane { .. }) {
            self.lane_answered(wire, &open, id, (status, &frame, fd), fx);
        } else if matches!(open.kind, PendingKind::Reader { .. }) {
            self.reader_answered(wire, &open, id, (status, fd), now, fx);
            return;
        } else if fd.is_some() {
            fx.close.push((id, CloseReason::StrayDescriptor));
            let text = "the answer came with file descriptors, which only lanes take";
            self.answer(
                open.asker_conn,
                open.asker_correlation,
                Status::MALFORMED,
                text,
                &[],
                fx,
            );
        } else {
            let bits = if status == Status::OK {
                kind::RESPONSE
            } else {
                kind::RESPONSE | kind::ERROR
            };
            frame.header.kind = bits.into();
            frame.header.correlation = open.asker_correlation.into();
            let roomy = self
                .conns
                .get(&open.asker_conn)
                .is_some_and(|c| c.has_room_for(frame.wire_len(), &self.limits));
            if roomy {
                self.push_must(open.asker_conn, frame, None, fx);
            } else {
                let text = format!(
                    "the answer of {bytes} bytes found no room: read this connection faster"
                );
                self.answer(
                    open.asker_conn,
                    open.asker_correlation,
                    Status::QUEUE_FULL,
                    &text,
                    &[],
                    fx,
                );
            }
        }
        let kind = open.kind.answer_word();
        self.note(
            responder, asker, None, kind, open.what, bytes, wire, status, 1, now, fx,
        );
        self.pump(responder, fx);
    }

    /// Ends a request from the bus's side with an error to whoever asked.
    pub(super) fn fail_request(
        &mut self,
        wire: u32,
        status: Status,
        text: &str,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let Some(open) = self.close_pending(wire) else {
            return;
        };
        if matches!(open.kind, PendingKind::Reader { .. }) {
            return;
        }
        self.answer(
            open.asker_conn,
            open.asker_correlation,
            status,
            text,
            &[],
            fx,
        );
        let asker = Some((open.asker, self.name_of(open.asker)));
        self.note(
            open.server,
            asker,
            None,
            open.kind.answer_word(),
            open.what,
            0,
            wire,
            status,
            1,
            now,
            fx,
        );
        self.pump(open.server, fx);
    }

    /// Takes back a request whose asker has gone or cancelled.
    pub(super) fn withdraw_request(&mut self, wire: u32, why: Status, fx: &mut Effects<F>) {
        self.withdraw_from_server(wire, why, fx);
        if let Some(open) = self.close_pending(wire) {
            self.pump(open.server, fx);
        }
    }

    /// Tells the connection that has the request that nobody waits any more.
    pub(super) fn withdraw_from_server(&mut self, wire: u32, why: Status, fx: &mut Effects<F>) {
        let Some(Pending {
            state: PendingState::With(conn),
            kind,
            ..
        }) = self.pending.get(&wire)
        else {
            return;
        };
        let conn = *conn;
        if !matches!(kind, PendingKind::Request) {
            // It may be taking the offer in this moment: then what it took is over.
            self.tell_closed(conn, wire, why, fx);
            return;
        }
        let payload = Control::Cancel { request: wire }
            .encode()
            .expect("fixed size");
        self.push_must(
            conn,
            Frame::new(kind::COMMAND, PeerId::BUS, wire, payload),
            None,
            fx,
        );
    }

    /// Forgets a request in every place that knows of it.
    pub(super) fn close_pending(&mut self, wire: u32) -> Option<Pending<F>> {
        let open = self.pending.remove(&wire)?;
        self.timers
            .remove(&(open.deadline_ns, Timer::Request(wire)));
        if let Some(conn) = self.conns.get_mut(&open.asker_conn) {
            conn.inflight.remove(&open.asker_correlation);
        }
        match open.state {
            PendingState::With(id) if matches!(open.kind, PendingKind::Request) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.serving -= 1;
                }
            }
            PendingState::Waiting(_) => {
                if let Some(peer) = self.peers.get_mut(&open.server) {
                    peer.waiting.retain(|other| *other != wire);
                }
            }
            PendingState::With(_) | PendingState::Taken => {}
        }
        Some(open)
    }

    fn event(&mut self, id: ConnId, frame: Frame, now: Now, fx: &mut Effects<F>) {
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

    fn push_droppable(&mut self, id: ConnId, frame: Frame, fx: &mut Effects<F>) {
        if let Some(conn) = self.conns.get_mut(&id) {
            let dropped = conn.push_droppable(frame, &self.limits);
            fx.wake.push(id);
            if let Some(peer) = self.peers.get_mut(&conn.peer) {
                peer.counters.dropped += dropped;
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

    /// Answers reads of `peer`'s inbox that wait, while there is something to give.
    pub(super) fn serve_waiters(&mut self, peer: PeerId, now: Now, fx: &mut Effects<F>) {
        while let Some(entry) = self.peers.get(&peer) {
            let has_request = !entry.waiting.is_empty() && !self.is_serving(entry);
            if entry.inbox.is_empty() && !has_request {
                return;
            }
            let Some(waiter) = self
                .peers
                .get_mut(&peer)
                .and_then(|entry| entry.waiters.pop_front())
            else {
                return;
            };
            self.timers.remove(&(
                waiter.deadline_ns,
                Timer::InboxWait(peer, waiter.conn, waiter.correlation),
            ));
            self.answer_inbox(waiter.conn, waiter.correlation, waiter.max, now, fx);
        }
    }

    pub(super) fn serve_all_waiters(&mut self, uid: u32, now: Now, fx: &mut Effects<F>) {
        let waiting: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.uid == uid && !peer.waiters.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.serve_waiters(id, now, fx);
        }
    }

    /// Takes up to `max` messages for a read of the inbox and answers it. Requests that nobody serves
    /// come first: someone waits for them.
    pub(super) fn answer_inbox(
        &mut self,
        id: ConnId,
        correlation: u32,
        max: u32,
        _now: Now,
        fx: &mut Effects<F>,
    ) {
        let Some(peer_id) = self.conns.get(&id).map(|conn| conn.peer) else {
            return;
        };
        let Some(peer) = self.peers.get(&peer_id) else {
            return;
        };
        let takes_requests = !self.is_serving(peer);
        let mut batch = InboxBatch::default();
        let mut room = self.limits.max_payload as usize;
        while takes_requests && batch.messages.len() < max as usize {
            let Some(wire) = self.peers[&peer_id].waiting.front().copied() else {
                break;
            };
            let open = self
                .pending
                .get_mut(&wire)
                .expect("a waiting request is open");
            let PendingState::Waiting(frame) = &open.state else {
                unreachable!("a queued request is Waiting")
            };
            let name = self
                .peers
                .get(&open.asker)
                .map_or(String::new(), |peer| peer.name.clone());
            let len = InboxBatch::entry_len(&name, frame);
            if len > room && !batch.messages.is_empty() {
                break;
            }
            let PendingState::Waiting(frame) =
                std::mem::replace(&mut open.state, PendingState::Taken)
            else {
                unreachable!("checked above")
            };
            room = room.saturating_sub(len);
            batch.messages.push((name, frame));
            self.peers
                .get_mut(&peer_id)
                .expect("looked up above")
                .waiting
                .pop_front();
        }
        let peer = self.peers.get_mut(&peer_id).expect("looked up above");
        while batch.messages.len() < max as usize {
            // The first message always goes, however large: otherwise it would block the inbox for ever.
            let allowed = if batch.messages.is_empty() {
                usize::MAX
            } else {
                room
            };
            let Some((name, frame)) = peer.take_message(allowed) else {
                break;
            };
            room = room.saturating_sub(InboxBatch::entry_len(&name, &frame));
            batch.messages.push((name, frame));
        }
        batch.lost = std::mem::take(&mut peer.lost);
        let result = batch
            .encode()
            .expect("names were checked when their agents were attached");
        self.answer(id, correlation, Status::OK, "", &result, fx);
    }

    pub(super) fn name_of(&self, id: PeerId) -> String {
        self.peers
            .get(&id)
            .map_or(String::new(), |peer| peer.name.clone())
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one record")]
    pub(super) fn note(
        &mut self,
        from: PeerId,
        to: Option<(PeerId, String)>,
        topic: Option<String>,
        kind: &'static str,
        what: String,
        bytes: u32,
        correlation: u32,
        outcome: Status,
        receivers: u32,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let seq = self.next_seq;
        self.next_seq += 1;
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

    /// Counts a message for both its sides. Topic messages and broadcasts were counted where they were put in.
    fn count(
        &mut self,
        from: PeerId,
        to: &Option<(PeerId, String)>,
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
