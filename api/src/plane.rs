//! The kernel plane's groups of eBPF programs: which of them a daemon has, and why not the others.

use serde_json::{Value, json};
use zbus::zvariant::{DeserializeDict, SerializeDict, Type};

/// Names of the groups, in the order in which they are shown. `agentd_bpf::Group` is the same list.
pub const PLANE_GROUPS: [&str; 6] = ["net", "exec", "write", "guard", "sched", "route"];

/// One group, as a running daemon has it.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct PlaneGroup {
    /// One of [`PLANE_GROUPS`], or of a newer daemon's.
    pub group: String,
    /// Empty where its programs are loaded and attached; else the broker's reason, with the verifier's words.
    pub why_not: String,
}

impl PlaneGroup {
    pub fn is_loaded(&self) -> bool {
        self.why_not.is_empty()
    }

    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        let why_not = (!self.is_loaded()).then_some(&self.why_not);
        json!({ "group": self.group, "ok": self.is_loaded(), "why": why_not })
    }
}
