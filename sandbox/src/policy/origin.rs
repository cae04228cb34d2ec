//! Where a value was written.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A line of a policy file, or a default of this crate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The file as it was named, such as `/etc/agentd/policy/team.toml`, or `coding (built in)`.
    pub file: String,
    /// Counted from 1; 0 when there is no line (a default).
    pub line: u32,
}

impl Origin {
    pub fn new(file: impl Into<String>, line: u32) -> Self {
        Self {
            file: file.into(),
            line,
        }
    }

    /// The origin of something that no file says.
    pub fn built_in(what: &str) -> Self {
        Self {
            file: format!("{what} (built in)"),
            line: 0,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// A value and the line that set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Valued<T> {
    pub value: T,
    pub origin: Origin,
}

impl<T> Valued<T> {
    pub fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }

    /// A value that no policy file sets.
    pub fn default_of(value: T) -> Self {
        Self {
            value,
            origin: Origin::built_in("default"),
        }
    }
}
