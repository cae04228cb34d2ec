//! The messages between agentd and agentd-broker: fixed layouts, little-endian, bounded.
//!
//! Every message (`wire.rs`) is a 16-byte header and one fixed-size body, in one SOCK_SEQPACKET
//! record; descriptors travel beside it. A message of any other size, with an unknown kind, or with
//! bytes set that must be zero, is refused whole. There are no strings to parse: the longest
//! variable field is a cgroup path or an error text, sent by the broker only.
//!
//! Pure: no descriptors, no system calls. [`client`](crate::client) moves these messages for
//! agentd; the table of who checks what is in `docs/broker-protocol.md`.

mod wire;

pub use wire::{decode_reply, decode_request, encode_reply, encode_request, request_id};

use agentd_bpf::{Group, Groups, Right, Table};
use std::fmt;

/// First kernel uid and gid of agents; agent n has this plus its slot. Number 0 is agentd's own where no user exists for it.
pub const RESERVED_ID_BASE: u32 = 2_046_820_352;

/// Version of this protocol; [`Request::Hello`] carries it and the broker refuses any other.
pub const VERSION: u32 = 3;
/// No message is longer than this; a receive buffer of this size never truncates.
pub const MAX_MESSAGE: usize = 1024;
/// Most grants in one launch.
pub const MAX_GRANTS: usize = 128;
/// Most agents that one broker holds at a time.
pub const MAX_AGENTS: usize = 4096;
/// Most descriptors that the broker keeps for one agent.
pub const MAX_KEPT: usize = 32;
/// Most descriptors that any message carries: a plan, the status file, the grants.
pub const MAX_FDS: usize = 2 + MAX_GRANTS;
/// Most descriptors in any reply: pidfd, status socket, what was kept.
pub const MAX_REPLY_FDS: usize = 2 + MAX_KEPT;
const _: () = assert!(Table::ALL.len() <= MAX_REPLY_FDS);
/// Longest cgroup path in [`Launched`], bytes.
pub const MAX_CGROUP_PATH: usize = 512;
/// Longest text in [`Failure`], bytes.
pub const MAX_TEXT: usize = 240;

/// Names one agent between its launch and its release. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How much the broker can do, by the user it runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Effective uid 0: one kernel uid per agent, idmapped grants.
    Root,
    /// Any other: a single-id map, grants bind-mounted by the launcher.
    User,
}

/// agentd → broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first message of each connection, once. Descriptors: the read end of agentd's lifeline pipe.
    Hello {
        version: u32,
    },
    /// Descriptors: the sealed plan memfd, the status file (a regular file open for writing), then `grants` grant sockets
    /// in plan order.
    Launch(Launch),
    /// Kills everything in the agent's cgroup (or its init, and so its pid namespace). `Gone` follows.
    Kill(Slot),
    Freeze(Slot),
    Thaw(Slot),
    Stat(Slot),
    /// Frees the slot of an agent that is [`Gone`], and closes what was kept for it; only then can its number be used again.
    Release(Slot),
    /// Descriptors: `count`, which the broker keeps for the slot instead of those it kept before, and hands to the next
    /// agentd with [`Request::Next`].
    Keep {
        slot: Slot,
        count: u32,
    },
    /// Asks for the held agent with the lowest slot above `after`; `None` for the first.
    Next {
        after: Option<Slot>,
    },
    /// Hands an agent of a broker that has died to this one. Descriptors: the init's pidfd, the status socket, then what is
    /// to be kept. The broker verifies what it can of [`Launched`] and takes nothing that decides a right from it.
    Adopt(Launched),
    /// agentd is about to end on purpose and leaves its agents to the next one, for their grace. Everything it sent before
    /// is done when the reply arrives.
    Detach,
    /// What there is of the kernel plane.
    Plane,
    /// Why a group of programs is not there.
    Absent(Group),
    /// What is heard of the kernel's audit.
    Audit,
    /// How many records of any kind the kernel itself has lost since the broker listens to its audit.
    AuditLost,
    /// What an agent may no longer do, at once and in all its processes: [`agentd_bpf::layout::revoked`] bits instead of those
    /// before, and the ports on its loopback that stay reachable without the network (0 for none).
    Restrict {
        slot: Slot,
        revoked: u32,
        kept_ports: [u16; 8],
    },
    /// Lets one agent put frames into the queue of another by the direct path, or no longer. The
    /// right ends with either of them. Both are named by their
    /// [addresses](agentd_bpf::layout::route::address), so that it is never given to the next agent
    /// of a slot.
    Route {
        from: u64,
        to: u64,
        right: Right,
    },
    /// Other limits for the cgroup of an agent that runs, instead of all those before.
    Limit {
        slot: Slot,
        limits: Limits,
    },
    /// Kill all agents, clean up, exit. No reply: the socket reaches end of file.
    Shutdown,
}

/// What an agent's cgroup is held to; 0 is no limit. Names of files are those of cgroup2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `memory.max`, swap included.
    pub memory_max_bytes: u64,
    /// `pids.max`.
    pub pids_max: u64,
    /// `cpu.max`; both are 0, or neither is.
    pub cpu_quota_us: u64,
    pub cpu_period_us: u64,
}

/// The fixed part of a launch; everything else is in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Bytes of plan in the memfd.
    pub plan_len: u32,
    /// Grant sockets that follow the plan.
    pub grants: u32,
    /// On whose behalf, for the record, when there is no grant to attest it. Gives no right.
    pub caller_uid: u32,
    pub caller_gid: u32,
}

/// broker → agentd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`Request::Hello`].
    Welcome(Welcome),
    /// To [`Request::Launch`]. Descriptors: the init's pidfd, then agentd's end of the status socket.
    Launched(Launched),
    /// To kill, freeze, thaw, restrict, limit, route, release, keep, adopt and detach; to
    /// [`Request::Next`] when there is no further agent.
    Done,
    /// To [`Request::Stat`].
    Stats(Stats),
    /// To [`Request::Next`]. Descriptors: the init's pidfd, the status socket, then what is kept.
    Held(Held),
    /// To [`Request::Plane`]. Descriptors: those of `tables`, in the order of [`Table::handed_over`].
    Plane(Plane),
    /// To [`Request::Absent`]; empty if the group is there. To [`Request::Audit`] where nothing is heard of it; otherwise
    /// that is [`Reply::Done`] with a descriptor: a socket on which Landlock's records arrive.
    Reason(String),
    /// To [`Request::AuditLost`].
    Count(u64),
    /// To any request that was refused or failed.
    Failed(Failure),
    /// Not a reply (request id 0): an agent's init was reaped and its cgroup removed.
    Gone(Gone),
}

/// What this broker is and can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub version: u32,
    pub mode: Mode,
    pub pid: i32,
    /// Which cgroup features are usable for agents.
    pub cgroups: CgroupFeatures,
    /// How many agents [`Request::Next`] will tell of: those of an agentd that has gone.
    pub held: u32,
}

/// What the broker can do with agents' cgroups on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupFeatures {
    pub memory: bool,
    pub pids: bool,
    pub cpu: bool,
    /// `cgroup.kill`, `cgroup.freeze` and a cgroup id.
    pub unified: bool,
}

impl CgroupFeatures {
    fn to_bits(self) -> u32 {
        u32::from(self.memory)
            | u32::from(self.pids) << 1
            | u32::from(self.cpu) << 2
            | u32::from(self.unified) << 3
    }

    fn from_bits(bits: u32) -> Self {
        Self {
            memory: bits & 1 != 0,
            pids: bits & 2 != 0,
            cpu: bits & 4 != 0,
            unified: bits & 8 != 0,
        }
    }
}

/// A started agent. Its launcher reports on the status socket from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    pub slot: Slot,
    /// The init's pid as the broker sees it.
    pub pid: i32,
    /// How long it outlives agentd or the broker, as its plan says.
    pub grace_ms: u32,
    /// Kernel ids of the agent's processes.
    pub host_uid: u32,
    pub host_gid: u32,
    /// Who gave the grants, attested by the kernel; without grants, what the request said.
    pub caller_uid: u32,
    pub caller_gid: u32,
    /// `launch::plan` layers that the broker itself put in place (ids, namespaces, idmap, cgroup limits).
    pub layers: u64,
    /// Id of the agent's cgroup2 directory for eBPF; 0 without one.
    pub cgroup_id: u64,
    /// The agent's cgroup2 directory as an absolute path, empty without one.
    pub cgroup_path: Vec<u8>,
}

/// One agent that the broker holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub info: Launched,
    pub state: HeldState,
    /// Descriptors that follow the first two.
    pub kept: u32,
}

/// What became of a held agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldState {
    Running,
    /// As [`Gone`] said, or would have said had anybody listened.
    Gone {
        wait_status: Option<i32>,
        stats: Stats,
    },
}

/// The kernel plane as agentd gets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plane {
    /// Version of the tables' layout ([`agentd_bpf::layout::LAYOUT`]); 0 where there is no plane.
    pub layout: u32,
    pub groups: Groups,
    /// [`Table::bit`]s of the tables whose descriptors come with this.
    pub tables: u32,
}

/// Observed use of one agent's cgroup. A value that this host can't give is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_usage_us: Option<u64>,
    pub memory_current: Option<u64>,
    pub memory_peak: Option<u64>,
    pub pids_current: Option<u64>,
    /// Processes killed because the memory limit was reached.
    pub oom_kills: Option<u64>,
}

/// An agent whose whole tree is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    pub slot: Slot,
    pub pid: i32,
    /// The init's wait status as `wait(2)` encodes it; unknown for an adopted agent where the kernel tells it to the
    /// parent only (`PIDFD_GET_INFO` tells of exits since Linux 6.15).
    pub wait_status: Option<i32>,
    /// Last figures before the cgroup was removed.
    pub stats: Stats,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code})")]
pub struct Failure {
    pub code: ErrorCode,
    /// The failing call's errno, or 0.
    pub errno: i32,
    /// What failed, why, and what would be allowed; at most [`MAX_TEXT`] bytes.
    pub text: String,
}

/// Classes of [`Failure`]; stable numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// The message could not be understood: size, magic, kind, reserved bytes, number of descriptors.
    Malformed = 1,
    /// A version that this broker does not speak.
    Version = 2,
    /// Anything before Hello, or Hello twice.
    OutOfOrder = 3,
    /// No such slot, or not in a state that allows this.
    NoSuchSlot = 4,
    /// All slots are taken.
    TooMany = 5,
    /// The plan's memfd is not a sealed memfd of the stated size.
    PlanFile = 6,
    /// The plan does not parse.
    Plan = 7,
    /// The plan breaks a rule of the floor.
    Floor = 8,
    /// A grant is malformed, spent, unattested, for another path than planned, or of mixed or wrong owners.
    Grant = 9,
    /// A granted object can't be mounted with ids mapped or access reduced.
    Mount = 10,
    /// The plan requires cgroup limits that this host can't give.
    CgroupLimits = 11,
    /// A cgroup operation failed.
    Cgroup = 12,
    /// The process could not be made (namespaces, maps, descriptors).
    Spawn = 13,
    /// This host can't do that.
    Unsupported = 14,
    /// The broker is shutting down.
    ShuttingDown = 15,
    /// An agent handed over by [`Request::Adopt`] is not what it is said to be.
    Adopt = 16,
    /// A name that the plan wants kept, and that nothing has yet, can't be.
    Placeholder = 17,
}

impl ErrorCode {
    fn from_raw(raw: u16) -> Option<Self> {
        use ErrorCode::*;
        [
            Malformed,
            Version,
            OutOfOrder,
            NoSuchSlot,
            TooMany,
            PlanFile,
            Plan,
            Floor,
            Grant,
            Mount,
            CgroupLimits,
            Cgroup,
            Spawn,
            Unsupported,
            ShuttingDown,
            Adopt,
            Placeholder,
        ]
        .into_iter()
        .find(|code| *code as u16 == raw)
    }

    /// A word for logs and error texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::OutOfOrder => "out-of-order",
            Self::NoSuchSlot => "no-such-slot",
            Self::TooMany => "too-many",
            Self::PlanFile => "plan-file",
            Self::Plan => "plan",
            Self::Floor => "floor",
            Self::Grant => "grant",
            Self::Mount => "mount",
            Self::CgroupLimits => "cgroup-limits",
            Self::Cgroup => "cgroup",
            Self::Spawn => "spawn",
            Self::Unsupported => "unsupported",
            Self::ShuttingDown => "shutting-down",
            Self::Adopt => "adopt",
            Self::Placeholder => "placeholder",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{len} bytes do not begin with a message header")]
    Header { len: usize },
    #[error("wrong magic or reserved bytes set in the header")]
    Magic,
    #[error("unknown message kind {kind}")]
    Kind { kind: u16 },
    #[error("a message of kind {kind} has {expected} bytes, not {len}")]
    Size {
        kind: u16,
        expected: usize,
        len: usize,
    },
    #[error("field {field} of kind {kind} is out of range")]
    Field { kind: u16, field: &'static str },
}
