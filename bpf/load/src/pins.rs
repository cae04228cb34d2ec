//! The directory of one broker's pins in bpffs: made, found again, removed.
//!
//! `/sys/fs/bpf/agentd/<instance>/<LAYOUT>-<hash of the object>/{maps,links}/`. The instance is the
//! id of the broker's cgroup2 subtree: a broker that is started again on the same subtree (a
//! delegated one) finds what the last one pinned, and pins whose subtree is no more belong to
//! nobody. The layout decides what is taken over, the hash only says what is loaded.
//!
//! Where bpffs is not mounted, the first broker mounts it and the last one unmounts it. Several
//! brokers begin and end at once: each holds a lock on `/sys/fs` meanwhile. Needs root, and
//! CAP_SYS_ADMIN to mount; makes no call of `bpf(2)`, so removal works after the right to that is
//! gone. Blocks on the lock only, for the length of others' few calls.

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::HashSet;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where bpffs belongs (`Documentation/bpf/`, file-hierarchy(7)).
const BPFFS: &str = "/sys/fs/bpf";
const PARENT: &str = "/sys/fs";
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// The source of a mount that a broker made, by which the last one knows that it may go.
const MOUNTED_BY_US: &CStr = c"agentd-bpf";
const DIRECTORY: &str = "agentd";

/// Why pins can't be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct PinError {
    pub what: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl PinError {
    pub(crate) fn new<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self {
            what,
            path,
            source: source.into(),
        }
    }
}

/// One broker's directory of pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    instance: PathBuf,
}

impl Pins {
    /// The pins of the broker with this subtree, whether they are there or not.
    pub fn of(subtree_id: u64) -> Self {
        let instance = Path::new(BPFFS).join(DIRECTORY).join(name(subtree_id));
        Self { instance }
    }

    pub fn path(&self) -> &Path {
        &self.instance
    }

    /// Makes the instance's directory, and mounts bpffs for it if need be. Removes instances whose
    /// subtree is not among the cgroups that `living` tells of; asked only if there are others, and
    /// believed only if it knows.
    pub fn make(&self, living: impl FnOnce() -> Option<HashSet<u64>>) -> Result<(), PinError> {
        let _lock = lock()?;
        if !is_mounted()? {
            let made = mount(
                MOUNTED_BY_US,
                BPFFS,
                c"bpf",
                MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
                c"mode=0700",
            );
            made.map_err(PinError::new("mounting bpffs on", Path::new(BPFFS)))?;
        }
        let all = Path::new(BPFFS).join(DIRECTORY);
        for path in [&all, &self.instance] {
            make_dir(path)?;
        }
        let others = subdirectories(&all).filter_map(|path| {
            let id = path.file_name().and_then(|name| id(name.to_str()?))?;
            (path != self.instance).then_some((path, id))
        });
        let others: Vec<_> = others.collect();
        if others.is_empty() {
            return Ok(());
        }
        // Asked under the lock: an instance that is there by now had its subtree before.
        let Some(living) = living() else {
            return Ok(());
        };
        for (path, id) in others {
            if !living.contains(&id) {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// The directory of this layout: the one that is there, or a new one.
    pub(crate) fn version(&self, layout: u32, hash: u64) -> Result<Version, PinError> {
        let prefix = format!("{layout}-");
        let mut there = subdirectories(&self.instance).filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(&prefix))
        });
        let last = self.instance.join(format!("{prefix}{hash:016x}"));
        let path = there.next().unwrap_or_else(|| last.clone());
        for path in [path.clone(), path.join("maps"), path.join("links")] {
            make_dir(&path)?;
        }
        Ok(Version { path, last })
    }

    /// Removes everything of this instance, and with it what is attached; then, if nobody else has pins, agentd's directory and
    /// the mount that a broker made. Nothing there is no error.
    pub fn remove(&self) -> Result<(), PinError> {
        let _lock = lock()?;
        if !is_mounted()? {
            return Ok(());
        }
        remove_tree(&self.instance)?;
        tidy()
    }
}

/// Removes the pins of every instance: on uninstalling, when no broker runs.
pub fn remove_all() -> Result<(), PinError> {
    let _lock = lock()?;
    if !is_mounted()? {
        return Ok(());
    }
    remove_tree(&Path::new(BPFFS).join(DIRECTORY))?;
    tidy()
}

/// One layout's directory of an instance.
#[derive(Debug)]
pub(crate) struct Version {
    path: PathBuf,
    /// What it is to be called.
    last: PathBuf,
}

impl Version {
    pub fn map(&self, name: &str) -> PathBuf {
        self.path.join("maps").join(name)
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.path.join("links").join(name)
    }

    /// What is attached.
    pub fn links(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.join("links"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// It is what its name is to say; other layouts go, which are attached until here.
    pub fn settle(self, instance: &Pins) -> Result<PathBuf, PinError> {
        if self.path != self.last {
            fs::rename(&self.path, &self.last).map_err(PinError::new("renaming", &self.path))?;
        }
        for other in subdirectories(&instance.instance) {
            if other != self.last {
                remove_tree(&other)?;
            }
        }
        Ok(self.last)
    }
}

fn name(subtree_id: u64) -> String {
    format!("{subtree_id:x}")
}

fn id(name: &str) -> Option<u64> {
    u64::from_str_radix(name, 16).ok()
}

/// Held by whoever makes, removes, mounts or unmounts.
fn lock() -> Result<OwnedFd, PinError> {
    let path = Path::new(PARENT);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = open(path, flags, Mode::empty()).map_err(PinError::new("opening", path))?;
    loop {
        match flock(&fd, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(fd),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(PinError::new("locking", path)(errno)),
        }
    }
}

fn is_mounted() -> Result<bool, PinError> {
    let path = Path::new(BPFFS);
    let stat = rustix::fs::statfs(path).map_err(PinError::new("statfs", path))?;
    Ok(stat.f_type as u64 == BPF_FS_MAGIC)
}

/// Removes agentd's directory if it is empty, and then the mount if a broker made it and it is empty too.
fn tidy() -> Result<(), PinError> {
    let bpffs = Path::new(BPFFS);
    let directory = bpffs.join(DIRECTORY);
    match fs::remove_dir(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(PinError::new("removing", &directory)(error)),
    }
    if is_empty(bpffs)? && mounted_by_us()? {
        match unmount(bpffs, UnmountFlags::empty()) {
            // Somebody has it open, or took it meanwhile: it is whoever's comes last.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(errno) => return Err(PinError::new("unmounting", bpffs)(errno)),
        }
    }
    Ok(())
}

/// Whether nobody has pins there. The kernel itself puts its iterators there (`maps.debug`, `progs.debug`).
fn is_empty(bpffs: &Path) -> Result<bool, PinError> {
    let mut entries = fs::read_dir(bpffs).map_err(PinError::new("reading", bpffs))?;
    Ok(entries.all(|entry| {
        entry.is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "debug"))
    }))
}

/// Whether the topmost mount there has our mark as its source.
fn mounted_by_us() -> Result<bool, PinError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(PinError::new("reading", path))?;
    let mut at_bpffs = text
        .lines()
        .rev()
        .filter(|line| line.split(' ').nth(4) == Some(BPFFS));
    let source = at_bpffs
        .next()
        .and_then(|line| line.split_once(" - ")?.1.split(' ').nth(1));
    Ok(source.is_some_and(|source| source.as_bytes() == MOUNTED_BY_US.to_bytes()))
}

fn make_dir(path: &Path) -> Result<(), PinError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(PinError::new("making", path)(error))
        }
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PinError::new("removing", path)(error))
        }
        _ => Ok(()),
    }
}

fn subdirectories(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}
