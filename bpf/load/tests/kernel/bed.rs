//! A plane of one's own: a cgroup2 subtree, the programs attached to it, agents that are plain
//! child processes.
//!
//! Removed on drop: cgroups, pins, the mount of bpffs if this made it. Several beds can be there at
//! once: each test's thread has a table of descriptors of its own, so that no agent of one test
//! holds a socket, a pipe or a link of another.

use crate::descriptors::own_descriptors;
use agentd_bpf::layout::{Counters, DENIALS_LEN, Denial, ROWS};
use agentd_bpf::{Directory, Group, Policies, Ring, Rows, Table, Taken};
use agentd_bpf_load::pins::Pins;
use agentd_bpf_load::{Agent as Known, EMBEDDED, LoadError, Loaded, Plan, load};
use agentd_testkit::skip;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Agents' cgroups are below the subtree, which is below the root.
const AGENT_LEVEL: u32 = 2;

/// The object under test.
pub fn object() -> Vec<u8> {
    match std::env::var_os("AGENTD_EBPF_OBJECT") {
        Some(path) => fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")),
        None => EMBEDDED.to_vec(),
    }
}

/// A loaded plane.
pub struct Bed {
    pub subtree: PathBuf,
    pub pins: Pins,
    pub loaded: Loaded,
    pub directory: Directory,
    pub policies: Policies,
    pub counters: Rows<Counters>,
    pub denials: Ring,
    next_slot: AtomicU32,
}

/// An agent: its cgroup and its slot.
pub struct Agent {
    pub slot: u32,
    pub id: u64,
    pub cgroup: PathBuf,
}

impl Bed {
    /// `None` where this can't be: the test is skipped.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(
                "root",
                "eBPF programs are loaded by root: sudo -E cargo test -p agentd-bpf-load",
            );
            return None;
        }
        let Some(root) = cgroup2() else {
            skip("cgroup2", "no cgroup2 hierarchy is mounted whole");
            return None;
        };
        // Agents are forks that don't exec: close-on-exec closes nothing in them.
        own_descriptors();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let subtree = root.join(format!("agentd-bpf-test-{}-{number}", std::process::id()));
        fs::create_dir(&subtree).expect("mkdir");
        let pins = Pins::of(id(&subtree));
        let loaded = pins
            .make(|| None)
            .map_err(LoadError::from)
            .and_then(|()| load_on(&subtree, &pins, &object(), &[]));
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                pins.remove().expect("remove the pins");
                fs::remove_dir(&subtree).expect("rmdir");
                panic!("{error}");
            }
        };
        Some(Self {
            directory: Directory::map(fd_of(&loaded, Table::Directory)).expect("map"),
            policies: Policies::map(fd_of(&loaded, Table::Policy)).expect("map"),
            counters: Rows::map(fd_of(&loaded, Table::Counters), "COUNTERS", ROWS).expect("map"),
            denials: Ring::map(
                fd_of(&loaded, Table::Denials).try_clone().expect("dup"),
                "DENIALS",
                DENIALS_LEN,
            )
            .expect("map"),
            subtree,
            pins,
            loaded,
            next_slot: AtomicU32::new(1),
        })
    }

    /// A bed with this group; otherwise the test is skipped, with the kernel's reason.
    pub fn with(group: Group) -> Option<Self> {
        let bed = Self::new()?;
        if bed.loaded.groups.has(group) {
            return Some(bed);
        }
        let absent = bed
            .loaded
            .absent
            .iter()
            .find(|absent| absent.group == group);
        skip(
            &format!("bpf-{group}"),
            absent.map_or("not loaded", |absent| &absent.why),
        );
        None
    }

    /// Loads again, as a broker that is started anew does.
    pub fn load_again(&self, object: &[u8], agents: &[&Agent]) -> Result<Loaded, LoadError> {
        load_on(&self.subtree, &self.pins, object, agents)
    }

    /// An agent that the programs know.
    pub fn agent(&self) -> Agent {
        let agent = self.stranger();
        self.directory.insert(agent.id, agent.slot).expect("place");
        agent
    }

    /// An agent's cgroup that is in no directory.
    pub fn stranger(&self) -> Agent {
        let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
        let cgroup = self.subtree.join(format!("agent-{slot}"));
        fs::create_dir(&cgroup).expect("mkdir");
        Agent {
            slot,
            id: id(&cgroup),
            cgroup,
        }
    }

    pub fn restrict(&self, agent: &Agent, bits: u32) {
        self.policies.restrict(agent.slot, bits, [0; 8]);
    }

    pub fn counters(&self, agent: &Agent) -> Counters {
        self.counters.get(agent.slot as usize).expect("row")
    }

    /// The denials that are in the ring now.
    pub fn denials(&mut self) -> Vec<Denial> {
        let mut all = Vec::new();
        let taken = self.denials.take(usize::MAX, |record| {
            assert_eq!(record.len(), size_of::<Denial>());
            // SAFETY: as many bytes as the type has (checked above), which is integers only.
            all.push(unsafe { record.as_ptr().cast::<Denial>().read_unaligned() });
        });
        assert!(matches!(taken, Taken::All(_)), "{taken:?}");
        all
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.pins.remove().expect("remove the pins");
        for group in fs::read_dir(&self.subtree).expect("the subtree").flatten() {
            if group.file_type().expect("type").is_dir() {
                remove_group(&group.path());
            }
        }
        fs::remove_dir(&self.subtree).expect("rmdir");
    }
}

/// With groups inside it. A process that was reaped a moment ago may still be leaving.
fn remove_group(path: &Path) {
    for inner in fs::read_dir(path).expect("a cgroup").flatten() {
        if inner.file_type().expect("type").is_dir() {
            remove_group(&inner.path());
        }
    }
    while let Err(error) = fs::remove_dir(path) {
        assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{path:?}");
        std::thread::yield_now();
    }
}

impl Agent {
    /// Starts a child process in the agent's cgroup that does `work` and ends with what that
    /// returns (0 to 255).
    ///
    /// The child is a fork of a process with threads: `work` makes system calls and little else. If
    /// it panics, the child says so on stderr and ends with 253: it must not go on as a second run
    /// of the tests.
    pub fn start(&self, work: impl FnOnce() -> i32) -> Child {
        let procs = File::options()
            .write(true)
            .open(self.cgroup.join("cgroup.procs"))
            .expect("cgroup.procs");
        // SAFETY: the child makes system calls and ends by _exit; glibc keeps its allocator usable after a fork.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                let joined = rustix::io::write(&procs, b"0").is_ok();
                let code = if joined { guarded(work) } else { 255 };
                // SAFETY: ends this process at once, as a fork should.
                unsafe { libc::_exit(code) }
            }
            pid => Child(Pid::from_raw(pid)),
        }
    }

    /// As [`Agent::start`], and waits for the end.
    pub fn run(&self, work: impl FnOnce() -> i32) -> i32 {
        self.start(work).code()
    }
}

/// What `work` returns, or 253.
fn guarded(work: impl FnOnce() -> i32) -> i32 {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let line = format!("an agent panicked: {}\n", text.unwrap_or("it said nothing"));
        // What a test prints is captured in memory, which ends with this process.
        rustix::io::write(rustix::stdio::stderr(), line.as_bytes()).ok();
        253
    })
}

/// A child process; killed and reaped when dropped.
pub struct Child(Option<Pid>);

impl Child {
    /// While it runs.
    pub fn pid(&self) -> Pid {
        self.0.expect("it runs")
    }

    /// Waits for its end and returns its exit code.
    pub fn code(mut self) -> i32 {
        let status = wait(self.0.take().expect("it runs"));
        status
            .exit_status()
            .unwrap_or_else(|| panic!("killed by signal {:?}", status.terminating_signal()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.0.take() {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            wait(pid);
        }
    }
}

fn wait(pid: Pid) -> WaitStatus {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("waitpid: {errno}"),
        }
    }
}

fn load_on(
    subtree: &Path,
    pins: &Pins,
    object: &[u8],
    agents: &[&Agent],
) -> Result<Loaded, LoadError> {
    let directory = File::open(subtree).expect("the subtree");
    let agents: Vec<Known> = agents
        .iter()
        .map(|agent| Known {
            cgroup_id: agent.id,
            slot: agent.slot,
        })
        .collect();
    load(&Plan {
        object,
        subtree: directory.as_fd(),
        agent_level: AGENT_LEVEL,
        agents: &agents,
        pins,
    })
}

/// Where the whole cgroup2 hierarchy is mounted.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        (right.starts_with("cgroup2 ") && root == "/").then(|| point.into())
    })
}

/// A cgroup's id is its directory's inode number.
pub fn id(cgroup: &Path) -> u64 {
    fs::metadata(cgroup).expect("a cgroup").ino()
}

pub fn fd_of(loaded: &Loaded, wanted: Table) -> &OwnedFd {
    let found = loaded.tables.iter().find(|(table, _)| *table == wanted);
    &found.expect("the table").1
}
