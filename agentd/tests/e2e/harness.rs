//! A real agentd with its broker, on temporary directories, driven by the real agentctl.
//!
//! The programs are copied to a directory that every user can enter, because a checkout often lies in somebody's
//! private home. Everything a [`Daemon`] made is gone when it is dropped: it is stopped by pid, and the test fails
//! if a process or a cgroup of it is left.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Nothing here takes longer unless it hangs.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// Who runs agentd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Root,
    /// An ordinary user, who needs no passwd entry.
    User,
}

impl Mode {
    /// The uid of whoever runs a daemon of this mode.
    pub fn owner(self) -> u32 {
        match self {
            Self::Root => 0,
            Self::User if is_root() => ALICE,
            Self::User => rustix::process::geteuid().as_raw(),
        }
    }
}

/// The ordinary users of these tests.
pub const ALICE: u32 = 61_230;
pub const BOB: u32 = 61_231;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The modes that this process can test; as an ordinary user it says which one it cannot.
pub fn modes() -> Vec<Mode> {
    if is_root() {
        return vec![Mode::Root, Mode::User];
    }
    agentd_testkit::skip(
        "root",
        "agentd's root mode needs root: run the tests with sudo",
    );
    vec![Mode::User]
}

/// `agentd`, `agentd-broker`, `agentctl` and the test kit's programs, where everybody can execute
/// them: copies of what was built, or what lies in AGENTD_TEST_PROGRAMS, as in a guest of
/// `cargo xtask vm`.
pub fn program(name: &str) -> PathBuf {
    if let Some(there) = std::env::var_os("AGENTD_TEST_PROGRAMS") {
        return Path::new(&there).join(name);
    }
    static COPIES: OnceLock<PathBuf> = OnceLock::new();
    let copies = COPIES.get_or_init(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_agentd")).parent().expect("a program lies in a directory");
        let dir = std::env::temp_dir().join(format!("agentd-e2e-bin-{}", std::process::id()));
        std::fs::create_dir(&dir).expect("a fresh directory");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        for name in ["agentd", "agentd-broker", "agentctl", "model-standin", "small-agent", "channel-agent", "queue-agent", "traffic-agent", "request-agent"] {
            let from = built.join(name);
            assert!(
                from.exists(),
                "{} is missing: build it first with `cargo build && cargo build -p agentd-testkit` (cargo xtask test does)",
                from.display()
            );
            put_program(&from, &dir.join(name));
        }
        // Not needed by any other test, so not demanded of whoever builds by hand.
        let suite = built.join("agentd-escape");
        if suite.exists() {
            put_program(&suite, &dir.join("agentd-escape"));
        }
        // libtest has no exit hook.
        CleanUp::at_exit(&dir);
        dir
    });
    copies.join(name)
}

/// Copies a program so that it can be executed at once.
///
/// By a process of its own: what this one has open for writing, a child that another test's thread has just forked has
/// open, too, until its exec, and nobody executes a file that somebody may still write to (ETXTBSY).
pub fn put_program(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .args(["--preserve=mode", "--"])
        .arg(from)
        .arg(to)
        .status();
    assert!(
        copied.expect("cp runs").success(),
        "copy {} to {}",
        from.display(),
        to.display()
    );
}

/// A program that may not have been built.
pub fn optional_program(name: &str) -> Option<PathBuf> {
    Some(program(name)).filter(|program| program.exists())
}

/// Removes a directory when this process has ended, however it ends.
struct CleanUp;

impl CleanUp {
    fn at_exit(dir: &Path) {
        // The shell reads until our end of its stdin closes with this process.
        Command::new("/bin/sh")
            .args(["-c", "cat >/dev/null; rm -rf -- \"$1\"", "sh"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(|mut child| std::mem::forget(child.stdin.take()))
            .expect("start the clean-up shell");
    }
}

/// A running agentd.
pub struct Daemon {
    pub mode: Mode,
    child: Child,
    /// Holds runtime and state directory, configuration and workspaces.
    pub dir: tempfile::TempDir,
    /// The broker's supervisor, as agentd's only child.
    pub supervisor: i32,
    /// The broker's worker, as the supervisor's first child: the agents are its children.
    pub broker: i32,
}

/// A temporary directory that belongs to `uid` and can be entered by everyone.
pub fn dir_of(uid: u32) -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix("agentd-e2e-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .expect("a temporary directory");
    if is_root() {
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(uid)).expect("chown");
    }
    dir
}

impl Daemon {
    pub fn start(mode: Mode) -> Self {
        Self::with_config(mode, "")
    }

    /// The uid of whoever runs this daemon.
    pub fn owner(&self) -> u32 {
        self.mode.owner()
    }

    /// Starts agentd and waits for its `ready`.
    pub fn with_config(mode: Mode, config: &str) -> Self {
        Self::prepared(mode, config, &[], |_dir| {})
    }

    /// As [`Self::with_config`]; agentd is executed by `wrapper`, if there is one, and `prepare` gets the directory,
    /// before anything is in it.
    pub fn prepared(
        mode: Mode,
        config: &str,
        wrapper: &[&str],
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let owner = mode.owner();
        let dir = dir_of(owner);
        prepare(dir.path());
        std::fs::write(dir.path().join("agentd.toml"), config).expect("write the configuration");
        let (child, supervisor, broker) = Self::spawn(owner, dir.path(), wrapper);
        Self {
            mode,
            child,
            dir,
            supervisor,
            broker,
        }
    }

    /// Ends agentd and starts another one in the same place.
    pub fn restart(&mut self) {
        self.terminate();
        wait_until("the broker ends with agentd", || !is_alive(self.supervisor));
        (self.child, self.supervisor, self.broker) =
            Self::spawn(self.owner(), self.dir.path(), &[]);
    }

    /// Starts agentd again after it was killed or terminated: it takes over what the one before has left.
    pub fn start_again(&mut self) {
        self.start_again_as(&program("agentd"));
    }

    /// As [`Self::start_again`], with another program.
    pub fn start_again_as(&mut self, agentd: &Path) {
        self.child = Self::serve(agentd, self.owner(), self.dir.path(), &[]);
        // Nobody was left to take over from: there is a new broker.
        if let [supervisor, ..] = *children_of(self.pid()) {
            self.supervisor = supervisor;
        }
        self.broker = worker_of(self.supervisor).expect("the supervisor has a worker");
    }

    /// Starts agentd as `owner` below `dir`; returns it, its broker's supervisor and the worker when it serves.
    fn spawn(owner: u32, dir: &Path, wrapper: &[&str]) -> (Child, i32, i32) {
        let child = Self::serve(&program("agentd"), owner, dir, wrapper);
        let supervisor = children_of(child.id().cast_signed());
        assert_eq!(supervisor.len(), 1, "agentd has one child, its broker");
        let broker = children_of(supervisor[0]);
        assert_eq!(broker.len(), 1, "the supervisor has one child, its worker");
        (child, supervisor[0], broker[0])
    }

    /// Starts `agentd`, through `wrapper` if there is one, and waits for its `ready`.
    fn serve(agentd: &Path, owner: u32, dir: &Path, wrapper: &[&str]) -> Child {
        let mut command = match wrapper {
            [] => as_user(agentd.to_owned(), owner),
            [wrapper, args @ ..] => {
                let mut command = as_user(wrapper.into(), owner);
                command.args(args).arg(agentd);
                command
            }
        };
        command
            .arg("--config")
            .arg(dir.join("agentd.toml"))
            .arg("--runtime-dir")
            .arg(dir.join("run"))
            .arg("--state-dir")
            .arg(dir.join("state"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("start agentd");
        let stderr = child.stderr.take().expect("piped");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("agentd.log"))
            .expect("a log file");
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::io::Write as _;
            let mut log = log;
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line == "ready" {
                    // The receiver is gone once start-up has timed out; then nobody cares.
                    if ready.send(()).is_err() {
                        return;
                    }
                }
                writeln!(log, "{line}").expect("write the log");
            }
        });
        if is_ready.recv_timeout(WATCHDOG).is_err() {
            let status = child.try_wait();
            let log = std::fs::read_to_string(dir.join("agentd.log")).unwrap_or_default();
            panic!("agentd did not become ready ({status:?}):\n{log}");
        }
        child
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// A D-Bus connection to the control socket, as the user of this test.
    pub async fn control(&self) -> zbus::Connection {
        let socket = UnixStream::connect(self.runtime_dir().join(agentd_api::CONTROL_SOCKET));
        let socket = socket.expect("the control socket");
        let connection = zbus::connection::Builder::unix_stream(socket).p2p();
        connection.build().await.expect("a connection")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agentd.log")).unwrap_or_default()
    }

    /// agentctl as this daemon's owner.
    pub fn agentctl<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        self.agentctl_as(self.owner(), args)
    }

    /// agentctl as `uid`.
    pub fn agentctl_as<A: AsRef<OsStr>>(
        &self,
        uid: u32,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = as_user(program("agentctl"), uid);
        command
            .arg("--runtime-dir")
            .arg(self.runtime_dir())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// `agentctl run` in `workspace` under `coding`; what it printed and how it ended.
    pub fn run(&self, workspace: &Path, argv: &[&str]) -> Output {
        self.run_with(workspace, &[], argv)
    }

    /// As [`Self::run`], with more options before the `--`.
    pub fn run_with(&self, workspace: &Path, options: &[&str], argv: &[&str]) -> Output {
        let mut command = self.agentctl(["run", "--no-tty", "--workspace"]);
        command.arg(workspace).args(options).arg("--").args(argv);
        output(&mut command)
    }

    /// A workspace that belongs to the owner.
    pub fn workspace(&self) -> tempfile::TempDir {
        dir_of(self.owner())
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill agentd");
        self.child.wait().expect("reap agentd");
    }

    pub fn terminate(&mut self) -> ExitStatus {
        signal(self.pid(), rustix::process::Signal::TERM);
        wait_child(&mut self.child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("agentd's log:\n{}", self.log());
            // The failure is what counts; the daemon's agents die with their lifelines.
            for pid in [self.supervisor, self.broker, self.pid()] {
                if let Some(pid) = rustix::process::Pid::from_raw(pid)
                    && let Err(error) =
                        rustix::process::kill_process(pid, rustix::process::Signal::KILL)
                {
                    eprintln!("kill {pid:?}: {error}");
                }
            }
            return;
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.pid(), rustix::process::Signal::TERM);
            wait_child(&mut self.child);
        }
        wait_until("the broker ends with agentd", || !is_alive(self.supervisor));
    }
}

/// `program` as `uid`, with an environment that is the same on every machine.
pub fn as_user(program: PathBuf, uid: u32) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("LANG", "C.UTF-8");
    if is_root() && uid != 0 {
        command.uid(uid).gid(uid);
    }
    command
}

/// Runs to the end, within the watchdog's time.
pub fn output(command: &mut Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the command");
    let (mut out, mut err) = (
        child.stdout.take().expect("piped"),
        child.stderr.take().expect("piped"),
    );
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err_reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        err.read_to_end(&mut bytes).map(|_| bytes)
    });
    let status = wait_child(&mut child);
    Output {
        status,
        stdout: reader.join().expect("reader").expect("stdout"),
        stderr: err_reader.join().expect("reader").expect("stderr"),
    }
}

/// What a command printed, for assertions and their messages.
pub fn text(output: &Output) -> (i32, String, String) {
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// What D-Bus calls of a test run on.
pub fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().expect("a runtime")
}

/// What agentctl printed as `uid`; it succeeded.
pub fn ok(daemon: &Daemon, uid: u32, args: &[&str]) -> String {
    let (code, out, err) = text(&output(&mut daemon.agentctl_as(uid, args)));
    assert_eq!(code, 0, "{args:?}: {out} {err}");
    out
}

pub fn wait_child(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if start.elapsed() > WATCHDOG {
            child.kill().expect("kill");
            panic!("a command hung for {WATCHDOG:?} and was killed");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Polls until `condition`; the watchdog fails the test, no test asserts a time.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < WATCHDOG,
            "waited {WATCHDOG:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Opens the record of a daemon that was killed.
pub async fn record_of_the_dead(database: &Path) -> agentd_storage::Store {
    let start = Instant::now();
    loop {
        match agentd_storage::Store::open(database).await {
            Ok(store) => return store,
            // The lock goes with the dead daemon's last thread.
            Err(error) => assert!(
                start.elapsed() < WATCHDOG,
                "{}: {error}",
                database.display()
            ),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, signal)
        .expect("send a signal to a process that this test started");
}

/// Alive and no zombie.
pub fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    !stat
        .rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('Z') || rest.starts_with('X'))
}

/// Direct children of `pid`.
pub fn children_of(pid: i32) -> Vec<i32> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    children
}

/// The broker's worker. The supervisor's other children are inits that an earlier worker left.
pub fn worker_of(supervisor: i32) -> Option<i32> {
    children_of(supervisor).into_iter().find(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("agentd-broker") && is_alive(*pid)
    })
}

/// All descendants of `pid`.
pub fn descendants_of(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        let children = children_of(pid);
        all.extend(&children);
        next.extend(children);
    }
    all
}
