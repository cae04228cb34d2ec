//! The named sets, and what a policy's other answers change in them.
//!
//! Every system call of Linux 6.18 is in a set or in [`refused`](super::refused), with the reason beside it; a test counts.
//! An entry of a later set, or of a list that an answer of the policy chooses, replaces the same call's entry of an earlier
//! one: `locks` completes what `io` has of fcntl().

use super::rule::Rule;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

mod files;
mod inward;
mod memory;
mod network;
mod process;

macro_rules! sets {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal, $rules:path; )*) => {
        /// A named set of system calls, as `[syscalls] allow` of a policy lists them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum SyscallSet { $( $(#[$doc])* $variant, )* }

        impl SyscallSet {
            pub const ALL: &'static [SyscallSet] = &[ $( SyscallSet::$variant, )* ];

            pub fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            pub(crate) fn rules(self) -> &'static [Rule] {
                match self { $( Self::$variant => $rules, )* }
            }
        }
    };
}

sets! {
    /// Starting, naming, waiting for and ending processes and threads. Namespaces can't be made.
    Process = "process", process::PROCESS;
    /// Mapping and protecting one's own memory; what of it may be executed is `[exec]`'s business.
    Memory = "memory", memory::MEMORY;
    /// Files by path: what the mount view and Landlock show. Set-id bits can't be set.
    Files = "files", files::FILES;
    /// Reading, writing and waiting on open descriptors.
    Io = "io", files::IO;
    /// Sending signals to one's own processes and handling them.
    Signals = "signals", process::SIGNALS;
    /// Reading clocks, sleeping and timers. No clock can be set.
    Time = "time", process::TIME;
    /// Priorities and affinity; raising a priority needs a capability.
    Scheduling = "scheduling", process::SCHEDULING;
    /// Asking for, and giving up, ids and capabilities; there are none to gain.
    Identity = "identity", process::IDENTITY;
    /// Sockets within the sandbox's own loopback.
    Network = "network", network::NETWORK;
    /// System V and POSIX queues, semaphores and shared memory, in the sandbox's own IPC namespace.
    Ipc = "ipc", memory::IPC;
    /// Locks and leases on files, also on those that are only read.
    Locks = "locks", files::LOCKS;
    /// Tracing and reading one's own processes.
    Debug = "debug", inward::DEBUG;
    /// Tightening further: programs that bring a sandbox of their own (Landlock, more filters).
    Confinement = "confinement", inward::CONFINEMENT;
}

impl SyscallSet {
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|s| s.name() == name)
    }

    /// Its system calls, each with what an agent needs it for.
    pub fn calls(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.rules().iter().map(|rule| (rule.name, rule.why))
    }
}

impl Serialize for SyscallSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What becomes of memory files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemoryFiles {
    /// There are none.
    Refused,
    /// Only those that say themselves that they are never executed.
    Sealed,
    /// As the kernel has it: `vm.memfd_noexec` holds, or nothing has to.
    Kernel,
}

/// Whether memory may be written and then executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WriteExec {
    Refused,
    Allowed,
}

/// Which ioctl() requests there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ioctls {
    /// Those of terminals, files and interfaces.
    Known,
    /// Those of granted devices too: all but a few.
    Devices,
}

/// Whether the agent may be a service of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Listening {
    Refused,
    Allowed,
}

/// What netlink sockets are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Netlink {
    /// To list interfaces: those of the sandbox's own network namespace.
    Interfaces,
    /// There are none: in the host's network they would show its neighbours and routes.
    Refused,
}

/// Who refuses the calls that are rare enough for somebody to be told of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusals {
    /// The filter, with EPERM.
    Silent,
    /// The sandbox's init, with EPERM, and it tells of it. What is allowed costs the same either way.
    Told,
}

/// The whole of what a filter lets an agent ask of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surface {
    pub sets: Vec<SyscallSet>,
    pub memory_files: MemoryFiles,
    pub write_exec: WriteExec,
    pub ioctls: Ioctls,
    pub listening: Listening,
    pub netlink: Netlink,
    pub refusals: Refusals,
}

impl Surface {
    /// The entry that counts for each system call that has one.
    pub(crate) fn rules(&self) -> BTreeMap<&'static str, Rule> {
        let mut rules: BTreeMap<&'static str, Rule> = SyscallSet::ALL
            .iter()
            .filter(|s| self.sets.contains(s))
            .flat_map(|s| s.rules())
            .map(|r| (r.name, *r))
            .collect();
        // A restriction of what no set allows would be a permission.
        let mut restrict = |list: &[Rule]| {
            for rule in list {
                if let Some(entry) = rules.get_mut(rule.name) {
                    *entry = *rule;
                }
            }
        };
        if [SyscallSet::Debug, SyscallSet::Confinement]
            .iter()
            .all(|s| self.sets.contains(s))
        {
            restrict(inward::DEBUG_AND_CONFINEMENT);
        }
        match self.memory_files {
            MemoryFiles::Refused => restrict(memory::NO_MEMFD),
            MemoryFiles::Sealed => restrict(memory::SEALED_MEMFD),
            MemoryFiles::Kernel => {}
        }
        match self.write_exec {
            WriteExec::Refused => {
                restrict(memory::NO_WRITE_EXEC);
                restrict(memory::NO_EXEC_SHM);
            }
            WriteExec::Allowed => {}
        }
        match self.listening {
            Listening::Refused => restrict(network::NO_LISTENING),
            Listening::Allowed => {}
        }
        match self.netlink {
            Netlink::Refused => restrict(network::NO_NETLINK),
            Netlink::Interfaces => {}
        }
        match self.ioctls {
            Ioctls::Known => {}
            Ioctls::Devices => restrict(files::DEVICE_IOCTLS),
        }
        rules
    }
}

#[cfg(test)]
mod tests;
