//! The child process that loads the programs, and the message that tells what it loaded.
//!
//! The child is forked while the broker is single-threaded and still has its privileges; it runs
//! `agentd-bpf-load`, sends one message with the tables' descriptors, and exits. The memory of ELF,
//! BTF and verifier logs goes with it. The same message, put into a socket that survives exec,
//! hands the plane to a program that replaces this one.
//!
//! The message is between two processes of the broker, so it is believed, but not blindly: one that
//! doesn't parse is no plane.

use crate::log::log;
use agentd_bpf::layout::LAYOUT;
use agentd_bpf::{Group, Groups, Table};
use agentd_bpf_load::pins::Pins;
use agentd_bpf_load::{Agent, EMBEDDED, LevelError, Loaded, Plan};
use agentd_kernel::fdpass::{self, Wait};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Longest reason that is sent, bytes.
const MAX_REASON: usize = 512;
/// Longest message: the head and a reason for each group, or for all.
const MAX_BYTES: usize = 16 + Group::ALL.len() * (4 + MAX_REASON);
/// In the place of the layout: it failed, and a reason follows.
const FAILED: u32 = u32::MAX;

/// What to load and for whom.
#[derive(Debug)]
pub struct Order<'a> {
    pub subtree: &'a OwnedFd,
    pub depth: Depth,
    pub agents: &'a [Agent],
    pub pins: &'a Pins,
}

/// How many levels a cgroup is below the root of the hierarchy.
#[derive(Clone, Copy, Debug)]
pub enum Depth {
    Known(u32),
    /// In a cgroup namespace: so many below a cgroup that this process is in.
    Below {
        ancestor: u64,
        by: u32,
    },
}

impl Depth {
    fn find(self) -> Result<u32, LevelError> {
        match self {
            Self::Known(depth) => Ok(depth),
            Self::Below { ancestor, by } => Ok(agentd_bpf_load::level_of(ancestor)? + by),
        }
    }
}

/// What was loaded.
#[derive(Debug)]
pub struct Message {
    pub layout: u32,
    pub groups: Groups,
    /// By the number of the group.
    pub reasons: BTreeMap<u32, String>,
    pub tables: Vec<(Table, OwnedFd)>,
}

/// Loads in a child and waits for it.
pub fn load(order: &Order<'_>) -> Result<Message, String> {
    let pair = fdpass::seqpacket_pair();
    let (ours, theirs) = pair.map_err(|error| format!("socketpair: {error}"))?;
    // SAFETY: a fork in a process with a single thread: the child's memory is whole, no lock is held in it.
    match unsafe { libc::fork() } {
        -1 => Err(format!("fork: {}", io::Error::last_os_error())),
        0 => {
            drop(ours);
            let code = match work(order, theirs.as_fd()) {
                Ok(()) => 0,
                Err(error) => {
                    log!("telling what was loaded: {error}");
                    1
                }
            };
            // SAFETY: ends this process at once, without what the parent has to run at its own end.
            unsafe { libc::_exit(code) }
        }
        pid => {
            drop(theirs);
            let message = receive(&ours);
            reap(pid);
            message
        }
    }
}

/// The child's part.
fn work(order: &Order<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
    let depth = order.depth.find().map_err(|error| error.to_string());
    let loaded = depth.and_then(|depth| {
        let plan = Plan {
            object: EMBEDDED,
            subtree: order.subtree.as_fd(),
            agent_level: depth + 1,
            agents: order.agents,
            pins: order.pins,
        };
        agentd_bpf_load::load(&plan).map_err(|error| error.to_string())
    });
    match loaded {
        Ok(loaded) => {
            let mut reasons = BTreeMap::new();
            for absent in &loaded.absent {
                if !absent.log.is_empty() {
                    log!("kernel plane, {}: {}", absent.group, absent.log.trim_end());
                }
                reasons.insert(absent.group as u32, absent.why.clone());
            }
            let Loaded { groups, tables, .. } = loaded;
            post(socket, &groups, &reasons, &tables)
        }
        Err(error) => {
            let mut bytes = FAILED.to_ne_bytes().to_vec();
            bytes.extend(cut(&error).as_bytes());
            fdpass::send(socket, &bytes, &[]).map(|_| ())
        }
    }
}

/// A socket in which the message waits.
pub fn send(
    groups: &Groups,
    reasons: &BTreeMap<u32, String>,
    tables: &[(Table, OwnedFd)],
) -> io::Result<OwnedFd> {
    let (ours, theirs) = fdpass::seqpacket_pair()?;
    post(ours.as_fd(), groups, reasons, tables)?;
    Ok(theirs)
}

fn post(
    socket: BorrowedFd<'_>,
    groups: &Groups,
    reasons: &BTreeMap<u32, String>,
    tables: &[(Table, OwnedFd)],
) -> io::Result<()> {
    let bits = tables.iter().fold(0, |bits, (table, _)| bits | table.bit());
    let mut bytes = Vec::new();
    for word in [LAYOUT, groups.bits(), bits] {
        bytes.extend(word.to_ne_bytes());
    }
    for (group, reason) in reasons {
        let reason = cut(reason);
        bytes.extend((*group as u16).to_ne_bytes());
        bytes.extend((reason.len() as u16).to_ne_bytes());
        bytes.extend(reason.as_bytes());
    }
    let fds: Vec<_> = tables.iter().map(|(_, fd)| fd.as_fd()).collect();
    fdpass::send(socket, &bytes, &fds).map(|_| ())
}

fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON)]
}

/// Takes the message from a socket in which it is, or will be.
pub fn receive(socket: &OwnedFd) -> Result<Message, String> {
    let mut buffer = [0u8; MAX_BYTES];
    let received = fdpass::receive(
        socket.as_fd(),
        &mut buffer,
        Table::ALL.len(),
        Wait::AsSocket,
    )
    .map_err(|error| format!("hearing from the loader: {error}"))?;
    let bytes = &buffer[..received.len];
    match word(bytes, 0) {
        None => Err("the loader died".to_owned()),
        Some(FAILED) => Err(String::from_utf8_lossy(&bytes[4..]).into_owned()),
        Some(_) => parse(bytes, received.fds)
            .ok_or_else(|| "the loader's message does not parse".to_owned()),
    }
}

fn parse(bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Message> {
    let (layout, groups, bits) = (word(bytes, 0)?, word(bytes, 4)?, word(bytes, 8)?);
    let tables = Table::ALL
        .into_iter()
        .filter(|table| bits & table.bit() != 0);
    let tables: Vec<_> = tables.collect();
    let mut reasons = BTreeMap::new();
    let mut rest = bytes.get(12..)?;
    while let Some((head, text)) = rest.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([head[2], head[3]]));
        let (reason, next) = text.split_at_checked(len)?;
        let group = u16::from_ne_bytes([head[0], head[1]]);
        reasons.insert(group.into(), String::from_utf8_lossy(reason).into_owned());
        rest = next;
    }
    (tables.len() == fds.len() && rest.is_empty()).then(|| Message {
        layout,
        groups: Groups::from_bits(groups),
        reasons,
        tables: tables.into_iter().zip(fds).collect(),
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn reap(pid: i32) {
    while let Err(rustix::io::Errno::INTR) = waitpid(Pid::from_raw(pid), WaitOptions::empty()) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_received() {
        let groups = [Group::Net].into_iter().collect();
        let long = "é".repeat(MAX_REASON);
        let reasons = BTreeMap::from([(1, "no LSM".to_owned()), (5, long)]);
        let null = || std::fs::File::open("/dev/null").expect("null").into();
        let tables = [(Table::Directory, null()), (Table::Counters, null())];
        let socket = send(&groups, &reasons, &tables).expect("send");
        let message = receive(&socket).expect("receive");
        assert_eq!((message.layout, message.groups), (LAYOUT, groups));
        assert_eq!(message.reasons[&1], "no LSM");
        assert_eq!(message.reasons[&5].len(), MAX_REASON);
        let names: Vec<_> = message.tables.iter().map(|(table, _)| *table).collect();
        assert_eq!(names, [Table::Directory, Table::Counters]);
    }

    #[test]
    fn a_loader_that_dies_or_lies_is_no_plane() {
        let (ours, theirs) = fdpass::seqpacket_pair().expect("pair");
        let words = [LAYOUT, 1, Table::Policy.bit()]
            .map(u32::to_ne_bytes)
            .concat();
        fdpass::send(theirs.as_fd(), &words, &[]).expect("send");
        let error = receive(&ours).expect_err("a table without its descriptor");
        assert!(error.contains("does not parse"), "{error}");
        drop(theirs);
        let error = receive(&ours).expect_err("nobody there");
        assert!(error.contains("died"), "{error}");
    }
}
