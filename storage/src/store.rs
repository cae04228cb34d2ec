//! The handle that the daemon's planes hold: a bounded queue into the writer and a pool of readers.
//!
//! Cloning shares both. The queue is bounded in events and in bytes; a full queue makes `record` wait, which is the
//! backpressure that keeps a chatty agent from eating the daemon's memory.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sqlx::SqlitePool;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

use crate::{
    audit::{self, Head, Note, PublicKey},
    error::StoreError,
    event::{Event, Fact},
    open,
    stream::sqlite::StreamJob,
    task::{TaskBatch, TaskTaken},
    unit::UnitWrite,
    writer::{self, Command, Job},
};

/// Events that may wait for the writer.
const QUEUE_EVENTS: usize = 4096;
/// Bytes that may wait for the writer.
const QUEUE_BYTES: u32 = 32 * 1024 * 1024;

/// How the writer fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Facts that nobody waited for and that could not be written.
    pub lost: u64,
    /// The last failure; cleared by the next commit.
    pub trouble: Option<String>,
}

/// A refusal, as those who follow refusals hear of it.
#[derive(Clone, Debug)]
pub struct Told {
    /// A [`Fact::Denial`].
    pub event: Arc<Event>,
    /// The same was recorded a moment ago; this one is not.
    pub repeated: bool,
}

/// Refusals that a follower may be behind; it is told how many it missed.
const TOLD_KEPT: usize = 4096;

/// The record of one state directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    queue: mpsc::Sender<Command>,
    bytes: Arc<Semaphore>,
    readers: SqlitePool,
    health: watch::Receiver<Health>,
    key: PublicKey,
    incidents: Vec<Note>,
    told: broadcast::Sender<Told>,
}

impl Store {
    /// Opens `path`, or makes it (mode 0600), and brings its schema up to date. Must run inside a tokio runtime, on
    /// which the writer task then lives.
    ///
    /// # Errors
    /// See [`StoreError`]: in use, damaged, newer than this agentd, not writable.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let opened = open::open(&path).await?;
        let (queue, commands) = mpsc::channel(QUEUE_EVENTS);
        let (health_sender, health) = watch::channel(Health::default());
        let mut writer =
            writer::Writer::new(path.clone(), opened.writer, opened.lock, health_sender).await?;
        let (key, incidents) = (writer.public_key(), writer.incidents());
        tokio::spawn(writer.run(commands));
        Ok(Self {
            shared: Arc::new(Shared {
                path,
                queue,
                bytes: Arc::new(Semaphore::new(QUEUE_BYTES as usize)),
                readers: opened.readers,
                health,
                key,
                incidents,
                told: broadcast::Sender::new(TOLD_KEPT),
            }),
        })
    }

    /// The key with which the record's heads are verified.
    pub fn public_key(&self) -> PublicKey {
        self.shared.key
    }

    /// What opening found that should not have happened: the record shorter or other than it was left, another key. It
    /// is on record.
    pub fn incidents(&self) -> &[Note] {
        &self.shared.incidents
    }

    /// The signed head that the record ends with now.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn head(&self) -> Result<Option<Head>, StoreError> {
        let db = &mut self.snapshot().await?;
        let head = audit::chain::last_head(db).await;
        head.map_err(|error| self.public(error))
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Follows refusals from now on: each that is recorded, and the repeated ones that are only told of. Nobody waits for a
    /// follower.
    pub fn follow_denials(&self) -> broadcast::Receiver<Told> {
        self.shared.told.subscribe()
    }

    /// Tells those who follow refusals of one that is not recorded, since the same was a moment ago.
    pub fn tell_repeated(&self, event: Event) {
        self.tell(event, true);
    }

    fn tell(&self, event: Event, repeated: bool) {
        if self.shared.told.receiver_count() > 0 {
            let event = Arc::new(event);
            // It fails when nobody follows any more.
            self.shared.told.send(Told { event, repeated }).ok();
        }
    }

    fn tell_denials(&self, events: &[Event]) {
        for event in events {
            if matches!(event.fact, Fact::Denial(_)) {
                self.tell(event.clone(), false);
            }
        }
    }

    /// Queues a fact; returns once it is queued (waits while the queue is full). It is written in order with
    /// everything else, soon, but a crash right now may lose it: use [`Self::record_durable`] where that matters.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn record(&self, event: Event) -> Result<(), StoreError> {
        self.enqueue(vec![event], None).await
    }

    /// Queues a fact without waiting, for callers that are not async.
    ///
    /// # Errors
    /// [`StoreError::QueueFull`], [`StoreError::Closed`].
    pub fn try_record(&self, event: Event) -> Result<(), StoreError> {
        self.tell_denials(std::slice::from_ref(&event));
        let weight = weight_of(std::slice::from_ref(&event));
        let permit = Arc::clone(&self.shared.bytes)
            .try_acquire_many_owned(weight)
            .map_err(|_full| StoreError::QueueFull)?;
        self.shared
            .queue
            .try_send(Command::Write(Job::of(vec![event], permit)))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => StoreError::QueueFull,
                mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
            })
    }

    /// Records a fact and returns after its COMMIT has reached the disk, and with it everything queued before.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the fact itself can't stand; otherwise the trouble of the database.
    pub async fn record_durable(&self, event: Event) -> Result<(), StoreError> {
        self.record_all_durable(vec![event]).await
    }

    /// Records several facts in one commit: all of them or none.
    ///
    /// # Errors
    /// As [`Self::record_durable`].
    pub async fn record_all_durable(&self, events: Vec<Event>) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.enqueue(events, Some(done)).await?;
        answer.await.map_err(|_gone| StoreError::Closed)?
    }

    /// Records what happened to tasks, in one commit: all of it or none. Returns after the COMMIT has reached the disk,
    /// with what became of the new tasks, in order.
    ///
    /// # Errors
    /// The trouble of the database; nothing of the batch is on record then.
    pub async fn record_tasks(&self, batch: TaskBatch) -> Result<Vec<TaskTaken>, StoreError> {
        self.write_tasks(batch, None).await
    }

    /// As [`Self::record_tasks`], in one commit with what happened to streams, which answers for itself.
    pub(crate) async fn record_with(
        &self,
        batch: TaskBatch,
        streams: StreamJob,
    ) -> Result<Vec<TaskTaken>, StoreError> {
        self.write_tasks(batch, Some(streams)).await
    }

    async fn write_tasks(
        &self,
        batch: TaskBatch,
        streams: Option<StreamJob>,
    ) -> Result<Vec<TaskTaken>, StoreError> {
        let weight = u32::try_from(batch.weight()).unwrap_or(QUEUE_BYTES);
        let permit = Arc::clone(&self.shared.bytes)
            .acquire_many_owned(weight.min(QUEUE_BYTES))
            .await
            .map_err(|_closed| StoreError::Closed)?;
        let (done, answer) = oneshot::channel();
        let tasks = writer::Tasks {
            batch,
            taken: Vec::new(),
            done,
        };
        self.send(Command::Write(Job {
            tasks: Some(tasks),
            streams,
            ..Job::of(Vec::new(), permit)
        }))
        .await?;
        answer.await.map_err(|_gone| StoreError::Closed)?
    }

    /// Queues what is to happen to streams; waits while the queue is full. It answers for itself.
    pub(crate) async fn enqueue_streams(&self, streams: StreamJob) -> Result<(), StoreError> {
        // Its bytes are counted by whoever asks.
        let permit = Arc::clone(&self.shared.bytes)
            .acquire_many_owned(0)
            .await
            .map_err(|_closed| StoreError::Closed)?;
        self.send(Command::Write(Job {
            streams: Some(streams),
            ..Job::of(Vec::new(), permit)
        }))
        .await
    }

    /// Returns once everything queued before this call is on the disk.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.record_all_durable(Vec::new()).await
    }

    /// Writes what is queued, folds the log into the database file and closes it. Later calls fail with
    /// [`StoreError::Closed`]. Dropping the last handle does the same, unobserved.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when it was closed before.
    pub async fn close(&self) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.shared
            .queue
            .send(Command::Close(done))
            .await
            .map_err(|_closed| StoreError::Closed)?;
        self.shared.readers.close().await;
        answer.await.map_err(|_gone| StoreError::Closed)
    }

    pub(crate) async fn write_unit(&self, write: UnitWrite) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.shared
            .queue
            .send(Command::Unit(write, done))
            .await
            .map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_gone| StoreError::Closed)?
    }

    pub(crate) async fn send(&self, command: Command) -> Result<(), StoreError> {
        self.shared
            .queue
            .send(command)
            .await
            .map_err(|_closed| StoreError::Closed)
    }

    /// How the writer fares.
    pub fn health(&self) -> Health {
        self.shared.health.borrow().clone()
    }

    /// Follows [`Self::health`].
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.shared.health.clone()
    }

    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.shared.readers
    }

    async fn enqueue(
        &self,
        events: Vec<Event>,
        done: Option<oneshot::Sender<Result<(), StoreError>>>,
    ) -> Result<(), StoreError> {
        self.tell_denials(&events);
        let permit = Arc::clone(&self.shared.bytes)
            .acquire_many_owned(weight_of(&events))
            .await
            .map_err(|_closed| StoreError::Closed)?;
        self.shared
            .queue
            .send(Command::Write(Job {
                done,
                ..Job::of(events, permit)
            }))
            .await
            .map_err(|_closed| StoreError::Closed)
    }
}

/// Permits for these events. More than the whole budget counts as the whole budget, so that one huge event waits
/// for an empty queue instead of for ever.
fn weight_of(events: &[Event]) -> u32 {
    let bytes: usize = events.iter().map(Event::weight).sum();
    u32::try_from(bytes).unwrap_or(QUEUE_BYTES).min(QUEUE_BYTES)
}
