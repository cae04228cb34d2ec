//! Descriptors that the service manager passed at start (sd_listen_fds(3)).
//!
//! Called once, at the very start of a program, on its only thread, before anything is opened. Nothing here interprets
//! a descriptor; whoever asked for it by name checks what it is.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that a service manager passes.
const FIRST: RawFd = 3;

/// More than that many are not believed.
const MAX: usize = 4096;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors meant for this process with their names (`FileDescriptorName=`), by `LISTEN_PID`, `LISTEN_FDS` and
/// `LISTEN_FDNAMES` as `env` has them. Each is close-on-exec afterwards. Empty when there are none, when they are meant
/// for another process, and at every call but the first.
///
/// # Errors
/// When a variable makes no sense or a promised descriptor is not open.
pub fn take(env: impl Fn(&str) -> Option<String>) -> io::Result<Vec<(String, OwnedFd)>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let Some(count) = env("LISTEN_FDS") else {
        return Ok(Vec::new());
    };
    if env("LISTEN_PID").and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count: usize = count
        .parse()
        .ok()
        .filter(|count| *count <= MAX)
        .ok_or_else(|| wrong("LISTEN_FDS is no reasonable number"))?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let names = env("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    (FIRST..)
        .take(count)
        .map(|raw| {
            // SAFETY: fcntl takes no pointers here; a number that is no open descriptor is an error, not a hazard.
            if unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let name = names.next().unwrap_or_default().to_owned();
            // SAFETY: the descriptor is open (checked above), the service manager made it for us, and no other value owns it:
            // TAKEN lets only the first caller come here, and callers keep to the start of the program.
            Ok((name, unsafe { OwnedFd::from_raw_fd(raw) }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_meant_for_another_process_are_left_alone() {
        let env = |pid: String| {
            move |name: &str| match name {
                "LISTEN_PID" => Some(pid.clone()),
                "LISTEN_FDS" => Some("1".to_owned()),
                _ => None,
            }
        };
        let other = (std::process::id() + 1).to_string();
        assert!(take(env(other)).expect("nothing for us").is_empty());
        assert!(take(env(String::new())).expect("nobody named").is_empty());
        assert!(take(|_| None).expect("nothing passed").is_empty());
    }

    #[test]
    fn a_number_that_makes_no_sense_is_an_error() {
        let env = |name: &str| match name {
            "LISTEN_PID" => Some(std::process::id().to_string()),
            "LISTEN_FDS" => Some("-1".to_owned()),
            _ => None,
        };
        assert!(take(env).is_err());
    }
}
