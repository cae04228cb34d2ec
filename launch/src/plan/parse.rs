//! Decoding and validating the bytes of a plan. Untrusted input; no allocation, no panic.

use core::ffi::CStr;

use super::{
    CgroupLimits, DEFAULT_LIFELINE_GRACE_MS, DiskLimit, ExecFlags, GvisorFlags, HEADER_LEN, MAGIC,
    MAX_BYTES, MAX_FILTER_INSTRUCTIONS, MAX_GRANTS, MAX_LISTENERS, MAX_PATH, MAX_RECORDS, Mode,
    MountFlags, Network, Plan, PlanError, RECORD_HEADER_LEN, Record, RecordFault, Stdio, Summary,
    VERSION,
};
use crate::layers::LAYERS_ALL;

/// Flag of `LandlockPath`.
pub(super) const FLAG_OPTIONAL: u16 = 4;
/// Flag of `Cgroup`.
pub(super) const FLAG_REQUIRED: u16 = 16;

pub(super) mod kind {
    pub const IDS: u16 = 1;
    pub const HOSTNAME: u16 = 2;
    pub const LIFELINE_GRACE: u16 = 3;
    pub const BIND: u16 = 4;
    pub const GRANT_MOUNT: u16 = 5;
    pub const TMPFS: u16 = 6;
    pub const PROC: u16 = 7;
    pub const DEV: u16 = 8;
    pub const FILE: u16 = 9;
    pub const SYMLINK: u16 = 10;
    pub const DIR: u16 = 11;
    pub const MASK: u16 = 12;
    pub const LANDLOCK: u16 = 13;
    pub const LANDLOCK_PATH: u16 = 14;
    pub const LANDLOCK_PORT: u16 = 15;
    pub const SECCOMP: u16 = 16;
    pub const RLIMIT: u16 = 17;
    pub const CGROUP: u16 = 18;
    pub const ENV: u16 = 19;
    pub const ARG: u16 = 20;
    pub const CWD: u16 = 21;
    pub const STDIO: u16 = 22;
    pub const TCP_LISTENER: u16 = 23;
    pub const UNIX_LISTENER: u16 = 24;
    pub const REQUIRE: u16 = 25;
    pub const PROTECT: u16 = 26;
    pub const OVERLAY: u16 = 27;
    pub const MQUEUE: u16 = 28;
    pub const EXEC_POLICY: u16 = 30;
    pub const HOST_NETWORK: u16 = 31;
    pub const COPY: u16 = 32;
    pub const DISK_LIMIT: u16 = 33;
    pub const GVISOR: u16 = 40;

    /// Kinds that a plan holds at most once, as bits.
    pub const SINGLE: u64 = 1 << IDS
        | 1 << HOSTNAME
        | 1 << LIFELINE_GRACE
        | 1 << PROC
        | 1 << MQUEUE
        | 1 << DEV
        | 1 << LANDLOCK
        | 1 << SECCOMP
        | 1 << CGROUP
        | 1 << CWD
        | 1 << STDIO
        | 1 << REQUIRE
        | 1 << EXEC_POLICY
        | 1 << HOST_NETWORK
        | 1 << GVISOR
        | 1 << DISK_LIMIT;
}

/// Takes fields off the front of a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordFault> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(RecordFault::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, RecordFault> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, RecordFault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, RecordFault> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<&'a CStr, RecordFault> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| RecordFault::Truncated)?;
        self.0 = self
            .0
            .get(string.count_bytes() + 1..)
            .ok_or(RecordFault::Truncated)?;
        Ok(string)
    }

    /// An absolute path in normal form; `/` itself only where it makes sense to the caller.
    fn path(&mut self) -> Result<&'a CStr, RecordFault> {
        let path = self.string()?;
        let bytes = path.to_bytes();
        if bytes == b"/" {
            return Ok(path);
        }
        let Some((b'/', relative)) = bytes.split_first() else {
            return Err(RecordFault::Path);
        };
        let bad = |component: &[u8]| {
            component.is_empty() || component == b"." || component == b".." || component.len() > 255
        };
        if bytes.len() > MAX_PATH || relative.split(|byte| *byte == b'/').any(bad) {
            return Err(RecordFault::Path);
        }
        Ok(path)
    }

    /// A path that something is placed at: not `/`.
    fn place(&mut self) -> Result<&'a CStr, RecordFault> {
        let path = self.path()?;
        if path.count_bytes() == 1 {
            Err(RecordFault::Path)
        } else {
            Ok(path)
        }
    }

    fn grant(&mut self) -> Result<u32, RecordFault> {
        match self.u32()? {
            index if (index as usize) < MAX_GRANTS => Ok(index),
            _ => Err(RecordFault::Value("grant index must be below 128")),
        }
    }

    fn mode(&mut self, most: u32, text: &'static str) -> Result<u32, RecordFault> {
        let mode = self.u32()?;
        if mode & !most == 0 {
            Ok(mode)
        } else {
            Err(RecordFault::Value(text))
        }
    }

    fn not_zero(&mut self, text: &'static str) -> Result<u64, RecordFault> {
        let value = self.u64()?;
        if value == 0 {
            Err(RecordFault::Value(text))
        } else {
            Ok(value)
        }
    }

    fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }
}

fn allow(flags: u16, allowed: MountFlags) -> Result<MountFlags, RecordFault> {
    match MountFlags::from_bits(flags) {
        Some(flags) if allowed.contains(flags) => Ok(flags),
        _ => Err(RecordFault::Flags(flags)),
    }
}

const FILE_MODE: &str = "file mode must be at most 0777";
const DIR_MODE: &str = "directory mode must be at most 01777";

fn decode(kind: u16, flags: u16, payload: &[u8]) -> Result<Record<'_>, RecordFault> {
    use kind::*;
    let has_flags = matches!(
        kind,
        BIND | GRANT_MOUNT
            | OVERLAY
            | TMPFS
            | MASK
            | PROTECT
            | COPY
            | LANDLOCK_PATH
            | CGROUP
            | EXEC_POLICY
            | GVISOR
    );
    if flags != 0 && !has_flags {
        return Err(RecordFault::Flags(flags));
    }
    let fields = &mut Fields(payload);
    let mount = MountFlags::RDONLY | MountFlags::NOEXEC;
    let placed = MountFlags::PLACEHOLDER | MountFlags::FOLDER;
    let cover = MountFlags::OPTIONAL | placed | MountFlags::LINKED;
    let record = match kind {
        IDS => Record::Ids {
            uid: fields.u32()?,
            gid: fields.u32()?,
        },
        HOSTNAME => {
            let name = fields.string()?;
            let good = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'.';
            if !(1..=63).contains(&name.count_bytes()) || !name.to_bytes().iter().all(good) {
                return Err(RecordFault::Value(
                    "host name must be 1 to 63 bytes of [A-Za-z0-9.-]",
                ));
            }
            Record::Hostname(name)
        }
        LIFELINE_GRACE => Record::LifelineGrace { ms: fields.u32()? },
        BIND => {
            let flags = allow(flags, mount | MountFlags::OPTIONAL | MountFlags::KEEP_LINK)?;
            Record::Bind {
                src: fields.path()?,
                dst: fields.place()?,
                flags,
            }
        }
        GRANT_MOUNT => {
            let special = MountFlags::SOCKET | MountFlags::DEVICE | MountFlags::COPY;
            let flags = allow(flags, mount | special)?;
            if (flags.bits() & special.bits()).count_ones() > 1 {
                return Err(RecordFault::Value(
                    "a grant is a socket, a device or a copy, not two of them",
                ));
            }
            if flags.contains(MountFlags::COPY) && !flags.contains(MountFlags::RDONLY) {
                return Err(RecordFault::Value("a copy of a grant is read-only"));
            }
            Record::GrantMount {
                index: fields.grant()?,
                dst: fields.place()?,
                flags,
            }
        }
        OVERLAY => Record::Overlay {
            flags: allow(flags, MountFlags::NOEXEC)?,
            index: fields.grant()?,
            size_bytes: fields.not_zero("overlay size must not be 0")?,
            inodes: fields.not_zero("overlay inode limit must not be 0")?,
            dst: fields.place()?,
        },
        HOST_NETWORK => Record::HostNetwork,
        DISK_LIMIT => {
            let limit = DiskLimit {
                bytes: fields.u64()?,
                inodes: fields.u64()?,
            };
            if limit == DiskLimit::default() {
                return Err(RecordFault::Value(
                    "a disk limit is of bytes, of inodes, or of both",
                ));
            }
            Record::DiskLimit(limit)
        }
        EXEC_POLICY => {
            Record::ExecPolicy(ExecFlags::from_bits(flags).ok_or(RecordFault::Flags(flags))?)
        }
        GVISOR => Record::Gvisor(GvisorFlags::from_bits(flags).ok_or(RecordFault::Flags(flags))?),
        TMPFS => Record::Tmpfs {
            flags: allow(flags, mount)?,
            size_bytes: fields.not_zero("tmpfs size must not be 0")?,
            inodes: fields.not_zero("tmpfs inode limit must not be 0")?,
            mode: fields.mode(0o1777, DIR_MODE)?,
            dst: fields.place()?,
        },
        PROC => Record::Proc {
            dst: fields.place()?,
        },
        MQUEUE => Record::Mqueue {
            dst: fields.place()?,
        },
        DEV => Record::Dev {
            shm_bytes: fields.not_zero("shm size must not be 0")?,
            dst: fields.place()?,
        },
        FILE => Record::File {
            mode: fields.mode(0o777, FILE_MODE)?,
            dst: fields.place()?,
            content: fields.rest(),
        },
        SYMLINK => {
            let (dst, target) = (fields.place()?, fields.string()?);
            if target.is_empty() || target.count_bytes() > MAX_PATH {
                return Err(RecordFault::Value("link target must be 1 to 4095 bytes"));
            }
            Record::Symlink { dst, target }
        }
        DIR => Record::Dir {
            mode: fields.mode(0o1777, DIR_MODE)?,
            dst: fields.place()?,
        },
        MASK => Record::Mask {
            flags: allow(flags, cover)?,
            dst: fields.place()?,
        },
        PROTECT => Record::Protect {
            flags: allow(flags, cover)?,
            dst: fields.place()?,
        },
        COPY => Record::Copy {
            flags: allow(
                flags,
                MountFlags::OPTIONAL | MountFlags::PLACEHOLDER | MountFlags::LINKED,
            )?,
            dst: fields.place()?,
            to: fields.place()?,
        },
        LANDLOCK => {
            let (handled_fs, handled_net, scoped) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let [min_abi] = fields.array()?;
            Record::Landlock {
                handled_fs,
                handled_net,
                scoped,
                min_abi,
            }
        }
        LANDLOCK_PATH => {
            if flags & !FLAG_OPTIONAL != 0 {
                return Err(RecordFault::Flags(flags));
            }
            let access = fields.not_zero("Landlock access must not be 0")?;
            Record::LandlockPath {
                access,
                path: fields.path()?,
                optional: flags != 0,
            }
        }
        LANDLOCK_PORT => Record::LandlockPort {
            access: fields.not_zero("Landlock access must not be 0")?,
            port: fields.u16()?,
        },
        SECCOMP => {
            let program = fields.rest();
            if program.is_empty()
                || program.len() % 8 != 0
                || program.len() / 8 > MAX_FILTER_INSTRUCTIONS
            {
                return Err(RecordFault::Value(
                    "seccomp program must be 1 to 4096 instructions of 8 bytes",
                ));
            }
            Record::Seccomp(program)
        }
        RLIMIT => {
            let (resource, soft, hard) = (fields.u32()?, fields.u64()?, fields.u64()?);
            if resource > 15 || soft > hard {
                return Err(RecordFault::Value(
                    "resource limit must be 0 to 15 with soft at most hard",
                ));
            }
            Record::Rlimit {
                resource,
                soft,
                hard,
            }
        }
        CGROUP => {
            if flags & !FLAG_REQUIRED != 0 {
                return Err(RecordFault::Flags(flags));
            }
            let limits = CgroupLimits {
                memory_max_bytes: fields.u64()?,
                pids_max: fields.u64()?,
                cpu_quota_us: fields.u64()?,
                cpu_period_us: fields.u64()?,
                required: flags != 0,
            };
            if (limits.cpu_quota_us == 0) != (limits.cpu_period_us == 0) {
                return Err(RecordFault::Value(
                    "cpu quota and period must both be set or both be 0",
                ));
            }
            Record::Cgroup(limits)
        }
        ENV => {
            let variable = fields.string()?;
            if !matches!(
                variable.to_bytes().iter().position(|b| *b == b'='),
                Some(1..)
            ) {
                return Err(RecordFault::Value(
                    "environment variable must be NAME=value",
                ));
            }
            Record::Env(variable)
        }
        ARG => Record::Arg(fields.string()?),
        CWD => Record::Cwd(fields.path()?),
        STDIO => {
            let (what, rows, cols) = (fields.u16()?, fields.u16()?, fields.u16()?);
            Record::Stdio(match (what, rows, cols) {
                (0, 0, 0) => Stdio::Null,
                (1, 0, 0) => Stdio::Pipes,
                (2, rows, cols) => Stdio::Pty { rows, cols },
                _ => return Err(RecordFault::Value("stdio must be null, pipes or a pty")),
            })
        }
        TCP_LISTENER => match (fields.u16()?, fields.u16()?) {
            (0, _) => return Err(RecordFault::Value("listener port must not be 0")),
            (port, tag) => Record::TcpListener { port, tag },
        },
        UNIX_LISTENER => {
            let (mode, tag, path) = (
                fields.mode(0o777, FILE_MODE)?,
                fields.u16()?,
                fields.place()?,
            );
            if path
                .to_bytes()
                .rsplit(|b| *b == b'/')
                .next()
                .is_none_or(|name| name.len() > 100)
            {
                return Err(RecordFault::Value(
                    "last component of a socket's path must be at most 100 bytes",
                ));
            }
            Record::UnixListener { path, tag, mode }
        }
        REQUIRE => {
            let layers = fields.u64()?;
            if layers & !LAYERS_ALL != 0 {
                return Err(RecordFault::Value("required layers must be known ones"));
            }
            Record::Require { layers }
        }
        kind => return Err(RecordFault::Kind(kind)),
    };
    if fields.0.is_empty() {
        Ok(record)
    } else {
        Err(RecordFault::Trailing)
    }
}

type Split<'a> = (u16, u16, &'a [u8], &'a [u8]);

/// Splits the next record off `bytes`: kind, flags, payload, and what follows.
fn split(bytes: &[u8]) -> Result<Split<'_>, RecordFault> {
    let fields = &mut Fields(bytes);
    let (kind, flags, len) = (fields.u16()?, fields.u16()?, fields.u32()? as usize);
    if len > MAX_BYTES {
        return Err(RecordFault::Truncated);
    }
    let padded = len.next_multiple_of(RECORD_HEADER_LEN);
    let (payload, rest) = fields
        .0
        .split_at_checked(padded)
        .ok_or(RecordFault::Truncated)?;
    let (payload, padding) = payload
        .split_at_checked(len)
        .ok_or(RecordFault::Truncated)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(RecordFault::Trailing);
    }
    Ok((kind, flags, payload, rest))
}

/// Iterator over the records of a parsed plan.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    bytes: &'a [u8],
    left: u16,
}

impl<'a> Records<'a> {
    pub(super) fn new(bytes: &'a [u8], count: u16) -> Self {
        Records { bytes, left: count }
    }

    fn step(&mut self) -> Result<(u16, Record<'a>), RecordFault> {
        let (kind, flags, payload, rest) = split(self.bytes)?;
        self.bytes = rest;
        self.left -= 1;
        decode(kind, flags, payload).map(|record| (kind, record))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        if self.left == 0 {
            return None;
        }
        // Every record has been decoded once by `parse`, so this does not fail on a parsed plan.
        self.step().ok().map(|(_, record)| record)
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Plan<'_>, PlanError> {
    let length = PlanError::Length { have: bytes.len() };
    let (header, records) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(length)?;
    if header[..4] != MAGIC {
        return Err(PlanError::Magic);
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != VERSION {
        return Err(PlanError::Version(version));
    }
    let count = u16::from_le_bytes([header[6], header[7]]);
    let total = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if bytes.len() > MAX_BYTES || total as usize != bytes.len() {
        return Err(length);
    }
    if usize::from(count) > MAX_RECORDS {
        return Err(PlanError::RecordCount(count));
    }
    let mode = match header[12..] {
        [0, 0, 0, 0] => Mode::Root,
        [1, 0, 0, 0] => Mode::User,
        _ => return Err(PlanError::Mode(header[12])),
    };

    let (mut ids, mut cwd) = (None, None);
    let mut landlock_rules = None;
    let mut seen = 0u64;
    let mut summary = Summary {
        mode,
        uid: 0,
        gid: 0,
        cwd: c"/",
        stdio: Stdio::Null,
        lifeline_grace_ms: DEFAULT_LIFELINE_GRACE_MS,
        cgroup: None,
        required: 0,
        grants: 0,
        listeners: 0,
        args: 0,
        envs: 0,
        exec: ExecFlags::NONE,
        network: Network::Own,
        gvisor: None,
        disk: None,
    };
    let mut walk = Records::new(records, count);
    for index in 0..count {
        let fail = |fault| PlanError::Record { index, fault };
        let (kind, record) = walk.step().map_err(fail)?;
        if seen & kind::SINGLE & (1 << kind) != 0 {
            return Err(fail(RecordFault::Duplicate));
        }
        seen |= 1 << kind;
        match record {
            Record::Ids { uid, gid } => ids = Some((uid, gid)),
            Record::Cwd(path) => cwd = Some(path),
            Record::DiskLimit(limit) => summary.disk = Some(limit),
            Record::HostNetwork => summary.network = Network::Host,
            Record::Stdio(stdio) => summary.stdio = stdio,
            Record::LifelineGrace { ms } => summary.lifeline_grace_ms = ms,
            Record::Cgroup(limits) => summary.cgroup = Some(limits),
            Record::Require { layers } => summary.required = layers,
            Record::ExecPolicy(flags) => summary.exec = flags,
            Record::Gvisor(flags) => summary.gvisor = Some(flags),
            Record::GrantMount { .. } | Record::Overlay { .. } => summary.grants += 1,
            Record::Arg(_) => summary.args += 1,
            Record::Env(_) => summary.envs += 1,
            Record::LandlockPath { .. } | Record::LandlockPort { .. } => {
                landlock_rules = landlock_rules.or(Some(index))
            }
            Record::TcpListener { .. } | Record::UnixListener { .. } => {
                summary.listeners += 1;
                if usize::from(summary.listeners) > MAX_LISTENERS {
                    return Err(fail(RecordFault::Value("at most 16 listeners")));
                }
            }
            _ => {}
        }
    }
    if !walk.bytes.is_empty() {
        return Err(PlanError::RecordCount(count));
    }
    (summary.uid, summary.gid) = ids.ok_or(PlanError::Missing("Ids"))?;
    summary.cwd = cwd.ok_or(PlanError::Missing("Cwd"))?;
    if summary.args == 0 {
        return Err(PlanError::Missing("Arg"));
    }
    if landlock_rules.is_some() && seen & (1 << kind::LANDLOCK) == 0 {
        return Err(PlanError::Missing("Landlock"));
    }
    if summary.stdio != Stdio::Pipes && seen & (1 << kind::DEV) == 0 {
        return Err(PlanError::Missing("Dev"));
    }
    Ok(Plan {
        records,
        count,
        summary,
    })
}

#[cfg(test)]
mod tests {
    use super::super::PlanBuilder;
    use super::*;
    use proptest::prelude::*;

    fn small() -> Vec<u8> {
        let mut plan = PlanBuilder::new(Mode::User);
        plan.ids(1000, 1000)
            .cwd("/")
            .stdio(Stdio::Pipes)
            .arg("/bin/true");
        plan.finish().unwrap()
    }

    fn record_fault(build: impl FnOnce(&mut PlanBuilder) -> &mut PlanBuilder) -> RecordFault {
        let mut plan = PlanBuilder::new(Mode::User);
        build(&mut plan);
        match plan.finish() {
            Err(PlanError::Record { index: 0, fault }) => fault,
            other => panic!("expected a fault of record 0, got {other:?}"),
        }
    }

    #[test]
    fn golden_bytes_of_a_small_plan() {
        let expected: &[&[u8]] = &[
            b"AGPL\x01\0\x04\0\x60\0\0\0\x01\0\0\0",
            b"\x01\0\0\0\x08\0\0\0\xe8\x03\0\0\xe8\x03\0\0",
            b"\x15\0\0\0\x02\0\0\0/\0\0\0\0\0\0\0",
            b"\x16\0\0\0\x06\0\0\0\x01\0\0\0\0\0\0\0",
            b"\x14\0\0\0\x0a\0\0\0/bin/true\0\0\0\0\0\0\0",
        ];
        let mut expected = expected.concat();
        let len = u32::try_from(expected.len()).unwrap();
        expected[8..12].copy_from_slice(&len.to_le_bytes());
        assert_eq!(small(), expected);
    }

    #[test]
    fn every_truncation_is_refused() {
        let plan = small();
        for len in 0..plan.len() {
            assert!(
                Plan::parse(&plan[..len]).is_err(),
                "accepted {len} of {} bytes",
                plan.len()
            );
        }
        let mut long = plan.clone();
        long.push(0);
        assert!(Plan::parse(&long).is_err());
    }

    #[test]
    fn paths_must_be_absolute_and_normal() {
        for path in [
            "",
            "usr",
            "/usr/",
            "//usr",
            "/usr/../etc",
            "/..",
            "/./usr",
            "/usr/.",
        ] {
            assert_eq!(
                record_fault(|p| p.dir(path, 0o755)),
                RecordFault::Path,
                "{path:?}"
            );
        }
        assert_eq!(record_fault(|p| p.dir("/", 0o755)), RecordFault::Path);
        assert_eq!(record_fault(|p| p.dir("/a\0b", 0o755)), RecordFault::Nul);
        assert_eq!(
            record_fault(|p| p.dir("/x".repeat(2048), 0o755)),
            RecordFault::Path
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let value = |build: fn(&mut PlanBuilder) -> &mut PlanBuilder| match record_fault(build) {
            RecordFault::Value(text) => text,
            fault => panic!("expected a value fault, got {fault:?}"),
        };
        assert_eq!(value(|p| p.file("/f", 0o4755, b"")), FILE_MODE);
        assert_eq!(value(|p| p.dir("/d", 0o2755)), DIR_MODE);
        assert_eq!(
            value(|p| p.env("=x")),
            "environment variable must be NAME=value"
        );
        assert_eq!(
            value(|p| p.tcp_listener(0, 1)),
            "listener port must not be 0"
        );
        assert_eq!(
            value(|p| p.require(1 << 40)),
            "required layers must be known ones"
        );
        assert_eq!(
            value(|p| p.seccomp(b"1234567")),
            "seccomp program must be 1 to 4096 instructions of 8 bytes"
        );
        assert_eq!(
            value(|p| p.rlimit(16, 0, 0)),
            "resource limit must be 0 to 15 with soft at most hard"
        );
        assert_eq!(
            value(|p| p.hostname("a b")),
            "host name must be 1 to 63 bytes of [A-Za-z0-9.-]"
        );
    }

    #[test]
    fn flags_that_a_kind_does_not_have_are_refused() {
        let flags = |build: fn(&mut PlanBuilder) -> &mut PlanBuilder| match record_fault(build) {
            RecordFault::Flags(flags) => flags,
            fault => panic!("expected a fault of the flags, got {fault:?}"),
        };
        assert_eq!(flags(|p| p.mask("/a", super::super::MountFlags::RDONLY)), 1);
    }

    #[test]
    fn what_must_be_there_once_is() {
        let mut twice = PlanBuilder::new(Mode::User);
        twice.ids(1, 1).ids(2, 2);
        let fault = RecordFault::Duplicate;
        assert_eq!(twice.finish(), Err(PlanError::Record { index: 1, fault }));
        let mut plan = PlanBuilder::new(Mode::User);
        assert_eq!(
            plan.stdio(Stdio::Pipes).finish(),
            Err(PlanError::Missing("Ids"))
        );
        plan.ids(1, 1);
        assert_eq!(plan.finish(), Err(PlanError::Missing("Cwd")));
        plan.cwd("/");
        assert_eq!(plan.finish(), Err(PlanError::Missing("Arg")));
        plan.arg("true");
        assert!(plan.finish().is_ok());
        plan.landlock_path("/usr", 4, super::super::MountFlags::NONE);
        assert_eq!(plan.finish(), Err(PlanError::Missing("Landlock")));
        let mut terminal = PlanBuilder::new(Mode::User);
        terminal
            .ids(1, 1)
            .cwd("/")
            .arg("true")
            .stdio(Stdio::Pty { rows: 24, cols: 80 });
        assert_eq!(terminal.finish(), Err(PlanError::Missing("Dev")));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut plan = small();
        plan[16] = 63;
        let fault = RecordFault::Kind(63);
        assert_eq!(
            Plan::parse(&plan).unwrap_err(),
            PlanError::Record { index: 0, fault }
        );
        plan[17] = 0xff;
        assert!(Plan::parse(&plan).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(plan) = Plan::parse(&bytes) {
                prop_assert_eq!(plan.records().count(), usize::from(plan.count));
            }
        }

        #[test]
        fn a_plan_with_bytes_changed_never_panics(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6)) {
            let mut plan = super::super::build::tests::one_of_each();
            let len = plan.len();
            for (at, byte) in changes {
                plan[at % len] = byte;
            }
            if let Ok(plan) = Plan::parse(&plan) {
                prop_assert_eq!(plan.records().count(), usize::from(plan.count));
            }
        }
    }
}
