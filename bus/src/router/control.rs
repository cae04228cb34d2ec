//! What a client says to the bus itself.

use crate::access::ask_subscribe;
use crate::channel::{SocketOnly, Tier};
use crate::frame::{Frame, VERSION};
use crate::listing::Welcome;
use crate::message::{
    Control, HELLO_SHARED_MEMORY, HELLO_WANT_CRC, QUEUE_PREFIX, ReplayFrom, Status, StreamKind,
};
use crate::topic::check_topic;

use super::channels::Descriptor;
use super::dispatch::Refusal;
use super::peer::InboxWaiter;
use super::{CloseReason, ConnId, ConnKind, Effects, Now, Router, Timer};

/// Most messages in one read of the inbox.
const INBOX_MAX: u32 = 256;
/// Longest wait of one read of the inbox, milliseconds.
const INBOX_WAIT_MAX_MS: u32 = 600_000;

impl<F: Descriptor> Router<F> {
    pub(super) fn control(
        &mut self,
        id: ConnId,
        frame: &Frame,
        fd: Option<F>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let correlation = frame.correlation();
        if !frame.header.destination.is_bus() {
            let text = "commands go to the bus itself: leave the destination nil, and send an event to an agent";
            self.answer(id, correlation, Status::MALFORMED, text, &[], fx);
            return;
        }
        let control = match Control::parse(&frame.payload) {
            Ok(control) => control,
            Err(error) => {
                if self.conns[&id].greeted {
                    self.answer(
                        id,
                        correlation,
                        Status::MALFORMED,
                        &error.to_string(),
                        &[],
                        fx,
                    );
                } else {
                    fx.close
                        .push((id, CloseReason::NotGreeted { kind: frame.kind() }));
                }
                return;
            }
        };
        if fd.is_some() && control.fd_kind().is_none() {
            fx.close.push((id, CloseReason::StrayDescriptor));
            return;
        }
        let greeted = self.conns[&id].greeted;
        match (greeted, control) {
            (false, Control::Hello { version, options }) => {
                self.hello(id, correlation, version, options, fx)
            }
            (false, _) => fx
                .close
                .push((id, CloseReason::NotGreeted { kind: frame.kind() })),
            (true, Control::LaneOffer { to, shape }) if to.is_bus() => {
                self.offer_route(id, correlation, shape, fd, fx)
            }
            (true, Control::LaneOffer { to, shape }) => {
                self.offer_lane(id, correlation, to, shape, fd, now, fx)
            }
            (true, Control::ChannelClosed { channel, status }) => {
                self.channel_closed_by(id, channel, status, fx)
            }
            (true, Control::LogOffer { shape, topic }) => {
                let outcome = self.offer_log(id, shape, topic, fd, now, fx);
                self.answer_outcome(id, correlation, outcome, fx);
            }
            (true, Control::LogFollow { reliable, pattern }) => {
                let outcome = self
                    .has_descriptors(id)
                    .and_then(|()| self.follow_logs(id, reliable, pattern));
                let follow = outcome.as_ref().ok().copied();
                let outcome = outcome.map(|follow| follow.to_le_bytes().to_vec());
                // The answer first: with it the client knows the number that the offers name.
                self.answer_outcome(id, correlation, outcome, fx);
                if let Some(follow) = follow {
                    self.offer_all_logs(follow, now, fx);
                }
            }
            (
                true,
                Control::Segment {
                    channel,
                    index,
                    sealed,
                },
            ) => {
                let outcome = self.announce_segment(id, channel, index, sealed, fd, fx);
                self.acknowledge(id, correlation, channel, outcome, fx);
            }
            (true, Control::SegmentDropped { channel, index }) => {
                let outcome = self.drop_segment(id, channel, index, fx);
                self.acknowledge(id, correlation, channel, outcome, fx);
            }
            (true, Control::Bell { channel }) => {
                let outcome = self.pass_bell(id, channel, fd, fx);
                self.acknowledge(id, correlation, channel, outcome, fx);
            }
            (true, Control::Produce { queue, messages }) => {
                self.produce(id, frame, queue, messages, now, fx)
            }
            (
                true,
                Control::Settle {
                    queue,
                    outcome,
                    tags,
                },
            ) => self.settle(id, correlation, queue, outcome, tags, now, fx),
            (true, Control::QueueDeclare { spec, name }) => {
                self.queue_declare(id, correlation, name, Some(spec), now, fx)
            }
            (true, Control::QueueOpen { name }) => {
                self.queue_declare(id, correlation, name, None, now, fx)
            }
            (true, Control::TopicDeclare { spec, topic }) => {
                self.topic_declare(id, correlation, topic, spec, fx)
            }
            (
                true,
                Control::Replay {
                    kind,
                    from,
                    max,
                    name,
                },
            ) => self.replay(id, correlation, (kind, name), (from, max), fx),
            (true, Control::Direct(said)) => self.direct(id, correlation, said, now, fx),
            (true, Control::Inbox { max, wait_ms }) => {
                self.read_inbox(id, correlation, max, wait_ms, now, fx)
            }
            (true, Control::Cancel { request }) => {
                if let Some(wire) = self.conns[&id].inflight.get(&request).copied() {
                    self.withdraw_request(wire, Status::CANCELLED, fx);
                }
            }
            (true, control) => {
                let outcome = self.simple_control(id, control, now, fx);
                self.answer_outcome(id, correlation, outcome, fx);
            }
        }
    }

    /// What comes with descriptors comes over a socket.
    fn has_descriptors(&self, id: ConnId) -> Result<(), Refusal> {
        if self.conns[&id].kind != ConnKind::Routed {
            return Ok(());
        }
        let text = "lanes and logs come with descriptors, which shared memory can't carry: ask over the socket";
        Err(Refusal::new(Status::UNSUPPORTED, text))
    }

    fn answer_outcome(
        &mut self,
        id: ConnId,
        correlation: u32,
        outcome: Result<Vec<u8>, Refusal>,
        fx: &mut Effects<F>,
    ) {
        match outcome {
            Ok(result) => self.answer(id, correlation, Status::OK, "", &result, fx),
            Err(refusal) => self.answer(id, correlation, refusal.status, &refusal.text, &[], fx),
        }
    }

    fn hello(
        &mut self,
        id: ConnId,
        correlation: u32,
        version: u16,
        options: u16,
        fx: &mut Effects<F>,
    ) {
        if version < VERSION {
            fx.close.push((id, CloseReason::Version { asked: version }));
            return;
        }
        let conn = self.conns.get_mut(&id).expect("dispatch has it");
        conn.greeted = true;
        conn.want_crc = options & HELLO_WANT_CRC != 0;
        conn.shares_memory = options & HELLO_SHARED_MEMORY != 0;
        let able = conn.shares_memory;
        let (peer_id, peer) = (conn.peer, &self.peers[&conn.peer]);
        let welcome = Welcome {
            version: VERSION,
            tier: match self.tier(peer_id) {
                Tier::SharedMemory if !able => Tier::Socket(SocketOnly::Incapable),
                tier => tier,
            },
            short: peer.short,
            max_payload: self.limits.max_payload,
            max_inflight: self.limits.max_inflight as u32,
            heartbeat_ms: self.limits.heartbeat_ms,
            id: peer_id,
            name: peer.name.to_string(),
        };
        let result = welcome
            .encode()
            .expect("the name was checked when the agent was attached");
        self.answer(id, correlation, Status::OK, "", &result, fx);
    }

    /// Control messages with one immediate answer.
    fn simple_control(
        &mut self,
        id: ConnId,
        control: Control<'_>,
        now: Now,
        fx: &mut Effects<F>,
    ) -> Result<Vec<u8>, Refusal> {
        let owner = self.conns[&id].peer;
        match control {
            Control::Agents => {
                let mut out = Vec::new();
                for entry in self.agents(owner, now) {
                    entry.encode_into(&mut out)?;
                }
                Ok(out)
            }
            Control::Lookup { name } => {
                let uid = self.peers[&owner].uid;
                match self.names.get(&(uid, name.to_owned())) {
                    Some(found) => Ok(found.0.to_vec()),
                    None => {
                        let text = format!(
                            "no agent called {name} is on the bus; list the agents to see who is"
                        );
                        Err(Refusal::new(Status::NO_SUCH_AGENT, text))
                    }
                }
            }
            Control::Serve { window } => {
                let most = self.limits.max_inflight as u32;
                self.conns.get_mut(&id).expect("dispatch has it").window = window.min(most);
                self.pump(owner, fx);
                self.serve_waiters(owner, now, fx);
                Ok(Vec::new())
            }
            Control::Subscribe {
                delivery,
                options,
                pattern,
            } => self
                .subscribe(id, delivery, options, pattern, fx)
                .map(|()| Vec::new()),
            Control::Unsubscribe { delivery, pattern } => {
                self.unsubscribe(id, delivery, pattern);
                Ok(Vec::new())
            }
            Control::AcceptLanes => {
                self.has_descriptors(id)?;
                self.may_share(owner)?;
                let conn = self.conns.get_mut(&id).expect("dispatch has it");
                conn.shares_memory = true;
                if !std::mem::replace(&mut conn.takes_lanes, true) {
                    let peer = &self.peers[&owner];
                    let (uid, name) = (peer.uid, peer.name.clone());
                    // Whoever lost a lane to it may open it again.
                    self.announce(owner, uid, "takes-lanes", &name, now, fx);
                }
                Ok(Vec::new())
            }
            Control::Hello { .. } => Err(Refusal::new(Status::MALFORMED, "hello was already said")),
            Control::LogUnfollow { follow } => {
                self.unfollow_logs(id, follow);
                Ok(Vec::new())
            }
            Control::Consume { queue, credit } => self.consume(id, queue, credit, now, fx),
            Control::QueueDrop { queue } => self.queue_drop(id, queue, fx),
            Control::QueuePeek {
                queue,
                part,
                max,
                from,
            } => self.queue_peek(id, queue, part, from, max),
            Control::QueueDead { queue, action, ids } => {
                self.queue_dead(id, queue, action, ids, now, fx)
            }
            Control::QueueTake { queue, max } => self.queue_take(id, queue, max, now, fx),
            Control::GroupJoin { delivery, name } => {
                self.group_join(id, delivery, name).map(|()| Vec::new())
            }
            Control::GroupLeave { delivery, name } => {
                self.group_leave(id, delivery, name);
                Ok(Vec::new())
            }
            Control::Lost { .. }
            | Control::Acknowledged { .. }
            | Control::Delivered { .. }
            | Control::LaneOffered { .. }
            | Control::LogOffered { .. }
            | Control::LogFollower { .. } => Err(Refusal::new(
                Status::MALFORMED,
                "that is said by the bus to a client, not to it",
            )),
            Control::Inbox { .. }
            | Control::Cancel { .. }
            | Control::Direct(_)
            | Control::QueueDeclare { .. }
            | Control::QueueOpen { .. }
            | Control::Produce { .. }
            | Control::Settle { .. }
            | Control::TopicDeclare { .. }
            | Control::Replay { .. }
            | Control::LaneOffer { .. }
            | Control::LogOffer { .. }
            | Control::LogFollow { .. }
            | Control::Segment { .. }
            | Control::SegmentDropped { .. }
            | Control::Bell { .. }
            | Control::ChannelClosed { .. } => unreachable!("handled before"),
        }
    }

    /// What the store has of a durable topic or queue; the answer follows from what it reads.
    fn replay(
        &mut self,
        id: ConnId,
        correlation: u32,
        (kind, name): (StreamKind, &str),
        (from, max): (ReplayFrom, u32),
        fx: &mut Effects<F>,
    ) {
        let peer = &self.peers[&self.conns[&id].peer];
        let topic = match kind {
            StreamKind::Queue => format!("{QUEUE_PREFIX}{name}"),
            StreamKind::Topic => name.to_owned(),
        };
        let allowed = check_topic(name)
            .map_err(|error| Refusal::new(Status::MALFORMED, error.to_string()))
            .and_then(|()| {
                ask_subscribe(Self::party(peer), &*peer.access, &topic)
                    .map_err(|text| Refusal::new(Status::DENIED, text))
            });
        let uid = peer.uid;
        match allowed {
            Ok(()) => self.read_stream(id, correlation, (uid, kind, name), (from, max), fx),
            Err(Refusal { status, text }) => self.answer(id, correlation, status, &text, &[], fx),
        }
    }

    fn read_inbox(
        &mut self,
        id: ConnId,
        correlation: u32,
        max: u32,
        wait_ms: u32,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let max = max.clamp(1, INBOX_MAX);
        let limit = self.limits.max_inflight;
        let owner = self.conns[&id].peer;
        let peer = self.peers.get_mut(&owner).expect("its connection is there");
        let empty = peer.inbox.is_empty() && peer.lost == 0;
        let waiting = !peer.waiting.is_empty();
        if wait_ms == 0 || !empty || (waiting && !self.is_serving(&self.peers[&owner])) {
            self.answer_inbox(id, correlation, max, now, fx);
            return;
        }
        let peer = self.peers.get_mut(&owner).expect("looked up above");
        if peer.waiters.len() >= limit
            || peer
                .waiters
                .iter()
                .any(|w| (w.conn, w.correlation) == (id, correlation))
        {
            let text = "too many reads of this inbox wait already";
            self.answer(id, correlation, Status::QUEUE_FULL, text, &[], fx);
            return;
        }
        let deadline_ns = now
            .mono_ns
            .saturating_add(u64::from(wait_ms.min(INBOX_WAIT_MAX_MS)) * 1_000_000);
        peer.waiters.push_back(InboxWaiter {
            conn: id,
            correlation,
            max,
            deadline_ns,
        });
        self.timers
            .insert((deadline_ns, Timer::InboxWait(owner, id, correlation)));
    }
}
