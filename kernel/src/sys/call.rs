//! The `syscall` instruction, its error convention, and the one call that returns twice.

use core::arch::asm;
use core::ffi::c_void;
use core::fmt;

use super::nr;

/// An error number of the kernel, 1 to 4095.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Not permitted.
    pub const PERM: Errno = Errno(1);
    /// No such file or directory.
    pub const NOENT: Errno = Errno(2);
    /// Interrupted.
    pub const INTR: Errno = Errno(4);
    /// Try again.
    pub const AGAIN: Errno = Errno(11);
    /// Access denied.
    pub const ACCES: Errno = Errno(13);
    /// Device or resource busy.
    pub const BUSY: Errno = Errno(16);
    /// File exists.
    pub const EXIST: Errno = Errno(17);
    /// Not a directory.
    pub const NOTDIR: Errno = Errno(20);
    /// Invalid argument.
    pub const INVAL: Errno = Errno(22);
    /// File too large.
    pub const FBIG: Errno = Errno(27);
    /// Read-only filesystem.
    pub const ROFS: Errno = Errno(30);
    /// Name too long.
    pub const NAMETOOLONG: Errno = Errno(36);
    /// No such system call.
    pub const NOSYS: Errno = Errno(38);
    /// A symbolic link where none may be.
    pub const LOOP: Errno = Errno(40);
    /// `EXDEV`
    pub const XDEV: Errno = Errno(18);
    /// `EMLINK`
    pub const MLINK: Errno = Errno(31);
    /// Stale file handle: here, not the object that was meant.
    pub const STALE: Errno = Errno(116);
    /// Not supported.
    pub const OPNOTSUPP: Errno = Errno(95);

    /// That of this number.
    pub const fn from_raw(raw: i32) -> Errno {
        Errno(raw)
    }

    /// The number.
    pub const fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error number {}", self.0)
    }
}

impl core::error::Error for Errno {}

/// Makes a system call with up to six arguments; missing ones are 0.
///
/// # Safety
/// What the call's manual page asks of pointers, lengths and fds among `args`.
pub(super) unsafe fn call<const N: usize>(number: u32, args: [usize; N]) -> Result<usize, Errno> {
    const { assert!(N <= 6) };
    let arg = |at: usize| if at < N { args[at] } else { 0 };
    let result: isize;
    // SAFETY: the kernel clobbers rax, rcx and r11 and no other register; memory is clobbered by default, and what the
    // arguments point to is the caller's obligation.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as usize => result,
            in("rdi") arg(0),
            in("rsi") arg(1),
            in("rdx") arg(2),
            in("r10") arg(3),
            in("r8") arg(4),
            in("r9") arg(5),
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    match result {
        -4095..=-1 => Err(Errno(-result as i32)),
        value => Ok(value.cast_unsigned()),
    }
}

/// Like [`call`], repeated while a signal interrupts it.
///
/// # Safety
/// As for [`call`].
pub(super) unsafe fn call_retry<const N: usize>(
    number: u32,
    args: [usize; N],
) -> Result<usize, Errno> {
    loop {
        // SAFETY: the caller's promise for `args` holds for each attempt.
        match unsafe { call(number, args) } {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Starts a child that shares this process's memory until it executes a program or exits, and waits for that moment
/// (`CLONE_VM | CLONE_VFORK`). The child runs `entry(argument)` on `stack`. Returns its pid.
///
/// # Safety
/// - `entry` must be sound to run on `argument` while this thread, and only it, is suspended; it must never unwind.
/// - `stack` must be large enough for it.
pub unsafe fn spawn_vfork(
    stack: &mut [core::mem::MaybeUninit<u8>],
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> Result<u32, Errno> {
    const CLONE_VM: usize = 0x100;
    const CLONE_VFORK: usize = 0x4000;
    const SIGCHLD: usize = 17;
    let top = stack.as_mut_ptr_range().end.expose_provenance() & !15;
    // SAFETY: the caller's promise.
    unsafe { start(CLONE_VM | CLONE_VFORK | SIGCHLD, top, entry, argument) }
}

/// Starts a task that shares this process's memory and descriptors and runs `entry(argument)` on `stack` beside it. Returns its
/// pid; no signal tells of its end, [`super::wait::wait_for`] does.
///
/// # Safety
/// - `entry` must be sound to run on `argument` while the caller goes on; it must never unwind.
/// - `stack` must be large enough for it, and be nobody else's until the task has ended.
pub unsafe fn spawn_beside(
    stack: &'static mut [core::mem::MaybeUninit<u8>],
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> Result<u32, Errno> {
    const CLONE_VM: usize = 0x100;
    const CLONE_FILES: usize = 0x400;
    let top = stack.as_mut_ptr_range().end.expose_provenance() & !15;
    // SAFETY: the caller's promise.
    unsafe { start(CLONE_VM | CLONE_FILES, top, entry, argument) }
}

/// `clone` of a child on a stack of its own.
///
/// # Safety
/// `top` is the top of a stack that is large enough for `entry`, which is sound to run there beside what `flags` leave running.
unsafe fn start(
    flags: usize,
    top: usize,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> Result<u32, Errno> {
    let result: isize;
    // SAFETY: the parent comes out of the call once, with rax, rcx and r11 changed. The child comes out with rax 0 on its
    // own stack, jumps to `entry`, which does not return, and so never runs code of this frame. r8 and r9 are not used
    // by `clone` with the flags of this file, and the kernel keeps them for the child.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") nr::CLONE as usize => result,
            in("rdi") flags,
            in("rsi") top,
            in("rdx") 0,
            in("r10") 0,
            in("r8") argument,
            in("r9") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    match result {
        -4095..=-1 => Err(Errno(-result as i32)),
        pid => Ok(pid as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_results_are_told_apart() {
        // SAFETY: getpid takes nothing; close takes a number, and no fd has this one.
        let (pid, closed) = unsafe { (call(nr::GETPID, []), call(nr::CLOSE, [usize::MAX])) };
        assert_eq!(pid, Ok(std::process::id() as usize));
        assert_eq!(closed, Err(Errno(9)));
    }

    #[test]
    fn a_vfork_child_shares_memory_and_the_parent_waits() {
        unsafe extern "C" fn child(argument: *mut c_void) -> ! {
            // SAFETY: `argument` is the `u32` below, whose owner is suspended.
            unsafe { *argument.cast::<u32>() = 7 };
            super::super::process::exit(3)
        }
        let mut seen = 0u32;
        let mut stack = [core::mem::MaybeUninit::uninit(); 16384];
        // SAFETY: `child` writes one word that outlives it and exits; 16 KiB hold its two frames.
        let pid = unsafe { spawn_vfork(&mut stack, child, (&raw mut seen).cast()) }.unwrap();
        assert_eq!(seen, 7);
        let ended = super::super::wait::wait_for(pid.cast_signed()).unwrap();
        assert_eq!(ended, Some((pid, 3 << 8)));
    }
}
