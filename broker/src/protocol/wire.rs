//! The messages' bytes: one fixed layout for each kind, checked whole.
//!
//! Pure. Untrusted input is refused with a [`DecodeError`]: a request, unless it is exactly what encoding would have made of it.

use super::{
    CgroupFeatures, DecodeError, ErrorCode, Failure, Gone, Held, HeldState, Launch, Launched,
    Limits, MAX_CGROUP_PATH, MAX_GRANTS, MAX_KEPT, MAX_MESSAGE, MAX_TEXT, Mode, Plane, Reply,
    Request, Slot, Stats, Welcome,
};
use agentd_bpf::layout::revoked;
use agentd_bpf::{Group, Groups, Right};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const MAGIC: [u8; 4] = *b"AGBK";

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
    pub const PLANE: u16 = 13;
    pub const ABSENT: u16 = 14;
    pub const RESTRICT: u16 = 15;
    pub const ROUTE: u16 = 16;
    pub const AUDIT: u16 = 17;
    pub const AUDIT_LOST: u16 = 18;
    pub const LIMIT: u16 = 19;
    pub const WELCOME: u16 = 101;
    pub const LAUNCHED: u16 = 102;
    pub const DONE: u16 = 103;
    pub const STATS: u16 = 104;
    pub const FAILED: u16 = 105;
    pub const GONE: u16 = 106;
    pub const HELD: u16 = 107;
    pub const PLANE_IS: u16 = 108;
    pub const REASON: u16 = 109;
    pub const COUNT: u16 = 110;
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
struct RestrictBody {
    slot: u32,
    revoked: u32,
    kept_ports: [u16; 8],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RouteBody {
    from: u64,
    to: u64,
    /// 0: no longer, 1: yes.
    right: u32,
    reserved: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LimitBody {
    slot: u32,
    reserved: u32,
    memory_max_bytes: u64,
    pids_max: u64,
    cpu_quota_us: u64,
    cpu_period_us: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct PlaneBody {
    layout: u32,
    groups: u32,
    tables: u32,
    reserved: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ReasonBody {
    text_len: u16,
    reserved: u16,
    text: [u8; MAX_TEXT],
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
        Request::Plane => message(request, kind::PLANE, [0u8; 0]),
        Request::Audit => message(request, kind::AUDIT, [0u8; 0]),
        Request::AuditLost => message(request, kind::AUDIT_LOST, [0u8; 0]),
        &Request::Absent(group) => slot(kind::ABSENT, Slot(group as u32)),
        &Request::Restrict {
            slot,
            revoked,
            kept_ports,
        } => {
            let body = RestrictBody {
                slot: slot.0,
                revoked,
                kept_ports,
            };
            message(request, kind::RESTRICT, body)
        }
        &Request::Route { from, to, right } => {
            let body = RouteBody {
                from,
                to,
                right: u32::from(right == Right::Yes),
                reserved: 0,
            };
            message(request, kind::ROUTE, body)
        }
        &Request::Limit { slot, limits } => {
            let body = LimitBody {
                slot: slot.0,
                reserved: 0,
                memory_max_bytes: limits.memory_max_bytes,
                pids_max: limits.pids_max,
                cpu_quota_us: limits.cpu_quota_us,
                cpu_period_us: limits.cpu_period_us,
            };
            message(request, kind::LIMIT, body)
        }
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
        kind::PLANE => {
            empty(kind, rest)?;
            Request::Plane
        }
        kind::AUDIT => {
            empty(kind, rest)?;
            Request::Audit
        }
        kind::AUDIT_LOST => {
            empty(kind, rest)?;
            Request::AuditLost
        }
        kind::ABSENT => {
            let field = "group";
            let group = Group::from_number(slot_body(kind, rest)?.0);
            Request::Absent(group.ok_or(DecodeError::Field { kind, field })?)
        }
        kind::RESTRICT => {
            let restrict: RestrictBody = body(kind, rest)?;
            check(restrict.revoked & !revoked::ALL == 0, kind, "revoked")?;
            Request::Restrict {
                slot: Slot(restrict.slot),
                revoked: restrict.revoked,
                kept_ports: restrict.kept_ports,
            }
        }
        kind::ROUTE => {
            let route: RouteBody = body(kind, rest)?;
            check(route.reserved == 0, kind, "reserved")?;
            check(route.right <= 1, kind, "right")?;
            Request::Route {
                from: route.from,
                to: route.to,
                right: match route.right {
                    0 => Right::No,
                    _ => Right::Yes,
                },
            }
        }
        kind::LIMIT => {
            let limit: LimitBody = body(kind, rest)?;
            check(limit.reserved == 0, kind, "reserved")?;
            let both = (limit.cpu_quota_us == 0) == (limit.cpu_period_us == 0);
            check(both, kind, "cpu")?;
            Request::Limit {
                slot: Slot(limit.slot),
                limits: Limits {
                    memory_max_bytes: limit.memory_max_bytes,
                    pids_max: limit.pids_max,
                    cpu_quota_us: limit.cpu_quota_us,
                    cpu_period_us: limit.cpu_period_us,
                },
            }
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
        Reply::Plane(plane) => {
            let body = PlaneBody {
                layout: plane.layout,
                groups: plane.groups.bits(),
                tables: plane.tables,
                reserved: 0,
            };
            message(request, kind::PLANE_IS, body)
        }
        Reply::Reason(text) => {
            let (text, text_len) = field(&text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]);
            let body = ReasonBody {
                text_len: text_len as u16,
                reserved: 0,
                text,
            };
            message(request, kind::REASON, body)
        }
        Reply::Count(count) => message(request, kind::COUNT, *count),
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
        kind::PLANE_IS => {
            let plane: PlaneBody = body(kind, rest)?;
            Reply::Plane(Plane {
                layout: plane.layout,
                groups: Groups::from_bits(plane.groups),
                tables: plane.tables,
            })
        }
        kind::REASON => {
            let reason: ReasonBody = body(kind, rest)?;
            let text = reason.text.get(..reason.text_len as usize);
            let field = "text";
            let text = text.ok_or(DecodeError::Field { kind, field })?;
            Reply::Reason(String::from_utf8_lossy(text).into_owned())
        }
        kind::COUNT => Reply::Count(body(kind, rest)?),
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
mod tests;
