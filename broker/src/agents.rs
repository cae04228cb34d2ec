//! The table of agents: which slots are taken, and in which state each agent is.
//!
//! A slot goes free → running → dying (init reaped, cgroup on its way out) → gone → released. Only agentd's release makes
//! the number free again, so a late request never hits a newer agent. Pure bookkeeping over descriptors that the agents
//! own; makes no system call but through [`Group`] and [`PidFd`]. A gone agent holds no descriptor.

use crate::failure::{failed, refused};
use agentd_broker::protocol::{ErrorCode, Failure, Gone, MAX_AGENTS, Slot, Stats};
use agentd_kernel::cgroup::{Group, Removal, Usage};
use agentd_kernel::pidfd::{Ending, PidFd};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How soon a busy cgroup is tried again where the kernel sends no event (version 1 hierarchies).
const REMOVAL_INTERVAL: Duration = Duration::from_millis(10);
/// After this long the directories are given up: something outside keeps them.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// One agent.
#[derive(Debug)]
pub struct Agent {
    pub pid: i32,
    /// Until it is removed.
    group: Option<Group>,
    /// How long it outlives agentd.
    pub grace: Duration,
    pub state: State,
}

#[derive(Debug)]
pub enum State {
    Running {
        pidfd: PidFd,
        /// When it is killed because agentd has gone.
        deadline: Option<Instant>,
    },
    /// The init is reaped; the cgroup's last directory is not removed yet.
    Dying {
        wait_status: i32,
        usage: Usage,
        /// `cgroup.events`, if the hierarchy has one.
        events: Option<OwnedFd>,
        next_try: Instant,
        give_up: Instant,
    },
    Gone,
}

impl Agent {
    /// A launched agent.
    pub fn new(pid: i32, pidfd: PidFd, group: Group, grace: Duration) -> Self {
        let state = State::Running {
            pidfd,
            deadline: None,
        };
        Self {
            pid,
            group: Some(group),
            grace,
            state,
        }
    }

    /// The cgroup of an agent that runs.
    pub fn running_group(&self) -> Result<&Group, Failure> {
        match (&self.state, &self.group) {
            (State::Running { .. }, Some(group)) => Ok(group),
            _ => Err(refused(ErrorCode::NoSuchSlot, "the agent has ended")),
        }
    }

    /// Kills the whole tree: the cgroup at once where the host can, else the init and with it the pid namespace.
    pub fn kill(&self) -> Result<(), Failure> {
        let State::Running { pidfd, .. } = &self.state else {
            return Ok(());
        };
        match self.group.as_ref().map(Group::kill) {
            Some(Ok(true)) => return Ok(()),
            Some(Ok(false)) | None => {}
            Some(Err(error)) => eprintln!("agentd-broker: {error}; killing the init instead"),
        }
        pidfd
            .kill()
            .map_err(|error| failed(ErrorCode::Cgroup, "killing the agent's init", &error))
    }

    /// Reaps the init if it has exited. The group's figures are read first, while it still exists.
    pub fn reap(&mut self, now: Instant) {
        let State::Running { pidfd, .. } = &self.state else {
            return;
        };
        let ending = match pidfd.try_reap() {
            Ok(None) => return,
            Ok(Some(ending)) => ending,
            Err(error) => {
                eprintln!("agentd-broker: waiting for pid {}: {error}", self.pid);
                Ending::Signalled(libc::SIGKILL)
            }
        };
        self.state = State::Dying {
            wait_status: ending.to_wait_status(),
            usage: self.group.as_ref().map(Group::usage).unwrap_or_default(),
            events: None,
            next_try: now,
            give_up: now + REMOVAL_PATIENCE,
        };
    }

    /// Removes the cgroup of a dying agent; the event to send once that is done.
    pub fn bury(&mut self, slot: Slot, now: Instant) -> Option<Gone> {
        let State::Dying {
            wait_status,
            usage,
            events,
            next_try,
            give_up,
        } = &mut self.state
        else {
            return None;
        };
        let removal = self
            .group
            .as_ref()
            .map_or(Ok(Removal::Done), Group::try_remove);
        match removal {
            Ok(Removal::Busy) if now < *give_up => {
                if events.is_none() {
                    *events = self.group.as_ref().and_then(Group::events);
                }
                *next_try = now + REMOVAL_INTERVAL;
                return None;
            }
            Ok(Removal::Busy) => {
                eprintln!("agentd-broker: the cgroup of slot {slot} stays busy; left behind")
            }
            Ok(Removal::Done) => {}
            Err(error) => eprintln!("agentd-broker: {error}"),
        }
        let gone = Gone {
            slot,
            pid: self.pid,
            wait_status: Some(*wait_status),
            stats: stats(*usage),
        };
        self.state = State::Gone;
        self.group = None;
        Some(gone)
    }

    /// When this agent next needs attention without any descriptor saying so.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Running { deadline, .. } => *deadline,
            State::Dying { next_try, .. } => Some(*next_try),
            State::Gone => None,
        }
    }
}

/// Figures in the protocol's form.
pub fn stats(usage: Usage) -> Stats {
    let Usage {
        cpu_usage_us,
        memory_current,
        memory_peak,
        pids_current,
        oom_kills,
    } = usage;
    Stats {
        cpu_usage_us,
        memory_current,
        memory_peak,
        pids_current,
        oom_kills,
    }
}

/// All agents by slot.
#[derive(Debug, Default)]
pub struct Agents {
    /// Slot n is at n - 1.
    slots: Vec<Option<Agent>>,
}

impl Agents {
    /// The lowest free slot: low numbers keep the id maps in their cache.
    pub fn free_slot(&self) -> Result<Slot, Failure> {
        let index = self
            .slots
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.slots.len());
        if index >= MAX_AGENTS {
            return Err(refused(
                ErrorCode::TooMany,
                format!("{MAX_AGENTS} agents are held; release those that are gone"),
            ));
        }
        Ok(Slot(index as u32 + 1))
    }

    pub fn insert(&mut self, slot: Slot, agent: Agent) {
        let index = slot.0 as usize - 1;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        assert!(
            self.slots[index].is_none(),
            "slot {slot} came from free_slot"
        );
        self.slots[index] = Some(agent);
    }

    pub fn get(&mut self, slot: Slot) -> Result<&mut Agent, Failure> {
        let index = (slot.0 as usize).wrapping_sub(1);
        let agent = self.slots.get_mut(index).and_then(Option::as_mut);
        agent.ok_or_else(|| refused(ErrorCode::NoSuchSlot, format!("no agent in slot {slot}")))
    }

    /// Frees the slot of a gone agent.
    pub fn release(&mut self, slot: Slot) -> Result<(), Failure> {
        if !matches!(self.get(slot)?.state, State::Gone) {
            return Err(refused(
                ErrorCode::NoSuchSlot,
                format!("the agent in slot {slot} is not gone yet"),
            ));
        }
        self.slots[slot.0 as usize - 1] = None;
        Ok(())
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Agent)> {
        let numbered = (1..).map(Slot).zip(&mut self.slots);
        numbered.filter_map(|(slot, agent)| agent.as_mut().map(|agent| (slot, agent)))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.slots.iter().flatten()
    }

    /// Whether any agent is not gone yet.
    pub fn any_alive(&self) -> bool {
        self.iter().any(|agent| !matches!(agent.state, State::Gone))
    }
}
