//! What can be wrong with units, and where a value was written.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A line of a unit's file or drop-in, or a default of this crate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The file as it was named, such as `/etc/agentd/agents/coder.toml`.
    pub file: String,
    /// Counted from 1; 0 when there is no line.
    pub line: u32,
}

impl Origin {
    /// A place in a file.
    pub fn new(file: impl Into<String>, line: u32) -> Self {
        Self {
            file: file.into(),
            line,
        }
    }

    /// The origin of a value that no file sets.
    pub fn default_value() -> Self {
        Self::new("default", 0)
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
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Valued<T> {
    pub value: T,
    pub origin: Origin,
}

/// One mistake: where, what, and what is allowed instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Where it stands.
    pub origin: Origin,
    /// The key, such as `restart.delay`; empty when the text is not TOML.
    pub key: String,
    /// The value as written, shortened; empty when the key itself is the trouble.
    pub value: String,
    /// What is wrong.
    pub problem: String,
    /// What is allowed, or what to do.
    pub help: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
            if !self.value.is_empty() {
                write!(f, " = {}", self.value)?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.problem)?;
        if !self.help.is_empty() {
            write!(f, "; {}", self.help)?;
        }
        Ok(())
    }
}

/// Units that do not load: every mistake, one a line, by file and line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct UnitError(pub Vec<Diagnostic>);

/// What is wrong with a value, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub problem: String,
    pub help: String,
}

impl Problem {
    pub(super) fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            help: help.into(),
        }
    }

    pub(super) fn at(self, origin: Origin, key: &str, value: &str) -> Diagnostic {
        Diagnostic {
            origin,
            key: key.to_owned(),
            value: shorten(value),
            problem: self.problem,
            help: self.help,
        }
    }
}

fn shorten(text: &str) -> String {
    let mut line = text.lines().next().unwrap_or_default().to_owned();
    if let Some((at, _)) = line.char_indices().nth(80) {
        line.truncate(at);
        line.push('…');
    }
    line
}
