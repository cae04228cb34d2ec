//! Introducing two agents to each other: a lane is offered, judged by the policy, and taken or refused.
//!
//! Fails towards whoever offers, with a status and a text.

#![forbid(unsafe_code)]

use crate::access::Wish;
use crate::channel::Overflow;
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Response, Shape, Status};

use super::channels::{
    Bells, Channel, ChannelEvent, ChannelKind, ChannelOpened, Descriptor, End, Segments,
};
use super::dispatch::Refusal;
use super::{ConnId, Effects, Now, Outgoing, Pending, PendingKind, PendingState, Router};

/// How long the receiver of an offer has to take it.
pub(super) const OFFER_TIMEOUT_MS: u32 = 10_000;

impl<F: Descriptor> Router<F> {
    #[allow(clippy::too_many_arguments, reason = "an offer and where it came from")]
    pub(super) fn offer_lane(
        &mut self,
        id: ConnId,
        correlation: u32,
        to: PeerId,
        shape: Shape,
        fd: Option<F>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let from = self.conns[&id].peer;
        let admitted = self.admit_lane(id, correlation, to, fd);
        let (wire, status) = match admitted {
            Ok((consumer, fd)) => {
                self.conns
                    .get_mut(&id)
                    .expect("dispatch has it")
                    .shares_memory = true;
                let kind_of = PendingKind::Lane {
                    shape,
                    data: fd.clone(),
                };
                let wire = self.open(
                    id,
                    correlation,
                    to,
                    "lane".into(),
                    OFFER_TIMEOUT_MS,
                    kind_of,
                    now,
                );
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
        self.check_inflight(id)?;
        self.may_address(conn.peer, to, Wish::Send)?;
        self.may_share(conn.peer)?;
        self.may_share(to)?;
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
        let open = self.channels.values().filter(|channel| {
            channel.kind == ChannelKind::Lane
                && (channel.producer.conn == Some(id) || channel.consumer.conn == Some(id))
        });
        let offered = self.pending.values().filter(|open| {
            matches!(open.kind, PendingKind::Lane { .. })
                && (open.asker_conn == id
                    || matches!(open.state, PendingState::With(with) if with == id))
        });
        open.count() + offered.count()
    }

    /// The receiver took or refused an offer. `open` has been closed already.
    pub(super) fn lane_answered(
        &mut self,
        wire: u32,
        open: &Pending<F>,
        consumer: ConnId,
        answer: (Status, &Frame, Option<F>),
        fx: &mut Effects<F>,
    ) {
        let PendingKind::Lane { shape, data } = &open.kind else {
            unreachable!("the caller looked")
        };
        let (conn, correlation) = (open.asker_conn, open.asker_correlation);
        match answer {
            (Status::OK, _, Some(cursor)) => {
                let end = |peer, conn| End {
                    peer,
                    conn: Some(conn),
                };
                let channel = Channel {
                    kind: ChannelKind::Lane,
                    producer: end(open.asker, conn),
                    consumer: end(open.server, consumer),
                    over: None,
                    bells: Bells::default(),
                    segments: Segments::default(),
                };
                self.channels.insert(wire, channel);
                fx.channels.push(ChannelEvent::Opened(ChannelOpened {
                    id: wire,
                    kind: ChannelKind::Lane,
                    uid: self.peers[&open.asker].uid,
                    from: (open.asker, self.name_of(open.asker).to_string()),
                    to: Some((open.server, self.name_of(open.server).to_string())),
                    topic: None,
                    shape: *shape,
                    reliable: shape.overflow != Overflow::DropOldest,
                    data: data.clone(),
                    cursor: Some(cursor.clone()),
                }));
                let payload = Response::ok(&wire.to_le_bytes())
                    .encode()
                    .expect("fixed size");
                let mut frame = Frame::new(kind::RESPONSE, open.asker, correlation, payload);
                frame.header.source = open.server;
                let fd = Some(cursor);
                self.push_out(conn, Outgoing { frame, fd }, fx);
            }
            (Status::OK, _, None) => {
                let text = "the receiver took the lane without giving its cursor memory";
                self.answer(conn, correlation, Status::MALFORMED, text, &[], fx);
            }
            (status, frame, _) => {
                let text = Response::parse(&frame.payload)
                    .map_or(String::new(), |answer| answer.error.to_owned());
                self.answer_with(conn, correlation, open.server, status, &text, &[], fx);
            }
        }
    }
}
