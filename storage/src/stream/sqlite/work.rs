//! What the writer is asked about streams, and how it is carried out within its transaction.

use std::ops::Range;

use sqlx::SqliteConnection;

use super::{Book, Compressed, book::key};
use crate::{
    audit::content::{Row, STREAMS, Written, piece, update},
    stream::{
        Compression, Declared, NewRecord, Settle, StreamError, StreamId, StreamName, StreamSpec,
    },
};

/// One thing to be done.
#[derive(Debug)]
pub(crate) enum StreamOp {
    Declare(StreamName, StreamSpec, i64),
    Drop(StreamId, i64),
    Append(StreamId, Vec<NewRecord>, Compressed),
    Settle(StreamId, Vec<Range<u64>>, Settle),
    Retain(StreamId, u64),
}

/// What came of it; good only once it is committed.
#[derive(Debug)]
pub(crate) enum Outcome {
    Declared(Declared),
    Offset(u64),
    Count(u64),
    Nothing,
}

type Answer = Box<dyn FnOnce(Result<Vec<Outcome>, StreamError>) + Send>;

/// Operations that are one transaction, and who is told.
pub(crate) struct StreamJob {
    pub(crate) ops: Vec<StreamOp>,
    pub(crate) outcomes: Vec<Outcome>,
    answer: Option<Answer>,
}

impl std::fmt::Debug for StreamJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamJob")
            .field("ops", &self.ops.len())
            .finish_non_exhaustive()
    }
}

impl StreamJob {
    pub(crate) fn new(
        ops: Vec<StreamOp>,
        answer: impl FnOnce(Result<Vec<Outcome>, StreamError>) + Send + 'static,
    ) -> Self {
        Self {
            ops,
            outcomes: Vec::new(),
            answer: Some(Box::new(answer)),
        }
    }

    pub(crate) fn answer(mut self, result: Result<(), StreamError>) {
        let outcomes = std::mem::take(&mut self.outcomes);
        if let Some(answer) = self.answer.take() {
            answer(result.map(|()| outcomes));
        }
    }
}

impl Drop for StreamJob {
    fn drop(&mut self) {
        // Nobody took it to its end: the record is closed.
        if let Some(answer) = self.answer.take() {
            answer(Err(StreamError::Closed));
        }
    }
}

/// Carries a job out in the open transaction; the next number of the record after it. The book has said that it can be done.
pub(crate) async fn carry_out(
    db: &mut SqliteConnection,
    written: &mut Written,
    mut seq: i64,
    book: &mut Book,
    job: &mut StreamJob,
) -> Result<i64, sqlx::Error> {
    job.outcomes.clear();
    for op in &job.ops {
        let outcome = match op {
            StreamOp::Declare(name, spec, at_ms) => {
                let declared = declare(db, written, seq, book, name, spec, *at_ms).await?;
                seq += i64::from(declared.new);
                Outcome::Declared(declared)
            }
            StreamOp::Drop(stream, at_ms) => {
                drop_stream(db, written, book, *stream, *at_ms).await?;
                Outcome::Nothing
            }
            StreamOp::Append(stream, records, compressed) => {
                Outcome::Offset(append(db, book, *stream, records, compressed).await?)
            }
            StreamOp::Settle(stream, ranges, how) => {
                for range in ranges {
                    settle(db, *stream, range, *how).await?;
                }
                Outcome::Nothing
            }
            StreamOp::Retain(stream, now_ns) => {
                Outcome::Count(retain(db, book, *stream, *now_ns).await?)
            }
        };
        job.outcomes.push(outcome);
    }
    Ok(seq)
}

async fn declare(
    db: &mut SqliteConnection,
    written: &mut Written,
    seq: i64,
    book: &mut Book,
    name: &StreamName,
    spec: &StreamSpec,
    at_ms: i64,
) -> Result<Declared, sqlx::Error> {
    let max_bytes = spec.retention.max_bytes.map(u64::cast_signed);
    let max_age = spec.retention.max_age;
    let max_age_ms = max_age.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    if let Some(id) = book.find(name) {
        if book.spec(id) != Some(spec) {
            let set = "max_bytes = ?2, max_age_ms = ?3, compression = ?4, compress_above = ?5, settings = ?6
                       WHERE id = ?1";
            update(db, written, STREAMS, set, |query| {
                query
                    .bind(i64::from(id.0))
                    .bind(max_bytes)
                    .bind(max_age_ms)
                    .bind(i64::from(spec.compression.number()))
                    .bind(i64::from(spec.compress_above))
                    .bind(&spec.settings)
            })
            .await?;
            book.respecify(id, spec);
        }
        let first: Option<i64> =
            sqlx::query_scalar("SELECT min(key) FROM stream_records WHERE key BETWEEN ?1 AND ?2")
                .bind(key(id, 0))
                .bind(key(id, u64::MAX))
                .fetch_one(&mut *db)
                .await?;
        let next = book.next(id);
        return Ok(Declared {
            id,
            new: false,
            first: first.map_or(next, |first| (first - key(id, 0)).cast_unsigned()),
            next,
        });
    }
    let id = book.add(name, spec);
    Row::of(STREAMS, seq)
        .set("seq", seq)
        .set("id", id.0)
        .set("uid", name.uid)
        .set("kind", name.kind.as_str())
        .set("name", &name.name)
        .set("at_ms", at_ms)
        .set("max_bytes", max_bytes)
        .set("max_age_ms", max_age_ms)
        .set("compression", i64::from(spec.compression.number()))
        .set("compress_above", spec.compress_above)
        .set("settings", &spec.settings)
        .insert(db, written)
        .await?;
    Ok(Declared {
        id,
        new: true,
        first: 0,
        next: 0,
    })
}

async fn drop_stream(
    db: &mut SqliteConnection,
    written: &mut Written,
    book: &mut Book,
    stream: StreamId,
    at_ms: i64,
) -> Result<(), sqlx::Error> {
    delete(db, stream, &(0..u64::MAX)).await?;
    sqlx::query("DELETE FROM stream_ends WHERE stream = ?1")
        .bind(i64::from(stream.0))
        .execute(&mut *db)
        .await?;
    update(
        db,
        written,
        STREAMS,
        "dropped_at_ms = ?2 WHERE id = ?1",
        |query| query.bind(i64::from(stream.0)).bind(at_ms),
    )
    .await?;
    book.remove(stream);
    Ok(())
}

async fn append(
    db: &mut SqliteConnection,
    book: &mut Book,
    stream: StreamId,
    records: &[NewRecord],
    compressed: &Compressed,
) -> Result<u64, sqlx::Error> {
    let first = book.next(stream);
    let mut at = 0;
    while let Some(size) = piece(records.len() - at) {
        let sql = crate::audit::content::insert_sql(
            "stream_records",
            "key, at_ns, compression, raw_len, payload",
            size,
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
        for place in at..at + size {
            let record = &records[place];
            let (compression, smaller) = match compressed {
                Compressed::Yes(smaller) => (smaller[place].0, smaller[place].1.as_deref()),
                Compressed::No => (Compression::None, None),
            };
            let (offset, at_ns) = book.append(stream, record.at_ns);
            query = query
                .bind(key(stream, offset))
                .bind(at_ns.cast_signed())
                .bind(i64::from(compression.number()))
                // Below `NewRecord::MAX`.
                .bind(i64::try_from(record.payload.len()).unwrap_or(i64::MAX))
                .bind(smaller.unwrap_or(&record.payload));
        }
        query.execute(&mut *db).await?;
        at += size;
    }
    Ok(first)
}

async fn settle(
    db: &mut SqliteConnection,
    stream: StreamId,
    range: &Range<u64>,
    how: Settle,
) -> Result<(), sqlx::Error> {
    match how {
        Settle::Done => delete(db, stream, range).await.map(drop),
        Settle::Mark(mark) => {
            sqlx::query("UPDATE stream_records SET mark = ?3 WHERE key >= ?1 AND key < ?2")
                .bind(key(stream, range.start))
                .bind(key(stream, range.end))
                .bind(i64::from(mark))
                .execute(db)
                .await
                .map(|_done| ())
        }
    }
}

/// Removes the records of a range; how many there were.
async fn delete(
    db: &mut SqliteConnection,
    stream: StreamId,
    range: &Range<u64>,
) -> Result<u64, sqlx::Error> {
    sqlx::query("DELETE FROM stream_records WHERE key >= ?1 AND key < ?2")
        .bind(key(stream, range.start))
        .bind(key(stream, range.end))
        .execute(db)
        .await
        .map(|done| done.rows_affected())
}

async fn retain(
    db: &mut SqliteConnection,
    book: &Book,
    stream: StreamId,
    now_ns: u64,
) -> Result<u64, sqlx::Error> {
    let Some(retention) = book.spec(stream).map(|spec| spec.retention) else {
        return Ok(0);
    };
    let (from, to) = (key(stream, 0), key(stream, u64::MAX));
    let mut gone = 0;
    if let Some(age) = retention.max_age {
        let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        // Times never go back within a stream.
        let young: Option<i64> = sqlx::query_scalar(
            "SELECT key FROM stream_records WHERE key BETWEEN ?1 AND ?2 AND at_ns >= ?3 ORDER BY key LIMIT 1",
        )
        .bind(from)
        .bind(to)
        .bind(now_ns.saturating_sub(age).cast_signed())
        .fetch_optional(&mut *db)
        .await?;
        gone += remove_before(db, from, young.unwrap_or(to)).await?;
    }
    if let Some(max) = retention.max_bytes {
        // The newest that fit stay.
        let too_old: Option<i64> = sqlx::query_scalar(
            "SELECT key FROM (SELECT key, sum(length(payload)) OVER (ORDER BY key DESC) AS behind
                              FROM stream_records WHERE key BETWEEN ?1 AND ?2)
             WHERE behind > ?3 ORDER BY key DESC LIMIT 1",
        )
        .bind(from)
        .bind(to)
        .bind(max.cast_signed())
        .fetch_optional(&mut *db)
        .await?;
        if let Some(too_old) = too_old {
            gone += remove_before(db, from, too_old + 1).await?;
        }
    }
    Ok(gone)
}

async fn remove_before(db: &mut SqliteConnection, from: i64, to: i64) -> Result<u64, sqlx::Error> {
    sqlx::query("DELETE FROM stream_records WHERE key >= ?1 AND key < ?2")
        .bind(from)
        .bind(to)
        .execute(db)
        .await
        .map(|done| done.rows_affected())
}
