//! The host as agentd sees it: raw system calls ([`sys`], all that there is without `std`), cgroups, pidfds, descriptors
//! that are passed, grants, probes, the kernel's audit, readers of `/proc` and `/sys`.
//!
//! Knows neither policies nor agents. Runs with the rights of whoever links it.

#![cfg_attr(not(feature = "std"), no_std)]

#[cfg(feature = "std")]
pub mod activation;
#[cfg(feature = "std")]
pub mod audit;
#[cfg(feature = "std")]
pub mod btf;
#[cfg(feature = "std")]
pub mod cgroup;
#[cfg(all(test, feature = "std"))]
#[path = "../../tests/kit/src/descriptors.rs"]
mod descriptors;
#[cfg(feature = "std")]
pub mod fdpass;
#[cfg(feature = "std")]
pub mod grant;
#[cfg(feature = "std")]
pub mod lsm;
#[cfg(feature = "std")]
pub mod memory;
#[cfg(feature = "std")]
pub mod pidfd;
#[cfg(feature = "std")]
pub mod probe;
#[cfg(feature = "std")]
pub mod proc_status;
#[cfg(feature = "std")]
pub mod session;
#[cfg(feature = "std")]
pub mod signals;
pub mod sys;
