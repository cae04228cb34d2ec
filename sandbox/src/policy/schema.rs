//! The keys a policy may have: one row each. Reading, checking, merging, `show`, the JSON schema and the reference all
//! use it.

use super::path::PathTemplate;
use super::value::{self, Problem, Scalar};
use super::{Origin, units};
use crate::plan::Property;
use crate::rules::ipc::NamePattern;
use crate::rules::ssh;
use crate::rules::tools::ToolRule;
use crate::seccomp::SyscallSet;

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Lists: an array adds to what is inherited, a table edits it.
    Paths,
    DevicePaths,
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
    Choice(&'static str, &'static [&'static str]),
    Size,
    Count,
    Percent,
    Duration,
    AskTimeout,
    Dollars,
    /// `true` or `false`.
    Flag,
    /// `"any"`, or an array of TCP ports and ranges: a whole that replaces what is inherited.
    Ports,
    /// Tables of strings, merged by name.
    Variables,
    SecretFiles,
}

impl Kind {
    pub(crate) fn is_list(self) -> bool {
        use Kind::*;
        matches!(
            self,
            Paths
                | DevicePaths
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

    pub(crate) fn is_table(self) -> bool {
        matches!(self, Self::Variables | Self::SecretFiles)
    }
}

pub(crate) struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    /// A limit that `"none"` takes away.
    pub may_be_none: bool,
    /// What it means, in one line, for editors.
    pub about: &'static str,
}

const fn key(section: &'static str, name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key {
        section,
        name,
        kind,
        may_be_none: false,
        about,
    }
}

const fn limit(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key {
        may_be_none: true,
        ..key("limits", name, kind, about)
    }
}

/// Every key, in the order `show` prints them. The empty section is the top of the file.
#[rustfmt::skip]
pub(crate) const KEYS: &[Key] = &[
    key("", "description", Kind::Text, "What this policy is for, in one line"),
    key("", "extends", Kind::Text, "The policy that this one is laid over"),
    key("fs", "read", Kind::Paths, "Shown, read-only"),
    key("fs", "write", Kind::Paths, "Shown, and may be changed"),
    key("fs", "exec", Kind::Paths, "Programs there may be executed"),
    key("fs", "protect", Kind::Paths, "Inside fs.write: may be read, never changed, renamed, removed, or made where it is absent; a last / means a folder"),
    key("fs", "copy", Kind::Paths, "Files inside fs.write: the agent changes a copy of its own, which vanishes at its end; the file stays as it is"),
    key("fs", "scratch", Kind::Paths, "Shown as writable; changes are kept in the sandbox's memory and vanish at its end"),
    key("fs", "deny", Kind::Paths, "Hidden inside what is shown; where it is absent it can't be made"),
    key("fs", "hard_links", Kind::Choice("a rule for hard links", &["any", "inside"]), "Whether a file may be shown that has another name outside of what is granted"),
    key("fs", "linked", Kind::Paths, "Hidden; all further names (hard links) of the file are listed as well. agentctl fills it in"),
    key("exec", "memfd", Kind::Choice("a rule for memory files", &["any", "data", "none"]), "Memory files: executable too, for data only, or none at all"),
    key("exec", "write_exec", Kind::Flag, "Memory that is written and then executed, as just-in-time compilers need it"),
    key("runtime", "kind", Kind::Choice("a runtime", &["native", "gvisor"]), "On whose kernel programs run: the host's, or gVisor's in user space"),
    key("net", "mode", Kind::Choice("a network mode", &["none", "proxy", "host"]), "The way out: none, agentd's proxy, or the host's own network"),
    key("net", "allow", Kind::Hosts, "Destinations that the proxy lets through"),
    key("net", "ask", Kind::Hosts, "Destinations that a person approves when they are wanted"),
    key("net", "credentials", Kind::CredentialNames, "Credentials of agentd's that requests to their hosts are given outside"),
    key("net", "ports", Kind::Ports, "TCP ports of the sandbox's own loopback, beside agentd's services"),
    key("model", "access", Kind::Choice("a kind of model access", &["none", "gateway"]), "Whether models can be reached, through agentd's gateway"),
    key("model", "models", Kind::Globs, "Names of models, in which * stands for anything"),
    Key { may_be_none: true, ..key("model", "max_tokens", Kind::Count, "The most output tokens that one request may ask for") },
    key("ipc", "send", Kind::Names, "Agents that it may send to"),
    key("ipc", "request", Kind::Names, "Agents that it may request from"),
    key("ipc", "publish", Kind::Names, "Topics that it may publish"),
    key("ipc", "subscribe", Kind::Names, "Topics that it may subscribe to"),
    key("ipc", "shared_memory", Kind::Flag, "Whether memory is shared with other agents of the same user"),
    key("ipc", "sockets", Kind::Paths, "Unix sockets of the host that it may connect to"),
    key("devices", "allow", Kind::DevicePaths, "Character devices of the host that it may use"),
    limit("memory", Kind::Size, "Memory of the whole agent"),
    limit("pids", Kind::Count, "Processes and threads"),
    limit("cpu", Kind::Percent, "Percentage of one core"),
    key("limits", "nofile", Kind::Count, "Open files of each process"),
    limit("fsize", Kind::Size, "The largest file"),
    limit("disk", Kind::Size, "What it may add to writable places of the host"),
    limit("disk_inodes", Kind::Count, "Files that it may add to writable places of the host"),
    key("limits", "tmp", Kind::Size, "Size of each private folder"),
    key("limits", "tmp_inodes", Kind::Count, "Files in each private folder"),
    limit("wall_clock", Kind::Duration, "Time from start to end"),
    limit("output", Kind::Size, "What it may write to its terminal or pipes"),
    limit("tokens", Kind::Count, "Input and output tokens of the whole launch"),
    limit("cost", Kind::Dollars, "What the models of the whole launch may cost, at the configured prices"),
    key("env", "pass", Kind::EnvNames, "Variables taken over from the caller; a last * stands for any rest"),
    key("env", "set", Kind::Variables, "Variables with their values"),
    key("secrets", "files", Kind::SecretFiles, "Files shown read-only as /run/agentd/secrets/NAME"),
    key("tools", "allow", Kind::ToolRules, "Uses of tools that are allowed; without it, all that are neither asked for nor denied"),
    key("tools", "ask", Kind::ToolRules, "Uses of tools that a person decides"),
    key("tools", "deny", Kind::ToolRules, "Uses of tools that are denied"),
    key("tools", "ask_timeout", Kind::AskTimeout, "How long a question waits before it counts as refused"),
    key("ssh", "agent", Kind::Choice("a way to an ssh-agent", &["none", "forward"]), "Whether the caller's ssh-agent can be asked to sign"),
    key("ssh", "keys", Kind::Fingerprints, "The keys that may be used"),
    key("ssh", "sign", Kind::Choice("a rule for signatures", &["allow", "ask"]), "Whether a person approves each signature"),
    key("syscalls", "allow", Kind::SyscallSets, "Named sets of system calls; what is in none is refused"),
    key("degrade", "allow", Kind::Properties, "Properties that a launch may go without on a host that can't hold them"),
    key("degrade", "mechanisms", Kind::Count, "How many mechanisms must hold each property, where there are as many on this host"),
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

impl Key {
    pub(crate) fn path(&self) -> String {
        if self.section.is_empty() {
            self.name.into()
        } else {
            format!("{}.{}", self.section, self.name)
        }
    }

    /// Checks one value, or one item of a list.
    pub(crate) fn check(&self, given: &Scalar) -> Result<(), Problem> {
        if self.may_be_none && *given == Scalar::Text("none".into()) {
            return Ok(());
        }
        match self.kind {
            Kind::Size => self.size(given).map(drop),
            Kind::Count => self.count(given).map(drop),
            Kind::Percent => value::percent(given).map(drop),
            Kind::Duration => value::duration(given).map(drop),
            Kind::AskTimeout => value::ask_timeout(given).map(drop),
            Kind::Dollars => value::dollars(given).map(drop),
            Kind::Flag => value::flag(given).map(drop),
            Kind::Ports => value::ports(given).map(drop),
            Kind::Hosts => value::host_rule(given, &Origin::built_in("check")).map(drop),
            _ => self.check_text(value::text(given)?),
        }
    }

    fn check_text(&self, text: &str) -> Result<(), Problem> {
        match self.kind {
            Kind::Paths | Kind::SecretFiles => {
                PathTemplate::parse(text).map(drop).map_err(Problem::from)
            }
            Kind::DevicePaths => value::device(text).map(drop),
            Kind::Names => NamePattern::parse(text)
                .map(drop)
                .map_err(|p| Problem::new("not a name or pattern", p)),
            Kind::Globs => value::non_empty(text),
            Kind::Fingerprints => {
                ssh::check_fingerprint(text).map_err(|help| Problem::new("not a fingerprint", help))
            }
            Kind::Choice(what, words) => value::one_of(text, what, words.iter().copied()),
            Kind::CredentialNames => value::credential_name(text),
            Kind::EnvNames => value::env_name(text, true),
            Kind::ToolRules => ToolRule::parse(text, Origin::built_in("check"))
                .map(drop)
                .map_err(|p| Problem::new("not a tool rule", p)),
            Kind::SyscallSets => value::one_of(
                text,
                "a set of system calls",
                SyscallSet::ALL.iter().map(|s| s.name()),
            ),
            Kind::Properties => value::one_of(text, "a property", Property::degradable_names()),
            _ => Ok(()),
        }
    }

    /// Bytes of a checked size.
    pub(crate) fn size(&self, given: &Scalar) -> Result<u64, Problem> {
        const HELP: &str =
            "a size is a whole number with a unit such as 512MiB or 2GB, at least 1MiB";
        let bytes = match given {
            Scalar::Number(n) => {
                u64::try_from(*n).map_err(|_| Problem::new("a size is not negative", HELP))?
            }
            Scalar::Text(t) => units::parse_size(t).map_err(|p| Problem::new(p, HELP))?,
            Scalar::Flag(_) => return Err(Problem::new("this is a yes or no", HELP)),
            Scalar::Host { .. } | Scalar::Array(_) => {
                return Err(Problem::new("this is not one value", HELP));
            }
        };
        if bytes < 1 << 20 {
            return Err(Problem::new(
                format!("{} is too small to be meant", units::show_size(bytes)),
                HELP,
            ));
        }
        Ok(bytes)
    }

    /// What a count may be.
    pub(crate) fn range(&self) -> std::ops::RangeInclusive<u64> {
        match self.name {
            "mechanisms" => 1..=2,
            "pids" => 2..=4_194_304,
            "nofile" => 64..=1_048_576,
            "tmp_inodes" | "disk_inodes" => 256..=100_000_000,
            _ => 1..=1_000_000_000_000,
        }
    }

    /// A checked count, within the range of its key.
    pub(crate) fn count(&self, given: &Scalar) -> Result<u64, Problem> {
        let range = self.range();
        let help = format!(
            "it is a whole number from {} to {}",
            range.start(),
            range.end()
        );
        match given {
            Scalar::Number(n) => match u64::try_from(*n) {
                Ok(n) if range.contains(&n) => Ok(n),
                _ => Err(Problem::new("the number is out of range", help)),
            },
            _ => Err(Problem::new("this is not a number", help)),
        }
    }
}
