//! What the scheduler does with agents' tasks: time on a processor, time in a run queue, time off by reason, switches, wake-ups,
//! migrations.
//!
//! BTF tracepoints, attached once for the whole host. A task that is in no agent's cgroup costs a few loads. The four programs need no
//! lock among themselves: a task's [`Spell`] is written by whoever has the task (its run queue's lock, or it runs here), a
//! [`Seat`] by its processor, and a [`Sched`] row as that table's documentation says.

use crate::agent::{MMAPABLE, add, agent_level, slot_of};
use agentd_ebpf_common::sched::{
    BUCKETS, SCHED_ROWS, SEATS as SEATS_LEN, SPELLS as SPELLS_LEN, STRIPES, Sched, Seat, Spell,
    bucket, doing, off,
};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::{btf_map, btf_tracepoint};
use aya_ebpf::programs::BtfTracePointContext;

#[btf_map]
pub static SCHED: Array<Sched, SCHED_ROWS, MMAPABLE> = Array::new();
#[btf_map]
pub static SEATS: Array<Seat, SEATS_LEN, MMAPABLE> = Array::new();
#[btf_map]
static SPELLS: Array<Spell, SPELLS_LEN, 0> = Array::new();

/// Declares what the loader looks up in the kernel's own type information: bytes (`OFFSET_`) or bits (`BIT_`) from the beginning of a
/// structure to a field.
macro_rules! looked_up {
    ($($name:ident),*) => { $(
        #[unsafe(no_mangle)]
        pub static $name: u32 = 0;
    )* };
}

looked_up!(
    OFFSET_TASK_PID,
    OFFSET_TASK_CGROUPS,
    OFFSET_CSS_SET_DFL_CGRP,
    OFFSET_CGROUP_LEVEL,
    OFFSET_CGROUP_KN,
    OFFSET_CGROUP_ANCESTORS,
    OFFSET_KERNFS_NODE_ID,
    BIT_TASK_IN_IOWAIT,
    BIT_TASK_FROZEN
);

/// 0 where every processor has a stripe of its own, as the loader knows.
#[unsafe(no_mangle)]
static SCHED_SHARED: u32 = 1;

/// What a static says that the loader has written and the kernel has frozen: a constant to the verifier, which drops dead branches.
#[inline(always)]
pub fn constant(place: &'static u32) -> u32 {
    // SAFETY: a static of this object; volatile, or the compiler would take the value from here.
    unsafe { core::ptr::read_volatile(place) }
}

/// Reads a field of a kernel structure.
///
/// # Safety
/// `base` came from the kernel as a pointer to the structure that `offset` was looked up in. (The verifier holds us to that.)
#[inline(always)]
pub unsafe fn field<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: as the caller promises; the kernel answers a fault with zero.
    unsafe { core::ptr::read_volatile(base.add(offset as usize).cast::<T>()) }
}

/// Reads a bit field of one bit.
///
/// # Safety
/// As [`field`].
#[inline(always)]
unsafe fn bit(base: *const u8, offset_bits: u32) -> bool {
    // SAFETY: as the caller promises.
    let byte: u8 = unsafe { field(base, offset_bits / 8) };
    byte >> (offset_bits % 8) & 1 != 0
}

#[inline(always)]
fn pid_of(task: *const u8) -> u32 {
    // SAFETY: every `task` in this file is a tracepoint's argument.
    unsafe { field(task, constant(&OFFSET_TASK_PID)) }
}

/// The slot of the agent that a task belongs to; 0 if none.
#[inline(always)]
pub fn slot_of_task(task: *const u8) -> u32 {
    // SAFETY: as the types of the fields say, from task to css_set to cgroup.
    unsafe {
        let set: *const u8 = field(task, constant(&OFFSET_TASK_CGROUPS));
        if set.is_null() {
            return 0;
        }
        let mut cgroup: *const u8 = field(set, constant(&OFFSET_CSS_SET_DFL_CGRP));
        if cgroup.is_null() {
            return 0;
        }
        let wanted = agent_level() as u32;
        let level: u32 = field(cgroup, constant(&OFFSET_CGROUP_LEVEL));
        if level < wanted {
            return 0;
        }
        if level == wanted {
            let node: *const u8 = field(cgroup, constant(&OFFSET_CGROUP_KN));
            if node.is_null() {
                return 0;
            }
            return slot_of(field(node, constant(&OFFSET_KERNFS_NODE_ID)));
        }
        // A cgroup that the agent made. The verifier can't follow an array of pointers without a length, so these are copies.
        let ancestor = cgroup
            .add(constant(&OFFSET_CGROUP_ANCESTORS) as usize)
            .cast::<*const u8>()
            .add(wanted as usize);
        let Ok(found) = bpf_probe_read_kernel(ancestor) else {
            return 0;
        };
        cgroup = found;
        let Ok(node) = bpf_probe_read_kernel(
            cgroup
                .add(constant(&OFFSET_CGROUP_KN) as usize)
                .cast::<*const u8>(),
        ) else {
            return 0;
        };
        let Ok(id) = bpf_probe_read_kernel(
            node.add(constant(&OFFSET_KERNFS_NODE_ID) as usize)
                .cast::<u64>(),
        ) else {
            return 0;
        };
        slot_of(id)
    }
}

#[inline(always)]
fn row_of(slot: u32, cpu: u32) -> Option<*mut Sched> {
    SCHED.get_ptr_mut(slot * STRIPES + (cpu & (STRIPES - 1)))
}

/// Adds to a count of a row.
///
/// # Safety
/// `count` is in a row of [`SCHED`] of this processor's stripe.
#[inline(always)]
unsafe fn count(count: *mut u64, by: u64) {
    if constant(&SCHED_SHARED) == 0 {
        // SAFETY: as the caller promises; nobody else writes this stripe while interrupts are off here.
        unsafe { core::ptr::write_volatile(count, core::ptr::read_volatile(count) + by) };
    } else {
        // SAFETY: as the caller promises.
        unsafe { add(count, by) };
    }
}

#[inline(always)]
fn spell_of(pid: u32) -> Option<*mut Spell> {
    SPELLS.get_ptr_mut(pid & (SPELLS_LEN as u32 - 1))
}

/// `TASK_*` of `include/linux/sched.h`: their values are in every kernel since 5.0.
mod state {
    pub const INTERRUPTIBLE: u64 = 1;
    pub const UNINTERRUPTIBLE: u64 = 2;
    pub const STOPPED: u64 = 4;
    pub const TRACED: u64 = 8;
    pub const DEAD: u64 = 0x80;
}

#[inline(always)]
fn why_off(task: *const u8, state: u64) -> u32 {
    // SAFETY: fields of the task.
    let (waits_for_io, frozen) = unsafe {
        (
            bit(task, constant(&BIT_TASK_IN_IOWAIT)),
            bit(task, constant(&BIT_TASK_FROZEN)),
        )
    };
    let why = if waits_for_io {
        off::IO
    } else if state & (state::STOPPED | state::TRACED) != 0 {
        off::STOPPED
    } else if frozen {
        off::FROZEN
    } else if state & state::INTERRUPTIBLE != 0 {
        off::SLEEP
    } else if state & state::UNINTERRUPTIBLE != 0 {
        off::BLOCKED
    } else {
        off::OTHER
    };
    why as u32
}

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(context: BtfTracePointContext) -> i32 {
    let next: *const u8 = context.arg(2);
    let slot = slot_of_task(next);
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u32;
    let Some(seat) = SEATS.get_ptr_mut(cpu) else {
        return 0;
    };
    // SAFETY: this processor's seat, and interrupts are off.
    let left = unsafe { (*seat).slot };
    if slot | left == 0 {
        return 0;
    }
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    if left != 0 {
        // SAFETY: this processor's seat, as above.
        let since = unsafe { (*seat).since_ns };
        leave(&context, left, cpu, since, now);
    }
    // SAFETY: as above; agentd may be reading, and takes `since_ns` for what it is only if `slot` is the same before and after.
    unsafe {
        core::ptr::write_volatile(&raw mut (*seat).slot, 0);
        core::ptr::write_volatile(&raw mut (*seat).since_ns, now);
        core::ptr::write_volatile(&raw mut (*seat).slot, slot);
    }
    if slot != 0 {
        enter(next, slot, cpu, now);
    }
    0
}

/// A task of an agent leaves this processor.
#[inline(always)]
fn leave(context: &BtfTracePointContext, slot: u32, cpu: u32, since: u64, now: u64) {
    let preempted: u64 = context.arg(0);
    let task: *const u8 = context.arg(1);
    let state = u64::from(context.arg::<u32>(3));
    let Some(row) = row_of(slot, cpu) else {
        return;
    };
    let runnable = preempted & 1 != 0 || state == 0;
    // SAFETY: a row of this stripe.
    unsafe {
        count(&raw mut (*row).run_ns, now.saturating_sub(since));
        count(
            if runnable {
                &raw mut (*row).involuntary
            } else {
                &raw mut (*row).voluntary
            },
            1,
        );
    }
    let pid = pid_of(task);
    let Some(spell) = spell_of(pid) else {
        return;
    };
    let begins = if runnable {
        Spell {
            since_ns: now,
            pid,
            doing: doing::WAITS,
        }
    } else if state & state::DEAD != 0 {
        // SAFETY: a row of this stripe.
        unsafe { count(&raw mut (*row).ended, 1) };
        Spell::default()
    } else {
        Spell {
            since_ns: now,
            pid,
            doing: doing::OFF + why_off(task, state),
        }
    };
    // SAFETY: the task is still on its run queue's lock, so nobody else has its spell.
    unsafe { *spell = begins };
}

/// A task of an agent comes on this processor.
#[inline(always)]
fn enter(task: *const u8, slot: u32, cpu: u32, now: u64) {
    let pid = pid_of(task);
    let (Some(row), Some(spell)) = (row_of(slot, cpu), spell_of(pid)) else {
        return;
    };
    // SAFETY: a row of this stripe, and the spell of a task that nobody else has now.
    unsafe {
        let was = *spell;
        if was.pid == pid && was.doing == doing::WAITS {
            let waited = now.saturating_sub(was.since_ns);
            count(&raw mut (*row).wait_ns, waited);
            if waited > (*row).wait_max_ns {
                core::ptr::write_volatile(&raw mut (*row).wait_max_ns, waited);
            }
            let at = bucket(waited) & (BUCKETS - 1);
            count((&raw mut (*row).waits).cast::<u64>().add(at), 1);
        } else {
            count(&raw mut (*row).unseen, 1);
        }
        *spell = Spell {
            since_ns: now,
            pid,
            doing: doing::RUNS,
        };
    }
}

/// The task that a tracepoint names first, if it is an agent's, and the row that this processor counts it in.
#[inline(always)]
fn counted(context: &BtfTracePointContext) -> Option<(*const u8, *mut Sched)> {
    let task: *const u8 = context.arg(0);
    let slot = slot_of_task(task);
    if slot == 0 {
        return None;
    }
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u32;
    Some((task, row_of(slot, cpu)?))
}

/// As [`counted`], with the task's id and spell.
#[inline(always)]
fn woken(context: &BtfTracePointContext) -> Option<(u32, *mut Sched, *mut Spell)> {
    let (task, row) = counted(context)?;
    let pid = pid_of(task);
    Some((pid, row, spell_of(pid)?))
}

#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(context: BtfTracePointContext) -> i32 {
    let Some((pid, row, spell)) = woken(&context) else {
        return 0;
    };
    // SAFETY: a row of this stripe; the spell of a task that its waker has, see the head of this file.
    unsafe {
        count(&raw mut (*row).wakeups, 1);
        let was = *spell;
        if was.pid == pid && was.doing < doing::OFF {
            // It had not left its processor yet, or is in a queue already.
            return 0;
        }
        let now = bpf_ktime_get_ns();
        if was.pid == pid {
            let why = (was.doing - doing::OFF) as usize & (off::PLACES - 1);
            count(
                (&raw mut (*row).off_ns).cast::<u64>().add(why),
                now.saturating_sub(was.since_ns),
            );
        }
        *spell = Spell {
            since_ns: now,
            pid,
            doing: doing::WAITS,
        };
    }
    0
}

#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(context: BtfTracePointContext) -> i32 {
    let Some((pid, row, spell)) = woken(&context) else {
        return 0;
    };
    // SAFETY: a row of this stripe, and the spell of a task that has never run.
    unsafe {
        count(&raw mut (*row).begun, 1);
        *spell = Spell {
            since_ns: bpf_ktime_get_ns(),
            pid,
            doing: doing::WAITS,
        };
    }
    0
}

#[btf_tracepoint(function = "sched_migrate_task")]
pub fn sched_migrate_task(context: BtfTracePointContext) -> i32 {
    if let Some((_, row)) = counted(&context) {
        // SAFETY: a row of this stripe.
        unsafe { count(&raw mut (*row).migrations, 1) };
    }
    0
}
