//! The wire plan: everything the broker and the launcher need to know about one launch, as one flat run of bytes.
//!
//! ```text
//! header   magic "AGPL" · version u16 · records u16 · total length u32 · mode u8 · zero [u8; 3]
//! record   kind u16 · flags u16 · payload length u32 · payload · zero padding to 8 bytes
//! ```
//!
//! Little-endian. A payload is its fixed fields, then its strings, each ended by a NUL, then its free bytes. Records that
//! change the view (`Bind` to `Mask`, `UnixListener`) are applied in their order. [`Plan::parse`] takes untrusted bytes,
//! allocates nothing, never panics and accepts only what it fully understands; [`PlanBuilder`] (feature `std`) writes
//! plans. What a well-formed plan may *ask for* is the floor's business ([`crate::floor`]), not the parser's.

use core::ffi::CStr;
use core::fmt;

#[cfg(feature = "std")]
mod build;
mod parse;

#[cfg(feature = "std")]
pub use build::PlanBuilder;
pub use parse::Records;

/// First bytes of every plan.
pub const MAGIC: [u8; 4] = *b"AGPL";
/// The only version there is.
pub const VERSION: u16 = 1;
/// Bytes before the first record.
pub const HEADER_LEN: usize = 16;
/// Bytes before a record's payload.
pub const RECORD_HEADER_LEN: usize = 8;
/// The longest plan.
pub const MAX_BYTES: usize = 1 << 20;
/// The most records in a plan.
pub const MAX_RECORDS: usize = 4096;
/// The most listeners in a plan.
pub const MAX_LISTENERS: usize = 16;
/// The most grants in a plan.
pub const MAX_GRANTS: usize = 128;
/// The largest file that is copied into a view.
pub const MAX_SECRET_BYTES: u64 = 1 << 20;
/// The longest path, without its NUL.
pub const MAX_PATH: usize = 4095;
/// The longest seccomp program, in instructions (the kernel's `BPF_MAXINSNS`).
pub const MAX_FILTER_INSTRUCTIONS: usize = 4096;

/// `TcpListener`/`UnixListener` tag: the model gateway.
pub const GATEWAY: u16 = 1;
/// `TcpListener`/`UnixListener` tag: the egress proxy.
pub const PROXY: u16 = 2;
/// `TcpListener`/`UnixListener` tag: MCP over HTTP.
pub const MCP: u16 = 3;
/// `TcpListener`/`UnixListener` tag: the bus.
pub const BUS: u16 = 4;
/// Tag of a listener: the ssh-agent.
pub const SSH_AGENT: u16 = 5;
/// Tag of a listener: direct connections between agents.
pub const DIRECT: u16 = 6;

/// How long an agent outlives one of its two lifelines where the plan does not say.
pub const DEFAULT_LIFELINE_GRACE_MS: u32 = 30_000;

/// Who launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// A broker that is root: grants arrive as detached id-mapped mounts, each agent has a kernel uid of its own.
    Root = 0,
    /// An ordinary user: grants arrive as directory fds, agents run under the user's own kernel uid.
    User = 1,
}

/// Flags of the records that mount.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct MountFlags(u16);

impl MountFlags {
    /// Read-write, executable, and the source must exist. `nosuid` and `nodev` are always set.
    pub const NONE: MountFlags = MountFlags(0);
    /// Read-only.
    pub const RDONLY: MountFlags = MountFlags(1);
    /// Nothing on it can be executed.
    pub const NOEXEC: MountFlags = MountFlags(2);
    /// Skip the record when the source (of a `Mask`: the target) is not there.
    pub const OPTIONAL: MountFlags = MountFlags(4);
    /// `Bind`: when the source itself is a symbolic link, recreate the link instead of mounting (`/bin` on a merged-usr
    /// host). Without it a link is an error: sources are never followed.
    pub const KEEP_LINK: MountFlags = MountFlags(8);
    /// `Protect`, `Mask`, `Copy`: where nothing is at the target, but its directory is there, the
    /// broker makes an empty file for it to cover, and removes it when the sandbox has ended; on an
    /// overlay the launcher makes it, and nothing is left of it anyway.
    pub const PLACEHOLDER: MountFlags = MountFlags(16);
    /// With `PLACEHOLDER`: an empty directory instead of a file.
    pub const FOLDER: MountFlags = MountFlags(32);
    /// `GrantMount`: what was granted is a unix socket, and nothing else.
    pub const SOCKET: MountFlags = MountFlags(64);
    /// `GrantMount`: what was granted is a character device, and nothing else; the only mounts without `nodev`.
    pub const DEVICE: MountFlags = MountFlags(128);

    /// `Mask`, `Protect`, `Copy`: the file may have other names; whoever made the plan has seen to those in the view.
    pub const LINKED: MountFlags = MountFlags(256);

    /// `GrantMount`: nothing is mounted. What was granted is a regular file of at most [`MAX_SECRET_BYTES`], and what is in
    /// it at the launch is written into the view, as a file that only the agent can read.
    pub const COPY: MountFlags = MountFlags(512);

    const ALL: u16 = 1023;

    /// The bits.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether all of `other` is set.
    pub const fn contains(self, other: MountFlags) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn from_bits(bits: u16) -> Option<MountFlags> {
        (bits & !Self::ALL == 0).then_some(MountFlags(bits))
    }
}

impl core::ops::BitOr for MountFlags {
    type Output = MountFlags;
    fn bitor(self, other: MountFlags) -> MountFlags {
        MountFlags(self.0 | other.0)
    }
}

impl fmt::Debug for MountFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (1, "RDONLY"),
            (2, "NOEXEC"),
            (4, "OPTIONAL"),
            (8, "KEEP_LINK"),
            (16, "PLACEHOLDER"),
            (32, "FOLDER"),
            (64, "SOCKET"),
            (128, "DEVICE"),
            (256, "LINKED"),
            (512, "COPY"),
        ];
        let mut set = f.debug_set();
        for (bit, name) in names {
            if self.0 & bit != 0 {
                set.entry(&format_args!("{name}"));
            }
        }
        set.finish()
    }
}

/// Flags of `ExecPolicy`: what may become of memory, and who may look into whom.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct ExecFlags(u16);

impl ExecFlags {
    /// Nothing beyond the floor.
    pub const NONE: ExecFlags = ExecFlags(0);
    /// Memory files made inside can't be executed: the parent sets `vm.memfd_noexec` to 2 in the new pid namespace. Only
    /// the host's uid 0 can, so in user mode the flag asks for nothing; [`LAYER_MEMFD_NOEXEC`](crate::layers) says what is.
    pub const MEMFD_NOEXEC: ExecFlags = ExecFlags(1);
    /// No mapping gains the right to be executed (`PR_SET_MDWE`), where the kernel knows it.
    pub const MDWE: ExecFlags = ExecFlags(2);
    /// The base filter lets `ptrace`, `process_vm_readv`, `process_vm_writev` and `kcmp` through: the pid namespace, the
    /// Landlock domain and an init that can't be traced keep them inside.
    pub const DEBUG: ExecFlags = ExecFlags(4);

    /// The init refuses, and tells of, the calls that the plan's filter holds for it (`SECCOMP_RET_USER_NOTIF`), and the base
    /// filter leaves to it what it refuses by number. What nobody holds a listener for the kernel refuses with ENOSYS. Not with
    /// gVisor, whose kernel has no listeners.
    pub const TELL: ExecFlags = ExecFlags(8);

    const ALL: u16 = 15;

    /// The bits.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether all of `other` is set.
    pub const fn contains(self, other: ExecFlags) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn from_bits(bits: u16) -> Option<ExecFlags> {
        (bits & !Self::ALL == 0).then_some(ExecFlags(bits))
    }
}

impl core::ops::BitOr for ExecFlags {
    type Output = ExecFlags;
    fn bitor(self, other: ExecFlags) -> ExecFlags {
        ExecFlags(self.0 | other.0)
    }
}

impl fmt::Debug for ExecFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(1, "MEMFD_NOEXEC"), (2, "MDWE"), (4, "DEBUG"), (8, "TELL")];
        let mut set = f.debug_set();
        for (bit, name) in names {
            if self.0 & bit != 0 {
                set.entry(&format_args!("{name}"));
            }
        }
        set.finish()
    }
}

/// How gVisor's `runsc` is started: what differs between its releases, and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct GvisorFlags(u16);

impl GvisorFlags {
    /// A release that has no switch for it reaches files through its file server alone.
    pub const NONE: GvisorFlags = GvisorFlags(0);
    /// The release would open files itself (`directfs`, from 2023 on): it is told not to.
    pub const NO_DIRECTFS: GvisorFlags = GvisorFlags(1);

    const ALL: u16 = 1;

    /// The bits.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether all of `other` is set.
    pub const fn contains(self, other: GvisorFlags) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn from_bits(bits: u16) -> Option<GvisorFlags> {
        (bits & !Self::ALL == 0).then_some(GvisorFlags(bits))
    }
}

impl core::ops::BitOr for GvisorFlags {
    type Output = GvisorFlags;
    fn bitor(self, other: GvisorFlags) -> GvisorFlags {
        GvisorFlags(self.0 | other.0)
    }
}

impl fmt::Debug for GvisorFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = f.debug_set();
        if self.contains(Self::NO_DIRECTFS) {
            set.entry(&format_args!("NO_DIRECTFS"));
        }
        set.finish()
    }
}

/// What the program's standard streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stdio {
    /// A terminal from the sandbox's own devpts (needs a `Dev` record).
    Pty {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Three pipes.
    Pipes,
    /// `/dev/null` (needs a `Dev` record).
    #[default]
    Null,
}

/// Limits the broker writes to the sandbox's cgroup; 0 means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CgroupLimits {
    /// `memory.max`.
    pub memory_max_bytes: u64,
    /// `pids.max`.
    pub pids_max: u64,
    /// `cpu.max`, first number.
    pub cpu_quota_us: u64,
    /// `cpu.max`, second number.
    pub cpu_period_us: u64,
    /// Whether the launch fails when one of them cannot be set.
    pub required: bool,
}

/// One record of a plan. Strings borrow from the plan's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record<'a> {
    /// The ids the program sees itself under; exactly once.
    Ids {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Host name in the sandbox, 1 to 63 bytes of `[A-Za-z0-9.-]`.
    Hostname(&'a CStr),
    /// How long the sandbox outlives one of its two lifelines, in ms; 0 not at all.
    LifelineGrace {
        /// Milliseconds.
        ms: u32,
    },
    /// Clone a host tree into the view.
    Bind {
        /// On the host; never followed through a symbolic link.
        src: &'a CStr,
        /// In the view.
        dst: &'a CStr,
        /// RDONLY, NOEXEC, OPTIONAL, KEEP_LINK.
        flags: MountFlags,
    },
    /// Mount what the caller granted, or copy it.
    GrantMount {
        /// Which of the grants, from 0.
        index: u32,
        /// In the view.
        dst: &'a CStr,
        /// RDONLY, NOEXEC, and SOCKET, DEVICE or COPY.
        flags: MountFlags,
    },
    /// Mount what the caller granted as the lower layer of an overlay: shown as it is, and every change is kept in a private,
    /// limited tmpfs that goes with the sandbox. The granted directory itself never changes.
    Overlay {
        /// Which of the grants, from 0.
        index: u32,
        /// In the view.
        dst: &'a CStr,
        /// Changes take at most this many bytes; not 0.
        size_bytes: u64,
        /// Changes take at most this many files; not 0.
        inodes: u64,
        /// NOEXEC.
        flags: MountFlags,
    },
    /// A private, empty, limited tmpfs.
    Tmpfs {
        /// In the view.
        dst: &'a CStr,
        /// At most this many bytes; not 0.
        size_bytes: u64,
        /// At most this many files; not 0.
        inodes: u64,
        /// Mode of its root, at most 01777.
        mode: u32,
        /// RDONLY (once everything has been placed in it), NOEXEC.
        flags: MountFlags,
    },
    /// The sandbox's own procfs.
    Proc {
        /// In the view.
        dst: &'a CStr,
    },
    /// The POSIX message queues of the sandbox's own IPC namespace, which by name can be reached only where they are mounted.
    Mqueue {
        /// In the view.
        dst: &'a CStr,
    },
    /// A minimal `/dev`: null zero full random urandom tty, the fd links, shm, devpts and ptmx.
    Dev {
        /// In the view.
        dst: &'a CStr,
        /// Size of `shm`; not 0.
        shm_bytes: u64,
    },
    /// A file in the view, made anew.
    File {
        /// In the view.
        dst: &'a CStr,
        /// At most 0777.
        mode: u32,
        /// What is in it.
        content: &'a [u8],
    },
    /// A symbolic link in the view.
    Symlink {
        /// In the view.
        dst: &'a CStr,
        /// What it says; not followed by the launcher.
        target: &'a CStr,
    },
    /// A directory in the view; parents of every other record are made as 0755 anyway.
    Dir {
        /// In the view.
        dst: &'a CStr,
        /// At most 01777.
        mode: u32,
    },
    /// Hide a file or directory of the view behind an empty one that nobody may open. It and the directories between it and
    /// the mount that it lies on become mounts of their own, so none of them can be renamed or removed.
    Mask {
        /// In the view.
        dst: &'a CStr,
        /// OPTIONAL, PLACEHOLDER, FOLDER, LINKED.
        flags: MountFlags,
    },
    /// Make a file or directory of the view read-only, and pin it as `Mask` does.
    Protect {
        /// In the view.
        dst: &'a CStr,
        /// OPTIONAL, PLACEHOLDER, FOLDER, LINKED.
        flags: MountFlags,
    },
    /// Let the sandbox change a copy of a file of the view, and pin the file as `Protect` does. The copy is made on a private
    /// tmpfs, and a symbolic link to it mounted over the file: so programs can also replace it, as most do that write settings
    /// (`git config`), which a mount point can't be.
    Copy {
        /// In the view.
        dst: &'a CStr,
        /// Where the copy is made; what is not there of its folders is made too.
        to: &'a CStr,
        /// OPTIONAL, PLACEHOLDER, LINKED.
        flags: MountFlags,
    },
    /// The Landlock ruleset. Bits that the running kernel does not know are dropped, unless its ABI is below `min_abi`:
    /// then the launch fails.
    Landlock {
        /// `LANDLOCK_ACCESS_FS_*`
        handled_fs: u64,
        /// `LANDLOCK_ACCESS_NET_*`
        handled_net: u64,
        /// `LANDLOCK_SCOPE_*`
        scoped: u64,
        /// The lowest acceptable ABI; 0 accepts a kernel without Landlock.
        min_abi: u8,
    },
    /// Allow `access` at and beneath a path of the view. File rights only are kept for a file.
    LandlockPath {
        /// In the view.
        path: &'a CStr,
        /// `LANDLOCK_ACCESS_FS_*`
        access: u64,
        /// Skip when it is not there or is a symbolic link.
        optional: bool,
    },
    /// Allow `access` for a TCP port.
    LandlockPort {
        /// Port.
        port: u16,
        /// `LANDLOCK_ACCESS_NET_*`
        access: u64,
    },
    /// The plan's own filter: `struct sock_filter` instructions, loaded over the built-in one.
    Seccomp(&'a [u8]),
    /// A resource limit; lowered to the hard limit the launcher was started with where that is lower.
    Rlimit {
        /// `RLIMIT_*`, 0 to 15.
        resource: u32,
        /// Soft; at most `hard`.
        soft: u64,
        /// Hard; `u64::MAX` for none.
        hard: u64,
    },
    /// For the broker; the launcher ignores it.
    Cgroup(CgroupLimits),
    /// `NAME=value`.
    Env(&'a CStr),
    /// One argument; the first names the program, looked up in the `PATH` of the plan when it holds no slash.
    Arg(&'a CStr),
    /// Working directory in the view; exactly once.
    Cwd(&'a CStr),
    /// Standard streams; at most once, `Null` without.
    Stdio(Stdio),
    /// Listen on 127.0.0.1 inside the sandbox's network namespace.
    TcpListener {
        /// Port, not 0.
        port: u16,
        /// [`GATEWAY`], [`PROXY`], [`MCP`], [`BUS`] or the user's own.
        tag: u16,
    },
    /// Listen on a stream socket in the view.
    UnixListener {
        /// In the view; its last component has at most 100 bytes.
        path: &'a CStr,
        /// As above.
        tag: u16,
        /// At most 0777.
        mode: u32,
    },
    /// The launch fails unless each of these layers is active.
    Require {
        /// `LAYER_*`.
        layers: u64,
    },
    /// What may be executed and traced; at most once, [`ExecFlags::NONE`] without.
    ExecPolicy(ExecFlags),
    /// The host's own network namespace instead of one with loopback only; at most once. No TCP listener goes with it.
    HostNetwork,
    /// The program runs under gVisor, whose `runsc` is the host's own, instead of on the host's kernel; at most once.
    Gvisor(GvisorFlags),
    /// For the broker; the launcher ignores it. At most once.
    DiskLimit(DiskLimit),
}

/// What an agent may add to its writable grants together; 0 is no limit. The broker's meter holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskLimit {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, folders and everything else that has a name.
    pub inodes: u64,
}

/// Which network namespace a sandbox is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Its own, with nothing but loopback.
    #[default]
    Own,
    /// The host's.
    Host,
}

/// A parsed plan; borrows its bytes. Whatever it holds has been validated.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    pub(crate) records: &'a [u8],
    pub(crate) count: u16,
    pub(crate) summary: Summary<'a>,
}

/// What a plan holds once, or counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary<'a> {
    pub mode: Mode,
    pub uid: u32,
    pub gid: u32,
    pub cwd: &'a CStr,
    pub stdio: Stdio,
    pub lifeline_grace_ms: u32,
    pub cgroup: Option<CgroupLimits>,
    pub required: u64,
    pub grants: u32,
    pub listeners: u16,
    pub args: u16,
    pub envs: u16,
    pub exec: ExecFlags,
    pub network: Network,
    pub gvisor: Option<GvisorFlags>,
    pub disk: Option<DiskLimit>,
}

impl<'a> Plan<'a> {
    /// Validates `bytes`, which nobody may change while the plan lives: a sealed memfd or a private copy.
    pub fn parse(bytes: &'a [u8]) -> Result<Plan<'a>, PlanError> {
        parse::parse(bytes)
    }

    /// The records in order.
    pub fn records(&self) -> Records<'a> {
        Records::new(self.records, self.count)
    }

    /// Who launches, says the plan; the floor compares it with what is.
    pub fn mode(&self) -> Mode {
        self.summary.mode
    }

    /// Uid and gid inside.
    pub fn ids(&self) -> (u32, u32) {
        (self.summary.uid, self.summary.gid)
    }

    /// The mount of the view that `path` lies on, or that is there itself: the deepest `Bind`, `GrantMount`, `Overlay` or
    /// `Tmpfs`.
    pub fn mount_of(&self, path: &CStr) -> Option<Record<'a>> {
        let place = |record: &Record<'a>| match *record {
            Record::Bind { dst, .. }
            | Record::GrantMount { dst, .. }
            | Record::Overlay { dst, .. }
            | Record::Tmpfs { dst, .. } => Some(dst.to_bytes()),
            _ => None,
        };
        let covers = |dst: &[u8]| {
            path.to_bytes()
                .strip_prefix(dst)
                .is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
        };
        self.records()
            .filter(|record| place(record).is_some_and(covers))
            .max_by_key(|record| place(record).map(<[u8]>::len))
    }

    /// Working directory inside.
    pub fn cwd(&self) -> &'a CStr {
        self.summary.cwd
    }

    /// Standard streams.
    pub fn stdio(&self) -> Stdio {
        self.summary.stdio
    }

    /// See [`Record::LifelineGrace`].
    pub fn lifeline_grace_ms(&self) -> u32 {
        self.summary.lifeline_grace_ms
    }

    /// What the broker is to write to the cgroup.
    pub fn cgroup(&self) -> Option<CgroupLimits> {
        self.summary.cgroup
    }

    /// The layers that the plan requires.
    pub fn required_layers(&self) -> u64 {
        self.summary.required
    }

    /// How many `GrantMount` records there are.
    pub fn grant_mounts(&self) -> u32 {
        self.summary.grants
    }

    /// How many listeners there are, and so how many fds follow those of stdio in `Ready`.
    pub fn listeners(&self) -> u16 {
        self.summary.listeners
    }

    /// How many arguments there are, at least 1.
    pub fn args(&self) -> u16 {
        self.summary.args
    }

    /// See [`Record::ExecPolicy`].
    pub fn exec(&self) -> ExecFlags {
        self.summary.exec
    }

    /// Which network namespace it asks for.
    pub fn network(&self) -> Network {
        self.summary.network
    }

    /// See [`Record::Gvisor`]; `None` for a program that runs on the host's kernel.
    pub fn gvisor(&self) -> Option<GvisorFlags> {
        self.summary.gvisor
    }

    /// What may be added to the writable grants.
    pub fn disk(&self) -> Option<DiskLimit> {
        self.summary.disk
    }

    /// How many environment variables there are.
    pub fn envs(&self) -> u16 {
        self.summary.envs
    }
}

/// Why bytes are not a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// Shorter than a header, longer than [`MAX_BYTES`], or not as long as it says.
    Length {
        /// Bytes there are.
        have: usize,
    },
    /// Not a plan at all.
    Magic,
    /// Another version.
    Version(u16),
    /// Neither root nor user, or the header's spare bytes are not zero.
    Mode(u8),
    /// More than [`MAX_RECORDS`], or the records end elsewhere than the plan.
    RecordCount(u16),
    /// A record is wrong.
    Record {
        /// Which, from 0.
        index: u16,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// A record that must be there is not.
    Missing(&'static str),
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordFault {
    /// No such kind.
    Kind(u16),
    /// A flag the kind does not have.
    Flags(u16),
    /// The record or a field of it ends too early, or a string has no NUL.
    Truncated,
    /// More bytes than the kind has fields for, or padding that is not zero.
    Trailing,
    /// A path that is not absolute, has an empty, `.` or `..` component, a trailing slash, or is too long.
    Path,
    /// A string with a NUL inside (only the builder can meet one).
    Nul,
    /// A field out of its range; the text names the field and the range.
    Value(&'static str),
    /// A second record of a kind that may be there once.
    Duplicate,
}

impl fmt::Display for RecordFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordFault::Kind(kind) => write!(f, "unknown kind {kind}"),
            RecordFault::Flags(flags) => write!(f, "flags {flags:#x} are not defined for its kind"),
            RecordFault::Truncated => f.write_str("ends too early"),
            RecordFault::Trailing => f.write_str("is followed by bytes that belong to nothing"),
            RecordFault::Path => f.write_str(
                "path must be absolute, at most 4095 bytes, without empty, . or .. components",
            ),
            RecordFault::Nul => f.write_str("holds a NUL byte"),
            RecordFault::Value(text) => f.write_str(text),
            RecordFault::Duplicate => f.write_str("is there twice"),
        }
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Length { have } => {
                write!(
                    f,
                    "plan of {have} bytes is truncated, over-long or longer than {MAX_BYTES} bytes"
                )
            }
            PlanError::Magic => f.write_str("not a launch plan (wrong magic)"),
            PlanError::Version(version) => write!(f, "plan version {version}, expected {VERSION}"),
            PlanError::Mode(mode) => write!(f, "plan mode {mode}, expected 0 (root) or 1 (user)"),
            PlanError::RecordCount(count) => {
                write!(
                    f,
                    "plan says {count} records, which is more than {MAX_RECORDS} or not what it holds"
                )
            }
            PlanError::Record { index, fault } => write!(f, "plan record {index}: {fault}"),
            PlanError::Missing(what) => write!(f, "plan has no {what} record"),
        }
    }
}

impl core::error::Error for PlanError {}
