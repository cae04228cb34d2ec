//! Routed shared memory: a lane from an agent to the bus itself and one back, and the connection whose frames travel
//! on them.
//!
//! An agent offers a lane whose receiver is nil; the bus takes it, and offers one back. Together they are a **route**:
//! from then on a connection of the same agent, with its own queues and bounds, that carries every frame but those with
//! descriptors. A route lives as long as the socket over which it was opened, and at most one has it. What a frame looks
//! like in a lane is [`crate::shard::compact`]; the memory is the shard's business, which is told by [`RouteEvent`].
//!
//! Fails towards the agent, with a status and a text; a route that ends is told to its socket under both numbers.

#![forbid(unsafe_code)]

use crate::channel::{Inline, Overflow};
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Response, Shape, Status};

use super::channels::Descriptor;
use super::conn::Conn;
use super::dispatch::Refusal;
use super::lanes::OFFER_TIMEOUT_MS;
use super::{ConnId, ConnKind, Effects, Now, Outgoing, Pending, PendingKind, PendingState, Router};

/// News of routes for whoever has the memory.
#[derive(Clone, Debug)]
pub enum RouteEvent<F> {
    /// An agent offers this data memory: answer with [`Router::route_taken`] or [`Router::route_refused`].
    Offered { route: u32, data: F },
    /// The agent took the lane back with this cursor memory: frames may flow.
    Opened { route: u32, conn: ConnId, cursor: F },
    /// Over. What the agent had committed before may still be taken, except after `DENIED` and `MALFORMED`; then
    /// [`Router::route_ended`].
    Over { route: u32, status: Status },
}

/// What the bus gives an agent that offered a lane to it.
#[derive(Clone, Debug)]
pub struct RouteMemory<F> {
    /// The bus's cursor on the agent's lane.
    pub cursor: F,
    /// What the agent rings when the bus waits for messages in an event loop, and when it waits for room.
    pub bells: [F; 2],
    /// The data memory of the lane back, and its slots.
    pub data: F,
    pub slots: u32,
}

#[derive(Debug)]
pub(super) struct Route {
    pub socket: ConnId,
    pub peer: PeerId,
    /// Of the offer, until it was answered.
    correlation: u32,
    shape: Shape,
    /// The number of the lane back.
    back: Option<u32>,
    /// `None` until both lanes stand, and after it has closed.
    conn: Option<ConnId>,
    over: Option<Status>,
}

impl<F: Descriptor> Router<F> {
    pub(super) fn offer_route(
        &mut self,
        id: ConnId,
        correlation: u32,
        shape: Shape,
        fd: Option<F>,
        fx: &mut Effects<F>,
    ) {
        match self.admit_route(id, correlation, shape, fd) {
            Ok(data) => {
                let route = self.fresh_number();
                let conn = self.conns.get_mut(&id).expect("dispatch has it");
                conn.shares_memory = true;
                let entry = Route {
                    socket: id,
                    peer: conn.peer,
                    correlation,
                    shape,
                    back: None,
                    conn: None,
                    over: None,
                };
                self.routes.insert(route, entry);
                fx.routes.push(RouteEvent::Offered { route, data });
            }
            Err(refusal) => {
                self.answer(id, correlation, refusal.status, &refusal.text, &[], fx);
            }
        }
    }

    fn admit_route(
        &self,
        id: ConnId,
        correlation: u32,
        shape: Shape,
        fd: Option<F>,
    ) -> Result<F, Refusal> {
        let malformed = |text: &str| Refusal::new(Status::MALFORMED, text);
        let data = fd.ok_or_else(|| malformed("a lane offer comes with its data memory"))?;
        if correlation == 0 || self.conns[&id].inflight.contains_key(&correlation) {
            return Err(malformed("a lane offer needs a fresh correlation id"));
        }
        if shape.overflow != Overflow::Block {
            return Err(malformed(
                "a lane to the bus waits for room: its overflow policy is block",
            ));
        }
        self.may_share(self.conns[&id].peer)?;
        if self.routes.values().any(|route| route.socket == id) {
            let text = "this connection has its lanes to the bus already";
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        Ok(data)
    }

    /// The lane that was offered is taken: the agent gets what it needs of `memory`, and an offer of the lane back.
    pub fn route_taken(
        &mut self,
        route: u32,
        memory: RouteMemory<F>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let back = self.fresh_number();
        let Some(entry) = self.routes.get_mut(&route) else {
            return;
        };
        entry.back = Some(back);
        let (socket, peer, correlation) = (entry.socket, entry.peer, entry.correlation);
        let shape = Shape {
            inline: Inline::Small,
            slots: memory.slots,
            ..entry.shape
        };
        let deadline_ns = now
            .mono_ns
            .saturating_add(u64::from(OFFER_TIMEOUT_MS) * 1_000_000);
        let pending = Pending {
            asker: PeerId::BUS,
            asker_conn: NOBODY,
            asker_correlation: 0,
            server: peer,
            state: PendingState::With(socket),
            deadline_ns,
            what: "route".into(),
            kind: PendingKind::Route { route },
        };
        self.open_pending(back, pending);
        let answer = Response::ok(&route.to_le_bytes())
            .encode()
            .expect("fixed size");
        let offer = Control::LaneOffered {
            from: PeerId::BUS,
            lane: back,
            shape,
        };
        let frame = Frame::new(kind::RESPONSE, peer, correlation, answer);
        self.push_out(
            socket,
            Outgoing {
                frame,
                fd: Some(memory.cursor),
            },
            fx,
        );
        self.carry(socket, back, offer, memory.data, fx);
        for (channel, bell) in [route, back].into_iter().zip(memory.bells) {
            self.carry(socket, channel, Control::Bell { channel }, bell, fx);
        }
    }

    fn carry(
        &mut self,
        to: ConnId,
        correlation: u32,
        control: Control<'_>,
        fd: F,
        fx: &mut Effects<F>,
    ) {
        let payload = control.encode().expect("fixed size");
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, correlation, payload);
        self.push_out(
            to,
            Outgoing {
                frame,
                fd: Some(fd),
            },
            fx,
        );
    }

    /// The lane that was offered can't be taken.
    pub fn route_refused(&mut self, route: u32, text: &str, fx: &mut Effects<F>) {
        if let Some(entry) = self.routes.remove(&route) {
            let (socket, correlation) = (entry.socket, entry.correlation);
            self.answer(socket, correlation, Status::FAILED, text, &[], fx);
        }
    }

    /// The agent took the lane back, or did not.
    pub(super) fn route_answered(
        &mut self,
        route: u32,
        outcome: (Status, Option<F>),
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let Some(entry) = self.routes.get_mut(&route) else {
            return;
        };
        let (Status::OK, Some(cursor)) = outcome else {
            self.end_route(route, Status::OK, fx);
            return;
        };
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        entry.conn = Some(conn);
        let peer = entry.peer;
        let mut fresh = Conn::new(peer, ConnKind::Routed, now.mono_ns);
        fresh.greeted = true;
        self.conns.insert(conn, fresh);
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.conns.push(conn);
        }
        fx.routes.push(RouteEvent::Opened {
            route,
            conn,
            cursor,
        });
    }

    /// A client is done with one of a route's two numbers. `false`: it is no route's.
    pub(super) fn route_closed_by(&mut self, id: ConnId, number: u32, fx: &mut Effects<F>) -> bool {
        let found = self.routes.iter().find(|(route, entry)| {
            entry.socket == id && (**route == number || entry.back == Some(number))
        });
        let Some((route, _)) = found else {
            return false;
        };
        self.end_route(*route, Status::OK, fx);
        true
    }

    /// A connection has gone: the route that was opened over it, or whose it is.
    pub(super) fn drop_routes_of(&mut self, id: ConnId, fx: &mut Effects<F>) {
        let found = self
            .routes
            .iter_mut()
            .find(|(_, entry)| entry.socket == id || entry.conn == Some(id));
        if let Some((route, entry)) = found {
            if entry.conn == Some(id) {
                entry.conn = None;
            }
            let route = *route;
            self.end_route(route, Status::PEER_GONE, fx);
        }
    }

    /// Ends a route, once: its socket is told, and whoever has the memory.
    pub fn end_route(&mut self, route: u32, status: Status, fx: &mut Effects<F>) {
        let Some(entry) = self.routes.get_mut(&route) else {
            return;
        };
        if entry.over.is_some() {
            return;
        }
        entry.over = Some(status);
        let (socket, back) = (entry.socket, entry.back);
        if self.conns.contains_key(&socket) {
            for number in std::iter::once(route).chain(back) {
                self.tell_closed(socket, number, status, fx);
            }
        }
        fx.routes.push(RouteEvent::Over { route, status });
    }

    /// Nothing more will come of a route that is over.
    pub fn route_ended(&mut self, route: u32, now: Now, fx: &mut Effects<F>) {
        let Some(entry) = self.routes.remove(&route) else {
            return;
        };
        if let Some(back) = entry.back {
            self.close_pending(back);
        }
        if let Some(conn) = entry.conn {
            self.disconnect(conn, now, fx);
        }
    }

    /// Ends the routes of a peer that may not share memory any more; how many.
    pub(super) fn judge_routes(&mut self, peer: PeerId, fx: &mut Effects<F>) -> u32 {
        if self.peers[&peer].access.may_share_memory() {
            return 0;
        }
        let found = self.routes.iter().filter(|(_, entry)| entry.peer == peer);
        let mut denied: Vec<u32> = found.map(|(route, _)| *route).collect();
        denied.sort_unstable();
        for route in &denied {
            self.end_route(*route, Status::DENIED, fx);
        }
        denied.len() as u32
    }

    /// The open routes of a peer.
    pub fn routes_of(&self, peer: PeerId) -> impl Iterator<Item = u32> {
        self.routes
            .iter()
            .filter(move |(_, entry)| entry.peer == peer && entry.conn.is_some())
            .map(|(route, _)| *route)
    }
}

/// No connection has this number.
const NOBODY: ConnId = ConnId(0);
