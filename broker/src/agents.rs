//! The table of agents: which slots are taken, and in which state each agent is.
//!
//! A slot goes free → running → dying (init ended, cgroup on its way out) → gone → released. Only agentd's release makes
//! the number free again, so a late request never hits a newer agent; while no agentd is there, a gone agent is forgotten
//! when its grace is over. What agentd gave for safekeeping stays until then. Pure bookkeeping over descriptors that the
//! agents own; makes no system call but through [`Group`] and [`PidFd`].

use crate::failure::{failed, refused};
use crate::log::log;
use crate::placeholder::Placeholders;
use agentd_broker::protocol::{
    ErrorCode, Failure, Gone, Held, HeldState, Launched, MAX_AGENTS, Slot, Stats,
};
use agentd_kernel::cgroup::{Group, Removal, Usage};
use agentd_kernel::pidfd::{Ending, ExitStatus, PidFd};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How soon a busy cgroup, or a process that its parent has not reaped, is looked at again where no event tells.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// After this long the directories are given up: something outside keeps them.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// One agent.
#[derive(Debug)]
pub struct Agent {
    pub info: Launched,
    pub parentage: Parentage,
    pub pidfd: PidFd,
    /// agentd's end of the init's status socket, for the next agentd.
    pub status: OwnedFd,
    /// What agentd wants the next agentd to have.
    pub kept: Vec<OwnedFd>,
    /// Until it is removed.
    pub group: Option<Group>,
    /// Until they are removed; those of an adopted agent are on a note only.
    /// The process that holds its limit of disk, if it has one and this broker started it.
    pub meter: Option<PidFd>,
    pub placeholders: Option<Placeholders>,
    /// What happens to it while no agentd is there.
    pub grace: Grace,
    pub state: State,
}

/// How long an agent has without agentd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// agentd is there.
    Whole,
    /// At this time it is killed or, if it is gone, forgotten.
    Until(Instant),
    /// It was killed for it.
    Over,
}

impl Grace {
    fn is_over(self, now: Instant) -> bool {
        match self {
            Self::Whole => false,
            Self::Until(at) => now >= at,
            Self::Over => true,
        }
    }
}

/// Who hears from the kernel how the init ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parentage {
    /// This process does.
    Own,
    /// Another does: the agent was launched by a worker that has died.
    Adopted,
}

#[derive(Debug)]
pub enum State {
    Running,
    /// The init has ended; the cgroup's last directory is not removed yet.
    Dying(Dying),
    Gone {
        wait_status: Option<i32>,
        stats: Stats,
    },
}

#[derive(Debug)]
pub struct Dying {
    wait_status: WaitStatus,
    usage: Usage,
    /// `cgroup.events`, if the hierarchy has one.
    pub events: Option<OwnedFd>,
    next_try: Instant,
    give_up: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitStatus {
    Known(i32),
    /// The parent has not reaped the init yet.
    Awaited,
    /// This kernel tells the parent only.
    Untold,
}

impl Agent {
    /// agentd has gone: the agent outlives it for as long as its plan says.
    pub fn begin_grace(&mut self, now: Instant) {
        self.grace = Grace::Until(now + Duration::from_millis(self.info.grace_ms.into()));
    }

    /// Kills it if its grace is over.
    pub fn enforce_grace(&mut self, now: Instant) -> Result<(), Failure> {
        match self.grace {
            Grace::Until(at) if now >= at && !matches!(self.state, State::Gone { .. }) => {
                self.grace = Grace::Over;
                self.kill()
            }
            _ => Ok(()),
        }
    }

    /// The cgroup of an agent that runs.
    pub fn running_group(&self) -> Result<&Group, Failure> {
        match (&self.state, &self.group) {
            (State::Running, Some(group)) => Ok(group),
            _ => Err(refused(ErrorCode::NoSuchSlot, "the agent has ended")),
        }
    }

    /// Kills the whole tree: the cgroup at once where the host can, else the init and with it the pid namespace.
    pub fn kill(&self) -> Result<(), Failure> {
        if !matches!(self.state, State::Running) {
            return Ok(());
        }
        match self.group.as_ref().map(Group::kill) {
            Some(Ok(true)) => return Ok(()),
            Some(Ok(false)) | None => {}
            Some(Err(error)) => log!("{error}; killing the init instead"),
        }
        self.pidfd
            .kill()
            .map_err(|error| failed(ErrorCode::Cgroup, "killing the agent's init", &error))
    }

    /// Without its meter the agent has no limit of disk any more: it ends. (One that found it over has killed it already.)
    pub fn mind_meter(&mut self) {
        let ended = |meter: &PidFd| !matches!(meter.try_reap(), Ok(None));
        if self.meter.as_ref().is_some_and(ended) {
            self.meter = None;
            if matches!(self.state, State::Running)
                && let Err(failure) = self.kill()
            {
                log!("{failure}");
            }
        }
    }

    /// Notes the init's end, and reaps it if it is our child. The group's figures are read first, while it still exists.
    pub fn reap(&mut self, now: Instant) {
        if !matches!(self.state, State::Running) {
            return;
        }
        let ended = match self.parentage {
            Parentage::Own => self.pidfd.try_reap().map(|ending| {
                let known = |ending: Ending| WaitStatus::Known(ending.to_wait_status());
                ending.map(known)
            }),
            Parentage::Adopted => self
                .pidfd
                .has_exited()
                .map(|exited| exited.then_some(WaitStatus::Awaited)),
        };
        let wait_status = match ended {
            Ok(None) => return,
            Ok(Some(wait_status)) => wait_status,
            Err(error) => {
                log!("waiting for pid {}: {error}", self.info.pid);
                WaitStatus::Untold
            }
        };
        self.state = State::Dying(Dying {
            wait_status,
            usage: self.group.as_ref().map(Group::usage).unwrap_or_default(),
            events: None,
            next_try: now,
            give_up: now + REMOVAL_PATIENCE,
        });
        // Everything in the pid namespace is dead, so nobody is left whom the names have to be kept from.
        if let Some(placeholders) = self.placeholders.take() {
            placeholders.remove();
        }
    }

    /// Removes the cgroup of a dying agent and learns how its init ended; the event to send once that is done.
    pub fn bury(&mut self, now: Instant) -> Option<Gone> {
        let State::Dying(dying) = &mut self.state else {
            return None;
        };
        let slot = self.info.slot;
        // It sees the init's end as we do, and is in the cgroup.
        if self.meter.is_some() && now < dying.give_up {
            dying.next_try = now + RETRY_INTERVAL;
            return None;
        }
        if dying.wait_status == WaitStatus::Awaited {
            dying.wait_status = match self.pidfd.exit_status() {
                Ok(ExitStatus::Known(status)) => WaitStatus::Known(status),
                Ok(ExitStatus::NotYet) if now < dying.give_up => WaitStatus::Awaited,
                Ok(ExitStatus::NotYet) | Err(_) => WaitStatus::Untold,
            };
        }
        let removal = self
            .group
            .as_ref()
            .map_or(Ok(Removal::Done), Group::try_remove);
        match removal {
            Ok(Removal::Busy) if now < dying.give_up => {
                if dying.events.is_none() {
                    dying.events = self.group.as_ref().and_then(Group::events);
                }
                dying.next_try = now + RETRY_INTERVAL;
                return None;
            }
            Ok(Removal::Busy) => {
                log!("the cgroup of slot {slot} stays busy; left behind")
            }
            Ok(Removal::Done) => {}
            Err(error) => log!("{error}"),
        }
        let wait_status = match dying.wait_status {
            WaitStatus::Known(status) => Some(status),
            WaitStatus::Untold => None,
            WaitStatus::Awaited => {
                dying.next_try = now + RETRY_INTERVAL;
                return None;
            }
        };
        let stats = stats(dying.usage);
        self.state = State::Gone { wait_status, stats };
        self.group = None;
        Some(Gone {
            slot,
            pid: self.info.pid,
            wait_status,
            stats,
        })
    }

    /// When this agent next needs attention without any descriptor saying so.
    pub fn wake_at(&self) -> Option<Instant> {
        let retry = match &self.state {
            State::Dying(dying) => Some(dying.next_try),
            State::Running | State::Gone { .. } => None,
        };
        let over = match self.grace {
            Grace::Until(at) => Some(at),
            Grace::Whole | Grace::Over => None,
        };
        retry.into_iter().chain(over).min()
    }

    /// The answer about it to an agentd that was not there before, with duplicates of its descriptors.
    ///
    /// # Errors
    /// This process is out of descriptors.
    pub fn held(&self) -> io::Result<(Held, Vec<OwnedFd>)> {
        let state = match self.state {
            // Dying: the event is still to come, as for one that runs.
            State::Running | State::Dying(_) => HeldState::Running,
            State::Gone { wait_status, stats } => HeldState::Gone { wait_status, stats },
        };
        let own = [self.pidfd.as_fd(), self.status.as_fd()].into_iter();
        let fds = own
            .chain(self.kept.iter().map(AsFd::as_fd))
            .map(|fd| fd.try_clone_to_owned())
            .collect::<io::Result<_>>()?;
        let held = Held {
            info: self.info.clone(),
            state,
            kept: self.kept.len() as u32,
        };
        Ok((held, fds))
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
    /// Slots of agents that an earlier worker launched and that nobody has handed over: not free.
    orphans: BTreeSet<u32>,
}

impl Agents {
    /// An empty table that leaves the slots of `orphans` to their agents.
    pub fn beside(orphans: BTreeSet<u32>) -> Self {
        Self {
            slots: Vec::new(),
            orphans,
        }
    }

    /// The lowest free slot: low numbers keep the id maps in their cache.
    pub fn free_slot(&self) -> Result<Slot, Failure> {
        let taken = |number: u32| {
            let index = number as usize - 1;
            self.orphans.contains(&number) || self.slots.get(index).is_some_and(Option::is_some)
        };
        let free = (1..=MAX_AGENTS as u32).find(|number| !taken(*number));
        free.map(Slot).ok_or_else(|| {
            refused(
                ErrorCode::TooMany,
                format!("{MAX_AGENTS} agents are held; release those that are gone"),
            )
        })
    }

    /// Whether an agent that is handed over can have its slot back.
    pub fn takes(&self, slot: Slot) -> bool {
        let index = (slot.0 as usize).wrapping_sub(1);
        index < MAX_AGENTS && self.slots.get(index).is_none_or(Option::is_none)
    }

    /// Puts an agent on the slot in its `info`, which [`Agents::free_slot`] gave or [`Agents::takes`] allowed.
    pub fn insert(&mut self, agent: Agent) {
        let slot = agent.info.slot;
        let index = slot.0 as usize - 1;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        assert!(self.slots[index].is_none(), "slot {slot} is free");
        self.orphans.remove(&slot.0);
        self.slots[index] = Some(agent);
    }

    pub fn get(&mut self, slot: Slot) -> Result<&mut Agent, Failure> {
        let index = (slot.0 as usize).wrapping_sub(1);
        let agent = self.slots.get_mut(index).and_then(Option::as_mut);
        agent.ok_or_else(|| refused(ErrorCode::NoSuchSlot, format!("no agent in slot {slot}")))
    }

    /// The first agent above a slot.
    pub fn next_after(&self, after: Option<Slot>) -> Option<&Agent> {
        let from = after.map_or(0, |slot| slot.0 as usize);
        self.slots.iter().skip(from).flatten().next()
    }

    /// Frees the slot of a gone agent.
    pub fn release(&mut self, slot: Slot) -> Result<(), Failure> {
        if !matches!(self.get(slot)?.state, State::Gone { .. }) {
            return Err(refused(
                ErrorCode::NoSuchSlot,
                format!("the agent in slot {slot} is not gone yet"),
            ));
        }
        self.slots[slot.0 as usize - 1] = None;
        Ok(())
    }

    /// Drops the agents that are gone and that nobody came back for.
    pub fn forget_gone(&mut self, now: Instant) {
        for slot in &mut self.slots {
            let over = |agent: &mut Agent| {
                matches!(agent.state, State::Gone { .. }) && agent.grace.is_over(now)
            };
            slot.take_if(over);
        }
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Agent> {
        self.slots.iter_mut().flatten()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.slots.iter().flatten()
    }

    /// How many slots are taken.
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// Whether any agent is not gone yet.
    pub fn any_alive(&self) -> bool {
        self.iter()
            .any(|agent| !matches!(agent.state, State::Gone { .. }))
    }
}
