//! The keys a policy may have: one row each. Reading, checking, merging, `show` and the reference all use it.

use super::path::PathTemplate;
use super::{Origin, suggest, units};
use crate::plan::Property;
use crate::rules::ipc::NamePattern;
use crate::rules::tools::ToolRule;
use crate::rules::{egress, ssh};
use crate::seccomp::SyscallSet;

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Lists: an array adds to what is inherited, a table edits it.
    Paths,
    Hosts,
    Names,
    Globs,
    EnvNames,
    ToolRules,
    SyscallSets,
    Properties,
    CredentialNames,
    Fingerprints,
    /// Single values: the last one wins.
    Text,
    NetMode,
    ModelAccess,
    SshAgent,
    SshSign,
    Size,
    Count,
    Percent,
    Duration,
    AskTimeout,
    /// `true` or `false`.
    Flag,
    /// A table of strings, merged by key.
    Variables,
}

impl Kind {
    pub(crate) fn is_list(self) -> bool {
        use Kind::*;
        matches!(
            self,
            Paths
                | Hosts
                | Names
                | Globs
                | EnvNames
                | ToolRules
                | SyscallSets
                | Properties
                | CredentialNames
                | Fingerprints
        )
    }
}

pub(crate) struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    /// A limit that `"none"` takes away.
    pub may_be_none: bool,
}

const fn key(section: &'static str, name: &'static str, kind: Kind) -> Key {
    Key {
        section,
        name,
        kind,
        may_be_none: false,
    }
}

const fn limit(name: &'static str, kind: Kind) -> Key {
    Key {
        section: "limits",
        name,
        kind,
        may_be_none: true,
    }
}

/// Every key, in the order `show` prints them. The empty section is the top of the file.
pub(crate) const KEYS: &[Key] = &[
    key("", "description", Kind::Text),
    key("", "extends", Kind::Text),
    key("fs", "read", Kind::Paths),
    key("fs", "write", Kind::Paths),
    key("fs", "exec", Kind::Paths),
    key("fs", "deny", Kind::Paths),
    key("net", "mode", Kind::NetMode),
    key("net", "allow", Kind::Hosts),
    key("net", "ask", Kind::Hosts),
    key("net", "credentials", Kind::CredentialNames),
    key("model", "access", Kind::ModelAccess),
    key("model", "models", Kind::Globs),
    Key {
        section: "model",
        name: "max_tokens",
        kind: Kind::Count,
        may_be_none: true,
    },
    key("ipc", "send", Kind::Names),
    key("ipc", "request", Kind::Names),
    key("ipc", "publish", Kind::Names),
    key("ipc", "subscribe", Kind::Names),
    key("ipc", "shared_memory", Kind::Flag),
    limit("memory", Kind::Size),
    limit("pids", Kind::Count),
    limit("cpu", Kind::Percent),
    key("limits", "nofile", Kind::Count),
    limit("fsize", Kind::Size),
    key("limits", "tmp", Kind::Size),
    key("limits", "tmp_inodes", Kind::Count),
    limit("wall_clock", Kind::Duration),
    limit("output", Kind::Size),
    limit("tokens", Kind::Count),
    key("env", "pass", Kind::EnvNames),
    key("env", "set", Kind::Variables),
    key("tools", "allow", Kind::ToolRules),
    key("tools", "ask", Kind::ToolRules),
    key("tools", "deny", Kind::ToolRules),
    key("tools", "ask_timeout", Kind::AskTimeout),
    key("ssh", "agent", Kind::SshAgent),
    key("ssh", "keys", Kind::Fingerprints),
    key("ssh", "sign", Kind::SshSign),
    key("syscalls", "allow", Kind::SyscallSets),
    key("degrade", "allow", Kind::Properties),
];

pub(crate) fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    KEYS.iter().filter_map(move |k| {
        let new = k.section != last;
        last = k.section;
        (new && !k.section.is_empty()).then_some(k.section)
    })
}

pub(crate) fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |k| k.section == section)
}

pub(crate) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.section == section && k.name == name)
}

/// A value as it stands in a file, before its meaning is checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scalar {
    Text(String),
    Number(i64),
    Flag(bool),
    /// `{ host = "…", private = true }` in `net.allow`.
    Host {
        host: String,
        private: bool,
    },
}

impl Scalar {
    /// As it would be written in TOML.
    pub(crate) fn show(&self) -> String {
        match self {
            Self::Text(t) => format!("{t:?}"),
            Self::Number(n) => n.to_string(),
            Self::Flag(yes) => yes.to_string(),
            Self::Host { host, private } => format!("{{ host = {host:?}, private = {private} }}"),
        }
    }
}

/// What is wrong with a value, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub problem: String,
    pub help: String,
}

impl Problem {
    pub(crate) fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            help: help.into(),
        }
    }
}

impl From<(String, String)> for Problem {
    fn from((problem, help): (String, String)) -> Self {
        Self { problem, help }
    }
}

impl Key {
    pub(crate) fn path(&self) -> String {
        if self.section.is_empty() {
            self.name.into()
        } else {
            format!("{}.{}", self.section, self.name)
        }
    }

    /// Checks one value, or one item of a list.
    pub(crate) fn check(&self, value: &Scalar) -> Result<(), Problem> {
        if self.may_be_none && *value == Scalar::Text("none".into()) {
            return Ok(());
        }
        match self.kind {
            Kind::Size => self.size(value).map(drop),
            Kind::Count => self.count(value).map(drop),
            Kind::Percent => percent(value).map(drop),
            Kind::Duration => duration(value).map(drop),
            Kind::AskTimeout => ask_timeout(value).map(drop),
            Kind::Flag => flag(value).map(drop),
            Kind::Hosts => host_rule(value, &Origin::built_in("check")).map(drop),
            _ => {
                let text = text(value)?;
                match self.kind {
                    Kind::Paths => PathTemplate::parse(text).map(drop).map_err(Problem::from),
                    Kind::Names => NamePattern::parse(text)
                        .map(drop)
                        .map_err(|p| Problem::new("not a name or pattern", p)),
                    Kind::Globs => non_empty(text),
                    Kind::Fingerprints => ssh::check_fingerprint(text)
                        .map_err(|help| Problem::new("not a fingerprint", help)),
                    Kind::SshAgent => one_of(text, "a way to an ssh-agent", ["none", "forward"]),
                    Kind::SshSign => one_of(text, "a rule for signatures", ["allow", "ask"]),
                    Kind::CredentialNames => credential_name(text),
                    Kind::EnvNames => env_name(text, true),
                    Kind::ToolRules => ToolRule::parse(text, Origin::built_in("check"))
                        .map(drop)
                        .map_err(|p| Problem::new("not a tool rule", p)),
                    Kind::SyscallSets => one_of(
                        text,
                        "a set of system calls",
                        SyscallSet::ALL.iter().map(|s| s.name()),
                    ),
                    Kind::Properties => one_of(text, "a property", Property::degradable_names()),
                    Kind::NetMode => one_of(text, "a network mode", ["none", "proxy"]),
                    Kind::ModelAccess => {
                        one_of(text, "a kind of model access", ["none", "gateway"])
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Bytes of a checked size.
    pub(crate) fn size(&self, value: &Scalar) -> Result<u64, Problem> {
        const HELP: &str =
            "a size is a whole number with a unit such as 512MiB or 2GB, at least 1MiB";
        let bytes = match value {
            Scalar::Number(n) => {
                u64::try_from(*n).map_err(|_| Problem::new("a size is not negative", HELP))?
            }
            Scalar::Text(t) => units::parse_size(t).map_err(|p| Problem::new(p, HELP))?,
            Scalar::Flag(_) => return Err(Problem::new("this is a yes or no", HELP)),
            Scalar::Host { .. } => return Err(Problem::new("this is a table", HELP)),
        };
        if bytes < 1 << 20 {
            return Err(Problem::new(
                format!("{} is too small to be meant", units::show_size(bytes)),
                HELP,
            ));
        }
        Ok(bytes)
    }

    /// A checked count, within the range of its key.
    pub(crate) fn count(&self, value: &Scalar) -> Result<u64, Problem> {
        let range: std::ops::RangeInclusive<u64> = match self.name {
            "pids" => 2..=4_194_304,
            "nofile" => 64..=1_048_576,
            "tmp_inodes" => 256..=100_000_000,
            _ => 1..=1_000_000_000_000,
        };
        let help = format!(
            "it is a whole number from {} to {}",
            range.start(),
            range.end()
        );
        match value {
            Scalar::Number(n) => match u64::try_from(*n) {
                Ok(n) if range.contains(&n) => Ok(n),
                _ => Err(Problem::new("the number is out of range", help)),
            },
            _ => Err(Problem::new("this is not a number", help)),
        }
    }
}

pub(crate) fn text(value: &Scalar) -> Result<&str, Problem> {
    match value {
        Scalar::Text(t) => Ok(t),
        _ => Err(Problem::new("this is not a string", "write it in quotes")),
    }
}

pub(crate) fn flag(value: &Scalar) -> Result<bool, Problem> {
    match value {
        Scalar::Flag(yes) => Ok(*yes),
        _ => Err(Problem::new(
            "this is not a yes or no",
            "write true or false, without quotes",
        )),
    }
}

pub(crate) fn percent(value: &Scalar) -> Result<u64, Problem> {
    const HELP: &str =
        "it is a percentage of one core, from \"1%\" to \"102400%\", such as \"150%\"";
    match value {
        Scalar::Text(t) => match units::parse_percent(t) {
            Ok(n @ 1..=102_400) => Ok(n),
            Ok(_) => Err(Problem::new("the percentage is out of range", HELP)),
            Err(p) => Err(Problem::new(p, HELP)),
        },
        _ => Err(Problem::new("this is not a percentage", HELP)),
    }
}

pub(crate) fn duration(value: &Scalar) -> Result<std::time::Duration, Problem> {
    const HELP: &str =
        "a duration is written like \"90s\", \"15m\" or \"1h30m\", with at most 365d";
    match value {
        Scalar::Text(t) => match units::parse_duration(t) {
            Ok(d) if d.is_zero() => Err(Problem::new("the duration is zero", HELP)),
            Ok(d) if d.as_secs() > 365 * 86_400 => {
                Err(Problem::new("the duration is too long", HELP))
            }
            Ok(d) => Ok(d),
            Err(p) => Err(Problem::new(p, HELP)),
        },
        _ => Err(Problem::new("this is not a duration", HELP)),
    }
}

/// How long a person may take over a question. There is always an end to it: an agent must not wait for ever.
pub(crate) fn ask_timeout(value: &Scalar) -> Result<std::time::Duration, Problem> {
    const HELP: &str = "it is a duration from \"1s\" to \"24h\", such as \"10m\"; a question can't stay open for ever";
    let out_of_range = || Problem::new("a question may wait for 1 second to 24 hours", HELP);
    let written = text(value).map_err(|p| Problem::new(p.problem, HELP))?;
    let limit = units::parse_duration(written).map_err(|p| Problem::new(p, HELP))?;
    if (1..=86_400).contains(&limit.as_secs()) {
        Ok(limit)
    } else {
        Err(out_of_range())
    }
}

/// One line of `net.allow` or `net.ask`, checked.
pub(crate) fn host_rule(value: &Scalar, origin: &Origin) -> Result<egress::EgressRule, Problem> {
    const HELP: &str = "a rule is host, host:port, *.domain or *.domain:port, without scheme or path; \
                        { host = \"…\", private = true } also lets it resolve to a private address";
    let (written, private) = match value {
        Scalar::Text(t) => (t.as_str(), false),
        Scalar::Host { host, private } => (host.as_str(), *private),
        Scalar::Number(_) => return Err(Problem::new("this is a number", HELP)),
        Scalar::Flag(_) => return Err(Problem::new("this is a yes or no", HELP)),
    };
    if written.contains("://") || written.contains('/') {
        return Err(Problem::new("a rule has no scheme and no path", HELP));
    }
    let colons = written.matches(':').count();
    let (host, port) = match written.rsplit_once(':') {
        // A bare IPv6 address has colons of its own; with a port it stands in brackets.
        Some((host, port)) if colons == 1 || host.ends_with(']') => match port.parse::<u16>() {
            Ok(p) if p != 0 => (host, Some(p)),
            _ => {
                return Err(Problem::new(
                    format!("{port:?} is not a port"),
                    "a port is a number from 1 to 65535",
                ));
            }
        },
        _ => (written, None),
    };
    let pattern = if host == "*" {
        egress::HostPattern::Any
    } else {
        let (name, below) = match host.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (host, false),
        };
        let Some(name) = egress::normalise_host(name) else {
            return Err(Problem::new(
                format!("{host:?} is not a host name or address"),
                HELP,
            ));
        };
        if below {
            egress::HostPattern::Below(name)
        } else {
            egress::HostPattern::Exact(name)
        }
    };
    Ok(egress::EgressRule {
        text: written.into(),
        host: pattern,
        port,
        private,
        origin: origin.clone(),
    })
}

/// The name of an environment variable; `pattern` lets it end in `*`.
pub(crate) fn env_name(text: &str, pattern: bool) -> Result<(), Problem> {
    let name = if pattern {
        text.strip_suffix('*').unwrap_or(text)
    } else {
        text
    };
    let ok = (!name.is_empty() || pattern)
        && text.len() <= 255
        && !text.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if ok {
        return Ok(());
    }
    let help = if pattern {
        "a name has letters, digits and _, and may end in * (LC_*)"
    } else {
        "a name has letters, digits and _"
    };
    Err(Problem::new(
        format!("{text:?} is not the name of an environment variable"),
        help,
    ))
}

fn credential_name(text: &str) -> Result<(), Problem> {
    let ok = !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if ok {
        return Ok(());
    }
    Err(Problem::new(
        format!("{text:?} is not the name of a credential"),
        "it is the name of a [[net.credential]] of agentd's configuration: letters, digits and - _ .",
    ))
}

fn non_empty(text: &str) -> Result<(), Problem> {
    if text.is_empty() {
        return Err(Problem::new(
            "the name is empty",
            "write a name, in which * stands for any run of characters",
        ));
    }
    Ok(())
}

fn one_of(
    text: &str,
    what: &str,
    known: impl IntoIterator<Item = &'static str>,
) -> Result<(), Problem> {
    let known: Vec<_> = known.into_iter().collect();
    if known.contains(&text) {
        return Ok(());
    }
    let hint = match suggest::nearest(text, known.iter().copied()) {
        Some(n) => format!("did you mean {n:?}? allowed are {}", known.join(", ")),
        None => format!("allowed are {}", known.join(", ")),
    };
    Err(Problem::new(format!("this is not {what}"), hint))
}
