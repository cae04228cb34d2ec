//! What the writer knows of the streams without asking the database: names, ids, how each is kept, and how far it is.
//!
//! Changes belong to the open transaction: [`Book::committed`] makes them last, [`Book::rolled_back`] forgets them.

use std::{collections::HashMap, time::Duration};

use sqlx::{Row as _, SqliteConnection};

use super::{StreamJob, StreamOp};
use crate::stream::{
    Compression, Retention, StreamError, StreamId, StreamKind, StreamName, StreamSpec,
};

/// Offsets of one stream.
const OFFSETS: u32 = 40;

/// The row of a record. An offset that no record can have is the end of the stream's rows.
pub(crate) fn key(stream: StreamId, offset: u64) -> i64 {
    let offset = offset.min((1 << OFFSETS) - 1);
    (i64::from(stream.0) << OFFSETS) | offset.cast_signed()
}

/// The reverse of [`key`] for a stream's own rows.
pub(crate) fn offset_of(key: i64) -> u64 {
    (key & ((1 << OFFSETS) - 1)).cast_unsigned()
}

#[derive(Clone, Debug)]
struct Entry {
    name: StreamName,
    spec: StreamSpec,
    next: u64,
    last_at_ns: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Book {
    streams: HashMap<StreamId, Entry>,
    /// As they will be after the open transaction; `None`: gone.
    changed: HashMap<StreamId, Option<Entry>>,
    last_id: u32,
    last_id_before: u32,
}

impl Book {
    pub(crate) async fn open(db: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let last: i64 = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM streams")
            .fetch_one(&mut *db)
            .await?;
        let rows = sqlx::query(
            "SELECT s.*, coalesce(e.next, 0) AS next, coalesce(e.last_at_ns, 0) AS last_at_ns
             FROM streams s LEFT JOIN stream_ends e ON e.stream = s.id WHERE s.dropped_at_ms IS NULL",
        )
        .fetch_all(&mut *db)
        .await?;
        let last_id = u32::try_from(last).unwrap_or(u32::MAX);
        let mut book = Self {
            last_id,
            last_id_before: last_id,
            ..Self::default()
        };
        for row in &rows {
            let (id, name, spec) = described(row)?;
            let entry = Entry {
                name,
                spec,
                next: row.try_get::<i64, _>("next")?.cast_unsigned(),
                last_at_ns: row.try_get::<i64, _>("last_at_ns")?.cast_unsigned(),
            };
            book.streams.insert(id, entry);
        }
        Ok(book)
    }

    fn get(&self, id: StreamId) -> Option<&Entry> {
        match self.changed.get(&id) {
            Some(changed) => changed.as_ref(),
            None => self.streams.get(&id),
        }
    }

    fn change(&mut self, id: StreamId) -> Option<&mut Entry> {
        let now = || self.streams.get(&id).cloned();
        self.changed.entry(id).or_insert_with(now).as_mut()
    }

    /// Whether everything in a job can be done.
    pub(crate) fn check(&self, job: &StreamJob) -> Result<(), StreamError> {
        let mut dropped = Vec::new();
        for op in &job.ops {
            let id = match op {
                StreamOp::Declare(..) => continue,
                StreamOp::Drop(id, _)
                | StreamOp::Append(id, ..)
                | StreamOp::Settle(id, ..)
                | StreamOp::Retain(id, _) => *id,
            };
            if self.get(id).is_none() || dropped.contains(&id) {
                return Err(StreamError::Unknown { id });
            }
            if matches!(op, StreamOp::Drop(..)) {
                dropped.push(id);
            }
        }
        Ok(())
    }

    pub(super) fn find(&self, name: &StreamName) -> Option<StreamId> {
        let new = self.changed.iter();
        let new = new.filter_map(|(id, entry)| Some((id, entry.as_ref()?)));
        let all = new.chain(self.streams.iter());
        let mut found = all.filter(|(_, entry)| entry.name == *name);
        found.find_map(|(id, _)| self.get(*id).map(|_| *id))
    }

    pub(super) fn spec(&self, id: StreamId) -> Option<&StreamSpec> {
        self.get(id).map(|entry| &entry.spec)
    }

    pub(super) fn next(&self, id: StreamId) -> u64 {
        self.get(id).map_or(0, |entry| entry.next)
    }

    pub(super) fn respecify(&mut self, id: StreamId, spec: &StreamSpec) {
        if let Some(entry) = self.change(id) {
            entry.spec = spec.clone();
        }
    }

    pub(super) fn add(&mut self, name: &StreamName, spec: &StreamSpec) -> StreamId {
        self.last_id += 1;
        let entry = Entry {
            name: name.clone(),
            spec: spec.clone(),
            next: 0,
            last_at_ns: 0,
        };
        let id = StreamId(self.last_id);
        self.changed.insert(id, Some(entry));
        id
    }

    pub(super) fn remove(&mut self, id: StreamId) {
        self.changed.insert(id, None);
    }

    /// The place and time of a new record.
    pub(super) fn append(&mut self, id: StreamId, at_ns: u64) -> (u64, u64) {
        let Some(entry) = self.change(id) else {
            return (0, at_ns);
        };
        let offset = entry.next;
        entry.next += 1;
        // As the database can hold it.
        entry.last_at_ns = entry.last_at_ns.max(at_ns.min(i64::MAX.cast_unsigned()));
        (offset, entry.last_at_ns)
    }

    /// Writes how far the streams are that the transaction changed.
    pub(crate) async fn write(&self, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        for (id, entry) in &self.changed {
            let Some(entry) = entry else { continue };
            sqlx::query(
                "INSERT INTO stream_ends (stream, next, last_at_ns) VALUES (?1, ?2, ?3)
                 ON CONFLICT (stream) DO UPDATE SET next = ?2, last_at_ns = ?3",
            )
            .bind(i64::from(id.0))
            .bind(entry.next.cast_signed())
            .bind(entry.last_at_ns.cast_signed())
            .execute(&mut *db)
            .await?;
        }
        Ok(())
    }

    pub(crate) fn committed(&mut self) {
        for (id, entry) in self.changed.drain() {
            match entry {
                Some(entry) => self.streams.insert(id, entry),
                None => self.streams.remove(&id),
            };
        }
        self.last_id_before = self.last_id;
    }

    pub(crate) fn rolled_back(&mut self) {
        self.changed.clear();
        self.last_id = self.last_id_before;
    }
}

/// A row of `streams`.
pub(super) fn described(
    row: &sqlx::sqlite::SqliteRow,
) -> Result<(StreamId, StreamName, StreamSpec), sqlx::Error> {
    let wrong = |what: &str| sqlx::Error::Decode(format!("streams: unknown {what}").into());
    let kind: String = row.try_get("kind")?;
    let compression: u8 = row.try_get("compression")?;
    let max_bytes: Option<i64> = row.try_get("max_bytes")?;
    let max_age: Option<i64> = row.try_get("max_age_ms")?;
    let name = StreamName {
        uid: row.try_get("uid")?,
        kind: StreamKind::parse(&kind).ok_or_else(|| wrong("kind"))?,
        name: row.try_get("name")?,
    };
    let spec = StreamSpec {
        retention: Retention {
            max_bytes: max_bytes.map(i64::cast_unsigned),
            max_age: max_age.map(|ms| Duration::from_millis(ms.cast_unsigned())),
        },
        compression: Compression::from_number(compression).ok_or_else(|| wrong("compression"))?,
        compress_above: row.try_get("compress_above")?,
        settings: row.try_get("settings")?,
    };
    Ok((StreamId(row.try_get("id")?), name, spec))
}
