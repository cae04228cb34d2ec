//! The broker's socket, and the broker on it.
//!
//! Runs in agentd, with the rights of whoever started it ([`connect`] also once it is confined). Fails with the error of the
//! call concerned.

use agentd_kernel::fdpass;
use rustix::net::SocketAddrUnix;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The descriptor on which the broker finds its socket.
pub const SOCKET_FD: i32 = 3;

/// Binds a socket at `path`, to be handed to a broker. It takes connections only after [`start_listening`], so its owner and
/// mode can be set before.
///
/// # Errors
/// What `socket` or `bind` says: `EADDRINUSE` where something is at `path`.
pub fn bind(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket_socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Connects to the broker that serves at `path`. Say [`BrokerClient::hello`] next: connected is not yet served.
///
/// # Errors
/// What `connect` says: `ENOENT` or `ECONNREFUSED` where nobody serves.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket_socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn seqpacket_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let kind = SocketType::SEQPACKET;
    Ok(socket_with(
        AddressFamily::UNIX,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Starts `program` as a child with the other end of the returned socket on descriptor [`SOCKET_FD`] and an empty
/// environment. Its standard error is inherited. The child outlives a dropped handle: it exits when the socket closes.
///
/// # Errors
/// What `socketpair` or the exec of `program` says.
pub fn start(program: &Path) -> io::Result<(OwnedFd, std::process::Child)> {
    let (ours, theirs) = fdpass::seqpacket_pair()?;
    Ok((ours, spawn(program, &[], theirs)?))
}

/// Starts `program` as [`start`] does, but to serve whoever connects to `socket`, which [`bind`] made: one client after the
/// other, until it has no agents and no client.
///
/// # Errors
/// What `listen` or the exec of `program` says.
pub fn start_listening(
    program: &Path,
    arguments: &[OsString],
    socket: OwnedFd,
) -> io::Result<std::process::Child> {
    // One at a time is served, and at most a few wait.
    const BACKLOG: i32 = 4;
    rustix::net::listen(&socket, BACKLOG)?;
    spawn(program, arguments, socket)
}

#[expect(unsafe_code, reason = "placing a descriptor between fork and exec")]
fn spawn(
    program: &Path,
    arguments: &[OsString],
    theirs: OwnedFd,
) -> io::Result<std::process::Child> {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    // Descriptor 3 must be taken while the standard library forks, or its own error pipe could sit there and be overwritten.
    // F_DUPFD finds the lowest free one from 3 on: either it is 3, or 3 is taken already.
    let theirs_high = rustix::io::fcntl_dupfd_cloexec(&theirs, SOCKET_FD)?;
    let raw = theirs.as_raw_fd();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    // SAFETY: dup2 and fcntl are async-signal-safe, and `raw` stays open in this process until the spawn returns.
    unsafe {
        command.pre_exec(move || {
            let placed = if raw == SOCKET_FD {
                libc::fcntl(SOCKET_FD, libc::F_SETFD, 0)
            } else {
                libc::dup2(raw, SOCKET_FD)
            };
            if placed < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    let child = command.spawn()?;
    drop((theirs, theirs_high));
    Ok(child)
}
