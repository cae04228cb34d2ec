//! This process's own directory in each hierarchy, in which agents' groups are made.

use super::layout::DAEMON_LEAF;
use super::{CgroupError, Controller, Group, Hierarchy, Layout, make_dir, read_file, write_file};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const PREFIX: &str = "agentd-";
const GROUP_PREFIX: &str = "agent-";

/// The subtree `agentd-<pid>` in every usable hierarchy, or one delegated directory. Each directory
/// is locked while its owner lives (or a process forked from it), so that the next agentd can tell
/// a leftover from a neighbour. Call [`Subtree::remove`] at the end; dropping removes nothing.
#[derive(Debug)]
pub struct Subtree {
    unified: Option<PathBuf>,
    /// What `unified` enables for its children.
    unified_controllers: Vec<Controller>,
    v1: Vec<Hierarchy>,
    /// Whether the directories are ours to remove.
    made: bool,
    /// Held for their locks.
    _locks: Vec<OwnedFd>,
}

impl Subtree {
    /// Makes the subtree wherever `layout` allows, after removing leftovers of dead owners. On cgroup2 the processes in
    /// `movable` step aside into a leaf if the own cgroup can't have controllers otherwise.
    ///
    /// Where nothing can be made the result has no controllers: a host without usable cgroups is not an error.
    pub fn create(layout: &Layout, name: u32, movable: &[i32]) -> Self {
        let mut locks = Vec::new();
        let mut place = |own: &Path| {
            sweep(own);
            let (path, lock) = make_locked(own, name).ok()?;
            locks.push(lock);
            Some(path)
        };
        let v1 = layout
            .v1
            .iter()
            .filter_map(|hierarchy| {
                let own = place(&hierarchy.own)?;
                Some(Hierarchy {
                    own,
                    controllers: hierarchy.controllers.clone(),
                })
            })
            .collect();
        let mut unified = None;
        let mut unified_controllers = Vec::new();
        if let Some(hierarchy) = &layout.unified {
            let own = (
                &hierarchy.own,
                enable(&hierarchy.own, &hierarchy.controllers, movable),
            );
            let top = layout.unified_top.as_ref();
            let top = top.map(|top| (&top.own, enable(&top.own, &top.controllers, &[])));
            // Strangers in the own cgroup (a login session) keep controllers out of it; the top has no such rule.
            let top = top.filter(|(_, enabled)| enabled.len() > own.1.len());
            for (base, enabled) in top.into_iter().chain([own]) {
                if let Some(path) = place(base) {
                    unified_controllers = enable(&path, &enabled, &[]);
                    unified = Some(path);
                    break;
                }
            }
        }
        Self {
            unified,
            unified_controllers,
            v1,
            made: true,
            _locks: locks,
        }
    }

    /// Uses `path`, a cgroup2 directory that was delegated to this process and holds no processes itself, and the groups
    /// that an earlier owner may have left in it. It is made if it isn't there, and stays at the end.
    ///
    /// # Errors
    /// It can't be made, is no cgroup2 directory, or another process has locked it.
    pub fn delegated(path: &Path) -> Result<Self, CgroupError> {
        if !path.is_dir() {
            make_dir(path)?;
        }
        let listed = path.join("cgroup.controllers");
        let listed = fs::read_to_string(&listed)
            .map_err(|source| CgroupError::new("read", listed, source))?;
        let lock = lock(path).map_err(|source| CgroupError::new("lock", path, source))?;
        let offered = Controller::ALL.into_iter().filter(|controller| {
            listed
                .split_whitespace()
                .any(|name| name == controller.name())
        });
        Ok(Self {
            unified: Some(path.to_path_buf()),
            unified_controllers: enable(path, &offered.collect::<Vec<_>>(), &[]),
            v1: Vec::new(),
            made: false,
            _locks: vec![lock],
        })
    }

    /// The controllers that limit or account for agents here.
    pub fn controllers(&self) -> impl Iterator<Item = Controller> {
        let v1 = self
            .v1
            .iter()
            .flat_map(|hierarchy| hierarchy.controllers.iter());
        v1.chain(&self.unified_controllers).copied()
    }

    /// Whether groups have a cgroup2 directory, and with it kill, freeze and an id.
    pub fn has_unified(&self) -> bool {
        self.unified.is_some()
    }

    /// The cgroup2 directory that groups are made in.
    pub fn unified_path(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// Whether removing the subtree takes `CAP_DAC_OVERRIDE` even as root: the root directories of version 1 hierarchies
    /// are mode 0555.
    pub fn removal_needs_override(&self) -> bool {
        let mut parents = self.directories().filter_map(Path::parent);
        self.made
            && parents.any(|parent| {
                fs::metadata(parent).is_ok_and(|metadata| metadata.mode() & 0o200 == 0)
            })
    }

    /// Makes the group `agent-<number>`.
    pub fn group(&self, number: u32) -> Result<Group, CgroupError> {
        let (unified, controllers, v1) = self.places(number);
        Group::create(unified, controllers, v1)
    }

    /// The group `agent-<number>` of a process that used the subtree before; `None` unless it is whole.
    pub fn existing(&self, number: u32) -> Option<Group> {
        let (unified, controllers, v1) = self.places(number);
        Group::open(unified, controllers, v1)
    }

    /// Whose groups are there.
    pub fn numbers(&self) -> BTreeSet<u32> {
        let groups = self.directories().flat_map(directories);
        groups.filter_map(|group| number(&group)).collect()
    }

    fn directories(&self) -> impl Iterator<Item = &Path> {
        let v1 = self.v1.iter().map(|hierarchy| hierarchy.own.as_path());
        v1.chain(self.unified.as_deref())
    }

    fn places(&self, number: u32) -> (Option<PathBuf>, Vec<Controller>, Vec<Hierarchy>) {
        let name = format!("{GROUP_PREFIX}{number}");
        let v1 = self.v1.iter().map(|hierarchy| {
            let own = hierarchy.own.join(&name);
            Hierarchy {
                own,
                controllers: hierarchy.controllers.clone(),
            }
        });
        let unified = self.unified.as_ref().map(|base| base.join(&name));
        (unified, self.unified_controllers.clone(), v1.collect())
    }

    /// Removes the subtree's directories. Groups still in use keep theirs: the first such failure is returned, after all
    /// others were removed.
    pub fn remove(self) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for path in self.directories() {
            for group in directories(path).filter(|group| number(group).is_some()) {
                // What is busy makes the next call fail, whose error is the one to return.
                fs::remove_dir(group).ok();
            }
            if !self.made {
                continue;
            }
            match fs::remove_dir(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    result = result.and(Err(CgroupError::new("remove", path, source)));
                }
                _ => {}
            }
        }
        result
    }
}

fn make_locked(own: &Path, name: u32) -> Result<(PathBuf, OwnedFd), CgroupError> {
    let path = own.join(format!("{PREFIX}{name}"));
    loop {
        // There already: this process had another program before (an upgrade in place), or the kernel used the pid again.
        let operation = if path.is_dir() {
            FlockOperation::NonBlockingLockExclusive
        } else {
            make_dir(&path)?;
            // Only somebody who sweeps can be at what was made just now, and not for long.
            FlockOperation::LockExclusive
        };
        match lock_by(&path, operation) {
            // Swept between being made and being locked: what is locked is no longer there.
            Ok(lock) if !is_at(&lock, &path) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(lock) => return Ok((path, lock)),
            Err(source) => return Err(CgroupError::new("lock", &path, source)),
        }
    }
}

/// Whether `held` is what is at `path`.
fn is_at(held: &OwnedFd, path: &Path) -> bool {
    let Ok(held) = fstat(held) else { return false };
    fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (held.st_dev, held.st_ino))
}

fn lock(path: &Path) -> io::Result<OwnedFd> {
    lock_by(path, FlockOperation::NonBlockingLockExclusive)
}

fn lock_by(path: &Path, operation: FlockOperation) -> io::Result<OwnedFd> {
    let fd = open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    flock(&fd, operation)?;
    Ok(fd)
}

/// Removes what a killed broker left in `own`: empty `agentd-*` subtrees that nobody has locked. Best effort: whatever is
/// in use, or not ours to remove, stays.
fn sweep(own: &Path) {
    for subtree in directories(own) {
        let named = subtree
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix(PREFIX));
        if named.is_none_or(|number| number.parse::<u32>().is_err()) {
            continue;
        }
        let Ok(held) = lock(&subtree) else { continue };
        if !is_at(&held, &subtree) {
            // Gone since, and perhaps somebody's anew.
            continue;
        }
        for group in directories(&subtree) {
            if fs::remove_dir(&group).is_err() {
                break;
            }
        }
        fs::remove_dir(&subtree).ok();
    }
}

/// Which agent's group a directory is.
fn number(group: &Path) -> Option<u32> {
    let name = group.file_name()?.to_str()?;
    name.strip_prefix(GROUP_PREFIX)?.parse().ok()
}

fn directories(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

/// Enables what can be enabled of `wanted` for the children of `path`; returns what is enabled.
///
/// Never while processes are in `path` itself: memory would be refused, but cpu and pids would not, and make of `path` the
/// root of a threaded subtree, whose children take no processes (Documentation/admin-guide/cgroup-v2.rst, "Threads").
fn enable(path: &Path, wanted: &[Controller], movable: &[i32]) -> Vec<Controller> {
    let file = path.join("cgroup.subtree_control");
    if is_root(path) || step_aside(path, movable) {
        for controller in wanted {
            // What is refused is not among those read below.
            write_file(&file, &format!("+{}", controller.name())).ok();
        }
    }
    let enabled = read_file(&file).unwrap_or_default();
    let is_enabled = |controller: &&Controller| {
        enabled
            .split_whitespace()
            .any(|name| name == controller.name())
    };
    wanted.iter().filter(is_enabled).copied().collect()
}

/// Whether a directory is the root of the hierarchy: it alone has no type, and may have processes besides controllers.
fn is_root(path: &Path) -> bool {
    !path.join("cgroup.type").exists()
}

/// Moves those of `movable` that are directly in `path` into its daemon leaf; whether none is left there.
fn step_aside(path: &Path, movable: &[i32]) -> bool {
    let Some(members) = read_file(&path.join("cgroup.procs")) else {
        return false;
    };
    let members: Vec<i32> = members
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    if members.is_empty() {
        return true;
    }
    if !members.iter().all(|pid| movable.contains(pid)) {
        return false;
    }
    let leaf = path.join(DAEMON_LEAF);
    if !leaf.is_dir() && make_dir(&leaf).is_err() {
        return false;
    }
    members
        .iter()
        .all(|pid| write_file(&leaf.join("cgroup.procs"), &pid.to_string()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::own_descriptors;

    fn v1_layout(own: &Path) -> Layout {
        Layout {
            unified: None,
            unified_top: None,
            v1: vec![Hierarchy {
                own: own.to_path_buf(),
                controllers: vec![Controller::Pids],
            }],
        }
    }

    #[test]
    fn whoever_starts_while_others_sweep_keeps_what_it_made() {
        own_descriptors();
        let folder = tempfile::tempdir().expect("tempdir");
        let own = folder.path();
        std::thread::scope(|scope| {
            for name in 1..=4 {
                scope.spawn(move || {
                    for _ in 0..500 {
                        let subtree = Subtree::create(&v1_layout(own), name, &[]);
                        let made = own.join(format!("agentd-{name}"));
                        assert!(made.is_dir(), "{} was swept", made.display());
                        subtree.remove().expect("removed");
                    }
                });
            }
        });
    }

    #[test]
    fn leftovers_of_the_dead_are_swept_and_neighbours_kept() {
        own_descriptors();
        let folder = tempfile::tempdir().expect("tempdir");
        let own = folder.path();
        for path in ["agentd-1/agent-1", "agentd-1/agent-2", "agentd-x", "other"] {
            fs::create_dir_all(own.join(path)).expect("mkdir");
        }
        let neighbour = Subtree::create(&v1_layout(own), 2, &[]);
        assert!(!own.join("agentd-1").exists(), "leftover swept");
        let subtree = Subtree::create(&v1_layout(own), 3, &[]);
        assert!(own.join("agentd-2").exists(), "locked by its owner");
        assert!(
            own.join("agentd-x").exists() && own.join("other").exists(),
            "not ours"
        );
        assert_eq!(
            subtree.controllers().collect::<Vec<_>>(),
            [Controller::Pids]
        );
        subtree.remove().expect("remove");
        neighbour.remove().expect("remove");
        assert!(!own.join("agentd-2").exists() && !own.join("agentd-3").exists());
    }

    #[test]
    fn a_successor_finds_the_groups_and_the_last_one_removes_them() {
        own_descriptors();
        let folder = tempfile::tempdir().expect("tempdir");
        let own = folder.path();
        let first = Subtree::create(&v1_layout(own), 5, &[]);
        first.group(1).expect("group");
        first.group(7).expect("group");
        assert!(
            Subtree::create(&v1_layout(own), 5, &[]).v1.is_empty(),
            "locked"
        );
        drop(first);
        let second = Subtree::create(&v1_layout(own), 5, &[]);
        assert_eq!(
            second.numbers(),
            BTreeSet::from([]),
            "empty leftovers are swept"
        );
        second.group(3).expect("group");
        assert_eq!(second.numbers(), BTreeSet::from([3]));
        assert!(second.existing(3).is_some() && second.existing(4).is_none());
        second.remove().expect("remove");
        assert!(!own.join("agentd-5").exists());
    }

    #[test]
    fn a_delegated_directory_is_used_as_it_is_and_stays() {
        own_descriptors();
        let folder = tempfile::tempdir().expect("tempdir");
        let error = Subtree::delegated(folder.path()).expect_err("not a cgroup");
        assert!(error.to_string().contains("cgroup.controllers"), "{error}");
        fs::write(folder.path().join("cgroup.controllers"), "cpu io pids").expect("write");
        // As above: the dots are overwritten, the rest reads as a kernel's list.
        fs::write(folder.path().join("cgroup.subtree_control"), "..... pids").expect("write");
        fs::create_dir(folder.path().join("agent-9")).expect("mkdir");
        let subtree = Subtree::delegated(folder.path()).expect("delegated");
        assert!(subtree.existing(9).is_some(), "left by an earlier owner");
        assert_eq!(
            subtree.controllers().collect::<Vec<_>>(),
            [Controller::Pids]
        );
        assert!(
            Subtree::delegated(folder.path()).is_err(),
            "one owner at a time"
        );
        subtree.remove().expect("remove");
        assert!(folder.path().is_dir() && !folder.path().join("agent-9").exists());
    }

    #[test]
    fn a_directory_that_is_not_writable_gives_no_controllers() {
        let subtree = Subtree::create(&v1_layout(Path::new("/proc/self/no-such")), 1, &[]);
        assert_eq!(subtree.controllers().count(), 0);
        assert!(!subtree.has_unified());
    }

    #[test]
    fn controllers_count_only_once_the_kernel_lists_them() {
        let folder = tempfile::tempdir().expect("tempdir");
        // A plain file shows what was written last, as a kernel would that took only one of them.
        fs::write(folder.path().join("cgroup.subtree_control"), "").expect("write");
        let wanted = [Controller::Memory, Controller::Pids];
        assert_eq!(enable(folder.path(), &wanted, &[]), []);
    }

    #[test]
    fn where_strangers_keep_controllers_out_the_top_is_used() {
        let folder = tempfile::tempdir().expect("tempdir");
        let session = folder.path().join("session");
        fs::create_dir(&session).expect("mkdir");
        fs::write(session.join("cgroup.procs"), "10\n").expect("write");
        // A plain file: "+pids" overwrites the five dots, and what stays reads as a kernel's list would.
        fs::write(folder.path().join("cgroup.subtree_control"), "..... pids").expect("write");
        let hierarchy = |own: &Path| Hierarchy {
            own: own.to_path_buf(),
            controllers: vec![Controller::Pids],
        };
        let mut layout = Layout {
            unified: Some(hierarchy(&session)),
            unified_top: Some(hierarchy(folder.path())),
            v1: Vec::new(),
        };
        let subtree = Subtree::create(&layout, 7, &[]);
        assert!(folder.path().join("agentd-7").is_dir() && !session.join("agentd-7").exists());
        subtree.remove().expect("remove");
        layout.unified_top = Some(hierarchy(Path::new("/proc/self/no-such")));
        let subtree = Subtree::create(&layout, 8, &[]);
        assert!(
            session.join("agentd-8").is_dir(),
            "kill and freeze work without controllers"
        );
        subtree.remove().expect("remove");
    }

    #[test]
    fn nothing_is_enabled_over_the_heads_of_strangers() {
        let folder = tempfile::tempdir().expect("tempdir");
        for (file, text) in [
            ("cgroup.type", "domain\n"),
            ("cgroup.procs", "11\n"),
            ("cgroup.subtree_control", "untouched"),
        ] {
            fs::write(folder.path().join(file), text).expect("write");
        }
        assert_eq!(enable(folder.path(), &[Controller::Cpu], &[10]), []);
        let control = fs::read_to_string(folder.path().join("cgroup.subtree_control"));
        assert_eq!(control.expect("read"), "untouched");
    }

    #[test]
    fn only_known_processes_step_aside() {
        let folder = tempfile::tempdir().expect("tempdir");
        fs::write(folder.path().join("cgroup.procs"), "10\n11\n").expect("write");
        assert!(!step_aside(folder.path(), &[10]), "11 is a stranger");
        assert!(!folder.path().join(DAEMON_LEAF).exists());
    }
}
