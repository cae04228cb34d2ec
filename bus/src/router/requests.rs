//! Requests and whatever else awaits an answer: opened, handed to who serves, answered once, expired or taken back.
//!
//! Each has exactly one fate, and its entry goes with it. Fails towards whoever asked, with a status and a text.

#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::access::Wish;
use crate::frame::{Frame, PeerId, flags, kind};
use crate::message::{Control, Request, Response, Status};

use super::dispatch::Refusal;
use super::{
    CloseReason, ConnId, Descriptor, Effects, Now, Pending, PendingKind, PendingState, Router,
    Timer,
};

impl<F: Descriptor> Router<F> {
    /// An open request: from `id`, to the agent in the frame's destination.
    pub(super) fn request(&mut self, id: ConnId, frame: Frame, now: Now, fx: &mut Effects<F>) {
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
            Ok(request) => (self.words.get(request.method), request.timeout_ms),
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
                what.clone(),
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

    /// Registers a request under a correlation id of our own.
    #[allow(clippy::too_many_arguments, reason = "the fields of one open request")]
    pub(super) fn open(
        &mut self,
        id: ConnId,
        correlation: u32,
        server: PeerId,
        what: Arc<str>,
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
            what,
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
        let class = (frame.header.flags.get() & flags::PRIORITY_MASK) as usize;
        let asker = frame.header.source;
        peer.waiting.push(class, asker, frame.wire_len(), wire);
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
            let Some(wire) = peer.waiting.peek().copied() else {
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
            peer.waiting.pop();
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
    pub(super) fn response(
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
        } else if let PendingKind::Route { route } = open.kind {
            self.route_answered(route, (status, fd), now, fx);
            return;
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
        match open.kind {
            PendingKind::Reader { .. } => return,
            PendingKind::Route { route } => {
                self.end_route(route, status, fx);
                return;
            }
            PendingKind::Request | PendingKind::Lane { .. } => {}
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
                    peer.waiting.remove_oldest(|other| *other == wire);
                }
            }
            PendingState::With(_) | PendingState::Taken => {}
        }
        Some(open)
    }
}
