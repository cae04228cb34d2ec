//! The engine that keeps a unit's agents as the unit says: starts, restarts with back-off, pools, start limits.
//!
//! Sans-I/O: time is a `Duration` since some fixed moment of a clock that never jumps, randomness is a number that the
//! caller draws, and what is to be done comes back as [`Action`]s. One [`Supervisor`] is one unit of one owner; its
//! agents are its *members*, numbered from 1. A member goes
//!
//! ```text
//!   inactive → starting → running → stopping → inactive
//!                 ▲           │
//!                 └─ waiting ◄┘   (an end that the restart policy covers, after the back-off)
//! ```
//!
//! and the unit's [`UnitState`] follows from its members. What it guarantees, whatever comes in (property tests): never
//! more members than `pool.max`; never two launches of a member under way; after `restart.burst` restarts within
//! `restart.interval` none, until somebody starts the unit again; nothing starts after `stop`.

mod backoff;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use backoff::{Restart, RestartPolicy};

/// How many agents a unit has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    pub min: u32,
    pub max: u32,
    /// A member above `min` that has had no work for so long is stopped.
    pub idle: Duration,
}

/// What a unit wants of its engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    pub pool: Pool,
    pub restart: Restart,
    /// A member is started so long after the last scheduled start, unless one is there.
    pub schedule: Option<Duration>,
    /// Something else than a person starts members: with no member the unit waits instead of being inactive.
    pub triggered: bool,
    /// Members are lent to tasks. Only then is one idle that nobody has: who else could say that it has no work?
    pub leased: bool,
}

/// How a member ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Exit code 0.
    Clean,
    Code(i32),
    Signal(i32),
    TimedOut,
    /// A limit of the policy ended it.
    Limit,
    /// Nobody saw its end.
    Lost,
    /// It never ran.
    LaunchFailed(String),
    /// Somebody asked for it.
    Stopped,
}

impl End {
    /// Whether a person would call it a failure.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Clean | Self::Stopped)
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clean => f.write_str("exited with code 0"),
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Limit => f.write_str("ended by a limit of its policy"),
            Self::Lost => f.write_str("lost: nobody saw its end"),
            Self::LaunchFailed(why) => write!(f, "not launched: {why}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// What the caller is to do. A launch is answered by [`Supervisor::running`] or [`Supervisor::ended`], a stop by
/// [`Supervisor::ended`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Launch { member: u32 },
    Stop { member: u32 },
}

/// Why a unit is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Its last member ended so, and nothing restarts it.
    Ended(End),
    /// It was restarted as often as it may.
    StartLimit {
        burst: u32,
        interval: Duration,
        last: End,
    },
}

/// What a unit is doing, from what is known of its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    Inactive,
    /// Started; its triggers are watched, and no member is there.
    Waiting,
    Starting,
    Running,
    /// A member waits for its restart.
    Restarting,
    Stopping,
    Failed,
}

impl UnitState {
    /// The word for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

/// Why no member can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoMember {
    #[error("it is not started")]
    NotStarted,
    #[error("it has failed")]
    Failed,
    #[error("its pool is full")]
    Full,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Starting,
    /// To be stopped as soon as its launch is through.
    Cancelled,
    Running {
        since: Duration,
        /// Since when it has nothing to do; `None` while it works.
        idle_since: Option<Duration>,
    },
    Stopping,
    Waiting {
        until: Duration,
    },
}

#[derive(Debug, Clone, PartialEq)]
struct Member {
    phase: Phase,
    /// Failures in a row, for the back-off.
    failures: u32,
}

/// One unit's engine. See the module.
#[derive(Debug, Clone)]
pub struct Supervisor {
    rules: Rules,
    on: bool,
    members: BTreeMap<u32, Member>,
    restarts: VecDeque<Duration>,
    total_restarts: u64,
    failure: Option<Failure>,
    scheduled: Option<Duration>,
}

impl Supervisor {
    /// A unit that has not been started.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            on: false,
            members: BTreeMap::new(),
            restarts: VecDeque::new(),
            total_restarts: 0,
            failure: None,
            scheduled: None,
        }
    }

    /// Starts the unit: its least members come up, its triggers are watched, earlier failures are forgotten.
    pub fn start(&mut self, now: Duration) -> Vec<Action> {
        self.on = true;
        self.failure = None;
        self.restarts.clear();
        self.scheduled = self.rules.schedule.map(|every| now + every);
        for member in self.members.values_mut() {
            member.failures = 0;
        }
        let mut actions = Vec::new();
        let waiting: Vec<u32> = self.numbers(|phase| matches!(phase, Phase::Waiting { .. }));
        actions.extend(waiting.into_iter().map(|member| self.launch(member)));
        self.fill(&mut actions);
        actions
    }

    /// Stops the unit and every member.
    pub fn stop(&mut self) -> Vec<Action> {
        self.on = false;
        self.failure = None;
        self.scheduled = None;
        self.members
            .retain(|_, member| !matches!(member.phase, Phase::Waiting { .. }));
        let all: Vec<u32> = self.members.keys().copied().collect();
        all.into_iter()
            .filter_map(|member| self.end(member))
            .collect()
    }

    /// Wants one more member for work that waits.
    ///
    /// # Errors
    /// Why there is none to be had.
    pub fn demand(&mut self) -> Result<(u32, Action), NoMember> {
        if !self.on {
            return Err(NoMember::NotStarted);
        }
        if matches!(self.failure, Some(Failure::StartLimit { .. })) {
            return Err(NoMember::Failed);
        }
        let member = self.free().ok_or(NoMember::Full)?;
        Ok((member, self.launch(member)))
    }

    /// The launch of `member` is through. An action comes back when it is not wanted any more.
    pub fn running(&mut self, member: u32, now: Duration) -> Option<Action> {
        let known = self.members.get_mut(&member)?;
        match known.phase {
            Phase::Starting => {
                known.phase = Phase::Running {
                    since: now,
                    idle_since: self.rules.leased.then_some(now),
                };
                None
            }
            Phase::Cancelled => {
                known.phase = Phase::Stopping;
                Some(Action::Stop { member })
            }
            _ => None,
        }
    }

    /// Takes over a member that already runs, as a restarted daemon finds it.
    pub fn adopt(&mut self, member: u32, now: Duration) {
        self.on = true;
        if self.scheduled.is_none() {
            self.scheduled = self.rules.schedule.map(|every| now + every);
        }
        let phase = Phase::Running {
            since: now,
            idle_since: self.rules.leased.then_some(now),
        };
        self.members.insert(member, Member { phase, failures: 0 });
    }

    /// `member` has ended, or its launch has failed. `random` is drawn from 0 to 1.
    pub fn ended(&mut self, member: u32, end: &End, now: Duration, random: f64) -> Vec<Action> {
        let Some(known) = self.members.get(&member) else {
            return Vec::new();
        };
        let ran = match known.phase {
            Phase::Running { since, .. } => now.saturating_sub(since),
            Phase::Starting => Duration::ZERO,
            Phase::Waiting { .. } => return Vec::new(),
            Phase::Cancelled | Phase::Stopping => {
                self.members.remove(&member);
                let mut actions = Vec::new();
                // Started again while it was being stopped.
                self.fill(&mut actions);
                return actions;
            }
        };
        let restart = self.rules.restart.clone();
        let mut failures = known.failures;
        if ran >= restart.interval {
            failures = 0;
        }
        if !self.on || !restart.covers(end) {
            self.members.remove(&member);
            self.failure = (self.on && end.is_failure()).then(|| Failure::Ended(end.clone()));
            return Vec::new();
        }
        while self
            .restarts
            .front()
            .is_some_and(|at| now.saturating_sub(*at) >= restart.interval)
        {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= restart.burst as usize {
            self.members.remove(&member);
            self.failure = Some(Failure::StartLimit {
                burst: restart.burst,
                interval: restart.interval,
                last: end.clone(),
            });
            return Vec::new();
        }
        self.restarts.push_back(now);
        self.total_restarts += 1;
        let until = now + restart.delay_after(failures, random);
        let waiting = Member {
            phase: Phase::Waiting { until },
            failures: failures.saturating_add(1),
        };
        self.members.insert(member, waiting);
        Vec::new()
    }

    /// `member` has work.
    pub fn busy(&mut self, member: u32) {
        if let Some(Phase::Running { idle_since, .. }) =
            self.members.get_mut(&member).map(|m| &mut m.phase)
        {
            *idle_since = None;
        }
    }

    /// `member` has nothing to do any more.
    pub fn idle(&mut self, member: u32, now: Duration) {
        if let Some(Phase::Running { idle_since, .. }) =
            self.members.get_mut(&member).map(|m| &mut m.phase)
        {
            idle_since.get_or_insert(now);
        }
    }

    /// What has become due: restarts, scheduled starts, members that have been idle for long.
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        let due = self.numbers(|phase| matches!(phase, Phase::Waiting { until } if *until <= now));
        let mut actions: Vec<Action> = due.into_iter().map(|member| self.launch(member)).collect();
        if let (Some(every), Some(at)) = (self.rules.schedule, self.scheduled)
            && at <= now
        {
            self.scheduled = Some(now + every);
            let limited = matches!(self.failure, Some(Failure::StartLimit { .. }));
            if self.members.is_empty() && !limited {
                actions.push(self.launch(1));
            }
        }
        while let Some(member) = self.spare(now) {
            actions.extend(self.end(member));
        }
        actions
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Duration> {
        let restarts = self
            .members
            .values()
            .filter_map(|member| match member.phase {
                Phase::Waiting { until } => Some(until),
                _ => None,
            });
        let above_least = self.up() > self.least();
        let idles = self
            .members
            .values()
            .filter_map(|member| match member.phase {
                Phase::Running {
                    idle_since: Some(at),
                    ..
                } if above_least && self.shrinks() => Some(at + self.rules.pool.idle),
                _ => None,
            });
        restarts.chain(idles).chain(self.scheduled).min()
    }

    /// New rules for what runs; nothing is restarted for them.
    pub fn configure(&mut self, rules: Rules, now: Duration) -> Vec<Action> {
        if self.on && rules.schedule != self.rules.schedule {
            self.scheduled = rules.schedule.map(|every| now + every);
        }
        self.rules = rules;
        let mut actions = Vec::new();
        let over: Vec<u32> = self.members.keys().copied().rev().collect();
        for member in over {
            if self.up() <= self.rules.pool.max {
                break;
            }
            actions.extend(self.end(member));
        }
        if self.on && self.failure.is_none() {
            self.fill(&mut actions);
        }
        actions
    }

    /// What the unit is doing.
    pub fn state(&self) -> UnitState {
        let any = |which: fn(&Phase) -> bool| self.members.values().any(|m| which(&m.phase));
        if any(|p| matches!(p, Phase::Running { .. })) {
            UnitState::Running
        } else if any(|p| matches!(p, Phase::Starting)) {
            UnitState::Starting
        } else if any(|p| matches!(p, Phase::Waiting { .. })) {
            UnitState::Restarting
        } else if any(|p| matches!(p, Phase::Stopping | Phase::Cancelled)) {
            UnitState::Stopping
        } else if self.failure.is_some() {
            UnitState::Failed
        } else if self.on && self.rules.triggered {
            UnitState::Waiting
        } else {
            UnitState::Inactive
        }
    }

    /// Whether it was started and not stopped since.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Why it has failed, if it has.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Members that run.
    pub fn running_members(&self) -> Vec<u32> {
        self.numbers(|phase| matches!(phase, Phase::Running { .. }))
    }

    /// Members that run or are being launched.
    pub fn up(&self) -> u32 {
        let up = |m: &&Member| matches!(m.phase, Phase::Running { .. } | Phase::Starting);
        u32::try_from(self.members.values().filter(up).count()).unwrap_or(u32::MAX)
    }

    /// Whether it has no members at all, waiting ones included.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Restarts since the unit was loaded.
    pub fn total_restarts(&self) -> u64 {
        self.total_restarts
    }

    /// When the next restart comes, if one waits.
    pub fn next_restart(&self) -> Option<Duration> {
        let waiting = self.members.values().filter_map(|m| match m.phase {
            Phase::Waiting { until } => Some(until),
            _ => None,
        });
        waiting.min()
    }

    fn numbers(&self, which: impl Fn(&Phase) -> bool) -> Vec<u32> {
        let matching = self.members.iter().filter(|(_, m)| which(&m.phase));
        matching.map(|(number, _)| *number).collect()
    }

    fn free(&self) -> Option<u32> {
        (1..=self.rules.pool.max).find(|n| !self.members.contains_key(n))
    }

    /// As many as stay without work.
    fn least(&self) -> u32 {
        self.rules.pool.min
    }

    /// Whether members are there for work that comes and goes: then idle ones above the least are stopped.
    fn shrinks(&self) -> bool {
        self.rules.leased
    }

    fn launch(&mut self, member: u32) -> Action {
        let failures = self.members.get(&member).map_or(0, |m| m.failures);
        let phase = Phase::Starting;
        self.members.insert(member, Member { phase, failures });
        Action::Launch { member }
    }

    /// Brings the least members up.
    fn fill(&mut self, actions: &mut Vec<Action>) {
        let coming = |m: &&Member| !matches!(m.phase, Phase::Stopping | Phase::Cancelled);
        while self.on && self.members.values().filter(coming).count() < self.rules.pool.min as usize
        {
            let Some(member) = self.free() else { return };
            actions.push(self.launch(member));
        }
    }

    /// Begins the end of a member.
    fn end(&mut self, member: u32) -> Option<Action> {
        let known = self.members.get_mut(&member)?;
        match known.phase {
            Phase::Running { .. } => {
                known.phase = Phase::Stopping;
                Some(Action::Stop { member })
            }
            Phase::Starting => {
                known.phase = Phase::Cancelled;
                None
            }
            Phase::Waiting { .. } => {
                self.members.remove(&member);
                None
            }
            Phase::Stopping | Phase::Cancelled => None,
        }
    }

    /// The highest member that has been idle for too long, if there are more than the least.
    fn spare(&self, now: Duration) -> Option<u32> {
        if !self.shrinks() || self.up() <= self.least() {
            return None;
        }
        let idle = self.members.iter().rev().find(|(_, m)| {
            matches!(m.phase, Phase::Running { idle_since: Some(at), .. } if at + self.rules.pool.idle <= now)
        });
        idle.map(|(number, _)| *number)
    }
}
