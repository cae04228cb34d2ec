//! The programs in the running kernel: loaded, attached to real cgroups, asked by real processes.
//!
//! One module for each area. Root only; elsewhere each test is a counted skip, and so is a test of
//! a group that this kernel doesn't take, with its reason. The object under test is the committed
//! one, or the one that `AGENTD_EBPF_OBJECT` names.

mod bed;
mod connect;
mod control;
#[path = "../../../../tests/kit/src/descriptors.rs"]
mod descriptors;
mod elf;
mod hostile;
mod level;
mod lsm;
mod pins;
mod route;
mod sched;
