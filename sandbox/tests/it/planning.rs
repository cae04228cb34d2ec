//! Planning: what the launcher is told, read back from the wire, on hosts that have more or less.

use super::{host, inputs, load, named};
use agentd_kernel::probe::Feature;
use agentd_launch::floor::{self, FloorContext};
use agentd_launch::layers;
use agentd_launch::plan::Network;
use agentd_launch::plan::{self as wire, MountFlags, Plan, Record};
use agentd_sandbox::{Access, GrantInput, HomeFile, Mode, PlanRefused, SandboxPlan, plan};

const MODES: [Mode; 2] = [Mode::Root, Mode::User];

fn planned(mode: Mode) -> SandboxPlan {
    plan(&named("coding"), &inputs(mode), &host(7, &[])).expect("planned")
}

fn text(s: &std::ffi::CStr) -> &str {
    s.to_str().expect("UTF-8")
}

/// (path, rights) of the Landlock rules.
fn landlock(plan: &SandboxPlan) -> Vec<(String, u64)> {
    let parsed = Plan::parse(&plan.wire).expect("a plan");
    parsed
        .records()
        .filter_map(|r| match r {
            Record::LandlockPath { path, access, .. } => Some((text(path).to_owned(), access)),
            _ => None,
        })
        .collect()
}

#[test]
fn plans_pass_the_floor_in_both_modes() {
    for mode in MODES {
        let plan = planned(mode);
        let parsed = Plan::parse(&plan.wire).expect("a plan");
        let mode = match mode {
            Mode::Root => wire::Mode::Root,
            Mode::User => wire::Mode::User,
        };
        assert_eq!(
            floor::check(
                &parsed,
                &FloorContext {
                    mode,
                    grants: 3,
                    network: Network::Own
                }
            ),
            Ok(())
        );
    }
}

#[test]
fn mounts_are_made_outer_before_inner_and_only_the_workspace_is_writable() {
    let plan = planned(Mode::Root);
    let mounts = &plan.summary.mounts;
    assert!(
        mounts
            .windows(2)
            .all(|w| w[0].path < w[1].path || !w[1].path.starts_with(&w[0].path))
    );
    let writable: Vec<&str> = mounts
        .iter()
        .filter(|m| m.access == "read-write")
        .map(|m| m.path.as_str())
        .collect();
    assert_eq!(
        writable,
        ["/home/ada", "/home/ada/repo", "/tmp", "/var/tmp"]
    );
    let hooks = mounts
        .iter()
        .find(|m| m.path == "/home/ada/repo/.git/hooks")
        .expect("an island");
    assert_eq!(
        (hooks.source.as_str(), hooks.access.as_str()),
        ("grant 1", "read-only")
    );
    let ssl = mounts.iter().find(|m| m.path == "/etc/ssl").expect("bound");
    assert!(!ssl.exec, "certificates are not programs");
}

#[test]
fn no_secret_of_the_callers_environment_gets_in_and_the_agents_services_do() {
    let env = planned(Mode::User).summary.env;
    let value = |name: &str| env.iter().find_map(|e| e.strip_prefix(&format!("{name}=")));
    assert_eq!(value("AWS_SECRET_ACCESS_KEY"), None);
    assert_eq!(value("LC_ALL"), Some("C"));
    assert_eq!(value("HOME"), Some("/home/ada"));
    assert_eq!(value("ANTHROPIC_BASE_URL"), Some("http://127.0.0.1:8080"));
    assert_eq!(value("HTTPS_PROXY"), Some("http://127.0.0.1:3128"));
    assert_eq!(value("AGENTD_BUS"), Some("/run/agentd/bus.sock"));
    let path = value("PATH").expect("set");
    assert!(path.starts_with("/home/ada/.cargo/bin:/usr/bin:"), "{path}");
}

#[test]
fn a_policy_cannot_override_what_the_sandbox_says_about_itself() {
    let policy = load("extends = \"coding\"\n[env]\nset = { HOME = \"/x\", HTTP_PROXY = \"http://evil\", A = \"b\" }").expect("loads");
    let plan = plan(&policy, &inputs(Mode::User), &host(7, &[])).expect("planned");
    assert!(plan.summary.env.contains(&"HOME=/home/ada".to_owned()));
    assert!(
        plan.summary
            .env
            .contains(&"HTTP_PROXY=http://127.0.0.1:3128".to_owned())
    );
    assert!(plan.summary.env.contains(&"A=b".to_owned()));
}

#[test]
fn landlock_is_reduced_to_what_the_host_knows() {
    for (abi, handled, scopes) in [
        (7, 0xffff, 3),
        (6, 0xffff, 3),
        (3, 0x7fff, 0),
        (2, 0x3fff, 0),
        (1, 0x1fff, 0),
        (11, 0xffff, 3),
    ] {
        let plan = plan(&named("coding"), &inputs(Mode::Root), &host(abi, &[])).expect("planned");
        let parsed = Plan::parse(&plan.wire).expect("a plan");
        let ruleset = parsed.records().find_map(|r| match r {
            Record::Landlock {
                handled_fs,
                handled_net,
                scoped,
                min_abi,
            } => Some((handled_fs, handled_net, scoped, min_abi)),
            _ => None,
        });
        assert_eq!(ruleset, Some((handled, 0, scopes, abi.min(7))), "ABI {abi}");
        assert!(
            landlock(&plan)
                .iter()
                .all(|(_, access)| access & !handled == 0 && *access != 0),
            "ABI {abi}"
        );
    }
}

#[test]
fn a_landlock_rule_that_gives_no_more_than_one_above_it_is_left_out() {
    for mode in [Mode::Root, Mode::User] {
        let rules = landlock(&planned(mode));
        assert!(rules.iter().any(|(path, _)| path == "/etc"));
        for (path, access) in &rules {
            let given = rules.iter().find(|(above, given)| {
                let is_above = above != path && std::path::Path::new(path).starts_with(above);
                is_above && access & !given == 0
            });
            // One that may be missing gives nothing where it is.
            assert!(given.is_none_or(|(above, _)| above != "/etc"), "{path}");
        }
    }
}

#[test]
fn landlock_lets_nothing_be_written_but_the_workspace_and_private_places() {
    const WRITE_FILE: u64 = 2;
    let rules = landlock(&planned(Mode::Root));
    let writable: Vec<&str> = rules
        .iter()
        .filter(|(_, a)| a & WRITE_FILE != 0)
        .map(|(p, _)| p.as_str())
        .collect();
    assert_eq!(
        writable,
        [
            "/dev",
            "/dev/shm",
            "/dev/mqueue",
            "/home/ada",
            "/home/ada/repo",
            "/tmp",
            "/var/tmp"
        ]
    );
    const READ_FILE: u64 = 4;
    let root = rules
        .iter()
        .find(|(p, _)| p == "/")
        .expect("a rule for the root");
    assert_eq!(
        root.1 & (READ_FILE | WRITE_FILE | 1),
        0,
        "the root folder may be listed and no more"
    );
}

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
    assert!(landlock(&plan).is_empty());
}

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
fn limits_of_disk_and_dollars_are_in_the_plan() {
    let text =
        "extends = \"coding\"\n[limits]\ncost = \"$5\"\ndisk = \"1GiB\"\ndisk_inodes = 1000\n";
    let policy = crate::load(text).expect("loads");
    for mode in [Mode::Root, Mode::User] {
        let made = plan(&policy, &inputs(mode), &host(7, &[])).expect("a plan");
        assert_eq!(made.model.max_cost_nano_usd, Some(5_000_000_000));
        let wire = wire::Plan::parse(&made.wire).expect("parses");
        let limit = wire::DiskLimit {
            bytes: 1 << 30,
            inodes: 1000,
        };
        assert_eq!(wire.disk(), Some(limit));
        let held = made.summary.properties.iter();
        let mut held = held.filter(|p| p.property.name() == "disk-limit");
        assert!(held.next().expect("listed").by[0].contains("not held by the kernel"));
    }
    let unlimited = plan(&crate::named("coding"), &inputs(Mode::Root), &host(7, &[]));
    let unlimited = unlimited.expect("a plan");
    assert_eq!(
        wire::Plan::parse(&unlimited.wire).expect("parses").disk(),
        None
    );
}

#[test]
fn listeners_follow_the_policy() {
    let addresses = |p: &SandboxPlan| {
        p.listeners
            .iter()
            .map(|l| (l.tag, l.address.clone()))
            .collect::<Vec<_>>()
    };
    let coding = planned(Mode::Root);
    assert_eq!(
        addresses(&coding),
        [
            (wire::GATEWAY, "127.0.0.1:8080".to_owned()),
            (wire::PROXY, "127.0.0.1:3128".into()),
            (wire::MCP, "127.0.0.1:8765".into()),
            (wire::BUS, "/run/agentd/bus.sock".into()),
        ]
    );
    // The direct path is for those who share no memory, where there is one.
    let has_direct = |policy: &str, offered: bool| {
        let mut inputs = inputs(Mode::Root);
        inputs.direct = offered;
        let text = format!("extends = \"coding\"\n{policy}");
        let planned = plan(
            &crate::load(&text).expect("a policy"),
            &inputs,
            &host(7, &[]),
        )
        .expect("planned");
        addresses(&planned).contains(&(wire::DIRECT, "127.0.0.1:7203".into()))
    };
    assert!(has_direct("[ipc]\nshared_memory = false\n", true));
    assert!(!has_direct("[ipc]\nshared_memory = false\n", false));
    assert!(!has_direct("", true));
    let mut bare = inputs(Mode::Root);
    (bare.grants, bare.workspace) = (Vec::new(), None);
    let base = plan(&named("base"), &bare, &host(7, &[])).expect("planned");
    assert_eq!(
        addresses(&base).iter().map(|(t, _)| *t).collect::<Vec<_>>(),
        [wire::MCP, wire::BUS]
    );
    assert!(
        !base
            .summary
            .env
            .iter()
            .any(|e| e.starts_with("HTTP_PROXY=") || e.starts_with("ANTHROPIC"))
    );
}

#[test]
fn grants_stay_within_the_policy() {
    let refused = |dst: &str| {
        let mut i = inputs(Mode::Root);
        i.grants.push(GrantInput {
            dst: dst.into(),
            access: Access::ReadOnly,
        });
        plan(&named("coding"), &i, &host(7, &[]))
            .expect_err("refused")
            .to_string()
    };
    assert!(
        refused("/home/ada/.ssh")
            .starts_with("grant /home/ada/.ssh: policy coding does not show it; grants are")
    );
    for reserved in [
        "/",
        "/tmp",
        "/proc/self",
        "/dev/shm",
        "/sys",
        "/run/agentd/x",
        "/home/ada",
    ] {
        assert!(refused(reserved).contains(reserved), "{reserved}");
    }
    assert!(refused("/home/ada/repo").contains("two grants have this path"));
}

#[test]
fn a_grant_is_never_wider_than_the_policy() {
    let mut i = inputs(Mode::Root);
    // The caller hands the toolchain over writable; the policy says read.
    i.grants[2].access = Access::ReadWrite;
    i.grants[1].access = Access::ReadWrite;
    let plan = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    for path in ["/home/ada/.cargo/bin", "/home/ada/repo/.git/hooks"] {
        let mount = plan
            .summary
            .mounts
            .iter()
            .find(|m| m.path == path)
            .expect("mounted");
        assert_eq!(mount.access, "read-only", "{path}");
    }
}

#[test]
fn the_program_may_be_granted_and_is_found() {
    let mut i = inputs(Mode::User);
    i.argv = vec!["claude".into(), "--version".into()];
    i.grants.push(GrantInput {
        dst: "/srv/tools/bin/claude".into(),
        access: Access::ReadWrite,
    });
    let plan = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    let mount = plan
        .summary
        .mounts
        .iter()
        .find(|m| m.path == "/srv/tools/bin/claude")
        .expect("mounted");
    assert!(mount.exec && mount.access == "read-only");
    assert!(
        plan.summary
            .env
            .iter()
            .any(|e| e.starts_with("PATH=/srv/tools/bin:"))
    );
}

#[test]
fn a_granted_file_that_happens_to_have_the_programs_name_is_not_the_program() {
    let mut i = inputs(Mode::User);
    i.argv = vec!["registry".into()];
    i.grants.push(GrantInput {
        dst: "/home/ada/.cargo/registry".into(),
        access: Access::ReadOnly,
    });
    let plan = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    let path = plan
        .summary
        .env
        .iter()
        .find_map(|e| e.strip_prefix("PATH="));
    assert!(path.is_some_and(|p| p.starts_with("/home/ada/.cargo/bin:")));
}

#[test]
fn a_workspace_that_holds_home_moves_home_away() {
    let mut i = inputs(Mode::User);
    i.workspace = Some("/home/ada".into());
    i.grants = vec![GrantInput {
        dst: "/home/ada".into(),
        access: Access::ReadWrite,
    }];
    let plan = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    assert_eq!(plan.summary.home, "/home/agent");
    assert_eq!(plan.summary.cwd, "/home/ada");
}

#[test]
fn seeded_files_never_land_in_the_callers_own() {
    let mut i = inputs(Mode::User);
    i.home_files = vec![HomeFile {
        path: ".claude.json".into(),
        mode: 0o600,
        content: b"{}".to_vec(),
    }];
    let seeded = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    let parsed = Plan::parse(&seeded.wire).expect("a plan");
    assert!(
        parsed.records().any(
            |r| matches!(r, Record::File { dst, .. } if text(dst) == "/home/ada/.claude.json")
        )
    );
    for bad in ["repo/x", ".cargo/bin/cargo", "../x", "/etc/passwd", ""] {
        i.home_files[0].path = bad.into();
        let refused = plan(&named("coding"), &i, &host(7, &[])).expect_err(bad);
        assert!(
            refused.to_string().starts_with("home file "),
            "{bad}: {refused}"
        );
    }
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

#[test]
fn denied_paths_are_masked_where_they_are_visible() {
    let policy = load(
        "extends = \"coding\"\n[fs]\ndeny = [\"${workspace}/.env\", \"~/.ssh\", \"/srv/x\"]\n",
    )
    .expect("loads");
    let plan = plan(&policy, &inputs(Mode::Root), &host(7, &[])).expect("planned");
    assert_eq!(
        plan.summary.masks,
        ["/home/ada/.ssh", "/home/ada/repo/.env"]
    );
}

/// (path, placeholder, folder) of the records that make read-only, and of those that hide.
fn covers(plan: &SandboxPlan) -> [Vec<(String, bool, bool)>; 2] {
    let parsed = Plan::parse(&plan.wire).expect("a plan");
    let mut out = [Vec::new(), Vec::new()];
    for record in parsed.records() {
        let (list, dst, flags) = match record {
            Record::Protect { dst, flags } => (0, dst, flags),
            Record::Mask { dst, flags } => (1, dst, flags),
            _ => continue,
        };
        let has = |flag| flags.contains(flag);
        let placed = has(MountFlags::PLACEHOLDER);
        out[list].push((text(dst).to_owned(), placed, has(MountFlags::FOLDER)));
    }
    out
}

#[test]
fn protected_and_denied_names_inside_what_may_be_written_are_kept_before_they_exist() {
    let policy = load(
        "extends = \"coding\"\n[fs]\nprotect = { replace = [\"${workspace}/.envrc\", \"${workspace}/.vscode/\", \"/srv/x\"] }\n\
         read = [\"${workspace}/vendor\"]\ndeny = [\"${workspace}/.env\", \"~/.ssh\"]\n",
    )
    .expect("loads");
    for mode in MODES {
        let plan = plan(&policy, &inputs(mode), &host(7, &[])).expect("planned");
        let [protected, masks] = covers(&plan);
        let is = |path: &str, placed, folder| (path.to_owned(), placed, folder);
        for expected in [
            is("/home/ada/repo/.envrc", true, false),
            is("/home/ada/repo/.vscode", true, true),
            is("/home/ada/repo/vendor", false, false),
        ] {
            assert!(protected.contains(&expected), "{expected:?}: {protected:?}");
        }
        assert!(!protected.iter().any(|(path, ..)| path.starts_with("/srv")));
        // The private HOME goes with the sandbox: no name in it needs to be kept.
        assert_eq!(
            masks,
            [
                is("/home/ada/.ssh", false, false),
                is("/home/ada/repo/.env", true, false)
            ]
        );
    }
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
fn of_what_is_copied_nothing_is_hidden_or_protected_as_well() {
    let policy = load(
        "extends = \"coding\"\n[fs]\ncopy = [\"${workspace}/a/settings\", \"${workspace}/kept\", \"${workspace}/secret/key\", \"~/.gitconfig\"]\n\
         protect = [\"${workspace}/kept\"]\ndeny = [\"${workspace}/secret\"]\n",
    )
    .expect("loads");
    for mode in MODES {
        let plan = plan(&policy, &inputs(mode), &host(7, &[])).expect("planned");
        let parsed = Plan::parse(&plan.wire).expect("a plan");
        let copies: Vec<_> = parsed
            .records()
            .filter_map(|record| match record {
                Record::Copy { dst, to, flags } => {
                    let placed = flags.contains(MountFlags::PLACEHOLDER);
                    Some((text(dst).to_owned(), text(to).to_owned(), placed))
                }
                _ => None,
            })
            .collect();
        let is = |path: &str, to: &str| (path.to_owned(), to.to_owned(), true);
        assert_eq!(
            copies,
            [
                is(
                    "/home/ada/repo/.git/config",
                    "/var/tmp/agentd-copies/0/config"
                ),
                is(
                    "/home/ada/repo/a/settings",
                    "/var/tmp/agentd-copies/1/settings"
                ),
            ]
        );
        let [protected, masks] = covers(&plan);
        let named =
            |list: &[(String, bool, bool)], path| list.iter().any(|(name, ..)| name == path);
        assert!(named(&protected, "/home/ada/repo/kept"), "{protected:?}");
        assert!(named(&masks, "/home/ada/repo/secret"), "{masks:?}");
        assert!(!named(&protected, "/home/ada/repo/.git/config"));
    }
}

#[test]
fn a_scratch_workspace_is_an_overlay_and_what_is_read_or_protected_in_it_stays_so() {
    let policy = load(
        "extends = \"base\"\n[fs]\nscratch = [\"${workspace}\"]\nread = [\"${workspace}/.git\"]\nprotect = { replace = [\"${workspace}/.envrc\"] }\n\
         [limits]\ntmp = \"64MiB\"\ntmp_inodes = 500\n",
    )
    .expect("loads");
    let mut i = inputs(Mode::Root);
    i.grants.truncate(1);
    let plan = plan(&policy, &i, &host(7, &[])).expect("planned");
    let parsed = Plan::parse(&plan.wire).expect("a plan");
    let overlays: Vec<_> = parsed
        .records()
        .filter_map(|record| match record {
            Record::Overlay {
                index,
                dst,
                size_bytes,
                inodes,
                flags,
            } => Some((
                index,
                text(dst),
                size_bytes,
                inodes,
                flags.contains(MountFlags::NOEXEC),
            )),
            _ => None,
        })
        .collect();
    assert_eq!(overlays, [(0, "/home/ada/repo", 64 << 20, 500, true)]);
    let [protected, _] = covers(&plan);
    assert_eq!(
        protected,
        [
            ("/home/ada/repo/.envrc".to_owned(), true, false),
            ("/home/ada/repo/.git".to_owned(), false, false)
        ]
    );
    let context = FloorContext {
        mode: wire::Mode::Root,
        grants: 1,
        network: Network::Own,
    };
    assert_eq!(floor::check(&parsed, &context), Ok(()));
}

#[test]
fn a_grant_below_a_protected_path_is_read_only() {
    let policy = load("extends = \"coding\"\n[fs]\nprotect = { replace = [\"${workspace}\"] }\n")
        .expect("loads");
    let plan = plan(&policy, &inputs(Mode::Root), &host(7, &[])).expect("planned");
    let workspace = plan
        .summary
        .mounts
        .iter()
        .find(|m| m.path == "/home/ada/repo");
    assert_eq!(workspace.map(|m| m.access.as_str()), Some("read-only"));
}

#[test]
fn the_plan_says_which_mechanism_holds_each_property() {
    let plan = plan(&named("coding"), &inputs(Mode::Root), &host(2, &[])).expect("planned");
    let held = |name: &str| {
        plan.summary
            .properties
            .iter()
            .find(|p| p.property.name() == name)
            .map(|p| (p.by.clone(), p.without.clone()))
    };
    let (by, without) = held("abstract-sockets").expect("listed");
    assert_eq!(by, ["network namespace"]);
    assert_eq!(
        without,
        ["Landlock abstract socket scope: needs Landlock ABI 6, this kernel has 2"]
    );
    assert!(
        serde_json::to_value(&plan)
            .is_ok_and(|v| v["summary"]["properties"][0]["property"] == "file-view")
    );
}

#[test]
fn sockets_devices_and_queues_are_where_the_policy_has_them() {
    let policy = load(
        "extends = \"coding\"\n[ipc]\nsockets = [\"/run/service.sock\"]\n[devices]\nallow = [\"/dev/fuse\"]\n",
    )
    .expect("loads");
    let mut i = inputs(Mode::Root);
    for path in ["/run/service.sock", "/dev/fuse"] {
        i.grants.push(GrantInput {
            dst: path.into(),
            access: Access::ReadOnly,
        });
    }
    let planned = plan(&policy, &i, &host(7, &[])).expect("planned");
    let parsed = Plan::parse(&planned.wire).expect("a plan");
    let special: Vec<_> = parsed
        .records()
        .filter_map(|record| match record {
            Record::GrantMount { dst, flags, .. }
                if flags.contains(MountFlags::SOCKET) || flags.contains(MountFlags::DEVICE) =>
            {
                Some((text(dst), flags.contains(MountFlags::DEVICE)))
            }
            Record::Mqueue { dst } => Some((text(dst), false)),
            _ => None,
        })
        .collect();
    assert_eq!(
        special,
        [
            ("/dev/mqueue", false),
            ("/dev/fuse", true),
            ("/run/service.sock", false)
        ]
    );
    // Landlock: a device is used, a socket is only found.
    let rights = |path: &str| landlock(&planned).into_iter().find(|(p, _)| p == path);
    const READ_WRITE_IOCTL: u64 = 1 << 15 | 1 << 2 | 1 << 1;
    assert!(rights("/dev/fuse").is_some_and(|(_, r)| r & READ_WRITE_IOCTL == READ_WRITE_IOCTL));
    assert!(rights("/run/service.sock").is_some_and(|(_, r)| r & 1 << 1 == 0));

    let refused = plan(&named("coding"), &i, &host(7, &[])).expect_err("not in the policy");
    assert!(
        refused.to_string().contains("grant /run/service.sock"),
        "{refused}"
    );
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

#[test]
fn names_of_a_file_with_one_outside_are_hidden_and_said_to_be_all() {
    let policy = load(
        "extends = \"coding\"\n[fs]\nhard_links = \"inside\"\nlinked = [\"${workspace}/a\", \"${workspace}/b/c\"]\n",
    )
    .expect("loads");
    let made = plan(&policy, &inputs(Mode::Root), &host(7, &[])).expect("planned");
    let parsed = agentd_launch::plan::Plan::parse(&made.wire).expect("parses");
    let linked: Vec<String> = parsed
        .records()
        .filter_map(|record| match record {
            agentd_launch::plan::Record::Mask { dst, flags }
                if flags.contains(agentd_launch::plan::MountFlags::LINKED) =>
            {
                Some(dst.to_string_lossy().into_owned())
            }
            _ => None,
        })
        .collect();
    assert_eq!(linked, ["/home/ada/repo/a", "/home/ada/repo/b/c"]);
}
