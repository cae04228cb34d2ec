//! The scheduler: one task that owns the [`Book`], so that every decision about tasks has a place in one order.
//!
//! It takes messages (submissions, the sink's words, deaths of agents), lets the book decide, and hands what follows
//! to the [`journal`]; work is given, turns are interrupted and callers are answered only when the journal has it on
//! the disk. It never waits for the record, an agent or a client. Agents are leased from the [`Fleet`]; a lease lasts
//! until the turn is really over, so an agent that was interrupted gets nothing new before it has stopped.
//!
//! Its channels have no bound of their own: each sender waits for its answer, and connections, conversations and open
//! tasks are bounded.

mod told;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use agentd_api::AgentId;
use agentd_api::tasks::{TaskEvent, TaskReply};
use agentd_orchestrator::driver::{TurnId, TurnOutcome};
use agentd_orchestrator::task::{
    Assignment, AttemptEnd, Book, Change, Impossible, Now, Refused, Stale, State, Submission,
    Target, TaskId,
};
use agentd_storage::{Event, Fact, NewTask, Store, TaskChange, TaskTaken, Viewer};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub use self::told::terms_text;
use self::told::{Extras, answer, end_of, event_of, jitter, send};
use super::clock::{BootTimer, Clock};
use super::fleet::{Fleet, FleetChanged, Lease, NotNow};
use super::journal::{Entry, Then};
use super::submission::Prepared;
use crate::agents::{Agent, Caller, Registry};
use crate::driver::{NotBegun, OpenWork, Work};

/// Messages taken before agents are looked for again.
const ROUND: usize = 256;

/// What became of one submission.
pub type Submitted = Result<TaskReply, NotSubmitted>;

/// Why a task was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotSubmitted {
    #[error("{0}")]
    Refused(#[from] Refused),
    /// Its request id belongs to another task.
    #[error(
        "request id {request_id} was used for another task, {id}; choose another one, or submit the same again"
    )]
    Conflict { request_id: String, id: String },
    #[error("the task can't be put on record: {0}")]
    Record(String),
}

/// What the scheduler is told.
pub enum Msg {
    Submit {
        prepared: Vec<Prepared>,
        reply: oneshot::Sender<Vec<Submitted>>,
    },
    /// The record took these, and did not take those.
    Recorded {
        taken: Vec<TaskId>,
        not: Vec<TaskId>,
    },
    Cancel {
        caller: Caller,
        id: TaskId,
        cause: String,
        reply: oneshot::Sender<Result<(), Impossible>>,
    },
    Hurry {
        caller: Caller,
        id: TaskId,
        reply: oneshot::Sender<Result<(), Impossible>>,
    },
    Begun {
        launch: AgentId,
        task: TaskId,
        attempt: u32,
        turn: TurnId,
        reply: oneshot::Sender<Result<(), NotBegun>>,
    },
    Ended {
        task: TaskId,
        attempt: u32,
        outcome: TurnOutcome,
        reply: oneshot::Sender<()>,
    },
    Resume {
        launch: AgentId,
        written: TurnId,
        reply: oneshot::Sender<Option<OpenWork>>,
    },
    AgentGone {
        task: TaskId,
        attempt: u32,
        why: String,
    },
    /// An assignment is on the disk: the work is to be read and given.
    Give { task: TaskId, attempt: u32 },
    Deliver {
        task: TaskId,
        attempt: u32,
        text: String,
    },
    /// Adoption is over, and these agents are to be used.
    Serve {
        fleet: Arc<dyn Fleet>,
        reply: oneshot::Sender<()>,
    },
    /// Answered once everything decided so far is on the disk.
    Settle { reply: oneshot::Sender<()> },
    /// The agents are about to be stopped: nothing more is given to any.
    Rest,
    /// The task that a launch works on.
    TaskOf {
        launch: AgentId,
        reply: oneshot::Sender<Option<TaskId>>,
    },
    /// Why an open task waits.
    Why {
        id: TaskId,
        reply: oneshot::Sender<Option<String>>,
    },
}

/// An attempt under way.
struct Held {
    /// Missing after a restart, until the agent is found again.
    lease: Option<Lease>,
    cancel: CancellationToken,
    /// The turn of its agent, once it began.
    turn: Option<TurnId>,
    /// Waits for the agent's death.
    watcher: Option<AbortOnDropHandle<()>>,
}

pub struct Scheduler {
    book: Book,
    clock: Clock,
    store: Store,
    journal: mpsc::UnboundedSender<Entry>,
    /// To ourselves, from tasks that outlive a round. Weak, so that the last handle ends us.
    mailbox: mpsc::WeakUnboundedSender<Msg>,
    events: broadcast::Sender<TaskEvent>,
    trouble: watch::Receiver<Option<String>>,
    agents: Arc<Registry>,
    fleet: Option<Arc<dyn Fleet>>,
    changed: FleetChanged,
    held: HashMap<(TaskId, u32), Held>,
    /// Why the first of each lane waits.
    reasons: BTreeMap<(u32, Target), String>,
}

/// What a scheduler is made of.
pub struct Parts {
    pub book: Book,
    pub clock: Clock,
    pub store: Store,
    pub journal: mpsc::UnboundedSender<Entry>,
    pub mailbox: mpsc::WeakUnboundedSender<Msg>,
    pub events: broadcast::Sender<TaskEvent>,
    pub trouble: watch::Receiver<Option<String>>,
    pub agents: Arc<Registry>,
    pub changed: FleetChanged,
    /// Turns of the attempts under way, by the record.
    pub turns: Vec<(TaskId, u32, TurnId)>,
    /// What followed from reading the record.
    pub missed: Vec<Change>,
}

impl Scheduler {
    pub fn new(parts: Parts) -> Self {
        let mut held = HashMap::new();
        for (task, attempt, ..) in parts.book.under_way() {
            let turn = parts
                .turns
                .iter()
                .find(|(id, n, _)| (*id, *n) == (task, attempt))
                .map(|(_, _, turn)| *turn);
            let open = Held {
                lease: None,
                cancel: CancellationToken::new(),
                turn,
                watcher: None,
            };
            held.insert((task, attempt), open);
        }
        let mut scheduler = Self {
            book: parts.book,
            clock: parts.clock,
            store: parts.store,
            journal: parts.journal,
            mailbox: parts.mailbox,
            events: parts.events,
            trouble: parts.trouble,
            agents: parts.agents,
            fleet: None,
            changed: parts.changed,
            held,
            reasons: BTreeMap::new(),
        };
        scheduler.write(parts.missed, Extras::default());
        scheduler
    }

    /// Runs until every handle is gone.
    pub async fn run(mut self, mut mailbox: mpsc::UnboundedReceiver<Msg>, mut timer: BootTimer) {
        let mut round = Vec::with_capacity(ROUND);
        let changed = Arc::clone(&self.changed.0);
        loop {
            let wake_at = self.book.wake_at();
            tokio::select! {
                taken = mailbox.recv_many(&mut round, ROUND) => {
                    if taken == 0 {
                        return;
                    }
                    for msg in round.drain(..) {
                        self.take(msg);
                    }
                }
                () = changed.notified() => {}
                () = timer.reached(wake_at) => {}
            }
            let ended = self.book.tick(self.clock.now());
            self.write(ended, Extras::default());
            self.dispatch();
        }
    }

    fn take(&mut self, msg: Msg) {
        match msg {
            Msg::Submit { prepared, reply } => self.submit(prepared, reply),
            Msg::Recorded { taken, not } => {
                let now = self.clock.now();
                for id in taken {
                    let changes = self.book.commit(id, now);
                    self.write(changes, Extras::default());
                }
                for id in not {
                    self.book.discard(id);
                }
            }
            Msg::Cancel {
                caller,
                id,
                cause,
                reply,
            } => self.cancel(caller, id, cause, reply),
            Msg::Hurry { caller, id, reply } => {
                let changed = self
                    .owned(caller, id)
                    .and_then(|()| self.book.hurry(id, self.clock.now()));
                match changed {
                    Ok(change) => self.write(vec![change], Extras::then(answer(reply, Ok(())))),
                    Err(error) => answer(reply, Err(error))(),
                }
            }
            Msg::Begun {
                launch,
                task,
                attempt,
                turn,
                reply,
            } => self.begun(launch, task, attempt, turn, reply),
            Msg::Ended {
                task,
                attempt,
                outcome,
                reply,
            } => {
                let (end, said) = end_of(outcome);
                let mut extras = Extras::then(answer(reply, ()));
                match &end {
                    AttemptEnd::Done => extras.result = Some(said),
                    AttemptEnd::Failed { .. } | AttemptEnd::AgentGone { .. } => {
                        extras.error = Some(said);
                    }
                }
                self.end(task, attempt, end, extras);
            }
            Msg::AgentGone { task, attempt, why } => {
                let extras = Extras {
                    error: Some(why.clone()),
                    ..Extras::default()
                };
                self.end(task, attempt, AttemptEnd::AgentGone { why }, extras);
            }
            Msg::Resume {
                launch,
                written,
                reply,
            } => {
                let open = self.resume(launch, written);
                answer(reply, open)();
            }
            Msg::Give { task, attempt } => self.give(task, attempt),
            Msg::Deliver {
                task,
                attempt,
                text,
            } => self.deliver(task, attempt, text),
            Msg::Serve { fleet, reply } => {
                self.fleet = Some(fleet);
                self.reconcile();
                answer(reply, ())();
            }
            Msg::Settle { reply } => self.write(Vec::new(), Extras::then(answer(reply, ()))),
            Msg::Rest => self.fleet = None,
            Msg::TaskOf { launch, reply } => {
                let launch = launch.to_string();
                let under_way = self.book.under_way().into_iter();
                let found = under_way
                    .filter(|(.., state, holder)| {
                        *state == State::Running && holder.launch == launch
                    })
                    .map(|(id, ..)| id)
                    .next();
                answer(reply, found)();
            }
            Msg::Why { id, reply } => {
                let why = self.book.wanted(id).and_then(|(uid, target)| {
                    let queued = self.book.state(id) == Some(State::Queued);
                    let lane = (uid, target.clone());
                    self.reasons.get(&lane).filter(|_| queued).cloned()
                });
                answer(reply, why)();
            }
        }
    }

    // ---------------------------------------------------------------------------------------- submitting

    fn submit(&mut self, prepared: Vec<Prepared>, reply: oneshot::Sender<Vec<Submitted>>) {
        let now = self.clock.now();
        let mut results: Vec<Option<Submitted>> = Vec::with_capacity(prepared.len());
        let mut new = Vec::with_capacity(prepared.len());
        let mut events = Vec::with_capacity(prepared.len());
        let trouble = self.trouble.borrow().clone();
        for task in prepared {
            if let Some(why) = &trouble {
                results.push(Some(Err(NotSubmitted::Record(why.clone()))));
                continue;
            }
            let id = TaskId(Uuid::now_v7());
            let submission = Submission {
                id,
                uid: task.uid,
                terms: task.terms.clone(),
                parent: task.parent,
            };
            match self.book.submit(submission, &task.known, now) {
                Ok(change) => {
                    new.push(self.new_task(id, task, &change, now));
                    events.push((id, event_of(&change)));
                    results.push(None);
                }
                Err(refused) => results.push(Some(Err(refused.into()))),
            }
        }
        if new.is_empty() {
            let refused = results.into_iter().flatten().collect();
            return answer(reply, refused)();
        }
        let requests: Vec<Option<String>> = new.iter().map(|it| it.request_id.clone()).collect();
        let (mailbox, announce) = (self.mailbox.clone(), self.events.clone());
        let finish = Box::new(move |outcome: Result<Vec<TaskTaken>, String>| {
            let (mut taken, mut not) = (Vec::with_capacity(events.len()), Vec::new());
            let mut outcomes = match outcome {
                Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
                Err(why) => vec![Err(why); events.len()],
            }
            .into_iter();
            let mut rows = events.into_iter().zip(requests);
            let filled = results.into_iter().map(|result| {
                if let Some(refused) = result {
                    return refused;
                }
                let (Some(outcome), Some(((id, event), request))) = (outcomes.next(), rows.next())
                else {
                    return Err(NotSubmitted::Record("the record gave no answer".into()));
                };
                match outcome {
                    Ok(TaskTaken::New) => {
                        taken.push(id);
                        // Nobody watching is the normal case.
                        drop(announce.send(event));
                        Ok(TaskReply {
                            id: id.to_string(),
                            new: true,
                        })
                    }
                    Ok(TaskTaken::Same { id: same }) => {
                        not.push(id);
                        Ok(TaskReply {
                            id: same,
                            new: false,
                        })
                    }
                    Ok(TaskTaken::Conflict { id: other }) => {
                        not.push(id);
                        Err(NotSubmitted::Conflict {
                            request_id: request.unwrap_or_default(),
                            id: other,
                        })
                    }
                    Err(why) => {
                        not.push(id);
                        Err(NotSubmitted::Record(why))
                    }
                }
            });
            let filled = filled.collect();
            // Before the answer, so that whoever has an id can use it.
            send(&mailbox, Msg::Recorded { taken, not });
            answer(reply, filled)();
        });
        self.record(Entry::Submit { new, finish });
    }

    fn new_task(&self, id: TaskId, task: Prepared, change: &Change, now: Now) -> NewTask {
        let deadline = self.book.deadline_boot_ms(id);
        NewTask {
            id: id.to_string(),
            uid: task.uid,
            submitted_by: task.by,
            request_id: task.request_id,
            text: task.text,
            terms: terms_text(&task.terms),
            parent: task.parent.map(|id| id.to_string()),
            retry_of: task.retry_of.map(|id| id.to_string()),
            depth: self.book.depth(id).unwrap_or(0),
            after: task.terms.after.iter().map(TaskId::to_string).collect(),
            submitted: self.clock.moment(now.boot_ms, now),
            deadline: deadline.map(|at| self.clock.moment(at, now)),
            state: change.to.as_str().to_owned(),
            cause: change.cause.clone(),
        }
    }

    // ---------------------------------------------------------------------------------------- attempts

    /// Gives what waits to whoever is free.
    fn dispatch(&mut self) {
        let Some(fleet) = self.fleet.clone() else {
            return;
        };
        // An assignment that can't be put on record would be an agent that waits.
        if self.trouble.borrow().is_some() {
            return;
        }
        self.reasons.clear();
        loop {
            let mut given = false;
            for id in self.book.candidates() {
                let Some((uid, target)) = self.book.wanted(id) else {
                    continue;
                };
                let lane = (uid, target.clone());
                if self.reasons.contains_key(&lane) {
                    continue;
                }
                match fleet.lease(uid, &lane.1) {
                    Ok(lease) => {
                        self.assign(id, lease);
                        given = true;
                    }
                    Err(NotNow(why)) => {
                        self.reasons.insert(lane, why);
                    }
                }
            }
            if !given {
                return;
            }
        }
    }

    fn assign(&mut self, id: TaskId, lease: Lease) {
        let identity = &lease.agent.identity;
        let assignment = Assignment {
            launch: identity.id.to_string(),
            agent: identity.name.clone(),
        };
        match self.book.assign(id, assignment, self.clock.now()) {
            Ok(change) => {
                let attempt = change.attempt;
                let watcher = self.watch_agent(id, attempt, &lease.agent);
                let held = Held {
                    lease: Some(lease),
                    cancel: CancellationToken::new(),
                    turn: None,
                    watcher: Some(watcher),
                };
                self.held.insert((id, attempt), held);
                let give = self.tell_self(Msg::Give { task: id, attempt });
                self.write(vec![change], Extras::then(give));
            }
            Err(error) => tracing::error!("a candidate can't be assigned: {error}"),
        }
    }

    /// Reports the agent's death, as long as the attempt is held.
    fn watch_agent(&self, task: TaskId, attempt: u32, agent: &Arc<Agent>) -> AbortOnDropHandle<()> {
        let (agent, mailbox) = (Arc::clone(agent), self.mailbox.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let exit = agent.wait().await;
            // Its last line may hold the result, and may not have been read yet.
            if let Some(work) = agent.work() {
                work.closed().await;
            }
            let how = exit.text.unwrap_or_else(|| exit.cause.to_string());
            let why = format!("{} has ended: {how}", agent.identity.name);
            send(&mailbox, Msg::AgentGone { task, attempt, why });
        }))
    }

    /// Reads the text of an assigned task.
    fn give(&self, task: TaskId, attempt: u32) {
        let (store, mailbox) = (self.store.clone(), self.mailbox.clone());
        tokio::spawn(async move {
            let read = store.task_summary(Viewer::Root, &task.to_string()).await;
            let why = match read {
                Ok(Some(it)) => {
                    let text = it.text;
                    return send(
                        &mailbox,
                        Msg::Deliver {
                            task,
                            attempt,
                            text,
                        },
                    );
                }
                Ok(None) => "it is not on record any more".to_owned(),
                Err(error) => format!("its text can't be read: {error}"),
            };
            send(&mailbox, Msg::AgentGone { task, attempt, why });
        });
    }

    /// Gives an assigned task to its agent, unless somebody took it back meanwhile.
    fn deliver(&mut self, task: TaskId, attempt: u32, text: String) {
        let still = self.book.state(task) == Some(State::Assigned)
            && self.book.attempt(task).is_some_and(|(n, _)| n == attempt);
        let held = self.held.get(&(task, attempt));
        let work = held.map(|held| Work {
            task,
            attempt,
            text,
            cancel: held.cancel.clone(),
        });
        let lease = held.and_then(|held| held.lease.as_ref());
        match (still, work, lease) {
            (true, Some(work), Some(lease)) => {
                if !lease.work.give(work) {
                    let why = "it takes no work any more".to_owned();
                    self.take(Msg::AgentGone { task, attempt, why });
                }
            }
            (true, _, None) => {
                // Its agent is being adopted: it is given once the agent is there.
            }
            // It ended before it was given; nobody has it.
            _ => drop(self.held.remove(&(task, attempt))),
        }
    }

    fn begun(
        &mut self,
        launch: AgentId,
        task: TaskId,
        attempt: u32,
        turn: TurnId,
        reply: oneshot::Sender<Result<(), NotBegun>>,
    ) {
        match self.book.begin(task, attempt, self.clock.now()) {
            Ok(change) => {
                if let Some(held) = self.held.get_mut(&(task, attempt)) {
                    held.turn = Some(turn);
                }
                let text = format!("turn {} is attempt {attempt} of task {task}", turn.0);
                let extras = Extras {
                    turn: Some(turn.0),
                    events: vec![Event::now(launch.to_string(), Fact::Note { text })],
                    ..Extras::then(answer(reply, Ok(())))
                };
                self.write(vec![change], extras);
            }
            Err(stale) => answer(reply, Err(NotBegun(stale.to_string())))(),
        }
    }

    fn end(&mut self, task: TaskId, attempt: u32, end: AttemptEnd, extras: Extras) {
        // Whatever it means for the task: the agent is out of this turn.
        drop(self.held.remove(&(task, attempt)));
        let ended = self
            .book
            .end(task, attempt, end, jitter(), self.clock.now());
        match ended {
            Ok(changes) => self.write(changes, extras),
            Err(Stale { .. }) => {
                // The end that counted may still be on its way to the disk.
                let after = Extras {
                    result: None,
                    error: None,
                    ..extras
                };
                self.write(Vec::new(), after);
            }
        }
    }

    fn cancel(
        &mut self,
        caller: Caller,
        id: TaskId,
        cause: String,
        reply: oneshot::Sender<Result<(), Impossible>>,
    ) {
        let cancelled = self
            .owned(caller, id)
            .and_then(|()| self.book.cancel(id, cause, self.clock.now()));
        match cancelled {
            Ok(changes) => self.write(changes, Extras::then(answer(reply, Ok(())))),
            Err(error) => answer(reply, Err(error))(),
        }
    }

    /// What a caller may not touch is not there.
    fn owned(&self, caller: Caller, id: TaskId) -> Result<(), Impossible> {
        match self.book.wanted(id) {
            Some((uid, _)) if caller.may_touch(uid) => Ok(()),
            _ => Err(Impossible::NotOpen(id)),
        }
    }

    // ---------------------------------------------------------------------------------------- after a restart

    fn resume(&mut self, launch: AgentId, written: TurnId) -> Option<OpenWork> {
        let launch = launch.to_string();
        let (task, attempt, ..) = self
            .book
            .under_way()
            .into_iter()
            .find(|(.., state, holder)| *state == State::Running && holder.launch == launch)?;
        let held = self.held.get(&(task, attempt))?;
        let turn = held.turn?;
        if turn <= written {
            return Some(OpenWork {
                task,
                attempt,
                turn,
                cancel: held.cancel.clone(),
            });
        }
        match self.book.rewind(task, attempt, self.clock.now()) {
            Ok(change) => {
                let give = self.tell_self(Msg::Give { task, attempt });
                self.write(vec![change], Extras::then(give));
            }
            Err(stale) => tracing::error!("{stale}"),
        }
        None
    }

    /// Finds the agents of the attempts that were under way when the last agentd ended. Those that are gone cost an
    /// attempt; those that live get what they had not been given.
    fn reconcile(&mut self) {
        let root = Caller { uid: 0, gid: 0 };
        let agents = self.agents.visible(root);
        for (task, attempt, state, holder) in self.book.under_way() {
            let agent = agents
                .iter()
                .find(|it| it.identity.id.to_string() == holder.launch && it.state().is_live());
            let work = agent.and_then(|agent| agent.work()?.take_seat());
            let (Some(agent), Some(work)) = (agent, work) else {
                let why = format!("{} ended while agentd was away", holder.agent);
                self.take(Msg::AgentGone { task, attempt, why });
                continue;
            };
            let watcher = self.watch_agent(task, attempt, agent);
            if let Some(held) = self.held.get_mut(&(task, attempt)) {
                held.watcher = Some(watcher);
                held.lease = Some(Lease {
                    agent: Arc::clone(agent),
                    work,
                    held: None,
                });
            }
            if state == State::Assigned {
                self.give(task, attempt);
            }
        }
    }

    // ---------------------------------------------------------------------------------------- writing

    /// Hands transitions to the journal. What `extras` says belongs to the first of them.
    fn write(&mut self, changes: Vec<Change>, mut extras: Extras) {
        if changes.is_empty() && extras.then.is_empty() {
            return;
        }
        let now = self.clock.now();
        let mut rows = Vec::with_capacity(changes.len());
        let mut then: Vec<Then> = Vec::with_capacity(changes.len() + extras.then.len());
        for change in changes {
            let announce = self.events.clone();
            let event = event_of(&change);
            // Nobody watching is the normal case.
            then.push(Box::new(move || drop(announce.send(event))));
            if change.interrupts()
                && let Some(held) = self.held.get(&(change.task, change.attempt))
            {
                let cancel = held.cancel.clone();
                then.push(Box::new(move || cancel.cancel()));
            }
            let not_before = change.not_before_boot_ms;
            rows.push(TaskChange {
                task: change.task.to_string(),
                at_ms: change.at_ms,
                from: change.from.as_str().to_owned(),
                to: change.to.as_str().to_owned(),
                attempt: change.attempt,
                launch: change.agent.as_ref().map(|it| it.launch.clone()),
                agent: change.agent.map(|it| it.agent),
                turn: extras.turn.take(),
                cause: change.cause,
                not_before: not_before.map(|at| self.clock.moment(at, now)),
                result: extras.result.take(),
                error: extras.error.take(),
            });
        }
        then.append(&mut extras.then);
        self.record(Entry::Change {
            changes: rows,
            events: extras.events,
            then,
        });
    }

    fn record(&self, entry: Entry) {
        // The journal ends after us.
        if self.journal.send(entry).is_err() {
            tracing::error!("the journal of tasks has ended");
        }
    }

    fn tell_self(&self, msg: Msg) -> Then {
        let mailbox = self.mailbox.clone();
        Box::new(move || send(&mailbox, msg))
    }
}
