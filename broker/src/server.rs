//! The worker's loop: one client at a time, its agents, their deaths.
//!
//! Waits in `poll` for the client (or, without one, for the next to connect), for signals and for the agents' pidfds; never
//! blocks anywhere else, so a client that doesn't read can't keep an agent from being reaped. What each request does is in
//! `answer.rs`, an agent's states in `agents.rs`, the messages in `protocol`.

use crate::agents::{Agents, Parentage, State};
use crate::audit::Audit;
use crate::connection::{Arrival, Connection, Ended};
use crate::failure::refused;
use crate::harden::Holdings;
use crate::idmap::IdmapCache;
use crate::launch::Workshop;
use crate::log::log;
use crate::placeholder::Keeper;
use crate::spawn::Launcher;
use crate::start::{Arguments, Leaving, Prepared, Socket, StartError};
use agentd_broker::protocol::{
    self, ErrorCode, Failure, MAX_MESSAGE, Mode, RESERVED_ID_BASE, Reply,
};
use agentd_kernel::proc_status;
use agentd_kernel::signals::SignalFd;
use agentd_launch::plan::Network;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SocketFlags;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a stop waits for killed agents to be reaped.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The broker after its start.
#[derive(Debug)]
pub struct Server {
    /// Where clients connect; `None` if there is one client and never another.
    listener: Option<OwnedFd>,
    /// Who may connect.
    client_uids: Vec<u32>,
    pub client: Option<Connection>,
    signals: SignalFd,
    pub agents: Agents,
    pub workshop: Workshop,
    pub audit: Arc<Audit>,
    on_term: Leaving,
    /// Until the first client has come.
    untouched: bool,
    pub end: Option<End>,
}

/// Why everything ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All agents are killed; the wait for them is over at this time.
    Stop { patience: Instant },
    /// This process only: the agents stay, for their grace, for the next worker.
    Leave,
}

/// What woke the loop.
struct Woken {
    client: PollFlags,
    listener: bool,
}

impl Server {
    /// In the process that is to serve: makes what must be its own (the lifeline, the signals).
    pub fn new(prepared: Prepared, arguments: &Arguments) -> Result<Self, StartError> {
        let Prepared {
            mode,
            socket,
            subtree,
            plane,
            audit,
            client_uids,
            soft_nofile,
        } = prepared;
        let signals = SignalFd::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR2])
            .map_err(StartError::os("signalfd"))?;
        let (listener, client) = match socket {
            Socket::Listening(listener) => (Some(listener), None),
            Socket::Connected(socket) => (None, Some(Connection::new(socket, &client_uids)?)),
        };
        let agents = if listener.is_some() {
            let mut orphans = subtree.numbers();
            if mode == Mode::Root {
                orphans.extend(slots_in_use().map_err(StartError::os("/proc"))?);
            }
            plane.keep_only(&subtree);
            Agents::beside(orphans)
        } else {
            Agents::default()
        };
        let placeholders = Keeper::new(mode, arguments.notes.clone());
        placeholders.sweep();
        Ok(Self {
            listener,
            untouched: client.is_none(),
            client_uids,
            client,
            signals,
            agents,
            workshop: Workshop {
                mode,
                subtree,
                launcher: Launcher::prepare(soft_nofile)?,
                idmaps: IdmapCache::default(),
                placeholders,
                network: match mode {
                    Mode::Root => arguments.network,
                    // The user's programs are in that network anyway.
                    Mode::User => Network::Host,
                },
                plane,
            },
            audit,
            on_term: arguments.on_term,
            end: None,
        })
    }

    /// Serves until the end described in `main.rs`. What it holds comes back to be removed, unless agents are left.
    pub fn run(mut self) -> Result<Option<Holdings>, StartError> {
        while !self.is_finished() {
            let woken = self.wait().map_err(StartError::os("poll"))?;
            self.take_signals();
            if woken.listener {
                self.accept();
            }
            self.serve(woken.client);
            self.tend_agents();
        }
        Ok(match self.end {
            Some(End::Leave) => None,
            Some(End::Stop { .. }) | None => Some(Holdings {
                subtree: self.workshop.subtree,
                plane: self.workshop.plane,
            }),
        })
    }

    fn is_finished(&self) -> bool {
        match self.end {
            Some(End::Leave) => true,
            Some(End::Stop { patience }) => !self.agents.any_alive() || Instant::now() >= patience,
            // Gone agents are held for a next client, if one can come.
            None if self.listener.is_some() => {
                self.client.is_none() && !self.untouched && self.agents.count() == 0
            }
            None => self.client.is_none() && !self.agents.any_alive(),
        }
    }

    fn wait(&mut self) -> rustix::io::Result<Woken> {
        let patience = match self.end {
            Some(End::Stop { patience }) => Some(patience),
            Some(End::Leave) | None => None,
        };
        let wake_at = self.agents.iter().filter_map(|agent| agent.wake_at());
        let timeout = wake_at.chain(patience).min().map(|at| {
            // Rounded up, so that the loop never spins just before a deadline.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = vec![PollFd::from_borrowed_fd(
            self.signals.as_fd(),
            PollFlags::IN,
        )];
        match (&self.client, &self.listener) {
            (Some(client), _) => fds.extend(client.polls()),
            (None, Some(listener)) => fds.push(PollFd::new(listener, PollFlags::IN)),
            (None, None) => {}
        }
        for agent in self.agents.iter() {
            match &agent.state {
                State::Running => fds.push(PollFd::new(&agent.pidfd, PollFlags::IN)),
                State::Dying(dying) => {
                    let events = dying.events.as_ref();
                    fds.extend(events.map(|events| PollFd::new(events, PollFlags::PRI)));
                }
                State::Gone { .. } => {}
            }
            let meter = agent.meter.as_ref();
            fds.extend(meter.map(|meter| PollFd::new(meter, PollFlags::IN)));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let second = fds.get(1).map_or(PollFlags::empty(), PollFd::revents);
        let (client, listener) = match (&self.client, &self.listener) {
            (Some(_), _) => (second, false),
            (None, Some(_)) => (PollFlags::empty(), !second.is_empty()),
            (None, None) => (PollFlags::empty(), false),
        };
        Ok(Woken { client, listener })
    }

    /// SIGTERM and SIGINT end everything, or leave the agents if so told at the start. SIGUSR2 leaves them: the program is
    /// to be replaced. SIGHUP is the end of a terminal that is not ours.
    fn take_signals(&mut self) {
        loop {
            match self.signals.try_next() {
                Ok(Some(arrival)) if self.end.is_none() => match arrival.signo {
                    libc::SIGHUP => {}
                    libc::SIGUSR2 => self.end = self.listener.is_some().then_some(End::Leave),
                    _ if self.on_term == Leaving::KeepAgents => self.end = Some(End::Leave),
                    _ => self.stop(),
                },
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => return log!("reading signals: {error}"),
            }
        }
    }

    /// Takes the next client. One that may not connect is told nothing.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        self.untouched = false;
        let accepted = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)
            .map_err(StartError::os("accept"))
            .and_then(|socket| Connection::new(socket, &self.client_uids));
        match accepted {
            Ok(connection) => self.client = Some(connection),
            Err(error) => log!("{error}"),
        }
    }

    fn serve(&mut self, events: PollFlags) {
        if self.client.as_ref().is_some_and(Connection::is_dead) {
            return self.client_gone();
        }
        let Some(client) = &mut self.client else {
            return;
        };
        if events.intersects(PollFlags::OUT)
            && let Err(Ended) = client.flush()
        {
            return self.client_gone();
        }
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.receive();
        }
    }

    /// Reads and answers one request.
    fn receive(&mut self) {
        let Some(client) = &self.client else { return };
        let mut buffer = [0u8; MAX_MESSAGE];
        let (len, fds) = match client.receive(&mut buffer) {
            Arrival::Request { len, fds } => (len, fds),
            Arrival::Nothing => return,
            Arrival::End => return self.client_gone(),
            Arrival::Malformed(error) => {
                let failure = refused(ErrorCode::Malformed, error.to_string());
                let id = protocol::request_id(&buffer);
                return self.send(id, &Reply::Failed(failure), Vec::new());
            }
        };
        let bytes = &buffer[..len];
        let answer = protocol::decode_request(bytes)
            .map_err(|error| refused(ErrorCode::Malformed, error.to_string()))
            .and_then(|(_, request)| self.answer(&request, fds));
        let id = protocol::request_id(bytes);
        match answer {
            Ok(Some((reply, fds))) => self.send(id, &reply, fds),
            Ok(None) => {}
            Err(failure) => self.send(id, &Reply::Failed(failure), Vec::new()),
        }
    }

    /// Reaps, buries and, without agentd, kills and forgets those whose grace is over.
    fn tend_agents(&mut self) {
        let now = Instant::now();
        let mut events = Vec::new();
        let mut adopted_ended = false;
        for agent in self.agents.iter_mut() {
            agent.reap(now);
            agent.mind_meter();
            let gone = agent.bury(now);
            if gone.is_some() {
                self.workshop.plane.end(agent.info.cgroup_id);
            }
            adopted_ended |= gone.is_some() && agent.parentage == Parentage::Adopted;
            events.extend(gone);
            log_failure(agent.enforce_grace(now));
        }
        if adopted_ended {
            self.workshop.placeholders.sweep();
        }
        for gone in events {
            self.send(0, &Reply::Gone(gone), Vec::new());
        }
        if self.client.is_none() {
            self.agents.forget_gone(now);
        }
    }

    fn send(&mut self, id: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        if let Some(client) = &mut self.client
            && let Err(Ended) = client.send(id, reply, fds)
        {
            self.client_gone();
        }
    }

    /// agentd has died or closed its end: each agent has its grace left.
    pub fn client_gone(&mut self) {
        self.client = None;
        let now = Instant::now();
        for agent in self.agents.iter_mut() {
            agent.begin_grace(now);
        }
    }

    /// Kills everything; the loop ends when all of it is reaped.
    pub fn stop(&mut self) {
        let patience = Instant::now() + STOP_PATIENCE;
        self.end = Some(End::Stop { patience });
        for agent in self.agents.iter_mut() {
            log_failure(agent.kill());
        }
    }
}

/// Slots whose kernel uid some process has: agents of an earlier worker, or of another broker.
fn slots_in_use() -> std::io::Result<BTreeSet<u32>> {
    let uids = proc_status::uids()?;
    let slots = uids
        .into_iter()
        .filter_map(|uid| uid.checked_sub(RESERVED_ID_BASE));
    Ok(slots
        .filter(|slot| (1..=protocol::MAX_AGENTS as u32).contains(slot))
        .collect())
}

fn log_failure(result: Result<(), Failure>) {
    if let Err(failure) = result {
        log!("{failure}");
    }
}
