//! What the broker gives up before it reads its first request.
//!
//! Of the capabilities, root mode keeps three, each for one thing:
//!
//! | capability | for |
//! | --- | --- |
//! | `CAP_SYS_ADMIN` | cloning a granted mount and mapping its ids (`open_tree`, `mount_setattr`) |
//! | `CAP_SETUID`, `CAP_SETGID` | writing the id maps of agents' user namespaces and of idmapped mounts |
//!
//! `CAP_DAC_OVERRIDE` stays permitted but not effective where the broker runs in the root of a
//! version 1 cgroup hierarchy: that directory is mode 0555, and the broker's own directory in it is
//! removed at the end ([`remove`]).
//!
//! So does `CAP_AUDIT_CONTROL` where this process listens to the kernel's audit: to ask what it has
//! lost, and to turn it off at the end (`audit.rs`).
//!
//! Signalling agents needs none: the creator of a user namespace has all rights over it. The rest
//! of the file is `no_new_privs`, the descriptor limits, and a seccomp deny list. Agents inherit
//! that list (below the launcher's own filters), so it holds only what neither the broker, nor the
//! launcher, nor any agent may ever call. `setns` is on it but for network namespaces: the launcher
//! enters its own (ADR 28), and the base filter refuses all of it to agents.
//!
//! Runs once, at start; any failure ends the process.

use crate::audit::Audit;
use crate::log::log;
use crate::plane::Plane;
use crate::start::StartError;
use agentd_broker::protocol::{MAX_AGENTS, MAX_KEPT, Mode};
use agentd_kernel::cgroup::Subtree;
use caps::{CapSet, Capability};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::{BTreeMap, HashSet};
use std::io;

/// Hard limit of descriptors that agents can be given, where the system allows it.
const NOFILE_HARD: u64 = 1 << 20;
/// Descriptors that the broker itself may have open: pidfd, status socket, cgroup directory and events of each agent, what
/// is kept for it, and those of one launch.
const NOFILE_OWN: u64 = (MAX_AGENTS * (4 + MAX_KEPT) + 1024) as u64;

const KEPT: [Capability; 3] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
];

/// Resets what was inherited and raises the descriptor limits. Returns the soft limit that agents start from.
pub fn process(mode: Mode) -> Result<Option<u64>, StartError> {
    // SAFETY: no other thread exists, so nothing reads the environment at the same time.
    if unsafe { libc::clearenv() } != 0 {
        return Err(StartError::os("clearenv")(io::Error::last_os_error()));
    }
    rustix::process::chdir("/").map_err(StartError::os("chdir /"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(StartError::os("PR_SET_DUMPABLE"))?;
    standard_streams()?;

    let before = getrlimit(Resource::Nofile);
    let mut hard = before.maximum;
    if mode == Mode::Root {
        rustix::thread::set_thread_groups(&[]).map_err(StartError::os("setgroups"))?;
        // A container may refuse even root; agents then live with the limit there is.
        let raised = Rlimit {
            current: before.current,
            maximum: Some(NOFILE_HARD),
        };
        if hard.is_some_and(|hard| hard < NOFILE_HARD)
            && setrlimit(Resource::Nofile, raised).is_ok()
        {
            hard = Some(NOFILE_HARD);
        }
    }
    let own = Rlimit {
        current: Some(hard.map_or(NOFILE_OWN, |hard| hard.min(NOFILE_OWN))),
        maximum: hard,
    };
    setrlimit(Resource::Nofile, own).map_err(StartError::os("RLIMIT_NOFILE"))?;
    Ok(before.current)
}

/// stdin and stdout are /dev/null; stderr is kept for the log, if there is one.
fn standard_streams() -> Result<(), StartError> {
    use rustix::fs::{Mode, OFlags, open};
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(StartError::os("/dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(StartError::os("dup2 stdin"))?;
    rustix::stdio::dup2_stdout(&null).map_err(StartError::os("dup2 stdout"))?;
    if rustix::io::fcntl_getfd(rustix::stdio::stderr()).is_err() {
        rustix::stdio::dup2_stderr(&null).map_err(StartError::os("dup2 stderr"))?;
    }
    Ok(())
}

/// Whether [`override_for_removal`] will be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Plain,
    NeedsOverride,
}

/// Cuts the capabilities to [`KEPT`], then `no_new_privs`, then the deny list.
pub fn privileges(mode: Mode, removal: Removal, audit: &Audit) -> Result<(), StartError> {
    if mode == Mode::Root {
        let mut later = Vec::new();
        if removal == Removal::NeedsOverride {
            later.push(Capability::CAP_DAC_OVERRIDE);
        }
        if audit.keeps_control() {
            later.push(Capability::CAP_AUDIT_CONTROL);
        }
        capabilities(&later)
            .map_err(|error| StartError::os("dropping capabilities")(io::Error::other(error)))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(StartError::os("PR_SET_NO_NEW_PRIVS"))?;
    deny_list().map_err(|error| StartError::os("seccomp")(io::Error::other(error)))
}

/// `later`: what stays permitted without being effective.
fn capabilities(later: &[Capability]) -> Result<(), caps::errors::CapsError> {
    // What a container withheld can't be kept; launches then fail with the call that missed it.
    let before = caps::read(None, CapSet::Permitted)?;
    let of_before = |wanted: &[Capability]| {
        wanted
            .iter()
            .copied()
            .filter(|one| before.contains(one))
            .collect()
    };
    let effective: HashSet<Capability> = of_before(&KEPT);
    let mut permitted = effective.clone();
    permitted.extend::<HashSet<_>>(of_before(later));
    caps::clear(None, CapSet::Ambient)?;
    if before.contains(&Capability::CAP_SETPCAP) {
        // Bounding what the permitted set may be after an upgrade in place; agents' user namespaces begin with a whole one.
        for capability in caps::read(None, CapSet::Bounding)?.difference(&permitted) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::set(None, CapSet::Inheritable, &HashSet::new())?;
    caps::set(None, CapSet::Effective, &effective)?;
    caps::set(None, CapSet::Permitted, &permitted)
}

/// What outlives the broker's workers.
#[derive(Debug)]
pub struct Holdings {
    pub subtree: Subtree,
    pub plane: Plane,
}

/// The last thing the broker does.
pub fn remove(holdings: Holdings) {
    override_for_removal();
    if let Err(error) = holdings.subtree.remove() {
        log!("{error}");
    }
    if let Err(error) = holdings.plane.remove() {
        log!("{error}");
    }
}

/// Makes `CAP_DAC_OVERRIDE` effective if it was kept, for the last thing the broker does.
fn override_for_removal() {
    let raise = || {
        if caps::has_cap(None, CapSet::Permitted, Capability::CAP_DAC_OVERRIDE)? {
            caps::raise(None, CapSet::Effective, Capability::CAP_DAC_OVERRIDE)?;
        }
        Ok::<(), caps::errors::CapsError>(())
    };
    if let Err(error) = raise() {
        log!("CAP_DAC_OVERRIDE: {error}");
    }
}

/// Refused for the broker and all it starts: what changes the kernel or the clock, and what opens
/// a second way to the file system or to kernel attack surface.
const DENIED: [i64; 36] = [
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_lookup_dcookie,
    libc::SYS_migrate_pages,
    libc::SYS_modify_ldt,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_process_madvise,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS__sysctl,
    libc::SYS_syslog,
    libc::SYS_uselib,
    libc::SYS_userfaultfd,
    libc::SYS_ustat,
    libc::SYS_vhangup,
];

fn deny_list() -> Result<(), seccompiler::Error> {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };
    let mut rules: BTreeMap<_, _> = DENIED.into_iter().map(|call| (call, Vec::new())).collect();
    // A launcher enters the network namespace that a task of its own has made, and nobody any other.
    let other = SeccompCondition::new(
        1,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        libc::CLONE_NEWNET as u64,
    )?;
    rules.insert(libc::SYS_setns, vec![SeccompRule::new(vec![other])?]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deny_list_has_no_doubles_and_nothing_that_a_launch_needs() {
        let set: HashSet<i64> = DENIED.into_iter().collect();
        assert_eq!(set.len(), DENIED.len());
        // What debuggers need is refused by the launcher's base filter, unless the plan has them.
        for needed in [
            libc::SYS_kcmp,
            libc::SYS_process_vm_readv,
            libc::SYS_ptrace,
            libc::SYS_clone3,
            libc::SYS_execveat,
            libc::SYS_keyctl,
            libc::SYS_mount_setattr,
            libc::SYS_seccomp,
        ] {
            assert!(!set.contains(&needed));
        }
    }
}
