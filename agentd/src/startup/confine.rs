//! The daemon confines itself: identity, Landlock and seccomp.
//!
//! Runs once, on the only thread, after every socket is open, every key is read and the broker is started, and
//! before the runtime makes its threads (Landlock binds a thread and its later children). From here on a daemon
//! that an agent has taken over through the proxy, the gateway or the bus can neither execute a program nor open a
//! file outside its own two directories, and holds no capability. What it still can do is listed in
//! SECURITY.md.
//!
//! Fails closed: a host without Landlock or seccomp is named and the daemon does not start, unless the
//! configuration says `[daemon] confine = "degrade"`.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The Landlock ABI this code was written against; newer rights are never handled by accident.
const WRITTEN_FOR: ABI = ABI::V7;

/// Who the daemon becomes when it was started as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceIds {
    pub uid: u32,
    pub gid: u32,
}

/// What was really put in force, for the log and `agentctl doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    pub landlock: bool,
    pub seccomp: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("cannot become uid {uid}: {call} failed")]
    Identity {
        uid: u32,
        call: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot drop capabilities")]
    Capabilities(#[from] caps::errors::CapsError),
    #[error("cannot set {0}")]
    Prctl(&'static str, #[source] std::io::Error),
    #[error(
        "cannot confine agentd with Landlock: {0}; this kernel may lack it (see `agentctl doctor`)"
    )]
    Landlock(String),
    #[error("cannot confine agentd with seccomp: {0}")]
    Seccomp(String),
}

/// Gives up root for good. A no-op for a daemon that an ordinary user started.
pub fn drop_root(ids: ServiceIds) -> Result<(), ConfineError> {
    let fault = |call| {
        move |e: rustix::io::Errno| ConfineError::Identity {
            uid: ids.uid,
            call,
            source: e.into(),
        }
    };
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(ids.uid),
        rustix::fs::Gid::from_raw(ids.gid),
    );
    // While root still may: what is not in the bounding set can never come back by executing anything.
    caps::clear(None, caps::CapSet::Bounding)?;
    rustix::thread::set_thread_groups(&[]).map_err(fault("setgroups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(fault("setresgid"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(fault("setresuid"))?;
    Ok(())
}

/// Drops every capability, forbids new privileges and makes the process non-dumpable.
pub fn drop_privileges() -> Result<(), ConfineError> {
    for set in [
        caps::CapSet::Ambient,
        caps::CapSet::Effective,
        caps::CapSet::Permitted,
        caps::CapSet::Inheritable,
    ] {
        caps::clear(None, set)?;
    }
    rustix::thread::set_no_new_privs(true)
        .map_err(|e| ConfineError::Prctl("no_new_privs", e.into()))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| ConfineError::Prctl("PR_SET_DUMPABLE", e.into()))?;
    Ok(())
}

/// Files that name resolution and the clock read after start-up. Absent ones are skipped.
const READABLE: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/passwd",
    "/etc/group",
    "/etc/localtime",
    "/etc/ld.so.cache",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager/resolv.conf",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/dev/null",
    "/dev/urandom",
    "/proc/self",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/kernel/random/boot_id",
    "/sys/devices/system/cpu",
];

/// Puts the Landlock ruleset in force: `writable` below its own directories, [`READABLE`] and `readable` for reading.
pub fn restrict_files(writable: &[&Path], readable: &[PathBuf]) -> Result<(), ConfineError> {
    let fault = |e: &dyn std::fmt::Display| ConfineError::Landlock(e.to_string());
    let all = AccessFs::from_all(WRITTEN_FOR);
    // Executing is granted nowhere: the broker starts programs, the daemon never does.
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write =
        all & !AccessFs::Execute & !AccessFs::MakeChar & !AccessFs::MakeBlock & !AccessFs::IoctlDev;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|r| r.scope(Scope::AbstractUnixSocket | Scope::Signal))
        .and_then(Ruleset::create)
        .map_err(|e| fault(&e))?;
    for path in writable {
        let fd = PathFd::new(path).map_err(|e| fault(&e))?;
        rules = rules
            .add_rule(PathBeneath::new(fd, write))
            .map_err(|e| fault(&e))?;
    }
    for path in READABLE
        .iter()
        .map(Path::new)
        .chain(readable.iter().map(PathBuf::as_path))
    {
        let Ok(fd) = PathFd::new(path) else { continue };
        let access = if path.is_dir() {
            read
        } else {
            AccessFs::ReadFile.into()
        };
        rules = rules
            .add_rule(PathBeneath::new(fd, access))
            .map_err(|e| fault(&e))?;
    }
    let status = rules.restrict_self().map_err(|e| fault(&e))?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(ConfineError::Landlock(
            "the kernel enforces no ruleset".into(),
        )),
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
    }
}

/// System calls that a daemon made of sockets, files, threads and a database uses. Everything else answers EPERM:
/// above all execve, ptrace, mount, namespaces, bpf, keyrings, io_uring, and handing memory of other processes around.
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = &[
    // files and directories
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_pwritev2,
    libc::SYS_open, libc::SYS_openat, libc::SYS_close, libc::SYS_close_range, libc::SYS_stat, libc::SYS_fstat, libc::SYS_lstat,
    libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_access, libc::SYS_faccessat, libc::SYS_faccessat2,
    libc::SYS_lseek, libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fsync, libc::SYS_fdatasync,
    libc::SYS_fcntl, libc::SYS_flock, libc::SYS_ioctl, libc::SYS_getdents64, libc::SYS_getcwd,
    libc::SYS_mkdir, libc::SYS_mkdirat, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_unlinkat, libc::SYS_rename, libc::SYS_renameat, libc::SYS_renameat2,
    libc::SYS_readlink, libc::SYS_readlinkat, libc::SYS_fchmod, libc::SYS_chmod, libc::SYS_fchown, libc::SYS_umask, libc::SYS_utimensat,
    libc::SYS_dup, libc::SYS_dup2, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_splice, libc::SYS_tee, libc::SYS_copy_file_range, libc::SYS_sendfile,
    libc::SYS_memfd_create, libc::SYS_fadvise64,
    // memory
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_brk, libc::SYS_msync, libc::SYS_membarrier,
    // sockets
    libc::SYS_socket, libc::SYS_socketpair, libc::SYS_bind, libc::SYS_listen, libc::SYS_connect, libc::SYS_accept, libc::SYS_accept4,
    libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_shutdown,
    libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_recvmmsg,
    // waiting and time
    libc::SYS_poll, libc::SYS_ppoll, libc::SYS_select, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2, libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_nanosleep, libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_restart_syscall,
    // threads and signals of this process
    libc::SYS_clone, libc::SYS_clone3, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq, libc::SYS_set_tid_address, libc::SYS_arch_prctl,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_getscheduler, libc::SYS_sched_getparam, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_tgkill,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending, libc::SYS_sigaltstack, libc::SYS_signalfd4,
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_pidfd_send_signal,
    // who and how much
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getgroups,
    libc::SYS_prlimit64, libc::SYS_getrlimit, libc::SYS_getrusage, libc::SYS_times, libc::SYS_sysinfo, libc::SYS_uname, libc::SYS_getrandom,
    libc::SYS_prctl, libc::SYS_capget, libc::SYS_getcpu,
];

/// Whether io_uring may be used. It may never be set up from here on: what a ring does passes no filter, so each ring is
/// restricted to the operations of its owner before this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rings {
    None,
    /// Rings that were made before are entered, and each enabled by the thread that it will belong to.
    MadeBefore,
}

/// `IORING_REGISTER_ENABLE_RINGS`: the one registration that is left.
const ENABLE_RINGS: u64 = 12;

/// Loads the daemon's own system-call allow list on every later thread.
pub fn restrict_syscalls(rings: Rings) -> Result<(), ConfineError> {
    let fault = |e: &dyn std::fmt::Display| ConfineError::Seccomp(e.to_string());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| fault(&e))?;
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&nr| (nr, Vec::new())).collect();
    if rings == Rings::MadeBefore {
        let enable =
            SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, ENABLE_RINGS)
                .and_then(|condition| SeccompRule::new(vec![condition]))
                .map_err(|e| fault(&e))?;
        rules.insert(libc::SYS_io_uring_enter, Vec::new());
        rules.insert(libc::SYS_io_uring_register, vec![enable]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let program: BpfProgram = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)
        .and_then(TryInto::try_into)
        .map_err(|e| fault(&e))?;
    seccompiler::apply_filter(&program).map_err(|e| fault(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allow_list_has_no_way_to_run_or_reach_into_a_process() {
        for nr in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_keyctl,
            libc::SYS_kill,
        ] {
            assert!(
                !ALLOWED.contains(&nr),
                "system call {nr} must stay out of agentd"
            );
        }
    }

    #[test]
    fn the_allow_list_names_each_call_once() {
        let mut seen = std::collections::BTreeSet::new();
        assert!(ALLOWED.iter().all(|nr| seen.insert(nr)));
    }
}
