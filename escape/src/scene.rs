//! What the inside is told about the victims: where they are, never what their secret is.
//!
//! One JSON object, handed over as an argument, since a file would have to be shown in each sandbox. Pure data.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Descriptors that the session inherits unless somebody closes them.
pub const FD_FILE: i32 = 40;
pub const FD_ROOT: i32 = 41;
pub const FD_TCP: i32 = 42;
pub const FD_WRITE: i32 = 43;
pub const FD_PIDFD: i32 = 44;
pub const FD_UNIX: i32 = 45;

/// Variables that the session's environment holds, each with the secret.
pub const SECRET_VARIABLES: [&str; 3] = ["AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "SSH_AUTH_SOCK"];

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Scene {
    /// The case that is being tried.
    #[serde(default)]
    pub case: String,
    /// Names this run in process arguments and file names; no secret.
    pub mark: String,
    /// This program, as the sandbox shows it.
    pub program: PathBuf,
    /// Not in the view.
    pub outside: PathBuf,
    /// Granted read-only.
    pub shared: PathBuf,
    /// The workspace.
    pub work: PathBuf,
    /// The caller's HOME.
    pub home: PathBuf,
    pub uid: u32,
    pub victim: Victim,
    pub tcp: u16,
    pub tcp6: u16,
    pub udp: u16,
    /// An address of the host that is not loopback, where it has one.
    pub address: Option<String>,
    pub unix: PathBuf,
    pub unix_dgram: PathBuf,
    pub abstract_stream: String,
    pub abstract_dgram: String,
    /// What the host keeps trying to connect to.
    pub abstract_wanted: String,
    pub tcp_wanted: u16,
    /// System V: keys and ids.
    pub shm_key: i32,
    pub shm_id: i32,
    pub sem_key: i32,
    pub sem_id: i32,
    pub msg_key: i32,
    pub msg_id: i32,
    pub shm_name: String,
    pub mq_name: String,
    pub fifo: PathBuf,
    /// The victim's key and its description.
    pub key_id: i32,
    pub key_name: String,
    /// agentd's own directory, where it runs.
    pub runtime_dir: Option<PathBuf>,
}

/// A process of the caller's, outside.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Victim {
    pub pid: i32,
    /// Where its secret stands in memory.
    pub secret_at: u64,
    /// A word that should stay as it is.
    pub word_at: u64,
    /// Its open secret file.
    pub fd: i32,
}

impl Scene {
    /// The case's own file outside the view.
    pub fn outside(&self) -> PathBuf {
        self.outside.join(&self.case)
    }

    /// A name beside it that is not there yet.
    pub fn outside_new(&self) -> PathBuf {
        self.outside.join(format!("{}.new", self.case))
    }

    /// The case's own file in the read-only folder.
    pub fn shared(&self) -> PathBuf {
        self.shared.join(&self.case)
    }

    pub fn shared_new(&self) -> PathBuf {
        self.shared.join(format!("{}.new", self.case))
    }

    /// The case's own name in the workspace.
    pub fn own(&self) -> PathBuf {
        self.work.join("own").join(&self.case)
    }

    /// What the host planted for this case in the workspace.
    pub fn planted(&self) -> PathBuf {
        self.work.join("planted").join(&self.case)
    }

    /// The argument by which the host finds a process of this case.
    pub fn process_mark(&self) -> String {
        format!("{}-{}", self.mark, self.case)
    }
}

/// A path for the kernel.
pub fn c(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).expect("paths of the scene have no NUL")
}
