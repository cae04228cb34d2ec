//! Which agent a hook is about: from the cgroup at the agents' level to the slot, through the directory.

use agentd_ebpf_common::{
    Counters, DENIALS_LEN, DIRECTORY_LEN, DIRECTORY_PROBES, Place, Policy, ROWS,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::{Array, RingBuf};
use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SkBuffContext;

/// `BPF_F_MMAPABLE`.
pub const MMAPABLE: usize = 1 << 10;

#[btf_map]
pub static DIRECTORY: Array<Place, DIRECTORY_LEN, MMAPABLE> = Array::new();
#[btf_map]
pub static POLICY: Array<Policy, ROWS, MMAPABLE> = Array::new();
#[btf_map]
pub static COUNTERS: Array<Counters, ROWS, MMAPABLE> = Array::new();
#[btf_map]
pub static DENIALS: RingBuf<(), { DENIALS_LEN as usize }> = RingBuf::new();

/// How deep agents' cgroups are below the root of the hierarchy. Written by the loader before the object is loaded.
#[unsafe(no_mangle)]
static AGENT_LEVEL: u32 = 0;

/// The slot of the current task; 0 if its cgroup is in no directory.
#[inline(always)]
pub fn current_slot() -> u32 {
    // SAFETY: the helper takes no pointer.
    slot_of(unsafe { bpf_get_current_ancestor_cgroup_id(agent_level()) })
}

/// The slot of the socket that a packet comes from or goes to; 0 if its cgroup is in no directory.
#[inline(always)]
pub fn socket_slot(packet: &SkBuffContext) -> u32 {
    // SAFETY: the context that the kernel gave to this program.
    slot_of(unsafe { bpf_skb_ancestor_cgroup_id(packet.as_ptr().cast(), agent_level()) })
}

#[inline(always)]
pub fn agent_level() -> i32 {
    // SAFETY: a read of a static that the loader has written and the kernel has frozen; volatile, or its value would be taken from here.
    unsafe { core::ptr::read_volatile(&raw const AGENT_LEVEL) as i32 }
}

#[inline(always)]
pub fn slot_of(cgroup_id: u64) -> u32 {
    let home = Place::home(cgroup_id);
    for step in 0..DIRECTORY_PROBES {
        let Some(place) = DIRECTORY.get((home + step) & (DIRECTORY_LEN as u32 - 1)) else {
            return 0;
        };
        // SAFETY: the place is in a map; the broker may be writing it, and an aligned word is read whole.
        let found = unsafe { core::ptr::read_volatile(&raw const place.cgroup_id) };
        if found == cgroup_id {
            // SAFETY: as above; the slot was written before the id.
            return unsafe { core::ptr::read_volatile(&raw const place.slot) };
        }
        if found == 0 {
            break;
        }
    }
    0
}

/// Adds to a counter that other processors add to at the same time. (The target has no `fetch_add` of `core::sync::atomic`.)
///
/// # Safety
/// `counter` points into a map's value and is aligned to eight.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, by: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            counter, by,
        )
    };
}
