//! `org.agentd1.Tasks` and `org.agentd1.Task`: tasks for one caller, on its own connection.
//!
//! The caller's uid comes from the connection, never from an argument; what it may not touch does not exist for it.
//! A task's object is put on the connection when it is first asked for, because there may be a hundred thousand tasks
//! and a connection mostly wants one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use agentd_api::tasks::{
    MAX_SUBMIT_MANY, TASK_PATH_PREFIX, TaskEvent, TaskListOptions, TaskOutcome, TaskReply,
    TaskSpec, task_path,
};
use agentd_api::{Error, MANAGER_PATH};
use agentd_orchestrator::task::TaskId;
use agentd_storage::{TaskSummary, Viewer, Which};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath};

use crate::agents::Caller;
use crate::daemon::Daemon;
use crate::tasks::Tasks;

/// Tasks of one listing where the caller names no number.
const USUAL_LIMIT: u32 = 1_000;
/// Most tasks of one listing.
const MAX_LIMIT: u32 = 100_000;
/// Task objects on one connection; the oldest make room.
const MAX_OBJECTS: usize = 256;

/// The object at `/org/agentd1` of one caller's connection.
#[derive(Debug)]
pub struct TasksObject {
    tasks: Tasks,
    caller: Caller,
    watching: AtomicBool,
    /// Tasks that have objects here, oldest first.
    objects: Arc<Mutex<VecDeque<TaskId>>>,
}

impl TasksObject {
    pub fn new(daemon: &Daemon, caller: Caller) -> Self {
        Self {
            tasks: daemon.tasks.clone(),
            caller,
            watching: AtomicBool::new(false),
            objects: Arc::default(),
        }
    }

    fn viewer(&self) -> Viewer {
        Viewer::from_uid(self.caller.uid)
    }

    /// The task's place among the objects of this connection: whether it is new, and which one has to go.
    fn place(&self, id: TaskId) -> (bool, Option<TaskId>) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        if objects.contains(&id) {
            return (false, None);
        }
        objects.push_back(id);
        let oldest = (objects.len() > MAX_OBJECTS).then(|| objects.pop_front());
        (true, oldest.flatten())
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::Internal(error.to_string())
}

fn path_of(id: TaskId) -> Result<OwnedObjectPath, Error> {
    task_path(&id.to_string()).ok_or_else(|| internal("a task id that makes no object path"))
}

#[zbus::interface(name = "org.agentd1.Tasks")]
impl TasksObject {
    async fn submit(&self, spec: TaskSpec) -> Result<TaskReply, Error> {
        self.tasks.submit(self.caller, spec).await
    }

    async fn submit_many(&self, specs: Vec<TaskSpec>) -> Result<Vec<TaskOutcome>, Error> {
        if specs.len() > MAX_SUBMIT_MANY {
            return Err(Error::InvalidArgument(format!(
                "{} tasks in one call; at most {MAX_SUBMIT_MANY}",
                specs.len()
            )));
        }
        let outcomes = self.tasks.submit_many(self.caller, specs).await.into_iter();
        let outcomes = outcomes.map(|outcome| match outcome {
            Ok(reply) => TaskOutcome {
                id: Some(reply.id),
                new: Some(reply.new),
                error: None,
                code: None,
            },
            Err(error) => TaskOutcome {
                id: None,
                new: None,
                error: Some(error.text()),
                code: Some(error.code().as_str().to_owned()),
            },
        });
        Ok(outcomes.collect())
    }

    async fn list(&self, options: TaskListOptions) -> Result<String, Error> {
        let which = if options.all == Some(true) {
            Which::All
        } else {
            Which::Open
        };
        let limit = options.limit.unwrap_or(USUAL_LIMIT).min(MAX_LIMIT);
        let tasks = self.tasks.store().tasks(self.viewer(), which, limit).await;
        serde_json::to_string(&tasks.map_err(internal)?).map_err(internal)
    }

    async fn get(&self, id: &str) -> Result<String, Error> {
        let id = self.tasks.resolve(self.viewer(), id).await?;
        self.tasks.document(self.viewer(), id).await
    }

    async fn find(
        &self,
        id: &str,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let id = self.tasks.resolve(self.viewer(), id).await?;
        let path = path_of(id)?;
        let (is_new, oldest) = self.place(id);
        if let Some(oldest) = oldest {
            let path = path_of(oldest)?;
            let removed = connection.object_server().remove::<TaskObject, _>(path);
            removed.await?;
        }
        if is_new {
            let object = TaskObject {
                tasks: self.tasks.clone(),
                caller: self.caller,
                id,
            };
            let events = self.tasks.watch();
            connection.object_server().at(path.as_ref(), object).await?;
            tokio::spawn(follow_one(connection.clone(), events, id));
        }
        Ok(path)
    }

    async fn cancel(&self, id: &str) -> Result<(), Error> {
        let id = self.tasks.resolve(self.viewer(), id).await?;
        let by = format!("uid {}", self.caller.uid);
        self.tasks.cancel(self.caller, id, &by).await
    }

    async fn retry(&self, id: &str) -> Result<TaskReply, Error> {
        let id = self.tasks.resolve(self.viewer(), id).await?;
        self.tasks.retry(self.caller, id).await
    }

    async fn wait(&self, id: &str) -> Result<String, Error> {
        let id = self.tasks.resolve(self.viewer(), id).await?;
        Ok(self.tasks.wait(self.viewer(), id).await?.state)
    }

    async fn watch(&self, #[zbus(connection)] connection: &Connection) -> Result<(), Error> {
        if !self.watching.swap(true, Ordering::Relaxed) {
            let events = self.tasks.watch();
            tokio::spawn(follow(connection.clone(), events, self.caller));
        }
        Ok(())
    }

    #[zbus(signal)]
    async fn changed(emitter: &SignalEmitter<'_>, event: TaskEvent) -> zbus::Result<()>;
}

/// The object at `/org/agentd1/task/ID`.
#[derive(Debug)]
pub struct TaskObject {
    tasks: Tasks,
    caller: Caller,
    id: TaskId,
}

impl TaskObject {
    async fn now(&self) -> zbus::fdo::Result<TaskSummary> {
        let viewer = Viewer::from_uid(self.caller.uid);
        let summary = self.tasks.summary(viewer, self.id).await;
        summary.map_err(|error| zbus::fdo::Error::Failed(error.text()))
    }
}

#[zbus::interface(name = "org.agentd1.Task")]
impl TaskObject {
    async fn cancel(&self) -> Result<(), Error> {
        let by = format!("uid {}", self.caller.uid);
        self.tasks.cancel(self.caller, self.id, &by).await
    }

    async fn wait(&self) -> Result<String, Error> {
        let viewer = Viewer::from_uid(self.caller.uid);
        Ok(self.tasks.wait(viewer, self.id).await?.state)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.id.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn uid(&self) -> zbus::fdo::Result<u32> {
        Ok(self.now().await?.uid)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn text(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.text)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn parent(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.parent.unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn state(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.state)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn cause(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.cause)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn attempt(&self) -> zbus::fdo::Result<u32> {
        Ok(self.now().await?.attempt)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn agent(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.agent.unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn result(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.result.unwrap_or_default())
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn error(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.error.unwrap_or_default())
    }

    #[zbus(signal)]
    async fn state_changed(
        emitter: &SignalEmitter<'_>,
        state: String,
        cause: String,
    ) -> zbus::Result<()>;
}

/// Turns transitions into signals on one connection until it ends. A client that misses some, because it did not
/// read, finds what is open with `List`.
async fn follow(connection: Connection, mut events: Receiver<TaskEvent>, caller: Caller) {
    let Ok(emitter) = SignalEmitter::new(&connection, MANAGER_PATH) else {
        unreachable!("the manager's path is a valid one")
    };
    loop {
        let event = tokio::select! {
            () = connection.closed() => return,
            event = events.recv() => event,
        };
        match event {
            Ok(event) if caller.may_touch(event.uid) => {
                if let Err(error) = TasksObject::changed(&emitter, event).await {
                    tracing::debug!(uid = caller.uid, "signals: {error}");
                    return;
                }
            }
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => tracing::warn!(
                uid = caller.uid,
                missed,
                "a control connection reads too slowly for its signals"
            ),
            Err(RecvError::Closed) => return,
        }
    }
}

/// The signals of one task's object, until the task or the connection ends.
async fn follow_one(connection: Connection, mut events: Receiver<TaskEvent>, id: TaskId) {
    let path = format!("{TASK_PATH_PREFIX}{}", id.0.simple());
    let Ok(emitter) = SignalEmitter::new(&connection, path) else {
        unreachable!("a task id makes a valid object path")
    };
    let id = id.to_string();
    loop {
        let event = tokio::select! {
            () = connection.closed() => return,
            event = events.recv() => event,
        };
        match event {
            Ok(event) if event.id == id => {
                let is_end = event.is_end();
                let sent = TaskObject::state_changed(&emitter, event.state, event.cause).await;
                if sent.is_err() || is_end {
                    return;
                }
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
