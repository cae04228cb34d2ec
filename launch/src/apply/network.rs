//! The network namespace, made beside the view.
//!
//! Making one takes the kernel about as long as the whole view does, and the two have nothing to do with each other. So a task of
//! the launcher's own makes the namespace and brings its loopback up while the init fills the view; the init then waits for it,
//! and enters the namespace before anything listens, and long before the program exists. The task shares the init's memory and
//! descriptors, runs [`make`] and nothing else, and has ended when [`Beginning::enter`] returns. It fails as any step does.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use agentd_kernel::sys::{Errno, Fd, net, process, spawn_beside, wait};

use super::{During, Outcome};
use crate::status::{NO_RECORD, Step};

/// Two small frames.
const STACK_LEN: usize = 8 << 10;

/// Neither a descriptor nor an error number.
const NOTHING: i32 = i32::MIN;

/// What the task uses. Static, since nothing but its end tells when it no longer does.
struct Workplace {
    is_taken: AtomicBool,
    stack: UnsafeCell<[MaybeUninit<u8>; STACK_LEN]>,
    /// A socket in the namespace, or the negative number of an error.
    result: AtomicI32,
}

// SAFETY: only `begin` touches the stack, and only once, as `is_taken` sees to; everything else is atomic.
unsafe impl Sync for Workplace {}

static WORKPLACE: Workplace = Workplace {
    is_taken: AtomicBool::new(false),
    stack: UnsafeCell::new([MaybeUninit::uninit(); STACK_LEN]),
    result: AtomicI32::new(NOTHING),
};

/// A network namespace in the making.
pub(super) struct Beginning {
    task: u32,
}

/// Starts the task.
pub(super) fn begin() -> Outcome<Beginning> {
    let start = || {
        if WORKPLACE.is_taken.swap(true, Ordering::Relaxed) {
            return Err(Errno::EXIST);
        }
        // SAFETY: nobody else has been or will be here, and the task may use its stack for ever.
        let stack = unsafe { &mut *WORKPLACE.stack.get() };
        // SAFETY: `make` runs on nothing but the static above, in fewer bytes than the stack has, and never unwinds: the program
        // is built with panic=abort.
        unsafe { spawn_beside(stack, make, ptr::null_mut()) }
    };
    let task = start().during(Step::Loopback, NO_RECORD)?;
    Ok(Beginning { task })
}

/// # Safety
/// None of it depends on the argument.
unsafe extern "C" fn make(_: *mut c_void) -> ! {
    let made = process::new_network().and_then(|()| net::loopback_up());
    let result = made.map_or_else(|errno| -errno.raw(), Fd::into_raw);
    // SYNC: network: the init reads it when this task has ended.
    WORKPLACE.result.store(result, Ordering::Release);
    process::exit(0)
}

impl Beginning {
    /// Waits for the namespace, and makes it the caller's.
    pub(super) fn enter(self) -> Outcome<()> {
        let enter = || {
            wait::wait_for(self.task.cast_signed())?;
            // SYNC: network: written before the task ended, which has been waited for.
            let socket = match WORKPLACE.result.load(Ordering::Acquire) {
                NOTHING => return Err(Errno::INTR),
                // SAFETY: the task opened it in the descriptor table that it shared with this one, and has left it to us.
                fd @ 0.. => unsafe { Fd::from_raw(fd) },
                errno => return Err(Errno::from_raw(-errno)),
            };
            let namespace = net::namespace_of(socket.borrow())?;
            process::enter_network(namespace.borrow())
        };
        enter().during(Step::Loopback, NO_RECORD)
    }
}
