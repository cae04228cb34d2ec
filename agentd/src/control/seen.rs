//! What the bus knows, in the words of the API.
//!
//! Only what `caller` may see passes through here. Reads the router's listing and agentd's own `/proc/self`; changes
//! nothing, never waits.

use agentd_api::AgentId;
use agentd_api::bus::{
    BusChannel, BusPeer, ChannelKind, DaemonUsage, DirectState, IpcRight, PeerLiveness, Revocation,
    Tier,
};
use agentd_bus::access::Right;
use agentd_bus::channel::{SocketOnly, Tier as BusTier};
use agentd_bus::frame::PeerId;
use agentd_bus::listing::Liveness;
use agentd_bus::router::{ChannelKind as BusKind, MessageMeta, PeerStatus, QueueStep};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::agents::Caller;
use crate::bus::direct::{Figures, Paths};
use crate::bus::{BusServer, ChannelInfo};

/// Everybody whom `caller` may see.
pub fn peers(bus: &BusServer, caller: Caller) -> Vec<BusPeer> {
    let peers = bus.peers();
    let channels = channels_of(bus, &peers, caller);
    let visible = peers.into_iter().filter(|p| caller.may_touch(p.uid));
    visible.map(|peer| shown(bus, peer, &channels)).collect()
}

fn shown(bus: &BusServer, peer: PeerStatus, channels: &[(u32, ChannelInfo)]) -> BusPeer {
    let id = agent_id(peer.id);
    let (tier, tier_why) = match bus.way(peer.id) {
        Some(way) => (Tier::Socket, way),
        None => tier(&peer),
    };
    let (state, direct_why, figures) = direct(bus, &peer);
    let has_part = |channel: &ChannelInfo| {
        channel.from == peer.id || channel.to.as_ref().is_some_and(|(to, _)| *to == peer.id)
    };
    BusPeer {
        id,
        uid: peer.uid,
        tier,
        tier_why,
        liveness: match peer.liveness {
            Liveness::Alive => PeerLiveness::Alive,
            Liveness::Late => PeerLiveness::Late,
            Liveness::Quiet => PeerLiveness::Quiet,
        },
        serving: peer.serving,
        connections: small(peer.connections),
        queued: small(peer.queued),
        waiting: small(peer.waiting),
        subscriptions: small(peer.subscriptions),
        channels: small(channels.iter().filter(|(_, c)| has_part(c)).count()),
        sent: peer.counters.sent,
        sent_bytes: peer.counters.sent_bytes,
        received: peer.counters.received,
        received_bytes: peer.counters.received_bytes,
        refused: peer.counters.refused,
        dropped: peer.counters.dropped,
        direct: Some(state),
        direct_why: Some(direct_why),
        direct_sent: Some(figures.sent),
        direct_sent_bytes: Some(figures.sent_bytes),
        direct_received: Some(figures.received),
        direct_received_bytes: Some(figures.received_bytes),
        direct_refused: Some(figures.refused),
        revoked: Some(revoked(bus, id)).filter(|revoked| !revoked.is_empty()),
        name: peer.name,
    }
}

/// Whether it is on the direct path, why it is not, and what it did there.
fn direct(bus: &BusServer, peer: &PeerStatus) -> (DirectState, String, Figures) {
    let (Some(paths), Some(place)) = (bus.paths(), peer.direct) else {
        let why = bus.paths().map_or_else(String::new, Paths::why_not);
        return (DirectState::None, why, Figures::default());
    };
    let (state, why) = match place.held_by {
        Some(_) => (DirectState::Connected, ""),
        None => (
            DirectState::Offered,
            "no process of it has opened its direct connection",
        ),
    };
    (state, why.to_owned(), paths.figures(place.address))
}

/// What is taken from an agent now.
pub fn revoked(bus: &BusServer, id: AgentId) -> Vec<Revocation> {
    let revoked = bus.revoked(id).into_iter();
    revoked
        .map(|(right, pattern)| {
            let right = match right {
                Right::Send => IpcRight::Send,
                Right::Request => IpcRight::Request,
                Right::Publish => IpcRight::Publish,
                Right::Subscribe => IpcRight::Subscribe,
            };
            (right, pattern)
        })
        .collect()
}

fn tier(peer: &PeerStatus) -> (Tier, String) {
    match peer.tier {
        BusTier::SharedMemory if peer.routed > 0 => (
            Tier::Routed,
            "rings to the router and back; lanes and logs where its policy allows them".to_owned(),
        ),
        BusTier::SharedMemory => (
            Tier::SharedMemory,
            "lanes and logs where its policy allows them".to_owned(),
        ),
        BusTier::Socket(why @ SocketOnly::NotConnected) => (Tier::InDaemon, why.to_string()),
        BusTier::Socket(why) => (Tier::Socket, why.to_string()),
    }
}

/// The lanes and logs that `caller` may see.
pub fn channels(bus: &BusServer, caller: Caller) -> Vec<BusChannel> {
    let channels = channels_of(bus, &bus.peers(), caller);
    channels
        .into_iter()
        .map(|(uid, channel)| channel_shown(uid, channel))
        .collect()
}

/// With the uid of their agents.
fn channels_of(bus: &BusServer, peers: &[PeerStatus], caller: Caller) -> Vec<(u32, ChannelInfo)> {
    let mut uids: Vec<u32> = peers.iter().map(|peer| peer.uid).collect();
    uids.sort_unstable();
    uids.dedup();
    let visible = uids.into_iter().filter(|uid| caller.may_touch(*uid));
    visible
        .flat_map(|uid| bus.channels(uid).into_iter().map(move |c| (uid, c)))
        .collect()
}

fn channel_shown(uid: u32, channel: ChannelInfo) -> BusChannel {
    let kind = match channel.kind {
        BusKind::Lane => ChannelKind::Lane,
        BusKind::Log | BusKind::FollowedLog { .. } => ChannelKind::Log,
    };
    let overflow = match channel.kind {
        BusKind::FollowedLog { .. } if channel.reliable => "reliable",
        BusKind::FollowedLog { .. } => "lossy",
        BusKind::Log | BusKind::Lane => channel.overflow.as_str(),
    };
    BusChannel {
        id: channel.id,
        kind,
        uid,
        from: channel.from_name,
        from_id: agent_id(channel.from),
        to_id: channel.to.as_ref().map(|(to, _)| agent_id(*to)),
        to: channel.to.map(|(_, name)| name),
        topic: channel.topic,
        class: channel.class.as_str().to_owned(),
        overflow: overflow.to_owned(),
        slots: small(channel.slots),
        depth: channel.depth,
        sent: channel.sent.messages,
        sent_bytes: channel.sent.bytes,
        dropped: channel.sent.dropped,
        full: channel.sent.full,
        cut_off: channel.sent.cut_off,
        sender_sleeps: channel.sent.sleeps,
        sender_wakes: channel.sent.wakes,
        received: channel.received.messages,
        received_bytes: channel.received.bytes,
        lost: channel.received.lost,
        refused: channel.received.refused,
        receiver_sleeps: channel.received.sleeps,
        receiver_wakes: channel.received.wakes,
        latency: channel.latency.buckets().collect(),
    }
}

fn agent_id(peer: PeerId) -> AgentId {
    Uuid::from_bytes(peer.0).into()
}

fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// One routed message for a tap.
pub fn message_json(meta: &MessageMeta) -> Value {
    json!({
        "seq": meta.seq,
        "at_ns": meta.at_ns,
        "uid": meta.uid,
        "kind": meta.kind,
        "from": &*meta.from_name,
        "from_id": Uuid::from_bytes(meta.from.0),
        "to": meta.to.as_ref().map(|(_, name)| &**name),
        "to_id": meta.to.as_ref().map(|(id, _)| Uuid::from_bytes(id.0)),
        "topic": meta.topic.as_deref(),
        "what": &*meta.what,
        "bytes": meta.bytes,
        "correlation": meta.correlation,
        "outcome": meta.outcome.to_string(),
        "receivers": meta.receivers,
    })
}

/// One step of a message in a queue for a tap.
pub fn step_json(step: &QueueStep) -> Value {
    json!({
        "at_ns": step.at_ns,
        "uid": step.uid,
        "queue": &*step.queue,
        "message": step.message,
        "step": step.kind.as_str(),
        "why": step.kind.why(),
        "by": step.by.as_ref().map(|(_, name)| &**name),
        "by_id": step.by.as_ref().map(|(id, _)| Uuid::from_bytes(id.0)),
        "deliveries": step.deliveries,
        "bytes": step.bytes,
    })
}

/// What agentd holds now.
pub fn usage(bus: &BusServer) -> DaemonUsage {
    let (connections, requests) = bus.open();
    let peers = bus.peers();
    let root = Caller { uid: 0, gid: 0 };
    DaemonUsage {
        descriptors: descriptors(),
        resident_bytes: resident_bytes(),
        channels: small(channels_of(bus, &peers, root).len()),
        peers: small(peers.len()),
        connections: small(connections),
        requests: small(requests),
    }
}

/// Open descriptors of this process, the one that reads the list left out.
fn descriptors() -> Option<u64> {
    let listed = std::fs::read_dir("/proc/self/fd").ok()?;
    Some(listed.count().saturating_sub(1) as u64)
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_holds() {
        let before = descriptors().expect("/proc is there");
        let held = std::fs::File::open("/dev/null").expect("there on every Linux");
        assert!(descriptors().is_some_and(|now| now > before.min(2)));
        drop(held);
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 16));
    }
}
