//! Launches that are refused, in one line that says what would help.

use agentd_kernel::probe::Feature;
use agentd_launch::layers;
use agentd_sandbox::{Mode, PlanRefused, plan};

use super::landlock_rules;
use crate::{host, inputs, load, named};

#[test]
fn without_landlock_the_launch_is_refused_in_one_line_unless_the_policy_allows_it() {
    let refused = plan(&named("coding"), &inputs(Mode::Root), &host(0, &[])).expect_err("refused");
    assert_eq!(
        refused.to_string(),
        "property file-rules: Landlock file rules: it is not there; to launch without it, add \"file-rules\" to allow \
         under [degrade] in the policy"
    );
    let policy =
        load("extends = \"coding\"\n[degrade]\nallow = [\"file-rules\"]\n").expect("loads");
    let plan = plan(&policy, &inputs(Mode::Root), &host(0, &[])).expect("planned");
    let degradation = plan
        .degradations
        .iter()
        .find(|d| d.property == "file-rules")
        .expect("recorded");
    assert_eq!(degradation.allowed_by, "example.toml:3");
    assert_eq!(plan.required_layers & layers::LAYER_LANDLOCK, 0);
    assert!(landlock_rules(&plan).is_empty());
}

#[test]
fn what_no_policy_can_do_without_refuses_with_the_remedy() {
    for feature in [
        Feature::UserNs,
        Feature::NetNs,
        Feature::Seccomp,
        Feature::ProcMount,
    ] {
        let refused =
            plan(&named("coding"), &inputs(Mode::Root), &host(7, &[feature])).expect_err("refused");
        assert!(
            refused
                .to_string()
                .starts_with(&format!("property {}: it is not there; ", feature.name())),
            "{refused}"
        );
    }
    let mut arm = host(7, &[]);
    arm.machine = "aarch64".into();
    let refused = plan(&named("coding"), &inputs(Mode::Root), &arm).expect_err("refused");
    assert_eq!(
        refused,
        PlanRefused::Machine {
            machine: "aarch64".into()
        }
    );
}

#[test]
fn strict_without_a_cgroup_is_refused_with_the_command_that_gets_one() {
    let host = host(7, &[Feature::CgroupMemory, Feature::CgroupCpu]);
    let mut i = inputs(Mode::User);
    i.grants.clear();
    i.workspace = None;
    let refused = plan(&named("strict"), &i, &host).expect_err("refused");
    assert_eq!(
        refused.to_string(),
        "property memory-limit: cgroup memory controller: it is not there; to get it: agentctl shutdown; systemd-run --user \
         --scope -p Delegate=yes agentctl run ...; to launch without it, add \"memory-limit\" to allow under [degrade] in the policy"
    );
}

#[test]
fn inputs_that_no_plan_could_carry_are_refused_by_name() {
    let refused = |change: fn(&mut agentd_sandbox::LaunchInputs)| {
        let mut i = inputs(Mode::User);
        change(&mut i);
        plan(&named("coding"), &i, &host(7, &[]))
            .expect_err("refused")
            .to_string()
    };
    assert!(refused(|i| i.argv.clear()).starts_with("command: there is none"));
    assert!(refused(|i| i.uid = 0).starts_with("inside ids: an agent is never uid"));
    assert!(
        refused(|i| i.grants.clear())
            .starts_with("workspace /home/ada/repo: it was not handed over")
    );
    assert!(
        refused(|i| drop(i.extra_env.insert("A=B".into(), String::new())))
            .starts_with("environment variable \"A=B\"")
    );
    assert!(refused(|i| i.home = Some("/usr".into())).starts_with("home /usr:"));
}
