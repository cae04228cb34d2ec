//! The kernel plane's groups of programs, as rows of `doctor`.
//!
//! A running daemon says what is loaded, and why the rest is not, with the verifier's words.
//! Without one, the probes say what a daemon started now by this caller would find; they load a
//! smallest program of each kind, so a kernel that refuses one of the real ones is known only to a
//! daemon.

use agentd_api::{DaemonMode, PLANE_GROUPS, PlaneGroup};
use agentd_kernel::probe::{Feature, HostCaps, Probe, ProbeState};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Out, Style};

/// In the broker's words (`broker/src/plane.rs`).
const NO_ROOT: &str = "eBPF programs are loaded by root; this agentd runs as a user";
const NO_CGROUP2: &str = "it knows agents by their cgroup2 directory, and there is no cgroup2 hierarchy that agentd may write";

const AS_ROOT: &str = "run agentd as root: sudo agentctl run ..., or as a service of systemd";
const MOUNT: &str = "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 beside what there is: \
                     sudo mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified";
const LOG: &str = "the broker's log has all that the kernel said of it";

/// Who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Daemon,
    Probe,
}

impl Source {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Probe => "probe",
        }
    }
}

/// All rows.
#[derive(Debug)]
pub struct Plane {
    source: Source,
    rows: Vec<Row>,
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    group: String,
    /// `None`: it is there.
    missing: Option<Missing>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Missing {
    why: String,
    fix: Option<String>,
}

impl Plane {
    /// What the daemon in this mode has.
    pub fn of_daemon(groups: Vec<PlaneGroup>, mode: DaemonMode, host: &HostCaps) -> Self {
        let row = |PlaneGroup { group, why_not }| {
            let missing = (!why_not.is_empty()).then(|| Missing {
                fix: Some(match (mode, find(&group, host)) {
                    (DaemonMode::User, _) => AS_ROOT.to_owned(),
                    // A caller that is not root finds its own lack of rights, which is not the daemon's.
                    (DaemonMode::Root, Some(Missing { fix: Some(fix), .. })) if host.euid == 0 => {
                        fix
                    }
                    (DaemonMode::Root, _) => LOG.to_owned(),
                }),
                why: why_not,
            });
            Row { group, missing }
        };
        Self {
            source: Source::Daemon,
            rows: groups.into_iter().map(row).collect(),
        }
    }

    /// What a daemon of this caller's would have.
    pub fn probed(host: &HostCaps) -> Self {
        let row = |group: &str| Row {
            group: group.to_owned(),
            missing: find(group, host),
        };
        Self {
            source: Source::Probe,
            rows: PLANE_GROUPS.into_iter().map(row).collect(),
        }
    }

    pub fn to_json(&self) -> Value {
        let groups = self.rows.iter().map(|row| {
            let missing = row.missing.as_ref();
            json!({
                "group": row.group,
                "ok": missing.is_none(),
                "why": missing.map(|missing| &missing.why),
                "lost": missing.map(|_| lost(&row.group)),
                "fix": missing.and_then(|missing| missing.fix.as_ref()),
            })
        });
        json!({ "source": self.source.as_str(), "groups": groups.collect::<Vec<_>>() })
    }

    pub fn print(&self, out: &mut Out) -> Result<(), Failure> {
        let heading = match self.source {
            Source::Daemon => "Kernel plane: eBPF programs that agentd has",
            Source::Probe => "Kernel plane: eBPF programs that agentd, started by you, could have",
        };
        let heading = out.colour.paint(Style::Bold, heading);
        out.line("")?;
        out.line(heading)?;
        for Row { group, missing } in &self.rows {
            let Some(Missing { why, fix }) = missing else {
                let mark = out.colour.paint(Style::Good, "✓");
                out.line(format!("  {mark} {group:<18} {}", gives(group)))?;
                continue;
            };
            let mark = out.colour.paint(Style::Dim, "–");
            out.line(format!("  {mark} {group:<18} {why}"))?;
            out.line(format!("      lost: {}", lost(group)))?;
            if let Some(fix) = fix {
                out.line(format!("      fix: {fix}"))?;
            }
        }
        Ok(())
    }
}

/// What a group is for.
fn gives(group: &str) -> &'static str {
    match group {
        "net" => "agentctl revoke net; packets counted by agent",
        "exec" => "agentctl revoke exec",
        "write" => "agentctl revoke write",
        "guard" => "ptrace, user namespaces, bpf and the host's sockets, refused and told",
        "sched" => "agentctl sched",
        "route" => "requests between two agents without agentd in between",
        _ => "known to a newer agentctl",
    }
}

fn lost(group: &str) -> &'static str {
    match group {
        "guard" => "a second refusal, told, of what the filter and the namespaces refuse already",
        "route" => "nothing but time: such requests go through agentd",
        group => gives(group),
    }
}

/// What stands in the way of a group here, the first thing first.
fn find(group: &str, host: &HostCaps) -> Option<Missing> {
    let own = match group {
        "exec" | "write" | "guard" => Some(Feature::BpfLsm),
        "sched" => Some(Feature::BpfTracing),
        "route" => Some(Feature::BpfReceipts),
        _ => None,
    };
    if host.euid != 0 {
        return Some(Missing {
            why: NO_ROOT.to_owned(),
            fix: Some(AS_ROOT.to_owned()),
        });
    }
    let is_writable = host
        .probe(Feature::CgroupKill)
        .is_none_or(|probe| !matches!(probe.state, ProbeState::Denied { .. }));
    if host.cgroup.v2.is_none() || !is_writable {
        return Some(Missing {
            why: NO_CGROUP2.to_owned(),
            fix: Some(MOUNT.to_owned()),
        });
    }
    let lacks = |feature| {
        let probe = host.probe(feature)?;
        Some(Missing {
            why: Probe::why(probe)?,
            fix: probe.fix.clone(),
        })
    };
    lacks(Feature::Bpf).or_else(|| lacks(own?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which everything is there, but for these.
    fn host(euid: u32, missing: &[(Feature, &str)]) -> HostCaps {
        let probe = |feature: &Feature| {
            let why = missing.iter().find(|(of, _)| of == feature);
            Probe {
                feature: *feature,
                name: feature.name().into(),
                need: feature.need(),
                state: match why {
                    Some((_, why)) => ProbeState::Unsupported {
                        why: (*why).to_owned(),
                    },
                    None => ProbeState::Supported,
                },
                lost: feature.lost().into(),
                fix: why.and_then(|_| feature.usual_fix().map(Into::into)),
                detail: None,
            }
        };
        HostCaps {
            kernel: "6.1".into(),
            machine: "x86_64".into(),
            euid,
            probes: Feature::ALL.iter().map(probe).collect(),
            landlock_abi: 0,
            cgroup: agentd_kernel::probe::CgroupHost {
                v2: Some("/sys/fs/cgroup".into()),
                controllers: Vec::new(),
            },
            gvisor_release: None,
        }
    }

    fn why(plane: &Plane, group: &str) -> Option<String> {
        let row = plane.rows.iter().find(|row| row.group == group);
        let missing = row.expect("a row of each group").missing.as_ref();
        missing.map(|missing| missing.why.clone())
    }

    #[test]
    fn each_group_has_the_reason_of_what_it_needs_and_no_other() {
        let all = Plane::probed(&host(0, &[]));
        assert!(all.rows.iter().all(|row| row.missing.is_none()));
        let host = host(
            0,
            &[
                (Feature::BpfLsm, "bpf is not active"),
                (Feature::BpfReceipts, "no such tracepoint"),
            ],
        );
        let plane = Plane::probed(&host);
        for group in ["exec", "write", "guard"] {
            assert_eq!(why(&plane, group).as_deref(), Some("bpf is not active"));
        }
        assert_eq!(why(&plane, "route").as_deref(), Some("no such tracepoint"));
        assert_eq!(why(&plane, "net"), None);
        assert_eq!(why(&plane, "sched"), None);
        let exec = &plane.to_json()["groups"][1];
        assert_eq!(
            (&exec["group"], &exec["ok"]),
            (&json!("exec"), &json!(false))
        );
        assert!(exec["fix"].as_str().is_some_and(|fix| fix.contains("lsm=")));
    }

    #[test]
    fn what_all_groups_need_is_the_first_reason() {
        let user = Plane::probed(&host(1000, &[(Feature::BpfLsm, "not active")]));
        let mut nowhere = host(0, &[]);
        nowhere.cgroup.v2 = None;
        let nowhere = Plane::probed(&nowhere);
        for group in PLANE_GROUPS {
            assert_eq!(why(&user, group).as_deref(), Some(NO_ROOT));
            assert_eq!(why(&nowhere, group).as_deref(), Some(NO_CGROUP2));
        }
    }

    #[test]
    fn a_daemons_word_counts_and_not_what_the_caller_could_do() {
        let told = |why_not: &str| {
            vec![PlaneGroup {
                group: "sched".into(),
                why_not: why_not.into(),
            }]
        };
        let loaded = Plane::of_daemon(told(""), DaemonMode::Root, &host(1000, &[]));
        assert_eq!(why(&loaded, "sched"), None);
        assert_eq!(loaded.to_json()["source"], "daemon");
        let verifier = "sched_switch: Permission denied: R1 invalid mem access";
        let refused = Plane::of_daemon(told(verifier), DaemonMode::Root, &host(1000, &[]));
        assert_eq!(why(&refused, "sched").as_deref(), Some(verifier));
        assert_eq!(refused.to_json()["groups"][0]["fix"], LOG);
        let user = Plane::of_daemon(told(NO_ROOT), DaemonMode::User, &host(0, &[]));
        assert_eq!(user.to_json()["groups"][0]["fix"], AS_ROOT);
    }
}
