//! `native`: the program runs on the host's kernel, so everything that kernel has reaches it.

use super::{Reach, Runtime};
use crate::plan::{LaunchInputs, PlanRefused};
use crate::policy::EffectivePolicy;
use agentd_kernel::probe::HostCaps;
use agentd_launch::plan::GvisorFlags;

pub(super) struct Native;

impl Runtime for Native {
    fn check(&self, _: &EffectivePolicy, _: &HostCaps) -> Result<(), PlanRefused> {
        Ok(())
    }

    fn reaches(&self, reach: Reach) -> Result<(), &'static str> {
        match reach {
            // Another runtime's; nobody misses them here.
            Reach::SecondView | Reach::OwnKernel => Err(""),
            _ => Ok(()),
        }
    }

    fn layers(&self) -> u64 {
        0
    }

    fn ids(&self, inputs: &LaunchInputs) -> (u32, u32) {
        (inputs.uid, inputs.gid)
    }

    fn shares_memory(&self) -> bool {
        true
    }

    fn own_processes(&self) -> u64 {
        0
    }

    fn gvisor(&self, _: &HostCaps) -> Option<GvisorFlags> {
        None
    }
}
