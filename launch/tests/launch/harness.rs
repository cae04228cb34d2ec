//! What the broker does, in small: starts the real launcher in real namespaces, in both modes.
//!
//! Root mode needs root. User mode runs as an ordinary uid: the caller's, or, for a root caller, [`USER`] taken on by one
//! thread. Between `clone3` and `execveat` the child makes system calls only.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use agentd_launch::LAUNCHER_ELF;
use agentd_launch::layers::*;
use agentd_launch::parent::{Arguments, FIRST_GRANT_FD, NEEDED_CAPABILITIES, PLAN_FD};
use agentd_launch::plan::{ExecFlags, Mode, MountFlags, Network, Plan, PlanBuilder, Stdio};
use agentd_launch::status::{Control, Lifeline, MESSAGE_LEN, Status};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use rustix::process::{PidfdFlags, WaitOptions};

/// The uid and gid inside, and in user mode those outside too.
pub const USER: u32 = 1000;
/// The kernel's ids of a root-mode sandbox.
pub const SLOT_UID: u32 = 2_046_820_352 + 77;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The ids inside: those of the caller, [`USER`]'s for a root caller.
pub fn inside_id() -> u32 {
    if is_root() {
        USER
    } else {
        rustix::process::geteuid().as_raw()
    }
}

/// A feature that this machine lacks: counted and named; a failure where it is expected.
pub fn skip(feature: &str, why: &str) {
    let expected = std::env::var("AGENTD_TEST_EXPECT").unwrap_or_default();
    assert!(
        !expected.split(',').any(|name| name == feature),
        "{feature} is expected on this machine, but: {why}"
    );
    eprintln!("skipped: {feature}: {why}");
}

/// The modes that this user can launch in.
pub fn modes() -> Vec<Mode> {
    if is_root() {
        return vec![Mode::Root, Mode::User];
    }
    skip("root", "root mode needs root");
    vec![Mode::User]
}

/// A plan with the host's programs, `/proc`, `/dev` and `/tmp`, running `argv`.
pub fn plan(mode: Mode, argv: &[&str]) -> PlanBuilder {
    plan_with(mode, argv, Stdio::Pipes)
}

/// The same with other streams.
pub fn plan_with(mode: Mode, argv: &[&str], stdio: Stdio) -> PlanBuilder {
    let mut plan = PlanBuilder::new(mode);
    let system = MountFlags::RDONLY | MountFlags::OPTIONAL | MountFlags::KEEP_LINK;
    plan.ids(inside_id(), inside_id())
        .hostname("sandbox")
        .stdio(stdio)
        .cwd("/tmp");
    for path in [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib64",
        "/lib32",
        "/etc/ld.so.cache",
        "/etc/alternatives",
    ] {
        plan.bind(path, path, system);
    }
    plan.proc("/proc")
        .dev("/dev", 1 << 20)
        .tmpfs("/tmp", 16 << 20, 1024, 0o1777, MountFlags::NONE);
    plan.env("PATH=/usr/local/bin:/usr/bin:/bin");
    for arg in argv {
        plan.arg(arg);
    }
    plan
}

fn sealed(name: &str, bytes: &[u8]) -> OwnedFd {
    let memfd =
        rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let mut left = bytes;
    while !left.is_empty() {
        left = &left[rustix::io::write(&memfd, left).unwrap()..];
    }
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    memfd
}

fn launcher() -> BorrowedFd<'static> {
    static ELF: OnceLock<OwnedFd> = OnceLock::new();
    // Above every number that a child puts something on.
    let make = || {
        let elf = sealed("agentd-launch", LAUNCHER_ELF);
        rustix::io::fcntl_dupfd_cloexec(&elf, 200).unwrap()
    };
    ELF.get_or_init(make).as_fd()
}

/// A launch under way. Dropping it kills the sandbox.
pub struct Sandbox {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub status: OwnedFd,
    pub agentd_lifeline: Option<OwnedFd>,
    pub broker_lifeline: Option<OwnedFd>,
    pub status_file: File,
    reaped: bool,
}

/// Everything the child needs, ready before there is a child.
struct Child {
    uid: u32,
    barrier: RawFd,
    /// `(from, to)`; every `from` is above every `to`.
    fds: Vec<(RawFd, RawFd)>,
    elf: RawFd,
    argv: Vec<*const libc::c_char>,
    /// Whether to set `vm.memfd_noexec`, as the broker does in root mode.
    memfd_noexec: bool,
}

impl Child {
    /// Runs in the child: system calls only.
    fn exec(&self) -> ! {
        let none: [*const libc::c_char; 1] = [std::ptr::null()];
        // SAFETY: plain system calls on numbers and on memory that was made before the clone, which copied it.
        unsafe {
            let mut byte = 0u8;
            if libc::read(self.barrier, (&raw mut byte).cast(), 1) != 1 {
                libc::_exit(90);
            }
            if self.memfd_noexec {
                let sysctl = libc::open(c"/proc/sys/vm/memfd_noexec".as_ptr(), libc::O_WRONLY);
                libc::write(sysctl, c"2".as_ptr().cast(), 1);
                libc::close(sysctl);
            }
            if libc::syscall(libc::SYS_setresgid, self.uid, self.uid, self.uid) != 0
                || libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) != 0
            {
                libc::_exit(90);
            }
            let bits = NEEDED_CAPABILITIES
                .iter()
                .fold(0u32, |bits, capability| bits | 1 << capability);
            let header = [0x2008_0522u32, 0];
            let sets = [bits, bits, bits, 0, 0, 0];
            if libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) != 0 {
                libc::_exit(91);
            }
            for capability in NEEDED_CAPABILITIES {
                if libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_RAISE,
                    capability,
                    0,
                    0,
                ) != 0
                {
                    libc::_exit(92);
                }
            }
            for (from, to) in &self.fds {
                if libc::dup2(*from, *to) < 0 {
                    libc::_exit(93);
                }
            }
            let empty = c"".as_ptr();
            libc::syscall(
                libc::SYS_execveat,
                self.elf,
                empty,
                self.argv.as_ptr(),
                none.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
            libc::_exit(94)
        }
    }
}

/// Makes this thread, and no other, an ordinary user without supplementary groups.
fn become_user() {
    // SAFETY: raw system calls change the calling thread only; the numbers are valid.
    unsafe {
        assert_eq!(
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()),
            0
        );
        assert_eq!(libc::syscall(libc::SYS_setresgid, USER, USER, USER), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, USER, USER, USER), 0);
        // Changing ids made the process non-dumpable, and its children's /proc files root's.
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0), 0);
    }
}

/// Runs `work` with the rights that the broker has in `mode`.
pub fn as_broker<T: Send>(mode: Mode, work: impl FnOnce() -> T + Send) -> T {
    let prepare = || {
        if is_root() && mode == Mode::User {
            become_user();
        } else if is_root() {
            // The broker drops its supplementary groups when it starts.
            assert_eq!(
                // SAFETY: changes the calling thread only; an empty list has no address.
                unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) },
                0
            );
        }
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            prepare();
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

const LAYERS: u64 = LAYER_USER_NS
    | LAYER_MOUNT_NS
    | LAYER_PID_NS
    | LAYER_NET_NS
    | LAYER_IPC_NS
    | LAYER_UTS_NS
    | LAYER_CGROUP_NS;

/// `clone3` like `fork`, with a pidfd.
fn clone3(flags: u64, child: impl FnOnce()) -> (i32, OwnedFd) {
    let mut pidfd: RawFd = -1;
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
    let pidfd_at = (&raw mut pidfd).expose_provenance() as u64;
    let args = [
        flags | libc::CLONE_PIDFD as u64,
        pidfd_at,
        0,
        0,
        libc::SIGCHLD as u64,
        0,
        0,
        0,
    ];
    // SAFETY: without CLONE_VM this is a fork; the child calls only what is safe there and never returns.
    match unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) } {
        0 => {
            child();
            // SAFETY: ends the child without running what the parent registered.
            unsafe { libc::_exit(95) }
        }
        -1 => panic!("clone3: {}", std::io::Error::last_os_error()),
        // SAFETY: the kernel has just opened the pidfd for us.
        pid => (i32::try_from(pid).unwrap(), unsafe {
            OwnedFd::from_raw_fd(pidfd)
        }),
    }
}

fn write_proc(pid: i32, file: &str, text: &str) {
    std::fs::write(format!("/proc/{pid}/{file}"), text)
        .unwrap_or_else(|error| panic!("/proc/{pid}/{file}: {error}"));
}

/// Starts the launcher on these bytes. Call it through [`as_broker`].
pub fn spawn(mode: Mode, plan: &[u8], grants: &[OwnedFd]) -> Sandbox {
    let asked = Plan::parse(plan).map_or(ExecFlags::NONE, |plan| plan.exec());
    let (namespaces, layers) = match Plan::parse(plan).map(|plan| plan.network()) {
        Ok(Network::Host) => (NAMESPACES, LAYERS & !LAYER_NET_NS),
        _ => (NAMESPACES, LAYERS),
    };
    let memfd_noexec = mode == Mode::Root && asked.contains(ExecFlags::MEMFD_NOEXEC);
    let plan = sealed("plan", plan);
    let status_file = OwnedFd::from(tempfile::tempfile().unwrap());
    let (status, inner_status) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((agentd, agentd_lifeline), (broker, broker_lifeline), (barrier, release)) =
        (pipe(), pipe(), pipe());
    let null = OwnedFd::from(
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap(),
    );

    // Copies above every number that is a target.
    let high = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 200).unwrap();
    let placed: Vec<(OwnedFd, RawFd)> = (0..3)
        .map(|number| (high(null.as_fd()), number))
        .chain(
            [&plan, &inner_status, &agentd, &broker, &status_file, &null]
                .into_iter()
                .zip(PLAN_FD..)
                .map(|(fd, to)| (high(fd.as_fd()), to)),
        )
        .chain(
            grants
                .iter()
                .zip(FIRST_GRANT_FD..)
                .map(|(fd, to)| (high(fd.as_fd()), to)),
        )
        .collect();
    let idmap = if mode == Mode::Root && !grants.is_empty() {
        LAYER_IDMAP
    } else {
        0
    };
    let grants = u32::try_from(grants.len()).unwrap();
    let argv: [CString; 4] = Arguments {
        mode,
        grants,
        layers: layers | idmap,
    }
    .to_argv();
    let child = Child {
        uid: inside_id(),
        barrier: barrier.as_raw_fd(),
        fds: placed
            .iter()
            .map(|(from, to)| (from.as_raw_fd(), *to))
            .collect(),
        elf: launcher().as_raw_fd(),
        argv: argv
            .iter()
            .map(|arg| arg.as_ptr())
            .chain([std::ptr::null()])
            .collect(),
        memfd_noexec,
    };
    let (pid, pidfd) = clone3(namespaces as u64, || child.exec());
    let outside = if mode == Mode::Root {
        SLOT_UID
    } else {
        inside_id()
    };
    write_proc(pid, "setgroups", "deny");
    write_proc(pid, "uid_map", &format!("{} {outside} 1", inside_id()));
    write_proc(pid, "gid_map", &format!("{} {outside} 1", inside_id()));
    rustix::io::write(&release, &[1]).unwrap();
    Sandbox {
        pid,
        pidfd,
        status,
        agentd_lifeline: Some(agentd_lifeline),
        broker_lifeline: Some(broker_lifeline),
        status_file: status_file.into(),
        reaped: false,
    }
}

/// A grant of `path` as the broker hands it over: in root mode a mount in which ids `owner` are the sandbox's.
pub fn grant(mode: Mode, path: &std::path::Path, owner: u32) -> OwnedFd {
    use rustix::fs::OFlags;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
    if mode == Mode::User {
        return directory;
    }
    use rustix::mount::OpenTreeFlags;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&directory, c"", flags).unwrap();
    use std::os::unix::fs::FileTypeExt;
    if std::fs::metadata(path)
        .unwrap()
        .file_type()
        .is_char_device()
    {
        return tree;
    }
    // The map lives in a user namespace that exists for the moment.
    let (pid, pidfd) = clone3(libc::CLONE_NEWUSER as u64, || {
        loop {
            // SAFETY: waits for the signal that ends it.
            unsafe { libc::pause() };
        }
    });
    write_proc(pid, "uid_map", &format!("{owner} {SLOT_UID} 1"));
    write_proc(pid, "gid_map", &format!("{owner} {SLOT_UID} 1"));
    let namespace = File::open(format!("/proc/{pid}/ns/user")).unwrap();
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    let attr = [MOUNT_ATTR_IDMAP, 0, 0, namespace.as_raw_fd() as u64];
    // SAFETY: an empty path and a `struct mount_attr` of the length given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            0x1000,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    };
    assert_eq!(result, 0, "idmap: {}", std::io::Error::last_os_error());
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    rustix::process::waitpid(rustix::process::Pid::from_raw(pid), WaitOptions::empty()).unwrap();
    tree
}

impl Sandbox {
    /// The next message and what came with it; `None` at the end.
    pub fn receive(&self) -> Option<(Status, Vec<OwnedFd>)> {
        let mut packet = [0u8; MESSAGE_LEN + 1];
        let mut space = [std::mem::MaybeUninit::uninit(); 256];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [std::io::IoSliceMut::new(&mut packet)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = match rustix::net::recvmsg(&self.status, &mut buffers, &mut ancillary, flags)
        {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => panic!("receiving status: {error}"),
        };
        let fds = ancillary
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        if received == 0 {
            return None;
        }
        Some((
            Status::decode(&packet[..received]).expect("a status message"),
            fds,
        ))
    }

    pub fn send(&self, control: Control) {
        rustix::net::send(
            &self.status,
            &control.encode(),
            rustix::net::SendFlags::empty(),
        )
        .unwrap();
    }

    /// Renews a lifeline; returns the end to hold.
    pub fn renew(&self, which: Lifeline) -> OwnedFd {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let packet = Control::Lifeline { which }.encode();
        agentd_kernel::fdpass::send(self.status.as_fd(), &packet, &[read.as_fd()]).unwrap();
        write
    }

    /// What the init left on file.
    pub fn on_file(&self) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; MESSAGE_LEN + 1];
        let len = self.status_file.read_at(&mut bytes, 0).unwrap();
        bytes.truncate(len);
        bytes
    }

    /// The fds of `Ready`, and the layers.
    pub fn ready(&self) -> (Vec<OwnedFd>, u64) {
        match self.receive() {
            Some((
                Status::Ready {
                    agent_pid, layers, ..
                },
                fds,
            )) => {
                assert!(agent_pid > 1);
                (fds, layers)
            }
            Some((Status::Failed(failure), _)) => panic!("launch failed: {failure:?}"),
            other => panic!("expected Ready, got {other:?} (init {:?})", self.wait_raw()),
        }
    }

    fn wait_raw(&self) -> Option<rustix::process::WaitStatus> {
        rustix::process::waitpid(
            rustix::process::Pid::from_raw(self.pid),
            WaitOptions::empty(),
        )
        .unwrap()
        .map(|(_, s)| s)
    }

    /// Waits for the init's end, which is the end of everything in the sandbox. Its exit code, if it exited.
    pub fn wait(&mut self) -> Option<i32> {
        let status = self.wait_raw().unwrap();
        self.reaped = true;
        status.exit_status()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if !self.reaped {
            rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL).ok();
            self.wait_raw();
        }
    }
}

/// A pidfd for another process.
pub fn pidfd_of(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(rustix::process::Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// What came of a program that was run to its end.
#[derive(Debug)]
pub struct Ended {
    pub status: Status,
    pub layers: u64,
    pub stdout: String,
    pub stderr: String,
    pub init_code: Option<i32>,
}

impl Ended {
    /// The program's exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        match self.status {
            Status::Exited { wait_status, .. } if wait_status & 0x7f == 0 => {
                Some(wait_status >> 8 & 0xff)
            }
            _ => None,
        }
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        match self.status {
            Status::Exited { wait_status, .. } if wait_status & 0x7f != 0 => {
                Some(wait_status & 0x7f)
            }
            _ => None,
        }
    }
}

pub fn read_all(fd: OwnedFd) -> String {
    let mut text = Vec::new();
    File::from(fd).read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// Runs a plan with piped streams to its end.
pub fn run_with(mode: Mode, plan: &PlanBuilder, grants: &[OwnedFd]) -> Ended {
    let bytes = plan.finish().expect("a valid plan");
    let mut sandbox = as_broker(mode, || spawn(mode, &bytes, grants));
    let (mut fds, layers) = sandbox.ready();
    let stderr = fds.remove(2);
    let reader = std::thread::spawn(move || read_all(stderr));
    let stdout = read_all(fds.remove(1));
    let stderr = reader.join().unwrap();
    let (status, _) = sandbox.receive().expect("the program's end");
    Ended {
        status,
        layers,
        stdout,
        stderr,
        init_code: sandbox.wait(),
    }
}

/// Runs a shell script.
pub fn shell(mode: Mode, script: &str) -> Ended {
    run_with(mode, &plan(mode, &["/bin/sh", "-c", script]), &[])
}

/// Runs a Python script, if there is a Python.
pub fn python(mode: Mode, script: &str) -> Option<Ended> {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        skip("python3", "/usr/bin/python3 is not there");
        return None;
    }
    let mut plan = plan(mode, &["/usr/bin/python3", "-I", "-c", script]);
    plan.env("PYTHONDONTWRITEBYTECODE=1");
    Some(run_with(mode, &plan, &[]))
}
