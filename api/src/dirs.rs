//! Where the daemon's socket and state are: one answer for daemon and clients.
//!
//! Root: `/run/agentd` and `/var/lib/agentd`. A user: `$XDG_RUNTIME_DIR/agentd` (or
//! `/tmp/agentd-UID`) and `$XDG_STATE_HOME/agentd` (or `~/.local/state/agentd`).
//! `AGENTD_RUNTIME_DIR` and `AGENTD_STATE_DIR` win over both, the command line over everything.
//! Choosing is pure; only [`private_dir`] and [`check_private`] touch the file system.

use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::CONTROL_SOCKET;

/// Overrides the runtime directory.
pub const RUNTIME_DIR_VAR: &str = "AGENTD_RUNTIME_DIR";
/// Overrides the state directory.
pub const STATE_DIR_VAR: &str = "AGENTD_STATE_DIR";
/// Names the daemon's configuration file.
pub const CONFIG_VAR: &str = "AGENTD_CONFIG";

/// Runtime directory of the system's daemon.
pub const SYSTEM_RUNTIME_DIR: &str = "/run/agentd";
/// State directory of the system's daemon.
pub const SYSTEM_STATE_DIR: &str = "/var/lib/agentd";

/// What the choice of directories depends on.
#[derive(Debug, Clone, Default)]
pub struct DirEnv {
    pub uid: u32,
    pub agentd_runtime_dir: Option<PathBuf>,
    pub agentd_state_dir: Option<PathBuf>,
    pub xdg_runtime_dir: Option<PathBuf>,
    pub xdg_state_home: Option<PathBuf>,
    pub home: Option<PathBuf>,
}

/// A directory that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    #[error("neither HOME nor {STATE_DIR_VAR} is set: say where to keep state with --state-dir")]
    NoHome,
    #[error("can't create directory {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("can't look at directory {path}")]
    Stat {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{path} is not a private directory of uid {uid} (owner {owner}, mode {mode:o}): \
         remove it or choose another with --runtime-dir"
    )]
    NotPrivate {
        path: PathBuf,
        uid: u32,
        owner: u32,
        mode: u32,
    },
}

impl DirEnv {
    /// Reads this process's environment and effective uid. Empty and relative values count as
    /// unset, as the XDG specification demands.
    pub fn from_process() -> Self {
        let absolute = |name: &str| {
            let value = std::env::var_os(name).filter(|v: &OsString| !v.is_empty())?;
            Some(PathBuf::from(value)).filter(|p| p.is_absolute())
        };
        Self {
            uid: rustix::process::geteuid().as_raw(),
            agentd_runtime_dir: absolute(RUNTIME_DIR_VAR),
            agentd_state_dir: absolute(STATE_DIR_VAR),
            xdg_runtime_dir: absolute("XDG_RUNTIME_DIR"),
            xdg_state_home: absolute("XDG_STATE_HOME"),
            home: absolute("HOME"),
        }
    }

    /// Where a daemon started here serves.
    pub fn runtime_dir(&self, typed: Option<&Path>) -> PathBuf {
        if let Some(dir) = typed.or(self.agentd_runtime_dir.as_deref()) {
            return dir.to_owned();
        }
        if self.uid == 0 {
            return SYSTEM_RUNTIME_DIR.into();
        }
        match &self.xdg_runtime_dir {
            Some(dir) => dir.join("agentd"),
            None => PathBuf::from(format!("/tmp/agentd-{}", self.uid)),
        }
    }

    /// Where a daemon started here keeps records, logs and its database.
    pub fn state_dir(&self, typed: Option<&Path>) -> Result<PathBuf, DirError> {
        if let Some(dir) = typed.or(self.agentd_state_dir.as_deref()) {
            return Ok(dir.to_owned());
        }
        if self.uid == 0 {
            return Ok(SYSTEM_STATE_DIR.into());
        }
        match (&self.xdg_state_home, &self.home) {
            (Some(dir), _) => Ok(dir.join("agentd")),
            (None, Some(home)) => Ok(home.join(".local/state/agentd")),
            (None, None) => Err(DirError::NoHome),
        }
    }

    /// Where a client looks for a daemon, in order: what was typed or set, and nothing else, or
    /// the user's own and then the system's.
    pub fn candidates(&self, typed: Option<&Path>) -> Vec<PathBuf> {
        let own = self.runtime_dir(typed);
        if typed.is_some() || self.agentd_runtime_dir.is_some() || self.uid == 0 {
            return vec![own];
        }
        vec![own, SYSTEM_RUNTIME_DIR.into()]
    }
}

/// The control socket in a runtime directory.
pub fn control_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join(CONTROL_SOCKET)
}

/// Makes sure that `path` exists, is a directory of `uid` and nobody else can enter it; parents
/// are created likewise.
pub fn private_dir(path: &Path, uid: u32) -> Result<(), DirError> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|source| DirError::Create {
        path: path.to_owned(),
        source,
    })?;
    check_private(path, uid)
}

/// Checks that `path` is a directory (not a link to one) that only `uid` can write to and enter.
pub fn check_private(path: &Path, uid: u32) -> Result<(), DirError> {
    let stat = std::fs::symlink_metadata(path).map_err(|source| DirError::Stat {
        path: path.to_owned(),
        source,
    })?;
    if stat.is_dir() && stat.uid() == uid && stat.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(DirError::NotPrivate {
        path: path.to_owned(),
        uid,
        owner: stat.uid(),
        mode: stat.mode() & 0o7777,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> DirEnv {
        DirEnv {
            uid: 1000,
            home: Some("/home/alice".into()),
            ..DirEnv::default()
        }
    }

    #[test]
    fn root_uses_the_system_directories() {
        let env = DirEnv {
            xdg_runtime_dir: Some("/run/user/0".into()),
            ..DirEnv::default()
        };
        assert_eq!(env.runtime_dir(None), Path::new("/run/agentd"));
        assert_eq!(
            env.state_dir(None).expect("root"),
            Path::new("/var/lib/agentd")
        );
        assert_eq!(env.candidates(None), [Path::new("/run/agentd")]);
    }

    #[test]
    fn a_user_has_own_directories_and_falls_back_to_the_system_daemon() {
        let mut env = user();
        assert_eq!(env.runtime_dir(None), Path::new("/tmp/agentd-1000"));
        env.xdg_runtime_dir = Some("/run/user/1000".into());
        assert_eq!(
            env.candidates(None),
            [Path::new("/run/user/1000/agentd"), Path::new("/run/agentd")]
        );
        let state = env.state_dir(None).expect("home is set");
        assert_eq!(state, Path::new("/home/alice/.local/state/agentd"));
        env.home = None;
        let err = env.state_dir(None).expect_err("no home");
        assert!(err.to_string().contains("--state-dir"), "{err}");
    }

    #[test]
    fn what_was_typed_wins_and_is_the_only_candidate() {
        let mut env = user();
        env.agentd_runtime_dir = Some("/a".into());
        assert_eq!(env.candidates(None), [Path::new("/a")]);
        assert_eq!(env.candidates(Some(Path::new("/b"))), [Path::new("/b")]);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let uid = rustix::process::geteuid().as_raw();
        let dir = tmp.path().join("a/b");
        private_dir(&dir, uid).expect("fresh directory");
        private_dir(&dir, uid).expect("and again");
        assert!(check_private(&dir, uid + 1).is_err());
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).expect("symlink");
        assert!(check_private(&link, uid).is_err());
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let err = check_private(&dir, uid).expect_err("open to all");
        assert!(err.to_string().contains("mode 755"), "{err}");
    }
}
