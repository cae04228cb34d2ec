//! Messages with file descriptors and kernel-attested credentials over AF_UNIX sockets.
//!
//! One `sendmsg` and one `recvmsg` wrapper that every process of agentd shares, so that the rules which are easy to forget
//! hold everywhere: received descriptors are close-on-exec from their first moment, a message or a control block that did
//! not fit is an error (and whatever did arrive is closed), and the number of descriptors per message is bounded.
//!
//! Never interprets the bytes, never blocks unless the socket does. Callable from any thread; needs no privilege. Failures
//! are the call's own `errno`, or one of the two truncations in [`ReceiveError`].

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Most descriptors that one message can carry (the kernel's `SCM_MAX_FD`).
#[doc(alias = "SCM_MAX_FD")]
pub const MAX_FDS: usize = 253;

/// Room for one `SCM_RIGHTS` block of [`MAX_FDS`] and one `SCM_CREDENTIALS` block, in 8-byte words.
const CONTROL_WORDS: usize = (16 + MAX_FDS * 4 + 8 + 16 + 16) / 8;

/// Who sent a message, as the kernel attests it (never as the sender says, unless it holds `CAP_SETUID`).
///
/// Ids are those of the receiver's user namespace. `pid` is 0 and the ids are the overflow ids when the message was sent
/// without credentials, or from a namespace that the receiver can't see.
#[doc(alias = "SCM_CREDENTIALS")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// What one `recvmsg` brought. Dropping it closes the descriptors.
#[derive(Debug)]
pub struct Received {
    /// Bytes written into the caller's buffer; 0 is end of file on a SOCK_SEQPACKET socket.
    pub len: usize,
    /// The descriptors, in the sender's order, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Present when the socket has `SO_PASSCRED` (see [`pass_credentials`]).
    pub credentials: Option<Credentials>,
}

/// Why a message could not be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("recvmsg: {0}")]
    Io(#[from] io::Error),
    #[error("the message is longer than the {max} bytes allowed")]
    TooLong { max: usize },
    #[error(
        "the message carries more descriptors or control data than fit (or this process is out of descriptors)"
    )]
    ControlTruncated,
}

impl ReceiveError {
    /// Whether a non-blocking socket merely had nothing to read.
    pub fn is_would_block(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Sends `bytes` with `fds` as one message. Never raises SIGPIPE; blocks only if the socket does.
///
/// # Errors
/// `E2BIG` for more than [`MAX_FDS`] descriptors, otherwise what `sendmsg(2)` says.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    transmit(socket, bytes, fds, None, 0)
}

/// As [`send`], but `WouldBlock` where the socket would wait.
pub fn try_send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    transmit(socket, bytes, fds, None, libc::MSG_DONTWAIT)
}

/// As [`send`], with an explicit `SCM_CREDENTIALS` block naming this process and its effective ids, so that the receiver
/// learns them even if neither side had `SO_PASSCRED` when the message was queued.
pub fn send_with_credentials(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let credentials = libc::ucred {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    transmit(socket, bytes, fds, Some(credentials), 0)
}

/// Bytes that a control block with `payload` bytes takes.
fn control_space(payload: usize) -> usize {
    // SAFETY: CMSG_SPACE touches no memory; callers pass at most MAX_FDS descriptors, far from overflow.
    unsafe { libc::CMSG_SPACE(payload as u32) as usize }
}

fn transmit(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    credentials: Option<libc::ucred>,
    flags: libc::c_int,
) -> io::Result<usize> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let flags = flags | libc::MSG_NOSIGNAL;
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: msghdr is a plain C struct for which all-zero is a valid value (null pointers with zero lengths).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;

    let rights_space = if fds.is_empty() {
        0
    } else {
        control_space(size_of_val(fds))
    };
    let credentials_space = credentials.map_or(0, |_| control_space(size_of::<libc::ucred>()));
    if rights_space + credentials_space > 0 {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = (rights_space + credentials_space) as _;
        assert!(
            rights_space + credentials_space <= size_of_val(&control),
            "CONTROL_WORDS covers both blocks"
        );
        // SAFETY: msg_control points to `control`, which is aligned for cmsghdr (u64) and at least msg_controllen long
        // (asserted above), so CMSG_FIRSTHDR and CMSG_NXTHDR stay inside it and CMSG_DATA has room for the payload whose
        // CMSG_SPACE was reserved. BorrowedFd is repr(transparent) over RawFd, so the descriptor slice is a slice of ints.
        unsafe {
            let mut cmsg = libc::CMSG_FIRSTHDR(&raw const header);
            if !fds.is_empty() {
                (*cmsg).cmsg_level = libc::SOL_SOCKET;
                (*cmsg).cmsg_type = libc::SCM_RIGHTS;
                (*cmsg).cmsg_len = libc::CMSG_LEN(size_of_val(fds) as u32) as _;
                ptr::copy_nonoverlapping(
                    fds.as_ptr().cast::<u8>(),
                    libc::CMSG_DATA(cmsg),
                    size_of_val(fds),
                );
                cmsg = libc::CMSG_NXTHDR(&raw const header, cmsg);
            }
            if let Some(credentials) = credentials {
                (*cmsg).cmsg_level = libc::SOL_SOCKET;
                (*cmsg).cmsg_type = libc::SCM_CREDENTIALS;
                (*cmsg).cmsg_len = libc::CMSG_LEN(size_of::<libc::ucred>() as u32) as _;
                ptr::write_unaligned(libc::CMSG_DATA(cmsg).cast::<libc::ucred>(), credentials);
            }
        }
    }
    loop {
        // SAFETY: header, iov, the byte slice and the control block outlive the call; the kernel only reads them.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether [`receive`] may wait when nothing is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As the socket's own O_NONBLOCK says.
    AsSocket,
    /// Never: `WouldBlock` when nothing is queued.
    Never,
}

/// Receives one message into `buffer`, with at most `max_fds` descriptors.
///
/// # Errors
/// [`ReceiveError::TooLong`] and [`ReceiveError::ControlTruncated`] consume the message and close what came with it.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    max_fds: usize,
    wait: Wait,
) -> Result<Received, ReceiveError> {
    let flags = match wait {
        Wait::Never => libc::MSG_DONTWAIT,
        Wait::AsSocket => 0,
    };
    take(socket, buffer, max_fds, flags)
}

/// As [`receive`], never waiting, but leaves the message in the queue: the descriptors are further duplicates.
#[doc(alias = "MSG_PEEK")]
pub fn peek(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    max_fds: usize,
) -> Result<Received, ReceiveError> {
    take(socket, buffer, max_fds, libc::MSG_PEEK | libc::MSG_DONTWAIT)
}

fn take(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    max_fds: usize,
    flags: libc::c_int,
) -> Result<Received, ReceiveError> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: as in `transmit`.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let len = loop {
        // SAFETY: all pointers in `header` refer to live, writable memory of the stated lengths for the whole call.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        if let Ok(got) = usize::try_from(got) {
            break got;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error.into());
        }
    };

    let mut fds = Vec::new();
    let mut credentials = None;
    // SAFETY: after a successful recvmsg the kernel has set msg_controllen to the valid part of `control`; the CMSG macros
    // walk only that part. Payloads are read unaligned and within cmsg_len. Each int in an SCM_RIGHTS block is a descriptor
    // newly installed for us and owned by nobody else.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        while !cmsg.is_null() {
            let payload = ((*cmsg).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let data = libc::CMSG_DATA(cmsg);
            match ((*cmsg).cmsg_level, (*cmsg).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    for index in 0..payload / size_of::<RawFd>() {
                        let fd = ptr::read_unaligned(data.cast::<RawFd>().add(index));
                        fds.push(OwnedFd::from_raw_fd(fd));
                    }
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS)
                    if payload >= size_of::<libc::ucred>() =>
                {
                    let ucred = ptr::read_unaligned(data.cast::<libc::ucred>());
                    credentials = Some(Credentials {
                        pid: ucred.pid,
                        uid: ucred.uid,
                        gid: ucred.gid,
                    });
                }
                _ => {}
            }
            cmsg = libc::CMSG_NXTHDR(&raw const header, cmsg);
        }
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 || fds.len() > max_fds {
        return Err(ReceiveError::ControlTruncated);
    }
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(ReceiveError::TooLong { max: buffer.len() });
    }
    Ok(Received {
        len,
        fds,
        credentials,
    })
}

/// Asks the kernel to attach the sender's [`Credentials`] to each message received on `socket`.
#[doc(alias = "SO_PASSCRED")]
pub fn pass_credentials(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(socket, true)?)
}

/// The credentials of whoever created or connected the other end of `socket`.
#[doc(alias = "SO_PEERCRED")]
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut ucred = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `ucred` and `len` are live and writable, and `len` holds the size of `ucred`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut ucred).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Credentials {
        pid: ucred.pid,
        uid: ucred.uid,
        gid: ucred.gid,
    })
}

/// A pair of connected SOCK_SEQPACKET sockets, close-on-exec and blocking.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::own_descriptors;
    use std::os::fd::AsFd;

    #[test]
    fn bytes_fds_and_credentials_arrive_together() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        let file = tempfile::tempfile().expect("temporary file");
        send_with_credentials(a.as_fd(), b"hello", &[file.as_fd(), a.as_fd()]).expect("send");
        pass_credentials(b.as_fd()).expect("SO_PASSCRED");
        let mut buffer = [0u8; 16];
        let got = receive(b.as_fd(), &mut buffer, 2, Wait::Never).expect("receive");
        assert_eq!(&buffer[..got.len], b"hello");
        assert_eq!(got.fds.len(), 2);
        for fd in &got.fds {
            let flags = rustix::io::fcntl_getfd(fd).expect("F_GETFD");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        let credentials = got.credentials.expect("credentials");
        assert_eq!(credentials.uid, rustix::process::geteuid().as_raw());
        assert_eq!(credentials.pid, std::process::id() as i32);
    }

    #[test]
    fn a_message_sent_without_credentials_shows_no_pid() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        send(a.as_fd(), b"x", &[]).expect("send");
        pass_credentials(b.as_fd()).expect("SO_PASSCRED");
        let got = receive(b.as_fd(), &mut [0u8; 4], 0, Wait::Never).expect("receive");
        assert_eq!(got.credentials.map(|c| c.pid), Some(0));
    }

    #[test]
    fn a_message_that_does_not_fit_is_refused_and_its_descriptors_are_closed() {
        own_descriptors();
        let (a, b) = seqpacket_pair().expect("socketpair");
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        send(a.as_fd(), b"too long", &[writer.as_fd()]).expect("send");
        drop(writer);
        let error = receive(b.as_fd(), &mut [0u8; 4], 4, Wait::Never).expect_err("too long");
        assert!(matches!(error, ReceiveError::TooLong { max: 4 }), "{error}");
        assert_eq!(
            rustix::io::read(&reader, &mut [0u8; 1]),
            Ok(0),
            "every write end is closed"
        );
    }

    #[test]
    fn more_descriptors_than_allowed_are_refused() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        let many = vec![a.as_fd(); MAX_FDS];
        send(a.as_fd(), b"x", &many).expect("send");
        let error = receive(b.as_fd(), &mut [0u8; 4], 8, Wait::Never).expect_err("too many");
        assert!(matches!(error, ReceiveError::ControlTruncated), "{error}");
        send(a.as_fd(), b"x", &many).expect("send");
        let got = receive(b.as_fd(), &mut [0u8; 4], MAX_FDS, Wait::Never).expect("all fit");
        assert_eq!(got.fds.len(), MAX_FDS);
        let more = vec![a.as_fd(); MAX_FDS + 1];
        assert_eq!(
            send(a.as_fd(), b"x", &more).map_err(|e| e.raw_os_error()),
            Err(Some(libc::E2BIG))
        );
    }

    #[test]
    fn end_of_file_is_an_empty_message_and_nothing_queued_would_block() {
        own_descriptors();
        let (a, b) = seqpacket_pair().expect("socketpair");
        let error = receive(b.as_fd(), &mut [0u8; 4], 0, Wait::Never).expect_err("nothing queued");
        assert!(error.is_would_block());
        drop(a);
        assert_eq!(
            receive(b.as_fd(), &mut [0u8; 4], 0, Wait::Never)
                .expect("eof")
                .len,
            0
        );
    }

    #[test]
    fn the_peer_is_who_made_the_pair() {
        let (a, _b) = seqpacket_pair().expect("socketpair");
        let peer = peer_credentials(a.as_fd()).expect("SO_PEERCRED");
        assert_eq!(peer.pid, std::process::id() as i32);
    }
}
