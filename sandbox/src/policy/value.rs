//! Values as people write them, checked one by one: what is wrong with each, and what is allowed.

use super::effective::LoopbackPorts;
use super::path::{PathBase, PathTemplate};
use super::{Origin, suggest, units};
use crate::rules::egress;

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
    /// `[3000, "8000-8080"]` in `net.ports`.
    Array(Vec<Scalar>),
}

impl Scalar {
    /// As it would be written in TOML.
    pub(crate) fn show(&self) -> String {
        match self {
            Self::Text(t) => format!("{t:?}"),
            Self::Number(n) => n.to_string(),
            Self::Flag(yes) => yes.to_string(),
            Self::Host { host, private } => format!("{{ host = {host:?}, private = {private} }}"),
            Self::Array(items) => {
                let items: Vec<String> = items.iter().map(Self::show).collect();
                format!("[{}]", items.join(", "))
            }
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

/// US dollars, in millionths of one.
pub(crate) fn dollars(value: &Scalar) -> Result<u64, Problem> {
    const HELP: &str = "it is an amount of US dollars such as \"$5\" or \"$0.50\", with at most six decimals, up to \"$1000000\"";
    match value {
        Scalar::Text(t) => match units::parse_dollars(t) {
            Ok(n @ 1..=1_000_000_000_000) => Ok(n),
            Ok(_) => Err(Problem::new("the amount is out of range", HELP)),
            Err(p) => Err(Problem::new(p, HELP)),
        },
        _ => Err(Problem::new("this is not an amount of money", HELP)),
    }
}

/// Each port is a rule of the kernel's; more than this is meant to be "any".
const MAX_PORTS: usize = 256;

/// `"any"`, or the TCP ports themselves.
pub(crate) fn ports(value: &Scalar) -> Result<LoopbackPorts, Problem> {
    const HELP: &str = "write \"any\", or an array of ports and ranges such as [3000, \"8000-8080\"], at most 256 in all; \
                        [] leaves agentd's own services only";
    let wrong = |what: String| Problem::new(what, HELP);
    let items = match value {
        Scalar::Text(t) if t == "any" => return Ok(LoopbackPorts::Any),
        Scalar::Array(items) => items,
        other => return Err(wrong(format!("{} is not a set of ports", other.show()))),
    };
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(wrong(format!("{text:?} is not a port"))),
    };
    let mut ports = std::collections::BTreeSet::new();
    for item in items {
        let (first, last) = match item {
            Scalar::Number(n) => {
                let only = port(&n.to_string())?;
                (only, only)
            }
            Scalar::Text(t) => match t.split_once('-') {
                Some((first, last)) => (port(first)?, port(last)?),
                None => (port(t)?, port(t)?),
            },
            other => return Err(wrong(format!("{} is not a port", other.show()))),
        };
        if first > last {
            return Err(wrong(format!("{first}-{last} is not a range")));
        }
        ports.extend(first..=last);
    }
    if ports.len() > MAX_PORTS {
        return Err(wrong(format!("these are {} ports", ports.len())));
    }
    Ok(LoopbackPorts::Only(ports.into_iter().collect()))
}

/// A device node of the host.
pub(crate) fn device(text: &str) -> Result<PathTemplate, Problem> {
    let path = PathTemplate::parse(text)?;
    if path.base == PathBase::Root && path.rest.starts_with("dev/") && !path.folder {
        return Ok(path);
    }
    Err(Problem::new(
        "this is not a device",
        "a device is a node below /dev, such as /dev/kvm or /dev/dri/renderD128",
    ))
}

/// The name of a file below `/run/agentd/secrets`.
pub(crate) fn secret_name(text: &str) -> Result<(), Problem> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.') {
        return Ok(());
    }
    Err(Problem::new(
        format!("{text:?} is not the name of a secret"),
        "it is a file name of letters, digits and - _ . that does not begin with a dot",
    ))
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
        Scalar::Array(_) => return Err(Problem::new("this is a list", HELP)),
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

pub(crate) fn credential_name(text: &str) -> Result<(), Problem> {
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

pub(crate) fn non_empty(text: &str) -> Result<(), Problem> {
    if text.is_empty() {
        return Err(Problem::new(
            "the name is empty",
            "write a name, in which * stands for any run of characters",
        ));
    }
    Ok(())
}

pub(crate) fn one_of(
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
