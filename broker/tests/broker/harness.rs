//! Starting brokers and agents for the tests, and looking at what they leave.

use crate::descriptors::own_descriptors;
use crate::skip::skip;
use agentd_broker::client::{self, BrokerClient, ClientError, LaunchedAgent};
use agentd_broker::protocol::{ErrorCode, Failure, Gone, Slot, Welcome};
use agentd_kernel::cgroup::Layout;
use agentd_kernel::fdpass::{self, Wait};
use agentd_kernel::grant::{self, Access, Uses};
use agentd_kernel::pidfd::PidFd;
use agentd_kernel::probe::Roots;
use agentd_launch::plan::{Mode, MountFlags, PlanBuilder, Stdio};
use agentd_launch::status::{MAX_READY_FDS, MESSAGE_LEN, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// Longer than anything takes; a test that waits this long has hung.
pub const WATCHDOG: Duration = Duration::from_secs(120);

/// Whether this process is root; otherwise the calling test is skipped. The first call of each test.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if root {
        own_descriptors();
    } else {
        skip(
            "root",
            "root mode needs root: sudo -E cargo test -p agentd-broker",
        );
    }
    root
}

/// Where the broker binary is. `user.rs` puts a copy where an ordinary user can run it.
pub fn broker_program() -> PathBuf {
    std::env::var_os("BROKER_TEST_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_agentd-broker").into(), PathBuf::from)
}

/// A running broker and its client.
pub struct Broker {
    pub client: BrokerClient,
    pub process: Child,
    /// The write end of agentd's lifeline.
    pub lifeline: Option<OwnedFd>,
    pub welcome: Welcome,
}

/// A broker that nobody has greeted, and its socket.
pub fn start_silent() -> (OwnedFd, Child) {
    let (socket, process) = client::start(&broker_program()).expect("start the broker");
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(WATCHDOG),
    )
    .expect("SO_RCVTIMEO");
    (socket, process)
}

impl Broker {
    pub fn start() -> Self {
        Self::greet(start_silent())
    }

    /// Starts the broker by a shell script that finds the program in `$0` and the socket on its standard input.
    pub fn start_by(script: &str) -> Self {
        let (socket, theirs) = fdpass::seqpacket_pair().expect("pair");
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", script])
            .arg(broker_program())
            .stdin(theirs);
        Self::greet((socket, command.spawn().expect("start the broker")))
    }

    fn greet((socket, process): (OwnedFd, Child)) -> Self {
        let (read_end, lifeline) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        let mut client = BrokerClient::new(socket);
        let welcome = client.hello(read_end.as_fd()).expect("hello");
        Self {
            client,
            process,
            lifeline: Some(lifeline),
            welcome,
        }
    }

    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// Launches a plan without grants.
    pub fn launch(&mut self, plan: &PlanBuilder) -> Agent {
        self.launch_with(plan, &[])
    }

    pub fn launch_with(&mut self, plan: &PlanBuilder, grants: &[OwnedFd]) -> Agent {
        Agent::new(self.try_launch(plan, grants).expect("launch"))
    }

    pub fn try_launch(
        &mut self,
        plan: &PlanBuilder,
        grants: &[OwnedFd],
    ) -> Result<LaunchedAgent, ClientError> {
        let borrowed: Vec<BorrowedFd<'_>> = grants.iter().map(AsFd::as_fd).collect();
        self.client.launch(
            &plan.finish().expect("plan"),
            status_file().as_fd(),
            &borrowed,
            (0, 0),
        )
    }

    /// Waits for the agent's end, and frees its slot.
    pub fn wait_gone(&mut self, slot: Slot) -> Gone {
        let gone = self.client.next_gone().expect("gone");
        assert_eq!(gone.slot, slot);
        self.client.release(slot).expect("release");
        gone
    }

    /// Shuts the broker down and checks that it left nothing.
    pub fn finish(self) {
        let Self {
            client,
            mut process,
            ..
        } = self;
        let pid = process.id();
        client.shutdown().expect("shutdown");
        assert!(wait(&mut process).success(), "the broker exits 0");
        assert_eq!(subtrees(pid), Vec::<PathBuf>::new(), "cgroups are left");
    }
}

/// The refusal of a request that must be refused.
#[track_caller]
pub fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Failure {
    match result {
        Err(ClientError::Refused(failure)) => failure,
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, ClientError>,
    code: ErrorCode,
) -> String {
    let failure = refusal(result);
    assert_eq!(failure.code, code, "{failure}");
    failure.text
}

/// Waits for a child of this process, at most for the watchdog's time.
pub fn wait(process: &mut Child) -> std::process::ExitStatus {
    let pidfd = PidFd::open(process.id() as i32).expect("pidfd");
    assert_dies(&pidfd);
    process.wait().expect("wait")
}

#[track_caller]
pub fn assert_dies(pidfd: &PidFd) {
    assert!(readable(pidfd.as_fd(), WATCHDOG), "the process lives on");
}

pub fn readable(fd: BorrowedFd<'_>, within: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: within.as_secs() as i64,
        tv_nsec: within.subsec_nanos().into(),
    };
    poll(
        &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
        Some(&timeout),
    )
    .expect("poll")
        > 0
}

/// The directories that the broker `pid` has or left in any hierarchy.
pub fn subtrees(pid: u32) -> Vec<PathBuf> {
    let layout = Layout::detect(&Roots::default()).expect("layout");
    let hierarchies = layout.v1.iter().chain(&layout.unified);
    let paths = hierarchies.map(|hierarchy| hierarchy.own.join(format!("agentd-{pid}")));
    paths.filter(|path| path.exists()).collect()
}

/// Starts brokers until they have swept what the killed broker `pid` left: the last processes of its agents may still be
/// on their way out.
#[track_caller]
pub fn assert_swept(pid: u32) {
    let begin = std::time::Instant::now();
    while !subtrees(pid).is_empty() {
        assert!(
            begin.elapsed() < WATCHDOG,
            "{:?} are not swept",
            subtrees(pid)
        );
        Broker::start().finish();
    }
}

/// A launched agent.
pub struct Agent {
    pub slot: Slot,
    pub launched: LaunchedAgent,
}

impl Agent {
    pub fn new(launched: LaunchedAgent) -> Self {
        rustix::net::sockopt::set_socket_timeout(
            &launched.status,
            rustix::net::sockopt::Timeout::Recv,
            Some(WATCHDOG),
        )
        .expect("SO_RCVTIMEO");
        Self {
            slot: launched.info.slot,
            launched,
        }
    }

    pub fn next_status(&self) -> (Status, Vec<OwnedFd>) {
        let mut buffer = [0; MESSAGE_LEN];
        let received = fdpass::receive(
            self.launched.status.as_fd(),
            &mut buffer,
            MAX_READY_FDS,
            Wait::AsSocket,
        )
        .expect("status message");
        assert_ne!(received.len, 0, "the launcher died without a word");
        (
            Status::decode(&buffer[..received.len]).expect("status"),
            received.fds,
        )
    }

    /// Waits until the program runs; its layers and descriptors.
    #[track_caller]
    pub fn ready(&self) -> (u64, Vec<OwnedFd>) {
        match self.next_status() {
            (Status::Ready { layers, .. }, fds) => (layers, fds),
            (other, _) => panic!("not ready: {other:?}"),
        }
    }

    /// Waits for the program's end; its wait status.
    #[track_caller]
    pub fn exited(&self) -> i32 {
        match self.next_status() {
            (Status::Exited { wait_status, .. }, _) => wait_status,
            (other, _) => panic!("not exited: {other:?}"),
        }
    }

    /// Runs to the end: exit code, stdout and stderr. For plans with `Stdio::Pipes`.
    #[track_caller]
    pub fn output(&self) -> (i32, String, String) {
        let (_, fds) = self.ready();
        let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds).expect("three pipes");
        drop(stdin);
        let (stdout, stderr) = (read(stdout), read(stderr));
        let status = self.exited();
        assert_eq!(status & 0x7f, 0, "ended by a signal: {status:#x}");
        (status >> 8, stdout, stderr)
    }

    pub fn pidfd(&self) -> PidFd {
        PidFd::from(self.launched.pidfd.try_clone().expect("dup"))
    }

    /// Descriptors of every process in the agent's pid namespace, found by namespace, not by cgroup.
    pub fn tree(&self) -> Vec<PidFd> {
        let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.launched.info.pid).expect("the init's namespace");
        let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let members = pids.filter(|pid| namespace(*pid).as_ref() == Some(&own));
        members.filter_map(|pid| PidFd::open(pid).ok()).collect()
    }
}

/// All that comes out of a pipe.
pub fn read(fd: OwnedFd) -> String {
    let mut text = String::new();
    File::from(fd)
        .read_to_string(&mut text)
        .expect("read a pipe");
    text
}

/// A plan that runs `argv` in a minimal view of the host.
pub fn plan(argv: &[&str]) -> PlanBuilder {
    let mode = if rustix::process::geteuid().is_root() {
        Mode::Root
    } else {
        Mode::User
    };
    let ids = match mode {
        Mode::Root => (1000, 1000),
        Mode::User => (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ),
    };
    plan_as(mode, ids, argv)
}

pub fn plan_as(mode: Mode, ids: (u32, u32), argv: &[&str]) -> PlanBuilder {
    let mut plan = PlanBuilder::new(mode);
    plan.ids(ids.0, ids.1)
        .cwd("/")
        .stdio(Stdio::Pipes)
        .env("PATH=/usr/bin:/bin");
    let read_only = MountFlags::RDONLY | MountFlags::OPTIONAL | MountFlags::KEEP_LINK;
    for path in ["/usr", "/bin", "/lib", "/lib64"] {
        plan.bind(path, path, read_only);
    }
    plan.tmpfs("/tmp", 64 << 20, 10_000, 0o1777, MountFlags::NONE)
        .proc("/proc")
        .dev("/dev", 16 << 20);
    for argument in argv {
        plan.arg(argument);
    }
    plan
}

pub fn shell(script: &str) -> PlanBuilder {
    plan(&["sh", "-c", script])
}

pub fn open_dir(path: &Path) -> OwnedFd {
    use rustix::fs::{Mode, OFlags, open};
    open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .expect("open directory")
}

/// Where an init leaves its last report, for tests that don't read it.
pub fn status_file() -> File {
    tempfile::tempfile().expect("status file")
}

/// A grant of `path`, made by this process.
pub fn grant(path: &Path, access: Access, dst: &str) -> OwnedFd {
    grant::send(open_dir(path).as_fd(), access, Path::new(dst), Uses::Once).expect("grant")
}

/// Runs `work` in a thread that has become another user: kernel credentials belong to threads.
pub fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            // SAFETY: raw calls with numbers (and a null list of length 0) that change this thread's credentials only; the
            // thread ends with `work`.
            let results = unsafe {
                [
                    libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
                    libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                    libc::syscall(libc::SYS_setresuid, uid, uid, uid),
                ]
            };
            assert_eq!(results, [0; 3], "becoming uid {uid}");
            work()
        });
        worker.join().expect("the thread of another user")
    })
}

/// A folder that belongs to `uid`, reachable by everybody.
pub fn folder_of(uid: u32, gid: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("tempdir");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid)).expect("chown");
    }
    folder
}
