//! One agent's cgroup: its directory in each hierarchy.

use super::{CgroupError, Controller, Hierarchy, make_dir, read_file, write_file};
use rustix::fs::{Mode, OFlags, open};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a group may use. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory and, where swap is accounted, memory and swap together.
    pub memory_max_bytes: Option<u64>,
    pub pids_max: Option<u64>,
    pub cpu: Option<CpuQuota>,
}

/// `quota_us` of processor time in each `period_us`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuQuota {
    pub quota_us: u64,
    pub period_us: u64,
}

/// Observed use; a figure that this host can't give is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_usage_us: Option<u64>,
    pub memory_current: Option<u64>,
    pub memory_peak: Option<u64>,
    pub pids_current: Option<u64>,
    pub oom_kills: Option<u64>,
}

/// What came of removing a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Done,
    /// A process of the group is still on its way out; try again when [`Group::events`] changes, or soon.
    Busy,
}

/// An agent's cgroup. Dropping it leaves the directories: [`Group::try_remove`] says when they are gone.
#[derive(Debug)]
pub struct Group {
    unified: Option<Unified>,
    v1: Vec<Hierarchy>,
}

#[derive(Debug)]
struct Unified {
    path: PathBuf,
    directory: OwnedFd,
    controllers: Vec<Controller>,
}

impl Group {
    pub(super) fn create(
        unified: Option<PathBuf>,
        controllers: Vec<Controller>,
        v1: Vec<Hierarchy>,
    ) -> Result<Self, CgroupError> {
        let mut group = Self {
            unified: None,
            v1: Vec::new(),
        };
        let made = group.make(unified, controllers, v1);
        if made.is_err() {
            // Empty directories that were made a moment ago; a failure to remove them adds nothing to the first error.
            group.try_remove().ok();
        }
        made.map(|()| group)
    }

    fn make(
        &mut self,
        unified: Option<PathBuf>,
        controllers: Vec<Controller>,
        v1: Vec<Hierarchy>,
    ) -> Result<(), CgroupError> {
        for hierarchy in v1 {
            make_dir(&hierarchy.own)?;
            self.v1.push(hierarchy);
        }
        if let Some(path) = unified {
            make_dir(&path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match open(&path, flags, Mode::empty()) {
                Ok(directory) => {
                    self.unified = Some(Unified {
                        path,
                        directory,
                        controllers,
                    })
                }
                Err(errno) => {
                    // As in `create`: the first error is the one that counts.
                    fs::remove_dir(&path).ok();
                    return Err(CgroupError::new("open", &path, errno.into()));
                }
            }
        }
        Ok(())
    }

    /// A group that an earlier process made; `None` unless all its directories are there.
    pub(super) fn open(
        unified: Option<PathBuf>,
        controllers: Vec<Controller>,
        v1: Vec<Hierarchy>,
    ) -> Option<Self> {
        if !v1.iter().all(|hierarchy| hierarchy.own.is_dir()) {
            return None;
        }
        let unified = match unified {
            Some(path) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let directory = open(&path, flags, Mode::empty()).ok()?;
                Some(Unified {
                    path,
                    directory,
                    controllers,
                })
            }
            None => None,
        };
        Some(Self { unified, v1 })
    }

    /// Whether the process is in each of the group's directories.
    pub fn contains(&self, pid: i32) -> bool {
        let v1 = self.v1.iter().map(|hierarchy| hierarchy.own.as_path());
        let mut paths = v1.chain(self.unified_path());
        let pid = pid.to_string();
        paths.all(|path| {
            read_file(&path.join("cgroup.procs"))
                .is_some_and(|members| members.lines().any(|member| member == pid))
        })
    }

    /// The cgroup2 directory, for `CLONE_INTO_CGROUP`.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified
            .as_ref()
            .map(|unified| unified.directory.as_fd())
    }

    pub fn unified_path(&self) -> Option<&Path> {
        self.unified.as_ref().map(|unified| unified.path.as_path())
    }

    /// The cgroup2 id that eBPF programs see (the directory's inode number); 0 without cgroup2.
    pub fn id(&self) -> u64 {
        self.unified()
            .and_then(|fd| rustix::fs::fstat(fd).ok())
            .map_or(0, |stat| stat.st_ino)
    }

    /// Sets every limit that this host can hold and returns the controllers that were missing for the others.
    ///
    /// # Errors
    /// The kernel refused a value; limits set before it stay.
    pub fn apply(&self, limits: &Limits) -> Result<Vec<Controller>, CgroupError> {
        if let (Some(home), max @ Some(_)) =
            (self.home(Controller::Memory), limits.memory_max_bytes)
        {
            home.set_memory(max)?;
        }
        if let (Some(home), max @ Some(_)) = (self.home(Controller::Pids), limits.pids_max) {
            home.set_pids(max)?;
        }
        if let (Some(home), quota @ Some(_)) = (self.home(Controller::Cpu), limits.cpu) {
            home.set_cpu(quota)?;
        }
        Ok(self.missing(limits))
    }

    /// Makes these the limits of a group that is in use; `None` takes a limit away. Where a controller is missing for one that
    /// is set, nothing is changed and the missing ones are returned.
    ///
    /// Under what is used now: no process ends for `pids.max`, and none is added. For memory a cgroup2 hierarchy reclaims, and
    /// kills by the OOM killer where that is not enough; one of version 1 reclaims, and refuses with `EBUSY`.
    ///
    /// # Errors
    /// The kernel refused a value; limits set before it stay.
    #[doc(alias = "memory.max")]
    pub fn change(&self, limits: &Limits) -> Result<Vec<Controller>, CgroupError> {
        let missing = self.missing(limits);
        if !missing.is_empty() {
            return Ok(missing);
        }
        // First what can be refused for what is in use.
        if let Some(home) = self.home(Controller::Memory) {
            home.set_memory(limits.memory_max_bytes)?;
        }
        if let Some(home) = self.home(Controller::Pids) {
            home.set_pids(limits.pids_max)?;
        }
        if let Some(home) = self.home(Controller::Cpu) {
            home.set_cpu(limits.cpu)?;
        }
        Ok(missing)
    }

    /// The controllers that these limits need and the group hasn't.
    fn missing(&self, limits: &Limits) -> Vec<Controller> {
        let needed = [
            (limits.memory_max_bytes.is_some(), Controller::Memory),
            (limits.pids_max.is_some(), Controller::Pids),
            (limits.cpu.is_some(), Controller::Cpu),
        ];
        let missing =
            |(is_set, controller): &(bool, Controller)| *is_set && self.home(*controller).is_none();
        needed
            .into_iter()
            .filter(missing)
            .map(|(_, controller)| controller)
            .collect()
    }

    /// Lets the group open these devices and no other, in version 1 words such as `c 1:3 rw`; `false` where there is no
    /// devices controller. Takes `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// The kernel refused a rule; those before it stay.
    #[doc(alias = "devices.allow")]
    pub fn allow_devices(&self, rules: &[String]) -> Result<bool, CgroupError> {
        let Some(Home::V1(path)) = self.home(Controller::Devices) else {
            return Ok(false);
        };
        write_file(&path.join("devices.deny"), "a")?;
        for rule in rules {
            write_file(&path.join("devices.allow"), rule)?;
        }
        Ok(true)
    }

    /// The `tasks` files of the group's version 1 directories. A single-threaded process that writes `0` to each moves
    /// itself there; into the cgroup2 directory it comes by `CLONE_INTO_CGROUP`.
    ///
    /// Moving *another* process, by its pid, makes the kernel stop every fork and exit on the host for an RCU grace period:
    /// ten milliseconds and more, where this takes microseconds.
    pub fn v1_tasks(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let open_tasks = |hierarchy: &Hierarchy| {
            let path = hierarchy.own.join("tasks");
            open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| CgroupError::new("open", &path, errno.into()))
        };
        self.v1.iter().map(open_tasks).collect()
    }

    /// SIGKILLs every process in the group at once; `false` where the host can't (no cgroup2, or Linux before 5.14).
    #[doc(alias = "cgroup.kill")]
    pub fn kill(&self) -> Result<bool, CgroupError> {
        self.control("cgroup.kill", "1")
    }

    /// Freezes or thaws every process in the group; `false` where the host can't.
    #[doc(alias = "cgroup.freeze")]
    pub fn freeze(&self, state: Freeze) -> Result<bool, CgroupError> {
        self.control(
            "cgroup.freeze",
            if state == Freeze::Frozen { "1" } else { "0" },
        )
    }

    fn control(&self, file: &str, value: &str) -> Result<bool, CgroupError> {
        let Some(unified) = &self.unified else {
            return Ok(false);
        };
        match write_file(&unified.path.join(file), value) {
            Ok(()) => Ok(true),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the group uses now.
    pub fn usage(&self) -> Usage {
        let number = |controller, v1: &str, v2: &str| match self.home(controller)? {
            Home::V1(path) => read_number(&path.join(v1)),
            Home::V2(path) => read_number(&path.join(v2)),
        };
        // cgroup2 accounts for processor time in every group; cpuacct counts in nanoseconds.
        let unified = self
            .unified
            .as_ref()
            .and_then(|unified| keyed(&unified.path.join("cpu.stat"), "usage_usec"));
        let cpuacct = || {
            number(Controller::Cpuacct, "cpuacct.usage", "").map(|nanoseconds| nanoseconds / 1000)
        };
        Usage {
            cpu_usage_us: unified.or_else(cpuacct),
            memory_current: number(
                Controller::Memory,
                "memory.usage_in_bytes",
                "memory.current",
            ),
            memory_peak: number(
                Controller::Memory,
                "memory.max_usage_in_bytes",
                "memory.peak",
            ),
            pids_current: number(Controller::Pids, "pids.current", "pids.current"),
            oom_kills: self.home(Controller::Memory).and_then(|home| match home {
                Home::V1(path) => keyed(&path.join("memory.oom_control"), "oom_kill"),
                Home::V2(path) => keyed(&path.join("memory.events"), "oom_kill"),
            }),
        }
    }

    /// `cgroup.events`, which polls as `POLLPRI` when the last process of the group has gone; `None` without cgroup2.
    pub fn events(&self) -> Option<OwnedFd> {
        let unified = self.unified.as_ref()?;
        open(
            unified.path.join("cgroup.events"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()
    }

    /// Removes the group's directories. Repeat it while it says [`Removal::Busy`].
    pub fn try_remove(&self) -> Result<Removal, CgroupError> {
        let paths = self
            .v1
            .iter()
            .map(|hierarchy| hierarchy.own.as_path())
            .chain(self.unified_path());
        let mut removal = Removal::Done;
        for path in paths {
            match fs::remove_dir(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    removal = Removal::Busy
                }
                Err(source) => return Err(CgroupError::new("remove", path, source)),
            }
        }
        Ok(removal)
    }

    fn home(&self, controller: Controller) -> Option<Home<'_>> {
        if let Some(unified) = self
            .unified
            .as_ref()
            .filter(|unified| unified.controllers.contains(&controller))
        {
            return Some(Home::V2(&unified.path));
        }
        let v1 = self
            .v1
            .iter()
            .find(|hierarchy| hierarchy.controllers.contains(&controller))?;
        Some(Home::V1(&v1.own))
    }
}

/// What [`Group::freeze`] makes of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freeze {
    Frozen,
    Thawed,
}

/// Where a controller of the group lives.
enum Home<'a> {
    V1(&'a Path),
    V2(&'a Path),
}

impl Home<'_> {
    fn set_memory(&self, max: Option<u64>) -> Result<(), CgroupError> {
        match self {
            Home::V1(path) => {
                let value = max.map_or("-1".to_owned(), |bytes| bytes.to_string());
                let memory = path.join("memory.limit_in_bytes");
                let with_swap = path.join("memory.memsw.limit_in_bytes");
                // The kernel wants the second never below the first.
                let rises = |now: u64| max.is_none_or(|max| max > now);
                if read_number(&with_swap).is_some_and(rises) {
                    write_file(&with_swap, &value)?;
                    write_file(&memory, &value)
                } else {
                    write_file(&memory, &value)?;
                    write_if_there(&with_swap, &value)
                }
            }
            Home::V2(path) => {
                // Swap first: what does not fit any more must not go there instead.
                let swap = if max.is_some() { "0" } else { "max" };
                write_if_there(&path.join("memory.swap.max"), swap)?;
                write_file(&path.join("memory.max"), &number_or_max(max))
            }
        }
    }

    fn set_pids(&self, max: Option<u64>) -> Result<(), CgroupError> {
        let (Home::V1(path) | Home::V2(path)) = self;
        write_file(&path.join("pids.max"), &number_or_max(max))
    }

    fn set_cpu(&self, quota: Option<CpuQuota>) -> Result<(), CgroupError> {
        match (self, quota) {
            (Home::V1(path), None) => write_file(&path.join("cpu.cfs_quota_us"), "-1"),
            (Home::V1(path), Some(cpu)) => {
                write_file(&path.join("cpu.cfs_period_us"), &cpu.period_us.to_string())?;
                write_file(&path.join("cpu.cfs_quota_us"), &cpu.quota_us.to_string())
            }
            (Home::V2(path), None) => write_file(&path.join("cpu.max"), "max"),
            (Home::V2(path), Some(cpu)) => {
                let value = format!("{} {}", cpu.quota_us, cpu.period_us);
                write_file(&path.join("cpu.max"), &value)
            }
        }
    }
}

fn number_or_max(max: Option<u64>) -> String {
    max.map_or("max".to_owned(), |max| max.to_string())
}

fn write_if_there(path: &Path, value: &str) -> Result<(), CgroupError> {
    match write_file(path, value) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read_number(path: &Path) -> Option<u64> {
    read_file(path)?.trim().parse().ok()
}

/// The value of `key` in a file of "key value" lines.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = read_file(path)?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group in plain folders, with these control files.
    fn group(
        v1: &[Controller],
        v2: &[Controller],
        files: &[(&str, &str)],
    ) -> (tempfile::TempDir, Group) {
        let folder = tempfile::tempdir().expect("tempdir");
        let (one, two) = (folder.path().join("v1"), folder.path().join("v2"));
        let hierarchy = Hierarchy {
            own: one,
            controllers: v1.to_vec(),
        };
        let group = Group::create(Some(two), v2.to_vec(), vec![hierarchy]).expect("group");
        for (name, content) in files {
            fs::write(folder.path().join(name), content).expect("write");
        }
        (folder, group)
    }

    const LIMITS: Limits = Limits {
        memory_max_bytes: Some(1 << 20),
        pids_max: Some(64),
        cpu: Some(CpuQuota {
            quota_us: 50_000,
            period_us: 100_000,
        }),
    };

    #[test]
    fn limits_go_where_their_controller_lives() {
        let (folder, group) = group(
            &[Controller::Memory],
            &[Controller::Pids],
            &[
                ("v1/memory.limit_in_bytes", ""),
                ("v1/memory.memsw.limit_in_bytes", ""),
                ("v2/pids.max", ""),
            ],
        );
        assert_eq!(
            group.apply(&LIMITS).expect("apply"),
            [Controller::Cpu],
            "what is missing is said"
        );
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("read");
        assert_eq!(read("v1/memory.limit_in_bytes"), "1048576");
        assert_eq!(read("v1/memory.memsw.limit_in_bytes"), "1048576");
        assert_eq!(read("v2/pids.max"), "64");
    }

    #[test]
    fn limits_change_and_go_and_where_one_has_no_controller_nothing_changes() {
        let files = [
            ("v1/memory.limit_in_bytes", ""),
            ("v1/memory.memsw.limit_in_bytes", ""),
            ("v2/pids.max", ""),
            ("v2/cpu.max", ""),
        ];
        let v2 = [Controller::Pids, Controller::Cpu];
        let (folder, group) = group(&[Controller::Memory], &v2, &files);
        // A plain file keeps what a longer value left; the kernel's don't.
        let read = |name: &str| {
            let path = folder.path().join(name);
            let text = fs::read_to_string(&path).expect("read");
            fs::write(&path, "").expect("empty it");
            text
        };
        assert_eq!(group.change(&LIMITS).expect("change"), []);
        assert_eq!(read("v1/memory.limit_in_bytes"), "1048576");
        assert_eq!(read("v1/memory.memsw.limit_in_bytes"), "1048576");
        assert_eq!(read("v2/pids.max"), "64");
        assert_eq!(read("v2/cpu.max"), "50000 100000");
        assert_eq!(group.change(&Limits::default()).expect("change"), []);
        assert_eq!(read("v1/memory.limit_in_bytes"), "-1");
        assert_eq!(read("v1/memory.memsw.limit_in_bytes"), "-1");
        assert_eq!(read("v2/pids.max"), "max");
        assert_eq!(read("v2/cpu.max"), "max");

        let (folder, without) = self::group(&[], &[Controller::Pids], &[("v2/pids.max", "")]);
        let missing = without.change(&LIMITS).expect("change");
        assert_eq!(missing, [Controller::Memory, Controller::Cpu]);
        let pids = fs::read_to_string(folder.path().join("v2/pids.max"));
        assert_eq!(pids.expect("read"), "", "not the others either");
    }

    #[test]
    fn memory_with_swap_is_never_below_memory() {
        // The kernel refuses the order that this test makes fail: the first file can't be written.
        let both = "v1/memory.memsw.limit_in_bytes";
        let (folder, group) = group(&[Controller::Memory], &[], &[(both, "4096\n")]);
        let now = || fs::read_to_string(folder.path().join(both)).expect("read");
        let max = |bytes| Limits {
            memory_max_bytes: bytes,
            ..Limits::default()
        };
        group
            .change(&max(Some(2048)))
            .expect_err("memory comes first");
        assert_eq!(now(), "4096\n");
        group
            .change(&max(Some(8192)))
            .expect_err("memory comes second");
        assert_eq!(now(), "8192\n");
        group.change(&max(None)).expect_err("memory comes second");
        assert_eq!(now(), "-192\n");
    }

    #[test]
    fn a_refused_limit_names_file_and_value() {
        let (_folder, group) = group(&[], &[Controller::Pids], &[]);
        let error = group.apply(&LIMITS).expect_err("no pids.max");
        assert!(error.to_string().starts_with("write 64 to /"), "{error}");
    }

    #[test]
    fn usage_comes_from_both_versions() {
        let (_folder, group) = group(
            &[Controller::Cpuacct],
            &[Controller::Memory],
            &[
                ("v1/cpuacct.usage", "5000000\n"),
                ("v2/memory.current", "4096\n"),
                ("v2/memory.events", "low 0\noom 3\noom_kill 2\n"),
            ],
        );
        let usage = group.usage();
        assert_eq!(usage.cpu_usage_us, Some(5000));
        assert_eq!(
            (usage.memory_current, usage.memory_peak),
            (Some(4096), None)
        );
        assert_eq!((usage.pids_current, usage.oom_kills), (None, Some(2)));
    }

    #[test]
    fn a_group_contains_whom_every_directory_lists() {
        let (folder, group) = group(
            &[Controller::Pids],
            &[],
            &[("v1/cgroup.procs", "12\n14\n"), ("v2/cgroup.procs", "12\n")],
        );
        assert!(group.contains(12) && !group.contains(14) && !group.contains(1));
        let reopen = |v1: &str| {
            let own = folder.path().join(v1);
            let controllers = vec![Controller::Pids];
            let v1 = vec![Hierarchy { own, controllers }];
            Group::open(Some(folder.path().join("v2")), Vec::new(), v1)
        };
        assert!(reopen("v1").is_some_and(|again| again.contains(12)));
        assert!(reopen("other").is_none());
    }

    #[test]
    fn a_host_without_cgroup_kill_says_so() {
        let (_folder, group) = group(&[], &[], &[]);
        assert!(!group.kill().expect("kill"));
        assert!(!group.freeze(Freeze::Frozen).expect("freeze"));
    }

    #[test]
    fn a_group_that_cannot_be_made_whole_is_not_left_in_part() {
        let folder = tempfile::tempdir().expect("tempdir");
        let one = folder.path().join("v1");
        let hierarchy = Hierarchy {
            own: one.clone(),
            controllers: vec![Controller::Pids],
        };
        let taken = folder.path().join("taken");
        fs::create_dir(&taken).expect("mkdir");
        let error =
            Group::create(Some(taken.clone()), Vec::new(), vec![hierarchy]).expect_err("exists");
        assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
        assert!(!one.exists() && taken.exists());
    }
}
