//! `connect(2)`, `bind(2)` and datagrams with an address, of both families.
//!
//! Without the network an agent reaches agentd's own listeners on its loopback and nothing else. Refused calls return `EPERM`.
//! A cgroup that is in no directory is refused everything.

use crate::agent::current_slot;
use crate::control::{Actor, Refusal, is_kept, is_revoked, policy, refuse};
use agentd_ebpf_common::{Policy, op, revoked};
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

const REFUSED: i32 = 0;
const ALLOWED: i32 = 1;

const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    judge(address4(&context), op::CONNECT, Kept::Reachable)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    judge(address6(&context), op::CONNECT, Kept::Reachable)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    judge(address4(&context), op::SENDMSG, Kept::No)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    judge(address6(&context), op::SENDMSG, Kept::No)
}

#[cgroup_sock_addr(bind4)]
pub fn bind4(context: SockAddrContext) -> i32 {
    judge(address4(&context), op::BIND, Kept::No)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(context: SockAddrContext) -> i32 {
    judge(address6(&context), op::BIND, Kept::No)
}

/// Whether the ports that stay matter to a hook.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Reachable,
    No,
}

/// Where a call wants to.
struct Address {
    family: u64,
    protocol: u64,
    /// Host byte order.
    port: u16,
    high: u64,
    low: u64,
    loopback: bool,
}

/// The port as the kernel holds it: network order in the low half.
#[inline(always)]
fn port(raw: u32) -> u16 {
    u16::from_be(raw as u16)
}

#[inline(always)]
fn address4(context: &SockAddrContext) -> Address {
    let addr: *mut bpf_sock_addr = context.sock_addr;
    // SAFETY: the context that the kernel gave; each field is read by its own aligned load, as the verifier demands.
    let (ip, raw, protocol) = unsafe {
        (
            u32::from_be(core::ptr::read_volatile(&raw const (*addr).user_ip4)),
            core::ptr::read_volatile(&raw const (*addr).user_port),
            core::ptr::read_volatile(&raw const (*addr).protocol),
        )
    };
    Address {
        family: AF_INET,
        protocol: protocol.into(),
        port: port(raw),
        high: 0,
        low: ip.into(),
        loopback: ip >> 24 == 127,
    }
}

#[inline(always)]
fn address6(context: &SockAddrContext) -> Address {
    let addr: *mut bpf_sock_addr = context.sock_addr;
    // SAFETY: as in `address4`.
    let (words, raw, protocol) = unsafe {
        let word = |index: usize| {
            let words = (&raw const (*addr).user_ip6).cast::<u32>();
            u64::from(u32::from_be(core::ptr::read_volatile(words.add(index))))
        };
        (
            [word(0), word(1), word(2), word(3)],
            core::ptr::read_volatile(&raw const (*addr).user_port),
            core::ptr::read_volatile(&raw const (*addr).protocol),
        )
    };
    let (high, low) = (words[0] << 32 | words[1], words[2] << 32 | words[3]);
    let mapped = high == 0 && words[2] == 0xffff && words[3] >> 24 == 127;
    Address {
        family: AF_INET6,
        protocol: protocol.into(),
        port: port(raw),
        high,
        low,
        loopback: mapped || (high == 0 && low == 1),
    }
}

#[inline(always)]
fn judge(to: Address, op: u32, kept: Kept) -> i32 {
    let slot = current_slot();
    let Some(policy) = policy(slot) else {
        return REFUSED;
    };
    if slot != 0 && allows(policy, &to, kept) {
        return ALLOWED;
    }
    let refusal = Refusal {
        op,
        because: revoked::NET,
        detail: [
            to.family << 32 | (to.protocol & 0xffff) << 16 | u64::from(to.port),
            to.high,
            to.low,
        ],
    };
    refuse(slot, Actor::Current, refusal);
    REFUSED
}

#[inline(always)]
fn allows(policy: &Policy, to: &Address, kept: Kept) -> bool {
    if !is_revoked(policy, revoked::NET) {
        return true;
    }
    kept == Kept::Reachable && to.loopback && is_kept(policy, to.port)
}
