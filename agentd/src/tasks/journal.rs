//! The order in which tasks go on record, and what waits for it.
//!
//! The scheduler decides at once and writes here; nothing that it decided is acted on before it is on the disk. One
//! task takes whatever has gathered while the last commit was under way into the next one, so the disk's speed bounds
//! the latency of a step and not their number.
//!
//! If the record can't be written, new submissions are refused with the reason, and what has happened already is kept,
//! in order, and tried again until it succeeds: the journal never forgets a transition and never lets one overtake
//! another.

use std::fmt;
use std::time::Duration;

use agentd_storage::{Event, NewTask, Store, TaskBatch, TaskChange, TaskTaken};
use tokio::sync::{mpsc, watch};

/// How long until a record that could not be written is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Entries of one commit.
const BATCH: usize = 1024;

/// Something to do once an entry is on the disk.
pub type Then = Box<dyn FnOnce() + Send>;

/// What to do with the outcome of submissions: what the record took, or why it took none.
pub type Finish = Box<dyn FnOnce(Result<Vec<TaskTaken>, String>) + Send>;

/// One step of the scheduler.
pub enum Entry {
    Submit {
        new: Vec<NewTask>,
        finish: Finish,
    },
    Change {
        changes: Vec<TaskChange>,
        events: Vec<Event>,
        then: Vec<Then>,
    },
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Submit { new, .. } => f.debug_tuple("Submit").field(new).finish(),
            Self::Change { changes, .. } => f.debug_tuple("Change").field(changes).finish(),
        }
    }
}

/// What could not be written yet.
#[derive(Default)]
struct Backlog {
    changes: Vec<TaskChange>,
    events: Vec<Event>,
    then: Vec<Then>,
}

/// Writes entries until the scheduler has gone. `trouble` holds why nothing can be written, while that is so.
pub async fn run(
    store: Store,
    mut entries: mpsc::UnboundedReceiver<Entry>,
    trouble: watch::Sender<Option<String>>,
) {
    let mut gathered = Vec::new();
    while entries.recv_many(&mut gathered, BATCH).await > 0 {
        let mut backlog = Backlog::default();
        let mut finishes = Vec::new();
        let mut new = Vec::new();
        for entry in gathered.drain(..) {
            match entry {
                Entry::Submit { new: some, finish } => {
                    finishes.push((some.len(), finish));
                    new.extend(some);
                }
                Entry::Change {
                    changes,
                    events,
                    then,
                } => backlog.add(changes, events, then),
            }
        }
        let written = store.record_tasks(backlog.batch(new)).await;
        match written {
            Ok(taken) => {
                let mut taken = taken.into_iter();
                for (count, finish) in finishes {
                    finish(Ok(taken.by_ref().take(count).collect()));
                }
            }
            Err(error) => {
                let why = error.to_string();
                for (_, finish) in finishes {
                    finish(Err(why.clone()));
                }
                if !backlog.is_empty() {
                    tracing::error!("tasks can't be put on record, and wait: {why}");
                    trouble.send_replace(Some(why));
                    backlog = persist(&store, backlog, &mut entries, &trouble).await;
                }
            }
        }
        for then in backlog.then {
            then();
        }
    }
}

/// Tries until what has happened is on record. Meanwhile nothing new is taken, and more may happen.
async fn persist(
    store: &Store,
    mut backlog: Backlog,
    entries: &mut mpsc::UnboundedReceiver<Entry>,
    trouble: &watch::Sender<Option<String>>,
) -> Backlog {
    let mut scheduler_lives = true;
    loop {
        let pause = tokio::time::sleep(AGAIN);
        tokio::pin!(pause);
        while scheduler_lives {
            let entry = tokio::select! {
                () = &mut pause => break,
                entry = entries.recv() => entry,
            };
            match entry {
                Some(Entry::Submit { finish, .. }) => {
                    let why = trouble.borrow().clone().unwrap_or_default();
                    finish(Err(why));
                }
                Some(Entry::Change {
                    changes,
                    events,
                    then,
                }) => backlog.add(changes, events, then),
                None => scheduler_lives = false,
            }
        }
        match store.record_tasks(backlog.batch(Vec::new())).await {
            Ok(_none) => {
                trouble.send_replace(None);
                return backlog;
            }
            // Nobody is left who could act on it, or who could write it: the next start goes on from the record.
            Err(_) if !scheduler_lives => return Backlog::default(),
            Err(agentd_storage::StoreError::Closed) => return Backlog::default(),
            Err(error) => {
                trouble.send_replace(Some(error.to_string()));
            }
        }
    }
}

impl Backlog {
    fn add(&mut self, changes: Vec<TaskChange>, events: Vec<Event>, then: Vec<Then>) {
        self.changes.extend(changes);
        self.events.extend(events);
        self.then.extend(then);
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.events.is_empty() && self.then.is_empty()
    }

    fn batch(&self, new: Vec<NewTask>) -> TaskBatch {
        TaskBatch {
            new,
            changes: self.changes.clone(),
            events: self.events.clone(),
        }
    }
}
