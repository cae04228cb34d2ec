//! Limits: what the kernel holds, what agentd does, and what is missing where there are no cgroups.

use agentd_kernel::probe::Feature;
use agentd_launch::layers;
use agentd_launch::plan::{self as wire, Plan, Record};
use agentd_sandbox::{Mode, plan};

use super::{MODES, planned};
use crate::{host, inputs, load, named};

#[test]
fn limits_without_cgroups_are_recorded_in_coding_and_refused_in_base() {
    let bare = host(
        7,
        &[
            Feature::CgroupMemory,
            Feature::CgroupPids,
            Feature::CgroupCpu,
        ],
    );
    let plan_coding = plan(&named("coding"), &inputs(Mode::User), &bare).expect("planned");
    let lost: Vec<&str> = plan_coding
        .degradations
        .iter()
        .map(|d| d.property.as_str())
        .collect();
    assert_eq!(lost, ["own-uid", "own-groups", "memory-limit", "cpu-limit"]);
    assert_eq!(plan_coding.required_layers & layers::LAYER_CGROUP_LIMITS, 0);
    assert!(
        Plan::parse(&plan_coding.wire)
            .expect("a plan")
            .cgroup()
            .is_none()
    );
    let mut base_inputs = inputs(Mode::User);
    (base_inputs.grants, base_inputs.workspace) = (Vec::new(), None);
    let refused = plan(&named("base"), &base_inputs, &bare).expect_err("refused");
    assert!(
        refused
            .to_string()
            .starts_with("property memory-limit: cgroup memory controller: it is not there"),
        "{refused}"
    );
}

#[test]
fn with_cgroups_the_limits_are_demanded() {
    let plan = planned(Mode::Root);
    let cgroup = Plan::parse(&plan.wire)
        .expect("a plan")
        .cgroup()
        .expect("limits");
    assert_eq!((cgroup.memory_max_bytes, cgroup.pids_max), (8 << 30, 2048));
    assert_eq!(
        (cgroup.cpu_quota_us, cgroup.cpu_period_us),
        (400_000, 100_000)
    );
    assert!(cgroup.required);
    assert_ne!(plan.required_layers & layers::LAYER_CGROUP_LIMITS, 0);
    assert_eq!(plan.degradations, []);
}

#[test]
fn limits_of_disk_and_dollars_are_in_the_plan() {
    let text =
        "extends = \"coding\"\n[limits]\ncost = \"$5\"\ndisk = \"1GiB\"\ndisk_inodes = 1000\n";
    let policy = load(text).expect("loads");
    for mode in MODES {
        let made = plan(&policy, &inputs(mode), &host(7, &[])).expect("a plan");
        assert_eq!(made.model.max_cost_nano_usd, Some(5_000_000_000));
        let wire = Plan::parse(&made.wire).expect("parses");
        let limit = wire::DiskLimit {
            bytes: 1 << 30,
            inodes: 1000,
        };
        assert_eq!(wire.disk(), Some(limit));
        let held = made.summary.properties.iter();
        let mut held = held.filter(|p| p.property.name() == "disk-limit");
        assert!(held.next().expect("listed").by[0].contains("not held by the kernel"));
    }
    let unlimited = plan(&named("coding"), &inputs(Mode::Root), &host(7, &[]));
    let unlimited = unlimited.expect("a plan");
    assert_eq!(Plan::parse(&unlimited.wire).expect("parses").disk(), None);
}

#[test]
fn private_folders_together_fit_into_the_memory_limit() {
    for (memory, expected) in [("1GiB", 256 << 20), ("10GiB", 2 << 30), ("none", 2 << 30)] {
        let policy = load(&format!(
            "extends = \"coding\"\n[limits]\nmemory = \"{memory}\"\ntmp = \"2GiB\"\n"
        ))
        .expect("loads");
        let planned = plan(&policy, &inputs(Mode::Root), &host(7, &[])).expect("planned");
        let parsed = Plan::parse(&planned.wire).expect("a plan");
        let sizes: Vec<u64> = parsed
            .records()
            .filter_map(|record| match record {
                Record::Tmpfs { size_bytes, .. } => Some(size_bytes),
                _ => None,
            })
            .collect();
        // HOME, /tmp and /var/tmp; /dev/shm is the fourth.
        assert_eq!(sizes, [expected; 3], "{memory}");
    }
}
