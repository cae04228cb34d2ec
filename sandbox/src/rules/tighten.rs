//! What is taken by policy from an agent that runs: a tightening.
//!
//! The agent keeps its own rules. A tightening is a second set that everything has to pass as well, so it can only take away:
//! nobody has to prove that one policy is a part of another. Only rules that agentd asks while the agent runs are in it
//! ([`is_live`]); what the kernel was told at the start can't be changed for a process that runs.
//! Limits of the cgroup are the kernel's, and can ([`LimitRules`]).
//!
//! Each key that a tightening is about has the line that a refusal rests on; a key without a line holds nothing. Pure.
//! How one is made of a policy is in `policy/tighten.rs`.

use super::egress::Decision;
use super::tools::ToolDecision;
use super::{EgressRules, IpcRules, LimitRules, ModelRules, SshRules, ToolRules};
use crate::policy::Origin;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The keys that agentd judges by while an agent runs, and those that the host's cgroup holds.
const LIVE: [&str; 22] = [
    "net.mode",
    "net.allow",
    "net.ask",
    "net.credentials",
    "model.access",
    "model.models",
    "model.max_tokens",
    "limits.tokens",
    "limits.cost",
    "limits.memory",
    "limits.pids",
    "limits.cpu",
    "ipc.send",
    "ipc.request",
    "ipc.publish",
    "ipc.subscribe",
    "ipc.shared_memory",
    "tools.allow",
    "tools.ask",
    "tools.deny",
    "ssh.agent",
    "ssh.keys",
];

/// `[ssh] sign` is live, too; apart, because what it takes away is that nobody is asked.
const SIGN: &str = "ssh.sign";

/// Whether a key can be tightened while the agent runs.
pub fn is_live(key: &str) -> bool {
    key == SIGN || LIVE.contains(&key)
}

/// Every key that can be tightened.
pub fn live_keys() -> impl Iterator<Item = &'static str> {
    LIVE.into_iter().chain([SIGN])
}

/// What to do about a key that is fixed once the agent runs.
pub fn instead(key: &str) -> &'static str {
    match key.split('.').next().unwrap_or_default() {
        "fs" => {
            "`agentctl revoke write` takes changing files from it; for the rest start it anew under the policy"
        }
        "exec" | "syscalls" | "runtime" => {
            "`agentctl revoke exec` keeps it from starting programs; for the rest start it anew under the policy"
        }
        "net" => {
            "`agentctl revoke net` takes the whole network from it; for the rest start it anew under the policy"
        }
        _ => "start it anew under the policy",
    }
}

/// One tightening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tightening {
    /// What it is called: the policy, or the settings.
    pub name: String,
    /// SHA-256 of what it says, as of any policy.
    #[serde(default)]
    pub hash: String,
    /// By key, the line that a refusal rests on.
    pub(crate) lines: BTreeMap<String, Origin>,
    pub(crate) egress: EgressRules,
    pub(crate) model: ModelRules,
    pub(crate) ipc: IpcRules,
    pub(crate) tools: ToolRules,
    pub(crate) ssh: SshRules,
    #[serde(default)]
    pub(crate) limits: LimitRules,
}

/// A refusal, and the line that it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// A sentence for the agent and for the record.
    pub why: String,
    pub origin: Origin,
}

/// Tightenings of one agent, in the order in which they came.
pub type Tightenings = [Arc<Tightening>];

impl Tightening {
    /// The keys that it is about.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.lines.keys().map(String::as_str)
    }

    /// A key that this version does not know: somebody meant it to hold, and it can't be held.
    pub fn unknown_key(&self) -> Option<&str> {
        self.keys().find(|key| !is_live(key))
    }

    /// The keys with the lines that their refusals rest on.
    pub fn lines(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.lines
            .iter()
            .map(|(key, origin)| (key.as_str(), origin))
    }

    pub(super) fn line(&self, key: &str) -> Option<&Origin> {
        self.lines.get(key)
    }

    fn refuse(&self, key: &str, why: String) -> Option<Refused> {
        let origin = self.line(key)?.clone();
        Some(Refused {
            why: format!("{why} ({origin}, laid over the agent's policy while it runs)"),
            origin,
        })
    }

    fn closes_net(&self) -> bool {
        self.lines.contains_key("net.mode") && !self.egress.enabled
    }

    /// What it says of a destination; `None` when nothing in it is about that.
    fn egress(&self, host: &str, port: u16) -> Option<Decision> {
        let deny = |key: &str, why: String| {
            let Refused { why, origin } = self.refuse(key, why)?;
            Some(Decision::Deny {
                why,
                origin: Some(origin),
                tightened: true,
            })
        };
        if self.closes_net() {
            return deny("net.mode", "[net] mode = \"none\"".into());
        }
        let about = |r: &&super::EgressRule| r.covers(host, port);
        if let Some(rule) = self.egress.ask.iter().find(about) {
            return Some(Decision::Ask { rule: rule.clone() });
        }
        self.line("net.allow")?;
        match self.egress.rules.iter().find(about) {
            Some(rule) => Some(Decision::Allow { rule: rule.clone() }),
            None => deny("net.allow", format!("{host}:{port} is not in [net] allow")),
        }
    }

    fn model(&self, model: &str) -> Option<Refused> {
        let covered = self.model.models.is_empty()
            || self
                .model
                .models
                .iter()
                .any(|p| super::matches_model(p, model));
        if covered || self.line("model.models").is_none() {
            return None;
        }
        let allowed = self.model.models.join(", ");
        let why = format!("the model {model:?} is not allowed; [model] models = [{allowed}]");
        self.refuse("model.models", why)
    }

    /// Whether it lets this name, topic or pattern be used by a right of `[ipc]`.
    fn ipc(&self, key: &str, name: &str) -> bool {
        if !self.lines.contains_key(key) {
            return true;
        }
        match key {
            "ipc.send" => self.ipc.may_send(name),
            "ipc.request" => self.ipc.may_request(name),
            "ipc.publish" => self.ipc.may_publish(name),
            _ => self.ipc.may_subscribe(name),
        }
    }

    fn tools(&self, tool: &str, input: &Value, workspace: Option<&str>) -> ToolDecision {
        match self.tools.decide(tool, input, workspace) {
            ToolDecision::Deny { origin: None, why } => {
                match self.refuse("tools.allow", why.clone()) {
                    Some(Refused { why, origin }) => ToolDecision::Deny {
                        why,
                        origin: Some(origin),
                    },
                    None => ToolDecision::Deny { why, origin: None },
                }
            }
            other => other,
        }
    }

    fn ssh_allows(&self, fingerprint: &str) -> bool {
        let keys = &self.ssh.keys;
        self.line("ssh.keys").is_none() || keys.is_empty() || keys.iter().any(|k| k == fingerprint)
    }
}

/// The lower of two limits, of which none is no limit.
pub(super) fn lower<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

impl EgressRules {
    /// These rules, with tightenings over them.
    #[must_use]
    pub fn under(&self, tightenings: &Tightenings) -> Self {
        Self {
            tightened: tightenings.to_vec(),
            ..self.clone()
        }
    }

    /// The tightening that takes a credential away, if one does.
    pub fn credential_refused_by(&self, name: &str) -> Option<Refused> {
        let without = |it: &&Arc<Tightening>| !it.egress.credentials.iter().any(|n| n == name);
        let why = || format!("the credential {name:?} is not in [net] credentials");
        self.tightened
            .iter()
            .filter(without)
            .find_map(|it| it.refuse("net.credentials", why()))
    }

    /// What is left of a decision of these rules: the strictest that any tightening says. `host` is normalised.
    pub(super) fn tighten(&self, own: Decision, host: &str, port: u16) -> Decision {
        self.tightened.iter().fold(own, |so_far, it| {
            let Some(said) = it.egress(host, port) else {
                return so_far;
            };
            match (so_far, said) {
                (deny @ Decision::Deny { .. }, _) | (_, deny @ Decision::Deny { .. }) => deny,
                (Decision::Allow { rule }, Decision::Allow { rule: other }) => Decision::Allow {
                    rule: if rule.private { other } else { rule },
                },
                // Who asks is named; what it may reach is what both let it.
                (Decision::Ask { rule }, Decision::Ask { rule: other })
                | (Decision::Ask { rule }, Decision::Allow { rule: other })
                | (Decision::Allow { rule: other }, Decision::Ask { rule }) => Decision::Ask {
                    rule: super::EgressRule {
                        private: rule.private && other.private,
                        ..rule
                    },
                },
            }
        })
    }
}

impl ModelRules {
    /// These rules, with tightenings over them.
    #[must_use]
    pub fn under(&self, tightenings: &Tightenings) -> Self {
        let mut rules = self.clone();
        for it in tightenings {
            let has = |key: &str| it.line(key).is_some();
            rules.enabled &= !has("model.access") || it.model.enabled;
            let max = |key, own, other| if has(key) { lower(own, other) } else { own };
            let other = &it.model;
            rules.max_tokens_total = max(
                "limits.tokens",
                rules.max_tokens_total,
                other.max_tokens_total,
            );
            rules.max_tokens_per_request = max(
                "model.max_tokens",
                rules.max_tokens_per_request,
                other.max_tokens_per_request,
            );
            rules.max_cost_nano_usd = max(
                "limits.cost",
                rules.max_cost_nano_usd,
                other.max_cost_nano_usd,
            );
        }
        rules.tightened = tightenings.to_vec();
        rules
    }

    /// The tightening that refuses every model, if one does.
    pub fn closed_by(&self) -> Option<Refused> {
        let closed = |it: &&Arc<Tightening>| !it.model.enabled;
        self.tightened
            .iter()
            .filter(closed)
            .find_map(|it| it.refuse("model.access", "no models: [model] access".into()))
    }

    /// The tightening that refuses this model, if one does.
    pub fn refused_by(&self, model: &str) -> Option<Refused> {
        self.tightened.iter().find_map(|it| it.model(model))
    }

    /// The line of the tightening that set a limit as it is now.
    pub fn limited_by(&self, key: &str) -> Option<&Origin> {
        self.tightened.iter().find_map(|it| {
            let is_it = match key {
                "limits.tokens" => it.model.max_tokens_total == self.max_tokens_total,
                "limits.cost" => it.model.max_cost_nano_usd == self.max_cost_nano_usd,
                _ => it.model.max_tokens_per_request == self.max_tokens_per_request,
            };
            it.line(key).filter(|_| is_it)
        })
    }
}

impl IpcRules {
    /// These rules, with tightenings over them.
    #[must_use]
    pub fn under(&self, tightenings: &Tightenings) -> Self {
        let mut rules = self.clone();
        for it in tightenings {
            let says = it.line("ipc.shared_memory").is_some();
            rules.shared_memory &= !says || it.ipc.shared_memory;
        }
        rules.tightened = tightenings.to_vec();
        rules
    }

    /// Whether every tightening lets `name` be used by the right of this key.
    pub(super) fn passes(&self, key: &str, name: &str) -> bool {
        self.tightened.iter().all(|it| it.ipc(key, name))
    }

    /// The line of the tightening that refuses `name` to the right of this key (`ipc.publish`, …), if one does.
    pub fn refused_by(&self, key: &str, name: &str) -> Option<&Origin> {
        let refusing = self.tightened.iter().find(|it| !it.ipc(key, name))?;
        refusing.line(key)
    }
}

impl ToolRules {
    /// These rules, with tightenings over them.
    #[must_use]
    pub fn under(&self, tightenings: &Tightenings) -> Self {
        Self {
            tightened: tightenings.to_vec(),
            ..self.clone()
        }
    }

    /// What is left of a decision of these rules: denied where one tightening denies, asked where one asks.
    pub(super) fn tighten(
        &self,
        own: ToolDecision,
        tool: &str,
        input: &Value,
        workspace: Option<&str>,
    ) -> ToolDecision {
        self.tightened.iter().fold(own, |so_far, it| match so_far {
            ToolDecision::Deny { .. } => so_far,
            _ => match (so_far, it.tools(tool, input, workspace)) {
                (asked @ ToolDecision::Ask { .. }, said) => match said {
                    deny @ ToolDecision::Deny { .. } => deny,
                    _ => asked,
                },
                (_, said) => said,
            },
        })
    }
}

impl SshRules {
    /// These rules, with tightenings over them.
    #[must_use]
    pub fn under(&self, tightenings: &Tightenings) -> Self {
        let mut rules = self.clone();
        for it in tightenings {
            rules.enabled &= it.line("ssh.agent").is_none() || it.ssh.enabled;
            rules.ask |= it.line(SIGN).is_some() && it.ssh.ask;
        }
        rules.tightened = tightenings.to_vec();
        rules
    }

    pub(super) fn passes(&self, fingerprint: &str) -> bool {
        self.tightened.iter().all(|it| it.ssh_allows(fingerprint))
    }

    /// The line of the tightening that refuses this key, if one does.
    pub fn refused_by(&self, fingerprint: &str) -> Option<&Origin> {
        self.tightened.iter().find_map(|it| {
            if !it.ssh.enabled && it.line("ssh.agent").is_some() {
                return it.line("ssh.agent");
            }
            it.line("ssh.keys").filter(|_| !it.ssh_allows(fingerprint))
        })
    }
}
