//! System calls that every launch makes: Landlock, seccomp, pidfd, close_range, memfd seals.

use super::child::{self, Outcome, check};
use super::{Feature, ProbeState};
use crate::sys::SockFilter;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;

pub(super) fn probe() -> Vec<(Feature, ProbeState)> {
    vec![
        (Feature::Seccomp, seccomp(0)),
        (Feature::SeccompNotify, seccomp_notify()),
        (Feature::Pidfd, from(pidfd(), "pidfd_open")),
        (Feature::CloseRange, from(close_range(), "close_range")),
        (Feature::MemfdSeals, from(memfd_seals(), "sealing a memfd")),
    ]
}

/// What a failed call means.
pub(super) fn from(result: Result<(), Errno>, call: &str) -> ProbeState {
    match result {
        Ok(()) => ProbeState::Supported,
        Err(Errno::NOSYS) => ProbeState::Unsupported {
            why: format!("{call}: this kernel does not offer it"),
        },
        Err(e @ (Errno::PERM | Errno::ACCESS)) => ProbeState::Denied {
            capability: "CAP_SYS_ADMIN".into(),
            why: format!("{call}: {e}"),
        },
        Err(e) => ProbeState::Unsupported {
            why: format!("{call}: {e}"),
        },
    }
}

/// The Landlock ABI, or why there is none.
pub(super) fn landlock_abi() -> Result<u8, ProbeState> {
    const VERSION: libc::c_long = 1;
    // SAFETY: with the version flag the kernel takes a null pointer and size 0, and makes nothing.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION,
        )
    });
    match result {
        Ok(abi) => Ok(u8::try_from(abi).unwrap_or(u8::MAX)),
        Err(Errno::NOSYS) => Err(ProbeState::Unsupported {
            why: "this kernel was built without Landlock".into(),
        }),
        Err(Errno::OPNOTSUPP) => Err(ProbeState::Denied {
            capability: "lsm=landlock,... on the kernel's command line".into(),
            why: "Landlock is built in but not enabled at boot".into(),
        }),
        Err(e) => Err(ProbeState::Unsupported {
            why: format!("landlock_create_ruleset: {e}"),
        }),
    }
}

/// There is one listener for a process and all its ancestors, so the manager of a container may have it.
fn seccomp_notify() -> ProbeState {
    const NEW_LISTENER: libc::c_long = 1 << 3;
    match seccomp(NEW_LISTENER) {
        ProbeState::Unsupported { why } if why.contains("os error 16") => ProbeState::Unsupported {
            why: "a listener for system calls is there already: whoever runs this container or sandbox has it".into(),
        },
        state => state,
    }
}

/// Loads a filter that allows everything, in a child.
fn seccomp(flags: libc::c_long) -> ProbeState {
    const RET_ALLOW: u32 = 0x7fff_0000;
    let program = [SockFilter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: RET_ALLOW,
    }];
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const SockFilter,
    }
    let header = Program {
        len: 1,
        filter: program.as_ptr(),
    };
    const SET_MODE_FILTER: libc::c_long = 1;
    let outcome = child::run(0, || {
        // SAFETY: both calls take valid arguments: the program and its header are in the memory the child has a copy of.
        unsafe {
            check(libc::syscall(
                libc::SYS_prctl,
                libc::PR_SET_NO_NEW_PRIVS,
                1,
                0,
                0,
                0,
            ))
            .map_err(|e| (0, e))?;
            check(libc::syscall(
                libc::SYS_seccomp,
                SET_MODE_FILTER,
                flags,
                &raw const header,
            ))
            .map_err(|e| (0, e))?;
        }
        Ok(())
    });
    match outcome {
        Outcome::Done => ProbeState::Supported,
        Outcome::NotMade(e) | Outcome::Failed(_, e) => from(Err(e), "seccomp"),
        Outcome::Killed => ProbeState::Unsupported {
            why: "seccomp: the attempt was killed".into(),
        },
    }
}

fn pidfd() -> Result<(), Errno> {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    pidfd_open(getpid(), PidfdFlags::empty()).map(drop)
}

/// On a range where nothing can be open.
fn close_range() -> Result<(), Errno> {
    // SAFETY: the last descriptor number is never open: the limit on numbers is below it.
    check(unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, 0u32) }).map(drop)
}

fn memfd_seals() -> Result<(), Errno> {
    let fd = memfd_create(
        "agentd-probe",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&fd, seals)?;
    if fcntl_get_seals(&fd)?.contains(seals) {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}
