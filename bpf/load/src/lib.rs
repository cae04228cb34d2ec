//! Loads, pins and attaches the kernel plane's programs, and takes over what an earlier loader
//! pinned.
//!
//! [`load`] is called by the broker in a child process that exits afterwards, so that neither the
//! memory this takes nor the right to it stays. It needs root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON,
//! CAP_SYS_ADMIN) and makes the process's only calls of `bpf(2)`. [`pins`] also removes, which
//! takes no such call. Blocks while the verifier works (tens of milliseconds).
//!
//! Everything is optional but the tables: a group of programs that this kernel doesn't take is left
//! out whole, with the reason and the verifier's log. Fails with [`LoadError`] where there can be
//! no plane at all. Never reads anything but the object given, the kernel's BTF, and the pins of
//! its own instance. Start at [`load`], then [`groups`]; `docs/kernel-plane.md`.

pub mod groups;
mod level;
mod load;
mod object;
pub mod pins;
mod sys;

pub use level::{LevelError, level_of};
pub use load::{Absent, Agent, LoadError, Loaded, Plan, load};
pub use object::{EMBEDDED, hash};
