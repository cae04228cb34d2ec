//! The seam between tasks and driven agents: work goes in at an agent's [`WorkPort`], its end comes out of the
//! conversation through a [`TaskSink`].
//!
//! A conversation takes one piece of [`Work`] at a time, when it has no other turn. Before the turn is written to the
//! agent, [`TaskSink::begun`] has put on record which turn of which launch it is, so that an adopted conversation
//! knows whose turn it is in (see [`TaskSink::resume`]); [`TaskSink::ended`] returns after the outcome is on record.
//! Nothing here decides anything or outlives the agent.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use agentd_api::AgentId;
use agentd_orchestrator::driver::{TurnId, TurnOutcome};
use agentd_orchestrator::task::TaskId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// One attempt at a task, for one agent.
#[derive(Clone, Debug)]
pub struct Work {
    pub task: TaskId,
    /// The first is 1.
    pub attempt: u32,
    /// What to do, in the words of whoever submitted it.
    pub text: String,
    /// Nobody wants the result any more: the turn is to be interrupted.
    pub cancel: CancellationToken,
}

/// The work of a turn that was under way when an earlier agentd ended.
#[derive(Clone, Debug)]
pub struct OpenWork {
    pub task: TaskId,
    pub attempt: u32,
    /// The turn that [`TaskSink::begun`] recorded.
    pub turn: TurnId,
    pub cancel: CancellationToken,
}

/// The attempt is not wanted, or can't be put on record: its turn must not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotBegun(pub String);

/// A future of a [`TaskSink`].
pub type Recording<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where a conversation reports what became of its work.
pub trait TaskSink: Send + Sync + fmt::Debug {
    /// Puts on record that `turn` of the agent `launch` is this attempt. The turn is written to the agent only after
    /// this was `Ok`.
    fn begun(
        &self,
        launch: AgentId,
        task: TaskId,
        attempt: u32,
        turn: TurnId,
    ) -> Recording<'_, Result<(), NotBegun>>;

    /// Puts the end of the attempt on record; nothing else follows from the turn before this has returned. Saying it
    /// twice is harmless: the first word counts. An attempt whose work could not begin ends here too.
    fn ended(&self, task: TaskId, attempt: u32, outcome: TurnOutcome) -> Recording<'_, ()>;

    /// The work whose turn `launch` was in, by the record: for a conversation that goes on after a restart of agentd.
    /// It then ends through [`Self::ended`] like any other. `written` is the highest turn that was written to the
    /// agent: work whose turn was not written is given again over the agent's [`WorkPort`], and not returned.
    fn resume(&self, launch: AgentId, written: TurnId) -> Recording<'_, Option<OpenWork>>;
}

/// Takes nothing on record: for agents that no task can reach.
#[derive(Clone, Copy, Debug)]
pub struct NoTasks;

impl TaskSink for NoTasks {
    fn begun(
        &self,
        _: AgentId,
        _: TaskId,
        _: u32,
        _: TurnId,
    ) -> Recording<'_, Result<(), NotBegun>> {
        Box::pin(async { Err(NotBegun("this agent takes no tasks".to_owned())) })
    }

    fn ended(&self, _: TaskId, _: u32, _: TurnOutcome) -> Recording<'_, ()> {
        Box::pin(async {})
    }

    fn resume(&self, _: AgentId, _: TurnId) -> Recording<'_, Option<OpenWork>> {
        Box::pin(async { None })
    }
}

/// Whether an agent can be given work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// It has not said that it is ready, or it lives for the prompt of its launch alone.
    NotYet,
    /// It is idle.
    Idle,
    /// It is in a turn.
    Busy,
    /// Its conversation is over.
    Over,
}

/// An agent's side door for tasks. One lease at a time; clones share it.
#[derive(Clone, Debug)]
pub struct WorkPort {
    queue: mpsc::Sender<Work>,
    taking: watch::Receiver<Taking>,
    seat: Arc<Semaphore>,
}

/// The conversation's end of a [`WorkPort`].
#[derive(Debug)]
pub struct WorkInbox {
    queue: mpsc::Receiver<Work>,
    taking: watch::Sender<Taking>,
    changed: Arc<Notify>,
}

/// The right to give one agent work, until it is dropped.
#[derive(Debug)]
pub struct WorkLease {
    queue: mpsc::Sender<Work>,
    _seat: OwnedSemaphorePermit,
}

/// A port and its inbox. `changed` is notified whenever the agent may have become free.
pub fn work_port(changed: Arc<Notify>) -> (WorkPort, WorkInbox) {
    // One lease at a time; a second message could only be an error of ours.
    let (queue, receiver) = mpsc::channel(1);
    let (taking, watching) = watch::channel(Taking::NotYet);
    let port = WorkPort {
        queue,
        taking: watching,
        seat: Arc::new(Semaphore::new(1)),
    };
    let inbox = WorkInbox {
        queue: receiver,
        taking,
        changed,
    };
    (port, inbox)
}

impl WorkPort {
    /// The right to give the agent one piece of work, if it is idle and nobody else has it.
    pub fn lease(&self) -> Option<WorkLease> {
        if *self.taking.borrow() != Taking::Idle {
            return None;
        }
        self.take_seat()
    }

    /// The same right whatever the agent is doing: for the work that it had before a restart.
    pub fn take_seat(&self) -> Option<WorkLease> {
        let seat = Arc::clone(&self.seat).try_acquire_owned().ok()?;
        Some(WorkLease {
            queue: self.queue.clone(),
            _seat: seat,
        })
    }

    /// Resolves when the conversation is over, and with it every report about its work.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }

    /// What the agent is doing.
    pub fn taking(&self) -> Taking {
        *self.taking.borrow()
    }
}

impl WorkLease {
    /// Gives the agent `work`; `false` when its conversation is over.
    pub fn give(&self, work: Work) -> bool {
        self.queue.try_send(work).is_ok()
    }
}

impl WorkInbox {
    /// The next piece of work; never resolves once nobody can give any. Cancel safe.
    pub async fn next(&mut self) -> Work {
        match self.queue.recv().await {
            Some(work) => work,
            None => std::future::pending().await,
        }
    }

    /// Says what the agent is doing.
    pub fn set(&self, taking: Taking) {
        let changed = self
            .taking
            .send_if_modified(|old| std::mem::replace(old, taking) != taking);
        if changed && taking == Taking::Idle {
            self.changed.notify_one();
        }
    }
}

impl Drop for WorkInbox {
    fn drop(&mut self) {
        self.taking.send_replace(Taking::Over);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_idle_agent_is_leased_and_only_once() {
        let (port, inbox) = work_port(Arc::default());
        assert!(port.lease().is_none(), "not ready yet");
        inbox.set(Taking::Idle);
        let lease = port.lease().unwrap();
        assert!(port.lease().is_none(), "somebody has it");
        drop(lease);
        inbox.set(Taking::Busy);
        assert!(port.lease().is_none(), "in another turn");
        assert!(port.take_seat().is_some());
        drop(inbox);
        assert_eq!(port.taking(), Taking::Over);
        assert!(port.lease().is_none());
    }
}
