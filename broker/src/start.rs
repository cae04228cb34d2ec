//! From exec to the first request: the socket, the peer, the descriptors, the privileges that stay.
//!
//! Runs once, before anything from the client is read; every failure here ends the process with a line on stderr.

use crate::harden::{self, Removal};
use crate::server::Server;
use crate::spawn::Launcher;
use agentd_broker::client::SOCKET_FD;
use agentd_broker::protocol::Mode;
use agentd_kernel::cgroup::{Layout, Subtree};
use agentd_kernel::fdpass;
use agentd_kernel::probe::Roots;
use agentd_kernel::signals::SignalFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{geteuid, getpid, getppid, setsid};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Arguments {
    Serve { client_uid: Option<u32> },
    Version,
}

/// Why the broker can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("unknown argument {0:?}")]
    Argument(OsString),
    #[error("--client-uid takes a numeric user id, not {0:?}")]
    ClientUid(Option<OsString>),
    #[error(
        "descriptor {SOCKET_FD} is not an AF_UNIX SOCK_SEQPACKET socket: start agentd, which starts agentd-broker"
    )]
    Socket,
    #[error(
        "the peer on descriptor {SOCKET_FD} has uid {uid}, only uid {expected} may use this broker"
    )]
    Peer { uid: u32, expected: u32 },
    #[error("{call}: {source}")]
    Os {
        call: &'static str,
        source: io::Error,
    },
}

impl StartError {
    /// For `map_err`: names the call that failed.
    pub fn os<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Os {
            call,
            source: error.into(),
        }
    }
}

pub fn parse_arguments(arguments: impl Iterator<Item = OsString>) -> Result<Arguments, StartError> {
    let mut arguments = arguments;
    let mut client_uid = None;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--version") => return Ok(Arguments::Version),
            Some("--client-uid") => {
                let value = arguments.next();
                let uid = value
                    .as_ref()
                    .and_then(|value| value.to_str()?.parse().ok());
                client_uid = Some(uid.ok_or(StartError::ClientUid(value))?);
            }
            _ => return Err(StartError::Argument(argument)),
        }
    }
    Ok(Arguments::Serve { client_uid })
}

/// Takes the socket, checks the peer, builds what launches need, and gives up every other privilege.
pub fn prepare(client_uid: Option<u32>) -> Result<Server, StartError> {
    let mode = if geteuid().is_root() {
        Mode::Root
    } else {
        Mode::User
    };
    let socket = take_socket()?;
    let expected = client_uid.unwrap_or_else(|| geteuid().as_raw());
    let peer = fdpass::peer_credentials(socket.as_fd()).map_err(StartError::os("SO_PEERCRED"))?;
    if peer.uid != expected {
        return Err(StartError::Peer {
            uid: peer.uid,
            expected,
        });
    }
    rustix::io::ioctl_fionbio(&socket, true).map_err(StartError::os("FIONBIO"))?;

    // The terminal of whoever started agentd is not ours to be signalled by. Already a leader: nothing to do.
    match setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(errno) => return Err(StartError::os("setsid")(errno)),
    }
    let soft_nofile = harden::process(mode)?;
    let movable = [
        getpid().as_raw_nonzero().get(),
        getppid().map_or(0, |pid| pid.as_raw_nonzero().get()),
    ];
    let layout = Layout::detect(&Roots::default()).unwrap_or_else(|error| {
        eprintln!("agentd-broker: no cgroups: {error}");
        Layout::default()
    });
    let launcher = Launcher::prepare(soft_nofile)?;
    let signals = SignalFd::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
        .map_err(StartError::os("signalfd"))?;
    let subtree = Subtree::create(&layout, movable[0].unsigned_abs(), &movable);
    let removal = if subtree.removal_needs_override() {
        Removal::NeedsOverride
    } else {
        Removal::Plain
    };
    harden::privileges(mode, removal)?;
    Ok(Server::new(mode, socket, signals, subtree, launcher))
}

/// Descriptor 3, or the first connection on it. Everything above it is closed.
fn take_socket() -> Result<OwnedFd, StartError> {
    // SAFETY: close_range takes no pointers. Nothing in this process has opened a descriptor yet; those above 3 came from
    // whoever started us and no Rust value owns them.
    if unsafe { libc::close_range(SOCKET_FD as u32 + 1, u32::MAX, 0) } != 0 {
        return Err(StartError::os("close_range")(io::Error::last_os_error()));
    }
    // SAFETY: fcntl takes no pointers.
    if unsafe { libc::fcntl(SOCKET_FD, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(StartError::Socket);
    }
    // SAFETY: the descriptor is open (checked above) and no other value owns it: the process has just started.
    let socket = unsafe { OwnedFd::from_raw_fd(SOCKET_FD) };
    let usable = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&socket) == Ok(SocketType::SEQPACKET);
    if !usable {
        return Err(StartError::Socket);
    }
    if sockopt::socket_acceptconn(&socket).map_err(StartError::os("SO_ACCEPTCONN"))? {
        return rustix::net::accept_with(&socket, SocketFlags::CLOEXEC)
            .map_err(StartError::os("accept"));
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, StartError> {
        parse_arguments(arguments.iter().map(OsString::from))
    }

    #[test]
    fn the_command_line_takes_a_client_uid_and_nothing_else() {
        assert_eq!(
            parse(&[]).expect("empty"),
            Arguments::Serve { client_uid: None }
        );
        assert_eq!(
            parse(&["--client-uid", "998"]).expect("uid"),
            Arguments::Serve {
                client_uid: Some(998)
            }
        );
        assert!(matches!(
            parse(&["--client-uid"]),
            Err(StartError::ClientUid(None))
        ));
        assert!(matches!(
            parse(&["--client-uid", "root"]),
            Err(StartError::ClientUid(Some(_)))
        ));
        assert!(matches!(parse(&["--listen"]), Err(StartError::Argument(_))));
    }
}
