//! Outliving the session: processes that no signal of a careless supervisor reaches. Each carries the case's mark in its
//! arguments, and the host looks for it after the end.

use std::process::{Command, Stdio};

use super::{done, in_child};
use crate::case::{Case, Effect, Try};
use crate::raw::{Refused, call};
use crate::scene::Scene;

const fn lives(id: &'static str, title: &'static str, run: fn(&Scene) -> Try) -> Case {
    Case::new(id, title, run).effect(Effect::Lives)
}

pub const CASES: &[Case] = &[
    lives(
        "lf_daemon",
        "a daemon: a session of its own, forked twice",
        |s| daemon(|| linger_command(s).spawn().map(drop)),
    ),
    lives("lf_ignore", "a process that ignores every signal", |s| {
        daemon(|| {
            for signal in 1..=64 {
                // SAFETY: ignoring a signal installs no code.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            linger_command(s).spawn().map(drop)
        })
    }),
    lives("X30", "a stopped process, which no SIGTERM ends", |s| {
        daemon(|| {
            let child = linger_command(s).spawn()?;
            // SAFETY: stops our own child.
            unsafe { libc::kill(i32::try_from(child.id()).unwrap_or(0), libc::SIGSTOP) };
            Ok(())
        })
    }),
    lives(
        "X31",
        "a parent that waits in vfork for a child that never execs",
        |s| {
            daemon(|| {
                let mut command = Command::new(&s.program);
                command
                    .args(["linger", &s.process_mark()])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .env("ESCAPE_VFORK", "1");
                command.spawn().map(drop)
            })
        },
    ),
    lives("lf_traced", "a process that another one traces", |s| {
        daemon(|| {
            let child = linger_command(s).spawn()?;
            drop(call!(libc::SYS_ptrace, 0x4206, child.id(), 0, 0));
            // The tracer waits as well.
            linger_command(s).spawn().map(drop)
        })
    }),
    lives("lf_subreaper", "children of a subreaper", |s| {
        daemon(|| {
            drop(call!(
                libc::SYS_prctl,
                libc::PR_SET_CHILD_SUBREAPER,
                1,
                0,
                0,
                0
            ));
            linger_command(s).spawn().map(drop)
        })
    }),
    lives(
        "lf_chain",
        "a chain of processes, each the parent of the next",
        |s| {
            daemon(|| {
                for _ in 0..20 {
                    // SAFETY: a case has one thread; the parent ends at once, so that each link is an orphan.
                    if unsafe { libc::fork() } != 0 {
                        // SAFETY: ends this link.
                        unsafe { libc::_exit(0) }
                    }
                    drop(call!(libc::SYS_setsid));
                }
                linger_command(s).spawn().map(drop)
            })
        },
    ),
    lives(
        "lf_cgroup",
        "a process that leaves for another cgroup",
        |s| {
            daemon(|| {
                for path in [
                    "/sys/fs/cgroup/unified/cgroup.procs",
                    "/sys/fs/cgroup/cgroup.procs",
                    "/sys/fs/cgroup/pids/cgroup.procs",
                ] {
                    drop(std::fs::write(path, std::process::id().to_string()));
                }
                linger_command(s).spawn().map(drop)
            })
        },
    ),
    lives("lf_exec_name", "a process that calls itself kworker", |s| {
        daemon(|| {
            use std::os::unix::process::CommandExt;
            linger_command(s).arg0("[kworker/0:1]").spawn().map(drop)
        })
    }),
    lives(
        "lf_systemd_run",
        "a unit of the user's service manager",
        |s| {
            let status = Command::new("systemd-run")
                .args(["--user", "--no-block"])
                .arg(&s.program)
                .args(["linger", &s.process_mark()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            if status.success() {
                done("started")
            } else {
                Err(Refused::without_errno("refused"))
            }
        },
    )
    .cannot("the session's user has no service manager"),
    lives("lf_at", "a job of at or cron", |s| {
        let line = format!(
            "* * * * * {} linger {}\n",
            s.program.display(),
            s.process_mark()
        );
        std::fs::write("/var/spool/cron/crontabs/escape", line)?;
        done("written")
    })
    .cannot("the spool is root's"),
];

fn linger_command(s: &Scene) -> Command {
    let mut command = Command::new(&s.program);
    command
        .args(["linger", &s.process_mark()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Two forks and a session between them; `work` starts what stays.
fn daemon(work: impl FnOnce() -> std::io::Result<()>) -> Try {
    let status = in_child(|| {
        if call!(libc::SYS_setsid).is_err() {
            return 1;
        }
        // The runner's watchdog kills the case's group: a session of its own is out of its reach, as of any supervisor's.
        i32::from(in_child(|| i32::from(work().is_err())).is_err())
    })?;
    if status == 0 {
        done("left behind")
    } else {
        Err(Refused::without_errno("it could not be started"))
    }
}

/// Stays until it is killed. `mark` is in the arguments, where the host looks.
pub fn linger(mark: &str) -> Result<(), String> {
    if std::env::var_os("ESCAPE_VFORK").is_some() {
        // SAFETY: the child of a vfork shares our memory and only waits; we wait for it.
        let child = unsafe { libc::syscall(libc::SYS_vfork) };
        if child < 0 {
            return Err(format!("{mark}: vfork"));
        }
    }
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}
