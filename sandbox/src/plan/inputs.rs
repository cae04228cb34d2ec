//! The facts of one launch.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Under whose rights the broker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One kernel uid per agent, idmapped grants, cgroups of its own.
    Root,
    /// The caller's uid, mapped to itself.
    User,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// A path the caller opened and handed over. The wire plan refers to grants by their index in this list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantInput {
    pub dst: PathBuf,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StdioMode {
    Pty { rows: u16, cols: u16 },
    Pipes,
    Null,
}

/// A file put into HOME before the agent starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HomeFile {
    /// Relative to HOME, without `..`.
    pub path: PathBuf,
    pub mode: u32,
    pub content: Vec<u8>,
}

/// One launch, as agentd knows it.
#[derive(Debug, Clone)]
pub struct LaunchInputs {
    pub argv: Vec<String>,
    /// Where the program starts; the workspace, or HOME, when `None`.
    pub cwd: Option<PathBuf>,
    /// The caller's environment, which `[env] pass` filters.
    pub caller_env: BTreeMap<String, String>,
    /// Set by the daemon or a driver, over everything else.
    pub extra_env: BTreeMap<String, String>,
    /// Where the workspace appears inside; it is one of `grants`.
    pub workspace: Option<PathBuf>,
    pub grants: Vec<GrantInput>,
    pub stdio: StdioMode,
    /// Inside ids, never 0.
    pub uid: u32,
    pub gid: u32,
    pub user_name: String,
    /// The caller's HOME, which `~` in a policy stands for.
    pub caller_home: Option<PathBuf>,
    /// Where the private HOME is. `None`: at the caller's own HOME path, or `/home/agent` if that won't do.
    pub home: Option<PathBuf>,
    pub home_files: Vec<HomeFile>,
    /// The agent's name, also its host name.
    pub name: String,
    pub mode: Mode,
    pub lifeline_grace_ms: u32,
}
