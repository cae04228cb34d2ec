//! `bench kernel`: what the kernel plane promises. One file for each row's measurement.
//!
//! Root mode only, since eBPF programs are root's to load; on a host without them it fails with the daemon's reason.

mod revoke;

use anyhow::{Result, bail};

use super::Effort;
use super::report::Report;
use crate::lab::Programs;

pub fn measure(report: &mut Report, programs: Programs, effort: Effort) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("eBPF programs are loaded by root: run `cargo xtask bench kernel` as root");
    }
    revoke::measure(report, programs, effort)
}
