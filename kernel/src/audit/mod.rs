//! The kernel's audit: the group of netlink listeners that hears its records, and the few settings
//! that turn it on.
//!
//! [`join`] makes a socket that hears what Landlock refuses and nothing else of the host's audit: a
//! filter that can't be taken off again lets two kinds of record through. Joining needs
//! `CAP_AUDIT_READ`, reading what comes needs nothing, so the socket can be handed to a process
//! without rights. [`Control`] needs `CAP_AUDIT_CONTROL`, the initial user and pid namespaces.
//! [`record`] parses.
//!
//! Never waits for more than [`PATIENCE`]. Fails with the call's errno. The messages are
//! `linux/audit.h`'s.

pub mod record;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// The kernel answers at once, but from a thread of its own.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes before a message's own.
pub const HEADER_LEN: usize = 16;
/// No record is longer, header included: the kernel cuts at `MAX_AUDIT_MESSAGE_LENGTH`.
pub const MAX_RECORD: usize = HEADER_LEN + 8970;
/// What waits for the reader: of the size of a record in kernel memory, some four thousand.
const RECEIVE_BUFFER: usize = 4 << 20;

const AUDIT_GET: u16 = 1000;
const AUDIT_SET: u16 = 1001;
const AUDIT_ADD_RULE: u16 = 1011;
/// Group 1, as a bit.
#[doc(alias = "AUDIT_NLGRP_READLOG")]
const READLOG: u32 = 1;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const AUDIT_FILTER_TASK: u32 = 1;
const AUDIT_NEVER: u32 = 0;
/// `struct audit_rule_data` without a buffer: three words, a mask, three arrays of 64 words, a length.
const RULE_WORDS: usize = 3 + 64 + 3 * 64 + 1;

/// A non-blocking socket on which the records of [`record::KINDS`] arrive from now on, one in each message.
pub fn join() -> io::Result<OwnedFd> {
    let socket = open(SocketFlags::NONBLOCK)?;
    only_landlock(socket.as_fd())?;
    // Needs CAP_NET_ADMIN; with what everybody may have it is lost sooner, and counted.
    if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    }
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, READLOG))?;
    Ok(socket)
}

/// How many records found `socket` full, since it was made.
#[doc(alias = "SO_MEMINFO")]
pub fn dropped(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const SK_MEMINFO_DROPS: usize = 8;
    let mut info = [0u32; SK_MEMINFO_DROPS + 1];
    let mut len = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, and the length to `len`; both live until it returns.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    match done {
        0 => Ok(info[SK_MEMINFO_DROPS]),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    let family = AddressFamily::NETLINK;
    let socket = rustix::net::socket_with(family, SocketType::RAW, flags, Some(netlink::AUDIT))?;
    Ok(socket)
}

/// Nothing but [`record::KINDS`] gets into `socket` from here on, whoever has it.
fn only_landlock(socket: BorrowedFd<'_>) -> io::Result<()> {
    let statement = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    // The machine loads in network order what the kernel has written in its own.
    let equals = |kind: u16, jt, jf| libc::sock_filter {
        code: 0x15,
        jt,
        jf,
        k: u16::from_be_bytes(kind.to_ne_bytes()).into(),
    };
    let [access, domain] = record::KINDS;
    let mut program = [
        // The kind is the third half-word of the header.
        statement(0x28, 4),
        equals(access, 1, 0),
        equals(domain, 0, 1),
        statement(0x06, u32::MAX),
        statement(0x06, 0),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    set(socket, libc::SO_ATTACH_FILTER, &program)?;
    set(socket, libc::SO_LOCK_FILTER, &1i32)
}

fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value` and, for a filter, the instructions it points to: both callers above have
    // them in a local until this returns.
    let done = unsafe {
        let value = std::ptr::from_ref(value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, len)
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether audit is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enabled {
    Off,
    On,
    /// Until the next start of the host; nothing can be set.
    Locked,
}

/// What can be set, and is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records in a second; 0 for no limit.
    pub rate: u32,
    /// Records that wait.
    pub backlog: u32,
    /// How long whoever writes a record waits for room, in ticks of the kernel.
    pub backlog_wait: u32,
}

/// The kernel's answer to `AUDIT_GET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub enabled: Enabled,
    /// Of the audit daemon; 0 without one.
    pub daemon_pid: u32,
    pub limits: Limits,
    /// Records that the kernel itself could not keep, since its start.
    pub lost: u32,
}

/// The right to turn audit on and off.
#[derive(Debug)]
pub struct Control(OwnedFd);

impl Control {
    pub fn open() -> io::Result<Self> {
        let socket = open(SocketFlags::empty())?;
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    pub fn status(&self) -> io::Result<Status> {
        let answer = self.ask(AUDIT_GET, &[])?;
        let body = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        parse_status(&body).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Turns audit on or off, with these limits.
    pub fn set(&self, enabled: bool, limits: Limits) -> io::Result<()> {
        const ENABLED: u32 = 1;
        const RATE: u32 = 8;
        const BACKLOG: u32 = 0x10;
        const BACKLOG_WAIT: u32 = 0x20;
        let body = [
            ENABLED | RATE | BACKLOG | BACKLOG_WAIT,
            enabled.into(),
            0,
            0,
            limits.rate,
            limits.backlog,
            0,
            0,
            0,
            limits.backlog_wait,
            0,
        ];
        self.ask(AUDIT_SET, &body).map(drop)
    }

    /// Adds the rule `-a never,task`: no task that is made from now on has its system calls audited. One that is there stays.
    pub fn never_audit_tasks(&self) -> io::Result<()> {
        let mut rule = [0u32; RULE_WORDS];
        rule[..2].copy_from_slice(&[AUDIT_FILTER_TASK, AUDIT_NEVER]);
        match self.ask(AUDIT_ADD_RULE, &rule) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            added => added.map(drop),
        }
    }

    /// Sends one request and waits until the kernel has acknowledged it. The answer's body, if one came.
    fn ask(&self, kind: u16, words: &[u32]) -> io::Result<Option<Vec<u8>>> {
        let answers = kind == AUDIT_GET;
        let len = (HEADER_LEN + words.len() * 4) as u32;
        let mut message = len.to_ne_bytes().to_vec();
        for half in [kind, NLM_F_REQUEST | NLM_F_ACK] {
            message.extend(half.to_ne_bytes());
        }
        // No number, from nobody: there is one request at a time, and the kernel knows the socket.
        message.extend([0; 8]);
        message.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        rustix::net::send(&self.0, &message, SendFlags::empty())?;
        let (mut answer, mut acknowledged) = (None, false);
        let mut buffer = [0u8; MAX_RECORD];
        // The answer comes from a thread, before or after the acknowledgement.
        while !acknowledged || (answers && answer.is_none()) {
            let (len, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let Some((header, body)) = buffer[..len].split_at_checked(HEADER_LEN) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            match u16::from_ne_bytes([header[4], header[5]]) {
                NLMSG_ERROR => {
                    let code = body.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
                    match i32::from_ne_bytes(*code) {
                        0 => acknowledged = true,
                        code => return Err(io::Error::from_raw_os_error(-code)),
                    }
                }
                found if found == kind => answer = Some(body.to_vec()),
                _ => {}
            }
        }
        Ok(answer)
    }
}

fn parse_status(body: &[u8]) -> Option<Status> {
    let (words, _) = body.as_chunks::<4>();
    let word = |at: usize| words.get(at).map(|word| u32::from_ne_bytes(*word));
    Some(Status {
        enabled: match word(1)? {
            0 => Enabled::Off,
            1 => Enabled::On,
            _ => Enabled::Locked,
        },
        daemon_pid: word(3)?,
        limits: Limits {
            rate: word(4)?,
            backlog: word(5)?,
            backlog_wait: word(9)?,
        },
        lost: word(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_word_by_word_and_a_short_one_is_none() {
        let words: [u32; 11] = [0, 1, 1, 812, 100, 8192, 5, 3, 0x7f, 6000, 0];
        let bytes = words.map(u32::to_ne_bytes).concat();
        let status = parse_status(&bytes).expect("status");
        assert_eq!((status.enabled, status.daemon_pid), (Enabled::On, 812));
        let limits = Limits {
            rate: 100,
            backlog: 8192,
            backlog_wait: 6000,
        };
        assert_eq!((status.limits, status.lost), (limits, 5));
        assert_eq!(parse_status(&bytes[..39]), None);
    }

    #[test]
    fn a_socket_that_has_heard_nothing_has_dropped_nothing() {
        let socket = open(SocketFlags::NONBLOCK).expect("a netlink socket");
        only_landlock(socket.as_fd()).expect("a filter");
        assert_eq!(dropped(socket.as_fd()).expect("figures"), 0);
        let error = set(socket.as_fd(), libc::SO_DETACH_FILTER, &0i32).expect_err("locked");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
