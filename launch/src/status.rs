//! The messages on the status socket between the launcher and agentd: 64 bytes each, little-endian,
//! one per packet.
//!
//! Pure encoding; both sides treat the other's bytes as untrusted. `Ready` carries fds by
//! `SCM_RIGHTS` (the PTY's master, or the write end of stdin and the read ends of stdout and
//! stderr, or nothing; then the listeners in the plan's order; then, with
//! [`LAYER_SECCOMP_NOTIFY`](crate::layers::LAYER_SECCOMP_NOTIFY), the read end of the pipe of
//! [`refusal`](crate::refusal)s), [`Control::Lifeline`] carries one; nothing else carries any. A
//! packet of another length or with an unknown kind does not decode.

use core::fmt;

/// Bytes in every message.
pub const MESSAGE_LEN: usize = 64;

/// The most fds a `Ready` carries: three for stdio, one per listener, and one for refusals.
pub const MAX_READY_FDS: usize = 3 + crate::plan::MAX_LISTENERS + 1;

/// `record` of a failure that belongs to no record of the plan.
pub const NO_RECORD: u16 = u16::MAX;

/// From the launcher to agentd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The program has been executed; its fds travel with this packet.
    Ready {
        /// The program's pid inside its pid namespace.
        agent_pid: u32,
        /// The layers that are really active.
        layers: u64,
        /// The Landlock ABI of the running kernel, 0 for none.
        landlock_abi: u32,
    },
    /// The launch failed; nothing of it is left.
    Failed(Failure),
    /// The program was stopped by this signal.
    Stopped {
        /// The signal.
        signal: u32,
    },
    /// The program was continued.
    Continued,
    /// The program ended; everything else in the sandbox is about to be killed.
    Exited {
        /// As `wait4` gives it.
        wait_status: i32,
        /// User time of all that ran in the sandbox and was reaped.
        utime_us: u64,
        /// System time, likewise.
        stime_us: u64,
        /// The largest resident set of one of its processes, in KiB.
        maxrss_kb: u64,
    },
    /// In the status file only: the broker's meter is about to kill the sandbox for this.
    OverDisk(OverDisk),
}

/// What an agent has added to its writable grants, and may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverDisk {
    /// Bytes on disk.
    Bytes {
        /// As measured.
        added: u64,
        /// Allowed.
        limit: u64,
    },
    /// Files.
    Inodes {
        /// As measured.
        added: u64,
        /// Allowed.
        limit: u64,
    },
    /// Folders in folders, more than anybody measures.
    Depth {
        /// Allowed.
        limit: u64,
    },
}

/// Where a launch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What was being done.
    pub step: Step,
    /// The system call's error number; 0 where none was involved.
    pub errno: i32,
    /// The plan's record it was done for, or [`NO_RECORD`].
    pub record: u16,
    /// [`Step::Require`]: the missing layers. [`Step::Died`]: the wait status. Otherwise 0.
    pub detail: u64,
}

/// From agentd to the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Send a signal.
    Signal {
        /// 1 to 64.
        signal: u32,
        /// Who gets it.
        target: Target,
    },
    /// The read end that travels with this packet takes the place of one lifeline: who held the other end of the old one has
    /// gone, and a successor has taken over. Once both lifelines are alive again the grace no longer runs.
    Lifeline {
        /// Whose.
        which: Lifeline,
    },
}

/// Whose life a lifeline tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifeline {
    /// The daemon's.
    Agentd,
    /// The broker's.
    Broker,
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The program the launcher executed.
    Main,
    /// The foreground process group of its terminal; its own process group where there is none.
    Foreground,
    /// Every process of the sandbox but its init.
    All,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What the launcher was doing when it failed. Its text starts a sentence like
        /// `mount the host directory /usr: no such file or directory`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Step { $($(#[$doc])* $name = $number,)* }

        impl Step {
            /// Every step, in order.
            pub const ALL: &[Step] = &[$(Step::$name),*];

            fn from_number(number: u16) -> Option<Step> {
                match number { $($number => Some(Step::$name),)* _ => None }
            }

            /// What was being done, without the path.
            pub fn text(self) -> &'static str {
                match self { $(Step::$name => $text,)* }
            }
        }
    };
}

steps! {
    /// Mapping the plan, or its seals.
    ReadPlan = 1, "read the plan";
    /// The bytes are not a plan.
    ParsePlan = 2, "parse the plan";
    /// The plan asks for what no plan may ask for.
    Floor = 3, "check the plan against the floor";
    /// Becoming non-dumpable, its signals, its session.
    Init = 4, "set up the sandbox's init";
    /// A session keyring of its own.
    Keyring = 5, "join a new session keyring";
    /// `sethostname`.
    Hostname = 6, "set the host name";
    /// The network namespace, or bringing `lo` up in it.
    Loopback = 7, "make a network namespace with its loopback";
    /// The tmpfs that becomes `/`.
    Root = 8, "mount the new root";
    /// A `Bind` record.
    Bind = 9, "mount the host directory";
    /// A `GrantMount` record.
    Grant = 10, "mount the granted directory";
    /// A `Tmpfs` record.
    Tmpfs = 11, "mount a tmpfs on";
    /// The sandbox's own procfs.
    Proc = 12, "mount procfs on";
    /// The minimal `/dev`.
    Dev = 13, "make the device directory";
    /// A `File` record.
    File = 14, "write the file";
    /// A `Symlink` record.
    Symlink = 15, "make the symbolic link";
    /// A `Dir` record.
    Dir = 16, "make the directory";
    /// A `Mask` record.
    Mask = 17, "mask";
    /// A `TcpListener` or `UnixListener` record.
    Listener = 18, "listen on";
    /// The terminal or the pipes.
    Stdio = 19, "open the program's terminal or pipes";
    /// Making the new root `/` and dropping the old one.
    Pivot = 20, "change to the new root";
    /// Making the root and the read-only tmpfs mounts read-only.
    ReadOnly = 21, "make read-only";
    /// The working directory.
    Cwd = 22, "change to the working directory";
    /// A `Rlimit` record.
    Rlimit = 23, "set a resource limit";
    /// `no_new_privs`.
    NoNewPrivs = 24, "set no_new_privs";
    /// Dropping every capability.
    Caps = 25, "drop the capabilities";
    /// Creating or enforcing the ruleset, or a kernel older than the plan's `min_abi`.
    Landlock = 26, "enforce the Landlock ruleset";
    /// A `LandlockPath` record.
    LandlockPath = 27, "add the Landlock rule for";
    /// A `LandlockPort` record.
    LandlockPort = 28, "add the Landlock rule for a port";
    /// The built-in filter.
    BaseFilter = 29, "load the base seccomp filter";
    /// The `Seccomp` record.
    PlanFilter = 30, "load the plan's seccomp filter";
    /// Starting the process that becomes the program.
    Fork = 31, "start the program's process";
    /// Its fds, session and signals.
    Process = 32, "prepare the program's process";
    /// `execve`: the program was not found or could not be run.
    Exec = 33, "execute";
    /// A required layer is not active.
    Require = 34, "check the required layers";
    /// The program's process died before it executed the program.
    Died = 35, "reach the program";
    /// A `Protect` record.
    Protect = 36, "protect";
    /// An `Overlay` record.
    Overlay = 37, "mount the overlay on";
    /// A `Mqueue` record.
    Mqueue = 38, "mount the message queues on";
    /// A `GrantMount` record with `COPY`.
    Copy = 41, "copy the granted file to";
    /// A `Copy` record.
    OwnCopy = 43, "give a copy of its own of";
    /// `PR_SET_MDWE`, for another reason than that the kernel does not know it.
    Mdwe = 40, "refuse executable memory to the program";
    /// gVisor's program is not where it is looked for, or its bundle can't be made.
    Runtime = 50, "prepare gVisor's runsc (in /usr/local/bin or /usr/bin; agentctl doctor shows what is found)";
    /// runsc ended before the program ran in it.
    RuntimeStart = 51, "start the program under gVisor's runsc";
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Failure {
    /// A failed system call.
    pub fn new(step: Step, errno: i32, record: u16) -> Failure {
        Failure {
            step,
            errno,
            record,
            detail: 0,
        }
    }

    /// The exit code a shell would give: 127 not found, 126 not executable, 125 the launch failed.
    pub fn shell_code(&self) -> u8 {
        const ENOENT: i32 = 2;
        const ENOTDIR: i32 = 20;
        match (self.step, self.errno) {
            (Step::Exec, ENOENT | ENOTDIR) => 127,
            (Step::Exec, _) => 126,
            _ => 125,
        }
    }

    /// The whole sentence: what, for which path or record of `plan`, and why.
    #[cfg(feature = "std")]
    pub fn describe(&self, plan: &crate::plan::Plan<'_>) -> String {
        use crate::plan::Record;
        let subject = match plan.records().nth(usize::from(self.record)) {
            Some(Record::Bind { src, .. }) => lossy(src),
            Some(
                Record::GrantMount { dst, .. }
                | Record::Tmpfs { dst, .. }
                | Record::Proc { dst }
                | Record::Mqueue { dst }
                | Record::Dev { dst, .. }
                | Record::File { dst, .. }
                | Record::Symlink { dst, .. }
                | Record::Dir { dst, .. }
                | Record::Mask { dst, .. }
                | Record::Protect { dst, .. }
                | Record::Copy { dst, .. }
                | Record::Overlay { dst, .. },
            ) => lossy(dst),
            Some(
                Record::LandlockPath { path, .. }
                | Record::UnixListener { path, .. }
                | Record::Cwd(path),
            ) => lossy(path),
            Some(Record::TcpListener { port, .. }) => format!(" 127.0.0.1:{port}"),
            Some(Record::LandlockPort { port, .. }) => format!(" {port}"),
            Some(Record::Hostname(name) | Record::Arg(name)) => lossy(name),
            Some(Record::Rlimit { resource, .. }) => format!(" {resource}"),
            _ => String::new(),
        };
        let why = match self.step {
            Step::Require => format!(
                "not active here: {}",
                crate::layers::layer_names(self.detail)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            Step::Died | Step::RuntimeStart if self.errno == 0 => {
                format!("its process ended first (wait status {:#x})", self.detail)
            }
            Step::ParsePlan | Step::Floor if self.errno == 0 => String::from("refused"),
            _ => std::io::Error::from_raw_os_error(self.errno).to_string(),
        };
        format!("{}{subject}: {why}", self.step)
    }
}

#[cfg(feature = "std")]
fn lossy(path: &core::ffi::CStr) -> String {
    format!(" {}", path.to_string_lossy())
}

const READY: u16 = 1;
const FAILED: u16 = 2;
const STOPPED: u16 = 3;
const CONTINUED: u16 = 4;
const EXITED: u16 = 5;
const OVER_DISK: u16 = 6;
const SIGNAL: u16 = 16;
const LIFELINE: u16 = 17;

// Every message: kind u16, a u16, b u32, then three u64.
fn pack(kind: u16, a: u16, b: u32, words: [u64; 3]) -> [u8; MESSAGE_LEN] {
    let mut out = [0; MESSAGE_LEN];
    out[0..2].copy_from_slice(&kind.to_le_bytes());
    out[2..4].copy_from_slice(&a.to_le_bytes());
    out[4..8].copy_from_slice(&b.to_le_bytes());
    for (slot, word) in out[8..32].chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    out
}

fn unpack(bytes: &[u8]) -> Option<(u16, u16, u32, [u64; 3])> {
    let bytes: &[u8; MESSAGE_LEN] = bytes.try_into().ok()?;
    if bytes[32..].iter().any(|b| *b != 0) {
        return None;
    }
    let mut words = [0; 3];
    for (word, slot) in words.iter_mut().zip(bytes[8..32].chunks_exact(8)) {
        *word = u64::from_le_bytes(slot.try_into().ok()?);
    }
    let a = u16::from_le_bytes([bytes[2], bytes[3]]);
    let b = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    Some((u16::from_le_bytes([bytes[0], bytes[1]]), a, b, words))
}

impl Status {
    /// The packet.
    pub fn encode(&self) -> [u8; MESSAGE_LEN] {
        match *self {
            Status::Ready {
                agent_pid,
                layers,
                landlock_abi,
            } => pack(READY, 0, agent_pid, [layers, landlock_abi.into(), 0]),
            Status::Failed(Failure {
                step,
                errno,
                record,
                detail,
            }) => pack(
                FAILED,
                record,
                errno.cast_unsigned(),
                [step as u64, detail, 0],
            ),
            Status::Stopped { signal } => pack(STOPPED, 0, signal, [0; 3]),
            Status::Continued => pack(CONTINUED, 0, 0, [0; 3]),
            Status::Exited {
                wait_status,
                utime_us,
                stime_us,
                maxrss_kb,
            } => pack(
                EXITED,
                0,
                wait_status.cast_unsigned(),
                [utime_us, stime_us, maxrss_kb],
            ),
            Status::OverDisk(over) => {
                let (what, words) = match over {
                    OverDisk::Bytes { added, limit } => (0, [added, limit, 0]),
                    OverDisk::Inodes { added, limit } => (1, [added, limit, 0]),
                    OverDisk::Depth { limit } => (2, [0, limit, 0]),
                };
                pack(OVER_DISK, what, 0, words)
            }
        }
    }

    /// The message in a packet; `None` if it is not one.
    pub fn decode(packet: &[u8]) -> Option<Status> {
        let (kind, a, b, words) = unpack(packet)?;
        Some(match kind {
            READY => Status::Ready {
                agent_pid: b,
                layers: words[0],
                landlock_abi: u32::try_from(words[1]).ok()?,
            },
            FAILED => Status::Failed(Failure {
                step: Step::from_number(u16::try_from(words[0]).ok()?)?,
                errno: b.cast_signed(),
                record: a,
                detail: words[1],
            }),
            STOPPED => Status::Stopped { signal: b },
            CONTINUED => Status::Continued,
            EXITED => Status::Exited {
                wait_status: b.cast_signed(),
                utime_us: words[0],
                stime_us: words[1],
                maxrss_kb: words[2],
            },
            OVER_DISK => {
                let [added, limit, _] = words;
                Status::OverDisk(match a {
                    0 => OverDisk::Bytes { added, limit },
                    1 => OverDisk::Inodes { added, limit },
                    2 => OverDisk::Depth { limit },
                    _ => return None,
                })
            }
            _ => return None,
        })
    }
}

impl Control {
    /// The packet.
    pub fn encode(&self) -> [u8; MESSAGE_LEN] {
        match *self {
            Control::Signal { signal, target } => {
                let target = match target {
                    Target::Main => 0,
                    Target::Foreground => 1,
                    Target::All => 2,
                };
                pack(SIGNAL, target, signal, [0; 3])
            }
            Control::Lifeline { which } => {
                let which = match which {
                    Lifeline::Agentd => 0,
                    Lifeline::Broker => 1,
                };
                pack(LIFELINE, which, 0, [0; 3])
            }
        }
    }

    /// The message in a packet; `None` if it is not one.
    pub fn decode(packet: &[u8]) -> Option<Control> {
        let (kind, a, signal, _) = unpack(packet)?;
        match kind {
            SIGNAL => {
                let target = match a {
                    0 => Target::Main,
                    1 => Target::Foreground,
                    2 => Target::All,
                    _ => return None,
                };
                (1..=64)
                    .contains(&signal)
                    .then_some(Control::Signal { signal, target })
            }
            LIFELINE => {
                let which = match a {
                    0 => Lifeline::Agentd,
                    1 => Lifeline::Broker,
                    _ => return None,
                };
                Some(Control::Lifeline { which })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let failure = |step| {
            Status::Failed(Failure {
                step,
                errno: -7,
                record: 3,
                detail: u64::MAX,
            })
        };
        let fixed = [
            Status::Ready {
                agent_pid: 2,
                layers: 0x1_ffff,
                landlock_abi: 7,
            },
            Status::Stopped { signal: 20 },
            Status::Continued,
            Status::Exited {
                wait_status: 0x100,
                utime_us: 1,
                stime_us: 2,
                maxrss_kb: 3,
            },
            Status::OverDisk(OverDisk::Bytes { added: 2, limit: 1 }),
            Status::OverDisk(OverDisk::Inodes { added: 2, limit: 1 }),
            Status::OverDisk(OverDisk::Depth { limit: 1 }),
        ];
        for status in fixed
            .into_iter()
            .chain(Step::ALL.iter().map(|step| failure(*step)))
        {
            assert_eq!(Status::decode(&status.encode()), Some(status));
        }
        for target in [Target::Main, Target::Foreground, Target::All] {
            let control = Control::Signal { signal: 9, target };
            assert_eq!(Control::decode(&control.encode()), Some(control));
        }
        for which in [Lifeline::Agentd, Lifeline::Broker] {
            let control = Control::Lifeline { which };
            assert_eq!(Control::decode(&control.encode()), Some(control));
        }
    }

    #[test]
    fn what_is_not_a_message_does_not_decode() {
        assert_eq!(Status::decode(&[0; MESSAGE_LEN]), None);
        assert_eq!(Status::decode(&[1; 63]), None);
        let mut trailing = Status::Continued.encode();
        trailing[63] = 1;
        assert_eq!(Status::decode(&trailing), None);
        assert_eq!(
            Control::decode(
                &Control::Signal {
                    signal: 0,
                    target: Target::All
                }
                .encode()
            ),
            None
        );
        assert_eq!(
            Control::decode(
                &Control::Signal {
                    signal: 65,
                    target: Target::All
                }
                .encode()
            ),
            None
        );
        assert_eq!(Control::decode(&Status::Continued.encode()), None);
    }

    #[test]
    fn exec_failures_have_the_codes_of_a_shell() {
        assert_eq!(Failure::new(Step::Exec, 2, 0).shell_code(), 127);
        assert_eq!(Failure::new(Step::Exec, 13, 0).shell_code(), 126);
        assert_eq!(Failure::new(Step::Bind, 2, 0).shell_code(), 125);
    }
}
