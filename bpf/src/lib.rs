//! The kernel plane's tables and rings as the broker and agentd see them: mapped memory with types
//! on it.
//!
//! The eBPF programs of `agentd-ebpf` decide by tables that user space maps. The broker gets them
//! from the loader (`agentd-bpf-load`) while it starts, writes the [`Directory`], the [`Policies`]
//! and the [`Routes`], and hands agentd descriptors for what it may read. Nobody here calls
//! `bpf(2)`: a change of policy is a store, a figure is a load.
//!
//! Linked by the broker (root) and by agentd (unprivileged); any thread. What is in a mapping may
//! change at any time and is never trusted: it is copied word by word, and a slot or a length is
//! checked before it is used. Fails while mapping ([`MapError`]) and never after. Start reading at
//! [`Table`], then `docs/kernel-plane.md`.

mod directory;
mod group;
mod mapping;
mod policy;
mod ring;
mod routes;
mod sched;
mod table;

pub use agentd_ebpf_common as layout;
pub use directory::{Directory, DirectoryFull};
pub use group::{Group, Groups};
pub use mapping::{Clearable, Layout, MapError, Rows, Shared};
pub use policy::Policies;
pub use ring::{Ring, Taken};
pub use routes::{Right, RouteRefused, Routes};
pub use sched::{SchedTable, Seated};
pub use table::{Handed, Table};
