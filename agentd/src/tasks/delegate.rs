//! Delegation: what an agent may do with tasks.
//!
//! An agent hands work to other agents of its user, by its policy's `[ipc] request` rule: whom it may ask, it may give
//! tasks to, and the rule is matched against the name of the agent, unit, role or capability that it names. What it
//! delegates while it works on a task is a child of that task; it sees and touches what it delegated and nothing else.
//! Which launch asks is known from where it is connected, never from what it says.

use std::time::Duration;

use agentd_api::tasks::{MAX_REQUEST_ID, TaskReply, TaskSpec, is_final};
use agentd_api::{AgentIdentity, Error};
use agentd_bus::access::Right;
use agentd_orchestrator::task::TaskId;
use agentd_sandbox::IpcRules;
use agentd_storage::{TaskSummary, Viewer};

use super::scheduler::Msg;
use super::{Tasks, internal};
use crate::agents::Caller;
use crate::bus::{RefusalSink, Refused};
use crate::revocation::Live;

/// Tasks that one listing shows, the newest.
const MAX_LISTED: u32 = 200;

/// One agent's rights over tasks.
#[derive(Clone, Debug)]
pub struct Delegation {
    tasks: Tasks,
    identity: AgentIdentity,
    rules: Live<IpcRules>,
    /// Who hears of refusals.
    refusals: RefusalSink,
}

impl Delegation {
    pub fn new(
        tasks: Tasks,
        identity: AgentIdentity,
        rules: impl Into<Live<IpcRules>>,
        refusals: RefusalSink,
    ) -> Self {
        Self {
            tasks,
            identity,
            rules: rules.into(),
            refusals,
        }
    }

    /// Hands in a task, as a child of the one that this agent works on, if it works on one.
    ///
    /// # Errors
    /// When the policy forbids it, or the task is not well formed or can't be taken.
    pub async fn submit(&self, mut spec: TaskSpec) -> Result<TaskReply, Error> {
        let names = [&spec.agent, &spec.unit, &spec.role, &spec.capability];
        for name in names.into_iter().flatten() {
            let rules = self.rules.now();
            if !rules.may_request(name) {
                let line = rules.refused_by("ipc.request", name);
                self.refusals.put(|| Refused {
                    right: Right::Request,
                    what: name.clone(),
                    taken: None,
                    tightened: line.map(ToString::to_string),
                });
                return Err(Error::Denied(match line {
                    Some(line) => format!(
                        "{line}, laid over this agent's policy while it runs, does not let it delegate to {name:?}"
                    ),
                    None => format!(
                        "this agent's policy does not let it delegate to {name:?}; `[ipc] request` lists whom it may ask"
                    ),
                }));
            }
            if *name == self.identity.name {
                return Err(Error::Denied(
                    "an agent can't delegate to itself; do it in this turn".into(),
                ));
            }
        }
        let parent = self.parent().await?;
        if let Some(request_id) = &mut spec.request_id {
            if !(1..=MAX_REQUEST_ID).contains(&request_id.len()) {
                return Err(Error::InvalidArgument(format!(
                    "request_id has {} bytes; allowed are 1 to {MAX_REQUEST_ID}",
                    request_id.len()
                )));
            }
            // Its own space: an agent can't collide with its user's request ids, nor with other tasks' children.
            let scope = parent.map_or_else(|| self.identity.id.to_string(), |id| id.to_string());
            *request_id = format!("{scope}/{request_id}");
        }
        let request_id = spec.request_id.take();
        let mut prepared = self
            .tasks
            .prepare(self.identity.uid, self.signature(), spec)
            .await?;
        prepared.request_id = request_id;
        prepared.parent = parent;
        let mut outcomes = self.tasks.submit_prepared(vec![Ok(prepared)]).await;
        outcomes
            .pop()
            .unwrap_or_else(|| Err(Error::Internal("the scheduler gave no answer".into())))
    }

    /// What this agent delegated, oldest first.
    ///
    /// # Errors
    /// The trouble of the record.
    pub async fn list(&self) -> Result<Vec<TaskSummary>, Error> {
        let parent = self.parent().await?.map(|id| id.to_string());
        self.tasks
            .store()
            .delegated_tasks(
                self.identity.uid,
                parent.as_deref(),
                &self.signature(),
                MAX_LISTED,
            )
            .await
            .map_err(internal)
    }

    /// One task that this agent delegated.
    ///
    /// # Errors
    /// When it did not.
    pub async fn status(&self, id: &str) -> Result<TaskSummary, Error> {
        let (_, task) = self.own(id).await?;
        Ok(task)
    }

    /// One task that this agent delegated, once it has ended or `wait` is over.
    ///
    /// # Errors
    /// When it did not delegate it.
    pub async fn result(&self, id: &str, wait: Duration) -> Result<TaskSummary, Error> {
        let (id, task) = self.own(id).await?;
        if is_final(&task.state) {
            return Ok(task);
        }
        let viewer = Viewer::Uid(self.identity.uid);
        match tokio::time::timeout(wait, self.tasks.wait(viewer, id)).await {
            Ok(ended) => ended,
            Err(_) => self.tasks.summary(viewer, id).await,
        }
    }

    /// Takes back a task that this agent delegated.
    ///
    /// # Errors
    /// When it did not, or the task has ended.
    pub async fn cancel(&self, id: &str) -> Result<(), Error> {
        let (id, _) = self.own(id).await?;
        let caller = Caller {
            uid: self.identity.uid,
            gid: self.identity.uid,
        };
        let by = format!("agent {}", self.identity.name);
        self.tasks.cancel(caller, id, &by).await
    }

    async fn own(&self, typed: &str) -> Result<(TaskId, TaskSummary), Error> {
        let viewer = Viewer::Uid(self.identity.uid);
        let missing = || {
            Error::NotFound(format!(
                "you delegated no task called `{}`; task_list shows those you did",
                typed.escape_debug()
            ))
        };
        let id = match self.tasks.resolve(viewer, typed).await {
            Ok(id) => id,
            Err(Error::NotFound(_)) => return Err(missing()),
            Err(error) => return Err(error),
        };
        let task = self.tasks.summary(viewer, id).await?;
        let parent = self.parent().await?.map(|id| id.to_string());
        let own =
            (parent.is_some() && task.parent == parent) || task.submitted_by == self.signature();
        if own { Ok((id, task)) } else { Err(missing()) }
    }

    /// The task that this agent works on.
    async fn parent(&self) -> Result<Option<TaskId>, Error> {
        let launch = self.identity.id;
        self.tasks
            .try_ask(|reply| Msg::TaskOf { launch, reply })
            .await
    }

    /// How this launch signs what it submits.
    fn signature(&self) -> String {
        format!("agent {}, launch {}", self.identity.name, self.identity.id)
    }
}
