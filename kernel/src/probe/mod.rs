//! What this host can do, found out by trying.
//!
//! [`probe_host`] asks each question once and returns [`HostCaps`], a plain value that is passed on, printed
//! by `agentctl doctor`, stored in launch records and replaced in tests. A kernel version or a configuration
//! file is never taken as an answer: a feature counts as supported when the call that needs it succeeded.
//!
//! Never changes the host: probes that must create something (a namespace, a mount) do so in a short-lived
//! child, which runs nothing but raw system calls, so calling this from a threaded process is sound. Runs
//! with the rights of the caller; what a caller may not do is reported as [`ProbeState::Denied`], with the
//! right it lacks. Probing cannot fail: a question that could not be put is an unsupported feature with the
//! reason why. Start reading at [`Feature`], then [`host::probe_host`].

mod bpf;
mod calls;
mod cgroups;
mod child;
mod facilities;
mod feature;
mod gvisor;
mod host;
mod idmap;
mod namespaces;

pub use feature::{Feature, Need};
pub use gvisor::RUNSC_PLACES;
pub use host::probe_host;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the readers look; tests hand them folders.
#[derive(Debug, Clone)]
pub struct Roots {
    /// The procfs mount, normally `/proc`.
    pub proc: PathBuf,
    /// The sysfs mount, normally `/sys`.
    pub sys: PathBuf,
    /// The device folder, normally `/dev`.
    pub dev: PathBuf,
    /// Where programs are, normally `/`.
    pub root: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
            dev: "/dev".into(),
            root: "/".into(),
        }
    }
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ProbeState {
    /// It was tried and it works.
    Supported,
    /// This kernel or its configuration does not offer it.
    Unsupported { why: String },
    /// The host offers it, but not to this caller.
    Denied { capability: String, why: String },
}

/// One feature of the host, with what its absence costs and how to get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub feature: Feature,
    /// Short stable name, such as `user-ns`; the one that policies and tests use.
    pub name: String,
    pub need: Need,
    #[serde(flatten)]
    pub state: ProbeState,
    /// What a launch, or the operator, goes without when this is not supported.
    pub lost: String,
    /// The command that would provide it, where there is one.
    pub fix: Option<String>,
    /// What was observed beyond yes or no (an ABI number, a count), for people.
    pub detail: Option<String>,
}

impl Probe {
    pub fn is_supported(&self) -> bool {
        self.state == ProbeState::Supported
    }

    /// Why it is missing, in one line; `None` when it is supported.
    pub fn why(&self) -> Option<String> {
        match &self.state {
            ProbeState::Supported => None,
            ProbeState::Unsupported { why } => Some(why.clone()),
            ProbeState::Denied { capability, why } => Some(format!("{why} (needs {capability})")),
        }
    }
}

/// Which hierarchy a cgroup controller lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupVersion {
    V1,
    V2,
}

/// One cgroup controller that limits agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupController {
    pub name: String,
    pub version: CgroupVersion,
    /// The folder of the caller's own cgroup in that hierarchy, below which agents' cgroups go.
    pub path: PathBuf,
    /// Whether the caller may create children there.
    pub writable: bool,
}

/// The host's cgroups as this process sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupHost {
    /// The caller's own folder in the cgroup2 hierarchy, where one is mounted.
    pub v2: Option<PathBuf>,
    pub controllers: Vec<CgroupController>,
}

impl CgroupHost {
    pub fn controller(&self, name: &str) -> Option<&CgroupController> {
        self.controllers.iter().find(|c| c.name == name)
    }
}

/// Everything a plan has to know about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCaps {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`; plans are refused on anything but `x86_64`.
    pub machine: String,
    /// The effective uid that probed.
    pub euid: u32,
    /// Every probe, in the order of [`Feature::ALL`].
    pub probes: Vec<Probe>,
    /// 0 when Landlock is missing.
    pub landlock_abi: u8,
    pub cgroup: CgroupHost,
    /// The date of gVisor's release, such as 20240729, where there is one that can be used.
    #[serde(default)]
    pub gvisor_release: Option<u32>,
}

impl HostCaps {
    pub fn probe(&self, feature: Feature) -> Option<&Probe> {
        self.probes.iter().find(|p| p.feature == feature)
    }

    pub fn has(&self, feature: Feature) -> bool {
        self.probe(feature).is_some_and(Probe::is_supported)
    }

    /// Replaces an answer with what a process with other rights has observed, such as the broker.
    pub fn observe(&mut self, feature: Feature, state: ProbeState) {
        if let Some(probe) = self.probes.iter_mut().find(|p| p.feature == feature) {
            probe.state = state;
        }
    }
}
