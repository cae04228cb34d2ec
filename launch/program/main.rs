//! The entry of the static launcher: everything else is `agentd_launch::apply`, which is linted and tested as a library.
//!
//! No C runtime, so this file holds the three things that one would bring: `_start`, the memory functions that compiled
//! code calls, and what to do on a panic (which never happens: it ends the launch).
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;

use agentd_kernel::sys::process;
use agentd_launch::apply;
use agentd_launch::parent::{Arguments, INSIDE, LAUNCH_FAILED};

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

/// # Safety
/// `stack` is what the kernel gives a new program: the argument count, then as many strings.
unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the caller's promise.
    let count = unsafe { *stack };
    let argv = (1..=count).map(|at| {
        // SAFETY: the caller's promise: `count` pointers to strings that end in NUL follow, and live for ever.
        unsafe { CStr::from_ptr(*stack.add(at).cast::<*const c_char>()) }
    });
    if argv.clone().nth(1) == Some(INSIDE) && count == 2 {
        apply::run_inside();
    }
    // SAFETY: nothing else runs in this process, and whoever started it placed the descriptors.
    unsafe { apply::run(Arguments::from_argv(argv)) }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    process::exit(LAUNCH_FAILED)
}

/// # Safety
/// As `memcpy` of C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the string instruction needs the direction flag clear, which the ABI guarantees.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As `memmove` of C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: `to` does not lie within `from`, so copying upwards reads every byte before it is overwritten.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller's promise; downwards from the last byte, and the flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _, inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// # Safety
/// As `memset` of C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear, which the ABI guarantees.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") value as u8,
             options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As `memcmp` of C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let mut at = 0;
    while at < len {
        // SAFETY: the caller's promise: `len` bytes can be read from both. Volatile, or this loop would become a call of
        // the very function it is in.
        let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        at += 1;
    }
    0
}

/// # Safety
/// As `bcmp` of C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(a, b, len) }
}

/// # Safety
/// As `strlen` of C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const c_char) -> usize {
    let mut len = 0;
    // SAFETY: the caller's promise: there is a NUL, and every byte up to it can be read. Volatile as in `memcmp`.
    while unsafe { string.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}
