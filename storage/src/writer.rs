//! The one task that writes. It takes what is queued, up to a bound, into one transaction, commits, and only then
//! acknowledges (group commit): while one commit waits for the disk, the next batch gathers.
//!
//! One bad fact (a repeated launch id, an unknown launch) must not spoil its neighbours: when a batch breaks a
//! constraint it is rolled back and repeated job by job, and only the guilty job is refused. Every other failure
//! (disk full, read-only, I/O) is answered to all who wait, and counted for those who don't.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::{
    audit::{
        Note, PublicKey,
        chain::{Chain, Sealed},
        content::Written,
    },
    error::{StoreError, classify, is_constraint},
    event::Event,
    prune::{self, Upkeep},
    row::{self, kind_of},
    store::Health,
    stream::{
        StreamError,
        sqlite::{Book, StreamJob, carry_out, refused},
    },
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
    pub(crate) streams: Option<StreamJob>,
    /// Why nothing of it was written, if it is about a stream that is not there.
    pub(crate) impossible: Option<StreamError>,
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
    /// These facts and nothing else, with nobody waiting.
    pub(crate) fn of(events: Vec<Event>, permit: OwnedSemaphorePermit) -> Self {
        Self {
            events,
            tasks: None,
            streams: None,
            impossible: None,
            done: None,
            _permit: permit,
        }
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.tasks.is_none() && self.streams.is_none()
    }

    fn answer(
        self,
        mut result: Result<(), StoreError>,
        path: &Path,
        health: &watch::Sender<Health>,
    ) {
        if let (Some(error), Ok(())) = (&self.impossible, &result) {
            result = Err(StoreError::Refused {
                kind: "message",
                launch: "(none)".to_owned(),
                why: error.to_string(),
            });
        }
        if let Some(streams) = self.streams {
            let of_record = |error| refused(path, error);
            streams.answer(match (self.impossible, &result) {
                (Some(error), _) => Err(error),
                (None, Ok(())) => Ok(()),
                (None, Err(error)) => Err(of_record(error)),
            });
            if self.tasks.is_none() {
                return;
            }
        }
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
    lock: File,
    health: watch::Sender<Health>,
    next_seq: i64,
    chain: Chain,
    book: Book,
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
        let (chain, next_seq) = Chain::open(&path, &mut connection, last + 1).await?;
        let book = Book::open(&mut connection).await;
        let book = book.map_err(|error| classify(&path, &error))?;
        Ok(Self {
            path,
            connection,
            lock,
            health,
            next_seq,
            chain,
            book,
        })
    }

    /// What opening found that should not have happened.
    pub(crate) fn incidents(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.chain.incidents)
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.chain.public_key()
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
                let kept = self.unit(&write).await;
                // A waiter that has gone away needs no answer.
                drop(done.send(kept.map_err(|error| classify(&self.path, &error))));
            }
            for (what, done) in upkeep {
                let kept_up = self.upkeep(&what).await;
                drop(done.send(kept_up.map_err(|error| classify(&self.path, &error))));
            }
        }
        commands.close();
        // Closing checkpoints the log. If that fails the log stays and is replayed at the next opening, so there is
        // nothing to tell anybody.
        let Self {
            connection, lock, ..
        } = self;
        drop(connection.close().await);
        // Whoever waits for this may open the record again at once.
        drop(lock);
        if let Some(done) = closer {
            done.send(()).unwrap_or_default();
        }
    }

    async fn write(&mut self, mut jobs: Vec<Job>) {
        if jobs.iter().all(Job::is_empty) {
            // Only flushes: everything before them is committed already.
            for job in jobs {
                job.answer(Ok(()), &self.path, &self.health);
            }
            return;
        }
        match self.transaction(&mut jobs).await {
            Ok(sealed) => {
                self.clear_trouble();
                self.committed(sealed);
                for job in jobs {
                    job.answer(Ok(()), &self.path, &self.health);
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
                    job.answer(Err(public), &self.path, &self.health);
                }
            }
        }
    }

    async fn transaction(&mut self, jobs: &mut [Job]) -> Result<Sealed, Failure> {
        transaction::begin(&mut self.connection).await?;
        let filled = self.fill(jobs).await;
        let settled = transaction::settle(&mut self.connection, filled).await;
        match &settled {
            Ok(_) => self.book.committed(),
            Err(_) => self.book.rolled_back(),
        }
        let (next_seq, sealed) = settled?;
        self.next_seq = next_seq;
        Ok(sealed)
    }

    /// Writes the jobs and their part of the chain into the open transaction; the next number after them.
    async fn fill(&mut self, jobs: &mut [Job]) -> Result<(i64, Sealed), Failure> {
        let mut seq = self.next_seq;
        let mut written = Written::default();
        let db = &mut self.connection;
        for job in jobs {
            job.impossible = job
                .streams
                .as_ref()
                .and_then(|it| self.book.check(it).err());
            if job.impossible.is_some() {
                continue;
            }
            for event in &job.events {
                if let Err(error) = row::insert(db, &mut written, seq, event).await {
                    let culprit = Some((kind_of(&event.fact), event.launch.to_string()));
                    return Err(Failure { error, culprit });
                }
                seq += 1;
            }
            if let Some(tasks) = &mut job.tasks {
                (tasks.taken, seq) = task_write::write(db, &mut written, seq, &tasks.batch).await?;
            }
            if let Some(streams) = &mut job.streams {
                seq = carry_out(db, &mut written, seq, &mut self.book, streams).await?;
            }
        }
        self.book.write(db).await?;
        let sealed = self.chain.seal(db, written).await?;
        Ok((seq, sealed))
    }

    async fn unit(&mut self, write: &UnitWrite) -> Result<(), sqlx::Error> {
        let db = &mut self.connection;
        transaction::begin(db).await?;
        let filled = async {
            let mut written = Written::default();
            unit::write(db, &mut written, write).await?;
            self.chain.seal(db, written).await
        };
        let filled = filled.await;
        let sealed = transaction::settle(db, filled).await?;
        self.committed(sealed);
        Ok(())
    }

    async fn upkeep(&mut self, what: &Upkeep) -> Result<u64, sqlx::Error> {
        let db = &mut self.connection;
        let launches = match what {
            Upkeep::GiveBack => return prune::give_back(db).await,
            Upkeep::Forget(launches) => launches,
        };
        transaction::begin(db).await?;
        let filled = async {
            let mut written = Written::default();
            let gone =
                prune::forget(db, &self.chain, &mut written, self.next_seq, launches).await?;
            Ok((gone, self.chain.seal(db, written).await?))
        };
        let filled: Result<_, sqlx::Error> = filled.await;
        let (gone, sealed) = transaction::settle(db, filled).await?;
        // The note's number.
        self.next_seq += 1;
        self.committed(sealed);
        Ok(gone)
    }

    /// Moves the chain on behind a COMMIT.
    fn committed(&mut self, sealed: Sealed) {
        if let Err(error) = self.chain.committed(sealed) {
            let path = self.path.display();
            self.health.send_modify(|health| {
                health.trouble = Some(format!(
                    "can't write {path}.head, which says how far the record goes: {error}"
                ));
            });
        }
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
