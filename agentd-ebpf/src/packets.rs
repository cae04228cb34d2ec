//! Packets in and out of an agent's sockets: counted, and dropped while it has no network.
//!
//! Sockets that agentd accepted from a listener of the sandbox belong to the agent's cgroup too, so that what goes over its loopback is
//! counted where it leaves and where it arrives. Without the network a packet passes if one of its ports is kept, or if it carries
//! nothing: so that the ends of open connections learn that they are over, and that a `connect` which was judged just before comes to an end,
//! for whose SYN nobody would answer for two minutes else. Later ones are refused before they send any. Headers are read by copy and
//! believed in nothing but the verdict on their own packet.

use crate::agent::{add, socket_slot};
use crate::control::{Actor, Refusal, counters, is_kept, is_revoked, policy, refuse};
use agentd_ebpf_common::{Policy, op, revoked};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

const DROPPED: i32 = 0;
const PASSED: i32 = 1;

const IPPROTO_TCP: u8 = 6;

#[cgroup_skb(ingress)]
pub fn ingress(context: SkBuffContext) -> i32 {
    judge(&context, Way::In)
}

#[cgroup_skb(egress)]
pub fn egress(context: SkBuffContext) -> i32 {
    judge(&context, Way::Out)
}

#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

#[inline(always)]
fn judge(packet: &SkBuffContext, way: Way) -> i32 {
    let slot = socket_slot(packet);
    let (Some(policy), Some(counters)) = (policy(slot), counters(slot)) else {
        return DROPPED;
    };
    if slot != 0 && !is_revoked(policy, revoked::NET) {
        let bytes = u64::from(packet.len());
        // SAFETY: a row of the map, aligned; every writer adds atomically.
        unsafe {
            match way {
                Way::In => {
                    add(&raw mut (*counters).packets_in, 1);
                    add(&raw mut (*counters).bytes_in, bytes);
                }
                Way::Out => {
                    add(&raw mut (*counters).packets_out, 1);
                    add(&raw mut (*counters).bytes_out, bytes);
                }
            }
        }
        return PASSED;
    }
    let headers = read(packet).unwrap_or_default();
    if slot != 0 && passes(policy, &headers) {
        return PASSED;
    }
    let (op, port) = match way {
        Way::In => (op::PACKET_IN, headers.from),
        Way::Out => (op::PACKET_OUT, headers.to),
    };
    let refusal = Refusal {
        op,
        because: revoked::NET,
        detail: [
            u64::from(headers.family) << 32 | u64::from(headers.protocol) << 16 | u64::from(port),
            0,
            0,
        ],
    };
    refuse(slot, Actor::Packet, refusal);
    DROPPED
}

/// What a verdict needs of a packet. All zero: it could not be read, so it does not pass.
#[derive(Default)]
struct Headers {
    family: u8,
    protocol: u8,
    from: u16,
    to: u16,
    /// Bytes behind the TCP header.
    carried: u32,
}

#[inline(always)]
fn passes(policy: &Policy, headers: &Headers) -> bool {
    if headers.protocol != IPPROTO_TCP {
        return false;
    }
    headers.carried == 0 || is_kept(policy, headers.from) || is_kept(policy, headers.to)
}

/// Reads as far as a TCP header. Fragments but the first, and IPv6 packets with extension headers, have no ports here.
#[inline(always)]
fn read(packet: &SkBuffContext) -> Option<Headers> {
    let first: u8 = packet.load(0).ok()?;
    let (family, protocol, at) = match first >> 4 {
        4 => {
            let fragment: u16 = packet.load(6).ok()?;
            let protocol: u8 = packet.load(9).ok()?;
            let is_later = u16::from_be(fragment) & 0x1fff != 0;
            (
                2,
                if is_later { 0 } else { protocol },
                usize::from(first & 15) * 4,
            )
        }
        6 => (10, packet.load::<u8>(6).ok()?, 40),
        _ => return None,
    };
    let mut headers = Headers {
        family,
        protocol,
        ..Headers::default()
    };
    if protocol != IPPROTO_TCP {
        return Some(headers);
    }
    headers.from = u16::from_be(packet.load(at).ok()?);
    headers.to = u16::from_be(packet.load(at + 2).ok()?);
    let offset: u8 = packet.load(at + 12).ok()?;
    let behind = at as u32 + u32::from(offset >> 4) * 4;
    headers.carried = packet.len().saturating_sub(behind);
    Some(headers)
}
