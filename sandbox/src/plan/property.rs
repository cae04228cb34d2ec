//! What a sandbox promises, and by which mechanisms on this host.
//!
//! A property is held if at least one of its mechanisms is available. The table is data, so that `policy show
//! --plan`, the launch record and the documentation say the same.

use super::{LaunchInputs, Mode};
use crate::policy::{EffectivePolicy, Limits};
use agentd_kernel::probe::{Feature, HostCaps};
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
    OwnUid,
    MemoryLimit,
    CpuLimit,
    ProcessLimit,
}

/// Something that can hold a property.
#[derive(Debug, Clone, Copy)]
enum Mechanism {
    /// Always there once the required features are: named by what it is.
    Always(&'static str),
    Needs(&'static str, Feature),
    /// A Landlock right or scope that came with this ABI.
    Landlock(&'static str, u8),
    /// One kernel uid per agent.
    SlotUid,
}

struct Row {
    property: Property,
    name: &'static str,
    promise: &'static str,
    mechanisms: &'static [Mechanism],
    /// Whether `[degrade] allow` may name it.
    degradable: bool,
}

use Mechanism::{Always, Landlock, Needs, SlotUid};

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
        mechanisms: &[Landlock("Landlock file rules", 1)],
        degradable: true,
    },
    Row {
        property: Property::Processes,
        name: "processes",
        promise: "no process outside can be seen, traced or read",
        mechanisms: &[
            Needs("pid namespace", Feature::PidNs),
            Landlock("Landlock ptrace domain", 1),
            Needs(
                "seccomp: no ptrace, process_vm_*, kcmp, pidfd_getfd",
                Feature::Seccomp,
            ),
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
        ],
        degradable: false,
    },
    Row {
        property: Property::Network,
        name: "network",
        promise: "no address can be reached but through the proxy and the gateway",
        mechanisms: &[Needs(
            "network namespace with loopback only",
            Feature::NetNs,
        )],
        degradable: false,
    },
    Row {
        property: Property::AbstractSockets,
        name: "abstract-sockets",
        promise: "no abstract unix socket of the host can be reached",
        mechanisms: &[
            Needs("network namespace", Feature::NetNs),
            Landlock("Landlock abstract socket scope", 6),
        ],
        degradable: false,
    },
    Row {
        property: Property::Ipc,
        name: "ipc",
        promise: "no shared memory, semaphore or queue of the host can be reached",
        mechanisms: &[Needs("IPC namespace", Feature::IpcNs)],
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
        mechanisms: &[Needs("seccomp: set-id bits masked", Feature::Seccomp)],
        degradable: false,
    },
    Row {
        property: Property::KernelSurface,
        name: "kernel-surface",
        promise: "only the system calls of the policy's sets reach the kernel",
        mechanisms: &[Needs("seccomp allow list", Feature::Seccomp)],
        degradable: false,
    },
    Row {
        property: Property::OwnUid,
        name: "own-uid",
        promise: "the agent has a kernel uid of its own, apart from yours and from other agents'",
        mechanisms: &[SlotUid],
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
            Always("RLIMIT_NPROC in its own user namespace"),
        ],
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
}

impl Property {
    pub fn name(self) -> &'static str {
        self.row().name
    }

    pub fn promise(self) -> &'static str {
        self.row().promise
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

    /// Whether this policy asks for it at all.
    fn is_wanted(self, limits: &Limits) -> bool {
        match self {
            Self::MemoryLimit => limits.memory_bytes.is_some(),
            Self::CpuLimit => limits.cpu_percent.is_some(),
            Self::ProcessLimit => limits.pids.is_some(),
            _ => true,
        }
    }
}

/// Every property this policy asks for, as this host holds it.
pub(crate) fn statuses(
    policy: &EffectivePolicy,
    inputs: &LaunchInputs,
    host: &HostCaps,
) -> Vec<PropertyStatus> {
    ROWS.iter()
        .filter(|r| r.property.is_wanted(&policy.limits))
        .map(|row| {
            let mut status = PropertyStatus {
                property: row.property,
                promise: row.promise,
                by: Vec::new(),
                without: Vec::new(),
            };
            for mechanism in row.mechanisms {
                match available(*mechanism, inputs, host) {
                    Ok(name) => status.by.push(name),
                    Err(why) => status.without.push(why),
                }
            }
            status
        })
        .collect()
}

fn available(
    mechanism: Mechanism,
    inputs: &LaunchInputs,
    host: &HostCaps,
) -> Result<&'static str, String> {
    match mechanism {
        Always(name) => Ok(name),
        Needs(name, feature) if host.has(feature) => Ok(name),
        Needs(name, feature) => {
            let why = host
                .probe(feature)
                .and_then(|p| p.why())
                .unwrap_or_else(|| "it was not probed".into());
            Err(format!("{name}: {why}"))
        }
        Landlock(name, abi) if host.landlock_abi >= abi => Ok(name),
        Landlock(name, abi) if host.landlock_abi == 0 => {
            let why = host
                .probe(Feature::Landlock)
                .and_then(|p| p.why())
                .unwrap_or_else(|| format!("needs ABI {abi}"));
            Err(format!("{name}: {why}"))
        }
        Landlock(name, abi) => Err(format!(
            "{name}: needs Landlock ABI {abi}, this kernel has {}",
            host.landlock_abi
        )),
        SlotUid if inputs.mode == Mode::Root && host.has(Feature::IdmappedMounts) => {
            Ok("a reserved uid per agent and idmapped mounts")
        }
        SlotUid if inputs.mode == Mode::Root => {
            let why = host
                .probe(Feature::IdmappedMounts)
                .and_then(|p| p.why())
                .unwrap_or_default();
            Err(format!("idmapped mounts: {why}"))
        }
        SlotUid => Err(
            "a reserved uid per agent: only root can give one, and agentd runs as an ordinary user"
                .into(),
        ),
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
        assert!(Property::degradable("network").is_empty());
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
