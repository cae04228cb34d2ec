//! Starting a daemon of the user's own when none is there.
//!
//! The new daemon runs in a session of its own with its stderr in a log file, and outlives us. It says
//! that it is ready over a notification socket (`sd_notify`'s protocol), so nothing here waits by
//! sleeping. Two that start at once are told apart by a lock: the second finds the first's daemon.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use agentd_api::{ErrorCode, dirs};
use agentd_kernel::pidfd::PidFd;
use agentd_kernel::session;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::connect::{Absent, connect_in};
use crate::failure::Failure;
use crate::resolve::Context;

/// A daemon that is not ready after this time is reported. A generous watchdog, never a pace.
const PATIENCE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// How much of the daemon's log is shown when it does not start.
const LOG_TAIL: usize = 2048;

/// Starts a daemon in the caller's runtime directory and connects to it.
pub fn start_daemon(context: &Context) -> Result<(UnixStream, PathBuf), Failure> {
    let runtime_dir = context.dirs.runtime_dir(context.runtime_dir.as_deref());
    let uid = context.dirs.uid;
    let state_dir = context.dirs.state_dir(None).map_err(|e| failed(&e))?;
    for dir in [&state_dir, &runtime_dir] {
        make_dir(dir, uid)?;
    }

    let _lock = lock(&runtime_dir.join("start.lock")).map_err(|e| failed(&e))?;
    // Whoever held the lock before us may have started one.
    match connect_in(&runtime_dir, context) {
        Ok(stream) => return Ok((stream, runtime_dir)),
        Err(Absent::Refused(failure)) => return Err(*failure),
        Err(Absent::NoDaemon(_)) => {}
    }
    let program = find_program()?;
    context.tell(&format!("starting {}", program.display()));
    let log = state_dir.join("agentd.log");
    let notify = Notify::bind(&runtime_dir).map_err(|e| failed(&e))?;
    let mut child = spawn(&program, &runtime_dir, &state_dir, &log, &notify.path)?;
    wait_ready(&notify, &mut child, &log)?;
    match connect_in(&runtime_dir, context) {
        Ok(stream) => Ok((stream, runtime_dir)),
        Err(Absent::Refused(failure)) => Err(*failure),
        Err(Absent::NoDaemon(why)) => Err(failed(&format!("it said ready, but: {why}"))),
    }
}

fn failed(why: &dyn std::fmt::Display) -> Failure {
    Failure::of_code(ErrorCode::Unreachable, "can't start agentd", why).try_next("agentctl doctor")
}

/// A user's directories are private. Root's belong to the daemon, which sets their owner and mode.
fn make_dir(dir: &Path, uid: u32) -> Result<(), Failure> {
    let made = match uid {
        0 => std::fs::create_dir_all(dir).map_err(|source| dirs::DirError::Create {
            path: dir.to_owned(),
            source,
        }),
        _ => dirs::private_dir(dir, uid),
    };
    made.map_err(|e| failed(&chain(&e)))
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    file.lock()?;
    Ok(file)
}

/// `agentd` next to our own program, else in PATH.
pub fn find_program() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|exe| Some(exe.parent()?.join("agentd")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join("agentd"));
    beside
        .into_iter()
        .chain(in_path)
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| failed(&"no program `agentd` next to agentctl or in PATH"))
}

/// The socket on which the daemon says that it is ready; its file goes with it.
struct Notify {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Notify {
    fn bind(runtime_dir: &Path) -> io::Result<Self> {
        let path = runtime_dir.join(format!("start-{}.sock", std::process::id()));
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let notify = Self {
            socket: UnixDatagram::bind(&path)?,
            path,
        };
        // A daemon started by root has dropped to its own user when it is ready. For anybody else the
        // directory is private.
        std::fs::set_permissions(&notify.path, std::fs::Permissions::from_mode(0o666))?;
        Ok(notify)
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        // Left behind, it is a dead name that the next start with our pid removes.
        drop(std::fs::remove_file(&self.path));
    }
}

fn spawn(
    program: &Path,
    runtime_dir: &Path,
    state_dir: &Path,
    log: &Path,
    notify: &Path,
) -> Result<Child, Failure> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(|e| failed(&e))?;
    let mut command = Command::new(program);
    command
        .arg("--runtime-dir")
        .arg(runtime_dir)
        .arg("--state-dir")
        .arg(state_dir)
        .env("NOTIFY_SOCKET", notify)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    session::new_session(&mut command)
        .spawn()
        .map_err(|e| failed(&format!("{}: {e}", program.display())))
}

/// Returns when the daemon is ready; fails when it ends instead.
fn wait_ready(notify: &Notify, child: &mut Child, log: &Path) -> Result<(), Failure> {
    let pidfd = PidFd::open(child.id() as i32).map_err(|e| failed(&e))?;
    let mut message = [0u8; 4096];
    loop {
        let mut fds = [
            PollFd::new(&notify.socket, PollFlags::IN),
            PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
        ];
        let ready = match poll(&mut fds, Some(&PATIENCE)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.map_err(|e| failed(&e))?,
        };
        if ready == 0 {
            let why = format!("not ready after {} s{}", PATIENCE.tv_sec, tail(log));
            return Err(failed(&why));
        }
        if !fds[0].revents().is_empty() {
            let length = notify.socket.recv(&mut message).map_err(|e| failed(&e))?;
            if message[..length]
                .split(|b| *b == b'\n')
                .any(|line| line == b"READY=1")
            {
                return Ok(());
            }
        } else if !fds[1].revents().is_empty() {
            let status = child.wait().map_err(|e| failed(&e))?;
            return Err(failed(&format!("it ended at once ({status}){}", tail(log))));
        }
    }
}

/// The end of the daemon's log, to be put behind a message.
fn tail(log: &Path) -> String {
    let Ok(bytes) = std::fs::read(log) else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(5)..];
    let shown: String = last
        .iter()
        .map(|l| format!("\n    {}", crate::output::visible(l)))
        .collect();
    format!("; the end of {}:{shown}", log.display())
}
