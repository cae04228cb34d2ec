//! A change of what an agent may do, while it is doing it.
//!
//! Everything that the new rules don't allow ends in the same call: lanes, logs and readers of logs (both sides
//! are told `DENIED`), offers of them, subscriptions, follows, and requests that await their answers. What was
//! put into an inbox before stays there. What two processes have mapped stays mapped: see `docs/bus.md`.

#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::access::{Access, Wish, check_publish, check_subscribe};
use crate::channel::Overflow;
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Delivery, Status};

use super::channels::{ChannelKind, Closed, Descriptor};
use super::{ConnId, Effects, Now, PendingKind, Router};

impl<F: Descriptor> Router<F> {
    /// From now on `peer` has these rights and no others.
    pub fn set_access(
        &mut self,
        peer: PeerId,
        access: Arc<dyn Access>,
        now: Now,
        fx: &mut Effects<F>,
    ) -> Closed {
        let Some(entry) = self.peers.get_mut(&peer) else {
            return Closed::default();
        };
        entry.access = access;
        let mut closed = Closed::default();
        self.judge_logs(peer, &mut closed, fx);
        self.judge_channels(peer, &mut closed, fx);
        self.judge_pending(peer, &mut closed, now, fx);
        self.judge_subscriptions(peer, &mut closed, fx);
        closed.subscriptions += self.judge_queues(peer, now, fx) + self.judge_groups(peer);
        closed.lanes += self.judge_routes(peer, fx);
        closed
    }

    fn judge_logs(&mut self, peer: PeerId, closed: &mut Closed, fx: &mut Effects<F>) {
        let entry = &self.peers[&peer];
        let shares = entry.access.may_share_memory();
        let mut denied: Vec<u32> = self
            .logs
            .iter()
            .filter(|(_, log)| log.peer == peer)
            .filter(|(_, log)| {
                !shares || check_publish(Self::party(entry), &*entry.access, &log.topic).is_err()
            })
            .map(|(number, _)| *number)
            .collect();
        denied.sort_unstable();
        for number in denied {
            closed.logs += 1;
            self.close_log(number, Status::DENIED, fx);
        }
    }

    fn judge_channels(&mut self, peer: PeerId, closed: &mut Closed, fx: &mut Effects<F>) {
        let mut denied: Vec<(u32, ChannelKind)> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.over.is_none())
            .filter(|(_, channel)| channel.producer.peer == peer || channel.consumer.peer == peer)
            .filter(|(_, channel)| {
                !self.still_allowed(channel.kind, channel.producer.peer, channel.consumer.peer)
            })
            .map(|(number, channel)| (*number, channel.kind))
            .collect();
        denied.sort_unstable_by_key(|(number, _)| *number);
        for (number, kind) in denied {
            match kind {
                ChannelKind::Lane => closed.lanes += 1,
                ChannelKind::Log | ChannelKind::FollowedLog { .. } => closed.logs += 1,
            }
            self.close_channel(number, Status::DENIED, fx);
        }
    }

    fn still_allowed(&self, kind: ChannelKind, producer: PeerId, consumer: PeerId) -> bool {
        let (Some(from), Some(to)) = (self.peers.get(&producer), self.peers.get(&consumer)) else {
            return true; // one has gone: the channel is over for another reason
        };
        from.access.may_share_memory()
            && to.access.may_share_memory()
            && match kind {
                ChannelKind::Lane => self.could_address(producer, consumer, Wish::Send).is_ok(),
                // What the producer may publish is judged with its logs.
                ChannelKind::FollowedLog { log } => self.logs.get(&log).is_none_or(|log| {
                    check_subscribe(Self::party(to), &*to.access, &log.topic).is_ok()
                }),
                ChannelKind::Log => true,
            }
    }

    fn judge_pending(&mut self, peer: PeerId, closed: &mut Closed, now: Now, fx: &mut Effects<F>) {
        let mut denied: Vec<u32> = self
            .pending
            .iter()
            .filter(|(_, open)| match &open.kind {
                PendingKind::Request => {
                    open.asker == peer
                        && self
                            .could_address(peer, open.server, Wish::Request)
                            .is_err()
                }
                PendingKind::Lane { .. } => {
                    !self.still_allowed(ChannelKind::Lane, open.asker, open.server)
                }
                PendingKind::Reader { log, .. } => !self.still_allowed(
                    ChannelKind::FollowedLog { log: *log },
                    open.asker,
                    open.server,
                ),
                // Judged with its route.
                PendingKind::Route { .. } => false,
            })
            .map(|(wire, _)| *wire)
            .collect();
        denied.sort_unstable();
        for wire in denied {
            match self.pending.get(&wire).map(|open| &open.kind) {
                Some(PendingKind::Request) => closed.requests += 1,
                Some(PendingKind::Lane { .. }) => closed.lanes += 1,
                Some(PendingKind::Reader { .. }) => closed.logs += 1,
                Some(PendingKind::Route { .. }) | None => continue,
            }
            self.withdraw_from_server(wire, Status::DENIED, fx);
            let text = "the right to it was taken back while it was under way";
            self.fail_request(wire, Status::DENIED, text, now, fx);
        }
    }

    fn judge_subscriptions(&mut self, peer: PeerId, closed: &mut Closed, fx: &mut Effects<F>) {
        let entry = &self.peers[&peer];
        let access = entry.access.clone();
        let name = entry.name.clone();
        let party = crate::access::Party {
            uid: entry.uid,
            name: &name,
        };
        let allowed = |pattern: &str| check_subscribe(party, &*access, pattern).is_ok();
        let conns = entry.conns.clone();
        let mut lost: Vec<(ConnId, Delivery, String)> = Vec::new();
        let entry = self.peers.get_mut(&peer).expect("looked up above");
        entry.subscriptions.retain(|pattern| {
            let keep = allowed(pattern);
            if !keep {
                closed.subscriptions += 1;
                lost.extend(
                    conns
                        .iter()
                        .map(|conn| (*conn, Delivery::Inbox, pattern.clone())),
                );
            }
            keep
        });
        for id in &conns {
            let conn = self
                .conns
                .get_mut(id)
                .expect("a peer's connections are in the map");
            let blocking = &mut self.blocking;
            conn.subscriptions.retain(|held| {
                let keep = allowed(&held.pattern);
                if !keep {
                    closed.subscriptions += 1;
                    *blocking -= usize::from(held.overflow == Overflow::Block);
                    lost.push((*id, Delivery::Push, held.pattern.clone()));
                }
                keep
            });
        }
        let uid = self.peers[&peer].uid;
        self.audiences_changed(uid);
        let mut unfollowed: Vec<u32> = self
            .follows
            .iter()
            .filter(|(_, follow)| conns.contains(&follow.conn))
            .filter(|(_, follow)| !access.may_share_memory() || !allowed(&follow.pattern))
            .map(|(number, _)| *number)
            .collect();
        unfollowed.sort_unstable();
        for number in unfollowed {
            closed.subscriptions += 1;
            if let Some(follow) = self.follows.remove(&number) {
                self.tell_closed(follow.conn, number, Status::DENIED, fx);
            }
        }
        for (conn, delivery, pattern) in lost {
            let payload = Control::Unsubscribe {
                delivery,
                pattern: &pattern,
            }
            .encode()
            .expect("it was a subscription");
            let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
            self.push_must(conn, frame, None, fx);
        }
    }
}
