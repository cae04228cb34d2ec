//! Planning: what the launcher is told, read back from the wire, on hosts that have more or less.

mod files;
mod grants;
mod landlock;
mod limits;
mod refused;

use agentd_launch::floor::{self, FloorContext};
use agentd_launch::plan::{self as wire, MountFlags, Network, Plan, Record};
use agentd_sandbox::{Access, GrantInput, Mode, SandboxPlan, plan};

use super::{host, inputs, load, named};

const MODES: [Mode; 2] = [Mode::Root, Mode::User];

fn planned(mode: Mode) -> SandboxPlan {
    plan(&named("coding"), &inputs(mode), &host(7, &[])).expect("planned")
}

fn text(s: &std::ffi::CStr) -> &str {
    s.to_str().expect("UTF-8")
}

/// (path, rights) of the Landlock rules.
fn landlock_rules(plan: &SandboxPlan) -> Vec<(String, u64)> {
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
        let planned =
            plan(&load(&text).expect("a policy"), &inputs, &host(7, &[])).expect("planned");
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
    let rights = |path: &str| {
        landlock_rules(&planned)
            .into_iter()
            .find(|(p, _)| p == path)
    };
    const READ_WRITE_IOCTL: u64 = 1 << 15 | 1 << 2 | 1 << 1;
    assert!(rights("/dev/fuse").is_some_and(|(_, r)| r & READ_WRITE_IOCTL == READ_WRITE_IOCTL));
    assert!(rights("/run/service.sock").is_some_and(|(_, r)| r & 1 << 1 == 0));

    let refused = plan(&named("coding"), &i, &host(7, &[])).expect_err("not in the policy");
    assert!(
        refused.to_string().contains("grant /run/service.sock"),
        "{refused}"
    );
}
