//! Puts every question and gathers the answers.

use super::{
    Feature, HostCaps, Probe, ProbeState, Roots, bpf, calls, cgroups, facilities, gvisor, idmap,
    namespaces,
};
use std::collections::BTreeMap;

/// Asks the host every question of [`Feature::ALL`]. Takes a few tens of milliseconds at most.
pub fn probe_host(roots: &Roots) -> HostCaps {
    let mut answers: BTreeMap<Feature, (ProbeState, Option<String>, Option<String>)> =
        BTreeMap::new();
    for (feature, state, fix) in namespaces::probe(roots) {
        answers.insert(feature, (state, None, fix));
    }
    for (feature, state) in calls::probe() {
        answers.insert(feature, (state, None, None));
    }
    let (landlock, landlock_abi) = match calls::landlock_abi() {
        Ok(abi) => (ProbeState::Supported, abi),
        Err(state) => (state, 0),
    };
    answers.insert(
        Feature::Landlock,
        (landlock, Some(format!("ABI {landlock_abi}")), None),
    );
    answers.insert(Feature::IdmappedMounts, (idmap::probe(roots), None, None));
    let (cgroup, states) = cgroups::probe(roots);
    answers.extend(states.into_iter().map(|(feature, state)| {
        let version = feature
            .name()
            .strip_prefix("cgroup-")
            .and_then(|n| cgroup.controller(n))
            .map(|c| c.version);
        (
            feature,
            (
                state,
                version.map(|v| format!("cgroup {v:?}").to_lowercase()),
                None,
            ),
        )
    }));
    for (feature, state, detail) in facilities::probe(roots) {
        answers.insert(feature, (state, detail, None));
    }
    for (feature, state, fix) in bpf::probe(roots) {
        answers.insert(feature, (state, None, fix));
    }
    let (gvisor, gvisor_release, detail) = gvisor::probe(roots);
    answers.insert(Feature::Gvisor, (gvisor, detail, None));
    let uname = rustix::system::uname();
    let probes = Feature::ALL
        .iter()
        .map(|&feature| {
            let unasked = || {
                (
                    ProbeState::Unsupported {
                        why: "not asked".into(),
                    },
                    None,
                    None,
                )
            };
            let (state, detail, fix) = answers.remove(&feature).unwrap_or_else(unasked);
            Probe {
                feature,
                name: feature.name().into(),
                need: feature.need(),
                fix: if state == ProbeState::Supported {
                    None
                } else {
                    fix.or_else(|| feature.usual_fix().map(Into::into))
                },
                state,
                lost: feature.lost().into(),
                detail,
            }
        })
        .collect();
    HostCaps {
        kernel: uname.release().to_string_lossy().into_owned(),
        machine: uname.machine().to_string_lossy().into_owned(),
        euid: rustix::process::geteuid().as_raw(),
        probes,
        landlock_abi,
        cgroup,
        gvisor_release,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_is_put() {
        let caps = probe_host(&Roots::default());
        let asked: Vec<_> = caps.probes.iter().map(|p| p.feature).collect();
        assert_eq!(asked, Feature::ALL);
        let unasked: Vec<_> = caps
            .probes
            .iter()
            .filter(|p| p.why().is_some_and(|w| w.contains("not asked")))
            .map(|p| &p.name)
            .collect();
        assert!(unasked.is_empty(), "{unasked:?}");
    }

    #[test]
    fn what_is_missing_says_what_is_lost_and_why() {
        let caps = probe_host(&Roots::default());
        for probe in caps.probes.iter().filter(|p| !p.is_supported()) {
            assert!(
                !probe.lost.is_empty() && !probe.why().unwrap_or_default().is_empty(),
                "{probe:?}"
            );
        }
    }

    #[test]
    fn a_host_without_proc_has_no_cgroups_and_says_so() {
        let empty = tempfile::tempdir().expect("a temporary folder");
        let roots = Roots {
            proc: empty.path().into(),
            ..Roots::default()
        };
        let caps = probe_host(&roots);
        assert!(!caps.has(Feature::CgroupMemory));
        assert!(
            caps.probe(Feature::CgroupMemory)
                .and_then(Probe::why)
                .is_some_and(|w| w.contains("mountinfo"))
        );
        assert!(!caps.has(Feature::MemfdNoexec));
    }

    #[test]
    fn caps_survive_json() {
        let caps = probe_host(&Roots::default());
        let text = serde_json::to_string(&caps).expect("serialises");
        assert_eq!(
            serde_json::from_str::<HostCaps>(&text).expect("parses"),
            caps
        );
    }
}
