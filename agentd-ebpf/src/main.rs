//! agentd's eBPF programs, in one object.
//!
//! One file for each kind of program; which agent a hook is about is decided in [`agent`], once. No program allocates, loops
//! without a bound or trusts a packet. Tables and their owners: `agentd-ebpf-common`. Which program belongs
//! to which group and is attached where: `bpf/load/src/groups.rs`. Built by `cargo xtask ebpf`; to add one: `docs/recipes/bpf-program.md`.

#![no_std]
#![no_main]
// Atomic addition has no stable form on this target.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod agent;
mod connect;
mod control;
mod lsm;
mod packets;
mod route;
mod sched;
mod socket;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses an object from which this could be reached.
    loop {}
}

/// The kernel gives some helpers to programs under this licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
