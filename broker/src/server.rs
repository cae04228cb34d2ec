//! The loop: one client, its agents, their deaths.
//!
//! Waits in `poll` for the client, for signals and for the agents' pidfds; never blocks anywhere else, so a client that
//! doesn't read can't keep an agent from being reaped. Replies that the socket doesn't take wait in a queue, and while it
//! isn't empty no further request is read. See `protocol` for the messages and `agents.rs` for an agent's states.

use crate::agents::{Agents, State, stats};
use crate::failure::{failed, refused};
use crate::harden;
use crate::idmap::IdmapCache;
use crate::launch::Workshop;
use crate::spawn::Launcher;
use crate::start::StartError;
use agentd_broker::protocol::{
    self, CgroupFeatures, ErrorCode, Failure, MAX_FDS, MAX_MESSAGE, Mode, Reply, Request, Slot,
    VERSION, Welcome,
};
use agentd_kernel::cgroup::{Controller, Freeze, Subtree};
use agentd_kernel::fdpass::{self, ReceiveError, Wait};
use agentd_kernel::signals::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a stop waits for killed agents to be reaped.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The broker after its start.
#[derive(Debug)]
pub struct Server {
    /// `None` once agentd has gone.
    client: Option<OwnedFd>,
    /// From Hello: the read end that hangs up when agentd dies.
    agentd_lifeline: Option<OwnedFd>,
    signals: SignalFd,
    agents: Agents,
    workshop: Workshop,
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// Set when everything is to end: when patience does.
    stopping: Option<Instant>,
}

/// What woke the loop.
struct Woken {
    client: PollFlags,
    signal: bool,
}

impl Server {
    pub fn new(
        mode: Mode,
        client: OwnedFd,
        signals: SignalFd,
        subtree: Subtree,
        launcher: Launcher,
    ) -> Self {
        Self {
            client: Some(client),
            agentd_lifeline: None,
            signals,
            agents: Agents::default(),
            workshop: Workshop {
                mode,
                subtree,
                launcher,
                idmaps: IdmapCache::default(),
            },
            outgoing: VecDeque::new(),
            stopping: None,
        }
    }

    /// Serves until the end described in the crate documentation, then removes the cgroup subtree.
    pub fn run(mut self) -> Result<(), StartError> {
        while !self.is_finished() {
            let woken = self.wait().map_err(StartError::os("poll"))?;
            if woken.signal {
                self.take_signals();
            }
            if woken.client.intersects(PollFlags::OUT) {
                self.flush();
            }
            if woken
                .client
                .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
            {
                self.receive();
            }
            self.tend_agents();
        }
        harden::override_for_removal();
        if let Err(error) = self.workshop.subtree.remove() {
            eprintln!("agentd-broker: {error}");
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        let over = self.stopping.is_some() || self.client.is_none();
        over && (!self.agents.any_alive()
            || self
                .stopping
                .is_some_and(|patience| Instant::now() >= patience))
    }

    fn wait(&mut self) -> rustix::io::Result<Woken> {
        let wake_at = self
            .agents
            .iter()
            .filter_map(|agent| agent.wake_at())
            .chain(self.stopping)
            .min();
        let timeout = wake_at.map(|at| {
            // Rounded up, so that the loop never spins just before a deadline.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let signals = self.signals.as_fd();
        let mut fds = vec![PollFd::from_borrowed_fd(signals, PollFlags::IN)];
        if let Some(client) = &self.client {
            let direction = if self.outgoing.is_empty() {
                PollFlags::IN
            } else {
                PollFlags::OUT
            };
            fds.push(PollFd::new(client, direction));
        }
        for agent in self.agents.iter() {
            match &agent.state {
                State::Running { pidfd, .. } => fds.push(PollFd::new(pidfd, PollFlags::IN)),
                State::Dying {
                    events: Some(events),
                    ..
                } => fds.push(PollFd::new(events, PollFlags::PRI)),
                State::Dying { .. } | State::Gone => {}
            }
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let client = if self.client.is_some() {
            fds[1].revents()
        } else {
            PollFlags::empty()
        };
        Ok(Woken {
            client,
            signal: !fds[0].revents().is_empty(),
        })
    }

    /// SIGTERM and SIGINT end everything; SIGHUP is the end of a terminal that is not ours.
    fn take_signals(&mut self) {
        loop {
            match self.signals.try_next() {
                Ok(Some(arrival)) if arrival.signo != libc::SIGHUP && self.stopping.is_none() => {
                    self.stop()
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => return eprintln!("agentd-broker: reading signals: {error}"),
            }
        }
    }

    /// Reaps, buries and, after agentd's death, kills those whose grace is over.
    fn tend_agents(&mut self) {
        let now = Instant::now();
        let mut events = Vec::new();
        for (slot, agent) in self.agents.iter_mut() {
            agent.reap(now);
            events.extend(agent.bury(slot, now));
            if let State::Running { deadline, .. } = &mut agent.state
                && deadline.is_some_and(|at| now >= at)
            {
                *deadline = None;
                log_failure(agent.kill());
            }
        }
        for gone in events {
            self.send(0, &Reply::Gone(gone), Vec::new());
        }
    }

    /// Reads and answers one request.
    fn receive(&mut self) {
        let Some(client) = &self.client else { return };
        let mut buffer = [0u8; MAX_MESSAGE];
        let received = match fdpass::receive(client.as_fd(), &mut buffer, MAX_FDS, Wait::Never) {
            // An empty message reads like the end; only the end hangs up.
            Ok(received) if received.len == 0 && received.fds.is_empty() && hung_up(client) => {
                return self.client_gone();
            }
            Ok(received) => received,
            Err(error) if error.is_would_block() => return,
            Err(ReceiveError::Io(error)) => {
                if error.kind() != io::ErrorKind::ConnectionReset {
                    eprintln!("agentd-broker: {error}");
                }
                return self.client_gone();
            }
            Err(error) => {
                let failure = refused(ErrorCode::Malformed, error.to_string());
                return self.send(
                    protocol::request_id(&buffer),
                    &Reply::Failed(failure),
                    Vec::new(),
                );
            }
        };
        let bytes = &buffer[..received.len];
        let answer = protocol::decode_request(bytes)
            .map_err(|error| refused(ErrorCode::Malformed, error.to_string()))
            .and_then(|(_, request)| self.answer(&request, received.fds));
        let id = protocol::request_id(bytes);
        match answer {
            Ok(Some((reply, fds))) => self.send(id, &reply, fds),
            Ok(None) => {}
            Err(failure) => self.send(id, &Reply::Failed(failure), Vec::new()),
        }
    }

    fn answer(
        &mut self,
        request: &Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<(Reply, Vec<OwnedFd>)>, Failure> {
        if self.stopping.is_some() {
            return Err(refused(
                ErrorCode::ShuttingDown,
                "the broker is shutting down",
            ));
        }
        let carries = matches!(
            request,
            Request::Hello { .. } | Request::Launch(_) | Request::Keep { .. } | Request::Adopt(_)
        );
        if !carries && !fds.is_empty() {
            return Err(refused(
                ErrorCode::Malformed,
                "only hello, launch, keep and adopt carry descriptors",
            ));
        }
        if matches!(request, Request::Hello { .. }) != self.agentd_lifeline.is_none() {
            return Err(refused(
                ErrorCode::OutOfOrder,
                "hello is the first request, once",
            ));
        }
        let done = |()| (Reply::Done, Vec::new());
        let answer = match *request {
            Request::Hello { version } => (self.hello(version, fds)?, Vec::new()),
            Request::Launch(ref launch) => {
                let slot = self.agents.free_slot()?;
                let lifeline = self
                    .agentd_lifeline
                    .as_ref()
                    .expect("hello came first")
                    .as_fd();
                let started = self.workshop.launch(slot, launch, fds, lifeline)?;
                self.agents.insert(slot, started.agent);
                (
                    Reply::Launched(started.reply),
                    vec![started.pidfd, started.status],
                )
            }
            Request::Kill(slot) => self.agents.get(slot)?.kill().map(done)?,
            Request::Freeze(slot) => self.freeze(slot, Freeze::Frozen).map(done)?,
            Request::Thaw(slot) => self.freeze(slot, Freeze::Thawed).map(done)?,
            Request::Stat(slot) => {
                let usage = self.agents.get(slot)?.running_group()?.usage();
                (Reply::Stats(stats(usage)), Vec::new())
            }
            Request::Release(slot) => self.agents.release(slot).map(done)?,
            Request::Keep { .. } | Request::Next { .. } | Request::Adopt(_) | Request::Detach => {
                return Err(refused(ErrorCode::Unsupported, "this broker keeps nothing"));
            }
            Request::Shutdown => {
                self.stop();
                return Ok(None);
            }
        };
        Ok(Some(answer))
    }

    fn hello(&mut self, version: u32, fds: Vec<OwnedFd>) -> Result<Reply, Failure> {
        if version != VERSION {
            let text = format!(
                "this broker speaks version {VERSION}, not {version}: restart agentd after an upgrade"
            );
            return Err(refused(ErrorCode::Version, text));
        }
        let wrong = || {
            refused(
                ErrorCode::Malformed,
                "hello carries one descriptor: the read end of a pipe",
            )
        };
        let [lifeline] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| wrong())?;
        let stat = rustix::fs::fstat(&lifeline).map_err(|_| wrong())?;
        let flags = rustix::fs::fcntl_getfl(&lifeline).map_err(|_| wrong())?;
        let is_read_end = rustix::fs::FileType::from_raw_mode(stat.st_mode)
            == rustix::fs::FileType::Fifo
            && flags & rustix::fs::OFlags::ACCMODE == rustix::fs::OFlags::RDONLY;
        if !is_read_end {
            return Err(wrong());
        }
        self.agentd_lifeline = Some(lifeline);
        let subtree = &self.workshop.subtree;
        let has = |wanted| subtree.controllers().any(|controller| controller == wanted);
        let cgroups = CgroupFeatures {
            memory: has(Controller::Memory),
            pids: has(Controller::Pids),
            cpu: has(Controller::Cpu),
            unified: subtree.has_unified(),
        };
        let pid = std::process::id() as i32;
        Ok(Reply::Welcome(Welcome {
            version: VERSION,
            mode: self.workshop.mode,
            pid,
            cgroups,
            held: 0,
        }))
    }

    fn freeze(&mut self, slot: Slot, state: Freeze) -> Result<(), Failure> {
        match self.agents.get(slot)?.running_group()?.freeze(state) {
            Ok(true) => Ok(()),
            Ok(false) => Err(refused(
                ErrorCode::Unsupported,
                "freezing needs a cgroup2 hierarchy, and there is none here",
            )),
            Err(error) => Err(failed(ErrorCode::Cgroup, &error.operation, &error.source)),
        }
    }

    /// Queues a message and sends what the socket takes.
    fn send(&mut self, id: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        if self.client.is_some() {
            self.outgoing
                .push_back((protocol::encode_reply(id, reply), fds));
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let (Some(client), Some((bytes, fds))) = (&self.client, self.outgoing.front()) {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match fdpass::send(client.as_fd(), bytes, &borrowed) {
                Ok(_) => {
                    self.outgoing.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        eprintln!("agentd-broker: sending to agentd: {error}");
                    }
                    return self.client_gone();
                }
            }
        }
    }

    /// agentd has died or closed its end: each agent has its grace left.
    fn client_gone(&mut self) {
        self.client = None;
        self.outgoing.clear();
        let now = Instant::now();
        for (_, agent) in self.agents.iter_mut() {
            if let State::Running { deadline, .. } = &mut agent.state {
                *deadline = Some(now + agent.grace);
            }
        }
    }

    /// Kills everything; the loop ends when all of it is reaped.
    fn stop(&mut self) {
        self.stopping = Some(Instant::now() + STOP_PATIENCE);
        for (_, agent) in self.agents.iter_mut() {
            log_failure(agent.kill());
        }
    }
}

fn hung_up(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&at_once)).is_err() || !fds[0].revents().is_empty()
}

fn log_failure(result: Result<(), Failure>) {
    if let Err(failure) = result {
        eprintln!("agentd-broker: {failure}");
    }
}
