//! What a sandbox promises, and by which mechanisms on this host.
//!
//! A property is held if at least one of its mechanisms is available. The table is data, so that `policy show
//! --plan`, the launch record and the documentation say the same.

use super::Mode;
use super::surface::Circumstances;
use crate::policy::{LoopbackPorts, Memfd, NetMode};
use crate::runtime::Reach;
use crate::seccomp::{MemoryFiles, SyscallSet};
use agentd_kernel::probe::{Feature, HostCaps, ProbeState};
use serde::{Serialize, Serializer};

/// One promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Property {
    FileView,
    FileRules,
    Processes,
    Signals,
    Network,
    AbstractSockets,
    Ipc,
    HostName,
    CgroupView,
    Clock,
    Devices,
    Privileges,
    SetIdFiles,
    KernelSurface,
    FileExec,
    MemfdExec,
    WriteXorExecute,
    Locks,
    LoopbackPorts,
    OwnUid,
    OwnGroups,
    MemoryLimit,
    CpuLimit,
    ProcessLimit,
    DiskLimit,
}

/// Something that can hold a property.
#[derive(Clone, Copy)]
enum Mechanism {
    /// Always there once the required features are: named by what it is.
    Always(&'static str),
    Needs(&'static str, Feature),
    /// A Landlock right or scope that came with this ABI.
    Landlock(&'static str, u8),
    /// A network namespace, unless the policy has the host's.
    NetNs(&'static str),
    /// One kernel uid per agent.
    SlotUid,
    /// There when the policy's own answers make it so; else, why not.
    Chosen(
        &'static str,
        fn(Circumstances<'_>) -> Result<(), &'static str>,
    ),
}

/// A mechanism that is not there.
struct Absent {
    why: String,
    /// This kernel has it, but not for agentd: to a policy that demands depth, a gap.
    denied: bool,
}

struct Row {
    property: Property,
    name: &'static str,
    promise: &'static str,
    mechanisms: &'static [Mechanism],
    /// Whether `[degrade] allow` may name it.
    degradable: bool,
}

use Mechanism::{Always, Chosen, Landlock, Needs, NetNs, SlotUid};

/// Another mechanism does better; there is nothing to say.
const NOT_NEEDED: &str = "";

const HOST_NETWORK: &str = "net.mode is host";

/// A breakpoint is written into a mapping that nobody may write.
const TRACERS_WRITE_CODE: &str =
    "the set debug lets a tracer write into code; a policy with it says exec.write_exec = true";

fn chosen(condition: bool, otherwise: &'static str) -> Result<(), &'static str> {
    if condition { Ok(()) } else { Err(otherwise) }
}

const ROWS: &[Row] = &[
    Row {
        property: Property::FileView,
        name: "file-view",
        promise: "no file outside the view can be named, opened, listed or changed",
        mechanisms: &[
            Needs("mount view", Feature::MountNs),
            Landlock("Landlock file rules", 1),
        ],
        degradable: false,
    },
    Row {
        property: Property::FileRules,
        name: "file-rules",
        promise: "file access is checked a second time, under the mount view",
        mechanisms: &[
            Landlock("Landlock file rules", 1),
            Chosen("gVisor's own mounts, over those of the view", |c| {
                c.runtime().reaches(Reach::SecondView)
            }),
        ],
        degradable: true,
    },
    Row {
        property: Property::Processes,
        name: "processes",
        promise: "no process outside can be seen, traced or read",
        mechanisms: &[
            Needs("pid namespace", Feature::PidNs),
            Landlock("Landlock ptrace domain", 1),
            Chosen("seccomp: no ptrace, process_vm_*, kcmp", |c| {
                chosen(
                    !c.allows(SyscallSet::Debug),
                    "the policy allows the set debug",
                )
            }),
            Needs("seccomp: no pidfd_getfd", Feature::Seccomp),
        ],
        degradable: false,
    },
    Row {
        property: Property::Signals,
        name: "signals",
        promise: "no process outside, the sandbox's own init included, can be signalled",
        mechanisms: &[
            Needs("pid namespace", Feature::PidNs),
            Landlock("Landlock signal scope", 6),
            SlotUid,
        ],
        degradable: false,
    },
    Row {
        property: Property::Network,
        name: "network",
        promise: "no address can be reached but through the proxy and the gateway",
        mechanisms: &[
            NetNs("network namespace with loopback only"),
            Chosen(
                "seccomp: no socket but unix, TCP, UDP and interface lists",
                |c| chosen(c.policy.net.mode != NetMode::Host, HOST_NETWORK),
            ),
        ],
        // Without the host's network it is always held: the namespace is a required feature.
        degradable: true,
    },
    Row {
        property: Property::AbstractSockets,
        name: "abstract-sockets",
        promise: "no abstract unix socket of the host can be reached",
        mechanisms: &[
            NetNs("network namespace"),
            Landlock("Landlock abstract socket scope", 6),
        ],
        degradable: false,
    },
    Row {
        property: Property::Ipc,
        name: "ipc",
        promise: "no shared memory, semaphore or queue of the host can be reached",
        mechanisms: &[
            Needs("IPC namespace", Feature::IpcNs),
            Chosen("seccomp: no System V or POSIX objects", |c| {
                chosen(!c.allows(SyscallSet::Ipc), "the policy allows the set ipc")
            }),
        ],
        degradable: false,
    },
    Row {
        property: Property::HostName,
        name: "host-name",
        promise: "the host's name is neither shown nor changed",
        mechanisms: &[Needs("UTS namespace", Feature::UtsNs)],
        degradable: false,
    },
    Row {
        property: Property::CgroupView,
        name: "cgroup-view",
        promise: "the place in the host's cgroup tree is not shown",
        mechanisms: &[Needs("cgroup namespace", Feature::CgroupNs)],
        degradable: true,
    },
    Row {
        property: Property::Clock,
        name: "clock",
        promise: "no clock can be set",
        mechanisms: &[
            Needs(
                "seccomp: no clock_settime, settimeofday, adjtimex",
                Feature::Seccomp,
            ),
            Needs("time namespace", Feature::TimeNs),
        ],
        degradable: false,
    },
    Row {
        property: Property::Devices,
        name: "devices",
        promise: "no device but null, zero, full, random, urandom and its own terminals",
        mechanisms: &[
            Needs("minimal /dev, all mounts nodev", Feature::MountNs),
            Landlock("Landlock: no device can be made", 1),
            Landlock("Landlock device ioctl right", 5),
        ],
        degradable: false,
    },
    Row {
        property: Property::Privileges,
        name: "privileges",
        promise: "no capability is held or can be gained",
        mechanisms: &[
            Always("empty capability sets"),
            Always("no_new_privs"),
            Always("nosuid mounts"),
        ],
        degradable: false,
    },
    Row {
        property: Property::SetIdFiles,
        name: "set-id-files",
        promise: "no set-uid or set-gid file is left behind in the workspace",
        mechanisms: &[
            Needs(
                "seccomp: set-id bits masked by the floor's filter",
                Feature::Seccomp,
            ),
            Needs(
                "seccomp: set-id bits masked by the plan's filter",
                Feature::Seccomp,
            ),
        ],
        degradable: false,
    },
    Row {
        property: Property::KernelSurface,
        name: "kernel-surface",
        promise: "only the system calls of the policy's sets reach the kernel",
        mechanisms: &[
            Needs("seccomp allow list", Feature::Seccomp),
            Needs("the floor's filter, under it", Feature::Seccomp),
            Chosen("gVisor's kernel, which answers in the host's place", |c| {
                c.runtime().reaches(Reach::OwnKernel)
            }),
        ],
        degradable: false,
    },
    Row {
        property: Property::FileExec,
        name: "file-exec",
        promise: "no file is executed or mapped as code but those in fs.exec",
        mechanisms: &[
            Needs("noexec mounts", Feature::MountNs),
            Landlock("Landlock execute right", 1),
        ],
        degradable: false,
    },
    Row {
        property: Property::MemfdExec,
        name: "memfd-exec",
        promise: "no memory file is executed",
        mechanisms: &[
            Chosen("seccomp: no memfd_create", |c| {
                chosen(c.policy.exec.memfd == Memfd::Refused, "exec.memfd is data")
            }),
            Chosen("vm.memfd_noexec = 2 in its pid namespace", |c| {
                c.runtime().reaches(Reach::MemfdNoexec)?;
                if c.sets_memfd_noexec() {
                    Ok(())
                } else if c.seals_exist() {
                    Err("only root can set it, where /proc/sys can be written")
                } else {
                    Err("this kernel has none (Linux 6.3)")
                }
            }),
            Chosen("seccomp: memory files only with MFD_NOEXEC_SEAL", |c| {
                c.runtime().reaches(Reach::MemfdNoexec)?;
                let why = if c.seals_exist() {
                    NOT_NEEDED
                } else {
                    "this kernel does not know the seal (Linux 6.3)"
                };
                chosen(c.memory_files() == MemoryFiles::Sealed, why)
            }),
        ],
        degradable: true,
    },
    Row {
        property: Property::WriteXorExecute,
        name: "w-xor-x",
        promise: "no memory is written and then executed",
        mechanisms: &[
            Chosen("seccomp: mmap, mprotect, pkey_mprotect, shmat", |c| {
                chosen(!c.allows(SyscallSet::Debug), TRACERS_WRITE_CODE)
            }),
            Chosen("PR_SET_MDWE", |c| {
                chosen(!c.allows(SyscallSet::Debug), TRACERS_WRITE_CODE)?;
                c.runtime().reaches(Reach::Mdwe)?;
                chosen(
                    c.host.has(Feature::Mdwe),
                    "this kernel has none (Linux 6.3)",
                )
            }),
        ],
        degradable: false,
    },
    Row {
        property: Property::Locks,
        name: "locks",
        promise: "no lock is held on a file that others use",
        mechanisms: &[Needs(
            "seccomp: no flock, fcntl locks, leases",
            Feature::Seccomp,
        )],
        degradable: false,
    },
    Row {
        property: Property::LoopbackPorts,
        name: "loopback-ports",
        promise: "inside, only the TCP ports of net.ports and agentd's own are listened on or connected to",
        mechanisms: &[
            Landlock("Landlock TCP rules", super::landlock::TCP_ABI),
            Chosen("seccomp: no listen", |c| {
                chosen(!c.listens(), "net.ports names ports to listen on")
            }),
        ],
        degradable: true,
    },
    Row {
        property: Property::OwnUid,
        name: "own-uid",
        promise: "the agent has a kernel uid of its own, apart from yours and from other agents'",
        mechanisms: &[SlotUid],
        degradable: true,
    },
    Row {
        property: Property::OwnGroups,
        name: "own-groups",
        promise: "the agent is in none of your supplementary groups",
        mechanisms: &[Chosen(
            "supplementary groups dropped before the id map is written",
            |on| {
                chosen(
                    on.inputs.mode == Mode::Root,
                    "an ordinary user can't drop groups, so what is shown and open to one of yours only (a socket, a device) is open to the agent",
                )
            },
        )],
        degradable: true,
    },
    Row {
        property: Property::MemoryLimit,
        name: "memory-limit",
        promise: "limits.memory holds for the whole agent",
        mechanisms: &[Needs("cgroup memory controller", Feature::CgroupMemory)],
        degradable: true,
    },
    Row {
        property: Property::CpuLimit,
        name: "cpu-limit",
        promise: "limits.cpu holds for the whole agent",
        mechanisms: &[Needs("cgroup cpu controller", Feature::CgroupCpu)],
        degradable: true,
    },
    Row {
        property: Property::ProcessLimit,
        name: "process-limit",
        promise: "limits.pids holds for the whole agent",
        // Counted per user namespace since Linux 5.14, so the agent's own namespace has its own count.
        mechanisms: &[
            Needs("cgroup pids controller", Feature::CgroupPids),
            Chosen("RLIMIT_NPROC in its own user namespace", |c| {
                c.runtime().reaches(Reach::ProcessCount)
            }),
        ],
        degradable: true,
    },
    Row {
        property: Property::DiskLimit,
        name: "disk-limit",
        promise: "an agent that has added more than limits.disk or limits.disk_inodes to the host's folders is ended",
        mechanisms: &[Always(
            "a meter that looks several times a second; not held by the kernel",
        )],
        degradable: true,
    },
];

/// A name for several properties at once.
const GROUPS: &[(&str, &[Property])] = &[(
    "cgroup-limits",
    &[
        Property::MemoryLimit,
        Property::CpuLimit,
        Property::ProcessLimit,
    ],
)];

/// One property on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PropertyStatus {
    pub property: Property,
    pub promise: &'static str,
    /// The mechanisms that hold it; empty when nothing does.
    pub by: Vec<&'static str>,
    /// Mechanisms that would hold it too, and why they are not there.
    pub without: Vec<String>,
    /// Those among them that this kernel has, but not for agentd.
    #[serde(skip)]
    pub denied: Vec<String>,
}

/// One property as the documentation shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyRow {
    pub name: &'static str,
    pub promise: &'static str,
    /// Each with what it needs.
    pub mechanisms: Vec<String>,
    pub degradable: bool,
}

impl Property {
    /// Every property, in the order of `policy show --plan`.
    pub fn table() -> impl Iterator<Item = PropertyRow> {
        let show = |mechanism: &Mechanism| match mechanism {
            Always(name) => (*name).to_owned(),
            Needs(name, feature) => format!("{name} (`{}`)", feature.name()),
            Landlock(name, abi) => format!("{name} (ABI {abi})"),
            NetNs(name) => format!("{name} (`net-ns`, by policy)"),
            SlotUid => "a reserved uid per agent and idmapped mounts (root)".to_owned(),
            Chosen(name, _) => format!("{name} (by policy and mode)"),
        };
        ROWS.iter().map(move |row| PropertyRow {
            name: row.name,
            promise: row.promise,
            mechanisms: row.mechanisms.iter().map(show).collect(),
            degradable: row.degradable,
        })
    }

    pub fn name(self) -> &'static str {
        self.row().name
    }

    pub fn promise(self) -> &'static str {
        self.row().promise
    }

    /// What makes the first of its mechanisms available that this host's probes know a remedy for.
    pub(super) fn fix(self, host: &HostCaps) -> Option<String> {
        self.row().mechanisms.iter().find_map(|mechanism| {
            let Needs(_, feature) = mechanism else {
                return None;
            };
            let probe = host.probe(*feature).filter(|probe| !probe.is_supported())?;
            probe.fix.clone()
        })
    }

    fn row(self) -> &'static Row {
        ROWS.iter()
            .find(|r| r.property == self)
            .expect("every property has a row")
    }

    /// What `[degrade] allow` may name: properties, and groups of them.
    pub fn degradable_names() -> impl Iterator<Item = &'static str> {
        GROUPS
            .iter()
            .map(|(n, _)| *n)
            .chain(ROWS.iter().filter(|r| r.degradable).map(|r| r.name))
    }

    /// The properties that a name in `[degrade] allow` stands for; empty when it is not one.
    pub(crate) fn degradable(name: &str) -> &'static [Property] {
        if let Some((_, list)) = GROUPS.iter().find(|(n, _)| *n == name) {
            return list;
        }
        ROWS.iter()
            .find(|r| r.degradable && r.name == name)
            .map_or(&[], |r| std::slice::from_ref(&r.property))
    }

    pub(crate) fn is_degradable(self) -> bool {
        self.row().degradable
    }

    /// Whether only a broker that is root can give it.
    pub(crate) fn is_of_root_mode(self) -> bool {
        matches!(self, Self::OwnUid | Self::OwnGroups)
    }

    /// Whether this policy asks for it at all.
    fn is_wanted(self, circumstances: Circumstances<'_>) -> bool {
        let policy = circumstances.policy;
        match self {
            Self::MemoryLimit => policy.limits.memory_bytes.is_some(),
            Self::CpuLimit => policy.limits.cpu_percent.is_some(),
            Self::ProcessLimit => policy.limits.pids.is_some(),
            Self::DiskLimit => {
                policy.limits.disk_bytes.is_some() || policy.limits.disk_inodes.is_some()
            }
            Self::MemfdExec => policy.exec.memfd != Memfd::Any,
            Self::WriteXorExecute => !policy.exec.write_exec,
            Self::Locks => !circumstances.allows(SyscallSet::Locks),
            Self::LoopbackPorts => policy.net.ports != LoopbackPorts::Any,
            _ => true,
        }
    }
}

/// Every property this policy asks for, as this host holds it.
pub(crate) fn statuses(circumstances: Circumstances<'_>) -> Vec<PropertyStatus> {
    ROWS.iter()
        .filter(|r| r.property.is_wanted(circumstances))
        .map(|row| {
            let mut status = PropertyStatus {
                property: row.property,
                promise: row.promise,
                by: Vec::new(),
                without: Vec::new(),
                denied: Vec::new(),
            };
            for mechanism in row.mechanisms {
                match available(*mechanism, circumstances) {
                    Ok(name) => status.by.push(name),
                    Err(Absent { why, .. }) if why == NOT_NEEDED => {}
                    Err(Absent { why, denied }) => {
                        if denied {
                            status.denied.push(why.clone());
                        }
                        status.without.push(why);
                    }
                }
            }
            status
        })
        .collect()
}

fn available(
    mechanism: Mechanism,
    circumstances: Circumstances<'_>,
) -> Result<&'static str, Absent> {
    let Circumstances { inputs, host, .. } = circumstances;
    let probe = |feature| {
        let probe = host.probe(feature);
        let why = probe
            .and_then(|p| p.why())
            .unwrap_or_else(|| "it was not probed".into());
        let denied = probe.is_some_and(|p| matches!(p.state, ProbeState::Denied { .. }));
        (why, denied)
    };
    let lacks = |name: &str, feature| {
        let (why, denied) = probe(feature);
        Err(Absent {
            why: format!("{name}: {why}"),
            denied,
        })
    };
    let absent = |why: String| Err(Absent { why, denied: false });
    let unreached = |abi| {
        let reach = match abi {
            super::landlock::TCP_ABI | super::landlock::SCOPES_ABI => Reach::LandlockScopes,
            _ => Reach::LandlockFiles,
        };
        circumstances.runtime().reaches(reach).err()
    };
    match mechanism {
        Always(name) => Ok(name),
        Needs(name, feature) if host.has(feature) => Ok(name),
        Needs(name, feature) => lacks(name, feature),
        Landlock(name, abi) if unreached(abi).is_some() => {
            absent(format!("{name}: {}", unreached(abi).unwrap_or_default()))
        }
        Landlock(name, abi) if host.landlock_abi >= abi => Ok(name),
        Landlock(name, _) if host.landlock_abi == 0 => lacks(name, Feature::Landlock),
        Landlock(name, abi) => absent(format!(
            "{name}: needs Landlock ABI {abi}, this kernel has {}",
            host.landlock_abi
        )),
        // To a policy that demands depth it is missing: this kernel has it.
        NetNs(name) if circumstances.policy.net.mode == NetMode::Host => Err(Absent {
            why: format!("{name}: {HOST_NETWORK}"),
            denied: true,
        }),
        NetNs(name) if host.has(Feature::NetNs) => Ok(name),
        NetNs(name) => lacks(name, Feature::NetNs),
        SlotUid if inputs.mode == Mode::Root && host.has(Feature::IdmappedMounts) => {
            Ok("a reserved uid per agent and idmapped mounts")
        }
        SlotUid if inputs.mode == Mode::Root => lacks("idmapped mounts", Feature::IdmappedMounts),
        SlotUid => absent(
            "a reserved uid per agent: only root can give one, and agentd runs as an ordinary user"
                .into(),
        ),
        Chosen(name, held) => match held(circumstances) {
            Ok(()) => Ok(name),
            Err(NOT_NEEDED) => absent(NOT_NEEDED.into()),
            Err(why) => absent(format!("{name}: {why}")),
        },
    }
}

impl std::fmt::Display for Property {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Property {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_name_degradable_properties_only() {
        for name in Property::degradable_names() {
            let list = Property::degradable(name);
            assert!(
                !list.is_empty() && list.iter().all(|p| p.is_degradable()),
                "{name}"
            );
        }
        assert!(Property::degradable("file-view").is_empty());
        assert!(Property::degradable("nonsense").is_empty());
    }

    #[test]
    fn every_row_has_a_mechanism_and_a_name_of_its_own() {
        let mut names: Vec<_> = ROWS.iter().map(|r| r.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
        assert!(ROWS.iter().all(|r| !r.mechanisms.is_empty()));
    }
}
