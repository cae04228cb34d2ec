//! Which line of the policy a refusal of the kernel comes from, and what would allow it.
//!
//! The kernel says what was refused (a system call's number, a Landlock right and a path, a hook of live control), never why the
//! rule is there. The plan is made from lines, so the lines are kept with the agent ([`DenialRules`]) and asked when something
//! is refused. Where no line decides, the answer is the floor, which no policy changes; nothing is guessed.
//!
//! Pure; any thread. Strings from inside a sandbox come in as they are and go into no answer.

use crate::plan::LaunchInputs;
use crate::policy::{EffectivePolicy, Origin, PathTemplate, Valued};
use crate::seccomp::{self, SyscallSet};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The lines that the kernel's layers were made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialRules {
    /// `syscalls.allow`.
    syscalls: Option<Origin>,
    /// `net.ports`.
    ports: Option<Origin>,
    paths: Vec<PathRule>,
    /// The keys that the daemon's own refusals come from.
    #[serde(default)]
    lines: BTreeMap<String, Origin>,
}

/// What the bus and the model gateway refuse by.
const LINES: [&str; 8] = [
    "ipc.send",
    "ipc.request",
    "ipc.publish",
    "ipc.subscribe",
    "model.access",
    "model.models",
    "limits.tokens",
    "limits.cost",
];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PathRule {
    /// Such as `fs.read`.
    key: String,
    path: PathBuf,
    origin: Origin,
}

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The rule in words, and what would allow it where a policy could.
    pub rule: String,
    /// The line, where one decided.
    pub origin: Option<String>,
}

impl Reason {
    fn new(rule: String, origin: Option<&Origin>) -> Self {
        Self {
            rule,
            origin: origin.map(ToString::to_string),
        }
    }

    fn floor(why: &str) -> Self {
        Self::new(format!("the floor: {why}; no policy allows it"), None)
    }
}

impl DenialRules {
    /// What the plan for `policy` is made from.
    pub fn new(policy: &EffectivePolicy, inputs: &LaunchInputs) -> Self {
        let fs = &policy.fs;
        let lists: [(&str, &[Valued<PathTemplate>]); 7] = [
            ("fs.read", &fs.read),
            ("fs.write", &fs.write),
            ("fs.exec", &fs.exec),
            ("fs.scratch", &fs.scratch),
            ("fs.copy", &fs.copy),
            ("fs.protect", &fs.protect),
            ("fs.deny", &fs.deny),
        ];
        let resolve = |path: &PathTemplate| {
            path.resolve(inputs.caller_home.as_deref(), inputs.workspace.as_deref())
        };
        let paths = lists.into_iter().flat_map(|(key, list)| {
            list.iter().filter_map(move |entry| {
                Some(PathRule {
                    key: key.to_owned(),
                    path: resolve(&entry.value)?,
                    origin: entry.origin.clone(),
                })
            })
        });
        Self {
            syscalls: Some(policy.origin_of("syscalls.allow")),
            ports: Some(policy.origin_of("net.ports")),
            paths: paths.collect(),
            lines: LINES
                .into_iter()
                .map(|key| (key.to_owned(), policy.origin_of(key)))
                .collect(),
        }
    }

    /// Why the bus refused what the list `key` of `[ipc]` would have to name.
    pub fn ipc(&self, key: &str) -> Reason {
        let key = format!("ipc.{key}");
        Reason::new(format!("not in {key}"), self.lines.get(&key))
    }

    /// Where a key was written that the bus or the model gateway refuses by.
    pub fn line(&self, key: &str) -> Option<String> {
        self.lines.get(key).map(ToString::to_string)
    }

    /// Why the filter refused this system call.
    pub fn syscall(&self, number: u32) -> Reason {
        let Some(name) = seccomp::syscall_name(number) else {
            return Reason::floor("a system call that this build does not know");
        };
        // The sets that a policy may leave out are named by what they would give.
        let set = SyscallSet::ALL
            .iter()
            .find(|set| set.calls().any(|(call, _)| call == name));
        match (set, seccomp::refusal_of(name)) {
            (Some(SyscallSet::Process), _) => Reason::floor("namespaces can't be made inside"),
            (Some(set), _) => {
                let set = set.name();
                Reason::new(
                    format!("not in syscalls.allow: the set {set:?} would allow it"),
                    self.syscalls.as_ref(),
                )
            }
            (None, Some(why)) => Reason::floor(why),
            (None, None) => Reason::floor("no set has it"),
        }
    }

    /// Why Landlock refused these rights, in the kernel's words (`fs.write_file`, `net.bind_tcp`, `scope.signal`, …).
    pub fn landlock(&self, blockers: &str, path: Option<&Path>) -> Reason {
        let has = |kind: &str| blockers.split(',').any(|right| right.starts_with(kind));
        if has("net.") {
            let rule = "not a port of net.ports".to_owned();
            return Reason::new(rule, self.ports.as_ref());
        }
        if has("scope.") {
            return Reason::floor(
                "nothing outside the sandbox is reached by abstract socket or signal",
            );
        }
        if has("ptrace") {
            return Reason::floor("no process outside the sandbox is traced");
        }
        if has("fs.change_topology") {
            return Reason::floor("what is mounted inside can't be changed");
        }
        let Some(path) = path else {
            return Reason::floor("a file outside the view");
        };
        let key = if has("fs.execute") {
            "fs.exec"
        } else if blockers
            .split(',')
            .all(|right| matches!(right, "fs.read_file" | "fs.read_dir"))
        {
            "fs.read"
        } else {
            "fs.write"
        };
        // The deepest line that covers the path is the one that the rights there were made from.
        let covering = self
            .paths
            .iter()
            .filter(|rule| path.starts_with(&rule.path))
            .max_by_key(|rule| rule.path.components().count());
        match covering {
            Some(rule) => Reason::new(
                format!("{} = {} is not in {key}", rule.key, rule.path.display()),
                Some(&rule.origin),
            ),
            None => Reason::new(format!("no line of {key} covers it"), None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> DenialRules {
        let line = |key: &str, path: &str, line| PathRule {
            key: key.into(),
            path: path.into(),
            origin: Origin::new("team.toml", line),
        };
        DenialRules {
            syscalls: Some(Origin::new("team.toml", 3)),
            ports: Some(Origin::new("team.toml", 5)),
            paths: vec![
                line("fs.read", "/usr", 7),
                line("fs.write", "/w", 8),
                line("fs.read", "/w/vendor", 9),
            ],
            lines: BTreeMap::from([("ipc.send".to_owned(), Origin::new("team.toml", 11))]),
        }
    }

    #[test]
    fn a_call_of_a_set_names_the_set_and_the_line_that_lacks_it() {
        let ptrace = rules().syscall(101);
        assert!(ptrace.rule.contains("\"debug\""), "{ptrace:?}");
        assert_eq!(ptrace.origin.as_deref(), Some("team.toml:3"));
    }

    #[test]
    fn what_no_set_has_is_the_floors() {
        for number in [165, 56, 272, 9999] {
            let reason = rules().syscall(number);
            assert!(reason.rule.starts_with("the floor"), "{number}: {reason:?}");
            assert_eq!(reason.origin, None);
        }
    }

    #[test]
    fn the_deepest_line_that_covers_a_path_is_named_with_the_key_that_lacks_it() {
        let ask = |blockers, path| rules().landlock(blockers, Some(Path::new(path)));
        let vendored = ask("fs.write_file,fs.truncate", "/w/vendor/a.c");
        assert_eq!(vendored.origin.as_deref(), Some("team.toml:9"));
        assert!(vendored.rule.contains("fs.write"), "{vendored:?}");
        let dropped = ask("fs.execute", "/w/a.out");
        assert_eq!(dropped.origin.as_deref(), Some("team.toml:8"));
        assert!(dropped.rule.contains("fs.exec"), "{dropped:?}");
        assert_eq!(ask("fs.read_file", "/etc/shadow").origin, None);
    }

    #[test]
    fn what_the_bus_refuses_is_the_line_of_its_list() {
        let send = rules().ipc("send");
        assert_eq!(send.rule, "not in ipc.send");
        assert_eq!(send.origin.as_deref(), Some("team.toml:11"));
        // Kept by an agentd that did not keep them.
        assert_eq!(rules().ipc("publish").origin, None);
    }

    #[test]
    fn ports_scopes_and_traces_have_their_own_answers() {
        let port = rules().landlock("net.bind_tcp", None);
        assert_eq!(port.origin.as_deref(), Some("team.toml:5"));
        for blockers in [
            "scope.signal",
            "scope.abstract_unix_socket",
            "ptrace",
            "fs.change_topology",
        ] {
            assert!(
                rules()
                    .landlock(blockers, None)
                    .rule
                    .starts_with("the floor")
            );
        }
    }
}
