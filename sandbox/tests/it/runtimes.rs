//! Runtimes: what a policy under gvisor is promised, by which mechanisms, and what it is refused.

use super::{host, inputs, load, named};
use agentd_kernel::probe::Feature;
use agentd_launch::layers::*;
use agentd_launch::plan::{GvisorFlags, Plan, Record};
use agentd_sandbox::{EffectivePolicy, Mode, RuntimeKind, SandboxPlan, plan};

const GVISOR: &str = "[runtime]\nkind = \"gvisor\"\n";

fn under_gvisor(base: &str) -> EffectivePolicy {
    load(&format!("extends = \"{base}\"\n{GVISOR}")).expect("loads")
}

fn held(plan: &SandboxPlan, property: &str) -> Vec<&'static str> {
    let properties = plan.summary.properties.iter();
    let mut found = properties.filter(|s| s.property.name() == property);
    found.next().expect("a property").by.clone()
}

#[test]
fn native_is_the_default_and_the_shown_value_names_its_line() {
    assert_eq!(named("coding").runtime, RuntimeKind::Native);
    let policy = under_gvisor("coding");
    assert_eq!(policy.runtime, RuntimeKind::Gvisor);
    assert!(policy.show().contains("runtime.kind = \"gvisor\""));
    assert_ne!(
        policy.hash(),
        load("extends = \"coding\"\n").unwrap().hash()
    );
    let error = load("[runtime]\nkind = \"kata\"\n").expect_err("no such runtime");
    assert!(
        error.to_string().contains("allowed are native, gvisor"),
        "{error}"
    );
}

#[test]
fn every_built_in_policy_can_be_held_by_gvisor() {
    for base in ["coding", "review", "build", "python-task", "strict"] {
        let mut inputs = inputs(Mode::Root);
        let workspace = inputs.workspace.clone();
        inputs
            .grants
            .retain(|grant| Some(&grant.dst) == workspace.as_ref());
        plan(&under_gvisor(base), &inputs, &host(7, &[]))
            .unwrap_or_else(|error| panic!("{base}: {error}"));
    }
}

#[test]
fn the_plan_says_gvisor_and_leaves_out_what_does_not_reach_the_program() {
    let mut policy = under_gvisor("coding");
    policy.exec.write_exec = false;
    let planned = plan(&policy, &inputs(Mode::Root), &host(7, &[])).expect("a plan");
    let wire = Plan::parse(&planned.wire).expect("parses");
    assert_eq!(wire.gvisor(), Some(GvisorFlags::NO_DIRECTFS));
    assert_eq!(wire.exec().bits(), 0);
    let landlock = wire.records().find_map(|record| match record {
        Record::Landlock {
            handled_fs, scoped, ..
        } => Some((handled_fs, scoped)),
        _ => None,
    });
    assert_eq!(landlock, Some((0, 3)));
    assert!(
        !wire
            .records()
            .any(|r| matches!(r, Record::LandlockPath { .. }))
    );
    assert_eq!(
        planned.required_layers & (LAYER_GVISOR | LAYER_MDWE | LAYER_MEMFD_NOEXEC | LAYER_SECCOMP),
        LAYER_GVISOR | LAYER_SECCOMP
    );
    // What gVisor itself takes is not the program's.
    let pids = wire.cgroup().expect("limits").pids_max;
    assert_eq!(pids, policy.limits.pids.expect("a limit") + 256);
    assert!(!planned.ipc.shared_memory);
    assert_eq!(
        held(&planned, "file-rules"),
        ["gVisor's own mounts, over those of the view"]
    );
    assert!(held(&planned, "kernel-surface").len() == 3);
    assert!(!held(&planned, "file-view").contains(&"Landlock file rules"));
    assert_eq!(
        held(&planned, "w-xor-x"),
        ["seccomp: mmap, mprotect, pkey_mprotect, shmat"]
    );
    // coding gives memory files that are data up by name where nothing holds them.
    assert!(
        planned
            .degradations
            .iter()
            .any(|d| d.property == "memfd-exec")
    );

    let mut old = host(7, &[]);
    old.gvisor_release = Some(20221219);
    let planned = plan(&under_gvisor("coding"), &inputs(Mode::User), &old).expect("a plan");
    let wire = Plan::parse(&planned.wire).expect("parses");
    assert_eq!(wire.gvisor(), Some(GvisorFlags::NONE));
}

#[test]
fn a_native_plan_does_not_know_gvisor() {
    let planned = plan(&named("coding"), &inputs(Mode::Root), &host(7, &[])).expect("a plan");
    assert_eq!(Plan::parse(&planned.wire).unwrap().gvisor(), None);
    assert_eq!(planned.required_layers & LAYER_GVISOR, 0);
    assert_eq!(held(&planned, "file-rules"), ["Landlock file rules"]);
    assert!(planned.ipc.shared_memory);
}

#[test]
fn what_gvisor_cannot_serve_is_refused_by_line() {
    let refused = |policy: &EffectivePolicy, without: &[Feature]| {
        plan(policy, &inputs(Mode::Root), &host(7, without))
            .expect_err("refused")
            .to_string()
    };
    let absent = refused(&under_gvisor("coding"), &[Feature::Gvisor]);
    assert!(
        absent.starts_with("runtime.kind = \"gvisor\" (example.toml:3): ")
            && absent.contains("apt-get install runsc"),
        "{absent}"
    );
    let device = load(&format!(
        "extends = \"coding\"\n{GVISOR}[devices]\nallow = [\"/dev/fuse\"]\n"
    ))
    .unwrap();
    assert!(refused(&device, &[]).contains("devices.allow names /dev/fuse (example.toml:5)"));
    let network = load(&format!(
        "extends = \"base\"\n{GVISOR}[net]\nmode = \"host\"\n[degrade]\nallow = [\"network\"]\n"
    ));
    assert!(refused(&network.unwrap(), &[]).contains("net.mode is \"host\""));
    // Nothing but the host's kernel refuses to execute a memory file.
    let data = load(&format!(
        "extends = \"base\"\n{GVISOR}[exec]\nmemfd = \"data\"\n"
    ))
    .unwrap();
    assert!(refused(&data, &[]).starts_with("property memfd-exec: "));
}

#[test]
fn a_ceiling_can_demand_gvisor_and_never_forbids_it() {
    let caller = agentd_sandbox::CallerContext::default();
    let (native, gvisor) = (named("coding"), under_gvisor("coding"));
    assert!(
        gvisor
            .exceeds(&caller, &native, &caller)
            .iter()
            .all(|e| e.key != "runtime.kind")
    );
    let excess = native.exceeds(&caller, &gvisor, &caller);
    let found = excess
        .iter()
        .find(|e| e.key == "runtime.kind")
        .expect("exceeds");
    assert_eq!(
        (found.value.as_str(), found.allowed.as_str()),
        ("native", "gvisor")
    );
}
