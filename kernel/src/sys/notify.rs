//! System calls of other processes that a filter holds for their supervisor: seccomp user notification.
//!
//! A filter that was loaded with a listener may hold a call until whoever has the listener answers it
//! (`Documentation/userspace-api/seccomp_filter.rst`). Here every answer is an error: there is no function that lets a call go
//! on, so whoever uses this module can only refuse. Where the listener is gone the kernel refuses with `ENOSYS` by itself.

use super::call::{call, call_retry};
use super::security::{SECCOMP_SET_MODE_FILTER, SockFilter, sock_fprog};
use super::{Errno, Fd, FdRef, nr};

const NEW_LISTENER: usize = 1 << 3;
/// A signal that does not kill no longer interrupts a call that has been received (Linux 5.19).
const WAIT_KILLABLE_RECV: usize = 1 << 5;

/// `_IOWR('!', 0, struct seccomp_notif)`
const NOTIF_RECV: usize = 0xc050_2100;
/// `_IOWR('!', 1, struct seccomp_notif_resp)`
const NOTIF_SEND: usize = 0xc018_2101;

/// `struct seccomp_notif`, with `struct seccomp_data` in it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    instruction_pointer: u64,
    args: [u64; 6],
}

/// `struct seccomp_notif_resp`
#[repr(C)]
struct Response {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

const _: () = assert!(size_of::<Notification>() == 80 && size_of::<Response>() == 24);

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub struct HeldCall {
    id: u64,
    /// The thread that made it, in the pid namespace of whoever received it.
    pub pid: u32,
    /// Its number.
    pub number: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

/// Loads a filter that may hold calls; needs `no_new_privs`. Returns the listener, which is closed at exec.
///
/// `EBUSY` where a filter of this process or of an ancestor has one already, `EINVAL` before Linux 5.0.
pub fn load_filter_with_listener(program: &[SockFilter]) -> Result<Fd, Errno> {
    let description = sock_fprog(program)?;
    let load = |flags| {
        // SAFETY: `description` is a `struct sock_fprog` of `program` and both outlive the call.
        unsafe {
            call(
                nr::SECCOMP,
                [
                    SECCOMP_SET_MODE_FILTER,
                    flags,
                    description.as_ptr().expose_provenance(),
                ],
            )
        }
        .map(Fd::returned)
    };
    match load(NEW_LISTENER | WAIT_KILLABLE_RECV) {
        Err(Errno::INVAL) => load(NEW_LISTENER),
        loaded => loaded,
    }
}

/// Takes the next call that is held. `None` where its process has been killed meanwhile. Waits for one if the listener was not
/// readable.
pub fn receive_call(listener: FdRef<'_>) -> Result<Option<HeldCall>, Errno> {
    let mut held = Notification::default();
    let args = [
        listener.arg(),
        NOTIF_RECV,
        (&raw mut held).expose_provenance(),
    ];
    // SAFETY: the kernel writes a `struct seccomp_notif` of 80 bytes, as the request's number says, to `held`, which is zeroed.
    match unsafe { call_retry(nr::IOCTL, args) } {
        Ok(_) => Ok(Some(HeldCall {
            id: held.id,
            pid: held.pid,
            number: held.nr.cast_unsigned(),
            args: held.args,
        })),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Lets the call return `errno`. Nothing where its process has been killed meanwhile.
pub fn refuse_call(listener: FdRef<'_>, held: &HeldCall, errno: Errno) -> Result<(), Errno> {
    let response = Response {
        id: held.id,
        val: 0,
        error: -errno.raw(),
        flags: 0,
    };
    let args = [
        listener.arg(),
        NOTIF_SEND,
        (&raw const response).expose_provenance(),
    ];
    // SAFETY: the kernel reads a `struct seccomp_notif_resp` of 24 bytes, as the request's number says, from `response`.
    match unsafe { call_retry(nr::IOCTL, args) } {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}
