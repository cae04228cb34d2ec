//! The lines between the inside and the host: one JSON object per case, and the verdicts that the host makes of them.
//!
//! Pure data. The inside's word counts only where no effect could show outside ([`crate::case::Effect::Inside`]).

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Stopped,
    Escaped,
    /// It was done by the runtime's own kernel, in user space, and reached nothing of the host's.
    Contained,
    Unavailable,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Escaped => "escaped",
            Self::Contained => "contained",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What the inside says of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub id: String,
    pub outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub errno: Option<i32>,
    pub detail: String,
    /// What was read, for the host to compare.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loot: Option<String>,
}

/// What the host concludes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub id: String,
    pub family: String,
    pub title: String,
    pub outcome: Outcome,
    pub errno: Option<i32>,
    pub detail: String,
    /// The line of the policy that opens an escaped case.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub opened_by: Option<String>,
    /// Why a contained case reaches nothing of the host's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub contained: Option<String>,
}

/// A whole session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// The catalogue's digest ([`crate::catalogue::digest`]).
    pub suite: String,
    pub verdicts: Vec<Verdict>,
    /// Whether the session came to every case: one that broke off proves nothing.
    pub whole: bool,
    /// How the session itself ended, and what it said, when it went wrong.
    pub session: String,
}

impl Judgement {
    pub fn count(&self, outcome: Outcome) -> usize {
        self.verdicts
            .iter()
            .filter(|verdict| verdict.outcome == outcome)
            .count()
    }

    /// What escaped although no line of the policy opens it.
    pub fn unopened(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts
            .iter()
            .filter(|verdict| verdict.outcome == Outcome::Escaped && verdict.opened_by.is_none())
    }
}
