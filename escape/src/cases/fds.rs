//! What a session is started with: descriptors that somebody left open, and an environment that nobody cleaned.

use std::os::fd::FromRawFd;

use super::{done, fd, loot, loot_fd};
use crate::case::{Attempt, Case, Effect, Try};
use crate::raw::{Refused, call};
use crate::scene::{FD_FILE, FD_PIDFD, FD_ROOT, FD_TCP, FD_UNIX, FD_WRITE, Scene, c};

/// Variables that make programs run other code, as a hostile repository's own tools could have left them.
pub const INJECTED: [(&str, &str); 8] = [
    ("BASH_ENV", "/nonexistent/escape"),
    ("GIT_SSH_COMMAND", "/nonexistent/escape"),
    ("GIT_CONFIG_GLOBAL", "/nonexistent/escape"),
    ("NODE_OPTIONS", "--no-deprecation"),
    ("PERL5LIB", "/nonexistent/escape"),
    ("PYTHONSTARTUP", "/nonexistent/escape"),
    ("RUBYLIB", "/nonexistent/escape"),
    ("LD_LIBRARY_PATH", "/nonexistent/escape"),
];

/// The pidfd case's own signal.
const SIGNAL: i32 = 60;

pub const CASES: &[Case] = &[
    Case::new("fd_file", "read an inherited file", |_| loot_fd(FD_FILE)).secret(),
    Case::new(
        "fd_file_proc",
        "open an inherited file anew by /proc/self/fd",
        |_| loot(format!("/proc/self/fd/{FD_FILE}")),
    )
    .secret(),
    Case::new("fd_dir", "openat below an inherited directory", |s| {
        below(FD_ROOT, s)
    })
    .secret(),
    Case::new("fd_fchdir", "fchdir to an inherited directory", |s| {
        call!(libc::SYS_fchdir, FD_ROOT)?;
        loot(relative(s))
    })
    .secret(),
    Case::new(
        "X5",
        "chdir to /proc/self/fd/N (the shape of CVE-2024-21626)",
        |s| {
            for number in 3..64 {
                let path = c(format!("/proc/self/fd/{number}"));
                if call!(libc::SYS_chdir, path.as_c_str()).is_ok()
                    && let Ok(found) = loot(relative(s))
                {
                    return Ok(found);
                }
            }
            Err(Refused::new("chdir", libc::ENOENT))
        },
    )
    .secret(),
    Case::new(
        "fd_cwd",
        "openat below the directory that the session began in",
        |s| {
            let up = "../".repeat(12);
            loot(format!("{up}{}", relative(s)))
        },
    )
    .secret(),
    Case::new("fd_sock", "talk over an inherited TCP connection", |s| {
        talk(FD_TCP, s)
    })
    .effect(Effect::Heard),
    Case::new("fd_unix", "talk over an inherited Unix connection", |s| {
        talk(FD_UNIX, s)
    })
    .effect(Effect::Heard),
    Case::new("fd_write", "write to an inherited file", |_| {
        call!(libc::SYS_write, FD_WRITE, c"x", 1)?;
        done("written")
    })
    .effect(Effect::Outside),
    Case::new("fd_pidfd", "signal through an inherited pidfd", |_| {
        call!(libc::SYS_pidfd_send_signal, FD_PIDFD, SIGNAL, 0, 0)?;
        done("sent")
    })
    .effect(Effect::Victim(crate::case::Hurt::Signal(SIGNAL))),
    Case::new(
        "fd_pidfd_getfd",
        "take a descriptor through an inherited pidfd",
        |s| {
            let file = call!(libc::SYS_pidfd_getfd, FD_PIDFD, s.victim.fd, 0)?;
            loot_fd(fd(file))
        },
    )
    .secret(),
    Case::new(
        "fd_any",
        "any descriptor beyond the standard streams",
        |_| {
            // The runner's own pipe is among them, and nothing else should be.
            let open: Vec<i32> = (3..256)
                .filter(|number| {
                    call!(libc::SYS_fcntl, *number, libc::F_GETFD).is_ok_and(|flags| flags == 0)
                })
                .collect();
            if open.is_empty() {
                return Err(Refused::new("fcntl", libc::EBADF));
            }
            done(format!("descriptors {open:?} survived the start"))
        },
    ),
    Case::new(
        "fd_any_dir",
        "a directory among the descriptors that leads out",
        |s| {
            (3..64)
                .find_map(|number| below(number, s).ok())
                .ok_or(Refused::new("openat", libc::EBADF))
        },
    )
    .secret(),
    Case::new(
        "fd_stdio_tty",
        "the caller's terminal as a standard stream",
        |_| {
            for number in 0..3 {
                let mut size = [0_u16; 4];
                if call!(libc::SYS_ioctl, number, libc::TIOCGWINSZ, size.as_mut_ptr()).is_ok() {
                    return done(format!("descriptor {number} is a terminal"));
                }
            }
            Err(Refused::new("ioctl", libc::ENOTTY))
        },
    )
    .cannot("sessions are started with pipes here"),
    Case::new(
        "fd_scm",
        "send an inherited directory to oneself and use the copy",
        |s| {
            let copy = call!(libc::SYS_dup, FD_ROOT)?;
            below(fd(copy), s)
        },
    )
    .secret(),
    Case::new("env_secret", "AWS_SECRET_ACCESS_KEY", |_| {
        variable("AWS_SECRET_ACCESS_KEY")
    })
    .secret(),
    Case::new("env_token", "GITHUB_TOKEN", |_| variable("GITHUB_TOKEN")).secret(),
    Case::new("env_ssh", "SSH_AUTH_SOCK", |_| variable("SSH_AUTH_SOCK")).secret(),
    Case::new("env_all", "any variable", |_| {
        let all: Vec<String> = std::env::vars()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Ok(Attempt::Loot(all.join("\n").into_bytes()))
    })
    .secret(),
    Case::new(
        "X25",
        "variables that make programs load code, from whoever started the session",
        |_| {
            let kept: Vec<&str> = INJECTED
                .iter()
                .filter(|(name, value)| std::env::var(name).as_deref() == Ok(value))
                .map(|(name, _)| *name)
                .collect();
            if kept.is_empty() {
                return Err(Refused::without_errno("none"));
            }
            done(kept.join(", "))
        },
    ),
    Case::new(
        "env_auxv",
        "the environment as the kernel laid it out",
        |_| loot("/proc/self/environ"),
    )
    .secret(),
];

fn variable(name: &str) -> Try {
    match std::env::var(name) {
        Ok(value) => Ok(Attempt::Loot(value.into_bytes())),
        Err(_) => Err(Refused::without_errno(format!("{name} is not set"))),
    }
}

fn relative(s: &Scene) -> String {
    s.outside()
        .display()
        .to_string()
        .trim_start_matches('/')
        .to_owned()
}

fn below(folder: i32, s: &Scene) -> Try {
    let path = c(relative(s));
    let file = call!(libc::SYS_openat, folder, path.as_c_str(), libc::O_RDONLY)?;
    loot_fd(fd(file))
}

fn talk(number: i32, s: &Scene) -> Try {
    use std::io::Write;
    call!(libc::SYS_fcntl, number, libc::F_GETFD)?;
    // SAFETY: open, as the line above found, and nobody else's in this process.
    let mut stream = unsafe { std::net::TcpStream::from_raw_fd(number) };
    stream.write_all(s.case.as_bytes())?;
    done("sent")
}
