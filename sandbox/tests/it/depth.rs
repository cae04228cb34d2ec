//! How many mechanisms hold a property, and what `[exec]` and `[net] ports` become, on hosts that have more or less.

use super::{host, inputs, load};
use agentd_kernel::probe::{Feature, HostCaps, ProbeState};
use agentd_launch::layers::{LAYER_LANDLOCK_NET, LAYER_MDWE, LAYER_MEMFD_NOEXEC};
use agentd_launch::plan::{ExecFlags, Plan, Record};
use agentd_sandbox::{EffectivePolicy, LaunchInputs, Mode, plan};

/// strict, as far as this version holds it, and on top of it.
fn tight() -> EffectivePolicy {
    load("extends = \"base\"\n[exec]\nmemfd = \"none\"\n[net]\nports = []\n[syscalls]\nallow = { remove = [\"locks\"] }\n[degrade]\nmechanisms = 2")
        .expect("loads")
}

fn without_grants(mode: Mode) -> LaunchInputs {
    LaunchInputs {
        grants: Vec::new(),
        workspace: None,
        ..inputs(mode)
    }
}

#[test]
fn a_policy_that_demands_depth_gets_two_mechanisms_wherever_there_are_two() {
    const SINGLE: &[&str] = &[
        // One mechanism each, on any kernel.
        "file-rules",
        "host-name",
        "cgroup-view",
        "own-uid",
        "own-groups",
        "locks",
        "memory-limit",
        "cpu-limit",
    ];
    for abi in [2, 3, 4, 5, 6, 7] {
        // What came after 6.1, the kernel of ABI 2.
        let too_old: &[Feature] = if abi < 3 {
            &[Feature::MemfdNoexec, Feature::Mdwe]
        } else {
            &[]
        };
        let plan =
            plan(&tight(), &without_grants(Mode::Root), &host(abi, too_old)).expect("planned");
        for status in &plan.summary.properties {
            let name = status.property.name();
            let newer = match name {
                "abstract-sockets" => abi < 6,
                "memfd-exec" | "w-xor-x" => abi < 3,
                "loopback-ports" => abi < 4,
                _ => false,
            };
            let expected = if SINGLE.contains(&name) || newer {
                1
            } else {
                2
            };
            assert!(
                status.by.len() >= expected,
                "ABI {abi}: {name} by {:?}",
                status.by
            );
        }
    }
}

#[test]
fn depth_that_the_kernel_has_and_the_host_denies_refuses_the_launch() {
    let mut caps = host(7, &[]);
    let denied = ProbeState::Denied {
        capability: "CAP_SYS_ADMIN".into(),
        why: "unshare(CLONE_NEWTIME): EPERM".into(),
    };
    caps.observe(Feature::TimeNs, denied);
    let refused = plan(&tight(), &without_grants(Mode::Root), &caps).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "property clock: held by seccomp: no clock_settime, settimeofday, adjtimex alone, and example.toml:9 demands 2 mechanisms where this kernel has them: time namespace: unshare(CLONE_NEWTIME): EPERM (needs CAP_SYS_ADMIN); see agentctl doctor, or launch with another policy"
    );
    // An older kernel lacks it, which is another matter; and base does not ask.
    let older = host(7, &[Feature::TimeNs]);
    assert!(plan(&tight(), &without_grants(Mode::Root), &older).is_ok());
    assert!(
        plan(
            &load("extends = \"base\"").unwrap(),
            &without_grants(Mode::Root),
            &caps
        )
        .is_ok()
    );
}

#[test]
fn what_a_line_allows_to_be_missing_does_not_count_as_shallow() {
    let mut caps = host(7, &[]);
    for feature in [
        Feature::CgroupMemory,
        Feature::CgroupPids,
        Feature::CgroupCpu,
    ] {
        let denied = ProbeState::Denied {
            capability: "a delegated cgroup".into(),
            why: "it is not writable".into(),
        };
        caps.observe(feature, denied);
    }
    let allowing = load("extends = \"base\"\n[degrade]\nallow = [\"cgroup-limits\"]").unwrap();
    let planned = plan(&allowing, &without_grants(Mode::User), &caps).expect("planned");
    let without: Vec<&str> = planned
        .degradations
        .iter()
        .map(|d| d.property.as_str())
        .collect();
    assert!(without.contains(&"memory-limit"), "{without:?}");
    assert!(
        plan(
            &load("extends = \"base\"").unwrap(),
            &without_grants(Mode::User),
            &caps
        )
        .is_err()
    );
}

#[test]
fn memory_files_without_a_seal_need_a_degradation_by_name() {
    let old = host(2, &[Feature::MemfdNoexec, Feature::Mdwe]);
    let data = "extends = \"base\"\n[exec]\nmemfd = \"data\"\n";
    let refused = plan(&load(data).unwrap(), &without_grants(Mode::User), &old).unwrap_err();
    assert!(
        refused.to_string().starts_with("property memfd-exec: "),
        "{refused}"
    );
    let allowed = format!("{data}[degrade]\nallow = [\"memfd-exec\", \"own-uid\"]\n");
    let planned = plan(&load(&allowed).unwrap(), &without_grants(Mode::User), &old).unwrap();
    assert!(
        planned
            .degradations
            .iter()
            .any(|d| d.property == "memfd-exec")
    );
    // A container whose /proc/sys is read-only: the kernel knows the seal, and that is enough.
    let mut container = host(7, &[]);
    let denied = ProbeState::Denied {
        capability: "a writable /proc/sys".into(),
        why: "it is read-only".into(),
    };
    container.observe(Feature::MemfdNoexec, denied);
    let planned = plan(
        &load(data).unwrap(),
        &without_grants(Mode::Root),
        &container,
    )
    .unwrap();
    assert_eq!(planned.required_layers & LAYER_MEMFD_NOEXEC, 0);
    let held = |s: &&agentd_sandbox::PropertyStatus| s.property.name() == "memfd-exec";
    let status = planned.summary.properties.iter().find(held).unwrap();
    assert_eq!(
        status.by,
        ["seccomp: memory files only with MFD_NOEXEC_SEAL"]
    );
    let none = "extends = \"base\"\n[exec]\nmemfd = \"none\"\n";
    assert!(plan(&load(none).unwrap(), &without_grants(Mode::User), &old).is_ok());
}

#[test]
fn exec_and_ports_become_flags_layers_and_rules() {
    let wire = |policy: &str, mode, caps: &HostCaps| {
        let plan = plan(&load(policy).unwrap(), &without_grants(mode), caps).unwrap();
        let parsed = Plan::parse(&plan.wire).unwrap();
        let ports: Vec<(u16, u64)> = parsed
            .records()
            .filter_map(|r| match r {
                Record::LandlockPort { port, access } => Some((port, access)),
                _ => None,
            })
            .collect();
        (parsed.exec(), plan.required_layers, ports)
    };
    let tight = "extends = \"base\"\n[exec]\nmemfd = \"data\"\n[net]\nports = [3000]\n[degrade]\nallow = [\"loopback-ports\"]";
    let (exec, layers, ports) = wire(tight, Mode::Root, &host(7, &[]));
    assert_eq!(
        exec,
        ExecFlags::MEMFD_NOEXEC | ExecFlags::MDWE | ExecFlags::TELL
    );
    for layer in [LAYER_LANDLOCK_NET, LAYER_MDWE, LAYER_MEMFD_NOEXEC] {
        assert_ne!(layers & layer, 0, "{layer:#x}");
    }
    // The bus's MCP may be connected to, the agent's own port listened on too.
    assert_eq!(ports, [(8765, 2), (3000, 3)]);
    let (exec, layers, ports) = wire(tight, Mode::User, &host(3, &[]));
    assert_eq!(exec, ExecFlags::MDWE | ExecFlags::TELL);
    assert_eq!(layers & (LAYER_LANDLOCK_NET | LAYER_MEMFD_NOEXEC), 0);
    assert!(ports.is_empty());
    let loose = "extends = \"base\"\n[exec]\nmemfd = \"any\"\nwrite_exec = true\n[syscalls]\nallow = [\"debug\"]";
    let (exec, layers, _) = wire(loose, Mode::Root, &host(7, &[]));
    assert_eq!(exec, ExecFlags::DEBUG | ExecFlags::TELL);
    assert_eq!(
        layers & (LAYER_LANDLOCK_NET | LAYER_MDWE | LAYER_MEMFD_NOEXEC),
        0
    );
}

#[test]
fn a_tracer_writes_code_so_debug_needs_leave_for_that() {
    let policy = "extends = \"base\"\n[syscalls]\nallow = [\"debug\"]\n";
    let refused = plan(
        &load(policy).unwrap(),
        &without_grants(Mode::Root),
        &host(7, &[]),
    )
    .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("a policy with it says exec.write_exec = true"),
        "{refused}"
    );
    let allowed = format!("{policy}[exec]\nwrite_exec = true\n");
    assert!(
        plan(
            &load(&allowed).unwrap(),
            &without_grants(Mode::Root),
            &host(7, &[])
        )
        .is_ok()
    );
}
