//! Processes: ids, sessions, signals to others, limits, names, executing and ending.

use core::ffi::{CStr, c_char};

use super::call::call;
use super::{Errno, FdRef, nr};

/// Ends the process.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: no memory is involved; the call does not return.
        unsafe { call(nr::EXIT_GROUP, [code as usize]) }.unwrap_or(0);
    }
}

/// The caller's pid in its pid namespace.
pub fn pid() -> u32 {
    // SAFETY: no memory is involved; the call cannot fail.
    unsafe { call(nr::GETPID, []) }.unwrap_or(0) as u32
}

/// The caller's real uid and gid.
pub fn ids() -> (u32, u32) {
    // SAFETY: no memory is involved; the calls cannot fail.
    let (uid, gid) = unsafe { (call(nr::GETUID, []), call(nr::GETGID, [])) };
    (
        uid.unwrap_or(usize::MAX) as u32,
        gid.unwrap_or(usize::MAX) as u32,
    )
}

/// Starts a session.
pub fn setsid() -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe { call(nr::SETSID, []) }.map(drop)
}

/// Starts a process group with the caller as its leader.
pub fn new_process_group() -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe { call(nr::SETPGID, [0, 0]) }.map(drop)
}

const CLONE_NEWNET: usize = 0x4000_0000;

/// Leaves the network namespace for a new one.
pub fn new_network() -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe { call(nr::UNSHARE, [CLONE_NEWNET]) }.map(drop)
}

/// Enters the network namespace that `namespace` has open.
pub fn enter_network(namespace: FdRef<'_>) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe { call(nr::SETNS, [namespace.arg(), CLONE_NEWNET]) }.map(drop)
}

/// Sends a signal to a process, a group (negative) or everyone (-1).
pub fn kill(pid: i32, signal: u32) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe { call(nr::KILL, [pid as usize, signal as usize]) }.map(drop)
}

/// Sets the file mode creation mask.
pub fn umask(mask: u32) {
    // SAFETY: no memory is involved; the call cannot fail.
    unsafe { call(nr::UMASK, [mask as usize]) }.unwrap_or(0);
}

/// Sets the host name of the UTS namespace.
pub fn set_hostname(name: &CStr) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as the string has.
    unsafe {
        call(
            nr::SETHOSTNAME,
            [name.as_ptr().expose_provenance(), name.count_bytes()],
        )
    }
    .map(drop)
}

/// Keeps others with the same uid from tracing the process or reading its memory, and it from dumping core.
pub fn set_not_dumpable() -> Result<(), Errno> {
    const PR_SET_DUMPABLE: usize = 4;
    // SAFETY: no memory is involved.
    unsafe { call(nr::PRCTL, [PR_SET_DUMPABLE, 0]) }.map(drop)
}

/// Sets the name that `ps` shows.
pub fn set_name(name: &CStr) {
    const PR_SET_NAME: usize = 15;
    // SAFETY: the string ends in NUL; the kernel reads at most 16 bytes and stops at the NUL. It fails only on a bad address.
    unsafe { call(nr::PRCTL, [PR_SET_NAME, name.as_ptr().expose_provenance()]) }.unwrap_or(0);
}

/// Sets a limit of the caller. A hard limit above the present one is lowered to it, and the soft limit with it.
pub fn lower_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let set = |limit: [u64; 2]| {
        // SAFETY: the kernel reads a `struct rlimit64` of two words from `limit`; it is asked for no old limit.
        unsafe {
            call(
                nr::PRLIMIT64,
                [0, resource as usize, limit.as_ptr().expose_provenance(), 0],
            )
        }
        .map(drop)
    };
    // The kernel refuses no more than to raise a hard limit, or a soft one above it.
    match set([soft.min(hard), hard]) {
        Err(Errno::PERM) => {}
        done => return done,
    }
    let mut present = [0u64; 2];
    // SAFETY: the kernel writes a `struct rlimit64` of two words to `present`; there is no new limit to read.
    unsafe {
        call(
            nr::PRLIMIT64,
            [
                0,
                resource as usize,
                0,
                present.as_mut_ptr().expose_provenance(),
            ],
        )
    }?;
    let hard = hard.min(present[1]);
    set([soft.min(hard), hard])
}

/// Replaces the program. Returns only to say why it could not.
///
/// # Safety
/// `arguments` and `environment` are arrays of strings that end in NUL; each array ends in a null pointer.
pub unsafe fn execve(
    path: &CStr,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> Errno {
    let args = [
        path.as_ptr().expose_provenance(),
        arguments.expose_provenance(),
        environment.expose_provenance(),
    ];
    // SAFETY: `path` ends in NUL; the arrays are as the caller promises.
    match unsafe { call(nr::EXECVE, args) } {
        Err(errno) => errno,
        Ok(_) => Errno::INVAL, // a successful execve does not return
    }
}
