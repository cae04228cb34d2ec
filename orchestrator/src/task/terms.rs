//! What was asked for, apart from the text: for whom, how urgent, until when, after what, how often.
//!
//! Plain data that is stored as JSON with the task; renaming a field changes a stored format.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Retry, TaskId};

/// A word or number outside what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {got:?}; allowed: {allowed}")]
pub struct UnknownTerm {
    /// What it was meant to say.
    pub what: &'static str,
    /// What was given.
    pub got: String,
    /// What would have been accepted.
    pub allowed: String,
}

/// Who may do it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The agent of this name.
    Agent(String),
    /// An instance of this unit.
    Unit(String),
    /// An agent whose unit has this role.
    Role(String),
    /// An agent whose unit has this capability.
    Capability(String),
}

impl Target {
    /// `agent`, `unit`, `role` or `capability`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Unit(_) => "unit",
            Self::Role(_) => "role",
            Self::Capability(_) => "capability",
        }
    }

    /// The name after the kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Agent(name) | Self::Unit(name) | Self::Role(name) | Self::Capability(name) => {
                name
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

/// 0 (whenever) to 9 (before everything else).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(u8);

/// What a task has that says nothing.
pub const DEFAULT_PRIORITY: Priority = Priority(5);

/// The priorities that have names.
pub const PRIORITY_NAMES: [(&str, Priority); 4] = [
    ("low", Priority(2)),
    ("normal", DEFAULT_PRIORITY),
    ("high", Priority(7)),
    ("urgent", Priority(9)),
];

impl Priority {
    /// The highest.
    pub const MAX: Self = Self(9);

    /// `None` above 9.
    pub fn new(level: u8) -> Option<Self> {
        (level <= Self::MAX.0).then_some(Self(level))
    }

    /// 0 to 9.
    pub fn level(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        DEFAULT_PRIORITY
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PRIORITY_NAMES.iter().find(|(_, it)| it == self) {
            Some((name, _)) => f.pad(name),
            None => f.pad(&self.0.to_string()),
        }
    }
}

impl FromStr for Priority {
    type Err = UnknownTerm;

    fn from_str(text: &str) -> Result<Self, UnknownTerm> {
        let named = PRIORITY_NAMES.iter().find(|(name, _)| *name == text);
        named
            .map(|(_, priority)| *priority)
            .or_else(|| text.parse().ok().and_then(Self::new))
            .ok_or_else(|| UnknownTerm {
                what: "priority",
                got: text.to_owned(),
                allowed: "0 to 9, low (2), normal (5), high (7), urgent (9)".to_owned(),
            })
    }
}

/// Until when it must be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deadline {
    /// At this time of the wall clock, in Unix milliseconds, as the clock stood when the task was submitted.
    At(i64),
    /// So many milliseconds after its submission.
    In(u64),
}

/// What becomes of a task when one that it depends on does not succeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDependencyFailure {
    /// It fails too.
    #[default]
    Fail,
    /// It is cancelled: not having run is no failure.
    Skip,
}

impl OnDependencyFailure {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

impl FromStr for OnDependencyFailure {
    type Err = UnknownTerm;

    fn from_str(text: &str) -> Result<Self, UnknownTerm> {
        match text {
            "fail" => Ok(Self::Fail),
            "skip" => Ok(Self::Skip),
            other => Err(UnknownTerm {
                what: "on_dependency_failure",
                got: other.to_owned(),
                allowed: "fail, skip".to_owned(),
            }),
        }
    }
}

/// What was asked for, apart from the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Who may do it.
    pub target: Target,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// Until when.
    #[serde(default)]
    pub deadline: Option<Deadline>,
    /// Tasks that must have succeeded before.
    #[serde(default)]
    pub after: Vec<TaskId>,
    /// What if one of them does not.
    #[serde(default)]
    pub on_dependency_failure: OnDependencyFailure,
    /// How often, and with which pauses.
    #[serde(default)]
    pub retry: Retry,
}

impl Terms {
    /// Terms that say nothing but who.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            priority: DEFAULT_PRIORITY,
            deadline: None,
            after: Vec::new(),
            on_dependency_failure: OnDependencyFailure::default(),
            retry: Retry::default(),
        }
    }
}
