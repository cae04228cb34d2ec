//! From exec to the first request: the arguments, the socket, the cgroups, the privileges that stay.
//!
//! Runs once, before anything from a client is read; every failure here ends the process with a line on stderr.

use crate::audit::Audit;
use crate::harden::{self, Removal};
use crate::log::log;
use crate::plane::Plane;
use agentd_broker::client::SOCKET_FD;
use agentd_broker::protocol::Mode;
use agentd_kernel::cgroup::{CgroupError, Layout, Subtree};
use agentd_kernel::probe::Roots;
use agentd_launch::plan::Network;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, sockopt};
use rustix::process::{geteuid, getpid, getppid, setsid};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Serve(Arguments),
    /// Remove what is pinned for `--cgroup`, and end.
    RemovePins(PathBuf),
    Version,
}

/// How to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    pub client_uid: Option<u32>,
    /// A delegated cgroup2 directory for the agents.
    pub cgroup: Option<PathBuf>,
    /// Where to note what a later broker has to remove.
    pub notes: Option<PathBuf>,
    pub on_term: Leaving,
    pub supervision: Supervision,
    /// The most network that root's agents get.
    pub network: Network,
    pub kernel_audit: KernelAudit,
    /// The descriptor with the kernel plane of the program that this one replaces.
    pub plane: Option<RawFd>,
    /// The same with what it had of the kernel's audit.
    pub audit: Option<RawFd>,
    /// As they came, for an upgrade in place, but for `plane` and `audit`.
    pub given: Vec<OsString>,
}

/// From a broker to the program that replaces it in place; nobody else has such a descriptor.
pub const PLANE_OPTION: &str = "--plane-fd";
/// Likewise.
pub const AUDIT_OPTION: &str = "--audit-fd";

/// Whether what Landlock refuses is heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelAudit {
    #[default]
    Leave,
    Hear,
}

/// What becomes of the agents on SIGTERM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leaving {
    #[default]
    KillAgents,
    KeepAgents,
}

/// Who starts a worker again that has died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Supervision {
    #[default]
    Own,
    /// Whoever started this process.
    Foreign,
}

/// Why the broker can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("unknown argument {0:?}")]
    Argument(OsString),
    #[error("--client-uid takes a numeric user id, not {0:?}")]
    ClientUid(Option<OsString>),
    #[error("--cgroup takes the absolute path of a cgroup2 directory, not {0:?}")]
    CgroupPath(Option<OsString>),
    #[error("--notes takes the absolute path of a directory, not {0:?}")]
    NotesPath(Option<OsString>),
    #[error("--cgroup: {0}")]
    Cgroup(#[from] CgroupError),
    #[error(
        "descriptor {SOCKET_FD} is not an AF_UNIX SOCK_SEQPACKET socket: start agentd, which starts agentd-broker"
    )]
    Socket,
    #[error("the peer on the socket has uid {uid}, only uids {allowed:?} may use this broker")]
    Peer { uid: u32, allowed: Vec<u32> },
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

pub fn parse_arguments(given: impl Iterator<Item = OsString>) -> Result<Command, StartError> {
    let given: Vec<OsString> = given.collect();
    let mut parsed = Arguments::default();
    let mut remove_pins = false;
    let mut arguments = given.iter().cloned();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--version") => return Ok(Command::Version),
            Some("--client-uid") => {
                let value = arguments.next();
                let uid = value
                    .as_ref()
                    .and_then(|value| value.to_str()?.parse().ok());
                parsed.client_uid = Some(uid.ok_or(StartError::ClientUid(value))?);
            }
            Some("--cgroup") => {
                let value = arguments.next();
                let path = value.as_ref().map(PathBuf::from);
                let path = path.filter(|path| path.is_absolute());
                parsed.cgroup = Some(path.ok_or(StartError::CgroupPath(value))?);
            }
            Some("--notes") => {
                let value = arguments.next();
                let path = value.as_ref().map(PathBuf::from);
                let path = path.filter(|path| path.is_absolute());
                parsed.notes = Some(path.ok_or(StartError::NotesPath(value))?);
            }
            Some("--host-network") => parsed.network = Network::Host,
            Some("--kernel-audit") => parsed.kernel_audit = KernelAudit::Hear,
            Some("--remove-pins") => remove_pins = true,
            Some("--keep-agents") => parsed.on_term = Leaving::KeepAgents,
            Some("--no-supervisor") => parsed.supervision = Supervision::Foreign,
            Some(option) if is_passed(option) => {
                let (name, number) = option.split_once('=').unwrap_or((option, ""));
                let number = number.parse().ok().filter(|number| *number > SOCKET_FD);
                let number = Some(number.ok_or(StartError::Argument(argument.clone()))?);
                match name {
                    PLANE_OPTION => parsed.plane = number,
                    AUDIT_OPTION => parsed.audit = number,
                    _ => return Err(StartError::Argument(argument)),
                }
            }
            _ => return Err(StartError::Argument(argument)),
        }
    }
    if remove_pins {
        let cgroup = parsed.cgroup.ok_or(StartError::CgroupPath(None))?;
        return Ok(Command::RemovePins(cgroup));
    }
    let passed_on = |argument: &OsString| !is_passed(&argument.to_string_lossy());
    parsed.given = given.into_iter().filter(passed_on).collect();
    Ok(Command::Serve(parsed))
}

/// Whether an option is for the program that replaces another one.
fn is_passed(option: &str) -> bool {
    [PLANE_OPTION, AUDIT_OPTION]
        .iter()
        .any(|name| option.starts_with(name))
}

/// The socket on descriptor 3.
#[derive(Debug)]
pub enum Socket {
    /// To one client, and no other.
    Connected(OwnedFd),
    /// For one client after the other. Non-blocking.
    Listening(OwnedFd),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Connected(socket) | Self::Listening(socket) => socket.as_fd(),
        }
    }
}

/// Everything that was made while it still could be.
#[derive(Debug)]
pub struct Prepared {
    pub mode: Mode,
    pub socket: Socket,
    pub subtree: Subtree,
    pub plane: Plane,
    pub audit: Arc<Audit>,
    /// Who may be a client.
    pub client_uids: Vec<u32>,
    /// The soft limit of descriptors that agents start from.
    pub soft_nofile: Option<u64>,
}

/// Takes the socket, makes the cgroups, and gives up every privilege that serving does not need.
pub fn prepare(arguments: &Arguments) -> Result<Prepared, StartError> {
    let mode = if geteuid().is_root() {
        Mode::Root
    } else {
        Mode::User
    };
    let (socket, [passed, passed_audit]) = take_descriptors([arguments.plane, arguments.audit])?;
    let client_uids = client_uids(&socket, arguments.client_uid);

    // The terminal of whoever started agentd is not ours to be signalled by. Already a leader: nothing to do.
    match setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(errno) => return Err(StartError::os("setsid")(errno)),
    }
    let soft_nofile = harden::process(mode)?;
    let subtree = match &arguments.cgroup {
        Some(path) => Subtree::delegated(path)?,
        None => own_subtree(),
    };
    let removal = if subtree.removal_needs_override() {
        Removal::NeedsOverride
    } else {
        Removal::Plain
    };
    let plane = match passed {
        Some(passed) => Plane::take_over(passed, &subtree),
        None => Plane::raise(mode, &subtree),
    };
    let audit = match passed_audit {
        Some(passed) => Audit::take_over(&passed),
        None => Audit::hear(mode, arguments.kernel_audit == KernelAudit::Hear),
    };
    harden::privileges(mode, removal, &audit)?;
    Ok(Prepared {
        mode,
        socket,
        subtree,
        plane,
        audit: Arc::new(audit),
        client_uids,
        soft_nofile,
    })
}

/// `agentd-PID` below this process's cgroups, wherever it can be made.
fn own_subtree() -> Subtree {
    let layout = Layout::detect(&Roots::default()).unwrap_or_else(|error| {
        log!("no cgroups: {error}");
        Layout::default()
    });
    let movable = [
        getpid().as_raw_nonzero().get(),
        getppid().map_or(0, |pid| pid.as_raw_nonzero().get()),
    ];
    Subtree::create(&layout, movable[0].unsigned_abs(), &movable)
}

/// This user, and the one named; if none is, the owner of the file that the socket listens on, who decides by its mode who
/// can connect at all.
fn client_uids(socket: &Socket, named: Option<u32>) -> Vec<u32> {
    let owner = || {
        let Socket::Listening(socket) = socket else {
            return None;
        };
        let address = rustix::net::getsockname(socket).ok()?;
        let address = SocketAddrUnix::try_from(address).ok()?;
        let path = std::ffi::OsStr::from_bytes(address.path()?.to_bytes()).to_owned();
        Some(std::fs::symlink_metadata(path).ok()?.uid())
    };
    let own = geteuid().as_raw();
    match named {
        // A socket pair was made by whoever is to use it, and by nobody else.
        Some(uid) if matches!(socket, Socket::Connected(_)) => vec![uid],
        named => std::iter::once(own).chain(named.or_else(owner)).collect(),
    }
}

/// Descriptor 3, and those that the program before passed on. All others above 3 are closed.
fn take_descriptors<const N: usize>(
    passed: [Option<RawFd>; N],
) -> Result<(Socket, [Option<OwnedFd>; N]), StartError> {
    let count = passed.iter().flatten().count() as RawFd;
    let first = SOCKET_FD + 1;
    let last = first + count;
    let os = || StartError::os("descriptors of the program before")(io::Error::last_os_error());
    // Out of the way first, as any of them may have a number that another one is to get.
    let mut aside = Vec::new();
    for number in passed.iter().flatten() {
        // SAFETY: fcntl takes no pointers; the copy is a new number that is closed below with all others.
        match unsafe { libc::fcntl(*number, libc::F_DUPFD_CLOEXEC, last) } {
            -1 => return Err(os()),
            copy => aside.push(copy),
        }
    }
    for (number, copy) in (first..last).zip(aside) {
        // SAFETY: dup2 takes no pointers; what may be at the numbers above the socket is nobody's, see below.
        if unsafe { libc::dup2(copy, number) } == -1 {
            return Err(os());
        }
    }
    // SAFETY: close_range takes no pointers. Nothing in this process has opened a descriptor yet but the copies above, which are
    // done with; the others came from whoever started us and no Rust value owns them.
    if unsafe { libc::close_range(last as u32, u32::MAX, 0) } != 0 {
        return Err(StartError::os("close_range")(io::Error::last_os_error()));
    }
    for number in SOCKET_FD..last {
        // SAFETY: fcntl takes no pointers.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(StartError::Socket);
        }
    }
    let mut numbers = first..last;
    let passed = passed.map(|one| {
        let number = one.and_then(|_| numbers.next())?;
        // SAFETY: open (it was just made close-on-exec), and no other value owns it: the process has just started.
        Some(unsafe { OwnedFd::from_raw_fd(number) })
    });
    Ok((take_socket()?, passed))
}

/// Descriptor 3, which is open.
fn take_socket() -> Result<Socket, StartError> {
    // SAFETY: the descriptor is open (checked above) and no other value owns it: the process has just started.
    let socket = unsafe { OwnedFd::from_raw_fd(SOCKET_FD) };
    let usable = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&socket) == Ok(SocketType::SEQPACKET);
    if !usable {
        return Err(StartError::Socket);
    }
    if !sockopt::socket_acceptconn(&socket).map_err(StartError::os("SO_ACCEPTCONN"))? {
        return Ok(Socket::Connected(socket));
    }
    // A client that has gone again must not leave the worker waiting for it.
    rustix::io::ioctl_fionbio(&socket, true).map_err(StartError::os("FIONBIO"))?;
    Ok(Socket::Listening(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Command, StartError> {
        parse_arguments(arguments.iter().map(OsString::from))
    }

    #[test]
    fn the_command_line_takes_its_options_and_nothing_else() {
        let Ok(Command::Serve(none)) = parse(&[]) else {
            panic!("empty")
        };
        assert_eq!(none, Arguments::default());
        let given = [
            "--client-uid",
            "998",
            "--cgroup",
            "/sys/fs/cgroup/a",
            "--notes",
            "/var/lib/a",
            "--host-network",
            "--kernel-audit",
            "--keep-agents",
            "--no-supervisor",
        ];
        let all = Arguments {
            client_uid: Some(998),
            cgroup: Some("/sys/fs/cgroup/a".into()),
            notes: Some("/var/lib/a".into()),
            on_term: Leaving::KeepAgents,
            supervision: Supervision::Foreign,
            network: Network::Host,
            kernel_audit: KernelAudit::Hear,
            plane: None,
            audit: None,
            given: given.map(OsString::from).to_vec(),
        };
        assert_eq!(parse(&given).expect("all"), Command::Serve(all));
        assert_eq!(
            parse(&["--remove-pins", "--cgroup", "/a"]).expect("both"),
            Command::RemovePins("/a".into())
        );
        assert!(matches!(
            parse(&["--remove-pins"]),
            Err(StartError::CgroupPath(None))
        ));
        assert!(matches!(
            parse(&["--client-uid"]),
            Err(StartError::ClientUid(None))
        ));
        assert!(matches!(
            parse(&["--client-uid", "root"]),
            Err(StartError::ClientUid(Some(_)))
        ));
        assert!(matches!(
            parse(&["--cgroup", "relative"]),
            Err(StartError::CgroupPath(Some(_)))
        ));
        assert!(matches!(
            parse(&["--notes", "relative"]),
            Err(StartError::NotesPath(Some(_)))
        ));
        assert!(matches!(parse(&["--listen"]), Err(StartError::Argument(_))));
    }
}
