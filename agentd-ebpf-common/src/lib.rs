//! The tables that agentd's eBPF programs share with user space: one source for both sides.
//!
//! Every table is a BPF array with `BPF_F_MMAPABLE` (or a ring buffer): the broker maps them while it starts, and from then on a
//! change of policy is a store to memory. Nobody calls `bpf(2)` after start-up. Who writes what:
//!
//! | table | written by | read by |
//! | --- | --- | --- |
//! | [`Place`] (`DIRECTORY`) | the broker | every program |
//! | [`Policy`] (`POLICY`) | the broker | the programs of live control |
//! | [`Counters`] (`COUNTERS`) | the programs | agentd |
//! | [`Denial`] (`DENIALS`, a ring buffer) | the programs | agentd |
//!
//! Rules: `#[repr(C)]`, no padding, sizes and offsets asserted here, every field an integer (any bytes are a valid value). An
//! agent is named by its broker slot, 1 to [`MAX_SLOT`]; rows are indexed by it, row 0 is of cgroups that are in no directory.
//! A change of any layout is a change of [`LAYOUT`], which is part of the directory that pins are kept in.

#![no_std]
#![forbid(unsafe_code)]

pub mod route;
pub mod sched;

/// Version of everything in this crate. A broker adopts pinned maps only of its own.
pub const LAYOUT: u32 = 2;

/// The highest slot of an agent (`agentd_broker::protocol::MAX_AGENTS`).
pub const MAX_SLOT: u32 = 4096;
/// Rows of a table with one row for each slot.
pub const ROWS: usize = MAX_SLOT as usize + 1;

/// Places in the directory: twice as many as agents, so that runs stay short. A power of two.
pub const DIRECTORY_LEN: usize = 8192;
/// An agent's place is at most this many after the one that its cgroup id points to.
pub const DIRECTORY_PROBES: u32 = 32;

/// One place of the directory from cgroup ids to slots: open addressing, linear, [`DIRECTORY_PROBES`] long.
///
/// The broker writes `slot` first and `cgroup_id` last (release); to free a place it stores [`Place::FREED`], which ends no search.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Id of the agent's cgroup2 directory; 0 where nothing has ever been.
    pub cgroup_id: u64,
    pub slot: u32,
    pub _zero: u32,
}

impl Place {
    /// Marks a place that somebody had. No cgroup has this id: inode numbers begin with the root's, which is no agent's.
    pub const FREED: u64 = u64::MAX;

    /// Where the search for `cgroup_id` begins. Ids of neighbours differ in their low bits, so they spread by themselves.
    #[inline(always)]
    pub const fn home(cgroup_id: u64) -> u32 {
        cgroup_id as u32 & (DIRECTORY_LEN as u32 - 1)
    }
}

/// What one agent may no longer do. All zero: everything that its sandbox allows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// A set of [`revoked`] bits.
    pub revoked: u32,
    pub _zero: u32,
    /// Ports of agentd's own listeners on the sandbox's loopback that stay reachable without the network (model gateway, bus,
    /// tools); host byte order, 0 for none.
    pub kept_ports: [u16; 8],
}

/// Bits of [`Policy::revoked`].
pub mod revoked {
    /// No IP but to the kept ports: no socket, bind, connect or datagram, and packets of what is open are dropped.
    pub const NET: u32 = 1;
    /// No `execve`. Held by BPF LSM alone.
    pub const EXEC: u32 = 1 << 1;
    /// No file opened for writing, made, removed or renamed. Held by BPF LSM alone.
    pub const WRITE: u32 = 1 << 2;
    pub const ALL: u32 = NET | EXEC | WRITE;
}

/// What the programs counted for one agent since its launch. Each field only grows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets_in: u64,
    pub packets_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Refused calls and dropped packets.
    pub denied: u64,
    /// Denials that found the ring full: they were refused all the same, and nobody was told.
    pub lost: u64,
    pub _zero: [u64; 2],
}

/// Bytes of the denials' ring buffer: a power of two and whole pages.
pub const DENIALS_LEN: u32 = 1 << 20;

/// One refusal, as it goes through the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Denial {
    /// `CLOCK_BOOTTIME`, ns.
    pub time_ns: u64,
    pub slot: u32,
    /// Kernel pid of the process (`tgid`), in the initial pid namespace.
    pub pid: u32,
    /// A value of [`op`].
    pub op: u32,
    /// The bit of [`revoked`] that refused, or 0 for a rule that is not live control's.
    pub because: u32,
    /// By operation: address family and port (network), device and inode (files). See [`op`].
    pub detail: [u64; 3],
    /// `comm` of the task.
    pub comm: [u8; 16],
}

/// What was refused: [`Denial::op`], and what [`Denial::detail`] then is.
///
/// Network: `[family << 32 | protocol << 16 | port (host order), address high, address low]`, an IPv4 address in the low 32 bits.
/// Files and programs: `[st_dev, inode, flags]`.
pub mod op {
    pub const CONNECT: u32 = 1;
    pub const SENDMSG: u32 = 2;
    pub const BIND: u32 = 3;
    pub const SOCKET: u32 = 4;
    pub const PACKET_IN: u32 = 5;
    pub const PACKET_OUT: u32 = 6;
    pub const EXEC: u32 = 16;
    pub const OPEN: u32 = 17;
    pub const PTRACE: u32 = 18;
    pub const UNIX_CONNECT: u32 = 19;
    pub const USERNS: u32 = 20;
    pub const BPF: u32 = 21;
    /// A name made, removed or moved, or an inode's mode, size, owner or attributes changed.
    pub const CHANGE: u32 = 22;
}

const _: () = {
    assert!(size_of::<Place>() == 16);
    assert!(size_of::<Policy>() == 24);
    assert!(size_of::<Counters>() == 64);
    assert!(size_of::<Denial>() == 64);
    assert!(DIRECTORY_LEN.is_power_of_two());
    assert!(DENIALS_LEN.is_power_of_two());
};
