//! A tightening, made of a policy or of single settings.
//!
//! Of a policy everything holds that can hold while an agent runs, what it does not mention
//! included: what is not allowed in it is refused. Of settings alone, those keys hold and no
//! others. A setting of a key that is fixed once the agent runs is refused; a policy has such keys
//! always, so those that its own file sets are named, and do nothing.

use super::layer::{Layer, Setting, finding};
use super::merge::Merged;
use super::value::Problem;
use super::{
    EffectivePolicy, NetMode, Origin, PolicyDiagnostic, PolicyError, PolicyRef, Sources, settings,
};
use crate::rules::tighten::{instead, is_live, live_keys};
use crate::rules::{LimitRules, Tightening};

/// What the settings' layer is called among the files.
const SETTINGS: &str = "--set";

/// Keys that can't change for one agent, each with what is said of it.
pub type Beyond<'a> = &'a [(&'static str, &'static str)];

/// A line of a policy that does not change an agent that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchanged {
    /// Such as `fs.write`.
    pub key: String,
    pub origin: Origin,
    /// What to do instead.
    pub instead: &'static str,
}

impl Tightening {
    /// Reads a tightening: `policy` with the settings of `sources` laid over it, or those settings alone. With it, the lines
    /// of the policy's own file that can't hold while an agent runs. `beyond` are keys that can't for this one, each with what
    /// is said of it.
    ///
    /// # Errors
    /// What is wrong with the policy; settings of keys that are fixed once an agent runs.
    pub fn load(
        policy: Option<&PolicyRef>,
        sources: &Sources,
        beyond: Beyond<'_>,
    ) -> Result<(Self, Vec<Unchanged>), PolicyError> {
        fixed_settings(&sources.settings, beyond)?;
        let Some(policy) = policy else {
            return of_settings(&sources.settings).map(|it| (it, Vec::new()));
        };
        let chain = sources.chain(policy)?;
        let own_file = chain
            .layers
            .iter()
            .rfind(|(file, _)| file != SETTINGS)
            .map_or(Vec::new(), |(file, layer)| fixed_lines(file, layer, beyond));
        let policy = EffectivePolicy::load(policy, sources)?;
        let holds = |key: &&str| match policy.net.mode {
            // It may reach everything, so nothing is taken.
            NetMode::Host if key.starts_with("net.") => false,
            _ => why_fixed(key, beyond).is_none(),
        };
        let keys: Vec<&str> = live_keys().filter(holds).collect();
        Ok((of_policy(policy, &keys), own_file))
    }

    /// Whether it is about destinations.
    pub fn is_about_net(&self) -> bool {
        self.keys().any(|key| key.starts_with("net."))
    }

    /// The same tightening without a word about destinations: for an agent whose network is not agentd's.
    #[must_use]
    pub fn without_net(mut self) -> Self {
        self.lines.retain(|key, _| !key.starts_with("net."));
        self.egress = Default::default();
        self
    }
}

/// What a file says of keys that are fixed once an agent runs.
fn fixed_lines(file: &str, layer: &Layer, beyond: Beyond<'_>) -> Vec<Unchanged> {
    let of = |((section, name), setting): (&(&str, &str), &Setting)| {
        let key = format!("{section}.{name}");
        let origin = match setting {
            Setting::Single(value) => Some(&value.origin),
            Setting::List(edit) => edit
                .add
                .iter()
                .chain(&edit.remove)
                .map(|v| &v.origin)
                .next(),
            Setting::Table(map) => map.values().map(|v| &v.origin).next(),
        };
        // An emptied list has no item, and so no line.
        let origin = origin.cloned().unwrap_or_else(|| Origin::new(file, 0));
        let instead = why_fixed(&key, beyond).filter(|_| !section.is_empty())?;
        Some(Unchanged {
            key,
            origin,
            instead,
        })
    };
    let mut lines: Vec<Unchanged> = layer.settings.iter().filter_map(of).collect();
    lines.sort_by_key(|it| it.origin.line);
    lines
}

/// What to do about a key that can't change; `None` if it can, or is none.
fn why_fixed(key: &str, beyond: Beyond<'_>) -> Option<&'static str> {
    let here = beyond.iter().find(|(beyond, _)| *beyond == key);
    match here {
        Some((_, why)) => Some(why),
        None if matches!(key, "description" | "extends") || is_live(key) => None,
        None => Some(instead(key)),
    }
}

/// The settings that can't hold, each with what to do instead. What is no key at all is told by whoever reads them.
fn fixed_settings(settings: &[(String, String)], beyond: Beyond<'_>) -> Result<(), PolicyError> {
    let known = |path: &str| {
        let mut keys = super::schema::KEYS.iter();
        keys.any(|k| k.path() == path || path.starts_with(&format!("{}.", k.path())))
    };
    let findings: Vec<PolicyDiagnostic> = settings
        .iter()
        .filter(|(path, _)| known(path))
        .filter_map(|(path, written)| {
            let instead = why_fixed(path, beyond)?;
            let problem = Problem::new("is not changed while the agent runs", instead);
            let origin = Origin::new(format!("--set {path}"), 0);
            Some(finding(origin, path, written, problem))
        })
        .collect();
    if findings.is_empty() {
        Ok(())
    } else {
        Err(PolicyError::Invalid(findings))
    }
}

fn of_settings(written: &[(String, String)]) -> Result<Tightening, PolicyError> {
    let layer = settings::from_settings(written).map_err(PolicyError::Invalid)?;
    let keys: Vec<String> = layer
        .settings
        .keys()
        .map(|(section, name)| format!("{section}.{name}"))
        .collect();
    let mut merged = Merged::default();
    merged.lay_over(&layer);
    let texts: Vec<String> = written.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let policy = merged.into_policy(texts.join(" "), Vec::new());
    let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    if policy.net.mode == NetMode::Host {
        keys.retain(|key| *key != "net.mode");
    }
    Ok(of_policy(policy, &keys))
}

fn of_policy(policy: EffectivePolicy, keys: &[&str]) -> Tightening {
    let lines = keys
        .iter()
        .map(|key| ((*key).to_owned(), policy.last_line_of(key)))
        .collect();
    Tightening {
        lines,
        hash: policy.hash(),
        name: policy.name,
        egress: policy.egress,
        model: policy.model,
        ipc: policy.ipc,
        tools: policy.tools,
        ssh: policy.ssh,
        limits: LimitRules {
            memory_bytes: policy.limits.memory_bytes,
            pids: policy.limits.pids,
            cpu_percent: policy.limits.cpu_percent,
            own_processes: 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Decision, ToolDecision};
    use serde_json::json;
    use std::sync::Arc;

    fn file(text: &str) -> PolicyRef {
        PolicyRef::Text {
            origin: "tight.toml".into(),
            text: text.into(),
        }
    }

    fn policy(text: &str) -> EffectivePolicy {
        EffectivePolicy::load(&file(text), &Sources::default()).unwrap()
    }

    fn set(settings: &[(&str, &str)]) -> Sources {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        Sources {
            settings: settings.iter().map(own).collect(),
            ..Sources::default()
        }
    }

    fn by_file(text: &str) -> Vec<Arc<Tightening>> {
        let (it, _) = Tightening::load(Some(&file(text)), &Sources::default(), &[]).unwrap();
        vec![Arc::new(it)]
    }

    fn by_settings(settings: &[(&str, &str)]) -> Vec<Arc<Tightening>> {
        let (it, unchanged) = Tightening::load(None, &set(settings), &[]).unwrap();
        assert_eq!(unchanged, []);
        vec![Arc::new(it)]
    }

    const WIDE: &str = "[net]\nmode = \"proxy\"\nallow = [\"*\", \"*:22\"]\n[model]\naccess = \"gateway\"\n\
                        [ipc]\npublish = [\"#\"]\nsend = [\"#\"]\n[tools]\ndeny = [\"Read(.env)\"]\n[limits]\ntokens = 1000\n";

    #[test]
    fn a_policy_takes_what_it_does_not_allow_and_names_its_line() {
        let own = policy(WIDE);
        let tight = by_file("[net]\nmode = \"proxy\"\nallow = [\n\"a.example\",\n]\n");
        let egress = own.egress.under(&tight);
        assert!(matches!(
            egress.allows("A.example", 443),
            Decision::Allow { .. }
        ));
        let Decision::Deny {
            why,
            origin,
            tightened: true,
        } = egress.allows("b.example", 443)
        else {
            panic!("allowed");
        };
        assert_eq!(origin, Some(Origin::new("tight.toml", 4)));
        assert!(
            why.contains("b.example:443") && why.contains("tight.toml:4"),
            "{why}"
        );
        assert!(
            !own.model.under(&tight).allows_model("m"),
            "it has no models"
        );
        assert!(own.model.under(&tight).closed_by().is_some());
        assert!(!own.ipc.under(&tight).may_publish("a"));
        assert_eq!(
            own.ipc.under(&tight).refused_by("ipc.publish", "a"),
            Some(&Origin::new("tight.toml", 0)),
            "no line of it allows a topic"
        );
    }

    #[test]
    fn a_setting_takes_by_its_key_and_leaves_the_rest() {
        let own = policy(WIDE);
        let tight = by_settings(&[("ipc.publish", "build.#"), ("limits.tokens", "50")]);
        let ipc = own.ipc.under(&tight);
        assert!(ipc.may_publish("build.done") && !ipc.may_publish("secret"));
        assert!(ipc.may_send("anybody"));
        assert_eq!(
            ipc.refused_by("ipc.publish", "secret"),
            Some(&Origin::new("--set ipc.publish", 0))
        );
        assert!(matches!(
            own.egress.under(&tight).allows("b.example", 22),
            Decision::Allow { .. }
        ));
        let model = own.model.under(&tight);
        assert!(model.allows_model("m"));
        assert_eq!(model.max_tokens_total, Some(50));
        assert_eq!(
            model.limited_by("limits.tokens"),
            Some(&Origin::new("--set limits.tokens", 0))
        );
        let wider = by_settings(&[("limits.tokens", "5000")]);
        assert_eq!(own.model.under(&wider).max_tokens_total, Some(1000));
    }

    #[test]
    fn what_would_allow_more_gives_nothing() {
        let own = policy(
            "[net]\nmode = \"proxy\"\nallow = [\"a.example\"]\n[tools]\nallow = [\"Read\"]\n",
        );
        for tight in [
            by_file(WIDE),
            by_settings(&[
                ("net.allow", "*"),
                ("tools.allow", "Bash"),
                ("net.mode", "host"),
            ]),
            by_file("[net]\nmode = \"host\"\n"),
        ] {
            assert!(matches!(
                own.egress.under(&tight).allows("b.example", 443),
                Decision::Deny {
                    tightened: false,
                    ..
                }
            ));
            let used = own.tools.under(&tight).decide("Bash", &json!({}), None);
            assert!(matches!(used, ToolDecision::Deny { .. }), "{used:?}");
        }
    }

    #[test]
    fn asking_takes_away_that_nobody_is_asked() {
        let own = policy(WIDE);
        let tight = by_settings(&[
            ("net.ask", "b.example"),
            ("tools.ask", "Bash(git push*)"),
            ("tools.deny", "WebFetch"),
        ]);
        let egress = own.egress.under(&tight);
        assert!(matches!(
            egress.allows("b.example", 443),
            Decision::Ask { .. }
        ));
        assert!(matches!(
            egress.allows("c.example", 22),
            Decision::Allow { .. }
        ));
        let tools = own.tools.under(&tight);
        let decide = |tool: &str, input| tools.decide(tool, &input, None);
        assert!(matches!(
            decide("Bash", json!({"command": "git push"})),
            ToolDecision::Ask { .. }
        ));
        assert_eq!(
            decide("WebFetch", json!({})),
            ToolDecision::Deny {
                why: "denied by the agent's policy: WebFetch (--set tools.deny)".into(),
                origin: Some(Origin::new("--set tools.deny", 0)),
            }
        );
        assert_eq!(decide("Edit", json!({})), ToolDecision::Allow);
        assert!(matches!(
            decide("Read", json!({"file_path": ".env"})),
            ToolDecision::Deny { .. }
        ));
    }

    #[test]
    fn a_private_address_needs_the_leave_of_all() {
        let own =
            policy("[net]\nmode = \"proxy\"\nallow = [{ host = \"a.example\", private = true }]\n");
        let tight = by_settings(&[("net.allow", "a.example")]);
        let Decision::Allow { rule } = own.egress.under(&tight).allows("a.example", 443) else {
            panic!("both name it");
        };
        assert!(!rule.private);
        assert_eq!(rule.origin, Origin::new("--set net.allow", 0));
    }

    #[test]
    fn fixed_keys_are_refused_as_settings_and_named_in_a_policy() {
        let error = Tightening::load(None, &set(&[("fs.write", "/x"), ("env.set.A", "1")]), &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--set fs.write: fs.write = /x: is not changed while the agent runs"),
            "{error}"
        );
        assert!(error.contains("agentctl revoke write"), "{error}");
        assert!(error.contains("env.set.A"), "{error}");
        let error = Tightening::load(None, &set(&[("fs.wriet", "/x")]), &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains("there is no such setting"), "{error}");

        let text = "extends = \"coding\"\n[fs]\nread = [\"/srv/x\"]\n[exec]\nmemfd = \"none\"\n[limits]\ntokens = 7\n";
        let (_, unchanged) = Tightening::load(Some(&file(text)), &Sources::default(), &[]).unwrap();
        let named: Vec<String> = unchanged
            .iter()
            .map(|u| format!("{} {}", u.key, u.origin))
            .collect();
        assert_eq!(named, ["fs.read tight.toml:3", "exec.memfd tight.toml:5"]);
        assert!(unchanged[1].instead.contains("revoke exec"));
        let broken = Tightening::load(Some(&file("[net\n")), &Sources::default(), &[]);
        let error = broken.unwrap_err().to_string();
        assert!(error.contains("tight.toml:1"), "{error}");
    }

    #[test]
    fn the_lowest_limit_of_the_cgroup_holds_and_what_a_host_cannot_hold_is_named() {
        let own = LimitRules {
            memory_bytes: Some(1 << 30),
            pids: None,
            cpu_percent: Some(200),
            own_processes: 10,
        };
        let tight = by_settings(&[("limits.memory", "64MiB"), ("limits.pids", "20")]);
        let wide = by_settings(&[("limits.memory", "2GiB"), ("limits.cpu", "400%")]);
        let under = own.under(&[tight, wide].concat());
        let wanted = LimitRules {
            memory_bytes: Some(64 << 20),
            pids: Some(20),
            ..own
        };
        assert_eq!(under, wanted);
        assert_eq!(own.under(&[]), own);
        let cgroup = under.cgroup();
        assert_eq!((cgroup.pids_max, cgroup.cpu_quota_us), (30, 200_000));
        // No value of a policy may read as "no limit".
        let least = LimitRules {
            pids: Some(0),
            ..LimitRules::default()
        };
        let cgroup = least.cgroup();
        assert_eq!((cgroup.pids_max, cgroup.memory_max_bytes), (1, 0));

        let beyond = [("limits.memory", "this host has no memory controller")];
        let sources = set(&[("limits.memory", "1GiB"), ("limits.pids", "5")]);
        let error = Tightening::load(None, &sources, &beyond).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("--set limits.memory") && error.contains(beyond[0].1),
            "{error}"
        );
        assert!(!error.contains("limits.pids"), "{error}");
        let text = "extends = \"coding\"\n[limits]\nmemory = \"1MiB\"\npids = 5\n";
        let (rules, unchanged) =
            Tightening::load(Some(&file(text)), &Sources::default(), &beyond).unwrap();
        let named: Vec<(&str, &str)> = unchanged.iter().map(|u| (&*u.key, u.instead)).collect();
        assert_eq!(named, beyond);
        let under = own.under(&[Arc::new(rules)]);
        assert_eq!((under.memory_bytes, under.pids), (Some(1 << 30), Some(5)));
    }

    #[test]
    fn a_tightening_is_kept_and_one_of_a_later_version_is_known_as_such() {
        let tight = by_file(WIDE);
        let kept = serde_json::to_value(&*tight[0]).unwrap();
        let back: Tightening = serde_json::from_value(kept.clone()).unwrap();
        assert_eq!((&back, back.unknown_key()), (&*tight[0], None));
        let mut later = kept;
        later["lines"]["camera.use"] = json!({"file": "x", "line": 1});
        let later: Tightening = serde_json::from_value(later).unwrap();
        assert_eq!(later.unknown_key(), Some("camera.use"));
        assert!(tight[0].is_about_net());
        let rest = (*tight[0]).clone().without_net();
        assert!(!rest.is_about_net());
    }

    mod any_two_policies {
        use super::*;
        use proptest::prelude::*;
        use proptest::sample::{select, subsequence};

        const HOSTS: [&str; 6] = [
            "*",
            "*:22",
            "a.example",
            "*.example",
            "b.example:22",
            "10.0.0.1",
        ];
        const NAMES: [&str; 6] = ["#", "build.#", "build.*", "a", "*", "build.done"];
        const TOOLS: [&str; 7] = [
            "Bash",
            "Bash(git *)",
            "Read",
            "Read(.env*)",
            "*",
            "Bash(git push*)",
            "mcp__*",
        ];
        const MODELS: [&str; 4] = ["*", "a-*", "a-1", "*-1"];

        fn list(items: &'static [&'static str]) -> impl Strategy<Value = String> {
            subsequence(items, 0..=3).prop_map(|chosen| format!("{chosen:?}"))
        }

        fn hosts() -> impl Strategy<Value = String> {
            (subsequence(&HOSTS[..], 0..=3), any::<bool>()).prop_map(|(chosen, private)| {
                let of = |host: &&str| format!("{{ host = {host:?}, private = {private} }}");
                let items: Vec<String> = chosen.iter().map(of).collect();
                format!("[{}]", items.join(", "))
            })
        }

        fn limit() -> impl Strategy<Value = String> {
            select(vec!["\"none\"", "10", "20"]).prop_map(str::to_owned)
        }

        prop_compose! {
            fn text()(
                mode in select(vec!["none", "proxy", "host"]),
                allow in hosts(), ask in hosts(),
                access in select(vec!["none", "gateway"]),
                models in list(&MODELS),
                max in limit(), tokens in limit(), pids in limit(),
                send in list(&NAMES), publish in list(&NAMES), subscribe in list(&NAMES),
                shared in any::<bool>(),
                tools in (list(&TOOLS), list(&TOOLS), list(&TOOLS)),
                ssh in (select(vec!["none", "forward"]), select(vec!["allow", "ask"])),
            ) -> String {
                format!(
                    "[net]\nmode = {mode:?}\nallow = {allow}\nask = {ask}\n\
                     [model]\naccess = {access:?}\nmodels = {models}\nmax_tokens = {max}\n[limits]\ntokens = {tokens}\npids = {pids}\n\
                     [ipc]\nsend = {send}\nrequest = {send}\npublish = {publish}\nsubscribe = {subscribe}\nshared_memory = {shared}\n\
                     [tools]\nallow = {}\nask = {}\ndeny = {}\n[ssh]\nagent = {:?}\nsign = {:?}\n",
                    tools.0, tools.1, tools.2, ssh.0, ssh.1
                )
            }
        }

        /// How much a decision lets by: nothing, with a person's leave, everything; and whether private addresses are in it.
        fn net(decision: &Decision) -> (u8, bool) {
            match decision {
                Decision::Deny { .. } => (0, false),
                Decision::Ask { rule } => (1, rule.private),
                Decision::Allow { rule } => (2, rule.private),
            }
        }

        fn used(decision: &ToolDecision) -> u8 {
            match decision {
                ToolDecision::Deny { .. } => 0,
                ToolDecision::Ask { .. } => 1,
                ToolDecision::Allow => 2,
            }
        }

        proptest! {
            #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

            /// Whatever both say: after a tightening nothing is allowed that was not allowed before, and nothing that the
            /// tightening itself refuses.
            #[test]
            fn the_tightened_agent_has_no_more_than_either(own in text(), tight in text()) {
                let (before, by) = (policy(&own), policy(&tight));
                let list = by_file(&tight);
                let egress = before.egress.under(&list);
                for host in ["a.example", "b.example", "x.b.example", "10.0.0.1", "example"] {
                    for port in [22, 80, 443] {
                        let after = net(&egress.allows(host, port));
                        let was = net(&before.egress.allows(host, port));
                        prop_assert!(after.0 <= was.0 && after.1 <= was.1, "{host}:{port} {was:?} -> {after:?}");
                        if by.net.mode != NetMode::Host {
                            let other = net(&by.egress.allows(host, port));
                            prop_assert!(after.0 <= other.0 && after.1 <= other.1, "{host}:{port} {other:?} -> {after:?}");
                        }
                    }
                }
                let model = before.model.under(&list);
                for name in ["a-1", "a-2", "b-1", "b"] {
                    let both = before.model.allows_model(name) && by.model.allows_model(name);
                    prop_assert_eq!(model.allows_model(name), both);
                }
                for (now, was, other) in [
                    (model.max_tokens_total, before.model.max_tokens_total, by.model.max_tokens_total),
                    (model.max_tokens_per_request, before.model.max_tokens_per_request, by.model.max_tokens_per_request),
                ] {
                    let least = [was, other].into_iter().flatten().min();
                    prop_assert_eq!(now, least);
                }
                let pids = |policy: &EffectivePolicy| LimitRules { pids: policy.limits.pids, ..LimitRules::default() };
                let least = [before.limits.pids, by.limits.pids].into_iter().flatten().min();
                prop_assert_eq!(pids(&before).under(&list).pids, least);
                let ipc = before.ipc.under(&list);
                for name in ["a", "build", "build.done", "build.done.now", "secret", "build.*", "build.#", "#"] {
                    prop_assert_eq!(ipc.may_send(name), before.ipc.may_send(name) && by.ipc.may_send(name));
                    prop_assert_eq!(ipc.may_request(name), before.ipc.may_request(name) && by.ipc.may_request(name));
                    prop_assert_eq!(ipc.may_publish(name), before.ipc.may_publish(name) && by.ipc.may_publish(name));
                    prop_assert_eq!(ipc.may_subscribe(name), before.ipc.may_subscribe(name) && by.ipc.may_subscribe(name));
                }
                prop_assert_eq!(ipc.shared_memory, before.ipc.shared_memory && by.ipc.shared_memory);
                let tools = before.tools.under(&list);
                for (tool, input) in [
                    ("Bash", json!({"command": "git push && ls"})),
                    ("Bash", json!({"command": "git status"})),
                    ("Read", json!({"file_path": "/w/.env"})),
                    ("Read", json!({"file_path": "/w/a"})),
                    ("mcp__x", json!({})),
                ] {
                    let now = used(&tools.decide(tool, &input, Some("/w")));
                    let was = used(&before.tools.decide(tool, &input, Some("/w")));
                    let other = used(&by.tools.decide(tool, &input, Some("/w")));
                    prop_assert_eq!(now, was.min(other), "{} {}", tool, input);
                }
                let ssh = before.ssh.under(&list);
                prop_assert_eq!(ssh.allows("SHA256:a"), before.ssh.allows("SHA256:a") && by.ssh.allows("SHA256:a"));
                prop_assert_eq!(ssh.ask, before.ssh.ask || by.ssh.ask);
            }
        }
    }
}
