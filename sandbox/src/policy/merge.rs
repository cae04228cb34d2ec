//! Files laid over each other, the most basic first, and what they come to.
//!
//! A single value is replaced; a list grows, unless the later file says `{ replace = … }` or `{ remove = … }`; tables
//! of names are merged by name.

use super::effective::{
    EffectivePolicy, EnvRules, ExecRules, FsRules, HardLinks, Limits, Memfd, NetMode, NetRules,
    ShownValue,
};
use super::layer::{Layer, ListEdit, Setting};
use super::path::PathTemplate;
use super::schema::{self, KEYS};
use super::value::{self, Problem, Scalar};
use super::{Origin, Valued};
use crate::plan::Property;
use crate::rules::egress::EgressLines;
use crate::rules::held;
use crate::rules::ipc::NamePattern;
use crate::rules::{EgressRules, IpcRules, ModelRules, SshRules, ToolRule, ToolRules};
use crate::runtime::RuntimeKind;
use crate::seccomp::SyscallSet;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Merged {
    lists: BTreeMap<(&'static str, &'static str), Vec<Valued<Scalar>>>,
    singles: BTreeMap<(&'static str, &'static str), Valued<Scalar>>,
    tables: BTreeMap<(&'static str, &'static str), BTreeMap<String, Valued<Scalar>>>,
}

impl Merged {
    pub(super) fn lay_over(&mut self, layer: &Layer) {
        for (key, setting) in &layer.settings {
            match setting {
                Setting::Single(value) => {
                    self.singles.insert(*key, value.clone());
                }
                Setting::Table(map) => {
                    let table = self.tables.entry(*key).or_default();
                    table.extend(map.iter().map(|(k, v)| (k.clone(), v.clone())));
                }
                Setting::List(edit) => edit_list(self.lists.entry(*key).or_default(), edit),
            }
        }
    }

    fn list(&self, section: &'static str, name: &'static str) -> &[Valued<Scalar>] {
        self.lists.get(&(section, name)).map_or(&[], Vec::as_slice)
    }

    /// The typed items of a list. Items were checked when they were read, so each converts.
    fn typed<T>(
        &self,
        section: &'static str,
        name: &'static str,
        make: impl Fn(&str, &Origin) -> Option<T>,
    ) -> Vec<T> {
        self.list(section, name)
            .iter()
            .filter_map(|v| match &v.value {
                Scalar::Text(text) => make(text, &v.origin),
                _ => None,
            })
            .collect()
    }

    fn single<T>(
        &self,
        section: &'static str,
        name: &'static str,
        make: impl Fn(&schema::Key, &Scalar) -> Result<T, Problem>,
    ) -> Option<T> {
        let key = schema::find(section, name)?;
        let value = self.singles.get(&(section, name))?;
        if key.may_be_none && value.value == Scalar::Text("none".into()) {
            return None;
        }
        make(key, &value.value).ok()
    }

    /// The entries of a table, which were checked when they were read.
    fn table<T>(
        &self,
        section: &'static str,
        name: &'static str,
        make: impl Fn(&str) -> Option<T>,
    ) -> BTreeMap<String, Valued<T>> {
        let entry = |(name, v): (&String, &Valued<Scalar>)| {
            let made = make(value::text(&v.value).ok()?)?;
            Some((name.clone(), Valued::new(made, v.origin.clone())))
        };
        let table = self.tables.get(&(section, name));
        table.into_iter().flatten().filter_map(entry).collect()
    }

    fn is(&self, section: &'static str, name: &'static str, word: &str) -> bool {
        self.singles
            .get(&(section, name))
            .is_some_and(|v| v.value == Scalar::Text(word.into()))
    }

    pub(super) fn into_policy(self, name: String, files: Vec<String>) -> EffectivePolicy {
        let paths_of = |section, name| {
            self.typed(section, name, |t, o| {
                PathTemplate::parse(t)
                    .ok()
                    .map(|p| Valued::new(p, o.clone()))
            })
        };
        let paths = |name| paths_of("fs", name);
        let names = |n| self.typed("ipc", n, |t, _| NamePattern::parse(t).ok());
        let hosts = |n| {
            self.list("net", n)
                .iter()
                .filter_map(|v| value::host_rule(&v.value, &v.origin).ok())
                .collect()
        };
        let tools = |n| self.typed("tools", n, |t, o| ToolRule::parse(t, o.clone()).ok());
        let mode = match () {
            () if self.is("net", "mode", "proxy") => NetMode::Proxy,
            () if self.is("net", "mode", "host") => NetMode::Host,
            () => NetMode::None,
        };
        let tokens = self.single("limits", "tokens", schema::Key::count);
        let cost = self.single("limits", "cost", |_, v| value::dollars(v));
        let mut policy = EffectivePolicy {
            description: self.single("", "description", |_, v| value::text(v).map(str::to_owned)),
            fs: FsRules {
                read: paths("read"),
                write: paths("write"),
                exec: paths("exec"),
                protect: paths("protect"),
                copy: paths("copy"),
                scratch: paths("scratch"),
                deny: paths("deny"),
                linked: paths("linked"),
                hard_links: match self.is("fs", "hard_links", "inside") {
                    true => HardLinks::Inside,
                    false => HardLinks::Any,
                },
            },
            exec: ExecRules {
                memfd: match () {
                    () if self.is("exec", "memfd", "any") => Memfd::Any,
                    () if self.is("exec", "memfd", "none") => Memfd::Refused,
                    () => Memfd::default(),
                },
                write_exec: self
                    .single("exec", "write_exec", |_, v| value::flag(v))
                    .unwrap_or(false),
            },
            runtime: match self.is("runtime", "kind", "gvisor") {
                true => RuntimeKind::Gvisor,
                false => RuntimeKind::Native,
            },
            net: NetRules {
                mode,
                ports: self
                    .single("net", "ports", |_, v| value::ports(v))
                    .unwrap_or_default(),
            },
            sockets: paths_of("ipc", "sockets"),
            devices: paths_of("devices", "allow"),
            secrets: self.table("secrets", "files", |t| PathTemplate::parse(t).ok()),
            env: EnvRules {
                pass: self.typed("env", "pass", |t, o| {
                    Some(Valued::new(t.to_owned(), o.clone()))
                }),
                set: self.table("env", "set", |t| Some(t.to_owned())),
            },
            syscalls: self.typed("syscalls", "allow", |t, o| {
                SyscallSet::from_name(t).map(|s| Valued::new(s, o.clone()))
            }),
            limits: Limits {
                memory_bytes: self.single("limits", "memory", schema::Key::size),
                pids: self.single("limits", "pids", schema::Key::count),
                cpu_percent: self.single("limits", "cpu", |_, v| value::percent(v)),
                nofile: self
                    .single("limits", "nofile", schema::Key::count)
                    .unwrap_or(1024),
                fsize_bytes: self.single("limits", "fsize", schema::Key::size),
                tmp_bytes: self
                    .single("limits", "tmp", schema::Key::size)
                    .unwrap_or(64 << 20),
                tmp_inodes: self
                    .single("limits", "tmp_inodes", schema::Key::count)
                    .unwrap_or(16_384),
                wall_clock: self.single("limits", "wall_clock", |_, v| value::duration(v)),
                output_bytes: self.single("limits", "output", schema::Key::size),
                tokens,
                cost_micro_usd: cost,
                disk_bytes: self.single("limits", "disk", schema::Key::size),
                disk_inodes: self.single("limits", "disk_inodes", schema::Key::count),
            },
            egress: EgressRules {
                enabled: mode == NetMode::Proxy,
                rules: hosts("allow"),
                ask: hosts("ask"),
                credentials: self.typed("net", "credentials", |t, _| Some(t.to_owned())),
                lines: EgressLines::default(),
                tightened: Vec::new(),
            },
            model: ModelRules {
                enabled: self.is("model", "access", "gateway"),
                models: self.typed("model", "models", |t, _| Some(t.to_owned())),
                max_tokens_total: tokens,
                max_tokens_per_request: self.single("model", "max_tokens", schema::Key::count),
                max_cost_nano_usd: cost.map(|micro| micro.saturating_mul(1000)),
                tightened: Vec::new(),
            },
            ipc: IpcRules {
                send: names("send"),
                request: names("request"),
                publish: names("publish"),
                subscribe: names("subscribe"),
                shared_memory: self
                    .single("ipc", "shared_memory", |_, v| value::flag(v))
                    .unwrap_or(true),
                tightened: Vec::new(),
            },
            tools: ToolRules {
                allow: tools("allow"),
                ask: tools("ask"),
                deny: tools("deny"),
                ask_timeout: self
                    .single("tools", "ask_timeout", |_, v| value::ask_timeout(v))
                    .unwrap_or(crate::rules::tools::DEFAULT_ASK_TIMEOUT),
                tightened: Vec::new(),
            },
            ssh: SshRules {
                enabled: self.is("ssh", "agent", "forward"),
                keys: self.typed("ssh", "keys", |t, _| Some(t.to_owned())),
                ask: self.is("ssh", "sign", "ask"),
                tightened: Vec::new(),
            },
            degrade: self
                .list("degrade", "allow")
                .iter()
                .flat_map(|v| match &v.value {
                    Scalar::Text(t) => Property::degradable(t)
                        .iter()
                        .map(|p| Valued::new(*p, v.origin.clone()))
                        .collect::<Vec<_>>(),
                    _ => Vec::new(),
                })
                .collect(),
            mechanisms: self
                .single("degrade", "mechanisms", schema::Key::count)
                .and_then(|n| u8::try_from(n).ok())
                .unwrap_or(1),
            shown: self.shown(),
            name,
            files,
        };
        held::apply(policy.tools.file_rules(), &mut policy.fs);
        policy.egress.lines = EgressLines {
            mode: Some(policy.last_line_of("net.mode")),
            allow: Some(policy.last_line_of("net.allow")),
        };
        for (key, list) in [
            ("tools.allow", &policy.tools.allow),
            ("tools.ask", &policy.tools.ask),
            ("tools.deny", &policy.tools.deny),
        ] {
            // The same items in the same order: both come from the merged list.
            let lines = policy.shown.iter_mut().filter(|l| l.key == key);
            for (line, rule) in lines.zip(list) {
                line.held_by = Some(policy.tools.held_by(key, &rule.text));
            }
        }
        policy
    }

    fn shown(&self) -> Vec<ShownValue> {
        let mut out = Vec::new();
        for key in KEYS {
            let id = (key.section, key.name);
            let line = |key: String, v: &Valued<Scalar>| ShownValue {
                key,
                value: v.value.show(),
                origin: v.origin.clone(),
                held_by: None,
            };
            if key.kind.is_table() {
                let table = self.tables.get(&id).into_iter().flatten();
                out.extend(table.map(|(k, v)| line(format!("{}.{k}", key.path()), v)));
            } else if key.kind.is_list() {
                out.extend(self.list(id.0, id.1).iter().map(|v| line(key.path(), v)));
            } else if let Some(v) = self.singles.get(&id) {
                out.push(line(key.path(), v));
            }
        }
        out
    }
}

fn edit_list(list: &mut Vec<Valued<Scalar>>, edit: &ListEdit) {
    if edit.replace {
        list.clear();
    }
    list.retain(|v| !edit.remove.iter().any(|r| r.value == v.value));
    for item in &edit.add {
        if !list.iter().any(|v| v.value == item.value) {
            list.push(item.clone());
        }
    }
}
