//! Raw Linux system calls without `std` or `libc`: what the static launcher is made of.
//!
//! One thin wrapper per call, one error type ([`Errno`]); no allocation, no errno variable, no locks, so all of it may
//! run between fork and exec. Everything else in the workspace uses `rustix`; start reading at [`Errno`].

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "agentd runs on x86_64 Linux only: kernel/src/sys has no system call numbers for this target"
);

pub mod nr;

/// One classic BPF instruction, `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SockFilter {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

const _: () = assert!(size_of::<SockFilter>() == 8);
