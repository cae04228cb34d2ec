//! The durable side of the bus: what the router wants kept, in a store of streams, and back to the router.
//!
//! The router's threads hand over [`Persist`] requests and never wait; the store answers on a thread of its own, and the
//! answer is posted to the shard of the stream's user. Requests about one stream reach the store in the order of the
//! router's effects; those that come while its first declaration is under way wait for that. At the start every stream that
//! the store has is given back to the router before anybody connects. Payloads are never logged.
//!
//! It fails as the store does: each refusal goes to whoever asked, and trouble of the disk to the log as well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use agentd_bus::channel::Class;
use agentd_bus::message::{
    Full, QueueSpec, ReplayFrom, Replayed, StreamKind as BusKind, TopicSpec,
};
use agentd_bus::router::{
    Batch, DeadReason, OffsetRange, Persist, PersistError, Restored, Settled,
    StreamId as BusStream, StreamSpec as BusSpec,
};
use agentd_bus::shard::Shards;
use agentd_storage::stream::{
    Done, NewRecord, ReadFrom, ReadLimit, Records, Retention, Settle, StreamError, StreamId,
    StreamKind, StreamName, StreamSpec, StreamStats, StreamStore,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::config::DurableConfig;

/// Between two looks at what streams need not keep any more.
const RETAIN_EVERY: Duration = Duration::from_secs(60);

/// Where answers go.
pub(super) trait Back: Send + Sync {
    fn persisted(&self, uid: u32, ticket: u64, outcome: Result<u64, PersistError>);
    fn records(&self, uid: u32, ticket: u64, outcome: Read);
}

type Read = Result<(u64, Vec<Replayed>), PersistError>;

impl Back for Shards {
    fn persisted(&self, uid: u32, ticket: u64, outcome: Result<u64, PersistError>) {
        // Nobody waits for the posting itself.
        drop(
            self.of(uid)
                .ask(move |router, now, fx| router.persisted(ticket, outcome, now, fx)),
        );
    }

    fn records(&self, uid: u32, ticket: u64, outcome: Read) {
        drop(
            self.of(uid)
                .ask(move |router, now, fx| router.records(ticket, outcome, now, fx)),
        );
    }
}

/// A stream as this module knows it.
enum Known {
    /// The store is making it; these wait until it has.
    Declaring(Vec<Persist>),
    There(StreamId),
}

/// The store behind the bus.
pub struct Durable {
    /// `None`: every request is refused.
    store: Option<Arc<dyn StreamStore>>,
    defaults: DurableConfig,
    streams: Mutex<HashMap<BusStream, Known>>,
    back: Mutex<Option<Arc<dyn Back>>>,
}

impl std::fmt::Debug for Durable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Durable")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// A stream for the router, as it was when the last daemon ended.
#[derive(Debug)]
pub(super) struct Kept {
    pub stream: BusStream,
    pub spec: BusSpec,
    pub records: Vec<Restored>,
}

/// What is kept with a stream besides its messages.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Settings {
    Queue {
        full: u8,
        class: u8,
        max_messages: u32,
        max_bytes: u64,
        visibility_ms: u32,
        max_deliver: u32,
        dead_messages: u32,
    },
    Topic {
        retain: u16,
        max_age_s: u32,
        max_bytes: u64,
    },
}

impl Settings {
    fn of(spec: &BusSpec) -> Self {
        match spec {
            BusSpec::Queue(it) => Self::Queue {
                full: it.full.code(),
                class: it.class as u8,
                max_messages: it.max_messages,
                max_bytes: it.max_bytes,
                visibility_ms: it.visibility_ms,
                max_deliver: it.max_deliver,
                dead_messages: it.dead_messages,
            },
            BusSpec::Topic(it) => Self::Topic {
                retain: it.retain,
                max_age_s: it.max_age_s,
                max_bytes: it.max_bytes,
            },
        }
    }

    fn spec(&self) -> BusSpec {
        match *self {
            Self::Queue {
                full,
                class,
                max_messages,
                max_bytes,
                visibility_ms,
                max_deliver,
                dead_messages,
            } => BusSpec::Queue(QueueSpec {
                durable: true,
                full: Full::from_code(full).unwrap_or_default(),
                class: Class::from_code(class).unwrap_or_default(),
                max_messages,
                max_bytes,
                visibility_ms,
                max_deliver,
                dead_messages,
            }),
            Self::Topic {
                retain,
                max_age_s,
                max_bytes,
            } => BusSpec::Topic(TopicSpec {
                retain,
                durable: true,
                max_age_s,
                max_bytes,
            }),
        }
    }
}

impl Durable {
    /// The durable side over this store.
    pub fn new(store: Arc<dyn StreamStore>, defaults: DurableConfig) -> Arc<Self> {
        Self::over(Some(store), defaults)
    }

    /// Nothing is kept, and whoever asks for it is told so.
    pub fn without_store() -> Arc<Self> {
        Self::over(None, DurableConfig::default())
    }

    fn over(store: Option<Arc<dyn StreamStore>>, defaults: DurableConfig) -> Arc<Self> {
        Arc::new(Self {
            store,
            defaults,
            streams: Mutex::default(),
            back: Mutex::default(),
        })
    }

    /// Says where answers go; before that nothing is asked.
    pub(super) fn connect(&self, back: Arc<dyn Back>) {
        *lock(&self.back) = Some(back);
    }

    /// The bus has gone.
    pub(super) fn disconnect(&self) {
        lock(&self.back).take();
    }

    /// Everything that the store has, for [`agentd_bus::router::Router::restore`]. Call it before anybody is on the bus.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn restore(&self) -> Result<Vec<Kept>, StreamError> {
        let mut kept = Vec::new();
        let Some(store) = &self.store else {
            return Ok(kept);
        };
        for stats in ask(|done| store.streams(done)).await? {
            for damage in &stats.damaged {
                let (from, to) = (damage.offsets.start, damage.offsets.end);
                tracing::error!(
                    "the {}: messages {from} to {to} are lost: {} ({})",
                    stats.name,
                    damage.why,
                    damage.place
                );
            }
            let Ok(settings) = serde_json::from_str::<Settings>(&stats.spec.settings) else {
                tracing::warn!(
                    "the {} was made by another agentd and is left alone",
                    stats.name
                );
                continue;
            };
            let stream = BusStream {
                uid: stats.name.uid,
                kind: match stats.name.kind {
                    StreamKind::Queue => BusKind::Queue,
                    StreamKind::Topic => BusKind::Topic,
                },
                name: stats.name.name.as_str().into(),
            };
            let spec = settings.spec();
            let records = read_back(&**store, &stats, &spec).await?;
            lock(&self.streams).insert(stream.clone(), Known::There(stats.id));
            kept.push(Kept {
                stream,
                spec,
                records,
            });
        }
        Ok(kept)
    }

    /// Forgets what streams need not keep any more, from time to time, for as long as the daemon lives.
    pub async fn keep_retention(self: Arc<Self>) {
        let Some(store) = &self.store else { return };
        let mut every = tokio::time::interval(RETAIN_EVERY);
        loop {
            every.tick().await;
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let now_ns = u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX);
            let streams = match ask(|done| store.streams(done)).await {
                Ok(streams) => streams,
                Err(StreamError::Closed) => return,
                Err(error) => {
                    tracing::warn!("cannot look at durable streams: {error}");
                    continue;
                }
            };
            for stream in streams {
                if stream.spec.retention == Retention::default() {
                    continue;
                }
                if let Err(error) = ask(|done| store.retain(stream.id, now_ns, done)).await {
                    tracing::warn!("the {} keeps more than it should: {error}", stream.name);
                }
            }
        }
    }

    /// Waits until everything that was asked is on the disk, acknowledgements that nobody waits for as well.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn flush(&self) -> Result<(), StreamError> {
        match &self.store {
            Some(store) => ask(|done| store.flush(done)).await,
            None => Ok(()),
        }
    }

    /// Carries out what the router asked. Never waits.
    pub(super) fn persist(self: &Arc<Self>, requests: Vec<Persist>) {
        for request in requests {
            match &self.store {
                Some(store) => self.carry_out(&**store, request),
                None => self.refuse(request),
            }
        }
    }

    fn refuse(&self, request: Persist) {
        let uid = request.stream().uid;
        match request {
            Persist::Declare { ticket, .. }
            | Persist::Append { ticket, .. }
            | Persist::Settle { ticket, .. } => {
                self.persisted(uid, ticket, Err(PersistError::NoStore));
            }
            Persist::Read { ticket, .. } => self.records(uid, ticket, Err(PersistError::NoStore)),
            Persist::Drop { .. } => {}
        }
    }

    fn carry_out(self: &Arc<Self>, store: &dyn StreamStore, request: Persist) {
        let stream = request.stream().clone();
        let id = {
            let mut streams = lock(&self.streams);
            match streams.get_mut(&stream) {
                Some(Known::Declaring(waiting)) => {
                    waiting.push(request);
                    return;
                }
                Some(Known::There(id)) => Some(*id),
                None => {
                    if matches!(request, Persist::Declare { .. }) {
                        streams.insert(stream.clone(), Known::Declaring(Vec::new()));
                    }
                    None
                }
            }
        };
        match (request, id) {
            (Persist::Declare { ticket, spec, .. }, id) => {
                self.declare(store, stream, ticket, spec, id);
            }
            (Persist::Append { ticket, batch, .. }, Some(id)) => {
                self.append(store, stream, ticket, &batch, id);
            }
            (
                Persist::Settle {
                    ticket,
                    offsets,
                    how,
                    ..
                },
                Some(id),
            ) => self.settle(store, stream, ticket, &offsets, how, id),
            (Persist::Drop { .. }, Some(id)) => {
                lock(&self.streams).remove(&stream);
                drop_stream(store, stream, id);
            }
            (
                Persist::Read {
                    ticket,
                    from,
                    max,
                    max_bytes,
                    ..
                },
                Some(id),
            ) => {
                let from = match from {
                    ReplayFrom::Offset(offset) => ReadFrom::Offset(offset),
                    ReplayFrom::TimeNs(at_ns) => ReadFrom::Time(at_ns),
                };
                let limit = ReadLimit {
                    records: max as usize,
                    bytes: max_bytes as usize,
                };
                let answer = self.answer();
                let done: Done<Records> = Box::new(move |read| {
                    answer.records(stream.uid, ticket, replayed(&stream, read));
                });
                store.read(id, from, limit, done);
            }
            // Only after its declaration failed, or it was dropped.
            (Persist::Append { ticket, .. } | Persist::Settle { ticket, .. }, None) => {
                self.persisted(stream.uid, ticket, Err(unknown(&stream)));
            }
            (Persist::Read { ticket, .. }, None) => {
                self.records(stream.uid, ticket, Err(unknown(&stream)));
            }
            (Persist::Drop { .. }, None) => {}
        }
    }

    fn declare(
        self: &Arc<Self>,
        store: &dyn StreamStore,
        stream: BusStream,
        ticket: u64,
        spec: BusSpec,
        known: Option<StreamId>,
    ) {
        let name = StreamName {
            uid: stream.uid,
            kind: match stream.kind {
                BusKind::Queue => StreamKind::Queue,
                BusKind::Topic => StreamKind::Topic,
            },
            name: stream.name.to_string(),
        };
        let (this, answer) = (Arc::downgrade(self), self.answer());
        let done = move |outcome: Result<agentd_storage::stream::Declared, StreamError>| {
            let id = outcome.as_ref().ok().map(|declared| declared.id);
            if known.is_none()
                && let Some(this) = this.upgrade()
            {
                this.declared(&stream, id);
            }
            let outcome = outcome.map(|declared| declared.next);
            let outcome = outcome.map_err(|error| persist_error(&stream, &error));
            answer.persisted(stream.uid, ticket, outcome);
        };
        store.declare(name, self.kept_as(&spec), Box::new(done));
    }

    /// The first declaration of a stream has come to its end: what waited for it goes on, in order.
    fn declared(self: &Arc<Self>, stream: &BusStream, mut id: Option<StreamId>) {
        let Some(store) = self.store.clone() else {
            return;
        };
        loop {
            let waiting = {
                let mut streams = lock(&self.streams);
                let Some(Known::Declaring(waiting)) = streams.get_mut(stream) else {
                    return;
                };
                let waiting = std::mem::take(waiting);
                if waiting.is_empty() {
                    // Under the lock: whatever comes from here on does not wait.
                    match id {
                        Some(id) => streams.insert(stream.clone(), Known::There(id)),
                        None => streams.remove(stream),
                    };
                    return;
                }
                waiting
            };
            let mut waiting = waiting.into_iter();
            while let Some(request) = waiting.next() {
                match (request, id) {
                    // Declared anew, after a drop or a failure: what is left waits for that.
                    (Persist::Declare { ticket, spec, .. }, None) => {
                        if let Some(Known::Declaring(later)) = lock(&self.streams).get_mut(stream) {
                            let came = std::mem::take(later);
                            later.extend(waiting.chain(came));
                        }
                        return self.declare(&*store, stream.clone(), ticket, spec, None);
                    }
                    (Persist::Drop { .. }, Some(gone)) => {
                        id = None;
                        drop_stream(&*store, stream.clone(), gone);
                    }
                    (request, id) => self.carry_out_waiting(&*store, stream, request, id),
                }
            }
        }
    }

    /// As [`Self::carry_out`] for a request that waited; those that come meanwhile still wait behind it.
    fn carry_out_waiting(
        self: &Arc<Self>,
        store: &dyn StreamStore,
        stream: &BusStream,
        request: Persist,
        id: Option<StreamId>,
    ) {
        match (request, id) {
            (Persist::Append { ticket, batch, .. }, Some(id)) => {
                self.append(store, stream.clone(), ticket, &batch, id);
            }
            (
                Persist::Settle {
                    ticket,
                    offsets,
                    how,
                    ..
                },
                Some(id),
            ) => self.settle(store, stream.clone(), ticket, &offsets, how, id),
            (Persist::Declare { ticket, spec, .. }, Some(id)) => {
                self.declare(store, stream.clone(), ticket, spec, Some(id));
            }
            (Persist::Append { ticket, .. } | Persist::Settle { ticket, .. }, None) => {
                self.persisted(stream.uid, ticket, Err(unknown(stream)));
            }
            // A replay before the first message, or a queue that goes as it comes.
            (Persist::Read { ticket, .. }, _) => {
                self.records(stream.uid, ticket, Ok((0, Vec::new())));
            }
            // Those of a stream that is there, and declarations of one that is not, are `declared`'s.
            (Persist::Drop { .. }, _) | (Persist::Declare { .. }, None) => {}
        }
    }

    /// A stream's own settings, or those of the configuration.
    fn kept_as(&self, spec: &BusSpec) -> StreamSpec {
        let retention = match spec {
            // A queue's bounds are the router's.
            BusSpec::Queue(_) => Retention::default(),
            BusSpec::Topic(topic) => Retention {
                max_bytes: some(topic.max_bytes).or(self.defaults.max_bytes),
                max_age: some(topic.max_age_s.into())
                    .map(Duration::from_secs)
                    .or(self.defaults.max_age),
            },
        };
        // Numbers and words: it can always be written.
        let settings = serde_json::to_string(&Settings::of(spec)).unwrap_or_default();
        StreamSpec {
            retention,
            compression: self.defaults.compression,
            compress_above: self.defaults.compress_above,
            settings,
        }
    }

    fn append(
        self: &Arc<Self>,
        store: &dyn StreamStore,
        stream: BusStream,
        ticket: u64,
        batch: &Batch,
        id: StreamId,
    ) {
        let record = |payload| NewRecord {
            at_ns: batch.at_ns,
            payload,
        };
        let records = batch.encoded().map(record).collect();
        let answer = self.answer();
        let done = move |outcome: Result<u64, StreamError>| {
            let outcome = outcome.map_err(|error| persist_error(&stream, &error));
            answer.persisted(stream.uid, ticket, outcome);
        };
        store.append(id, records, Box::new(done));
    }

    fn settle(
        self: &Arc<Self>,
        store: &dyn StreamStore,
        stream: BusStream,
        ticket: u64,
        offsets: &[OffsetRange],
        how: Settled,
        id: StreamId,
    ) {
        let range = |it: &OffsetRange| it.first..it.first.saturating_add(it.count);
        let how = match how {
            Settled::Gone => Settle::Done,
            Settled::Dead(reason) => Settle::Mark(reason.code()),
            Settled::Requeued => Settle::Mark(0),
        };
        let answer = self.answer();
        let done = move |outcome: Result<(), StreamError>| {
            let outcome = outcome.map(|()| 0);
            let outcome = outcome.map_err(|error| persist_error(&stream, &error));
            answer.persisted(stream.uid, ticket, outcome);
        };
        let ranges = offsets.iter().map(range).collect();
        store.settle(id, ranges, how, Box::new(done));
    }

    /// The way back, without this: an answer of the store must not be what keeps the store.
    fn answer(&self) -> Answer {
        Answer(lock(&self.back).clone())
    }

    fn persisted(&self, uid: u32, ticket: u64, outcome: Result<u64, PersistError>) {
        self.answer().persisted(uid, ticket, outcome);
    }

    fn records(&self, uid: u32, ticket: u64, outcome: Read) {
        self.answer().records(uid, ticket, outcome);
    }
}

/// Where one answer goes.
struct Answer(Option<Arc<dyn Back>>);

impl Answer {
    fn persisted(&self, uid: u32, ticket: u64, outcome: Result<u64, PersistError>) {
        if let Some(back) = self.0.as_ref().filter(|_| ticket != 0) {
            back.persisted(uid, ticket, outcome);
        }
    }

    fn records(&self, uid: u32, ticket: u64, outcome: Read) {
        if let Some(back) = &self.0 {
            back.records(uid, ticket, outcome);
        }
    }
}

/// Of a queue all that is not settled; of a topic the last ones, as many as it retains.
async fn read_back(
    store: &dyn StreamStore,
    stats: &StreamStats,
    spec: &BusSpec,
) -> Result<Vec<Restored>, StreamError> {
    let mut at = match spec {
        BusSpec::Queue(_) => stats.first,
        BusSpec::Topic(topic) => stats.next.saturating_sub(topic.retain.into()),
    };
    let mut restored = Vec::new();
    loop {
        let limit = ReadLimit::default();
        let some = ask(|done| store.unsettled(stats.id, at, limit, done)).await?;
        for record in &some.records {
            let dead = DeadReason::from_code(record.mark);
            let decoded = Restored::decode(record.offset, record.at_ns, dead, &record.payload);
            match decoded {
                Ok(decoded) => restored.push(decoded),
                Err(error) => tracing::error!(
                    "message {} of the {} is not what this agentd writes: {error}",
                    record.offset,
                    stats.name
                ),
            }
        }
        if some.next >= some.end || some.next <= at {
            return Ok(restored);
        }
        at = some.next;
    }
}

fn replayed(stream: &BusStream, read: Result<Records, StreamError>) -> Read {
    let read = read.map_err(|error| persist_error(stream, &error))?;
    for damage in &read.damaged {
        let (from, to) = (damage.offsets.start, damage.offsets.end);
        tracing::error!(
            "the {stream}: messages {from} to {to} are lost: {} ({})",
            damage.why,
            damage.place
        );
    }
    let mut list = Vec::with_capacity(read.records.len());
    for record in &read.records {
        match Replayed::decode(record.offset, record.at_ns, &record.payload) {
            Ok(one) => list.push(one),
            Err(error) => tracing::error!(
                "message {} of the {stream} is not what this agentd writes: {error}",
                record.offset
            ),
        }
    }
    Ok((read.next, list))
}

fn drop_stream(store: &dyn StreamStore, stream: BusStream, id: StreamId) {
    let done = move |outcome: Result<(), StreamError>| {
        if let Err(error) = outcome {
            tracing::error!("cannot drop the {stream}: {error}");
        }
    };
    store.drop_stream(id, Box::new(done));
}

fn unknown(stream: &BusStream) -> PersistError {
    PersistError::Failed(format!("the {stream} is not there; declare it again"))
}

fn persist_error(stream: &BusStream, error: &StreamError) -> PersistError {
    match error {
        StreamError::Full { .. } | StreamError::Overloaded { .. } => {
            PersistError::Full(error.to_string())
        }
        StreamError::Write { .. } | StreamError::Read { .. } | StreamError::Record { .. } => {
            tracing::error!("the {stream}: {error}");
            PersistError::Failed(error.to_string())
        }
        other => PersistError::Failed(other.to_string()),
    }
}

/// 0 stands for "not said".
fn some(number: u64) -> Option<u64> {
    (number > 0).then_some(number)
}

/// Asks the store and waits for it without holding up a thread.
async fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> Result<T, StreamError> {
    let (sender, receiver) = oneshot::channel();
    // Whoever does not wait any more needs no answer.
    question(Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.await.unwrap_or(Err(StreamError::Closed))
}

/// What is behind these locks is whole at any time, also after a panic elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
