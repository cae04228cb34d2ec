//! The messages between agentd and agentd-broker: fixed layouts, little-endian, bounded.
//!
//! Every message is a 16-byte header and one fixed-size body, in one SOCK_SEQPACKET record; descriptors travel beside it.
//! A message of any other size, with an unknown kind, or with bytes set that must be zero, is refused whole. There are no
//! strings to parse: the longest variable field is a cgroup path or an error text, sent by the broker only.
//!
//! Pure: no descriptors, no system calls. [`client`](crate::client) moves these messages for agentd; the table of who
//! checks what is in `docs/broker-protocol.md`.

use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First kernel uid and gid of agents; agent n has this plus its slot. Number 0 is agentd's own where no user exists for it.
pub const RESERVED_ID_BASE: u32 = 2_046_820_352;

/// Version of this protocol; [`Request::Hello`] carries it and the broker refuses any other.
pub const VERSION: u32 = 2;
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
/// Longest cgroup path in [`Launched`], bytes.
pub const MAX_CGROUP_PATH: usize = 512;
/// Longest text in [`Failure`], bytes.
pub const MAX_TEXT: usize = 240;

const MAGIC: [u8; 4] = *b"AGBK";

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
    /// Kill all agents, clean up, exit. No reply: the socket reaches end of file.
    Shutdown,
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
    /// To kill, freeze, thaw, release, keep, adopt and detach; to [`Request::Next`] when there is no further agent.
    Done,
    /// To [`Request::Stat`].
    Stats(Stats),
    /// To [`Request::Next`]. Descriptors: the init's pidfd, the status socket, then what is kept.
    Held(Held),
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

/// Kinds on the wire. Requests are below 100.
mod kind {
    pub const HELLO: u16 = 1;
    pub const LAUNCH: u16 = 2;
    pub const KILL: u16 = 3;
    pub const FREEZE: u16 = 4;
    pub const THAW: u16 = 5;
    pub const STAT: u16 = 6;
    pub const RELEASE: u16 = 7;
    pub const SHUTDOWN: u16 = 8;
    pub const KEEP: u16 = 9;
    pub const NEXT: u16 = 10;
    pub const ADOPT: u16 = 11;
    pub const DETACH: u16 = 12;
    pub const WELCOME: u16 = 101;
    pub const LAUNCHED: u16 = 102;
    pub const DONE: u16 = 103;
    pub const STATS: u16 = 104;
    pub const FAILED: u16 = 105;
    pub const GONE: u16 = 106;
    pub const HELD: u16 = 107;
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    kind: u16,
    reserved: u16,
    request: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct HelloBody {
    version: u32,
    reserved: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LaunchBody {
    plan_len: u32,
    grants: u32,
    caller_uid: u32,
    caller_gid: u32,
    flags: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SlotBody {
    slot: u32,
    reserved: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct KeepBody {
    slot: u32,
    count: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct WelcomeBody {
    version: u32,
    mode: u32,
    pid: i32,
    cgroups: u32,
    held: u32,
    reserved: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LaunchedBody {
    slot: u32,
    pid: i32,
    host_uid: u32,
    host_gid: u32,
    caller_uid: u32,
    caller_gid: u32,
    layers: u64,
    cgroup_id: u64,
    grace_ms: u32,
    path_len: u32,
    path: [u8; MAX_CGROUP_PATH],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct StatsBody {
    /// Bit n: the n-th value below is known.
    known: u64,
    values: [u64; 5],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct FailedBody {
    code: u16,
    text_len: u16,
    errno: i32,
    text: [u8; MAX_TEXT],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct GoneBody {
    slot: u32,
    pid: i32,
    end: EndBody,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct EndBody {
    wait_status: i32,
    /// 1: the wait status is known.
    known: u32,
    stats: StatsBody,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct HeldBody {
    info: LaunchedBody,
    /// 0: running, and `end` is zero. 1: gone.
    state: u32,
    kept: u32,
    end: EndBody,
}

const _: () = assert!(size_of::<Header>() == 16);
const _: () = assert!(size_of::<LaunchBody>() == 24);
const _: () = assert!(size_of::<LaunchedBody>() == 48 + MAX_CGROUP_PATH);
const _: () = assert!(size_of::<FailedBody>() == 8 + MAX_TEXT);
const _: () = assert!(size_of::<GoneBody>() == 64);
const _: () = assert!(size_of::<Header>() + size_of::<HeldBody>() <= MAX_MESSAGE);
const _: () = assert!(
    cfg!(target_endian = "little"),
    "the layouts above are the wire form on little-endian machines"
);

/// Header and body as bytes.
fn message<B: IntoBytes + Immutable>(request: u64, kind: u16, body: B) -> Vec<u8> {
    let header = Header {
        magic: MAGIC,
        kind,
        reserved: 0,
        request,
    };
    [header.as_bytes(), body.as_bytes()].concat()
}

fn split(bytes: &[u8]) -> Result<(Header, &[u8]), DecodeError> {
    let (header, body) =
        Header::read_from_prefix(bytes).map_err(|_| DecodeError::Header { len: bytes.len() })?;
    if header.magic != MAGIC || header.reserved != 0 {
        return Err(DecodeError::Magic);
    }
    Ok((header, body))
}

fn body<B: FromBytes>(kind: u16, bytes: &[u8]) -> Result<B, DecodeError> {
    B::read_from_bytes(bytes).map_err(|_| DecodeError::Size {
        kind,
        expected: size_of::<Header>() + size_of::<B>(),
        len: size_of::<Header>() + bytes.len(),
    })
}

fn empty(kind: u16, bytes: &[u8]) -> Result<(), DecodeError> {
    body::<[u8; 0]>(kind, bytes).map(|_| ())
}

fn check(holds: bool, kind: u16, field: &'static str) -> Result<(), DecodeError> {
    if holds {
        Ok(())
    } else {
        Err(DecodeError::Field { kind, field })
    }
}

fn slot_body(kind: u16, bytes: &[u8]) -> Result<Slot, DecodeError> {
    let body: SlotBody = body(kind, bytes)?;
    check(body.reserved == 0, kind, "reserved")?;
    Ok(Slot(body.slot))
}

impl LaunchedBody {
    fn new(info: &Launched) -> Self {
        let (path, path_len) = field(&info.cgroup_path);
        Self {
            slot: info.slot.0,
            pid: info.pid,
            host_uid: info.host_uid,
            host_gid: info.host_gid,
            caller_uid: info.caller_uid,
            caller_gid: info.caller_gid,
            layers: info.layers,
            cgroup_id: info.cgroup_id,
            grace_ms: info.grace_ms,
            path_len: path_len as u32,
            path,
        }
    }

    /// What is behind the path must be zero: every message has one encoding.
    fn info(&self, kind: u16) -> Result<Launched, DecodeError> {
        let path = self.path.split_at_checked(self.path_len as usize);
        let path = path.filter(|(_, rest)| rest.iter().all(|byte| *byte == 0));
        let field = "path";
        let (path, _) = path.ok_or(DecodeError::Field { kind, field })?;
        Ok(Launched {
            slot: Slot(self.slot),
            pid: self.pid,
            grace_ms: self.grace_ms,
            host_uid: self.host_uid,
            host_gid: self.host_gid,
            caller_uid: self.caller_uid,
            caller_gid: self.caller_gid,
            layers: self.layers,
            cgroup_id: self.cgroup_id,
            cgroup_path: path.to_vec(),
        })
    }
}

impl EndBody {
    fn new(wait_status: Option<i32>, stats: Stats) -> Self {
        Self {
            wait_status: wait_status.unwrap_or_default(),
            known: wait_status.is_some().into(),
            stats: encode_stats(stats),
        }
    }

    fn end(&self) -> (Option<i32>, Stats) {
        let wait_status = (self.known == 1).then_some(self.wait_status);
        (wait_status, decode_stats(&self.stats))
    }
}

/// The bytes of a request. `request` comes back in the reply; 0 is reserved for events.
pub fn encode_request(request: u64, message_: &Request) -> Vec<u8> {
    let slot = |kind, slot: Slot| {
        message(
            request,
            kind,
            SlotBody {
                slot: slot.0,
                reserved: 0,
            },
        )
    };
    match message_ {
        &Request::Hello { version } => message(
            request,
            kind::HELLO,
            HelloBody {
                version,
                reserved: 0,
            },
        ),
        &Request::Launch(Launch {
            plan_len,
            grants,
            caller_uid,
            caller_gid,
        }) => {
            let body = LaunchBody {
                plan_len,
                grants,
                caller_uid,
                caller_gid,
                flags: 0,
            };
            message(request, kind::LAUNCH, body)
        }
        &Request::Kill(number) => slot(kind::KILL, number),
        &Request::Freeze(number) => slot(kind::FREEZE, number),
        &Request::Thaw(number) => slot(kind::THAW, number),
        &Request::Stat(number) => slot(kind::STAT, number),
        &Request::Release(number) => slot(kind::RELEASE, number),
        Request::Shutdown => message(request, kind::SHUTDOWN, [0u8; 0]),
        &Request::Keep { slot, count } => {
            let slot = slot.0;
            message(request, kind::KEEP, KeepBody { slot, count })
        }
        &Request::Next { after } => slot(kind::NEXT, after.unwrap_or(Slot(0))),
        Request::Adopt(info) => message(request, kind::ADOPT, LaunchedBody::new(info)),
        Request::Detach => message(request, kind::DETACH, [0u8; 0]),
    }
}

/// The request id of a message that may be malformed otherwise, so that the refusal can name it; 0 if unreadable.
pub fn request_id(bytes: &[u8]) -> u64 {
    split(bytes).map_or(0, |(header, _)| header.request)
}

/// Parses a request. Untrusted bytes: anything unexpected is refused.
pub fn decode_request(bytes: &[u8]) -> Result<(u64, Request), DecodeError> {
    let (header, rest) = split(bytes)?;
    let kind = header.kind;
    let request = match kind {
        kind::HELLO => {
            let hello: HelloBody = body(kind, rest)?;
            check(hello.reserved == 0, kind, "reserved")?;
            Request::Hello {
                version: hello.version,
            }
        }
        kind::LAUNCH => {
            let launch: LaunchBody = body(kind, rest)?;
            check(launch.flags == 0, kind, "flags")?;
            check(launch.grants as usize <= MAX_GRANTS, kind, "grants")?;
            Request::Launch(Launch {
                plan_len: launch.plan_len,
                grants: launch.grants,
                caller_uid: launch.caller_uid,
                caller_gid: launch.caller_gid,
            })
        }
        kind::KILL => Request::Kill(slot_body(kind, rest)?),
        kind::FREEZE => Request::Freeze(slot_body(kind, rest)?),
        kind::THAW => Request::Thaw(slot_body(kind, rest)?),
        kind::STAT => Request::Stat(slot_body(kind, rest)?),
        kind::RELEASE => Request::Release(slot_body(kind, rest)?),
        kind::SHUTDOWN => {
            empty(kind, rest)?;
            Request::Shutdown
        }
        kind::KEEP => {
            let keep: KeepBody = body(kind, rest)?;
            check(keep.count as usize <= MAX_KEPT, kind, "count")?;
            Request::Keep {
                slot: Slot(keep.slot),
                count: keep.count,
            }
        }
        kind::NEXT => {
            let after = slot_body(kind, rest)?;
            Request::Next {
                after: (after != Slot(0)).then_some(after),
            }
        }
        kind::ADOPT => Request::Adopt(body::<LaunchedBody>(kind, rest)?.info(kind)?),
        kind::DETACH => {
            empty(kind, rest)?;
            Request::Detach
        }
        kind => return Err(DecodeError::Kind { kind }),
    };
    Ok((header.request, request))
}

/// The bytes of a reply. Texts and paths longer than their field are cut.
pub fn encode_reply(request: u64, reply: &Reply) -> Vec<u8> {
    match reply {
        Reply::Welcome(welcome) => {
            let body = WelcomeBody {
                version: welcome.version,
                mode: match welcome.mode {
                    Mode::Root => 0,
                    Mode::User => 1,
                },
                pid: welcome.pid,
                cgroups: welcome.cgroups.to_bits(),
                held: welcome.held,
                reserved: 0,
            };
            message(request, kind::WELCOME, body)
        }
        Reply::Launched(info) => message(request, kind::LAUNCHED, LaunchedBody::new(info)),
        Reply::Held(held) => {
            let (state, end) = match held.state {
                HeldState::Running => (0, EndBody::new(None, Stats::default())),
                HeldState::Gone { wait_status, stats } => (1, EndBody::new(wait_status, stats)),
            };
            let body = HeldBody {
                info: LaunchedBody::new(&held.info),
                state,
                kept: held.kept,
                end,
            };
            message(request, kind::HELD, body)
        }
        Reply::Done => message(request, kind::DONE, [0u8; 0]),
        Reply::Stats(stats) => message(request, kind::STATS, encode_stats(*stats)),
        Reply::Failed(failure) => {
            let end = failure.text.floor_char_boundary(MAX_TEXT);
            let (text, text_len) = field(&failure.text.as_bytes()[..end]);
            let body = FailedBody {
                code: failure.code as u16,
                text_len: text_len as u16,
                errno: failure.errno,
                text,
            };
            message(request, kind::FAILED, body)
        }
        Reply::Gone(gone) => {
            let body = GoneBody {
                slot: gone.slot.0,
                pid: gone.pid,
                end: EndBody::new(gone.wait_status, gone.stats),
            };
            message(request, kind::GONE, body)
        }
    }
}

/// Parses a reply or an event (request id 0).
pub fn decode_reply(bytes: &[u8]) -> Result<(u64, Reply), DecodeError> {
    let (header, rest) = split(bytes)?;
    let kind = header.kind;
    let reply = match kind {
        kind::WELCOME => {
            let welcome: WelcomeBody = body(kind, rest)?;
            let mode = match welcome.mode {
                0 => Mode::Root,
                1 => Mode::User,
                _ => {
                    return Err(DecodeError::Field {
                        kind,
                        field: "mode",
                    });
                }
            };
            Reply::Welcome(Welcome {
                version: welcome.version,
                mode,
                pid: welcome.pid,
                cgroups: CgroupFeatures::from_bits(welcome.cgroups),
                held: welcome.held,
            })
        }
        kind::LAUNCHED => {
            let launched: LaunchedBody = body(kind, rest)?;
            Reply::Launched(launched.info(kind)?)
        }
        kind::HELD => {
            let held: HeldBody = body(kind, rest)?;
            let (wait_status, stats) = held.end.end();
            Reply::Held(Held {
                info: held.info.info(kind)?,
                state: match held.state {
                    0 => HeldState::Running,
                    1 => HeldState::Gone { wait_status, stats },
                    _ => {
                        let field = "state";
                        return Err(DecodeError::Field { kind, field });
                    }
                },
                kept: held.kept,
            })
        }
        kind::DONE => {
            empty(kind, rest)?;
            Reply::Done
        }
        kind::STATS => Reply::Stats(decode_stats(&body(kind, rest)?)),
        kind::FAILED => {
            let failed: FailedBody = body(kind, rest)?;
            let code = ErrorCode::from_raw(failed.code).ok_or(DecodeError::Field {
                kind,
                field: "code",
            })?;
            let text = failed.text.get(..failed.text_len as usize);
            let text = text.ok_or(DecodeError::Field {
                kind,
                field: "text",
            })?;
            Reply::Failed(Failure {
                code,
                errno: failed.errno,
                text: String::from_utf8_lossy(text).into_owned(),
            })
        }
        kind::GONE => {
            let gone: GoneBody = body(kind, rest)?;
            let (wait_status, stats) = gone.end.end();
            Reply::Gone(Gone {
                slot: Slot(gone.slot),
                pid: gone.pid,
                wait_status,
                stats,
            })
        }
        kind => return Err(DecodeError::Kind { kind }),
    };
    Ok((header.request, reply))
}

/// `bytes`, cut to N and zero-padded, and how many were kept.
fn field<const N: usize>(bytes: &[u8]) -> ([u8; N], usize) {
    let len = bytes.len().min(N);
    let mut out = [0; N];
    out[..len].copy_from_slice(&bytes[..len]);
    (out, len)
}

fn encode_stats(stats: Stats) -> StatsBody {
    let all = [
        stats.cpu_usage_us,
        stats.memory_current,
        stats.memory_peak,
        stats.pids_current,
        stats.oom_kills,
    ];
    let known = all
        .iter()
        .enumerate()
        .fold(0, |bits, (n, value)| bits | u64::from(value.is_some()) << n);
    StatsBody {
        known,
        values: all.map(Option::unwrap_or_default),
    }
}

fn decode_stats(body: &StatsBody) -> Stats {
    let value = |n: usize| (body.known & 1 << n != 0).then_some(body.values[n]);
    Stats {
        cpu_usage_us: value(0),
        memory_current: value(1),
        memory_peak: value(2),
        pids_current: value(3),
        oom_kills: value(4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn every_request() -> Vec<Request> {
        vec![
            Request::Hello { version: VERSION },
            Request::Launch(Launch {
                plan_len: 4096,
                grants: 3,
                caller_uid: 1000,
                caller_gid: 100,
            }),
            Request::Kill(Slot(1)),
            Request::Freeze(Slot(2)),
            Request::Thaw(Slot(3)),
            Request::Stat(Slot(u32::MAX)),
            Request::Release(Slot(5)),
            Request::Shutdown,
            Request::Keep {
                slot: Slot(6),
                count: MAX_KEPT as u32,
            },
            Request::Next { after: None },
            Request::Next {
                after: Some(Slot(7)),
            },
            Request::Adopt(launched()),
            Request::Detach,
        ]
    }

    fn launched() -> Launched {
        Launched {
            slot: Slot(4),
            pid: 1234,
            grace_ms: 30_000,
            host_uid: 2_046_820_356,
            host_gid: 2_046_820_356,
            caller_uid: 1000,
            caller_gid: 100,
            layers: 0x1ff,
            cgroup_id: 99,
            cgroup_path: b"/sys/fs/cgroup/agentd-1/agent-4".to_vec(),
        }
    }

    fn every_reply() -> Vec<Reply> {
        let stats = Stats {
            cpu_usage_us: Some(5),
            pids_current: Some(0),
            ..Stats::default()
        };
        vec![
            Reply::Welcome(Welcome {
                version: VERSION,
                mode: Mode::User,
                pid: 7,
                cgroups: CgroupFeatures {
                    memory: true,
                    unified: true,
                    ..CgroupFeatures::default()
                },
                held: 3,
            }),
            Reply::Launched(launched()),
            Reply::Held(Held {
                info: launched(),
                state: HeldState::Running,
                kept: 32,
            }),
            Reply::Held(Held {
                info: launched(),
                state: HeldState::Gone {
                    wait_status: Some(0),
                    stats,
                },
                kept: 0,
            }),
            Reply::Gone(Gone {
                slot: Slot(9),
                pid: 1,
                wait_status: None,
                stats,
            }),
            Reply::Done,
            Reply::Stats(stats),
            Reply::Failed(Failure {
                code: ErrorCode::Floor,
                errno: 22,
                text: "no".into(),
            }),
            Reply::Gone(Gone {
                slot: Slot(4),
                pid: 1234,
                wait_status: Some(9),
                stats,
            }),
        ]
    }

    #[test]
    fn requests_and_replies_survive_the_wire() {
        for request in every_request() {
            let bytes = encode_request(42, &request);
            assert!(bytes.len() <= MAX_MESSAGE);
            assert_eq!(decode_request(&bytes), Ok((42, request)));
        }
        for reply in every_reply() {
            let bytes = encode_reply(43, &reply);
            assert!(bytes.len() <= MAX_MESSAGE);
            assert_eq!(decode_reply(&bytes), Ok((43, reply)));
        }
    }

    #[test]
    fn kill_has_these_bytes() {
        assert_eq!(
            encode_request(0x0102, &Request::Kill(Slot(7))),
            b"AGBK\x03\x00\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00"
        );
    }

    #[test]
    fn short_long_and_unknown_messages_are_refused() {
        for request in every_request() {
            let bytes = encode_request(1, &request);
            for end in 0..bytes.len() {
                assert!(
                    decode_request(&bytes[..end]).is_err(),
                    "{request:?} cut to {end}"
                );
            }
            assert!(
                decode_request(&[&bytes[..], &[0]].concat()).is_err(),
                "{request:?} with a byte more"
            );
        }
        for reply in every_reply() {
            assert!(matches!(
                decode_request(&encode_reply(1, &reply)),
                Err(DecodeError::Kind { .. })
            ));
        }
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        let kill = encode_request(1, &Request::Kill(Slot(1)));
        for index in [0, 6, 7, 20, 23] {
            let mut bytes = kill.clone();
            bytes[index] ^= 1;
            assert!(decode_request(&bytes).is_err(), "byte {index}");
        }
    }

    #[test]
    fn too_many_grants_are_refused() {
        let launch = Launch {
            plan_len: 1,
            grants: MAX_GRANTS as u32 + 1,
            caller_uid: 0,
            caller_gid: 0,
        };
        let error = decode_request(&encode_request(1, &Request::Launch(launch)));
        assert_eq!(
            error,
            Err(DecodeError::Field {
                kind: kind::LAUNCH,
                field: "grants"
            })
        );
    }

    #[test]
    fn more_to_keep_than_is_kept_is_refused() {
        let keep = Request::Keep {
            slot: Slot(1),
            count: MAX_KEPT as u32 + 1,
        };
        let (kind, field) = (kind::KEEP, "count");
        let error = decode_request(&encode_request(1, &keep));
        assert_eq!(error, Err(DecodeError::Field { kind, field }));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let text = "é".repeat(MAX_TEXT);
        let failure = Failure {
            code: ErrorCode::Plan,
            errno: 0,
            text,
        };
        let (_, reply) = decode_reply(&encode_reply(1, &Reply::Failed(failure))).expect("decodes");
        let Reply::Failed(failure) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(failure.text, "é".repeat(MAX_TEXT / 2));
    }

    #[test]
    fn error_codes_are_distinct() {
        for raw in 0..=u16::MAX {
            if let Some(code) = ErrorCode::from_raw(raw) {
                assert_eq!(code as u16, raw);
            }
        }
        assert_eq!((0..=u16::MAX).filter_map(ErrorCode::from_raw).count(), 16);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_an_error_or_to_themselves(mut bytes in proptest::collection::vec(any::<u8>(), 0..700), k in 0u16..110, framed: bool) {
            if framed && bytes.len() >= 16 {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4..6].copy_from_slice(&k.to_le_bytes());
                bytes[6..8].fill(0);
            }
            if let Ok((id, request)) = decode_request(&bytes) {
                prop_assert_eq!(encode_request(id, &request), bytes.clone());
            }
            let _decoded_or_refused = decode_reply(&bytes).is_ok();
        }
    }
}
