//! The unit itself: the texts of one name laid over each other, defaults put in, and what only shows in the whole
//! checked.

use std::collections::BTreeMap;
use std::time::Duration;

use super::diagnostic::{Diagnostic, Origin, Problem, Valued};
use super::layer::{Layer, Setting};
use super::name::UnitName;
use super::quantity;
use super::schema::{self, KEYS, Scalar};
use super::specifier::expand;
use super::supervisor::{Pool, Restart, RestartPolicy, Rules};

/// How far a unit's author trusts it. Shown and on record; nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Production,
    Development,
}

impl Status {
    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Production => "PRODUCTION",
            Self::Development => "DEVELOPMENT",
        }
    }
}

/// What an undriven program finds as its standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    Pipes,
    Pty,
    Null,
}

/// Who it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    pub uuid: Option<String>,
    /// What its agents are called; a pool's members get `.1`, `.2` behind it.
    pub name: String,
    pub description: Option<String>,
    pub role: Option<String>,
    pub capabilities: Vec<String>,
    pub status: Status,
    pub enabled: bool,
    pub user: Option<String>,
}

/// What is run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub command: Vec<String>,
    pub driver: String,
    pub policy: String,
    /// Every value laid over the policy: `run.set`, `run.env`, `budget`, `tools` and `bus`, in this order.
    pub settings: Vec<(String, String)>,
    pub workspace: Option<String>,
    pub prompt: Option<String>,
    pub system_prompt: Option<String>,
    pub stdio: Stdio,
    pub timeout: Option<Duration>,
    pub stop_grace: Duration,
}

/// What starts an agent besides a person.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Triggers {
    pub on_message: Vec<String>,
    pub on_task: bool,
    pub schedule: Option<Duration>,
}

impl Triggers {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        self.on_task || self.schedule.is_some() || !self.on_message.is_empty()
    }
}

/// Wishes about cores: checked and kept, not applied in this version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cores {
    pub core_class: Option<String>,
    pub avx512_benefit: Option<String>,
    pub latency_target: Option<Duration>,
    pub power_cap_mw: Option<u64>,
}

impl Cores {
    /// Whether anything is wished.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// One effective value, for `show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// `section.key`.
    pub key: String,
    /// As in TOML.
    pub value: String,
    pub origin: Origin,
}

/// A unit that can be started.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    pub name: UnitName,
    /// The texts it is made of, in the order in which they were laid over each other.
    pub files: Vec<String>,
    pub agent: Agent,
    pub run: Run,
    pub pool: Pool,
    pub restart: Restart,
    pub triggers: Triggers,
    pub subscriptions: Vec<String>,
    pub cores: Cores,
    /// Every value that a file sets, specifiers filled in.
    shown: Vec<Shown>,
}

impl Unit {
    /// Every value that a file sets, and the defaults of those that always hold, in the order of the reference.
    pub fn values(&self) -> &[Shown] {
        &self.shown
    }

    /// The name of the pool's `member`, counted from 1.
    pub fn agent_name(&self, member: u32) -> String {
        if self.pool.max == 1 {
            self.agent.name.clone()
        } else {
            format!("{}.{member}", self.agent.name)
        }
    }

    /// A problem of this unit, at the place where `key` was set; at the unit's file where it was not.
    pub fn finding(&self, key: &str, problem: String) -> Diagnostic {
        let shown = self.shown.iter().find(|shown| shown.key == key);
        let file = self.files.first().cloned().unwrap_or_default();
        Diagnostic {
            origin: shown.map_or_else(|| Origin::new(file, 0), |shown| shown.origin.clone()),
            key: key.to_owned(),
            value: shown.map(|shown| shown.value.clone()).unwrap_or_default(),
            problem,
            help: String::new(),
        }
    }

    /// A problem that the policy found in one of this unit's values; `None` if it lies in the policy itself. `file` is
    /// where the policy says that it stands: `--set KEY` for a setting.
    pub fn finding_of_policy(
        &self,
        file: &str,
        value: &str,
        problem: &str,
        help: &str,
    ) -> Option<Diagnostic> {
        let shown = self.source_of(file.strip_prefix("--set ")?)?;
        Some(Diagnostic {
            origin: shown.origin.clone(),
            key: shown.key.clone(),
            value: value.to_owned(),
            problem: problem.to_owned(),
            help: help.to_owned(),
        })
    }

    /// Which of the unit's values became a `setting` of the policy, such as `limits.tokens`.
    fn source_of(&self, setting: &str) -> Option<&Shown> {
        let key = match setting {
            "tools.allow" | "tools.deny" => setting.to_owned(),
            "ipc.subscribe" => "bus.subscriptions".to_owned(),
            _ => match setting.strip_prefix("env.set.") {
                Some(name) => format!("run.env.{name}"),
                None => format!("run.set.{setting}"),
            },
        };
        let budget = setting
            .strip_prefix("limits.")
            .map(|name| format!("budget.{name}"));
        let find = |key: &str| self.shown.iter().find(|shown| shown.key == key);
        budget.as_deref().and_then(find).or_else(|| find(&key))
    }

    /// What the engine needs to know.
    pub fn rules(&self) -> Rules {
        Rules {
            pool: self.pool,
            restart: self.restart.clone(),
            schedule: self.triggers.schedule,
            triggered: self.triggers.any(),
            leased: self.triggers.on_task || (self.pool.max > 1 && self.run.driver != "none"),
        }
    }

    /// Whether a task that wants `word` may go to it: its name, role or a capability.
    pub fn answers_to(&self, word: &str) -> bool {
        self.name.as_str() == word
            || self.agent.role.as_deref() == Some(word)
            || self.agent.capabilities.iter().any(|c| c == word)
    }
}

/// Lays `layers` over each other and makes the unit `name` of them.
pub(super) fn build(
    name: &UnitName,
    files: Vec<String>,
    layers: &[&Layer],
    pool_ceiling: u32,
) -> Result<Unit, Vec<Diagnostic>> {
    let whole = files.first().cloned().unwrap_or_default();
    let mut values = Values::merge(layers);
    values.expand(name);
    values.cross_check(name, pool_ceiling, &Origin::new(whole, 0));
    if !values.findings.is_empty() {
        return Err(values.findings);
    }
    Ok(values.unit(name.clone(), files))
}

#[derive(Default)]
struct Values {
    singles: BTreeMap<(&'static str, &'static str), Valued<Scalar>>,
    lists: BTreeMap<(&'static str, &'static str), Vec<Valued<String>>>,
    tables: BTreeMap<(&'static str, &'static str), BTreeMap<String, Valued<String>>>,
    findings: Vec<Diagnostic>,
}

impl Values {
    fn merge(layers: &[&Layer]) -> Self {
        let mut values = Self::default();
        for (key, setting) in layers.iter().flat_map(|layer| &layer.settings) {
            match setting {
                Setting::Single(value) => {
                    values.singles.insert(*key, value.clone());
                }
                Setting::Table(entries) => {
                    let table = values.tables.entry(*key).or_default();
                    table.extend(entries.iter().map(|(k, v)| (k.clone(), v.clone())));
                }
                Setting::List(edit) => {
                    let list = values.lists.entry(*key).or_default();
                    if edit.replace {
                        list.clear();
                    }
                    list.retain(|item| !edit.remove.iter().any(|gone| gone.value == item.value));
                    for item in &edit.add {
                        if !list.iter().any(|known| known.value == item.value) {
                            list.push(item.clone());
                        }
                    }
                }
            }
        }
        values
    }

    /// Fills in specifiers wherever a key has them.
    fn expand(&mut self, name: &UnitName) {
        let findings = &mut self.findings;
        let mut fill = |key: &str, origin: &Origin, text: &mut String| match expand(text, name) {
            Ok(full) => *text = full,
            Err((problem, help)) => {
                findings.push(Problem::new(problem, help).at(
                    origin.clone(),
                    key,
                    &format!("{text:?}"),
                ));
            }
        };
        for key in KEYS.iter().filter(|key| key.kind.has_specifiers()) {
            let (id, path) = ((key.section, key.name), key.path());
            if let Some(Valued { value, origin }) = self.singles.get_mut(&id) {
                match value {
                    Scalar::Text(text) => fill(&path, origin, text),
                    Scalar::Command(words) => {
                        words.iter_mut().for_each(|word| fill(&path, origin, word))
                    }
                    _ => {}
                }
            }
            for item in self.lists.get_mut(&id).into_iter().flatten() {
                fill(&path, &item.origin, &mut item.value);
            }
            for (name, item) in self.tables.get_mut(&id).into_iter().flatten() {
                fill(&format!("{path}.{name}"), &item.origin, &mut item.value);
            }
        }
    }

    fn text(&self, section: &'static str, key: &'static str) -> Option<&str> {
        match &self.singles.get(&(section, key))?.value {
            Scalar::Text(text) => Some(text),
            _ => None,
        }
    }

    fn owned(&self, section: &'static str, key: &'static str) -> Option<String> {
        self.text(section, key).map(str::to_owned)
    }

    fn flag(&self, section: &'static str, key: &'static str) -> Option<bool> {
        match self.singles.get(&(section, key))?.value {
            Scalar::Bool(b) => Some(b),
            _ => None,
        }
    }

    fn count(&self, section: &'static str, key: &'static str) -> Option<u32> {
        match self.singles.get(&(section, key))?.value {
            Scalar::Number(n) => u32::try_from(n).ok(),
            _ => None,
        }
    }

    fn time(&self, section: &'static str, key: &'static str) -> Option<Duration> {
        quantity::parse_duration(self.text(section, key)?).ok()
    }

    fn list(&self, section: &'static str, key: &'static str) -> Vec<String> {
        let items = self.lists.get(&(section, key)).into_iter().flatten();
        items.map(|item| item.value.clone()).collect()
    }

    fn driver(&self) -> &str {
        self.text("run", "driver").unwrap_or("none")
    }

    fn triggers(&self) -> Triggers {
        Triggers {
            on_message: self.list("triggers", "on_message"),
            on_task: self.flag("triggers", "on_task").unwrap_or(false),
            schedule: self.time("triggers", "schedule"),
        }
    }

    fn pool(&self) -> Pool {
        let max = self.count("pool", "max").unwrap_or(1);
        let default_min = u32::from(!self.triggers().any());
        Pool {
            min: self.count("pool", "min").unwrap_or(default_min),
            max,
            idle: self
                .time("pool", "idle")
                .unwrap_or(Duration::from_secs(600)),
        }
    }

    fn restart(&self) -> Restart {
        let factor = self.singles.get(&("restart", "factor"));
        let percent = self
            .text("restart", "jitter")
            .and_then(|t| quantity::parse_percent(t).ok());
        Restart {
            policy: match self.text("restart", "policy") {
                Some("never") => RestartPolicy::Never,
                Some("on-abnormal") => RestartPolicy::OnAbnormal,
                Some("always") => RestartPolicy::Always,
                _ => RestartPolicy::OnFailure,
            },
            delay: self
                .time("restart", "delay")
                .unwrap_or(Duration::from_secs(1)),
            factor: factor
                .and_then(|f| schema::factor(&f.value).ok())
                .unwrap_or(2.0),
            max_delay: self
                .time("restart", "max_delay")
                .unwrap_or(Duration::from_secs(300)),
            jitter_percent: percent.and_then(|p| u8::try_from(p).ok()).unwrap_or(20),
            burst: self.count("restart", "burst").unwrap_or(5),
            interval: self
                .time("restart", "interval")
                .unwrap_or(Duration::from_secs(600)),
        }
    }

    /// What only shows when all texts are laid over each other.
    fn cross_check(&mut self, name: &UnitName, pool_ceiling: u32, whole: &Origin) {
        let driver = self.driver().to_owned();
        let (pool, restart, triggers) = (self.pool(), self.restart(), self.triggers());
        let has = |this: &Self, section, key| this.singles.contains_key(&(section, key));
        if !has(self, "run", "command") && !matches!(driver.as_str(), "claude" | "codex") {
            let problem = Problem::new(
                "the unit names no command",
                "write command = [\"PROGRAM\", …] under [run] (with the drivers claude and codex it may be left out)",
            );
            self.findings
                .push(problem.at(whole.clone(), "run.command", ""));
        }
        let mut complain = |section, key, problem: &str, help: &str| {
            let Some(value) = self.singles.get(&(section, key)) else {
                return;
            };
            let path = format!("{section}.{key}");
            let found =
                Problem::new(problem, help).at(value.origin.clone(), &path, &value.value.show());
            self.findings.push(found);
        };
        if name.at_sign() {
            complain(
                "agent",
                "uuid",
                "instances of a template can't share one UUID",
                "leave it out: agentd makes one for each",
            );
        }
        if driver == "none" {
            complain(
                "run",
                "prompt",
                "without a driver nobody would hand it to the program",
                "name a driver, or put it into the command",
            );
            complain(
                "run",
                "system_prompt",
                "without a driver nobody would hand it to the program",
                "name a driver, or put it into the command",
            );
            if triggers.on_task {
                complain(
                    "triggers",
                    "on_task",
                    "only a driven agent can be given tasks",
                    &format!("name a driver: {}", schema::DRIVERS[1..].join(", ")),
                );
            }
        } else {
            if driver != "claude" {
                complain(
                    "run",
                    "system_prompt",
                    "only the driver claude can hand it over",
                    "put it into the prompt, or into the command",
                );
            }
            complain(
                "run",
                "stdio",
                "a driven agent's streams carry its protocol",
                "leave it out, or the driver",
            );
        }
        if pool.max > pool_ceiling {
            let help = format!("from 1 to {pool_ceiling} (`[units] pool_ceiling` in agentd.toml)");
            complain(
                "pool",
                "max",
                "the pool is larger than this agentd allows",
                &help,
            );
        }
        if pool.min > pool.max {
            let help = format!("at most pool.max, which is {}", pool.max);
            complain(
                "pool",
                "min",
                "the pool's least is more than its most",
                &help,
            );
        }
        if restart.max_delay < restart.delay {
            let help = format!(
                "at least restart.delay, which is {}",
                quantity::show_duration(restart.delay)
            );
            let key = if self.singles.contains_key(&("restart", "max_delay")) {
                "max_delay"
            } else {
                "delay"
            };
            let mut complain = |key| {
                if let Some(value) = self.singles.get(&("restart", key)) {
                    let path = format!("restart.{key}");
                    let problem =
                        Problem::new("the longest delay is shorter than the first", help.clone());
                    self.findings.push(problem.at(
                        value.origin.clone(),
                        &path,
                        &value.value.show(),
                    ));
                }
            };
            complain(key);
        } else if triggers.schedule.is_some() && restart.policy == RestartPolicy::Always {
            complain(
                "restart",
                "policy",
                "an agent that is always restarted has no schedule",
                "never, on-failure or on-abnormal, or no triggers.schedule",
            );
        }
    }

    fn settings(&self) -> Vec<(String, String)> {
        let mut settings = Vec::new();
        let table = |key| self.tables.get(&("run", key)).into_iter().flatten();
        settings.extend(table("set").map(|(k, v)| (k.clone(), v.value.clone())));
        settings.extend(table("env").map(|(k, v)| (format!("env.set.{k}"), v.value.clone())));
        for key in ["tokens", "memory", "cpu"] {
            if let Some(value) = self.singles.get(&("budget", key)) {
                let text = match &value.value {
                    Scalar::Text(text) => text.clone(),
                    other => other.show(),
                };
                settings.push((format!("limits.{key}"), text));
            }
        }
        for key in ["allow", "deny"] {
            settings.extend(
                self.list("tools", key)
                    .into_iter()
                    .map(|rule| (format!("tools.{key}"), rule)),
            );
        }
        for topic in self.list("bus", "subscriptions") {
            settings.push(("ipc.subscribe".to_owned(), topic));
        }
        settings
    }

    fn unit(self, name: UnitName, files: Vec<String>) -> Unit {
        let driver = self.driver().to_owned();
        let command = match self.singles.get(&("run", "command")).map(|v| &v.value) {
            Some(Scalar::Command(words)) => words.clone(),
            _ => vec![driver.clone()],
        };
        Unit {
            agent: Agent {
                uuid: self
                    .owned("agent", "uuid")
                    .map(|uuid| uuid.to_ascii_lowercase()),
                name: self
                    .owned("agent", "name")
                    .unwrap_or_else(|| name.as_str().to_owned()),
                description: self.owned("agent", "description"),
                role: self.owned("agent", "role"),
                capabilities: self.list("agent", "capabilities"),
                status: match self.text("agent", "status") {
                    Some("PRODUCTION") => Status::Production,
                    _ => Status::Development,
                },
                enabled: self.flag("agent", "enabled").unwrap_or(false),
                user: self.owned("agent", "user"),
            },
            run: Run {
                command,
                driver,
                policy: self
                    .owned("run", "policy")
                    .unwrap_or_else(|| "coding".to_owned()),
                settings: self.settings(),
                workspace: self.owned("run", "workspace"),
                prompt: self.owned("run", "prompt"),
                system_prompt: self.owned("run", "system_prompt"),
                stdio: match self.text("run", "stdio") {
                    Some("pty") => Stdio::Pty,
                    Some("null") => Stdio::Null,
                    _ => Stdio::Pipes,
                },
                timeout: self.time("run", "timeout"),
                stop_grace: self
                    .time("run", "stop_grace")
                    .unwrap_or(Duration::from_secs(10)),
            },
            pool: self.pool(),
            restart: self.restart(),
            triggers: self.triggers(),
            subscriptions: self.list("bus", "subscriptions"),
            cores: Cores {
                core_class: self.owned("cores", "core_class"),
                avx512_benefit: self.owned("cores", "avx512_benefit"),
                latency_target: self.time("cores", "latency_target"),
                power_cap_mw: self
                    .text("cores", "power_cap")
                    .and_then(|t| quantity::parse_watts(t).ok()),
            },
            shown: self.shown(),
            name,
            files,
        }
    }

    fn shown(&self) -> Vec<Shown> {
        let mut shown = Vec::new();
        for key in KEYS {
            let (id, path) = ((key.section, key.name), key.path());
            if let Some(value) = self.singles.get(&id) {
                shown.push(Shown {
                    key: path,
                    value: value.value.show(),
                    origin: value.origin.clone(),
                });
                continue;
            }
            for item in self.lists.get(&id).into_iter().flatten() {
                shown.push(Shown {
                    key: path.clone(),
                    value: format!("{:?}", item.value),
                    origin: item.origin.clone(),
                });
            }
            for (name, item) in self.tables.get(&id).into_iter().flatten() {
                shown.push(Shown {
                    key: format!("{path}.{name}"),
                    value: format!("{:?}", item.value),
                    origin: item.origin.clone(),
                });
            }
            if let Some(value) = self.default_of(key.section, key.name) {
                shown.push(Shown {
                    key: path,
                    value,
                    origin: Origin::default_value(),
                });
            }
        }
        shown
    }

    /// The defaults that are worth a line where no file says anything.
    fn default_of(&self, section: &str, key: &str) -> Option<String> {
        let time = |d| Some(format!("{:?}", quantity::show_duration(d)));
        let (pool, restart) = (self.pool(), self.restart());
        match (section, key) {
            ("agent", "status") => Some("\"DEVELOPMENT\"".into()),
            ("agent", "enabled") => Some("false".into()),
            ("run", "driver") => Some("\"none\"".into()),
            ("run", "command") => Some(format!("[{:?}]", self.driver())),
            ("run", "policy") => Some("\"coding\"".into()),
            ("run", "stop_grace") => Some("\"10s\"".into()),
            ("pool", "min") => Some(pool.min.to_string()),
            ("pool", "max") => Some(pool.max.to_string()),
            ("restart", "policy") => Some("\"on-failure\"".into()),
            ("restart", "delay") => time(restart.delay),
            ("restart", "factor") => Some(restart.factor.to_string()),
            ("restart", "max_delay") => time(restart.max_delay),
            ("restart", "jitter") => Some(format!("\"{}%\"", restart.jitter_percent)),
            ("restart", "burst") => Some(restart.burst.to_string()),
            ("restart", "interval") => time(restart.interval),
            _ => None,
        }
    }
}
