//! The one task that writes. It takes what is queued, up to a bound, into one transaction, commits, and only then
//! acknowledges (group commit): while one commit waits for the disk, the next batch gathers.
//!
//! One bad fact (a repeated launch id, an unknown launch) must not spoil its neighbours: when a batch breaks a
//! constraint it is rolled back and repeated job by job, and only the guilty job is refused. Every other failure
//! (disk full, read-only, I/O) is answered to all who wait, and counted for those who don't.

use std::{fs::File, path::PathBuf};

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::{
    error::{StoreError, classify, is_constraint},
    event::Event,
    prune::{self, Upkeep},
    row::{self, kind_of},
    store::Health,
    task::{TaskBatch, TaskTaken},
    task_write, transaction,
    unit::{self, UnitWrite},
};

/// Jobs in one transaction.
const BATCH: usize = 512;

/// What the writer is asked.
pub(crate) enum Command {
    Write(Job),
    Unit(UnitWrite, oneshot::Sender<Result<(), StoreError>>),
    Upkeep(Upkeep, oneshot::Sender<Result<u64, StoreError>>),
    Close(oneshot::Sender<()>),
}

/// Facts that stand or fall together.
pub(crate) struct Job {
    pub(crate) events: Vec<Event>,
    pub(crate) tasks: Option<Tasks>,
    pub(crate) done: Option<oneshot::Sender<Result<(), StoreError>>>,
    /// Held until the job is written: the queue's byte limit.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// What a job says about tasks, and who is told what became of the new ones.
pub(crate) struct Tasks {
    pub(crate) batch: TaskBatch,
    /// Filled in by the transaction; only good once it is committed.
    pub(crate) taken: Vec<TaskTaken>,
    pub(crate) done: oneshot::Sender<Result<Vec<TaskTaken>, StoreError>>,
}

impl Job {
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.tasks.is_none()
    }

    fn answer(self, result: Result<(), StoreError>, health: &watch::Sender<Health>) {
        if let Some(tasks) = self.tasks {
            // A waiter that has gone away needs no answer.
            drop(tasks.done.send(result.map(|()| tasks.taken)));
            return;
        }
        match (self.done, result) {
            // A waiter that has gone away needs no answer.
            (Some(done), result) => drop(done.send(result)),
            (None, Ok(())) => {}
            (None, Err(error)) => health.send_modify(|health| {
                health.lost += self.events.len() as u64;
                health.trouble = Some(error.to_string());
            }),
        }
    }
}

pub(crate) struct Writer {
    path: PathBuf,
    connection: SqliteConnection,
    /// Keeps other writers out until the connection is closed.
    _lock: File,
    health: watch::Sender<Health>,
    next_seq: i64,
}

impl Writer {
    pub(crate) async fn new(
        path: PathBuf,
        mut connection: SqliteConnection,
        lock: File,
        health: watch::Sender<Health>,
    ) -> Result<Self, StoreError> {
        let last = row::last_seq(&mut connection)
            .await
            .map_err(|error| classify(&path, &error))?;
        Ok(Self {
            path,
            connection,
            _lock: lock,
            health,
            next_seq: last + 1,
        })
    }

    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut taken = Vec::with_capacity(BATCH);
        let mut closer = None;
        while closer.is_none() && commands.recv_many(&mut taken, BATCH).await > 0 {
            let mut jobs = Vec::with_capacity(taken.len());
            let mut units = Vec::new();
            let mut upkeep = Vec::new();
            for command in taken.drain(..) {
                match command {
                    Command::Write(job) => jobs.push(job),
                    Command::Unit(write, done) => units.push((write, done)),
                    Command::Upkeep(what, done) => upkeep.push((what, done)),
                    Command::Close(done) => closer = Some(done),
                }
            }
            self.write(jobs).await;
            for (write, done) in units {
                let written = unit::write(&mut self.connection, &write).await;
                // A waiter that has gone away needs no answer.
                drop(done.send(written.map_err(|error| classify(&self.path, &error))));
            }
            for (what, done) in upkeep {
                let kept_up = prune::upkeep(&mut self.connection, &what).await;
                drop(done.send(kept_up.map_err(|error| classify(&self.path, &error))));
            }
        }
        commands.close();
        // Closing checkpoints the log. If that fails the log stays and is replayed at the next opening, so there is
        // nothing to tell anybody.
        drop(self.connection.close().await);
        if let Some(done) = closer {
            done.send(()).unwrap_or_default();
        }
    }

    async fn write(&mut self, mut jobs: Vec<Job>) {
        if jobs.iter().all(Job::is_empty) {
            // Only flushes: everything before them is committed already.
            for job in jobs {
                job.answer(Ok(()), &self.health);
            }
            return;
        }
        match self.transaction(&mut jobs).await {
            Ok(()) => {
                self.clear_trouble();
                for job in jobs {
                    job.answer(Ok(()), &self.health);
                }
            }
            Err(Failure { error, .. }) if is_constraint(&error) && jobs.len() > 1 => {
                for job in jobs {
                    Box::pin(self.write(vec![job])).await;
                }
            }
            Err(Failure { error, culprit }) => {
                for job in jobs.drain(..) {
                    let public = match culprit {
                        Some((kind, ref launch)) if is_constraint(&error) => StoreError::Refused {
                            kind,
                            launch: launch.clone(),
                            why: explain(&error),
                        },
                        _ => classify(&self.path, &error),
                    };
                    job.answer(Err(public), &self.health);
                }
            }
        }
    }

    async fn transaction(&mut self, jobs: &mut [Job]) -> Result<(), Failure> {
        transaction::begin(&mut self.connection).await?;
        let filled = self.fill(jobs).await;
        self.next_seq = transaction::settle(&mut self.connection, filled).await?;
        Ok(())
    }

    /// Writes the jobs into the open transaction; the next number after them.
    async fn fill(&mut self, jobs: &mut [Job]) -> Result<i64, Failure> {
        let mut seq = self.next_seq;
        let db = &mut self.connection;
        for job in jobs {
            for event in &job.events {
                if let Err(error) = row::insert(db, seq, event).await {
                    let culprit = Some((kind_of(&event.fact), event.launch.to_string()));
                    return Err(Failure { error, culprit });
                }
                seq += 1;
            }
            if let Some(tasks) = &mut job.tasks {
                (tasks.taken, seq) = task_write::write(db, seq, &tasks.batch).await?;
            }
        }
        Ok(seq)
    }

    fn clear_trouble(&self) {
        self.health
            .send_if_modified(|health| std::mem::take(&mut health.trouble).is_some());
    }
}

struct Failure {
    error: sqlx::Error,
    culprit: Option<(&'static str, String)>,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self {
            error,
            culprit: None,
        }
    }
}

fn explain(error: &sqlx::Error) -> String {
    let text = error.as_database_error().map_or_else(
        || error.to_string(),
        |database| database.message().to_owned(),
    );
    if text.starts_with("FOREIGN KEY") {
        "no such launch is on record".to_owned()
    } else if text.starts_with("UNIQUE") {
        format!("it is there already ({text})")
    } else {
        text
    }
}
