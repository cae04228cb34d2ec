//! What every program of live control shares: the agent's row, whether a bit is set in it, which ports stay, and how a refusal
//! is counted and told.
//!
//! A row is read once for each hook: a change takes effect with the next call or packet. Telling never decides: with the ring full
//! the refusal stands and is counted as lost.

use crate::agent::{COUNTERS, DENIALS, POLICY, add};
use agentd_ebpf_common::{Counters, Denial, Policy};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns};
use core::mem::MaybeUninit;

/// Who does what is refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The current task: a system call.
    Current,
    /// Nobody in particular: a packet, maybe in an interrupt.
    Packet,
}

/// What was refused, for the ring.
#[derive(Clone, Copy)]
pub struct Refusal {
    /// A value of `agentd_ebpf_common::op`.
    pub op: u32,
    /// The bit of `revoked` that did it; 0 for what no agent may ever do.
    pub because: u32,
    pub detail: [u64; 3],
}

#[inline(always)]
pub fn policy(slot: u32) -> Option<&'static Policy> {
    POLICY.get(slot)
}

/// Whether the agent has lost this.
#[inline(always)]
pub fn is_revoked(policy: &Policy, bit: u32) -> bool {
    // SAFETY: in a map; the broker may be writing it, and an aligned word is read whole.
    unsafe { core::ptr::read_volatile(&raw const policy.revoked) & bit != 0 }
}

/// Whether `port` is one of agentd's own that stay reachable. Port 0 never is.
#[inline(always)]
pub fn is_kept(policy: &Policy, port: u16) -> bool {
    let mut kept = false;
    for index in 0..policy.kept_ports.len() {
        // SAFETY: as in `is_revoked`; the index is within the array.
        let one = unsafe { core::ptr::read_volatile(policy.kept_ports.as_ptr().add(index)) };
        kept |= one == port;
    }
    kept && port != 0
}

#[inline(always)]
pub fn counters(slot: u32) -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(slot)
}

/// Counts a refusal and tells of it. Those of cgroups that are in no directory are counted, and told to nobody.
#[inline(always)]
pub fn refuse(slot: u32, actor: Actor, refusal: Refusal) {
    let Some(counters) = counters(slot) else {
        return;
    };
    // SAFETY: a row of the map, aligned; every writer adds atomically.
    unsafe { add(&raw mut (*counters).denied, 1) };
    if slot == 0 {
        return;
    }
    let Some(mut entry) = DENIALS.reserve_untyped::<Denial>(0) else {
        // SAFETY: as above.
        unsafe { add(&raw mut (*counters).lost, 1) };
        return;
    };
    let (pid, comm) = match actor {
        Actor::Current => (
            (bpf_get_current_pid_tgid() >> 32) as u32,
            bpf_get_current_comm().unwrap_or_default(),
        ),
        Actor::Packet => (0, [0; 16]),
    };
    let denial = Denial {
        // SAFETY: the helper takes no pointer.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        slot,
        pid,
        op: refusal.op,
        because: refusal.because,
        detail: refusal.detail,
        comm,
    };
    let place: &mut MaybeUninit<Denial> = &mut entry;
    place.write(denial);
    entry.submit(0);
}
