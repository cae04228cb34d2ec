//! Tasks in the daemon: a queue that survives the daemon, and a scheduler that gives work to driven agents.
//!
//! The rules are in `agentd_orchestrator::task`; here they meet the clock ([`clock`]), the record ([`journal`]) and the
//! agents ([`fleet`]). [`Tasks`] is the handle that everybody else holds: the D-Bus objects, the tools of agents, and
//! the conversations, for which it is the [`TaskSink`]. It runs on the daemon's runtime, unprivileged. A submission is
//! acknowledged after COMMIT and not before; every other step goes on record before anything follows from it.
//!
//! Start reading at [`scheduler`].

mod clock;
pub mod delegate;
pub mod fleet;
mod journal;
mod scheduler;
mod submission;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use agentd_api::tasks::{TaskEvent, TaskReply, TaskSpec, is_final};
use agentd_api::{AgentId, Error};
use agentd_orchestrator::driver::{TurnId, TurnOutcome};
use agentd_orchestrator::task::{
    Book, Impossible, Limits, Refused, Restored, State, TaskId, Terms,
};
use agentd_storage::{OpenTask, Store, TaskSummary, Viewer};
use anyhow::Context as _;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use self::clock::{BootTimer, Clock};
use self::scheduler::{Msg, NotSubmitted, Parts, Scheduler, Submitted, terms_text};
use self::submission::Prepared;
use crate::agents::{Caller, Registry};
use crate::driver::{NotBegun, OpenWork, Recording, TaskSink};

pub use delegate::Delegation;
pub use fleet::{Fleet, FleetChanged, Lease, NotNow, RunningAgents, Wanted};

/// Events that a slow watcher may be behind before it has to look at the list again.
const EVENTS: usize = 4096;

/// The tasks of this daemon. Clones share it.
#[derive(Clone, Debug)]
pub struct Tasks {
    mailbox: mpsc::UnboundedSender<Msg>,
    store: Store,
    events: broadcast::Sender<TaskEvent>,
}

impl Tasks {
    /// Reads the open tasks and starts the scheduler. Nothing is given to any agent before [`Self::serve`].
    ///
    /// # Errors
    /// When the record can't be read, or the kernel has no boot clock.
    pub async fn start(
        store: Store,
        agents: Arc<Registry>,
        changed: FleetChanged,
    ) -> anyhow::Result<Self> {
        let clock = Clock::new().context("cannot learn the boot id")?;
        let timer = BootTimer::new().context("cannot make a timer on the boot clock")?;
        let now = clock.now();
        let open = store.open_tasks().await?;
        let mut turns = Vec::new();
        let mut restored = Vec::with_capacity(open.len());
        for task in open {
            let turn = task.turn;
            let task = restore(task, &clock, now)?;
            if let Some(turn) = turn {
                turns.push((task.id, task.attempt, TurnId(turn)));
            }
            restored.push(task);
        }
        let mut book = Book::new(Limits::default());
        let missed = book.restore(restored, now);

        let (mailbox, messages) = mpsc::unbounded_channel();
        let (journal, entries) = mpsc::unbounded_channel();
        let (trouble, watching) = watch::channel(None);
        let events = broadcast::Sender::new(EVENTS);
        tokio::spawn(journal::run(store.clone(), entries, trouble));
        let scheduler = Scheduler::new(Parts {
            book,
            clock,
            store: store.clone(),
            journal,
            mailbox: mailbox.downgrade(),
            events: events.clone(),
            trouble: watching,
            agents,
            changed,
            turns,
            missed,
        });
        tokio::spawn(scheduler.run(messages, timer));
        Ok(Self {
            mailbox,
            store,
            events,
        })
    }

    /// Adoption is over: attempts whose agents are gone end, and from now on agents of `fleet` are given work.
    pub async fn serve(&self, fleet: Arc<dyn Fleet>) {
        self.ask(|reply| Msg::Serve { fleet, reply }).await;
    }

    /// The daemon is ending: no task is given to an agent that is about to be stopped.
    pub fn rest(&self) {
        if self.mailbox.send(Msg::Rest).is_err() {
            tracing::debug!("the scheduler has ended already");
        }
    }

    /// Follows every transition of every user; filter by uid before telling anybody.
    pub fn watch(&self) -> broadcast::Receiver<TaskEvent> {
        self.events.subscribe()
    }

    /// Takes one task for `caller`. Returns after it is on the disk.
    ///
    /// # Errors
    /// What is wrong with it, or why it can't be taken now.
    pub async fn submit(&self, caller: Caller, spec: TaskSpec) -> Result<TaskReply, Error> {
        let mut outcomes = self.submit_many(caller, vec![spec]).await;
        outcomes
            .pop()
            .unwrap_or_else(|| Err(Error::Internal("the scheduler gave no answer".into())))
    }

    /// Takes many tasks, each by itself; their order is kept.
    pub async fn submit_many(
        &self,
        caller: Caller,
        specs: Vec<TaskSpec>,
    ) -> Vec<Result<TaskReply, Error>> {
        let by = format!("uid {}", caller.uid);
        let mut prepared = Vec::with_capacity(specs.len());
        for spec in specs {
            prepared.push(self.prepare(caller.uid, by.clone(), spec).await);
        }
        self.submit_prepared(prepared).await
    }

    /// A well-formed submission, with what the record knows of its dependencies.
    async fn prepare(&self, uid: u32, by: String, mut spec: TaskSpec) -> Result<Prepared, Error> {
        let viewer = Viewer::Uid(uid);
        let mut known = Vec::new();
        if let Some(after) = spec.after.as_mut().filter(|after| !after.is_empty()) {
            for typed in after.iter_mut() {
                *typed = self.resolve(viewer, typed).await?.to_string();
            }
            known = self.known_states(uid, after).await?;
        }
        let (text, terms, request_id) = submission::parse(spec)?;
        Ok(Prepared {
            uid,
            by,
            text,
            terms,
            request_id,
            parent: None,
            retry_of: None,
            known,
        })
    }

    /// What the record says of these tasks of `uid`.
    async fn known_states(&self, uid: u32, ids: &[String]) -> Result<Vec<(TaskId, State)>, Error> {
        let states = self.store.task_states(uid, ids).await.map_err(internal)?;
        let known = states.into_iter();
        known
            .map(|(id, state)| Ok((parse_id(&id)?, state.parse().map_err(internal)?)))
            .collect()
    }

    async fn submit_prepared(
        &self,
        prepared: Vec<Result<Prepared, Error>>,
    ) -> Vec<Result<TaskReply, Error>> {
        let mut outcomes = Vec::with_capacity(prepared.len());
        let mut good = Vec::with_capacity(prepared.len());
        for one in prepared {
            match one {
                Ok(one) => {
                    outcomes.push(None);
                    good.push(one);
                }
                Err(error) => outcomes.push(Some(Err(error))),
            }
        }
        let requests: Vec<Option<Prepared>> = good
            .iter()
            .map(|one| {
                let may_come_again = one.request_id.is_some() || !one.known.is_empty();
                may_come_again.then(|| one.clone())
            })
            .collect();
        let taken = if good.is_empty() {
            Vec::new()
        } else {
            let answered = self.try_ask(|reply| Msg::Submit {
                prepared: good,
                reply,
            });
            answered.await.unwrap_or_default()
        };
        let mut taken = taken.into_iter().zip(requests);
        let mut filled = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            filled.push(match outcome {
                Some(error) => error,
                None => match taken.next() {
                    Some((submitted, request)) => self.public(submitted, request).await,
                    None => Err(Error::Unavailable("agentd is ending".into())),
                },
            });
        }
        filled
    }

    /// The answer to a submission. One that was refused may be the repetition of one that was not: then it is that.
    async fn public(
        &self,
        submitted: Submitted,
        request: Option<Prepared>,
    ) -> Result<TaskReply, Error> {
        let error = match submitted {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        if let (NotSubmitted::Refused(_), Some(again)) = (&error, &request)
            && let Some(request_id) = &again.request_id
        {
            let terms = terms_text(&again.terms);
            let parent = again.parent.map(|id| id.to_string());
            let content = (again.text.as_str(), terms.as_str(), parent.as_deref());
            let earlier = self
                .store
                .task_of_request(again.uid, request_id, content)
                .await
                .map_err(internal)?;
            if let Some((id, true)) = earlier {
                return Ok(TaskReply { id, new: false });
            }
        }
        if let (NotSubmitted::Refused(Refused::NoSuchDependency(id)), Some(mut again)) =
            (&error, request)
            && again
                .known
                .iter()
                .any(|(it, state)| it == id && !state.is_final())
        {
            // It ended between our look at the record and the scheduler's at its book: look again.
            self.try_ask(|reply| Msg::Settle { reply }).await?;
            let ids: Vec<String> = again.terms.after.iter().map(TaskId::to_string).collect();
            again.known = self.known_states(again.uid, &ids).await?;
            let mut outcomes = Box::pin(self.submit_prepared(vec![Ok(again)])).await;
            return outcomes.pop().unwrap_or_else(|| Err(no_answer()));
        }
        let text = error.to_string();
        Err(match error {
            NotSubmitted::Conflict { .. } => Error::Exists(text),
            NotSubmitted::Refused(refused) => {
                use Refused as R;
                match refused {
                    R::NoSuchDependency(_) | R::NoSuchParent(_) => Error::NotFound(text),
                    R::TooManyDependencies { .. } | R::DeadlinePassed => {
                        Error::InvalidArgument(text)
                    }
                    R::Cycle { .. } | R::TooDeep { .. } => Error::Denied(text),
                    _ => Error::Unavailable(text),
                }
            }
            NotSubmitted::Record(_) => Error::Unavailable(text),
        })
    }

    /// The one task of the viewer that `typed` means.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::InvalidArgument`] when it could be several.
    pub async fn resolve(&self, viewer: Viewer, typed: &str) -> Result<TaskId, Error> {
        let found = match typed.parse::<TaskId>() {
            Ok(id) => {
                let there = self.store.task_summary(viewer, &id.to_string()).await;
                there
                    .map_err(internal)?
                    .map(|it| it.id)
                    .into_iter()
                    .collect()
            }
            Err(_) => self
                .store
                .find_tasks(viewer, typed)
                .await
                .map_err(internal)?,
        };
        match found.as_slice() {
            [id] => parse_id(id),
            [] => Err(Error::NotFound(format!(
                "no task is called `{}`; `agentctl tasks list --all` shows them",
                typed.escape_debug()
            ))),
            _ => Err(Error::InvalidArgument(format!(
                "`{}` could be one of several tasks; type more of the id",
                typed.escape_debug()
            ))),
        }
    }

    /// Ends a task and its children for `caller`.
    ///
    /// # Errors
    /// When there is no such task, or it has ended.
    pub async fn cancel(&self, caller: Caller, id: TaskId, by: &str) -> Result<(), Error> {
        let cause = format!("cancelled by {by}");
        let cancelled = self
            .try_ask(|reply| Msg::Cancel {
                caller,
                id,
                cause,
                reply,
            })
            .await?;
        match cancelled {
            Ok(()) => Ok(()),
            Err(error) => Err(self.why_not(caller, id, error).await),
        }
    }

    /// Does the work of an ended task again, or ends the pause of one that waits for its next attempt.
    ///
    /// # Errors
    /// When there is no such task, or it is open and does not pause.
    pub async fn retry(&self, caller: Caller, id: TaskId) -> Result<TaskReply, Error> {
        let hurried = self
            .try_ask(|reply| Msg::Hurry { caller, id, reply })
            .await?;
        match hurried {
            Ok(()) => {
                return Ok(TaskReply {
                    id: id.to_string(),
                    new: false,
                });
            }
            Err(Impossible::NotOpen(_)) => {}
            Err(error @ Impossible::State { .. }) => {
                return Err(Error::Unavailable(format!(
                    "{error}; only a task that has ended, or that pauses between attempts, can be tried again"
                )));
            }
        }
        let viewer = Viewer::from_uid(caller.uid);
        let old = self.summary(viewer, id).await?;
        let terms = Terms {
            // A moment that has passed would refuse it, and what it waited for has ended.
            deadline: None,
            after: Vec::new(),
            ..serde_json::from_value(old.terms).map_err(internal)?
        };
        let again = Prepared {
            uid: old.uid,
            by: format!("uid {}", caller.uid),
            text: old.text,
            terms,
            request_id: None,
            parent: None,
            retry_of: Some(id),
            known: Vec::new(),
        };
        let mut outcomes = self.submit_prepared(vec![Ok(again)]).await;
        outcomes
            .pop()
            .unwrap_or_else(|| Err(Error::Internal("the scheduler gave no answer".into())))
    }

    /// Returns when the task has ended.
    ///
    /// # Errors
    /// When there is no such task.
    pub async fn wait(&self, viewer: Viewer, id: TaskId) -> Result<TaskSummary, Error> {
        let text = id.to_string();
        loop {
            // Subscribed before the look, so that no end falls between the two.
            let mut events = self.watch();
            let now = self.summary(viewer, id).await?;
            if is_final(&now.state) {
                return Ok(now);
            }
            loop {
                match events.recv().await {
                    Ok(event) if event.id == text && event.is_end() => break,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => break,
                    Err(broadcast::error::RecvError::Closed) => {
                        return Err(Error::Unavailable("agentd is ending".into()));
                    }
                }
            }
        }
    }

    /// Everything about a task as a JSON document, with why it waits while it does.
    ///
    /// # Errors
    /// When there is no such task.
    pub async fn document(&self, viewer: Viewer, id: TaskId) -> Result<String, Error> {
        let record = self.store.task(viewer, &id.to_string()).await;
        let record = record.map_err(internal)?.ok_or_else(|| not_found(id))?;
        let mut document = serde_json::to_value(&record).map_err(internal)?;
        let why = self.try_ask(|reply| Msg::Why { id, reply }).await?;
        document["waits_because"] = why.into();
        Ok(document.to_string())
    }

    /// One line about a task.
    ///
    /// # Errors
    /// When there is no such task.
    pub async fn summary(&self, viewer: Viewer, id: TaskId) -> Result<TaskSummary, Error> {
        let summary = self.store.task_summary(viewer, &id.to_string()).await;
        summary.map_err(internal)?.ok_or_else(|| not_found(id))
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    async fn why_not(&self, caller: Caller, id: TaskId, error: Impossible) -> Error {
        match self.summary(Viewer::from_uid(caller.uid), id).await {
            Ok(task) if is_final(&task.state) => Error::Unavailable(format!(
                "task {id} has ended already: {}; `agentctl tasks show {id}` shows how",
                task.state
            )),
            Ok(_) => Error::Unavailable(error.to_string()),
            Err(error) => error,
        }
    }

    async fn try_ask<T>(&self, msg: impl FnOnce(oneshot::Sender<T>) -> Msg) -> Result<T, Error> {
        self.ask(msg)
            .await
            .ok_or_else(|| Error::Unavailable("agentd is ending".into()))
    }

    /// The scheduler's answer; `None` when it has ended.
    async fn ask<T>(&self, msg: impl FnOnce(oneshot::Sender<T>) -> Msg) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(msg(reply)).ok()?;
        answer.await.ok()
    }
}

impl TaskSink for Tasks {
    fn begun(
        &self,
        launch: AgentId,
        task: TaskId,
        attempt: u32,
        turn: TurnId,
    ) -> Recording<'_, Result<(), NotBegun>> {
        Box::pin(async move {
            let answered = self.ask(|reply| Msg::Begun {
                launch,
                task,
                attempt,
                turn,
                reply,
            });
            let ending = || Err(NotBegun("agentd is ending".to_owned()));
            answered.await.unwrap_or_else(ending)
        })
    }

    fn ended(&self, task: TaskId, attempt: u32, outcome: TurnOutcome) -> Recording<'_, ()> {
        Box::pin(async move {
            let answered = self.ask(|reply| Msg::Ended {
                task,
                attempt,
                outcome,
                reply,
            });
            if answered.await.is_none() {
                tracing::error!(%task, "the end of attempt {attempt} is not on record: agentd is ending");
            }
        })
    }

    fn resume(&self, launch: AgentId, written: TurnId) -> Recording<'_, Option<OpenWork>> {
        Box::pin(async move {
            self.ask(|reply| Msg::Resume {
                launch,
                written,
                reply,
            })
            .await
            .flatten()
        })
    }
}

fn restore(
    task: OpenTask,
    clock: &Clock,
    now: agentd_orchestrator::task::Now,
) -> anyhow::Result<Restored> {
    let what = || format!("task {} on record", task.id);
    let positive = |ms: i64| u64::try_from(ms).unwrap_or(0);
    let dependencies = task
        .dependencies
        .iter()
        .map(|(id, state)| Ok((id.parse()?, state.parse()?)));
    let agent = match (&task.launch, &task.agent) {
        (Some(launch), Some(agent)) => Some(agentd_orchestrator::task::Assignment {
            launch: launch.clone(),
            agent: agent.clone(),
        }),
        _ => None,
    };
    Ok(Restored {
        id: task.id.parse().with_context(what)?,
        uid: task.uid,
        terms: serde_json::from_str(&task.terms).with_context(what)?,
        parent: task
            .parent
            .as_ref()
            .map(|id| id.parse())
            .transpose()
            .with_context(what)?,
        depth: task.depth,
        state: task.state.parse().with_context(what)?,
        attempt: task.attempt,
        agent,
        queued_boot_ms: clock.recall(&task.submitted, now),
        deadline_boot_ms: task
            .deadline
            .as_ref()
            .map(|at| positive(clock.recall(at, now))),
        not_before_boot_ms: task
            .not_before
            .as_ref()
            .map(|at| positive(clock.recall(at, now))),
        dependencies: dependencies
            .collect::<anyhow::Result<_>>()
            .with_context(what)?,
    })
}

fn parse_id(text: &str) -> Result<TaskId, Error> {
    text.parse().map_err(internal)
}

fn no_answer() -> Error {
    Error::Internal("the scheduler gave no answer".into())
}

fn not_found(id: TaskId) -> Error {
    Error::NotFound(format!(
        "there is no task {id}; `agentctl tasks list --all` shows them"
    ))
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::Internal(error.to_string())
}
