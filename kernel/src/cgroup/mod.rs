//! Control groups for agents: limits, killing, freezing, figures.
//!
//! A host has one cgroup2 hierarchy with all controllers, or (hybrid) memory, pids and cpu on version 1 hierarchies and a
//! cgroup2 mount without controllers, or anything between. [`Layout`] finds out which; [`Subtree`] is this process's own
//! directory in each hierarchy, nested under the cgroup it runs in; [`Group`] is one agent's directory in the subtree.
//!
//! Where the own cgroup2 directory can't have controllers because strangers live in it (a login session), the subtree goes to
//! the top of the hierarchy, if this process may write there.
//!
//! Never touches a cgroup that it did not make, except to enable controllers in its own and, on cgroup2, to move the
//! processes it was told to out of the way (a cgroup2 directory holds processes or controllers, not both). Runs in the
//! broker, single-threaded, as root or as a user to whom a cgroup was delegated. A controller that can't be used is absent
//! from [`Subtree::controllers`]; failing calls are [`CgroupError`]s with the file concerned.

mod group;
mod layout;
mod subtree;

pub use group::{CpuQuota, Freeze, Group, Limits, Removal, Usage};
pub use layout::{Hierarchy, Layout, unified_depth, unified_mount};
pub use subtree::Subtree;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A controller that limits agents, or accounts for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Controller {
    Memory,
    Pids,
    Cpu,
    /// Version 1 only: cgroup2 accounts for processor time without a controller.
    Cpuacct,
    /// Version 1 only: on cgroup2 devices are a matter of BPF programs.
    Devices,
}

impl Controller {
    pub(crate) const ALL: [Self; 5] = [
        Self::Memory,
        Self::Pids,
        Self::Cpu,
        Self::Cpuacct,
        Self::Devices,
    ];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Devices => "devices",
        }
    }
}

/// A cgroup operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct CgroupError {
    /// What was done: "write 64 to", "create", …
    pub operation: String,
    pub path: PathBuf,
    pub source: io::Error,
}

impl CgroupError {
    pub(crate) fn new(
        operation: impl Into<String>,
        path: impl Into<PathBuf>,
        source: io::Error,
    ) -> Self {
        Self {
            operation: operation.into(),
            path: path.into(),
            source,
        }
    }
}

/// Writes a control file in one call (the kernel takes each write as one command).
pub(crate) fn write_file(path: &Path, value: &str) -> Result<(), CgroupError> {
    let write = || {
        fs::OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all(value.as_bytes())
    };
    write().map_err(|source| CgroupError::new(format!("write {value} to"), path, source))
}

pub(crate) fn make_dir(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir(path).map_err(|source| CgroupError::new("create", path, source))
}

/// Reads a small control file; `None` if it isn't there or can't be read.
pub(crate) fn read_file(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}
