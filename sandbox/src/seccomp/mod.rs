//! The system calls an agent may make: named sets, and the compiler that turns them into a filter program.
//!
//! An allow list. Wrong architecture and the x32 numbers kill; a known system call that no set allows gets
//! EPERM, one that this table does not know gets ENOSYS, as on an older kernel, so programs fall back. Arguments
//! are compared on the 32 bits that the kernel reads. The launcher loads this over the floor's own filter, which
//! holds even if a policy allowed too much.
//!
//! Pure: [`compile`] makes bytes; loading them is the launcher's business. The program is a binary search, because
//! the kernel runs a filter once per system call number when it is loaded, and once per call that depends on
//! arguments: a linear list of this length would cost a tenth of a launch.
//! Start reading at `sets.rs` and the entries in `sets/`; `refused.rs` is the rest of the kernel, `compile.rs` the mechanism.

mod compile;
mod refused;
mod rule;
mod sets;
mod table;

pub use compile::{compile, to_bytes};
pub use refused::{refusal_of, refused_calls};
pub use sets::{Ioctls, Listening, MemoryFiles, Netlink, Refusals, Surface, SyscallSet, WriteExec};
pub use table::syscall_name;
