//! Whether there are descriptors left for another agent.
//!
//! An agent costs the daemon a score of them. When few are left, new agents are refused, so that those that live, and
//! whoever wants to stop some, still get theirs. Counting reads `/proc/self/fd`; nothing is kept between calls.

use agentd_api::Error;
use rustix::process::{Resource, getrlimit};

/// Kept back for connections, viewers and the record.
const RESERVE: u64 = 64;

/// Fails when the limit of this process leaves no room for another agent.
///
/// # Errors
/// [`Error::Unavailable`], with what to do.
pub fn check_room() -> Result<(), Error> {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return Ok(());
    };
    match std::fs::read_dir("/proc/self/fd") {
        Ok(open) => refuse_above(open.count() as u64, limit),
        // Listing takes a descriptor itself: with none left it says so.
        Err(error) if is_exhaustion(&error) => refuse_above(limit, limit),
        Err(error) => {
            tracing::debug!("cannot count descriptors: {error}");
            Ok(())
        }
    }
}

fn is_exhaustion(error: &std::io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(
        errno,
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
    )
}

fn refuse_above(open: u64, limit: u64) -> Result<(), Error> {
    if open.saturating_add(RESERVE) <= limit {
        return Ok(());
    }
    Err(Error::Unavailable(format!(
        "agentd has {open} of {limit} descriptors open and keeps {RESERVE} back for the agents that run; stop some \
         (`agentctl ps`), or raise the limit (`LimitNOFILE=` of agentd.service, `ulimit -n`) and restart agentd"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_not_for_new_agents() {
        assert!(refuse_above(100, 1024).is_ok());
        assert!(refuse_above(1024 - RESERVE, 1024).is_ok());
        let error = refuse_above(1025 - RESERVE, 1024)
            .unwrap_err()
            .text()
            .to_owned();
        assert!(error.contains("LimitNOFILE"), "{error}");
    }
}
