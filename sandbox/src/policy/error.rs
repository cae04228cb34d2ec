//! What can be wrong with a policy, in words that lead to the remedy.

use super::Origin;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The policy loads; this line may not do what it seems to.
    Warning,
    /// The policy does not load.
    Error,
}

/// One finding, from loading (errors) or from lint (warnings).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDiagnostic {
    pub severity: Severity,
    pub origin: Origin,
    /// The key, such as `limits.memory`; empty when the text is not TOML.
    pub key: String,
    /// The offending value as written, shortened; empty when the key itself is the trouble.
    pub value: String,
    /// What is wrong.
    pub problem: String,
    /// What is allowed instead, or what to do.
    pub help: String,
}

impl fmt::Display for PolicyDiagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}", self.key)?;
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

/// Why a policy did not load.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("no policy is named {name:?}; there are: {}{}", known.join(", "),
        match near { Some(n) => format!(" (did you mean {n:?}?)"), None => String::new() })]
    NotFound {
        name: String,
        near: Option<String>,
        known: Vec<String>,
    },
    #[error("policy file {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// Somebody else can have written it.
    #[error("policy file {}: {problem}; mend it with: {remedy}", path.display())]
    Untrusted {
        path: PathBuf,
        problem: String,
        remedy: String,
    },
    #[error("policy {name} extends itself: {}", chain.join(" extends "))]
    ExtendsCycle { name: String, chain: Vec<String> },
    /// Every finding, one per line, in file order.
    #[error("{}", list(.0))]
    Invalid(Vec<PolicyDiagnostic>),
}

impl PolicyError {
    /// The findings, where the error consists of findings.
    pub fn diagnostics(&self) -> &[PolicyDiagnostic] {
        match self {
            Self::Invalid(list) => list,
            _ => &[],
        }
    }
}

fn list(findings: &[PolicyDiagnostic]) -> String {
    findings
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}
