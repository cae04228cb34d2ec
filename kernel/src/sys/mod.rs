//! Raw Linux system calls without `std` or `libc`: what the static launcher is made of.
//!
//! One thin wrapper per call, one error type ([`Errno`]); no allocation, no errno variable, no locks, so all of it may
//! run between fork and exec. No privilege of its own. Everything else in the workspace uses `rustix`; start reading at
//! `call.rs`, the only file with assembly.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "agentd runs on x86_64 Linux only: kernel/src/sys has no system call numbers for this target"
);

mod call;
mod fd;
pub mod fs;
pub mod mount;
pub mod net;
pub mod notify;
pub mod nr;
pub mod process;
pub mod security;
pub mod tty;
pub mod wait;

pub use call::{Errno, spawn_beside, spawn_vfork};
pub use fd::{Fd, FdRef};
pub use security::SockFilter;
