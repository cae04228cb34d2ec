//! The plan for people: what `policy show --plan` and the launch record print.

use super::property::PropertyStatus;
use super::view::Source;
use super::wire::Parts;
use crate::policy::units::show_size;
use crate::runtime::RuntimeKind;
use crate::seccomp::SyscallSet;
use agentd_launch::layers;
use serde::Serialize;

/// One mount of the view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountLine {
    pub path: String,
    /// `system`, `grant N`, `private`.
    pub source: String,
    pub access: String,
    pub exec: bool,
}

/// One Landlock rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LandlockLine {
    pub path: String,
    pub rights: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct PlanSummary {
    /// On whose kernel the program runs.
    pub runtime: RuntimeKind,
    pub properties: Vec<PropertyStatus>,
    pub layers: Vec<&'static str>,
    pub mounts: Vec<MountLine>,
    pub masks: Vec<String>,
    /// Read-only inside what may be written.
    pub protected: Vec<String>,
    /// Files of which the agent changes a copy.
    pub copies: Vec<String>,
    /// 0 without Landlock.
    pub landlock_abi: u8,
    pub landlock: Vec<LandlockLine>,
    /// The TCP ports that Landlock leaves, such as `8765 connect`; `None` when it does not look at them.
    pub ports: Option<Vec<String>>,
    pub syscalls: Vec<SyscallSet>,
    /// Instructions of the filter.
    pub seccomp_instructions: usize,
    pub limits: Vec<String>,
    pub listeners: Vec<String>,
    pub env: Vec<String>,
    pub home: String,
    pub cwd: String,
    pub argv: Vec<String>,
}

pub(crate) fn summary(parts: &Parts<'_>, properties: Vec<PropertyStatus>) -> PlanSummary {
    let show = |path: &std::path::Path| path.display().to_string();
    PlanSummary {
        runtime: parts.policy.runtime,
        properties,
        layers: layers::layer_names(parts.required_layers).collect(),
        mounts: parts
            .view
            .mounts
            .iter()
            .map(|m| MountLine {
                path: show(&m.dst),
                source: match m.source {
                    Source::System => "system".into(),
                    Source::Grant(i) => format!("grant {i}"),
                    Source::Scratch(i) => format!("grant {i}, changes private"),
                    Source::Socket(i) => format!("grant {i}, socket"),
                    Source::Device(i) => format!("grant {i}, device"),
                    Source::Tmpfs => "private".into(),
                    Source::Trust => "TLS roots".into(),
                    Source::Secrets(_) => "secrets".into(),
                    Source::Secret(i) => format!("grant {i}, copied"),
                },
                access: if m.writable {
                    "read-write"
                } else {
                    "read-only"
                }
                .into(),
                exec: m.exec,
            })
            .collect(),
        masks: parts.view.masks.iter().map(|c| show(&c.path)).collect(),
        protected: parts.view.protected.iter().map(|c| show(&c.path)).collect(),
        copies: parts.view.copies.iter().map(|c| show(&c.path)).collect(),
        landlock_abi: parts.landlock_abi,
        landlock: parts
            .landlock_rules()
            .into_iter()
            .map(|(path, rights, _)| LandlockLine {
                path: show(&path),
                rights: rights.to_string(),
            })
            .collect(),
        ports: parts.landlock_ports().map(|rules| {
            let show = |(port, access): (u16, u64)| match access {
                super::landlock::USE_TCP => format!("{port} connect"),
                _ => format!("{port} connect, listen"),
            };
            rules.into_iter().map(show).collect()
        }),
        seccomp_instructions: parts.filter.len(),
        syscalls: parts.surface.sets.clone(),
        limits: limits(parts),
        listeners: parts.listeners.iter().map(|l| l.address.clone()).collect(),
        env: parts.env.iter().map(|(k, v)| format!("{k}={v}")).collect(),
        home: show(&parts.view.home),
        cwd: show(&parts.cwd()),
        argv: parts.inputs.argv.clone(),
    }
}

fn limits(parts: &Parts<'_>) -> Vec<String> {
    let cgroup = parts.cgroup;
    let mut out = Vec::new();
    if cgroup.memory_max_bytes != 0 {
        out.push(format!(
            "cgroup memory {}",
            show_size(cgroup.memory_max_bytes)
        ));
    }
    if cgroup.pids_max != 0 {
        out.push(format!("cgroup pids {}", cgroup.pids_max));
    }
    if let Some(percent) = (cgroup.cpu_quota_us * 100).checked_div(cgroup.cpu_period_us) {
        out.push(format!("cgroup cpu {percent}%"));
    }
    out.extend(parts.rlimits().into_iter().map(|(name, _, soft, hard)| {
        let show = |v: u64| {
            if v == u64::MAX {
                "unlimited".to_owned()
            } else {
                v.to_string()
            }
        };
        if soft == hard {
            format!("rlimit {name} {}", show(soft))
        } else {
            format!("rlimit {name} {} to {}", show(soft), show(hard))
        }
    }));
    let limits = &parts.policy.limits;
    if let Some(bytes) = limits.disk_bytes {
        out.push(format!(
            "metered: {} added to the host's folders",
            show_size(bytes)
        ));
    }
    if let Some(inodes) = limits.disk_inodes {
        out.push(format!(
            "metered: {inodes} files added to the host's folders"
        ));
    }
    out.push(format!(
        "private folders {} and {} inodes each",
        show_size(parts.tmp_bytes()),
        limits.tmp_inodes
    ));
    out
}
