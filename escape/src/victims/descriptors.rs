//! Descriptors that a careless starter leaves open: a secret file, the root directory, connected sockets, a file for
//! writing, a pidfd of the victim. The session inherits them under fixed numbers.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::{Raise, RaiseError};
use crate::raw::call;
use crate::scene::{FD_FILE, FD_PIDFD, FD_ROOT, FD_TCP, FD_UNIX, FD_WRITE, Scene};

#[derive(Debug)]
pub struct Descriptors(Vec<(OwnedFd, RawFd)>);

impl Descriptors {
    pub fn raise(scene: &Scene) -> Result<Self, RaiseError> {
        let secret = File::open(scene.outside.join("open")).raise("an open file")?;
        let root = File::open("/").raise("the root directory")?;
        let written = File::options()
            .create(true)
            .append(true)
            .open(scene.outside.join("fd_write"))
            .raise("a file for writing")?;
        let tcp = TcpStream::connect(("127.0.0.1", scene.tcp)).raise("a TCP connection")?;
        let unix = UnixStream::connect(&scene.unix).raise("a Unix connection")?;
        let pidfd = call!(libc::SYS_pidfd_open, scene.victim.pid, 0).raise("a pidfd")?;
        let pidfd = RawFd::try_from(pidfd).unwrap_or(-1);
        Ok(Self(vec![
            (secret.into(), FD_FILE),
            (root.into(), FD_ROOT),
            (tcp.into(), FD_TCP),
            (written.into(), FD_WRITE),
            // SAFETY: pidfd_open has just opened it for us.
            (unsafe { OwnedFd::from_raw_fd(pidfd) }, FD_PIDFD),
            (unix.into(), FD_UNIX),
        ]))
    }

    /// `(open, wanted)` for the child to duplicate.
    pub fn numbers(&self) -> Vec<(RawFd, RawFd)> {
        self.0
            .iter()
            .map(|(fd, number)| (fd.as_raw_fd(), *number))
            .collect()
    }
}
