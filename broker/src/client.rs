//! agentd's side of the broker protocol: one message in, one message out, with descriptors.
//!
//! [`try_send`] and [`try_receive`] work on any borrowed descriptor and block only if the socket does, so the daemon can set
//! O_NONBLOCK, wrap the socket in an event loop's readiness, and call them when it is ready. [`BrokerClient`] is the plain
//! blocking form of the same thing. [`start`] runs the broker as a child process with the socket on descriptor 3;
//! [`start_listening`] one that outlives its client, whose successors [`connect`].
//!
//! Never interprets plans, never retries. Needs no privilege of its own; fails with [`ClientError`].

mod start;

pub use start::{SOCKET_FD, bind, connect, start, start_listening};

use crate::protocol::{
    self, DecodeError, Failure, Gone, Held, HeldState, Launch, Launched, Limits, MAX_REPLY_FDS,
    Plane, Reply, Request, Slot, Stats, Welcome,
};
use agentd_bpf::{Group, Right, Table};
use agentd_kernel::fdpass::{self, ReceiveError, Wait};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Why talking to the broker failed. A [`Failure`] is the broker's own answer; all others are faults of the connection.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("sending to agentd-broker: {0}")]
    Send(#[source] io::Error),
    #[error("receiving from agentd-broker: {0}")]
    Receive(#[from] ReceiveError),
    #[error("agentd-broker has gone")]
    Gone,
    #[error("agentd-broker sent bytes that are not a message: {0}")]
    Decode(#[from] DecodeError),
    #[error("agentd-broker answered with {got} where {expected} was due")]
    Unexpected {
        expected: &'static str,
        got: &'static str,
    },
    #[error(transparent)]
    Refused(#[from] Failure),
}

impl ClientError {
    /// Whether a non-blocking socket merely was not ready.
    pub fn is_would_block(&self) -> bool {
        match self {
            Self::Send(error) => error.kind() == io::ErrorKind::WouldBlock,
            Self::Receive(error) => error.is_would_block(),
            _ => false,
        }
    }
}

/// One message from the broker.
#[derive(Debug)]
pub struct Incoming {
    /// The request that this answers; 0 for events.
    pub request: u64,
    pub reply: Reply,
    /// For [`Reply::Launched`] and [`Reply::Held`]: the pidfd, the status socket, what was kept. Empty otherwise.
    pub fds: Vec<OwnedFd>,
}

/// Sends one request with its descriptors. Blocks only if the socket does.
pub fn try_send(
    socket: BorrowedFd<'_>,
    id: u64,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ClientError> {
    let bytes = protocol::encode_request(id, request);
    match fdpass::send(socket, &bytes, fds) {
        Ok(_) => Ok(()),
        Err(error) if is_hang_up(&error) => Err(ClientError::Gone),
        Err(error) => Err(ClientError::Send(error)),
    }
}

/// The kernel says "reset" rather than end of file when the broker dies with requests unread.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// Receives one reply or event. Blocks only if the socket does.
///
/// # Errors
/// [`ClientError::Gone`] at end of file; a [`Reply::Failed`] is returned as a message, not as an error.
pub fn try_receive(socket: BorrowedFd<'_>) -> Result<Incoming, ClientError> {
    let mut buffer = [0u8; protocol::MAX_MESSAGE];
    let received = match fdpass::receive(socket, &mut buffer, MAX_REPLY_FDS, Wait::AsSocket) {
        Err(ReceiveError::Io(error)) if is_hang_up(&error) => return Err(ClientError::Gone),
        other => other?,
    };
    if received.len == 0 {
        return Err(ClientError::Gone);
    }
    let (request, reply) = protocol::decode_reply(&buffer[..received.len])?;
    Ok(Incoming {
        request,
        reply,
        fds: received.fds,
    })
}

/// The plan in a sealed memfd, as [`Request::Launch`] wants it.
pub fn seal_plan(plan: &[u8]) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_NOEXEC_SEAL is Linux 6.3; before it the plan is merely not executable by convention.
    let memfd = memfd_create(c"agentd-plan", flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(c"agentd-plan", flags))?;
    let mut file = File::from(memfd);
    file.write_all(plan)?;
    fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(file.into())
}

/// A started agent with its descriptors.
#[derive(Debug)]
pub struct LaunchedAgent {
    pub info: Launched,
    /// The init's pidfd: readable when the whole tree is dead.
    pub pidfd: OwnedFd,
    /// The launcher's status socket (`agentd_launch::status`).
    pub status: OwnedFd,
}

impl TryFrom<Incoming> for LaunchedAgent {
    type Error = ClientError;

    fn try_from(incoming: Incoming) -> Result<Self, ClientError> {
        let expected = "launched with two descriptors";
        match incoming.reply {
            Reply::Launched(info) => {
                let [pidfd, status] = <[OwnedFd; 2]>::try_from(incoming.fds).map_err(|_| {
                    ClientError::Unexpected {
                        expected,
                        got: "launched without",
                    }
                })?;
                Ok(Self {
                    info,
                    pidfd,
                    status,
                })
            }
            Reply::Failed(failure) => Err(failure.into()),
            other => Err(ClientError::Unexpected {
                expected,
                got: name(&other),
            }),
        }
    }
}

/// An agent that the broker held, with its descriptors.
#[derive(Debug)]
pub struct HeldAgent {
    pub info: Launched,
    pub state: HeldState,
    /// As in [`LaunchedAgent`].
    pub pidfd: OwnedFd,
    /// As in [`LaunchedAgent`]; reports that nobody has read are still in it.
    pub status: OwnedFd,
    /// What the former agentd gave with [`Request::Keep`], in its order.
    pub kept: Vec<OwnedFd>,
}

impl HeldAgent {
    /// The answer to [`Request::Next`]; `None` when there is no further agent.
    ///
    /// # Errors
    /// [`ClientError::Refused`], or [`ClientError::Unexpected`] for any other reply and a wrong number of descriptors.
    pub fn from_reply(incoming: Incoming) -> Result<Option<Self>, ClientError> {
        match incoming.reply {
            Reply::Done => Ok(None),
            Reply::Held(Held { info, state, kept }) => {
                let wrong = ClientError::Unexpected {
                    expected: "held with its descriptors",
                    got: "held with others",
                };
                let mut fds = incoming.fds.into_iter();
                let (Some(pidfd), Some(status)) = (fds.next(), fds.next()) else {
                    return Err(wrong);
                };
                if fds.len() != kept as usize {
                    return Err(wrong);
                }
                Ok(Some(Self {
                    info,
                    state,
                    pidfd,
                    status,
                    kept: fds.collect(),
                }))
            }
            other => Err(unexpected("held", other)),
        }
    }
}

/// The kernel plane's tables that agentd gets.
#[derive(Debug)]
pub struct PlaneTables {
    pub plane: Plane,
    pub tables: Vec<(Table, OwnedFd)>,
}

impl TryFrom<Incoming> for PlaneTables {
    type Error = ClientError;

    /// # Errors
    /// [`ClientError::Refused`], or [`ClientError::Unexpected`] for any other reply and a wrong number of descriptors.
    fn try_from(incoming: Incoming) -> Result<Self, ClientError> {
        let Reply::Plane(plane) = incoming.reply else {
            return Err(unexpected("plane", incoming.reply));
        };
        let tables = Table::handed_over().filter(|table| plane.tables & table.bit() != 0);
        let tables: Vec<(Table, OwnedFd)> = tables.zip(incoming.fds).collect();
        if tables.len() != plane.tables.count_ones() as usize {
            return Err(ClientError::Unexpected {
                expected: "plane with its descriptors",
                got: "plane with others",
            });
        }
        Ok(Self { plane, tables })
    }
}

/// The answer to [`Request::Audit`]: the socket, or why there is none.
///
/// # Errors
/// [`ClientError::Refused`], or [`ClientError::Unexpected`] for any other reply and a wrong number of descriptors.
pub fn audit_from_reply(incoming: Incoming) -> Result<Result<OwnedFd, String>, ClientError> {
    match (incoming.reply, <[OwnedFd; 1]>::try_from(incoming.fds)) {
        (Reply::Reason(why), Err(_)) => Ok(Err(why)),
        (Reply::Done, Ok([socket])) => Ok(Ok(socket)),
        (Reply::Failed(failure), _) => Err(failure.into()),
        (other, _) => Err(unexpected("done with a descriptor, or a reason", other)),
    }
}

/// A blocking client: each call sends one request and waits for its reply; events that arrive meanwhile are kept.
#[derive(Debug)]
pub struct BrokerClient {
    socket: OwnedFd,
    last_id: u64,
    events: VecDeque<Gone>,
}

impl BrokerClient {
    /// Wraps a connected, blocking socket. Say [`BrokerClient::hello`] first.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            last_id: 0,
            events: VecDeque::new(),
        }
    }

    /// The socket, for the daemon's event loop. Request ids up to [`BrokerClient::last_id`] are used.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// For messages that [`BrokerClient`] has no method for.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// Introduces agentd. The lifeline is the read end of a pipe whose only write end agentd keeps.
    pub fn hello(&mut self, lifeline: BorrowedFd<'_>) -> Result<Welcome, ClientError> {
        let version = protocol::VERSION;
        match self.call(&Request::Hello { version }, &[lifeline])?.reply {
            Reply::Welcome(welcome) => Ok(welcome),
            other => Err(unexpected("welcome", other)),
        }
    }

    /// Launches `plan`; its init writes its end to `status_file`. `caller` is only recorded, see [`Launch::caller_uid`].
    pub fn launch(
        &mut self,
        plan: &[u8],
        status_file: BorrowedFd<'_>,
        grants: &[BorrowedFd<'_>],
        caller: (u32, u32),
    ) -> Result<LaunchedAgent, ClientError> {
        let memfd = seal_plan(plan).map_err(ClientError::Send)?;
        let launch = Launch {
            plan_len: u32::try_from(plan.len()).unwrap_or(u32::MAX),
            grants: grants.len() as u32,
            caller_uid: caller.0,
            caller_gid: caller.1,
        };
        let fds: Vec<_> = [memfd.as_fd(), status_file]
            .into_iter()
            .chain(grants.iter().copied())
            .collect();
        self.call(&Request::Launch(launch), &fds)?.try_into()
    }

    pub fn kill(&mut self, slot: Slot) -> Result<(), ClientError> {
        self.done(&Request::Kill(slot))
    }

    pub fn freeze(&mut self, slot: Slot) -> Result<(), ClientError> {
        self.done(&Request::Freeze(slot))
    }

    pub fn thaw(&mut self, slot: Slot) -> Result<(), ClientError> {
        self.done(&Request::Thaw(slot))
    }

    /// Other limits for the agent's cgroup, instead of all those before.
    pub fn limit(&mut self, slot: Slot, limits: Limits) -> Result<(), ClientError> {
        self.done(&Request::Limit { slot, limits })
    }

    pub fn release(&mut self, slot: Slot) -> Result<(), ClientError> {
        self.done(&Request::Release(slot))
    }

    /// Makes the broker keep `fds` for the slot, instead of what it kept before.
    pub fn keep(&mut self, slot: Slot, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let count = fds.len() as u32;
        self.done_with(&Request::Keep { slot, count }, fds)
    }

    /// The held agent with the lowest slot above `after`.
    pub fn next_held(&mut self, after: Option<Slot>) -> Result<Option<HeldAgent>, ClientError> {
        HeldAgent::from_reply(self.call(&Request::Next { after }, &[])?)
    }

    /// Hands an agent of a former broker over; `kept` as in [`BrokerClient::keep`].
    pub fn adopt(
        &mut self,
        info: Launched,
        pidfd: BorrowedFd<'_>,
        status: BorrowedFd<'_>,
        kept: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let fds = [&[pidfd, status], kept].concat();
        self.done_with(&Request::Adopt(info), &fds)
    }

    /// What there is of the kernel plane, with the descriptors of its tables.
    pub fn plane(&mut self) -> Result<PlaneTables, ClientError> {
        self.call(&Request::Plane, &[])?.try_into()
    }

    /// The socket on which Landlock's records arrive, or why there is none.
    pub fn audit(&mut self) -> Result<Result<OwnedFd, String>, ClientError> {
        audit_from_reply(self.call(&Request::Audit, &[])?)
    }

    /// Why a group of programs is not there; empty if it is.
    pub fn absent(&mut self, group: Group) -> Result<String, ClientError> {
        match self.call(&Request::Absent(group), &[])?.reply {
            Reply::Reason(reason) => Ok(reason),
            other => Err(unexpected("reason", other)),
        }
    }

    /// Sets what an agent may no longer do; see [`Request::Restrict`].
    pub fn restrict(
        &mut self,
        slot: Slot,
        revoked: u32,
        kept_ports: [u16; 8],
    ) -> Result<(), ClientError> {
        self.done(&Request::Restrict {
            slot,
            revoked,
            kept_ports,
        })
    }

    /// Gives or takes the right to send by the direct path; see [`Request::Route`].
    pub fn route(&mut self, from: u64, to: u64, right: Right) -> Result<(), ClientError> {
        self.done(&Request::Route { from, to, right })
    }

    /// Leaves the agents to the next agentd, and hangs up.
    pub fn detach(mut self) -> Result<(), ClientError> {
        self.done(&Request::Detach)
    }

    pub fn stat(&mut self, slot: Slot) -> Result<Stats, ClientError> {
        match self.call(&Request::Stat(slot), &[])?.reply {
            Reply::Stats(stats) => Ok(stats),
            other => Err(unexpected("stats", other)),
        }
    }

    /// Waits for the next [`Gone`] event.
    pub fn next_gone(&mut self) -> Result<Gone, ClientError> {
        if let Some(gone) = self.events.pop_front() {
            return Ok(gone);
        }
        match try_receive(self.socket.as_fd())?.reply {
            Reply::Gone(gone) => Ok(gone),
            other => Err(unexpected("gone", other)),
        }
    }

    /// Tells the broker to kill everything and exit, and waits until it has.
    pub fn shutdown(mut self) -> Result<(), ClientError> {
        match self.call(&Request::Shutdown, &[]) {
            Err(ClientError::Gone) => Ok(()),
            Err(error) => Err(error),
            Ok(incoming) => Err(unexpected("end of file", incoming.reply)),
        }
    }

    /// Sends any request and waits for whatever answers it.
    pub fn call(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Incoming, ClientError> {
        self.last_id += 1;
        try_send(self.socket.as_fd(), self.last_id, request, fds)?;
        loop {
            let incoming = try_receive(self.socket.as_fd())?;
            match incoming.reply {
                Reply::Gone(gone) => self.events.push_back(gone),
                _ if incoming.request == self.last_id => return Ok(incoming),
                other => return Err(unexpected("a reply to the last request", other)),
            }
        }
    }

    fn done(&mut self, request: &Request) -> Result<(), ClientError> {
        self.done_with(request, &[])
    }

    fn done_with(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.call(request, fds)?.reply {
            Reply::Done => Ok(()),
            other => Err(unexpected("done", other)),
        }
    }
}

fn unexpected(expected: &'static str, got: Reply) -> ClientError {
    match got {
        Reply::Failed(failure) => failure.into(),
        other => ClientError::Unexpected {
            expected,
            got: name(&other),
        },
    }
}

fn name(reply: &Reply) -> &'static str {
    match reply {
        Reply::Welcome(_) => "welcome",
        Reply::Launched(_) => "launched",
        Reply::Done => "done",
        Reply::Stats(_) => "stats",
        Reply::Held(_) => "held",
        Reply::Plane(_) => "plane",
        Reply::Reason(_) => "reason",
        Reply::Count(_) => "count",
        Reply::Failed(_) => "failed",
        Reply::Gone(_) => "gone",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_file_is_sealed_against_everything() {
        use std::os::unix::fs::FileExt;
        let memfd = seal_plan(b"plan").expect("seal");
        let file = File::from(memfd);
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(1).is_err());
        let mut bytes = [0u8; 4];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert_eq!(&bytes, b"plan");
    }

    #[test]
    fn events_between_request_and_reply_are_kept() {
        let (ours, theirs) = fdpass::seqpacket_pair().expect("pair");
        let gone = Gone {
            slot: Slot(3),
            pid: 9,
            wait_status: Some(0),
            stats: Stats::default(),
        };
        for (id, reply) in [(0, Reply::Gone(gone)), (1, Reply::Done)] {
            fdpass::send(theirs.as_fd(), &protocol::encode_reply(id, &reply), &[]).expect("send");
        }
        let mut client = BrokerClient::new(ours);
        client.kill(Slot(1)).expect("done");
        assert_eq!(client.next_gone().expect("event"), gone);
        drop(theirs);
        assert!(matches!(client.next_gone(), Err(ClientError::Gone)));
    }

    #[test]
    fn a_launch_reply_without_descriptors_is_a_fault() {
        let incoming = Incoming {
            request: 1,
            reply: Reply::Done,
            fds: Vec::new(),
        };
        assert!(matches!(
            LaunchedAgent::try_from(incoming),
            Err(ClientError::Unexpected { .. })
        ));
    }
}
