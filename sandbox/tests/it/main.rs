//! The sandbox crate from outside: policies as people write them, plans as the launcher reads them.

mod ceilings;
mod depth;
mod docs;
mod exec;
// The launcher's own test harness: what the broker does, in small.
#[allow(dead_code, reason = "the launcher's tests use the rest of it")]
#[path = "../../../launch/tests/launch/harness.rs"]
mod harness;
mod host_network;
mod planning;
mod policies;
mod runtimes;
mod secrets;
mod workloads;

use agentd_kernel::probe::{CgroupHost, Feature, HostCaps, Probe, ProbeState};
use agentd_sandbox::{
    Access, EffectivePolicy, GrantInput, LaunchInputs, Mode, PolicyError, PolicyRef, Sources,
    StdioMode,
};

fn load(text: &str) -> Result<EffectivePolicy, PolicyError> {
    load_with(text, &[])
}

fn load_with(text: &str, settings: &[(&str, &str)]) -> Result<EffectivePolicy, PolicyError> {
    let settings = settings
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let sources = Sources {
        folders: Vec::new(),
        settings,
    };
    EffectivePolicy::load(
        &PolicyRef::Text {
            origin: "example.toml".into(),
            text: text.into(),
        },
        &sources,
    )
}

fn named(name: &str) -> EffectivePolicy {
    EffectivePolicy::load(&PolicyRef::Name(name.into()), &Sources::default())
        .expect("a built-in policy loads")
}

/// A host that has everything, with this Landlock ABI, but for the features in `without`.
fn host(landlock_abi: u8, without: &[Feature]) -> HostCaps {
    let probes = Feature::ALL.iter().map(|&feature| {
        let missing =
            without.contains(&feature) || (feature == Feature::Landlock && landlock_abi == 0);
        Probe {
            feature,
            name: feature.name().into(),
            need: feature.need(),
            state: if missing {
                ProbeState::Unsupported {
                    why: "it is not there".into(),
                }
            } else {
                ProbeState::Supported
            },
            lost: feature.lost().into(),
            fix: feature.usual_fix().map(Into::into),
            detail: None,
        }
    });
    HostCaps {
        kernel: "6.1.0".into(),
        machine: "x86_64".into(),
        euid: 0,
        probes: probes.collect(),
        landlock_abi,
        cgroup: CgroupHost::default(),
        gvisor_release: Some(20240729),
    }
}

/// A launch of `true` in `/home/ada/repo` by ada.
fn inputs(mode: Mode) -> LaunchInputs {
    LaunchInputs {
        argv: vec!["true".into()],
        exe_hint: None,
        cwd: None,
        caller_env: [
            ("PATH", "/home/ada/.cargo/bin:/usr/bin"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("LC_ALL", "C"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into(),
        extra_env: [].into(),
        workspace: Some("/home/ada/repo".into()),
        grants: vec![
            GrantInput {
                dst: "/home/ada/repo".into(),
                access: Access::ReadWrite,
            },
            GrantInput {
                dst: "/home/ada/repo/.git/hooks".into(),
                access: Access::ReadOnly,
            },
            GrantInput {
                dst: "/home/ada/.cargo/bin".into(),
                access: Access::ReadOnly,
            },
        ],
        stdio: StdioMode::Pipes,
        uid: 1000,
        gid: 1000,
        user_name: "ada".into(),
        caller_home: Some("/home/ada".into()),
        home: None,
        home_files: Vec::new(),
        trust: None,
        name: "helper".into(),
        mode,
        lifeline_grace_ms: 30_000,
        resolver: None,
        direct: false,
    }
}
