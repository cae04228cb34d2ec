//! The host's side: everything that an attack could harm, raised before the session and looked at after it.
//!
//! Runs outside the sandbox, as root or as the caller. As root, what belongs to the caller is given to the uid that the
//! session runs as. All of it goes when [`Victims`] is dropped: the folder, the process, the servers, memory and keys.
//! Fails when the host refuses one of them, with its name; nothing is raised by half.

pub mod descriptors;
pub mod files;
pub mod ipc;
pub mod process;
pub mod servers;

use std::path::{Path, PathBuf};

use crate::case::Case;
use crate::scene::Scene;

#[derive(Debug, thiserror::Error)]
#[error("raise {what}: {source}")]
pub struct RaiseError {
    pub what: String,
    #[source]
    pub source: std::io::Error,
}

/// Names what could not be raised.
pub(crate) trait Raise<T> {
    fn raise(self, what: impl Into<String>) -> Result<T, RaiseError>;
}

impl<T> Raise<T> for std::io::Result<T> {
    fn raise(self, what: impl Into<String>) -> Result<T, RaiseError> {
        self.map_err(|source| RaiseError {
            what: what.into(),
            source,
        })
    }
}

impl<T> Raise<T> for Result<T, crate::raw::Refused> {
    fn raise(self, what: impl Into<String>) -> Result<T, RaiseError> {
        self.map_err(|refused| RaiseError {
            what: format!("{} ({})", what.into(), refused.what),
            source: std::io::Error::from_raw_os_error(refused.errno),
        })
    }
}

/// Where and for whom.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The uid and gid that the session runs as.
    pub uid: u32,
    /// An existing folder that sandboxes don't show by themselves.
    pub place: PathBuf,
    pub runtime_dir: Option<PathBuf>,
    /// This program.
    pub program: PathBuf,
}

#[derive(Debug)]
pub struct Victims {
    pub scene: Scene,
    /// What no session may learn.
    pub secret: String,
    pub files: files::Files,
    pub servers: servers::Servers,
    pub process: process::Process,
    pub descriptors: descriptors::Descriptors,
    // Held for its end only.
    _ipc: ipc::Ipc,
}

impl Victims {
    pub fn raise(ground: &Ground, cases: &[Case]) -> Result<Self, RaiseError> {
        let mark = format!("agentd-escape-{}", random(6).raise("a mark")?);
        let secret = format!("SECRET-{}", random(24).raise("a secret")?);
        let files = files::Files::raise(ground, &mark, &secret, cases)?;
        let mut scene = files.scene(&mark, ground);
        // Before any thread exists: this forks.
        let process = process::Process::raise(ground.uid, &secret, &scene.outside.join("open"))?;
        scene.victim = process.describe();
        let ipc = ipc::Ipc::raise(ground.uid, &mark, &secret, &mut scene)?;
        let servers = servers::Servers::raise(ground.uid, &secret, &mut scene)?;
        let descriptors = descriptors::Descriptors::raise(&scene)?;
        Ok(Self {
            scene,
            secret,
            files,
            servers,
            process,
            descriptors,
            _ipc: ipc,
        })
    }

    /// What the session's environment holds besides the ordinary.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = crate::scene::SECRET_VARIABLES
            .iter()
            .map(|name| ((*name).to_owned(), self.secret.clone()))
            .collect();
        all.extend(
            crate::cases::fds::INJECTED
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        all
    }
}

/// `length` random bytes in hexadecimal.
pub fn random(length: usize) -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Gives a path to the caller, where we may; as an ordinary user it is the caller's already.
pub(crate) fn give(path: &Path, uid: u32) -> std::io::Result<()> {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        std::os::unix::fs::lchown(path, Some(uid), Some(uid))?;
    }
    Ok(())
}
