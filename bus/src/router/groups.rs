//! Groups: agents that have joined under a name, and get what is sent to all of them.
//!
//! Who may join is asked of the policy as `subscribe` on `group:NAME`, who may send as `send` on the same. A message is
//! a broadcast event whose topic is `group:NAME`. A member gets it in its inbox, where it is taken by the rules of
//! a sent message, or on the connection that joined, where it is taken by those of a topic. Fails towards the sender.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use crate::access::{Right, ask_subscribe};
use crate::channel::Overflow;
use crate::frame::{Frame, PeerId};
use crate::message::{Delivery, GROUP_PREFIX, Status};
use crate::topic::check_topic;

use super::dispatch::Refusal;
use super::{ConnId, Descriptor, Effects, Router};

#[derive(Debug, Default)]
pub(super) struct Group {
    /// Whose inboxes.
    inboxes: BTreeSet<PeerId>,
    /// Which connections, and whose they are.
    conns: BTreeMap<ConnId, PeerId>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.inboxes.is_empty() && self.conns.is_empty()
    }
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    pub uid: u32,
    pub name: String,
    /// Names of agents, each once.
    pub members: Vec<String>,
}

impl<F: Descriptor> Router<F> {
    pub(super) fn group_join(
        &mut self,
        id: ConnId,
        delivery: Delivery,
        name: &str,
    ) -> Result<(), Refusal> {
        check_topic(name)
            .map_err(|error| Refusal::new(Status::MALFORMED, format!("group name: {error}")))?;
        let owner = self.conns[&id].peer;
        let peer = &self.peers[&owner];
        let known = format!("{GROUP_PREFIX}{name}");
        ask_subscribe(Self::party(peer), &*peer.access, &known)
            .map_err(|text| Refusal::new(Status::DENIED, text))?;
        let limit = self.limits.max_groups;
        let space = self.spaces.entry(peer.uid).or_default();
        if !space.groups.contains_key(name) && space.groups.len() >= limit {
            let text = format!("there are {limit} groups already, the most allowed");
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        let group = space.groups.entry(name.into()).or_default();
        match delivery {
            Delivery::Inbox => drop(group.inboxes.insert(owner)),
            Delivery::Push => drop(group.conns.insert(id, owner)),
        }
        Ok(())
    }

    pub(super) fn group_leave(&mut self, id: ConnId, delivery: Delivery, name: &str) {
        let owner = self.conns[&id].peer;
        let uid = self.peers[&owner].uid;
        let space = self.space(uid);
        let Some(group) = space.groups.get_mut(name) else {
            return;
        };
        match delivery {
            Delivery::Inbox => drop(group.inboxes.remove(&owner)),
            Delivery::Push => drop(group.conns.remove(&id)),
        }
        if group.is_empty() {
            space.groups.remove(name);
        }
    }

    /// A message to every member but its sender; how many took it.
    pub(super) fn multicast(
        &mut self,
        from: PeerId,
        topic: &str,
        frame: &Frame,
        fx: &mut Effects<F>,
    ) -> Result<u32, Refusal> {
        let sender = &self.peers[&from];
        let (uid, sender_name) = (sender.uid, sender.name.clone());
        if !sender.access.may_send(topic) {
            sender.access.refused(Right::Send, topic);
            let text = format!(
                "the policy of {sender_name} does not allow it to send to {topic}; its [ipc] send list has to name {topic}"
            );
            return Err(Refusal::new(Status::DENIED, text));
        }
        let name = topic.strip_prefix(GROUP_PREFIX).unwrap_or(topic);
        let Some(group) = self
            .spaces
            .get(&uid)
            .and_then(|space| space.groups.get(name))
        else {
            let text = format!("nobody is in group {name}");
            return Err(Refusal::new(Status::NO_SUCH_AGENT, text));
        };
        let mut receivers = 0;
        for member in group.inboxes.iter().filter(|member| **member != from) {
            let Some(peer) = self.peers.get_mut(member) else {
                continue;
            };
            let mut copy = frame.clone();
            copy.header.destination = *member;
            let taken = u32::from(peer.accept_direct(&sender_name, copy, &self.limits));
            peer.counters
                .count_received(taken.into(), frame.payload.len());
            receivers += taken;
            if !peer.waiters.is_empty() {
                self.roused.push(*member);
            }
        }
        let mut dropped = Vec::new();
        for (id, member) in group.conns.iter().filter(|(_, member)| **member != from) {
            let Some(conn) = self.conns.get_mut(id) else {
                continue;
            };
            let mut copy = frame.clone();
            copy.header.destination = *member;
            let before = dropped.len();
            conn.offer(copy, Overflow::DropOldest, &self.limits, &mut dropped);
            fx.wake.push(*id);
            receivers += 1;
            if let Some(peer) = self.peers.get_mut(member) {
                peer.counters.dropped += (dropped.len() - before) as u64;
                peer.counters.count_received(1, frame.payload.len());
            }
        }
        Ok(receivers)
    }

    /// Ends memberships of which `ends` says so; how many.
    fn end_memberships(
        &mut self,
        uid: u32,
        ends: impl Fn(&str, PeerId, Option<ConnId>) -> bool,
    ) -> u32 {
        let mut ended = 0;
        let Some(space) = self.spaces.get_mut(&uid) else {
            return 0;
        };
        space.groups.retain(|name, group| {
            let before = group.inboxes.len() + group.conns.len();
            group.inboxes.retain(|peer| !ends(name, *peer, None));
            group
                .conns
                .retain(|conn, peer| !ends(name, *peer, Some(*conn)));
            ended += (before - group.inboxes.len() - group.conns.len()) as u32;
            !group.is_empty()
        });
        ended
    }

    /// The connection has gone.
    pub(super) fn conn_leaves_groups(&mut self, uid: u32, id: ConnId) {
        self.end_memberships(uid, |_, _, conn| conn == Some(id));
    }

    /// The agent has gone.
    pub(super) fn peer_leaves_groups(&mut self, uid: u32, id: PeerId) {
        self.end_memberships(uid, |_, peer, _| peer == id);
    }

    /// Rights have changed: who may no longer join is no longer in.
    pub(super) fn judge_groups(&mut self, id: PeerId) -> u32 {
        let peer = &self.peers[&id];
        let (uid, access) = (peer.uid, peer.access.clone());
        self.end_memberships(uid, |name, peer, _| {
            peer == id && !access.may_subscribe(&format!("{GROUP_PREFIX}{name}"))
        })
    }

    /// The groups of a user, or of all, by name.
    pub fn groups(&self, uid: Option<u32>) -> Vec<GroupStatus> {
        let mut list: Vec<GroupStatus> = self
            .spaces
            .iter()
            .filter(|(owner, _)| uid.is_none_or(|uid| uid == **owner))
            .flat_map(|(owner, space)| {
                space
                    .groups
                    .iter()
                    .map(|(name, group)| (*owner, name, group))
            })
            .map(|(uid, name, group)| {
                let members: BTreeSet<String> = group
                    .inboxes
                    .iter()
                    .chain(group.conns.values())
                    .map(|peer| self.name_of(*peer).to_string())
                    .collect();
                GroupStatus {
                    uid,
                    name: name.to_string(),
                    members: members.into_iter().collect(),
                }
            })
            .collect();
        list.sort_by(|a, b| (a.uid, &a.name).cmp(&(b.uid, &b.name)));
        list
    }
}
