//! `policy test`: may an agent under this policy do that, and which line decides?
//!
//! Answers what the policy says, not what a host can hold: that is what a plan is for. Pure: paths are compared, not
//! opened, so a symbolic link is what it says and not where it leads.

use super::path::PathTemplate;
use super::{CallerContext, EffectivePolicy, Origin, Valued, suggest};
use crate::plan::PRIVATE;
use crate::rules::{Decision, ToolDecision};
use crate::seccomp::SyscallSet;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Something that an agent may want to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    Read(PathTemplate),
    Write(PathTemplate),
    Exec(PathTemplate),
    Connect { host: String, port: u16 },
    Tool { tool: String, subject: String },
    Model(String),
    Env(String),
    Syscalls(SyscallSet),
    Send(String),
    Request(String),
    Publish(String),
    Subscribe(String),
}

/// What the policy says to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Allow,
    /// A person decides.
    Ask,
    Deny,
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    pub question: Question,
    pub verdict: Verdict,
    /// The line that decides; `None` where no line does, which denies, or where the sandbox itself does.
    pub by: Option<Origin>,
    /// In words.
    pub why: String,
}

/// The kinds of questions, each with what follows it.
pub const QUESTIONS: &[(&str, &str)] = &[
    ("read", "PATH"),
    ("write", "PATH"),
    ("exec", "PATH"),
    ("connect", "HOST:PORT"),
    ("tool", "TOOL(SUBJECT)"),
    ("model", "NAME"),
    ("env", "NAME"),
    ("syscalls", "SET"),
    ("send", "AGENT"),
    ("request", "AGENT"),
    ("publish", "TOPIC"),
    ("subscribe", "TOPIC"),
];

impl Question {
    /// `Err` says what is wrong and what is allowed.
    pub fn new(kind: &str, about: &str) -> Result<Self, String> {
        let path =
            || PathTemplate::parse(about).map_err(|(problem, help)| format!("{problem}; {help}"));
        let name = || match about {
            "" => Err("the name is empty".to_owned()),
            name => Ok(name.to_owned()),
        };
        Ok(match kind {
            "read" => Self::Read(path()?),
            "write" => Self::Write(path()?),
            "exec" => Self::Exec(path()?),
            "connect" => {
                let (host, port) = about.rsplit_once(':').ok_or("write HOST:PORT")?;
                let port = port
                    .parse()
                    .map_err(|_| format!("{port:?} is not a port"))?;
                Self::Connect {
                    host: host.to_owned(),
                    port,
                }
            }
            "tool" => match about.split_once('(') {
                Some((tool, rest)) => Self::Tool {
                    tool: tool.to_owned(),
                    subject: rest
                        .strip_suffix(')')
                        .ok_or("a use of a tool is TOOL(SUBJECT), such as Bash(git push)")?
                        .to_owned(),
                },
                None => Self::Tool {
                    tool: name()?,
                    subject: String::new(),
                },
            },
            "model" => Self::Model(name()?),
            "env" => Self::Env(name()?),
            "syscalls" => Self::Syscalls(SyscallSet::from_name(about).ok_or_else(|| {
                let known: Vec<&str> = SyscallSet::ALL.iter().map(|s| s.name()).collect();
                format!(
                    "{about:?} is not a set of system calls; there are {}",
                    known.join(", ")
                )
            })?),
            "send" => Self::Send(name()?),
            "request" => Self::Request(name()?),
            "publish" => Self::Publish(name()?),
            "subscribe" => Self::Subscribe(name()?),
            other => {
                let known = || QUESTIONS.iter().map(|(kind, _)| *kind);
                let near = suggest::nearest(other, known())
                    .map_or(String::new(), |n| format!("did you mean {n:?}? "));
                let known: Vec<&str> = known().collect();
                return Err(format!(
                    "{other:?} is no question; {near}there are {}",
                    known.join(", ")
                ));
            }
        })
    }
}

/// `KIND ABOUT`, as in a file of expectations.
impl FromStr for Question {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, about) = text
            .trim()
            .split_once(char::is_whitespace)
            .ok_or("a question is KIND and what it is about, such as \"read ~/.ssh\"")?;
        Self::new(kind, about.trim())
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path) => write!(f, "read {path}"),
            Self::Write(path) => write!(f, "write {path}"),
            Self::Exec(path) => write!(f, "exec {path}"),
            Self::Connect { host, port } => write!(f, "connect {host}:{port}"),
            Self::Tool { tool, subject } if subject.is_empty() => write!(f, "tool {tool}"),
            Self::Tool { tool, subject } => write!(f, "tool {tool}({subject})"),
            Self::Model(name) => write!(f, "model {name}"),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Syscalls(set) => write!(f, "syscalls {}", set.name()),
            Self::Send(name) => write!(f, "send {name}"),
            Self::Request(name) => write!(f, "request {name}"),
            Self::Publish(name) => write!(f, "publish {name}"),
            Self::Subscribe(name) => write!(f, "subscribe {name}"),
        }
    }
}

impl Serialize for Question {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A verdict under way.
type Said = (Verdict, Option<Origin>, String);

fn allow(by: &Origin, why: &str) -> Said {
    (Verdict::Allow, Some(by.clone()), why.into())
}

fn deny(why: impl Into<String>) -> Said {
    (Verdict::Deny, None, why.into())
}

impl EffectivePolicy {
    /// What this policy says to `question` in the launch of `caller`.
    pub fn answer(&self, question: &Question, caller: &CallerContext) -> Answer {
        let (verdict, by, why) = match question {
            Question::Read(path) => self.may_see(path, caller),
            Question::Write(path) => self.may_write(path, caller),
            Question::Exec(path) => self.may_run(path, caller),
            Question::Connect { host, port } => self.may_connect(host, *port),
            Question::Tool { tool, subject } => self.may_use(tool, subject, caller),
            Question::Model(name) => self.may_ask_model(name),
            Question::Env(name) => self.gets_variable(name),
            Question::Syscalls(set) => {
                let line = self.syscalls.iter().find(|s| s.value == *set);
                line.map_or_else(
                    || deny("the set is not in syscalls.allow"),
                    |l| allow(&l.origin, "syscalls.allow"),
                )
            }
            Question::Send(name) => self.may_address("ipc.send", self.ipc.may_send(name)),
            Question::Request(name) => self.may_address("ipc.request", self.ipc.may_request(name)),
            Question::Publish(name) => self.may_address("ipc.publish", self.ipc.may_publish(name)),
            Question::Subscribe(name) => {
                self.may_address("ipc.subscribe", self.ipc.may_subscribe(name))
            }
        };
        Answer {
            question: question.clone(),
            verdict,
            by,
            why,
        }
    }

    fn may_see(&self, path: &PathTemplate, caller: &CallerContext) -> Said {
        let Some(at) = resolve(path, caller) else {
            return deny("without a HOME or a workspace the path means nothing");
        };
        let fs = &self.fs;
        if let Some(line) = deepest(&fs.deny, &at, caller) {
            return (
                Verdict::Deny,
                Some(line.origin.clone()),
                "fs.deny hides it".into(),
            );
        }
        if let Some(line) = deepest(&fs.linked, &at, caller) {
            let by = Some(line.origin.clone());
            return (Verdict::Deny, by, "it has another name outside".into());
        }
        let lists = [
            (&fs.write, "fs.write"),
            (&fs.scratch, "fs.scratch"),
            (&fs.read, "fs.read"),
        ];
        let shown = lists
            .into_iter()
            .filter_map(|(list, key)| Some((deepest(list, &at, caller)?, key)))
            .max_by_key(|(line, _)| depth(&line.value, caller));
        match shown {
            Some((line, key)) => allow(&line.origin, &format!("{key} shows it")),
            None if is_private(&at, caller) => {
                deny("every sandbox has a private one; the host's is not shown")
            }
            None => deny("no line of fs.read, fs.write or fs.scratch shows it"),
        }
    }

    fn may_write(&self, path: &PathTemplate, caller: &CallerContext) -> Said {
        let seen = self.may_see(path, caller);
        let Some(at) = resolve(path, caller) else {
            return seen;
        };
        if seen.0 != Verdict::Allow {
            let private = seen.1.is_none() && is_private(&at, caller);
            return if private {
                let why = "into the sandbox's private one; the host's is not touched";
                (Verdict::Allow, None, why.into())
            } else {
                seen
            };
        }
        let fs = &self.fs;
        if let Some(line) = deepest(&fs.protect, &at, caller) {
            let by = Some(line.origin.clone());
            return (Verdict::Deny, by, "fs.protect keeps it as it is".into());
        }
        if let Some(line) = deepest(&fs.copy, &at, caller) {
            let why = "fs.copy: the change vanishes at the end";
            return (Verdict::Allow, Some(line.origin.clone()), why.into());
        }
        // As in the view: the deeper line decides, and of equally deep ones the one that gives more.
        let lists = [
            (&fs.read, "fs.read shows it read-only", Verdict::Deny),
            (
                &fs.scratch,
                "fs.scratch: the change vanishes at the end",
                Verdict::Allow,
            ),
            (&fs.write, "fs.write", Verdict::Allow),
        ];
        let decides = lists
            .into_iter()
            .filter_map(|(list, why, verdict)| Some((deepest(list, &at, caller)?, why, verdict)))
            .max_by_key(|(line, ..)| depth(&line.value, caller));
        match decides {
            Some((line, why, verdict)) => (verdict, Some(line.origin.clone()), why.into()),
            None => seen,
        }
    }

    fn may_run(&self, path: &PathTemplate, caller: &CallerContext) -> Said {
        let seen = self.may_see(path, caller);
        let Some(at) = resolve(path, caller) else {
            return seen;
        };
        if seen.0 != Verdict::Allow && (seen.1.is_some() || !is_private(&at, caller)) {
            return seen;
        }
        if caller.exe.as_deref() == Some(&at) {
            return (
                Verdict::Allow,
                None,
                "it is the program that is launched".into(),
            );
        }
        match deepest(&self.fs.exec, &at, caller) {
            // `~` under exec is the private HOME; what is granted below it is executable by it as well.
            Some(line) => allow(&line.origin, "fs.exec"),
            None => deny("no line of fs.exec covers it"),
        }
    }

    fn may_connect(&self, host: &str, port: u16) -> Said {
        match self.egress.allows(host, port) {
            _ if self.net.mode == super::NetMode::Host => {
                allow(&self.origin_of("net.mode"), "the host's own network")
            }
            Decision::Allow { rule } => allow(&rule.origin, &format!("net.allow {}", rule.text)),
            Decision::Ask { rule } => (
                Verdict::Ask,
                Some(rule.origin),
                format!("net.ask {}", rule.text),
            ),
            Decision::Deny { why, .. } => deny(why),
        }
    }

    fn may_use(&self, tool: &str, subject: &str, caller: &CallerContext) -> Said {
        let workspace = caller.workspace.as_deref().and_then(Path::to_str);
        let input = tool_input(tool, subject);
        match self.tools.decide(tool, &input, workspace) {
            ToolDecision::Allow => {
                let rule = self
                    .tools
                    .allow
                    .iter()
                    .find(|r| r.allows(tool, &input, workspace));
                match rule {
                    Some(rule) => allow(&rule.origin, &format!("tools.allow {}", rule.text)),
                    None => (
                        Verdict::Allow,
                        None,
                        "no rule of [tools] is about it".into(),
                    ),
                }
            }
            ToolDecision::Ask { rule } => (
                Verdict::Ask,
                Some(rule.origin),
                format!("tools.ask {}", rule.text),
            ),
            ToolDecision::Deny { why, origin } => (Verdict::Deny, origin, why),
        }
    }

    fn may_ask_model(&self, name: &str) -> Said {
        if !self.model.enabled {
            let by = self.origin_of("model.access");
            return (Verdict::Deny, Some(by), "model.access = \"none\"".into());
        }
        if self.model.allows_model(name) {
            let key = if self.model.models.is_empty() {
                "model.access"
            } else {
                "model.models"
            };
            return allow(&self.origin_of(key), key);
        }
        (
            Verdict::Deny,
            Some(self.origin_of("model.models")),
            "it is not in model.models".into(),
        )
    }

    fn gets_variable(&self, name: &str) -> Said {
        if let Some(value) = self.env.set.get(name) {
            return allow(&value.origin, "env.set");
        }
        let line = self
            .env
            .pass
            .iter()
            .find(|p| match p.value.strip_suffix('*') {
                Some(stem) => name.starts_with(stem),
                None => name == p.value,
            });
        line.map_or_else(
            || deny("it is neither in env.pass nor in env.set"),
            |l| allow(&l.origin, "env.pass"),
        )
    }

    fn may_address(&self, key: &str, yes: bool) -> Said {
        if yes {
            allow(&self.origin_of(key), key)
        } else {
            deny(format!("no pattern of {key} covers it"))
        }
    }
}

/// The arguments that a tool of this name would have been called with.
fn tool_input(tool: &str, subject: &str) -> Value {
    let key = match tool {
        "Bash" | "Shell" => "command",
        "Read" | "Write" | "Edit" | "MultiEdit" => "file_path",
        "NotebookEdit" => "notebook_path",
        "WebFetch" => "url",
        "WebSearch" => "query",
        _ => "path",
    };
    match subject {
        "" => json!({}),
        subject => json!({ key: subject }),
    }
}

fn resolve(path: &PathTemplate, caller: &CallerContext) -> Option<PathBuf> {
    path.resolve(caller.home.as_deref(), caller.workspace.as_deref())
}

fn depth(path: &PathTemplate, caller: &CallerContext) -> usize {
    resolve(path, caller).map_or(0, |p| p.components().count())
}

fn deepest<'a>(
    list: &'a [Valued<PathTemplate>],
    at: &Path,
    caller: &CallerContext,
) -> Option<&'a Valued<PathTemplate>> {
    list.iter()
        .filter(|l| resolve(&l.value, caller).is_some_and(|p| at.starts_with(p)))
        .max_by_key(|l| depth(&l.value, caller))
}

/// Places that every sandbox has of its own, writable, and empty at the start.
fn is_private(at: &Path, caller: &CallerContext) -> bool {
    let home = caller.home.as_deref().is_some_and(|h| at.starts_with(h));
    home || PRIVATE.iter().any(|p| at.starts_with(p))
}
