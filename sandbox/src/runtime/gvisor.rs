//! `gvisor`: the program runs on gVisor's kernel, a process (`runsc`) of the sandbox.
//!
//! What confines that process, namespaces, view, cgroup, ids, confines the program too. seccomp is loaded a second time by
//! gVisor's kernel, for the program alone. Landlock's file rules can't be had: runsc mounts, which nobody may under such
//! rules. Nor is there anything of memory files and just-in-time code but what a filter can see.

use super::{Reach, Runtime};
use crate::plan::{LaunchInputs, PlanRefused};
use crate::policy::{EffectivePolicy, NetMode};
use agentd_kernel::probe::{Feature, HostCaps};
use agentd_launch::layers::LAYER_GVISOR;
use agentd_launch::plan::GvisorFlags;

/// From this release on files are opened by gVisor's kernel itself, unless it is told not to.
const HAS_DIRECTFS: u32 = 20230601;

pub(super) struct Gvisor;

impl Gvisor {
    fn refused(policy: &EffectivePolicy, problem: String, allowed: &str) -> PlanRefused {
        PlanRefused::Input {
            what: format!(
                "runtime.kind = \"gvisor\" ({})",
                policy.origin_of("runtime.kind")
            ),
            problem,
            allowed: allowed.into(),
        }
    }
}

impl Runtime for Gvisor {
    fn check(&self, policy: &EffectivePolicy, host: &HostCaps) -> Result<(), PlanRefused> {
        if !host.has(Feature::Gvisor) {
            let why = host.probe(Feature::Gvisor).and_then(|p| p.why());
            return Err(Self::refused(
                policy,
                why.unwrap_or_else(|| "it was not probed".into()),
                "install gVisor's runsc (Debian: sudo apt-get install runsc) and start agentd again, or set runtime.kind = \"native\"",
            ));
        }
        if policy.net.mode == NetMode::Host {
            return Err(Self::refused(
                policy,
                format!("net.mode is \"host\" ({})", policy.origin_of("net.mode")),
                "under gvisor net.mode is \"none\" or \"proxy\"",
            ));
        }
        if let Some(device) = policy.devices.first() {
            return Err(Self::refused(
                policy,
                format!("devices.allow names {} ({})", device.value, device.origin),
                "gVisor shows no device of the host: take it out, or set runtime.kind = \"native\"",
            ));
        }
        Ok(())
    }

    fn reaches(&self, reach: Reach) -> Result<(), &'static str> {
        match reach {
            Reach::LandlockScopes | Reach::SecondView | Reach::OwnKernel => Ok(()),
            Reach::LandlockFiles => {
                Err("gVisor's runsc mounts, which nobody may under Landlock's file rules")
            }
            Reach::MemfdNoexec => Err("gVisor's kernel has no such thing"),
            Reach::Mdwe => Err("gVisor's kernel has none"),
            Reach::SeccompNotify => Err("gVisor's kernel has no listeners"),
            Reach::ProcessCount => Err("gVisor's kernel does not count processes per user"),
        }
    }

    fn layers(&self) -> u64 {
        LAYER_GVISOR
    }

    /// runsc is root in a user namespace that has this one id: the program's own, outside.
    fn ids(&self, _: &LaunchInputs) -> (u32, u32) {
        (0, 0)
    }

    /// Its memory is not the host's pages.
    fn shares_memory(&self) -> bool {
        false
    }

    /// Some forty threads stand at the start and a hundred under load; without room for one more the runtime of Go ends all.
    fn own_processes(&self) -> u64 {
        256
    }

    fn gvisor(&self, host: &HostCaps) -> Option<GvisorFlags> {
        let directfs = host.gvisor_release.is_some_and(|r| r >= HAS_DIRECTFS);
        Some(match directfs {
            true => GvisorFlags::NO_DIRECTFS,
            false => GvisorFlags::NONE,
        })
    }
}
