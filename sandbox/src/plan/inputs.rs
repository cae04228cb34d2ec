//! The facts of one launch.

use super::PlanRefused;
pub use agentd_kernel::grant::Access;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Under whose rights the broker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One kernel uid per agent, idmapped grants, cgroups of its own.
    Root,
    /// The caller's uid, mapped to itself.
    User,
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

/// The TLS roots that programs inside have to trust, instead of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    /// Where this host keeps its bundle; the folder around it is hidden inside.
    pub path: PathBuf,
    /// Certificates in PEM form.
    pub pem: Vec<u8>,
}

/// One launch, as agentd knows it.
#[derive(Debug, Clone)]
pub struct LaunchInputs {
    pub argv: Vec<String>,
    /// The program as resolved on the caller's side, if that differs from an absolute `argv[0]`; a read-only grant of
    /// it needs no line in the policy.
    pub exe_hint: Option<PathBuf>,
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
    /// `None` leaves the host's own roots in place.
    pub trust: Option<TrustBundle>,
    /// The agent's name, also its host name.
    pub name: String,
    pub mode: Mode,
    pub lifeline_grace_ms: u32,
    /// The host's `/etc/resolv.conf`, for a sandbox in the host's network.
    pub resolver: Option<Vec<u8>>,
    /// Frames to other agents may go by the direct path: agentd offers it, and the kernel carries them.
    pub direct: bool,
}

impl LaunchInputs {
    /// Whether this very path is named as the program.
    pub(crate) fn names_program(&self, path: &Path) -> bool {
        self.exe_hint.as_deref() == Some(path) || self.argv.first().map(Path::new) == Some(path)
    }

    /// Whether a grant at this path can be of the program: what is named, or a program of the bare name in `argv[0]`,
    /// which the caller found on its own PATH.
    pub(crate) fn is_program(&self, path: &Path) -> bool {
        let bare = self
            .argv
            .first()
            .filter(|a| !a.contains('/'))
            .map(OsStr::new);
        self.names_program(path) || (bare.is_some() && path.file_name() == bare)
    }

    /// Refuses what no plan could carry.
    pub(crate) fn check(&self) -> Result<(), PlanRefused> {
        let input = |what: &str, problem: &str, allowed: &str| {
            Err(PlanRefused::Input {
                what: what.into(),
                problem: problem.into(),
                allowed: allowed.into(),
            })
        };
        if self.argv.first().is_none_or(String::is_empty) {
            return input("command", "there is none", "name the program to run");
        }
        if self.uid == 0 || self.gid == 0 {
            return input(
                "inside ids",
                "an agent is never uid or gid 0",
                "use the caller's, or 1000 for root",
            );
        }
        if let Some(workspace) = &self.workspace
            && !self.grants.iter().any(|g| g.dst == *workspace)
        {
            return input(
                &format!("workspace {}", workspace.display()),
                "it was not handed over with the launch, as for a policy that does not show it",
                "name ${workspace} under fs.read, fs.write or fs.scratch of the policy, or launch without a workspace",
            );
        }
        for file in &self.home_files {
            let plain = file
                .path
                .components()
                .all(|c| matches!(c, std::path::Component::Normal(_)));
            if !plain || file.path.as_os_str().is_empty() {
                return input(
                    &format!("home file {}", file.path.display()),
                    "the path is not a plain one below HOME",
                    "name it relative to HOME, without . and ..",
                );
            }
        }
        let variables = self.caller_env.iter().chain(&self.extra_env);
        if let Some((name, _)) = variables
            .into_iter()
            .find(|(n, v)| n.is_empty() || n.contains(['=', '\0']) || v.contains('\0'))
        {
            return input(
                &format!("environment variable {name:?}"),
                "its name is empty or has an equals sign, or there is a NUL",
                "use NAME=value",
            );
        }
        Ok(())
    }
}
