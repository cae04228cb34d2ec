//! New IP sockets: without the network an agent makes TCP sockets, which [`crate::connect`] judges, and no others.

use crate::agent::current_slot;
use crate::control::{Actor, Refusal, is_revoked, policy, refuse};
use agentd_ebpf_common::{op, revoked};
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

const REFUSED: i32 = 0;
const ALLOWED: i32 = 1;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

#[cgroup_sock(sock_create)]
pub fn sock_create(context: SockContext) -> i32 {
    let slot = current_slot();
    let Some(policy) = policy(slot) else {
        return REFUSED;
    };
    let sock = context.sock;
    // SAFETY: the context that the kernel gave; each field is read by its own aligned load, as the verifier demands.
    let (family, kind, protocol) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*sock).family),
            core::ptr::read_volatile(&raw const (*sock).type_),
            core::ptr::read_volatile(&raw const (*sock).protocol),
        )
    };
    let is_tcp = kind == SOCK_STREAM && protocol == IPPROTO_TCP;
    if slot != 0 && (is_tcp || !is_revoked(policy, revoked::NET)) {
        return ALLOWED;
    }
    let refusal = Refusal {
        op: op::SOCKET,
        because: revoked::NET,
        detail: [
            u64::from(family) << 32 | u64::from(protocol & 0xffff) << 16,
            0,
            0,
        ],
    };
    refuse(slot, Actor::Current, refusal);
    REFUSED
}
