//! Policies × launches × hosts → plan; and any bytes as a plan, at the floor.

use std::path::PathBuf;

use agentd_kernel::probe::{CgroupHost, Feature, HostCaps, Probe, ProbeState};
use agentd_launch::floor::{FloorContext, MAX_LIFELINE_GRACE_MS, ROOT_SOURCES, check};
use agentd_launch::plan::{MAX_GRANTS, Mode as WireMode, MountFlags, Network, Plan, Record};
use agentd_sandbox::{CallerContext, GrantInput, LaunchInputs, Mode, SandboxPlan, StdioMode, plan};

use crate::input::Input;
use crate::policy;

const NAMES: [&str; 7] = [
    "base",
    "toolchain",
    "coding",
    "review",
    "build",
    "python-task",
    "strict",
];

/// Any policy, for any launch, on any host: there is a plan that the floor lets pass, or a refusal that says why.
pub fn planned(data: &[u8]) {
    let mut input = Input::new(data);
    let (inputs_choice, host_choice) = (input.u64(), input.u64());
    let name = NAMES[usize::from(input.u8()) % NAMES.len()];
    let rest = String::from_utf8_lossy(input.rest()).into_owned();
    // With the text as written, and as an addition to a built-in one.
    for text in [rest.clone(), format!("extends = \"{name}\"\n{rest}")] {
        let Some((mode, grants, made)) = make(&text, inputs_choice, host_choice) else {
            continue;
        };
        let wire = Plan::parse(&made.wire).expect("what the planner made is a plan");
        let verdict = check(
            &wire,
            &FloorContext {
                mode,
                grants,
                network: wire.network(),
            },
        );
        assert_eq!(verdict, Ok(()), "the floor refuses what the planner made");
        assert_eq!(usize::from(wire.listeners()), made.listeners.len());
        assert_eq!(wire.required_layers(), made.required_layers);
        for record in wire.records() {
            if let Record::Env(variable) = record {
                assert!(
                    !variable.to_bytes().starts_with(b"FUZZ_SECRET="),
                    "it was not passed"
                );
            }
        }
    }
}

fn make(text: &str, inputs_choice: u64, host_choice: u64) -> Option<(WireMode, u32, SandboxPlan)> {
    let policy = policy::load(text).ok()?;
    let bit = |choice: u64, nth: u32| choice >> nth & 1 == 1;
    let has_workspace = bit(inputs_choice, 0);
    let mode = if bit(inputs_choice, 1) {
        Mode::Root
    } else {
        Mode::User
    };
    let caller = CallerContext {
        home: bit(inputs_choice, 2).then(|| PathBuf::from("/home/ada")),
        workspace: has_workspace.then(|| PathBuf::from("/home/ada/repo")),
        exe: None,
        keep: (bit(inputs_choice, 15).then(|| PathBuf::from("/home/ada/repo/policy.toml")))
            .into_iter()
            .collect(),
    };
    // What the caller could open is anybody's guess.
    let mut nth = 16;
    let mut wanted = policy.wanted_grants(&caller);
    wanted.retain(|_| {
        nth = if nth == 63 { 16 } else { nth + 1 };
        !bit(inputs_choice, nth)
    });
    wanted.truncate(MAX_GRANTS);
    let passes_secret =
        policy.env.passes("FUZZ_SECRET") || policy.env.set.contains_key("FUZZ_SECRET");
    let inputs = LaunchInputs {
        argv: vec!["program".to_owned()],
        exe_hint: None,
        cwd: bit(inputs_choice, 3).then(|| PathBuf::from("/home/ada/repo/sub")),
        caller_env: [("PATH", "/usr/bin:/home/ada/.cargo/bin"), ("LANG", "C")]
            .into_iter()
            .chain((!passes_secret).then_some(("FUZZ_SECRET", "x")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        extra_env: [].into(),
        workspace: caller.workspace.clone(),
        grants: wanted
            .into_iter()
            .map(|one| GrantInput {
                dst: one.dst,
                access: one.access,
            })
            .collect(),
        stdio: match inputs_choice >> 4 & 3 {
            0 => StdioMode::Null,
            1 => StdioMode::Pipes,
            _ => StdioMode::Pty { rows: 24, cols: 80 },
        },
        // Ids that nobody may have are a refusal.
        uid: u32::from(!bit(inputs_choice, 6)) * 1000,
        gid: 1000,
        user_name: "ada".to_owned(),
        caller_home: caller.home.clone(),
        home: None,
        home_files: Vec::new(),
        trust: None,
        name: "helper".to_owned(),
        mode,
        lifeline_grace_ms: if bit(inputs_choice, 7) {
            0
        } else {
            MAX_LIFELINE_GRACE_MS
        },
        direct: bit(inputs_choice, 9),
        resolver: bit(inputs_choice, 8).then(|| b"nameserver 192.0.2.1\n".to_vec()),
    };
    let grants = u32::try_from(inputs.grants.len()).expect("few");
    match plan(&policy, &inputs, &host(host_choice)) {
        Ok(made) => {
            let mode = match mode {
                Mode::Root => WireMode::Root,
                Mode::User => WireMode::User,
            };
            Some((mode, grants, made))
        }
        Err(refusal) => {
            assert!(refusal.to_string().len() > 10, "{refusal}");
            None
        }
    }
}

/// A host with the features whose bits are not set.
fn host(choice: u64) -> HostCaps {
    let probes = Feature::ALL
        .iter()
        .enumerate()
        .map(|(nth, &feature)| Probe {
            feature,
            name: feature.name().into(),
            need: feature.need(),
            state: if choice >> (nth % 56) & 1 == 1 {
                ProbeState::Unsupported {
                    why: "not in this one".into(),
                }
            } else {
                ProbeState::Supported
            },
            lost: feature.lost().into(),
            fix: feature.usual_fix().map(Into::into),
            detail: None,
        });
    let mut host = HostCaps {
        kernel: "6.1.0".into(),
        machine: "x86_64".into(),
        euid: 0,
        probes: probes.collect(),
        landlock_abi: 0,
        cgroup: CgroupHost::default(),
        gvisor_release: Some(20240729),
    };
    if host.has(Feature::Landlock) {
        host.landlock_abi = 1 + (choice >> 56) as u8 % 11;
    }
    host
}

/// Any bytes as a plan, and our own with some bytes changed: parsing and the floor never fail but by their own errors, and
/// what passes the floor holds what the floor promises.
pub fn wire(data: &[u8]) {
    at_the_floor(data);
    let mut input = Input::new(data);
    let name = NAMES[usize::from(input.u8()) % NAMES.len()];
    let inputs_choice = u64::from(input.u8());
    let Some((_, _, made)) = make(&format!("extends = \"{name}\"\n"), inputs_choice, 0) else {
        return;
    };
    let mut bytes = made.wire;
    while !input.is_empty() && !bytes.is_empty() {
        let at = usize::from(input.u16()) * 7 % bytes.len();
        match input.u8() % 4 {
            0 => bytes[at] ^= 1 << (input.u8() % 8),
            1 => bytes[at] = input.u8(),
            2 => bytes.truncate(at),
            _ => {
                // A stretch of it once more, elsewhere: doubled and moved records.
                let from = usize::from(input.u16()) * 7 % bytes.len();
                let end = (from + usize::from(input.u8())).min(bytes.len());
                let stretch = bytes[from..end].to_vec();
                let at = at / 8 * 8;
                bytes.splice(at..at, stretch);
            }
        }
    }
    at_the_floor(&bytes);
}

fn at_the_floor(bytes: &[u8]) {
    let plan = match Plan::parse(bytes) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    for mode in [WireMode::Root, WireMode::User] {
        for grants in [0, plan.grant_mounts(), u32::MAX] {
            for network in [Network::Own, Network::Host] {
                match check(
                    &plan,
                    &FloorContext {
                        mode,
                        grants,
                        network,
                    },
                ) {
                    Ok(()) => {
                        assert!(network == Network::Host || plan.network() == Network::Own);
                        holds(&plan, mode, grants);
                    }
                    Err(violation) => assert!(!violation.to_string().is_empty()),
                }
            }
        }
    }
}

/// The floor's promises (docs/floor.md), said once more and independently.
fn holds(plan: &Plan<'_>, mode: WireMode, grants: u32) {
    assert_eq!(plan.mode(), mode);
    let (uid, gid) = plan.ids();
    assert!(uid != 0 && gid != 0 && uid != u32::MAX && gid != u32::MAX);
    assert!(plan.lifeline_grace_ms() <= MAX_LIFELINE_GRACE_MS);
    let mut mounted = Vec::new();
    for record in plan.records() {
        match record {
            Record::Bind { src, flags, .. } => {
                assert!(
                    flags.contains(MountFlags::RDONLY),
                    "a host path is bound writable"
                );
                let path = src.to_bytes();
                let below = |top: &&str| {
                    path.strip_prefix(top.as_bytes())
                        .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
                };
                assert!(
                    mode == WireMode::User || ROOT_SOURCES.iter().any(|top| below(&top)),
                    "{src:?}"
                );
            }
            Record::TcpListener { .. } => assert_eq!(plan.network(), Network::Own),
            Record::GrantMount { index, .. } | Record::Overlay { index, .. } => mounted.push(index),
            _ => {}
        }
    }
    mounted.sort_unstable();
    assert!(
        mounted.iter().copied().eq(0..grants),
        "each grant is mounted once: {mounted:?}"
    );
}
