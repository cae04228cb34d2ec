//! The bare launch beside other sandboxes: `true` under the policy `base`, one sample of each in turn.
//!
//! Ours is everything that a broker does for a launch (memfds, socket, pipes, `clone3`, id maps) and the launcher to the
//! reaped end of its init, with every layer of the plan that agentd would make: view, listeners, Landlock, both filters, rlimits,
//! no capabilities. bubblewrap is given the same plan as far as it can follow ([`bwrap`]). Further commands that run
//! `true` in a sandbox come as a list ([`peers`]).
//!
//! `cargo xtask bench launch` runs this with `--json`: one object with the samples of each in ms, by round. Without it, the
//! medians. Destroying a network namespace is asynchronous for all of them.

mod bwrap;
#[allow(
    dead_code,
    reason = "shared with the launcher's tests, which need more of it"
)]
#[path = "../../../launch/tests/launch/harness.rs"]
mod harness;
mod peers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use agentd_kernel::probe::{Feature, HostCaps, ProbeState, Roots, probe_host};
use agentd_launch::plan::{Mode as WireMode, Plan};
use agentd_sandbox::{
    EffectivePolicy, LaunchInputs, Mode, PolicyRef, SandboxPlan, Sources, StdioMode, plan,
};

const SAMPLES_PER_ROUND: usize = 10;
const WARM_UP: usize = 5;

/// What agentd would make of `agentctl run --policy base --no-workspace -- true`, but for the cgroup, which is the broker's.
fn planned(mode: WireMode) -> SandboxPlan {
    let policy = EffectivePolicy::load(
        &PolicyRef::Text {
            origin: "bench".into(),
            text: "extends = \"base\"\n[degrade]\nallow = [\"cgroup-limits\"]\n".into(),
        },
        &Sources::default(),
    )
    .expect("the policy loads");
    let inputs = LaunchInputs {
        argv: vec!["true".into()],
        exe_hint: None,
        cwd: None,
        caller_env: BTreeMap::new(),
        extra_env: BTreeMap::new(),
        workspace: None,
        grants: Vec::new(),
        stdio: StdioMode::Null,
        uid: harness::inside_id(),
        gid: harness::inside_id(),
        user_name: "bench".into(),
        caller_home: None,
        home: None,
        home_files: Vec::new(),
        trust: None,
        name: "bench".into(),
        mode: match mode {
            WireMode::Root => Mode::Root,
            WireMode::User => Mode::User,
        },
        lifeline_grace_ms: 0,
        resolver: None,
        direct: false,
    };
    plan(&policy, &inputs, &host()).expect("this host can launch")
}

/// This host, without what only the broker makes.
fn host() -> HostCaps {
    let mut caps = probe_host(&Roots::default());
    for feature in [
        Feature::CgroupMemory,
        Feature::CgroupPids,
        Feature::CgroupCpu,
        Feature::TimeNs,
    ] {
        let why = "the broker's, and this is only the launcher".into();
        caps.observe(feature, ProbeState::Unsupported { why });
    }
    caps
}

fn ms(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1000.0
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Name → rounds of samples, in ms.
type Samples = BTreeMap<String, Vec<Vec<f64>>>;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option)?;
        arguments.get(at + 1)
    };
    let rounds = value("--rounds").map_or(10, |text| text.parse().expect("a number of rounds"));
    let peers = value("--peers").map_or_else(Vec::new, |file| peers::read(&PathBuf::from(file)));
    let mode = if harness::is_root() {
        WireMode::Root
    } else {
        WireMode::User
    };

    let planned = planned(mode);
    let wire = Plan::parse(&planned.wire).expect("our own plan parses");
    let bwrap = bwrap::Follower::of(&wire);
    let ours = || {
        ms(|| {
            let ended = harness::spawn(mode, &planned.wire, &[]).wait();
            assert_eq!(ended, Some(0), "the launch failed");
        })
    };
    for _ in 0..WARM_UP {
        ours();
        ms(|| bwrap.run());
    }
    for peer in &peers {
        peer.run();
    }

    let mut samples = Samples::new();
    for _ in 0..rounds {
        let mut round: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for nth in 0..SAMPLES_PER_ROUND {
            round.entry("launcher").or_default().push(ours());
            round.entry("bwrap").or_default().push(ms(|| bwrap.run()));
            for peer in peers.iter().filter(|peer| nth < peer.samples_per_round) {
                round.entry(&peer.name).or_default().push(ms(|| peer.run()));
            }
        }
        for (name, taken) in round {
            samples.entry(name.to_owned()).or_default().push(taken);
        }
    }
    report(
        &samples,
        arguments.iter().any(|argument| argument == "--json"),
    );
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn report(samples: &Samples, as_json: bool) {
    if as_json {
        println!("{}", serde_json::to_string(samples).expect("numbers"));
        return;
    }
    for (name, rounds) in samples {
        println!("{name:<10} {:>9.3} ms", median(&rounds.concat()));
    }
}
