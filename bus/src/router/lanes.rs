//! Introducing two agents to each other: the router carries the descriptors of a lane's two memories
//! and tells each side when the other has gone. The messages themselves never come here.

use crate::access::Wish;
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Response, Shape, Status};

use super::dispatch::Refusal;
use super::{ConnId, Effects, Now, Outgoing, Pending, PendingState, Router};

/// How long the receiver of an offer has to take it.
const OFFER_TIMEOUT_MS: u32 = 10_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    producer: ConnId,
    consumer: ConnId,
}

impl<F> Router<F> {
    #[allow(clippy::too_many_arguments, reason = "an offer and where it came from")]
    pub(super) fn offer_lane(
        &mut self,
        id: ConnId,
        correlation: u32,
        to: PeerId,
        shape: Shape,
        fd: Option<F>,
        now: Now,
        fx: &mut Effects,
    ) {
        let from = self.conns[&id].peer;
        let admitted = self.admit_lane(id, correlation, to, fd);
        let (wire, status) = match admitted {
            Ok((consumer, fd)) => {
                let wire = self.open(id, correlation, to, "lane", OFFER_TIMEOUT_MS, true, now);
                self.pending.get_mut(&wire).expect("just opened").state =
                    PendingState::With(consumer);
                let payload = Control::LaneOffered {
                    from,
                    lane: wire,
                    shape,
                }
                .encode()
                .expect("fixed size");
                let frame = Frame::new(kind::COMMAND, to, wire, payload);
                self.push_out(
                    consumer,
                    Outgoing {
                        frame,
                        fd: Some(fd),
                    },
                    fx,
                );
                (wire, Status::OK)
            }
            Err(refusal) => {
                self.answer(id, correlation, refusal.status, &refusal.text, &[], fx);
                (0, refusal.status)
            }
        };
        let to = Some((to, self.name_of(to)));
        self.note(
            from,
            to,
            None,
            "lane",
            "offer".into(),
            0,
            wire,
            status,
            u32::from(wire != 0),
            now,
            fx,
        );
    }

    fn admit_lane(
        &self,
        id: ConnId,
        correlation: u32,
        to: PeerId,
        fd: Option<F>,
    ) -> Result<(ConnId, F), Refusal> {
        let conn = &self.conns[&id];
        let fd = fd.ok_or_else(|| {
            Refusal::new(Status::MALFORMED, "a lane offer comes with its data memory")
        })?;
        if correlation == 0 || conn.inflight.contains_key(&correlation) {
            return Err(Refusal::new(
                Status::MALFORMED,
                "a lane offer needs a fresh correlation id",
            ));
        }
        self.may_address(conn.peer, to, Wish::Send)?;
        let receiver = &self.peers[&to];
        let limit = self.limits.max_lanes;
        let consumer = receiver
            .conns
            .iter()
            .filter(|id| self.conns[id].takes_lanes)
            .min_by_key(|id| self.lanes_of(**id))
            .copied()
            .ok_or_else(|| {
                let text = format!(
                    "{} takes no lanes; its messages go through the socket",
                    receiver.name
                );
                Refusal::new(Status::UNSUPPORTED, text)
            })?;
        if self.lanes_of(id) >= limit || self.lanes_of(consumer) >= limit {
            let text = format!("one side already takes part in {limit} lanes, the most allowed");
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        Ok((consumer, fd))
    }

    /// Counts offers too: otherwise they would be a way around the limit.
    fn lanes_of(&self, id: ConnId) -> usize {
        let open = self
            .lanes
            .values()
            .filter(|lane| lane.producer == id || lane.consumer == id)
            .count();
        let offered = self.pending.values().filter(|p| {
            p.is_lane
                && (p.asker_conn == id || matches!(p.state, PendingState::With(with) if with == id))
        });
        open + offered.count()
    }

    /// The receiver took or refused an offer. `open` has been closed already.
    #[allow(
        clippy::too_many_arguments,
        reason = "an answer and the offer that it closes"
    )]
    pub(super) fn lane_answered(
        &mut self,
        wire: u32,
        open: &Pending,
        consumer: ConnId,
        status: Status,
        frame: &Frame,
        fd: Option<F>,
        fx: &mut Effects,
    ) {
        let asked = (open.asker_conn, open.asker_correlation);
        match (status, fd) {
            (Status::OK, Some(fd)) => {
                self.lanes.insert(
                    wire,
                    Lane {
                        producer: open.asker_conn,
                        consumer,
                    },
                );
                let payload = Response::ok(&wire.to_le_bytes())
                    .encode()
                    .expect("fixed size");
                let mut frame = Frame::new(kind::RESPONSE, open.asker, asked.1, payload);
                frame.header.source = open.server;
                self.push_out(
                    asked.0,
                    Outgoing {
                        frame,
                        fd: Some(fd),
                    },
                    fx,
                );
            }
            (Status::OK, None) => {
                let text = "the receiver took the lane without giving its cursor memory";
                self.answer(asked.0, asked.1, Status::MALFORMED, text, &[], fx);
            }
            (status, _) => {
                let text = Response::parse(&frame.payload)
                    .map_or(String::new(), |answer| answer.error.to_owned());
                self.answer_with(asked.0, asked.1, open.server, status, &text, &[], fx);
            }
        }
    }

    /// One side says that it is done with a lane.
    pub(super) fn lane_closed_by(
        &mut self,
        id: ConnId,
        lane: u32,
        status: Status,
        fx: &mut Effects,
    ) {
        let Some(entry) = self.lanes.get(&lane).copied() else {
            return;
        };
        let other = match (entry.producer == id, entry.consumer == id) {
            (true, _) => entry.consumer,
            (_, true) => entry.producer,
            _ => return,
        };
        self.lanes.remove(&lane);
        // The bus's own words (gone, denied) are not for agents to say.
        let status = if status.is_bus_only() {
            Status::OK
        } else {
            status
        };
        self.tell_lane_closed(other, lane, status, fx);
    }

    pub(super) fn close_lanes_of(&mut self, id: ConnId, fx: &mut Effects) {
        let ended: Vec<(u32, Lane)> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.producer == id || lane.consumer == id)
            .map(|(wire, lane)| (*wire, *lane))
            .collect();
        for (wire, lane) in ended {
            self.lanes.remove(&wire);
            let other = if lane.producer == id {
                lane.consumer
            } else {
                lane.producer
            };
            if other != id {
                self.tell_lane_closed(other, wire, Status::PEER_GONE, fx);
            }
        }
    }

    fn tell_lane_closed(&mut self, to: ConnId, lane: u32, status: Status, fx: &mut Effects) {
        let payload = Control::ChannelClosed {
            channel: lane,
            status,
        }
        .encode()
        .expect("fixed size");
        self.push_must(
            to,
            Frame::new(kind::COMMAND, PeerId::BUS, lane, payload),
            None,
            fx,
        );
    }
}
