//! Starting the launcher: one `clone3`, a barrier, the id maps, the descriptors, `execveat`.
//!
//! What the launcher is owed (descriptors, arguments, an empty environment) is [`agentd_launch::parent`]'s contract. It runs
//! with all capabilities of its own user namespace, as the agent's kernel uid.
//!
//! Between `clone3` and `execveat` the child makes async-signal-safe calls only. What fails there is reported on the
//! status socket as a launcher's failure would be, and the child exits.

use crate::failure::failed;
use crate::launch::plan_mode;
use crate::log::log;
use crate::start::StartError;
use agentd_broker::protocol::{ErrorCode, Failure, Mode};
use agentd_kernel::cgroup::Group;
use agentd_kernel::pidfd::PidFd;
use agentd_launch::parent::{
    AGENTD_LIFELINE_FD, Arguments, BROKER_LIFELINE_FD, FIRST_GRANT_FD, LAUNCH_FAILED, NOTE_FD,
    PLAN_FD, STATUS_FD, STATUS_FILE_FD,
};
use agentd_launch::plan::DiskLimit;
use agentd_launch::status::{self, Status, Step};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Strings in the launcher's command line.
const ARGUMENTS: usize = 4;

/// What every launch uses: the program, its stdio, the broker's lifeline.
#[derive(Debug)]
pub struct Launcher {
    program: OwnedFd,
    null: OwnedFd,
    lifeline: OwnedFd,
    /// Held open, never written: when this process dies every agent's read end hangs up.
    _lifeline_writer: OwnedFd,
    /// The soft limit of descriptors that agents start from.
    soft_nofile: Option<u64>,
    /// Whether the service manager shields this process from the OOM killer, which agents must not inherit.
    shielded: bool,
}

/// One launch.
#[derive(Debug)]
pub struct Spawn<'a> {
    pub mode: Mode,
    /// Inside ids.
    pub uid: u32,
    pub gid: u32,
    /// Kernel uid and gid.
    pub host_uid: u32,
    pub host_gid: u32,
    /// The layers that the broker vouches for.
    pub layers: u64,
    pub plan: BorrowedFd<'a>,
    pub agentd_lifeline: BorrowedFd<'a>,
    /// Where the init leaves its last report.
    pub status_file: BorrowedFd<'a>,
    /// For [`NOTE_FD`].
    pub note: Option<BorrowedFd<'a>>,
    pub grants: Vec<BorrowedFd<'a>>,
    pub group: &'a Group,
    /// Set `vm.memfd_noexec` in the new pid namespace; root mode only, an ordinary user may not.
    pub memfd_noexec: bool,
    /// What may be added to these grants.
    pub disk: Option<(DiskLimit, Vec<BorrowedFd<'a>>)>,
}

/// A started launcher.
#[derive(Debug)]
pub struct Spawned {
    pub pid: i32,
    pub pidfd: PidFd,
    /// The same for agentd.
    pub client_pidfd: OwnedFd,
    /// agentd's end of the status socket.
    pub status: OwnedFd,
    /// The same for agentd.
    pub client_status: OwnedFd,
    /// What holds its limit of disk.
    pub meter: Option<PidFd>,
}

/// What the child needs, computed before it exists.
struct Child<'a> {
    /// Where each descriptor comes from, in order from descriptor 0.
    sources: Vec<RawFd>,
    program: RawFd,
    /// Where the status socket is at the moment.
    status: Cell<RawFd>,
    barrier: RawFd,
    barrier_writer: RawFd,
    argv: [*const libc::c_char; ARGUMENTS + 1],
    /// Content of the map files, when the child writes them itself (user mode).
    own_maps: Option<(&'a CStr, &'a CStr)>,
    /// Ids to take on (root mode).
    become_ids: Option<(u32, u32)>,
    soft_nofile: Option<libc::rlimit>,
    shielded: bool,
    /// Whether memory files made in the new pid namespace are never executed (root mode).
    memfd_noexec: bool,
    /// Version 1 cgroups to enter.
    tasks: Vec<RawFd>,
}

impl Launcher {
    pub fn prepare(soft_nofile: Option<u64>) -> Result<Self, StartError> {
        use rustix::fs::{Mode, OFlags, open};
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(StartError::os("/dev/null"))?;
        let (lifeline, lifeline_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(StartError::os("pipe"))?;
        let program = sealed_program().map_err(StartError::os("the launcher's memfd"))?;
        Ok(Self {
            program,
            null,
            lifeline,
            _lifeline_writer: lifeline_writer,
            soft_nofile,
            shielded: fs::read_to_string("/proc/self/oom_score_adj")
                .is_ok_and(|text| text.starts_with('-')),
        })
    }

    /// For the inits of adopted agents.
    pub fn lifeline(&self) -> BorrowedFd<'_> {
        self.lifeline.as_fd()
    }

    /// Starts a launcher in its own namespaces and in `spawn.group`. On failure nothing of it is left.
    pub fn spawn(&self, spawn: &Spawn<'_>) -> Result<Spawned, Failure> {
        let fault =
            |what: &'static str| move |error: io::Error| failed(ErrorCode::Spawn, what, &error);
        let (status, launcher_status) =
            agentd_kernel::fdpass::seqpacket_pair().map_err(fault("socketpair"))?;
        let client_status = status
            .try_clone()
            .map_err(fault("duplicating the socket"))?;
        let (barrier, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| failed(ErrorCode::Spawn, "pipe", &errno.into()))?;
        let arguments = Arguments {
            mode: plan_mode(spawn.mode),
            grants: spawn.grants.len() as u32,
            layers: spawn.layers,
        };
        let arguments = arguments.to_argv();
        let mut argv = [std::ptr::null(); ARGUMENTS + 1];
        for (pointer, argument) in argv.iter_mut().zip(&arguments) {
            *pointer = argument.as_ptr();
        }
        let map = |inside: u32, outside: u32| {
            CString::new(format!("{inside} {outside} 1")).expect("no NUL")
        };
        let (uid_map, gid_map) = (
            map(spawn.uid, spawn.host_uid),
            map(spawn.gid, spawn.host_gid),
        );

        let tasks = spawn
            .group
            .v1_tasks()
            .map_err(|error| failed(ErrorCode::Cgroup, &error.operation, &error.source))?;
        let null = self.null.as_raw_fd();
        let mut sources = vec![null; FIRST_GRANT_FD as usize];
        sources[PLAN_FD as usize] = spawn.plan.as_raw_fd();
        sources[STATUS_FD as usize] = launcher_status.as_raw_fd();
        sources[AGENTD_LIFELINE_FD as usize] = spawn.agentd_lifeline.as_raw_fd();
        sources[BROKER_LIFELINE_FD as usize] = self.lifeline.as_raw_fd();
        sources[STATUS_FILE_FD as usize] = spawn.status_file.as_raw_fd();
        if let Some(note) = spawn.note {
            sources[NOTE_FD as usize] = note.as_raw_fd();
        }
        sources.extend(spawn.grants.iter().map(AsRawFd::as_raw_fd));
        let child = Child {
            sources,
            program: self.program.as_raw_fd(),
            status: Cell::new(launcher_status.as_raw_fd()),
            barrier: barrier.as_raw_fd(),
            barrier_writer: release.as_raw_fd(),
            argv,
            shielded: self.shielded,
            memfd_noexec: spawn.memfd_noexec,
            tasks: tasks.iter().map(AsRawFd::as_raw_fd).collect(),
            own_maps: (spawn.mode == Mode::User).then_some((&uid_map, &gid_map)),
            become_ids: (spawn.mode == Mode::Root).then_some((spawn.uid, spawn.gid)),
            soft_nofile: self.soft_nofile.map(|soft| {
                let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
                libc::rlimit {
                    rlim_cur: soft,
                    rlim_max: hard.unwrap_or(libc::RLIM_INFINITY),
                }
            }),
        };

        let mut pidfd: RawFd = -1;
        // SAFETY: an all-zero clone_args is valid.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = NAMESPACES | libc::CLONE_PIDFD as u64;
        arguments.pidfd = (&raw mut pidfd) as u64;
        arguments.exit_signal = libc::SIGCHLD as u64;
        if let Some(directory) = spawn.group.unified() {
            arguments.flags |= CLONE_INTO_CGROUP;
            arguments.cgroup = directory.as_raw_fd() as u64;
        }
        // SAFETY: no CLONE_VM, so this is a fork: the child has its own copy of `child` and of the stack, and runs only
        // `Child::run`, which never returns. The process has a single thread, so no lock is held by anyone.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const arguments,
                size_of::<libc::clone_args>(),
            )
        };
        match pid {
            -1 => {
                let error = io::Error::last_os_error();
                return Err(failed(
                    ErrorCode::Spawn,
                    "clone3 with the agent's namespaces",
                    &error,
                ));
            }
            0 => child.run(),
            _ => {}
        }
        let pid = pid as i32;
        // SAFETY: clone3 succeeded with CLONE_PIDFD: a new descriptor that nobody else owns.
        let pidfd = PidFd::from(unsafe { OwnedFd::from_raw_fd(pidfd) });
        let maps = (spawn.mode == Mode::Root).then_some((uid_map.as_c_str(), gid_map.as_c_str()));
        let released = write_maps(pid, maps).and_then(|()| {
            let client_pidfd = pidfd
                .as_fd()
                .try_clone_to_owned()
                .map_err(fault("duplicating the pidfd"))?;
            let meter = match &spawn.disk {
                // It lets the launcher go on once it has seen what is there.
                Some((limit, places)) => Some(crate::meter::start(&crate::meter::Meter {
                    mode: spawn.mode,
                    limit: *limit,
                    places: places.clone(),
                    init: pidfd.as_fd(),
                    status_file: spawn.status_file,
                    release: release.as_fd(),
                    ids: (spawn.uid, spawn.gid),
                    maps: (&uid_map, &gid_map),
                    cgroup: spawn.group.unified(),
                    tasks: &tasks,
                })?),
                None => {
                    rustix::io::write(&release, &[1]).map_err(|errno| {
                        failed(ErrorCode::Spawn, "releasing the launcher", &errno.into())
                    })?;
                    None
                }
            };
            Ok((client_pidfd, meter))
        });
        match released {
            Ok((client_pidfd, meter)) => Ok(Spawned {
                pid,
                pidfd,
                client_pidfd,
                status,
                client_status,
                meter,
            }),
            Err(failure) => {
                discard(&pidfd);
                Err(failure)
            }
        }
    }
}

/// All but the network namespace, which the launcher makes while it fills the view.
const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWTIME) as u64;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The parent's part while the child waits: the id maps, in root mode.
pub fn write_maps(pid: i32, maps: Option<(&CStr, &CStr)>) -> Result<(), Failure> {
    let Some((uid_map, gid_map)) = maps else {
        return Ok(());
    };
    for (name, content) in [
        ("setgroups", c"deny"),
        ("uid_map", uid_map),
        ("gid_map", gid_map),
    ] {
        let path = format!("/proc/{pid}/{name}");
        let write = || {
            fs::OpenOptions::new()
                .write(true)
                .open(&path)?
                .write_all(content.to_bytes())
        };
        write().map_err(|error| {
            failed(
                ErrorCode::Spawn,
                format_args!("writing the agent's {name}"),
                &error,
            )
        })?;
    }
    Ok(())
}

/// Kills and reaps a child that waits at the barrier.
pub fn discard(pidfd: &PidFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let reaped = pidfd.kill().and_then(|()| {
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).map_err(io::Error::from)
    });
    if let Err(error) = reaped {
        log!("reaping a failed launch: {error}");
    }
}

impl Child<'_> {
    /// The child, from clone3 to execveat. Async-signal-safe: no allocation, no locks, no Rust runtime.
    fn run(&self) -> ! {
        let errno = match self.prepare_and_exec() {
            Ok(never) => match never {},
            Err(errno) => errno,
        };
        let failure = status::Failure::new(Step::Init, errno, status::NO_RECORD);
        let message = Status::Failed(failure).encode();
        // SAFETY: the buffer is live, and the call takes a descriptor number besides.
        unsafe {
            libc::send(
                self.status.get(),
                message.as_ptr().cast(),
                message.len(),
                libc::MSG_NOSIGNAL,
            );
            libc::_exit(LAUNCH_FAILED)
        }
    }

    fn prepare_and_exec(&self) -> Result<std::convert::Infallible, i32> {
        // SAFETY: every call below is async-signal-safe and gets numbers, or pointers to memory of this function and of
        // `self`, which live until execveat replaces the process. The child is single-threaded.
        unsafe {
            libc::close(self.barrier_writer);
            let mut byte = [0u8];
            // End of file: the broker died or gave this launch up.
            if libc::read(self.barrier, byte.as_mut_ptr().cast(), 1) != 1 {
                return Err(libc::ECANCELED);
            }
            for &tasks in &self.tasks {
                // 0 is the writer itself; the right to move it is that of the broker, who opened the file.
                check(libc::write(tasks, c"0".as_ptr().cast(), 1) as i32)?;
            }
            if let Some((uid_map, gid_map)) = self.own_maps {
                own_maps((uid_map, gid_map))?;
            }
            if self.shielded {
                write_file(c"/proc/self/oom_score_adj", c"0")?;
            }
            // Now that the process is where it stays: its cgroup becomes the root of its view.
            check(libc::unshare(libc::CLONE_NEWCGROUP))?;
            if self.memfd_noexec {
                // The one moment: the pid namespace is new, and to the kernel this is still the host's uid 0, which alone
                // may write a sysctl. Where there is none (before Linux 6.3), or /proc/sys is read-only, the launcher finds
                // the layer missing, and the plan says whether that matters.
                write_file(c"/proc/sys/vm/memfd_noexec", c"2").unwrap_or(());
            }
            if let Some((uid, gid)) = self.become_ids {
                check(libc::syscall(libc::SYS_setresgid, gid, gid, gid) as i32)?;
                check(libc::syscall(libc::SYS_setresuid, uid, uid, uid) as i32)?;
            }
            raise_ambient()?;
            if let Some(limit) = &self.soft_nofile {
                check(libc::setrlimit(libc::RLIMIT_NOFILE, limit))?;
            }
            reset_signals()?;
            libc::umask(0o022);
            let program = self.place_descriptors()?;
            let environment = [std::ptr::null::<libc::c_char>()];
            libc::syscall(
                libc::SYS_execveat,
                program,
                c"".as_ptr(),
                self.argv.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
            Err(*libc::__errno_location())
        }
    }

    /// Puts `sources` on 0, 1, 2, … and the program just above them, close-on-exec; closes everything else.
    fn place_descriptors(&self) -> Result<RawFd, i32> {
        let program = self.sources.len() as RawFd;
        let above = program + 1;
        let all = || self.sources.iter().copied().chain([self.program]);
        // SAFETY: descriptor numbers only. The child owns its whole table, and no Rust value is dropped in it any more.
        unsafe {
            // First copies of all above the targets, so that placing one never overwrites the source of another.
            let mut copies = [-1; MAX_SOURCES];
            for (copy, source) in copies.iter_mut().zip(all()) {
                *copy = check(libc::fcntl(source, libc::F_DUPFD_CLOEXEC, above))?;
            }
            self.status.set(copies[STATUS_FD as usize]);
            for (target, copy) in (0..program).zip(copies) {
                check(libc::dup3(copy, target, 0))?;
            }
            self.status.set(STATUS_FD);
            check(libc::dup3(
                copies[program as usize],
                program,
                libc::O_CLOEXEC,
            ))?;
            check(libc::close_range(above as u32, u32::MAX, 0))?;
        }
        Ok(program)
    }
}

/// The id maps of a process that has just entered a user namespace of its own (user mode). Async-signal-safe.
pub fn own_maps((uid_map, gid_map): (&CStr, &CStr)) -> Result<(), i32> {
    // SAFETY: numbers only. The copy of a non-dumpable process is not dumpable either, and its /proc files then belong to root.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) })?;
    write_file(c"/proc/self/setgroups", c"deny")?;
    write_file(c"/proc/self/uid_map", uid_map)?;
    write_file(c"/proc/self/gid_map", gid_map)
}

/// All of them, and the program.
const MAX_SOURCES: usize = FIRST_GRANT_FD as usize + agentd_broker::protocol::MAX_GRANTS + 1;

fn check(result: i32) -> Result<i32, i32> {
    if result >= 0 {
        return Ok(result);
    }
    // SAFETY: __errno_location points to this thread's errno.
    Err(unsafe { *libc::__errno_location() })
}

/// Writes a small file in one call. Async-signal-safe.
fn write_file(path: &CStr, content: &CStr) -> Result<(), i32> {
    let bytes = content.to_bytes();
    // SAFETY: both strings are NUL-terminated and live; the descriptor is closed once, here.
    unsafe {
        let fd = check(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        let result = check(written.min(0) as i32);
        libc::close(fd);
        result.map(drop)
    }
}

/// Makes the capabilities in the new user namespace survive an exec by a uid that is not 0 there. Async-signal-safe.
fn raise_ambient() -> Result<(), i32> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the layouts are those of capget(2) version 3, which takes two sets; prctl takes numbers.
    unsafe {
        check(libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) as i32)?;
        for set in &mut sets {
            set.inheritable = set.permitted;
        }
        check(libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) as i32)?;
        let permitted = u64::from(sets[1].permitted) << 32 | u64::from(sets[0].permitted);
        for capability in (0..64).filter(|bit| permitted & 1 << bit != 0) {
            check(libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                capability,
                0,
                0,
            ))?;
        }
    }
    Ok(())
}

/// Default dispositions and an empty mask. Async-signal-safe.
fn reset_signals() -> Result<(), i32> {
    // SAFETY: numbers, and a sigset that sigemptyset has written.
    unsafe {
        // The Rust runtime ignores SIGPIPE; nothing else was changed in this process.
        if libc::signal(libc::SIGPIPE, libc::SIG_DFL) == libc::SIG_ERR {
            return Err(*libc::__errno_location());
        }
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const set,
            std::ptr::null_mut(),
        ))?;
    }
    Ok(())
}

/// The launcher's ELF image in a memfd that nobody can change.
fn sealed_program() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_EXEC is Linux 6.3 and needed where vm.memfd_noexec is 1.
    let memfd = memfd_create(c"agentd-launch", flags | MemfdFlags::EXEC)
        .or_else(|_| memfd_create(c"agentd-launch", flags))?;
    let mut file = File::from(memfd);
    file.write_all(agentd_launch::LAUNCHER_ELF)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}
