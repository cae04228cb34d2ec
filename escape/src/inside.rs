//! The program inside the sandbox: tries each case in a child of its own and prints one line for it.
//!
//! Single-threaded, so that forking is safe. A child that hangs is killed when its time is up, and one that a filter kills
//! is an outcome like any other. The parent does nothing that a case does, so no case can spoil the next by more
//! than what it changes in the sandbox itself; the catalogue's order puts those last that use much of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::case::{Attempt, Case, Try};
use crate::raw::{Refused, errno_name};
use crate::report::{Line, Outcome};
use crate::scene::Scene;

/// More than this of what a case read is not passed on.
const LOOT_LIMIT: usize = 64 * 1024;

/// Tries the cases in order; each line is on `out` before the next case begins.
pub fn run(scene: &Scene, cases: &[Case], out: &mut impl Write) -> std::io::Result<()> {
    ignore_stray_signals();
    for case in cases {
        let line = attempt(scene, case)?;
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

/// Signals that cases send to everybody must not end the runner.
fn ignore_stray_signals() {
    for signal in (libc::SIGRTMIN()..=libc::SIGRTMAX()).chain([
        libc::SIGWINCH,
        libc::SIGURG,
        libc::SIGIO,
        libc::SIGPIPE,
        libc::SIGHUP,
    ]) {
        // SAFETY: ignoring a signal installs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn attempt(scene: &Scene, case: &Case) -> std::io::Result<Line> {
    let mut ends = [0; 2];
    // SAFETY: room for the two numbers that pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened both for us.
    let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: this process has one thread, so its child may go on as if it were the parent.
    match unsafe { libc::fork() } {
        -1 => {
            let error = std::io::Error::last_os_error();
            Ok(line(
                case,
                Outcome::Unavailable,
                error.raw_os_error(),
                "the case could not be started: fork".into(),
            ))
        }
        0 => {
            drop(read);
            // SAFETY: plain calls on this process alone. Its own group, so that the watchdog reaches what it starts.
            unsafe { libc::setpgid(0, 0) };
            let mut scene = scene.clone();
            case.id.clone_into(&mut scene.case);
            let line = of_try(case, (case.run)(&scene));
            let text = serde_json::to_vec(&line).unwrap_or_default();
            let written = File::from(write).write_all(&text);
            // SAFETY: ends the child without running what the parent registered.
            unsafe { libc::_exit(i32::from(written.is_err())) }
        }
        child => {
            drop(write);
            let said = read_until(&read, Duration::from_secs(case.limit.into()));
            // The group first: what the case left behind must not disturb the next one. Sessions of their own stay.
            // SAFETY: signals to our own child and its group, which exists until it is reaped.
            unsafe {
                libc::kill(-child, libc::SIGKILL);
                libc::kill(child, libc::SIGKILL);
            }
            let status = reap(child);
            Ok(match serde_json::from_slice::<Line>(&said.bytes) {
                Ok(line) => line,
                Err(_) if said.timed_out => line(
                    case,
                    Outcome::Stopped,
                    None,
                    format!("no answer within {} s", case.limit),
                ),
                Err(_) => ended(case, status),
            })
        }
    }
}

/// The line of a child that ended without a word.
fn ended(case: &Case, status: i32) -> Line {
    let detail = if libc::WIFSIGNALED(status) {
        match libc::WTERMSIG(status) {
            libc::SIGSYS => "killed by SIGSYS".to_owned(),
            signal => format!("killed by signal {signal}"),
        }
    } else {
        format!("ended without a word, status {status:#x}")
    };
    line(case, Outcome::Stopped, None, detail)
}

fn line(case: &Case, outcome: Outcome, errno: Option<i32>, detail: String) -> Line {
    Line {
        id: case.id.to_owned(),
        outcome,
        errno,
        detail,
        loot: None,
    }
}

fn of_try(case: &Case, tried: Try) -> Line {
    match tried {
        Ok(Attempt::Done(what)) => line(case, Outcome::Escaped, None, what),
        Ok(Attempt::Unavailable(why)) => line(case, Outcome::Unavailable, None, why),
        Ok(Attempt::Loot(bytes)) => {
            let some = &bytes[..bytes.len().min(LOOT_LIMIT)];
            Line {
                loot: Some(String::from_utf8_lossy(some).into_owned()),
                ..line(
                    case,
                    if bytes.is_empty() {
                        Outcome::Stopped
                    } else {
                        Outcome::Escaped
                    },
                    None,
                    format!("read {} bytes", bytes.len()),
                )
            }
        }
        Err(Refused { what, errno }) => {
            let detail = match errno_name(errno) {
                Some(name) => format!("{what}: {name}"),
                None if errno == 0 => what,
                None => format!("{what}: errno {errno}"),
            };
            line(
                case,
                Outcome::Stopped,
                Some(errno).filter(|errno| *errno != 0),
                detail,
            )
        }
    }
}

struct Said {
    bytes: Vec<u8>,
    timed_out: bool,
}

/// Everything until the end of the stream, or what came until the time was up.
fn read_until(pipe: &OwnedFd, limit: Duration) -> Said {
    let deadline = Instant::now() + limit;
    let mut said = Said {
        bytes: Vec::new(),
        timed_out: false,
    };
    let Ok(copy) = pipe.try_clone() else {
        return said;
    };
    let mut file = File::from(copy);
    loop {
        // A whole object is the answer, even while something that the case started holds the pipe open.
        if serde_json::from_slice::<Line>(&said.bytes).is_ok() {
            return said;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd: pipe.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd of ours.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            0 => {
                said.timed_out = true;
                return said;
            }
            -1 => continue,
            _ => {}
        }
        let mut buffer = [0; 8192];
        match file.read(&mut buffer) {
            Ok(0) => return said,
            Ok(count) => said.bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return said,
        }
    }
}

fn reap(child: i32) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: our own child, and room for its status.
        let result = unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) };
        if result == child || crate::raw::errno() != libc::EINTR {
            return status;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome_of(run: fn(&Scene) -> Try) -> Line {
        let case = Case::new("a_case", "a case", run).limit(1);
        attempt(&Scene::default(), &case).expect("a child")
    }

    #[test]
    fn a_refusal_keeps_its_errno_and_a_done_is_an_escape() {
        let refused = outcome_of(|_| Err(Refused::new("openat", libc::EACCES)));
        assert_eq!(
            (refused.outcome, refused.errno, refused.detail.as_str()),
            (Outcome::Stopped, Some(libc::EACCES), "openat: EACCES")
        );
        let done = outcome_of(|scene| Ok(Attempt::Done(scene.case.clone())));
        assert_eq!(
            (done.outcome, done.detail.as_str()),
            (Outcome::Escaped, "a_case")
        );
    }

    #[test]
    fn a_hang_and_a_killed_case_are_outcomes() {
        let hung = outcome_of(|_| {
            loop {
                // SAFETY: waits for the signal that ends it.
                unsafe { libc::pause() };
            }
        });
        assert_eq!(
            (hung.outcome, hung.detail.as_str()),
            (Outcome::Stopped, "no answer within 1 s")
        );
        let killed = outcome_of(|_| {
            // SAFETY: ends this child.
            unsafe { libc::raise(libc::SIGSYS) };
            Ok(Attempt::Done("alive".into()))
        });
        assert_eq!(killed.detail, "killed by SIGSYS");
    }

    #[test]
    fn loot_is_handed_to_the_host() {
        let looted = outcome_of(|_| Ok(Attempt::Loot(b"a secret".to_vec())));
        assert_eq!(looted.loot.as_deref(), Some("a secret"));
    }
}
