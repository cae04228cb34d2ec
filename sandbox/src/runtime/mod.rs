//! Runtimes: on whose kernel a program runs, and what that changes about the promises of a policy.
//!
//! A launch is the same for every runtime up to the last step: grants, view, namespaces, listeners, limits. They differ in
//! which mechanisms reach the program, which a policy can ask for and which layers a launch has to report. [`Runtime`] is
//! that difference, and all of it: the property table, the plan, refusals and `policy show --plan` ask it. The other half
//! of a runtime, how its process is started, is the launcher's (`launch/src/apply/stage.rs`), which believes none of this:
//! it reads the checked wire plan. Pure.

use crate::plan::{LaunchInputs, PlanRefused};
use crate::policy::EffectivePolicy;
use agentd_kernel::probe::HostCaps;
use agentd_launch::plan::GvisorFlags;
use serde::{Deserialize, Serialize};

mod gvisor;
mod native;

/// `runtime.kind`. The order is that of how far a program is from the host's kernel: a ceiling with the first allows no other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    /// gVisor's kernel in user space, itself confined as a program would be.
    Gvisor,
    /// The host's kernel, behind Landlock and seccomp.
    #[default]
    Native,
}

impl RuntimeKind {
    pub const ALL: [RuntimeKind; 2] = [Self::Native, Self::Gvisor];

    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Gvisor => "gvisor",
        }
    }

    pub(crate) fn runtime(self) -> &'static dyn Runtime {
        match self {
            Self::Native => &native::Native,
            Self::Gvisor => &gvisor::Gvisor,
        }
    }
}

impl std::fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A mechanism of the host's kernel that may not reach a program on another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Landlock's rights to files, and what comes with them.
    LandlockFiles,
    /// Landlock's scopes and TCP rules: they hold for whoever makes the call on the host.
    LandlockScopes,
    /// `vm.memfd_noexec`, and the seal that it stands for.
    MemfdNoexec,
    /// `PR_SET_MDWE`.
    Mdwe,
    /// A listener for system calls that the filter holds.
    SeccompNotify,
    /// `RLIMIT_NPROC`.
    ProcessCount,
    /// A second check of each file access, by a kernel of the runtime's own over the host's mounts.
    SecondView,
    /// A kernel of the runtime's own that answers the program's calls.
    OwnKernel,
}

/// What differs from one runtime to the next.
pub(crate) trait Runtime: Sync {
    /// Refuses a policy or a host that this runtime can't serve at all.
    fn check(&self, policy: &EffectivePolicy, host: &HostCaps) -> Result<(), PlanRefused>;

    /// Whether a mechanism reaches the program; else why not. An empty reason is nothing that anybody would miss.
    fn reaches(&self, reach: Reach) -> Result<(), &'static str>;

    /// The layers that only this runtime makes, each of which is then demanded.
    fn layers(&self) -> u64;

    /// The ids under which the program sees itself.
    fn ids(&self, inputs: &LaunchInputs) -> (u32, u32);

    /// Whether memory can be shared with other agents.
    fn shares_memory(&self) -> bool;

    /// Processes and threads of its own, which the cgroup counts with the program's.
    fn own_processes(&self) -> u64;

    /// How the launcher starts it, where that takes more than executing the program.
    fn gvisor(&self, host: &HostCaps) -> Option<GvisorFlags>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_policy_and_the_stricter_one_comes_first() {
        for kind in RuntimeKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert!(RuntimeKind::Gvisor < RuntimeKind::Native);
        assert_eq!(RuntimeKind::default(), RuntimeKind::Native);
    }

    #[test]
    fn each_mechanism_reaches_a_program_under_some_runtime() {
        for reach in [
            Reach::LandlockFiles,
            Reach::LandlockScopes,
            Reach::MemfdNoexec,
            Reach::Mdwe,
            Reach::SeccompNotify,
            Reach::ProcessCount,
            Reach::SecondView,
            Reach::OwnKernel,
        ] {
            let somewhere = |kind: &RuntimeKind| kind.runtime().reaches(reach).is_ok();
            assert!(RuntimeKind::ALL.iter().any(somewhere), "{reach:?}");
        }
    }
}
