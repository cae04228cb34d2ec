//! The limits of an agent's cgroup: those of its plan when it starts, lower ones while it runs, and back.
//!
//! Nothing is remembered here: whoever asks says every limit, and what the launch set is agentd's to know. An agent's limits
//! are no more than agentd could have launched it with, so there is no right in them. Runs in the worker.

use crate::failure::{failed, refused};
use agentd_broker::protocol::{ErrorCode, Failure, Limits};
use agentd_kernel::cgroup::{CgroupError, Controller, CpuQuota, Group, Limits as Held};
use agentd_launch::layers::LAYER_CGROUP_LIMITS;
use agentd_launch::plan::{CgroupLimits, Plan};
use std::io::ErrorKind;

/// Sets the plan's limits; `LAYER_CGROUP_LIMITS` if there are any and all of them hold.
pub fn at_launch(group: &Group, plan: &Plan<'_>) -> Result<u64, Failure> {
    let Some(asked) = plan.cgroup() else {
        return Ok(0);
    };
    let CgroupLimits {
        memory_max_bytes,
        pids_max,
        cpu_quota_us,
        cpu_period_us,
        required,
    } = asked;
    let limits = held(Limits {
        memory_max_bytes,
        pids_max,
        cpu_quota_us,
        cpu_period_us,
    });
    let missing = group.apply(&limits).map_err(|error| told(&error))?;
    if missing.is_empty() {
        return Ok(LAYER_CGROUP_LIMITS);
    }
    if required {
        let text = format!(
            "the plan requires cgroup limits, but there is no usable controller for {}",
            names(&missing)
        );
        return Err(refused(ErrorCode::CgroupLimits, text));
    }
    Ok(0)
}

/// Makes these the limits of an agent that runs.
pub fn while_it_runs(group: &Group, limits: Limits) -> Result<(), Failure> {
    let missing = group.change(&held(limits)).map_err(|error| {
        let is_in_use = error.source.kind() == ErrorKind::ResourceBusy;
        match group.usage().memory_current {
            Some(used) if is_in_use => refused(
                ErrorCode::CgroupLimits,
                format!(
                    "it uses {used} bytes of memory, and the kernel can't take enough of them back: with version 1 of \
                     cgroups a limit below what is in use is refused"
                ),
            ),
            _ => told(&error),
        }
    })?;
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!(
        "this host has no usable cgroup controller for {}",
        names(&missing)
    );
    Err(refused(ErrorCode::Unsupported, text))
}

fn told(error: &CgroupError) -> Failure {
    failed(
        ErrorCode::CgroupLimits,
        format!("{} {}", error.operation, error.path.display()),
        &error.source,
    )
}

fn held(limits: Limits) -> Held {
    let set = |value: u64| (value != 0).then_some(value);
    Held {
        memory_max_bytes: set(limits.memory_max_bytes),
        pids_max: set(limits.pids_max),
        cpu: set(limits.cpu_quota_us).map(|quota_us| CpuQuota {
            quota_us,
            period_us: limits.cpu_period_us,
        }),
    }
}

fn names(controllers: &[Controller]) -> String {
    let names: Vec<_> = controllers
        .iter()
        .map(|controller| controller.name())
        .collect();
    names.join(", ")
}
