//! A ceiling: a policy that another may not exceed.
//!
//! [`EffectivePolicy::exceeds`] compares what two policies *allow*, value by value, and says for each value that allows
//! more which line of the ceiling it goes beyond. It is sound, not complete: two policies that mean the same in different
//! words (a pattern written in another way) may be told apart, never the other way round. Pure; asked by agentd for each
//! launch and by `agentctl policy diff`.
//!
//! Files and what is reached are in `ceiling_files.rs`; numbers, sets and rules are here.

use super::effective::{LoopbackPorts, NetMode};
use super::units::{show_dollars, show_size};
use super::{CallerContext, EffectivePolicy, Origin};
use crate::rules::model::glob;
use crate::rules::{EgressRule, ToolRule};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One value that allows more than the ceiling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excess {
    /// Such as `limits.memory`.
    pub key: String,
    /// What the policy allows.
    pub value: String,
    pub origin: Origin,
    /// What the ceiling allows instead.
    pub allowed: String,
    /// The line of the ceiling; without a number where it says nothing, which allows nothing.
    pub ceiling: Origin,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            value,
            origin,
            allowed,
            ceiling,
        } = self;
        write!(f, "{origin}: {key} = {value}: {ceiling} allows {allowed}")
    }
}

/// A policy, and the launch for which `~` and `${workspace}` in it mean something.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub policy: &'a EffectivePolicy,
    pub at: &'a CallerContext,
}

/// The comparison under way.
pub(super) struct Compare<'a> {
    pub own: Side<'a>,
    pub top: Side<'a>,
    pub found: Vec<Excess>,
}

impl EffectivePolicy {
    /// What this policy allows beyond `ceiling`; empty when it stays within.
    ///
    /// `at` is the launch as its caller describes it, `ceiling_at` as the operator knows it: `~` in the ceiling is never
    /// what a caller says that it is.
    pub fn exceeds(
        &self,
        at: &CallerContext,
        ceiling: &EffectivePolicy,
        ceiling_at: &CallerContext,
    ) -> Vec<Excess> {
        let mut compare = Compare {
            own: Side { policy: self, at },
            top: Side {
                policy: ceiling,
                at: ceiling_at,
            },
            found: Vec::new(),
        };
        compare.files();
        compare.exec();
        compare.network();
        compare.hosts();
        compare.model();
        compare.ipc();
        compare.limits();
        compare.environment();
        compare.tools();
        compare.ssh();
        compare.sets();
        compare.found
    }
}

impl Compare<'_> {
    pub(super) fn exceed(
        &mut self,
        key: &str,
        value: impl fmt::Display,
        origin: Origin,
        allowed: impl fmt::Display,
    ) {
        let ceiling = self.ceiling_of(key);
        self.found.push(Excess {
            key: key.to_owned(),
            value: value.to_string(),
            origin,
            allowed: allowed.to_string(),
            ceiling,
        });
    }

    /// The last line of the ceiling about a key: where its operator would allow more.
    pub(super) fn ceiling_of(&self, key: &str) -> Origin {
        self.top.policy.last_line_of(key)
    }

    /// A value that this policy sets as a whole.
    fn exceed_single(&mut self, key: &str, value: impl fmt::Display, allowed: impl fmt::Display) {
        let origin = self.own.policy.origin_of(key);
        self.exceed(key, value, origin, allowed);
    }

    fn flag(&mut self, key: &str, own: bool, top: bool) {
        if own && !top {
            self.exceed_single(key, "true", "false");
        }
    }

    fn exec(&mut self) {
        let (own, top) = (self.own.policy.exec, self.top.policy.exec);
        if own.memfd > top.memfd {
            self.exceed_single("exec.memfd", own.memfd, top.memfd);
        }
        self.flag("exec.write_exec", own.write_exec, top.write_exec);
        let (own, top) = (self.own.policy.runtime, self.top.policy.runtime);
        if own > top {
            self.exceed_single("runtime.kind", own, top);
        }
    }

    fn network(&mut self) {
        if self.own.policy.fs.hard_links > self.top.policy.fs.hard_links {
            self.exceed_single("fs.hard_links", "any", "inside");
        }
        let (own, top) = (&self.own.policy.net, &self.top.policy.net);
        if own.mode > top.mode {
            self.exceed_single("net.mode", own.mode, top.mode);
        }
        match (&own.ports, &top.ports) {
            (_, LoopbackPorts::Any) => {}
            (LoopbackPorts::Any, LoopbackPorts::Only(ports)) => {
                self.exceed_single("net.ports", "any", format_args!("{ports:?}"));
            }
            (LoopbackPorts::Only(own), LoopbackPorts::Only(top)) => {
                let more: Vec<_> = own.iter().filter(|p| !top.contains(p)).collect();
                if !more.is_empty() {
                    let value = format!("{more:?}");
                    self.exceed_single("net.ports", value, format_args!("{top:?}"));
                }
            }
        }
    }

    fn hosts(&mut self) {
        let (own, top) = (&self.own.policy.egress, &self.top.policy.egress);
        // Without a proxy no list of hosts reaches anything; the host's own network is judged by its mode.
        if self.own.policy.net.mode != NetMode::Proxy {
            return;
        }
        for rule in &own.rules {
            let still_asked = |ask: &&EgressRule| own.ask.iter().any(|o| o.is_wider(ask));
            let mut asked = top.ask.iter().filter(|t| t.overlaps(rule));
            if let Some(ask) = asked.find(|a| !still_asked(a)) {
                let allowed = format!("{} only when a person says so (net.ask)", ask.text);
                self.exceed("net.allow", &rule.text, rule.origin.clone(), allowed);
            } else if !top.rules.iter().any(|t| t.is_wider(rule)) {
                let allowed = texts(top.rules.iter().map(|r| r.text.as_str()));
                self.exceed("net.allow", &rule.text, rule.origin.clone(), allowed);
            }
        }
        for rule in &own.ask {
            if !top.rules.iter().chain(&top.ask).any(|t| t.is_wider(rule)) {
                let allowed = texts(top.rules.iter().chain(&top.ask).map(|r| r.text.as_str()));
                self.exceed("net.ask", &rule.text, rule.origin.clone(), allowed);
            }
        }
        for name in own
            .credentials
            .iter()
            .filter(|n| !top.credentials.contains(n))
        {
            let allowed = texts(top.credentials.iter().map(String::as_str));
            self.exceed_single("net.credentials", name, allowed);
        }
    }

    fn model(&mut self) {
        let (own, top) = (&self.own.policy.model, &self.top.policy.model);
        if !own.enabled {
            return;
        }
        if !top.enabled {
            self.exceed_single("model.access", "gateway", "none");
            return;
        }
        let allowed = || texts(top.models.iter().map(String::as_str));
        if own.models.is_empty() && !top.models.is_empty() {
            self.exceed_single("model.models", "every model", allowed());
        }
        // A `*` of the ceiling stands for any text, so for what a `*` of ours stands for as well.
        let covered = |m: &str| top.models.is_empty() || top.models.iter().any(|t| glob(t, m));
        for model in own.models.iter().filter(|m| !covered(m)) {
            self.exceed_single("model.models", model, allowed());
        }
        self.at_most(
            "model.max_tokens",
            own.max_tokens_per_request,
            top.max_tokens_per_request,
            |n| n.to_string(),
        );
    }

    fn ipc(&mut self) {
        let (own, top) = (&self.own.policy.ipc, &self.top.policy.ipc);
        for (key, own, top) in [
            ("ipc.send", &own.send, &top.send),
            ("ipc.request", &own.request, &top.request),
            ("ipc.publish", &own.publish, &top.publish),
            ("ipc.subscribe", &own.subscribe, &top.subscribe),
        ] {
            for name in own {
                if !top.iter().any(|t| t.covers(name.as_str())) {
                    let allowed = texts(top.iter().map(|t| t.as_str()));
                    self.exceed_item(key, name.as_str(), allowed);
                }
            }
        }
        self.flag("ipc.shared_memory", own.shared_memory, top.shared_memory);
    }

    /// An item of a list whose items carry no origin of their own.
    fn exceed_item(&mut self, key: &str, item: &str, allowed: impl fmt::Display) {
        let written = format!("{item:?}");
        let shown = &self.own.policy.shown;
        let line = shown.iter().find(|s| s.key == key && s.value == written);
        let origin = line.map_or_else(|| self.own.policy.origin_of(key), |s| s.origin.clone());
        self.exceed(key, item, origin, allowed);
    }

    /// A limit; none is more than any.
    fn at_most(
        &mut self,
        key: &str,
        own: Option<u64>,
        top: Option<u64>,
        show: impl Fn(u64) -> String,
    ) {
        let Some(top) = top else { return };
        if own.is_none_or(|own| own > top) {
            let value = own.map_or_else(|| "none".to_owned(), &show);
            self.exceed_single(key, value, format_args!("at most {}", show(top)));
        }
    }

    fn limits(&mut self) {
        let (own, top) = (&self.own.policy.limits, &self.top.policy.limits);
        let count = |n: u64| n.to_string();
        let time = |ms: u64| format!("{} s", ms / 1000);
        let ms = |d: Option<std::time::Duration>| {
            d.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
        };
        let mut size = |key, own, top| self.at_most(key, own, top, show_size);
        size("limits.memory", own.memory_bytes, top.memory_bytes);
        size("limits.fsize", own.fsize_bytes, top.fsize_bytes);
        size("limits.disk", own.disk_bytes, top.disk_bytes);
        size("limits.tmp", Some(own.tmp_bytes), Some(top.tmp_bytes));
        size("limits.output", own.output_bytes, top.output_bytes);
        self.at_most("limits.pids", own.pids, top.pids, count);
        self.at_most("limits.cpu", own.cpu_percent, top.cpu_percent, |n| {
            format!("{n}%")
        });
        self.at_most("limits.nofile", Some(own.nofile), Some(top.nofile), count);
        self.at_most(
            "limits.disk_inodes",
            own.disk_inodes,
            top.disk_inodes,
            count,
        );
        let (own_inodes, top_inodes) = (Some(own.tmp_inodes), Some(top.tmp_inodes));
        self.at_most("limits.tmp_inodes", own_inodes, top_inodes, count);
        self.at_most(
            "limits.wall_clock",
            ms(own.wall_clock),
            ms(top.wall_clock),
            time,
        );
        if self.own.policy.model.enabled {
            self.at_most("limits.tokens", own.tokens, top.tokens, count);
            self.at_most(
                "limits.cost",
                own.cost_micro_usd,
                top.cost_micro_usd,
                show_dollars,
            );
        }
    }

    fn environment(&mut self) {
        let top = &self.top.policy.env.pass;
        for name in &self.own.policy.env.pass {
            let covered = top.iter().any(|t| match t.value.strip_suffix('*') {
                Some(stem) => name.value.starts_with(stem),
                None => name.value == t.value,
            });
            if !covered {
                let allowed = texts(top.iter().map(|t| t.value.as_str()));
                self.exceed("env.pass", &name.value, name.origin.clone(), allowed);
            }
        }
    }

    /// What the ceiling denies or asks for, this policy has to; what it allows one by one, this policy may only narrow.
    fn tools(&mut self) {
        let (own, top) = (&self.own.policy.tools, &self.top.policy.tools);
        let has = |list: &[ToolRule], rule: &ToolRule| list.iter().any(|r| r.is_wider(rule));
        let mut lost = Vec::new();
        for rule in top.deny.iter().filter(|r| !has(&own.deny, r)) {
            lost.push(("tools.deny", rule));
        }
        for rule in &top.ask {
            if !has(&own.ask, rule) && !has(&own.deny, rule) {
                lost.push(("tools.ask", rule));
            }
        }
        for (key, rule) in lost {
            self.found.push(Excess {
                key: key.into(),
                value: format!("no {}", rule.text),
                origin: self.own.policy.origin_of(key),
                allowed: format!("nothing without {}", rule.text),
                ceiling: rule.origin.clone(),
            });
        }
        if top.allow.is_empty() {
            return;
        }
        let allowed = texts(top.allow.iter().map(|r| r.text.as_str()));
        if own.allow.is_empty() {
            self.exceed_single("tools.allow", "every tool", &allowed);
        }
        for rule in own.allow.iter().filter(|r| !has(&top.allow, r)) {
            self.exceed("tools.allow", &rule.text, rule.origin.clone(), &allowed);
        }
    }

    fn ssh(&mut self) {
        let (own, top) = (&self.own.policy.ssh, &self.top.policy.ssh);
        if !own.enabled {
            return;
        }
        if !top.enabled {
            self.exceed_single("ssh.agent", "forward", "none");
            return;
        }
        if !top.keys.is_empty() {
            let allowed = texts(top.keys.iter().map(String::as_str));
            if own.keys.is_empty() {
                self.exceed_single("ssh.keys", "every key", &allowed);
            }
            for key in own.keys.iter().filter(|k| !top.keys.contains(k)) {
                self.exceed_item("ssh.keys", key, &allowed);
            }
        }
        if top.ask && !own.ask {
            self.exceed_single("ssh.sign", "allow", "ask");
        }
    }

    fn sets(&mut self) {
        let top = self.top.policy;
        for set in &self.own.policy.syscalls {
            if !top.syscalls.iter().any(|t| t.value == set.value) {
                let allowed = texts(top.syscalls.iter().map(|t| t.value.name()));
                let (name, origin) = (set.value.name(), set.origin.clone());
                self.exceed("syscalls.allow", name, origin, allowed);
            }
        }
        if self.own.policy.mechanisms < top.mechanisms {
            self.exceed_single(
                "degrade.mechanisms",
                self.own.policy.mechanisms,
                format_args!("at least {}", top.mechanisms),
            );
        }
        for property in &self.own.policy.degrade {
            if !top.degrade.iter().any(|t| t.value == property.value) {
                let allowed = texts(top.degrade.iter().map(|t| t.value.name()));
                let (name, origin) = (property.value, property.origin.clone());
                self.exceed("degrade.allow", name, origin, allowed);
            }
        }
    }
}

/// A list as far as it helps.
pub(super) fn texts<'a>(items: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 6;
    let items: Vec<&str> = items.collect();
    match items.len() {
        0 => "none".into(),
        n if n <= MOST => items.join(", "),
        n => format!("{} and {} more", items[..MOST].join(", "), n - MOST),
    }
}
