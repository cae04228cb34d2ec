//! Every open task, and what follows from what happened to one.
//!
//! A task enters in two steps, because nothing may run that is not on record: [`Book::submit`] judges it and reserves
//! its place, [`Book::commit`] (or [`Book::discard`]) says whether the record took it. What happens to its
//! dependencies and its parent in between is kept and applied at the commit. Ended tasks leave the book.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::queue::{Queue, Rank};
use super::{
    AttemptEnd, Change, Deadline, Impossible, Limits, Now, OnDependencyFailure, Refused, Stale,
    State, Target, TaskId, Terms,
};

/// The agent that was chosen for an attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Assignment {
    /// Id of its launch.
    pub launch: String,
    /// Its name.
    pub agent: String,
}

/// A task as it is handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Made by the caller; never used before.
    pub id: TaskId,
    /// The user it belongs to.
    pub uid: u32,
    /// What was asked for.
    pub terms: Terms,
    /// The task on whose behalf an agent delegates it.
    pub parent: Option<TaskId>,
}

/// An open task as the record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Its id.
    pub id: TaskId,
    /// The user it belongs to.
    pub uid: u32,
    /// What was asked for.
    pub terms: Terms,
    /// The task on whose behalf it was delegated.
    pub parent: Option<TaskId>,
    /// Levels of delegation above it.
    pub depth: u32,
    /// Its last state.
    pub state: State,
    /// The last attempt; 0 before the first.
    pub attempt: u32,
    /// Who has it, while an attempt is under way.
    pub agent: Option<Assignment>,
    /// When it was submitted, on the boot clock of now; negative if before this boot.
    pub queued_boot_ms: i64,
    /// Its deadline on the boot clock of now; 0 if it passed before this boot.
    pub deadline_boot_ms: Option<u64>,
    /// End of its back-off on the boot clock of now.
    pub not_before_boot_ms: Option<u64>,
    /// The tasks it depends on, with the states on record.
    pub dependencies: Vec<(TaskId, State)>,
}

#[derive(Clone, Debug)]
struct Task {
    uid: u32,
    terms: Terms,
    parent: Option<TaskId>,
    depth: u32,
    state: State,
    attempt: u32,
    agent: Option<Assignment>,
    queued_boot_ms: i64,
    deadline_boot_ms: Option<u64>,
    not_before_boot_ms: Option<u64>,
    /// Dependencies that have not succeeded yet.
    open_dependencies: BTreeSet<TaskId>,
    /// The record has it.
    committed: bool,
    /// The end that came to it before the record had it.
    doom: Option<(State, String)>,
}

/// The open tasks of all users.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub(super) limits: Limits,
    tasks: BTreeMap<TaskId, Task>,
    queue: Queue,
    deadlines: BTreeSet<(u64, TaskId)>,
    /// Queued tasks whose back-off is not over.
    delayed: BTreeSet<(u64, TaskId)>,
    dependants: BTreeMap<TaskId, BTreeSet<TaskId>>,
    children: BTreeMap<TaskId, BTreeSet<TaskId>>,
    open_by_uid: BTreeMap<u32, usize>,
}

impl Book {
    /// An empty book.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    // -------------------------------------------------------------------------------------------- entering

    /// Judges a new task and reserves its place; nothing happens to it before [`Self::commit`]. `known` are the
    /// states of its dependencies that have ended. Gives its first transition, which goes on record with it.
    ///
    /// # Errors
    /// [`Refused`], and nothing has changed.
    pub fn submit(
        &mut self,
        submission: Submission,
        known: &[(TaskId, State)],
        now: Now,
    ) -> Result<Change, Refused> {
        let Submission {
            id,
            uid,
            terms,
            parent,
        } = submission;
        if self.open_of(uid) >= self.limits.open_per_user {
            return Err(Refused::TooManyOpen {
                limit: self.limits.open_per_user,
            });
        }
        if terms.after.len() > self.limits.dependencies {
            return Err(Refused::TooManyDependencies {
                count: terms.after.len(),
                limit: self.limits.dependencies,
            });
        }
        let depth = match parent {
            Some(parent) => self.judge_delegation(parent, uid, &terms.target)?,
            None => 0,
        };
        let deadline_boot_ms = match terms.deadline {
            None => None,
            Some(Deadline::In(ms)) => Some(now.boot_ms.saturating_add(ms)),
            Some(Deadline::At(at)) => {
                let left = u64::try_from(at.saturating_sub(now.wall_ms)).unwrap_or(0);
                Some(now.boot_ms.saturating_add(left))
            }
        };
        if deadline_boot_ms.is_some_and(|at| at <= now.boot_ms) {
            return Err(Refused::DeadlinePassed);
        }
        let mut open_dependencies = BTreeSet::new();
        let mut failed = None;
        for &dependency in &terms.after {
            match self.tasks.get(&dependency) {
                Some(open) if open.uid == uid && open.committed => {
                    open_dependencies.insert(dependency);
                }
                Some(_) => return Err(Refused::NoSuchDependency(dependency)),
                None => match known.iter().find(|(id, _)| *id == dependency) {
                    Some((_, State::Succeeded)) => {}
                    Some((_, state)) if state.is_final() => {
                        failed.get_or_insert((dependency, *state));
                    }
                    _ => return Err(Refused::NoSuchDependency(dependency)),
                },
            }
        }
        let (to, cause) = match failed {
            Some((dependency, state)) => end_by_dependency(&terms, dependency, state),
            None if open_dependencies.is_empty() => {
                (State::Queued, format!("waits for {}", terms.target))
            }
            None => (
                State::Waiting,
                format!("waits for {}", count(open_dependencies.len(), "task")),
            ),
        };
        let change = Change {
            task: id,
            uid,
            from: State::Submitted,
            to,
            attempt: 0,
            cause,
            at_ms: now.wall_ms,
            agent: None,
            not_before_boot_ms: None,
        };
        if !to.is_final() {
            self.insert(
                id,
                Task {
                    uid,
                    terms,
                    parent,
                    depth,
                    state: to,
                    attempt: 0,
                    agent: None,
                    queued_boot_ms: now.boot_ms.cast_signed(),
                    deadline_boot_ms,
                    not_before_boot_ms: None,
                    open_dependencies,
                    committed: false,
                    doom: None,
                },
            );
        }
        Ok(change)
    }

    /// Whether `parent` may delegate to `target`; the depth of its child.
    fn judge_delegation(&self, parent: TaskId, uid: u32, target: &Target) -> Result<u32, Refused> {
        let above = self
            .tasks
            .get(&parent)
            .filter(|task| task.uid == uid)
            .ok_or(Refused::NoSuchParent(parent))?;
        if above.state != State::Running {
            return Err(Refused::ParentNotRunning {
                parent,
                state: above.state,
            });
        }
        if above.depth >= self.limits.depth {
            return Err(Refused::TooDeep {
                limit: self.limits.depth,
            });
        }
        if self.children.get(&parent).map_or(0, BTreeSet::len) >= self.limits.children {
            return Err(Refused::TooManyChildren {
                parent,
                limit: self.limits.children,
            });
        }
        let mut ancestor = Some(parent);
        while let Some(id) = ancestor {
            let Some(task) = self.tasks.get(&id) else {
                break;
            };
            if let (Target::Agent(wanted), Some(holder)) = (target, &task.agent)
                && *wanted == holder.agent
            {
                return Err(Refused::Cycle {
                    agent: wanted.clone(),
                    ancestor: id,
                });
            }
            ancestor = task.parent;
        }
        Ok(above.depth + 1)
    }

    /// The record has the task: it takes part from now on. Gives what came to it meanwhile.
    pub fn commit(&mut self, id: TaskId, now: Now) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(task) = self.tasks.get_mut(&id) else {
            return changes;
        };
        task.committed = true;
        if let Some((to, cause)) = task.doom.take() {
            self.finish(id, to, cause, now, &mut changes);
        } else {
            self.take_part(id, now, &mut changes);
        }
        changes
    }

    /// The record did not take the task: it never was.
    pub fn discard(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|task| !task.committed) {
            self.remove(id);
        }
    }

    /// Fills an empty book from the record, and gives what should have followed before the daemon ended.
    pub fn restore(&mut self, restored: Vec<Restored>, now: Now) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut failed = Vec::new();
        let ids: BTreeSet<TaskId> = restored.iter().map(|task| task.id).collect();
        for it in &restored {
            let mut open_dependencies = BTreeSet::new();
            for &(dependency, state) in &it.dependencies {
                if state == State::Succeeded {
                    continue;
                }
                if state.is_final() || !ids.contains(&dependency) {
                    failed.push((it.id, dependency, state));
                } else {
                    open_dependencies.insert(dependency);
                }
            }
            self.insert(
                it.id,
                Task {
                    uid: it.uid,
                    terms: it.terms.clone(),
                    parent: it.parent,
                    depth: it.depth,
                    state: it.state,
                    attempt: it.attempt,
                    agent: it.agent.clone().filter(|_| it.state.is_under_way()),
                    queued_boot_ms: it.queued_boot_ms,
                    deadline_boot_ms: it.deadline_boot_ms,
                    not_before_boot_ms: it.not_before_boot_ms,
                    open_dependencies,
                    committed: true,
                    doom: None,
                },
            );
        }
        for (id, dependency, state) in failed {
            if let Some(task) = self
                .tasks
                .get(&id)
                .filter(|task| !task.state.is_under_way())
            {
                let (to, cause) = end_by_dependency(&task.terms, dependency, state);
                self.finish(id, to, cause, now, &mut changes);
            }
        }
        for it in restored {
            if let Some(parent) = it.parent.filter(|parent| !ids.contains(parent)) {
                let cause = format!("task {parent}, which delegated it, has ended");
                self.finish(it.id, State::Cancelled, cause, now, &mut changes);
            }
            self.take_part(it.id, now, &mut changes);
        }
        changes
    }

    /// Puts a committed task that is not under way where it belongs.
    fn take_part(&mut self, id: TaskId, now: Now, changes: &mut Vec<Change>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Some(at) = task.deadline_boot_ms {
            self.deadlines.insert((at, id));
        }
        if task.state == State::Waiting && task.open_dependencies.is_empty() {
            let from = std::mem::replace(&mut task.state, State::Queued);
            let cause = "every task that it depends on has succeeded".to_owned();
            changes.push(task.change(id, from, cause, now));
        }
        if task.state == State::Queued {
            match task.not_before_boot_ms.filter(|at| *at > now.boot_ms) {
                Some(at) => {
                    self.delayed.insert((at, id));
                }
                None => self.queue.insert(task.lane(), task.rank(id)),
            }
        }
    }

    // -------------------------------------------------------------------------------------------- attempts

    /// The tasks that may be assigned now: the first of each user and target, most urgent first.
    pub fn candidates(&self) -> Vec<TaskId> {
        self.queue.heads()
    }

    /// An agent was chosen: a new attempt begins.
    ///
    /// # Errors
    /// [`Impossible`] when the task is not queued or its back-off is not over.
    pub fn assign(
        &mut self,
        id: TaskId,
        agent: Assignment,
        now: Now,
    ) -> Result<Change, Impossible> {
        let task = self
            .tasks
            .get_mut(&id)
            .filter(|task| task.committed)
            .ok_or(Impossible::NotOpen(id))?;
        let due = task.not_before_boot_ms.is_none_or(|at| at <= now.boot_ms);
        if task.state != State::Queued || !due {
            return Err(Impossible::State {
                task: id,
                state: task.state,
            });
        }
        self.queue.remove(&task.lane(), task.rank(id));
        // Due by the clock, but no tick has said so yet.
        if let Some(at) = task.not_before_boot_ms.take() {
            self.delayed.remove(&(at, id));
        }
        let from = std::mem::replace(&mut task.state, State::Assigned);
        task.attempt += 1;
        let cause = format!("{} is free", agent.agent);
        task.agent = Some(agent);
        Ok(task.change(id, from, cause, now))
    }

    /// The agent is about to be given the task.
    ///
    /// # Errors
    /// [`Stale`] when this attempt is not the one that was assigned: it must not be given to the agent.
    pub fn begin(&mut self, id: TaskId, attempt: u32, now: Now) -> Result<Change, Stale> {
        let task = self
            .tasks
            .get_mut(&id)
            .filter(|task| task.state == State::Assigned && task.attempt == attempt)
            .ok_or(Stale { task: id, attempt })?;
        let from = std::mem::replace(&mut task.state, State::Running);
        let cause = match &task.agent {
            Some(holder) => format!("{} works on it", holder.agent),
            None => "an agent works on it".to_owned(),
        };
        Ok(task.change(id, from, cause, now))
    }

    /// The attempt was about to be given to the agent and was not, because the daemon ended in between: it is given
    /// again. The agent has seen nothing of it, so nothing is counted.
    ///
    /// # Errors
    /// [`Stale`] when the attempt is not running.
    pub fn rewind(&mut self, id: TaskId, attempt: u32, now: Now) -> Result<Change, Stale> {
        let task = self
            .tasks
            .get_mut(&id)
            .filter(|task| task.state == State::Running && task.attempt == attempt)
            .ok_or(Stale { task: id, attempt })?;
        let from = std::mem::replace(&mut task.state, State::Assigned);
        let cause = "agentd ended before the agent was given it".to_owned();
        Ok(task.change(id, from, cause, now))
    }

    /// An attempt ended: the task succeeded, is tried again after a pause, or has failed. `jitter` is drawn evenly
    /// from all of `u64`.
    ///
    /// # Errors
    /// [`Stale`] for an attempt that is not under way; the first word of its end counted.
    pub fn end(
        &mut self,
        id: TaskId,
        attempt: u32,
        end: AttemptEnd,
        jitter: u64,
        now: Now,
    ) -> Result<Vec<Change>, Stale> {
        let stale = Stale { task: id, attempt };
        let task = self.tasks.get_mut(&id).ok_or_else(|| stale.clone())?;
        let ends = match end {
            AttemptEnd::Done => task.state == State::Running,
            AttemptEnd::Failed { .. } | AttemptEnd::AgentGone { .. } => task.state.is_under_way(),
        };
        if !ends || task.attempt != attempt {
            return Err(stale);
        }
        let mut changes = Vec::new();
        let why = match end {
            AttemptEnd::Done => {
                let cause = match &task.agent {
                    Some(holder) => format!("{} gave a result", holder.agent),
                    None => "the agent gave a result".to_owned(),
                };
                self.finish(id, State::Succeeded, cause, now, &mut changes);
                return Ok(changes);
            }
            AttemptEnd::Failed { why } => format!("attempt {attempt} failed: {why}"),
            AttemptEnd::AgentGone { why } => format!("attempt {attempt} lost its agent: {why}"),
        };
        if attempt >= task.terms.retry.attempts() {
            self.finish(id, State::Failed, why, now, &mut changes);
            return Ok(changes);
        }
        let pause_ms = task.terms.retry.pause_ms(attempt, jitter);
        let at = now.boot_ms.saturating_add(pause_ms);
        task.not_before_boot_ms = Some(at);
        let from = std::mem::replace(&mut task.state, State::Queued);
        let cause = format!("{why}; again in {pause_ms} ms");
        changes.push(task.change(id, from, cause, now));
        task.agent = None;
        if pause_ms == 0 {
            self.queue.insert(task.lane(), task.rank(id));
        } else {
            self.delayed.insert((at, id));
        }
        Ok(changes)
    }

    /// Nobody wants it any more; its children end with it.
    ///
    /// # Errors
    /// [`Impossible::NotOpen`].
    pub fn cancel(
        &mut self,
        id: TaskId,
        cause: String,
        now: Now,
    ) -> Result<Vec<Change>, Impossible> {
        if !self.tasks.get(&id).is_some_and(|task| task.committed) {
            return Err(Impossible::NotOpen(id));
        }
        let mut changes = Vec::new();
        self.finish(id, State::Cancelled, cause, now, &mut changes);
        Ok(changes)
    }

    /// Ends a back-off early.
    ///
    /// # Errors
    /// [`Impossible`] when the task is not waiting for another attempt.
    pub fn hurry(&mut self, id: TaskId, now: Now) -> Result<Change, Impossible> {
        let task = self.tasks.get_mut(&id).ok_or(Impossible::NotOpen(id))?;
        let Some(at) = task
            .not_before_boot_ms
            .filter(|at| self.delayed.contains(&(*at, id)))
        else {
            return Err(Impossible::State {
                task: id,
                state: task.state,
            });
        };
        self.delayed.remove(&(at, id));
        task.not_before_boot_ms = None;
        self.queue.insert(task.lane(), task.rank(id));
        Ok(task.change(id, State::Queued, "its pause was cut short".to_owned(), now))
    }

    // -------------------------------------------------------------------------------------------- time

    /// When [`Self::tick`] has something to do, on the boot clock.
    pub fn wake_at(&self) -> Option<u64> {
        let first = |set: &BTreeSet<(u64, TaskId)>| set.first().map(|(at, _)| *at);
        [first(&self.deadlines), first(&self.delayed)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Ends what is past its deadline and lets go on what has paused long enough.
    pub fn tick(&mut self, now: Now) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now.boot_ms
        {
            self.deadlines.pop_first();
            let cause = "its deadline has passed".to_owned();
            self.finish(id, State::TimedOut, cause, now, &mut changes);
        }
        while let Some(&(at, id)) = self.delayed.first()
            && at <= now.boot_ms
        {
            self.delayed.pop_first();
            if let Some(task) = self.tasks.get_mut(&id) {
                task.not_before_boot_ms = None;
                self.queue.insert(task.lane(), task.rank(id));
            }
        }
        changes
    }

    // -------------------------------------------------------------------------------------------- looking

    /// The state of an open task.
    pub fn state(&self, id: TaskId) -> Option<State> {
        self.tasks.get(&id).map(|task| task.state)
    }

    /// Whose it is, and who may do it.
    pub fn wanted(&self, id: TaskId) -> Option<(u32, &Target)> {
        let task = self.tasks.get(&id)?;
        Some((task.uid, &task.terms.target))
    }

    /// The attempt of a task, and who works on it.
    pub fn attempt(&self, id: TaskId) -> Option<(u32, Option<&Assignment>)> {
        let task = self.tasks.get(&id)?;
        Some((task.attempt, task.agent.as_ref()))
    }

    /// Levels of delegation above an open task.
    pub fn depth(&self, id: TaskId) -> Option<u32> {
        self.tasks.get(&id).map(|task| task.depth)
    }

    /// When an open task is out of time, on the boot clock.
    pub fn deadline_boot_ms(&self, id: TaskId) -> Option<u64> {
        self.tasks.get(&id)?.deadline_boot_ms
    }

    /// The attempts under way: task, attempt, whether the agent has begun, and who.
    pub fn under_way(&self) -> Vec<(TaskId, u32, State, Assignment)> {
        let under_way = self
            .tasks
            .iter()
            .filter(|(_, task)| task.state.is_under_way());
        under_way
            .filter_map(|(id, task)| Some((*id, task.attempt, task.state, task.agent.clone()?)))
            .collect()
    }

    /// Open tasks of a user, those included that the record is still taking.
    pub fn open_of(&self, uid: u32) -> usize {
        self.open_by_uid.get(&uid).copied().unwrap_or(0)
    }

    /// Open tasks of everybody.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether nothing is open.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Tasks that could be assigned at once.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether a queued task is where it will be found.
    #[cfg(test)]
    pub(super) fn is_placed(&self, id: TaskId) -> bool {
        let task = &self.tasks[&id];
        let delayed = task
            .not_before_boot_ms
            .is_some_and(|at| self.delayed.contains(&(at, id)));
        delayed != self.queue.contains(&task.lane(), task.rank(id))
    }

    // -------------------------------------------------------------------------------------------- inside

    fn insert(&mut self, id: TaskId, task: Task) {
        *self.open_by_uid.entry(task.uid).or_default() += 1;
        for dependency in &task.open_dependencies {
            self.dependants.entry(*dependency).or_default().insert(id);
        }
        if let Some(parent) = task.parent {
            self.children.entry(parent).or_default().insert(id);
        }
        let replaced = self.tasks.insert(id, task);
        debug_assert!(replaced.is_none(), "task ids are never used twice");
    }

    fn remove(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        self.queue.remove(&task.lane(), task.rank(id));
        if let Some(at) = task.deadline_boot_ms {
            self.deadlines.remove(&(at, id));
        }
        if let Some(at) = task.not_before_boot_ms {
            self.delayed.remove(&(at, id));
        }
        for dependency in &task.open_dependencies {
            forget(&mut self.dependants, dependency, id);
        }
        if let Some(parent) = task.parent {
            forget(&mut self.children, &parent, id);
        }
        if let Some(open) = self.open_by_uid.get_mut(&task.uid) {
            *open -= 1;
            if *open == 0 {
                self.open_by_uid.remove(&task.uid);
            }
        }
        Some(task)
    }

    /// Ends a task, and with it its children and, unless it succeeded, its dependants, theirs, and so on.
    fn finish(
        &mut self,
        id: TaskId,
        to: State,
        cause: String,
        now: Now,
        changes: &mut Vec<Change>,
    ) {
        // A list and not recursion: a chain of dependants may be as long as a user may have tasks.
        let mut ends = VecDeque::from([(id, to, cause)]);
        while let Some((id, to, cause)) = ends.pop_front() {
            match self.tasks.get_mut(&id) {
                None => continue,
                Some(task) if !task.committed => {
                    task.doom.get_or_insert((to, cause));
                    continue;
                }
                Some(_) => {}
            }
            let Some(mut task) = self.remove(id) else {
                continue;
            };
            let from = std::mem::replace(&mut task.state, to);
            task.not_before_boot_ms = None;
            changes.push(task.change(id, from, cause, now));
            for child in self.children.remove(&id).unwrap_or_default() {
                let cause = format!("task {id}, which delegated it, has {}", word(to));
                ends.push_back((child, State::Cancelled, cause));
            }
            for dependant in self.dependants.remove(&id).unwrap_or_default() {
                let Some(task) = self.tasks.get_mut(&dependant) else {
                    continue;
                };
                task.open_dependencies.remove(&id);
                if to != State::Succeeded {
                    let (to, cause) = end_by_dependency(&task.terms, id, to);
                    ends.push_back((dependant, to, cause));
                } else if task.committed && task.open_dependencies.is_empty() {
                    self.take_part(dependant, now, changes);
                }
            }
        }
    }
}

impl Task {
    fn lane(&self) -> (u32, Target) {
        (self.uid, self.terms.target.clone())
    }

    fn rank(&self, id: TaskId) -> Rank {
        Rank::new(self.terms.priority, self.queued_boot_ms, id)
    }

    fn change(&self, id: TaskId, from: State, cause: String, now: Now) -> Change {
        Change {
            task: id,
            uid: self.uid,
            from,
            to: self.state,
            attempt: self.attempt,
            cause,
            at_ms: now.wall_ms,
            agent: self.agent.clone(),
            not_before_boot_ms: self.not_before_boot_ms,
        }
    }
}

fn forget(sets: &mut BTreeMap<TaskId, BTreeSet<TaskId>>, key: &TaskId, id: TaskId) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&id);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

/// What becomes of a task when `dependency` ended as `state`.
fn end_by_dependency(terms: &Terms, dependency: TaskId, state: State) -> (State, String) {
    let what = format!(
        "task {dependency}, on which it depends, has {}",
        word(state)
    );
    match terms.on_dependency_failure {
        OnDependencyFailure::Fail => (State::Failed, what),
        OnDependencyFailure::Skip => (State::Cancelled, format!("skipped: {what}")),
    }
}

/// A final state as the end of "it has …".
fn word(state: State) -> &'static str {
    match state {
        State::Succeeded => "succeeded",
        State::Failed => "failed",
        State::Cancelled => "been cancelled",
        State::TimedOut => "timed out",
        State::Submitted | State::Waiting | State::Queued | State::Assigned | State::Running => {
            "not ended"
        }
    }
}

fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}
