//! What the chain says about itself: that it was begun, that something was forgotten, that a start found the record
//! other than it was left. Rows of `chain_notes`, chained like every other row.

use serde::{Deserialize, Serialize};

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// A new record.
    Begun,
    /// A record from before the chain was taken in as it was.
    TakenIn,
    /// A damaged record was recovered: what could be read of it was taken in as it was.
    Recovered,
    /// Launches that had ended were forgotten.
    Forgot,
    /// A start found no head on file although the record had one.
    HeadLost,
    /// A start found less in the record than the head on file says there was.
    Cut,
    /// A start found other entries than the head on file says there were.
    Forked,
    /// A start found the last head signed with another key than its own.
    NewKey,
}

impl NoteKind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Begun,
        Self::TakenIn,
        Self::Recovered,
        Self::Forgot,
        Self::HeadLost,
        Self::Cut,
        Self::Forked,
        Self::NewKey,
    ];

    /// As it stands in the database and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::TakenIn => "taken-in",
            Self::Recovered => "recovered",
            Self::Forgot => "forgot",
            Self::HeadLost => "head-lost",
            Self::Cut => "cut",
            Self::Forked => "forked",
            Self::NewKey => "new-key",
        }
    }

    /// Whether it tells of something that should not have happened.
    pub fn is_incident(self) -> bool {
        matches!(
            self,
            Self::HeadLost | Self::Cut | Self::Forked | Self::NewKey
        )
    }
}

/// One note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Its number in the order of recording.
    pub seq: i64,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// What it is about.
    pub kind: NoteKind,
    /// One line for people.
    pub detail: String,
}
