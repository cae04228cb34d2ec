//! What `[exec]`, `[syscalls]`, `[net] ports` and `[devices]` come to on this host: the filter's surface and the flags for the
//! launcher. Pure; the property table asks the same questions here, so it can't promise what the filter does not hold.

use super::{LaunchInputs, Mode};
use crate::policy::{EffectivePolicy, LoopbackPorts, Memfd, NetMode};
use crate::runtime::{Reach, Runtime};
use crate::seccomp::{
    Ioctls, Listening, MemoryFiles, Netlink, Refusals, Surface, SyscallSet, WriteExec,
};
use agentd_kernel::probe::{Feature, HostCaps, ProbeState};
use agentd_launch::plan::ExecFlags;

/// Everything that decides.
#[derive(Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    pub policy: &'a EffectivePolicy,
    pub inputs: &'a LaunchInputs,
    pub host: &'a HostCaps,
}

impl Circumstances<'_> {
    pub(crate) fn surface(self) -> Surface {
        Surface {
            sets: SyscallSet::ALL
                .iter()
                .copied()
                .filter(|s| self.allows(*s))
                .collect(),
            memory_files: self.memory_files(),
            write_exec: if self.policy.exec.write_exec {
                WriteExec::Allowed
            } else {
                WriteExec::Refused
            },
            ioctls: if self.policy.devices.is_empty() {
                Ioctls::Known
            } else {
                Ioctls::Devices
            },
            netlink: match self.policy.net.mode {
                NetMode::Host => Netlink::Refused,
                NetMode::None | NetMode::Proxy => Netlink::Interfaces,
            },
            refusals: self.refusals(),
            listening: if self.listens() {
                Listening::Allowed
            } else {
                Listening::Refused
            },
        }
    }

    pub(crate) fn exec_flags(self) -> ExecFlags {
        let when = |condition, flag| if condition { flag } else { ExecFlags::NONE };
        when(self.sets_memfd_noexec(), ExecFlags::MEMFD_NOEXEC)
            | when(
                !self.policy.exec.write_exec && self.reaches(Reach::Mdwe),
                ExecFlags::MDWE,
            )
            | when(self.allows(SyscallSet::Debug), ExecFlags::DEBUG)
            | when(self.refusals() == Refusals::Told, ExecFlags::TELL)
    }

    /// Whether the sandbox's init refuses, and tells. Not without the sockets over which the
    /// listener comes to the init. The kernel allows one listener for all filters of a process,
    /// which takes nothing from anybody inside: no set lets one be made.
    pub(crate) fn refusals(self) -> Refusals {
        let told = self.host.has(Feature::SeccompNotify)
            && self.reaches(Reach::SeccompNotify)
            && self.allows(SyscallSet::Network);
        if told {
            Refusals::Told
        } else {
            Refusals::Silent
        }
    }

    pub(crate) fn runtime(self) -> &'static dyn Runtime {
        self.policy.runtime.runtime()
    }

    pub(crate) fn reaches(self, reach: Reach) -> bool {
        self.runtime().reaches(reach).is_ok()
    }

    pub(crate) fn allows(self, set: SyscallSet) -> bool {
        self.policy.syscalls.iter().any(|v| v.value == set)
    }

    /// Whether `vm.memfd_noexec` will be set in the sandbox's pid namespace; only the host's uid 0 can.
    pub(crate) fn sets_memfd_noexec(self) -> bool {
        self.policy.exec.memfd != Memfd::Any
            && self.inputs.mode == Mode::Root
            && self.host.has(Feature::MemfdNoexec)
            && self.reaches(Reach::MemfdNoexec)
    }

    /// Whether this kernel knows memory files that are sealed against execution, whoever may set the sysctl.
    pub(crate) fn seals_exist(self) -> bool {
        let probe = self.host.probe(Feature::MemfdNoexec);
        self.reaches(Reach::MemfdNoexec)
            && probe.is_some_and(|p| !matches!(p.state, ProbeState::Unsupported { .. }))
    }

    pub(crate) fn memory_files(self) -> MemoryFiles {
        match self.policy.exec.memfd {
            Memfd::Refused => MemoryFiles::Refused,
            Memfd::Any => MemoryFiles::Kernel,
            Memfd::Data if self.sets_memfd_noexec() => MemoryFiles::Kernel,
            Memfd::Data if self.seals_exist() => MemoryFiles::Sealed,
            // Before Linux 6.3 nothing but having none would do; the policy has said by name that it goes without.
            Memfd::Data => MemoryFiles::Kernel,
        }
    }

    /// Whether the agent may be a service of its own.
    pub(crate) fn listens(self) -> bool {
        self.policy.net.ports != LoopbackPorts::Only(Vec::new())
    }

    /// The TCP ports of the agent's own, where there is a list and a kernel that holds it.
    pub(crate) fn ports(&self) -> Option<&[u16]> {
        match &self.policy.net.ports {
            LoopbackPorts::Only(ports) if self.host.landlock_abi >= super::landlock::TCP_ABI => {
                Some(ports)
            }
            LoopbackPorts::Only(_) | LoopbackPorts::Any => None,
        }
    }
}
