//! The keys a unit may have: one row each. Reading, checking, `show` and the reference all use it.

use super::diagnostic::Problem;
use super::quantity;
use super::suggest::unknown;

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A string; specifiers are filled in.
    Text,
    /// As `Text`, an absolute path or one below `~/`.
    Path,
    /// Words such as a role's or a capability's name.
    Word,
    Uuid,
    User,
    PolicyName,
    Choice(&'static [&'static str]),
    Bool,
    Count(i64, i64),
    Duration(Span),
    Percent,
    Factor,
    Size,
    Cpu,
    Watts,
    /// An array of strings that is one value: a later file replaces it.
    Command,
    /// Lists: an array adds to what earlier files say, a table edits it.
    Words,
    Rules,
    Topics,
    /// Tables of strings, merged by key.
    Environment,
    Settings,
}

/// Allowed durations, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub min_ms: u64,
    pub max_ms: u64,
    pub text: &'static str,
}

const DAY: u64 = 86_400_000;
const UP_TO_A_YEAR: Span = Span {
    min_ms: 1_000,
    max_ms: 365 * DAY,
    text: "a duration such as \"30m\", from 1s to 365d",
};
const UP_TO_AN_HOUR: Span = Span {
    min_ms: 0,
    max_ms: 3_600_000,
    text: "a duration such as \"10s\", from 0s to 1h",
};
const BACK_OFF: Span = Span {
    min_ms: 10,
    max_ms: DAY,
    text: "a duration such as \"500ms\" or \"2s\", from 10ms to 1d",
};
const LATENCY: Span = Span {
    min_ms: 1,
    max_ms: 60_000,
    text: "a duration such as \"50ms\", from 1ms to 1m",
};

impl Kind {
    pub(super) fn is_list(self) -> bool {
        matches!(self, Self::Words | Self::Rules | Self::Topics)
    }

    pub(super) fn is_table(self) -> bool {
        matches!(self, Self::Environment | Self::Settings)
    }

    /// Whether `%i` and its kin are filled in.
    pub(super) fn has_specifiers(self) -> bool {
        matches!(
            self,
            Self::Text
                | Self::Path
                | Self::Command
                | Self::Topics
                | Self::Rules
                | Self::Environment
                | Self::Settings
        )
    }
}

/// The drivers a unit may name.
pub const DRIVERS: &[&str] = &["none", "claude", "codex", "acp", "jsonl"];

const RESTARTS: &[&str] = &["never", "on-failure", "on-abnormal", "always"];
const LEVELS: &[&str] = &["high", "medium", "low"];

#[derive(Debug)]
pub(super) struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    /// For `reference`.
    pub meaning: &'static str,
}

const fn key(section: &'static str, name: &'static str, kind: Kind, meaning: &'static str) -> Key {
    Key {
        section,
        name,
        kind,
        meaning,
    }
}

/// Every key, in the order in which `show` prints them.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("agent", "uuid", Kind::Uuid, "identifies the unit for ever; made and kept by agentd when absent"),
    key("agent", "name", Kind::Text, "name of its agents on the bus and in lists; default %n"),
    key("agent", "description", Kind::Text, "one line for people"),
    key("agent", "role", Kind::Word, "what it is in a team: tasks can be given to a role"),
    key("agent", "capabilities", Kind::Words, "what it can do: tasks can ask for one"),
    key("agent", "status", Kind::Choice(&["PRODUCTION", "DEVELOPMENT"]), "default DEVELOPMENT"),
    key("agent", "enabled", Kind::Bool, "started with agentd unless `agents disable` says otherwise; default false"),
    key("agent", "user", Kind::User, "system units: whose agents they are; default root"),
    key("run", "command", Kind::Command, "program and arguments; default [\"claude\"] or [\"codex\"] with that driver"),
    key("run", "driver", Kind::Choice(DRIVERS), "who talks with the program; default none"),
    key("run", "policy", Kind::PolicyName, "policy by name; default coding"),
    key("run", "set", Kind::Settings, "values laid over the policy, such as \"limits.pids\" = 64"),
    key("run", "workspace", Kind::Path, "directory it works in, opened by whoever starts the unit"),
    key("run", "env", Kind::Environment, "environment variables"),
    key("run", "prompt", Kind::Text, "first turn of a driven agent"),
    key("run", "system_prompt", Kind::Text, "added to the system prompt (driver claude)"),
    key("run", "stdio", Kind::Choice(&["pipes", "pty", "null"]), "what an undriven program finds; default pipes"),
    key("run", "timeout", Kind::Duration(UP_TO_A_YEAR), "wall clock of one run; default what the policy says"),
    key("run", "stop_grace", Kind::Duration(UP_TO_AN_HOUR), "between SIGTERM and SIGKILL; default 10s"),
    key("pool", "min", Kind::Count(0, 1000), "agents that run as long as the unit is started; default 1, or 0 with triggers"),
    key("pool", "max", Kind::Count(1, 1000), "most agents at once; default 1"),
    key("pool", "idle", Kind::Duration(UP_TO_A_YEAR), "an agent above min without work for so long is stopped; default 10m"),
    key("restart", "policy", Kind::Choice(RESTARTS), "default on-failure"),
    key("restart", "delay", Kind::Duration(BACK_OFF), "before the first restart; default 1s"),
    key("restart", "factor", Kind::Factor, "each further delay is so many times longer; default 2"),
    key("restart", "max_delay", Kind::Duration(BACK_OFF), "longest delay; default 5m"),
    key("restart", "jitter", Kind::Percent, "random part of a delay, up and down; default 20%"),
    key("restart", "burst", Kind::Count(1, 1000), "restarts within the interval before the unit fails; default 5"),
    key("restart", "interval", Kind::Duration(UP_TO_A_YEAR), "see burst; a run longer than this forgets earlier failures; default 10m"),
    key("budget", "tokens", Kind::Count(1, 1_000_000_000_000), "input and output tokens of one run (limits.tokens)"),
    key("budget", "memory", Kind::Size, "memory of one agent (limits.memory)"),
    key("budget", "cpu", Kind::Cpu, "percentage of one core, such as 150% (limits.cpu)"),
    key("tools", "allow", Kind::Rules, "laid over the policy's [tools] allow"),
    key("tools", "deny", Kind::Rules, "laid over the policy's [tools] deny"),
    key("triggers", "on_message", Kind::Topics, "a message on one of these topics starts the agent"),
    key("triggers", "on_task", Kind::Bool, "a task for its name, role or capability starts an agent, up to pool.max"),
    key("triggers", "schedule", Kind::Duration(UP_TO_A_YEAR), "started so long after its last scheduled start, unless it runs"),
    key("bus", "subscriptions", Kind::Topics, "topics it follows from its start (adds to the policy's ipc.subscribe)"),
    key("cores", "core_class", Kind::Choice(&["performance", "efficiency", "low-power", "any"]), "checked and kept; not applied yet"),
    key("cores", "avx512_benefit", Kind::Choice(LEVELS), "checked and kept; not applied yet"),
    key("cores", "latency_target", Kind::Duration(LATENCY), "checked and kept; not applied yet"),
    key("cores", "power_cap", Kind::Watts, "checked and kept; not applied yet"),
];

/// The keys with their sections and meanings, for documentation and completion.
pub fn reference() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    KEYS.iter().map(|k| (k.section, k.name, k.meaning))
}

pub(super) fn sections() -> Vec<&'static str> {
    let mut names: Vec<_> = KEYS.iter().map(|k| k.section).collect();
    names.dedup();
    names
}

pub(super) fn keys_of(section: &str) -> Vec<&'static str> {
    KEYS.iter()
        .filter(|k| k.section == section)
        .map(|k| k.name)
        .collect()
}

pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.section == section && k.name == name)
}

/// A value as it stands in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Text(String),
    Number(i64),
    Float(f64),
    Bool(bool),
    Command(Vec<String>),
}

impl Scalar {
    /// As it would be written in TOML.
    pub(super) fn show(&self) -> String {
        match self {
            Self::Text(t) => format!("{t:?}"),
            Self::Number(n) => n.to_string(),
            Self::Float(n) => n.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Command(words) => format!("{words:?}"),
        }
    }

    pub(super) fn text(&self) -> Result<&str, Problem> {
        match self {
            Self::Text(t) => Ok(t),
            _ => Err(Problem::new("this is not a string", "write it in quotes")),
        }
    }
}

impl Key {
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// Checks one value, or one item of a list.
    pub(super) fn check(&self, value: &Scalar) -> Result<(), Problem> {
        match self.kind {
            Kind::Bool => match value {
                Scalar::Bool(_) => Ok(()),
                _ => Err(Problem::new(
                    "this is neither true nor false",
                    "write true or false",
                )),
            },
            Kind::Count(min, max) => count(value, min, max),
            Kind::Factor => factor(value).map(drop),
            Kind::Command => match value {
                Scalar::Command(words) if words.first().is_some_and(|w| !w.is_empty()) => Ok(()),
                Scalar::Command(_) => Err(Problem::new(
                    "the command names no program",
                    "write [\"PROGRAM\", \"ARGUMENT\", …]",
                )),
                _ => Err(Problem::new(
                    "a command is not one string: no shell reads it",
                    "write [\"PROGRAM\", \"ARGUMENT\", …]",
                )),
            },
            Kind::Environment => variable(value).map(drop),
            Kind::Settings => match value {
                Scalar::Text(_) | Scalar::Number(_) => Ok(()),
                _ => Err(Problem::new(
                    "this is neither a string nor a number",
                    "write it in quotes",
                )),
            },
            _ => self.check_text(value.text()?),
        }
    }

    fn check_text(&self, text: &str) -> Result<(), Problem> {
        if text.contains('\0') {
            return Err(Problem::new("a NUL can't stand here", "leave it out"));
        }
        let quantity =
            |result: Result<u64, String>, range: std::ops::RangeInclusive<u64>, help: &str| {
                match result {
                    Ok(n) if range.contains(&n) => Ok(()),
                    Ok(_) => Err(Problem::new("the value is out of range", help)),
                    Err(problem) => Err(Problem::new(problem, help)),
                }
            };
        match self.kind {
            Kind::Text => match text.trim().is_empty() {
                true => Err(Problem::new(
                    "the text is empty",
                    "write something, or leave the key out",
                )),
                false => Ok(()),
            },
            Kind::Path => match text.starts_with('/') || text.starts_with("~/") {
                true if !text.split('/').any(|part| part == "..") => Ok(()),
                _ => Err(Problem::new(
                    "this is not a path from the root",
                    "a path begins with / or ~/ and has no .. in it",
                )),
            },
            Kind::Word | Kind::Words => word(text),
            Kind::User => match text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && text.len() <= 32
                && text
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
            {
                true => Ok(()),
                false => Err(Problem::new(
                    "this is not a user's name",
                    "a login name, as in /etc/passwd",
                )),
            },
            Kind::PolicyName => match !text.is_empty()
                && text.len() <= 64
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            {
                true => Ok(()),
                false => Err(Problem::new(
                    "this is not a policy's name",
                    "a name such as coding (`agentctl policy list` shows them); a unit names no policy file",
                )),
            },
            Kind::Uuid => uuid(text),
            Kind::Choice(known) => match known.contains(&text) {
                true => Ok(()),
                false => Err(unknown("this is not one of the words", text, known)),
            },
            Kind::Duration(span) => quantity(
                quantity::parse_duration(text).map(|d| d.as_millis() as u64),
                span.min_ms..=span.max_ms,
                span.text,
            ),
            Kind::Percent => quantity(
                quantity::parse_percent(text),
                0..=100,
                "a percentage from \"0%\" to \"100%\"",
            ),
            Kind::Cpu => quantity(
                quantity::parse_percent(text),
                1..=102_400,
                "a percentage of one core, from \"1%\" to \"102400%\"",
            ),
            Kind::Size => quantity(
                quantity::parse_size(text),
                1 << 20..=1 << 50,
                "a size such as \"512MiB\" or \"2GB\", at least 1MiB",
            ),
            Kind::Watts => quantity(
                quantity::parse_watts(text),
                100..=10_000_000,
                "a power such as \"15W\" or \"500mW\", from 100mW to 10000W",
            ),
            Kind::Rules => match text.trim().is_empty() {
                true => Err(Problem::new(
                    "the rule is empty",
                    "write Tool or Tool(pattern)",
                )),
                false => Ok(()),
            },
            Kind::Topics => topic(text),
            Kind::Bool
            | Kind::Count(..)
            | Kind::Factor
            | Kind::Command
            | Kind::Environment
            | Kind::Settings => {
                unreachable!("checked by the caller")
            }
        }
    }
}

fn count(value: &Scalar, min: i64, max: i64) -> Result<(), Problem> {
    let help = format!("a whole number from {min} to {max}");
    match value {
        Scalar::Number(n) if (min..=max).contains(n) => Ok(()),
        Scalar::Number(_) => Err(Problem::new("the number is out of range", help)),
        _ => Err(Problem::new("this is not a whole number", help)),
    }
}

/// The back-off's factor.
pub(super) fn factor(value: &Scalar) -> Result<f64, Problem> {
    const HELP: &str = "a number from 1 to 10, such as 2 or 1.5";
    let number = match value {
        #[expect(clippy::cast_precision_loss, reason = "only 1 to 10 are accepted")]
        Scalar::Number(n) => *n as f64,
        Scalar::Float(n) => *n,
        _ => return Err(Problem::new("this is not a number", HELP)),
    };
    if (1.0..=10.0).contains(&number) {
        Ok(number)
    } else {
        Err(Problem::new("the number is out of range", HELP))
    }
}

fn variable(value: &Scalar) -> Result<&str, Problem> {
    match value {
        Scalar::Text(text) if !text.contains('\0') => Ok(text),
        _ => Err(Problem::new(
            "a variable is a string without NUL",
            "write it in quotes",
        )),
    }
}

fn word(text: &str) -> Result<(), Problem> {
    let fits = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
    if fits {
        Ok(())
    } else {
        Err(Problem::new(
            "this is not a word",
            "1 to 64 letters, digits and -_.+, beginning with a letter or digit",
        ))
    }
}

fn uuid(text: &str) -> Result<(), Problem> {
    let groups: Vec<&str> = text.split('-').collect();
    let fits = groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12])
        && groups
            .iter()
            .all(|g| g.bytes().all(|b| b.is_ascii_hexdigit()));
    if fits {
        Ok(())
    } else {
        Err(Problem::new(
            "this is not a UUID",
            "32 hexadecimal digits as 8-4-4-4-12 (`uuidgen` makes one)",
        ))
    }
}

/// Words between dots; `*` stands for one word, a last `#` for the rest. A specifier counts as letters.
fn topic(text: &str) -> Result<(), Problem> {
    let words: Vec<&str> = text.split('.').collect();
    let fits = text.len() <= 128
        && words.iter().enumerate().all(|(at, word)| match *word {
            "*" => true,
            "#" => at + 1 == words.len(),
            word => {
                !word.is_empty()
                    && word
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-_%@".contains(&b))
            }
        });
    if fits {
        Ok(())
    } else {
        Err(Problem::new(
            "this is not a topic pattern",
            "words between dots, in which * is one word and a last # the rest: build.*.done, build.#",
        ))
    }
}
