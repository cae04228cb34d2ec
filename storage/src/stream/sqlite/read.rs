//! Reading streams from the record's read-only connections.

use futures_util::TryStreamExt as _;
use sqlx::{Row as _, SqliteConnection};

use super::{
    book::{described, key, offset_of},
    refused,
};
use crate::{
    store::Store,
    stream::{
        Compression, Damage, ReadFrom, ReadLimit, Records, StoredRecord, StreamError, StreamId,
        StreamSpec, StreamStats, compress::expand,
    },
};

fn fault(store: &Store) -> impl Fn(sqlx::Error) -> StreamError + '_ {
    |error| refused(store.path(), &store.public(error))
}

/// How a stream is kept, if it is there.
pub(super) async fn spec(
    store: &Store,
    stream: StreamId,
) -> Result<Option<StreamSpec>, StreamError> {
    let row = sqlx::query("SELECT * FROM streams WHERE id = ?1")
        .bind(i64::from(stream.0))
        .fetch_optional(store.readers())
        .await
        .map_err(fault(store))?;
    row.map(|row| described(&row).map(|(_, _, spec)| spec))
        .transpose()
        .map_err(fault(store))
}

/// Records from a place on.
pub(super) async fn records(
    store: &Store,
    stream: StreamId,
    from: ReadFrom,
    limit: ReadLimit,
) -> Result<Records, StreamError> {
    let snapshot = store.snapshot().await;
    let db = &mut *snapshot.map_err(|error| refused(store.path(), &error))?;
    let end: Option<i64> = sqlx::query_scalar(
        "SELECT coalesce(e.next, 0) FROM streams s LEFT JOIN stream_ends e ON e.stream = s.id
         WHERE s.id = ?1 AND s.dropped_at_ms IS NULL",
    )
    .bind(i64::from(stream.0))
    .fetch_optional(&mut *db)
    .await
    .map_err(fault(store))?;
    let end = end
        .ok_or(StreamError::Unknown { id: stream })?
        .cast_unsigned();
    let start = match from {
        ReadFrom::Offset(offset) => offset,
        ReadFrom::Time(at_ns) => first_at(db, stream, at_ns, end)
            .await
            .map_err(fault(store))?,
    };
    let mut found = Records {
        next: end,
        end,
        ..Records::default()
    };
    let mut rows = sqlx::query(
        "SELECT key, at_ns, compression, raw_len, mark, payload FROM stream_records
         WHERE key BETWEEN ?1 AND ?2 ORDER BY key",
    )
    .bind(key(stream, start))
    .bind(key(stream, u64::MAX))
    .fetch(&mut *db);
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await.map_err(fault(store))? {
        let offset = offset_of(row.try_get("key").map_err(fault(store))?);
        if !found.records.is_empty()
            && (found.records.len() >= limit.records || bytes >= limit.bytes)
        {
            found.next = offset;
            break;
        }
        match record(&row, offset).map_err(fault(store))? {
            Ok(record) => {
                bytes += record.payload.len();
                found.records.push(record);
            }
            Err(why) => found.damaged.push(Damage {
                offsets: offset..offset + 1,
                place: format!("stream_records of {}", store.path().display()),
                why,
            }),
        }
    }
    Ok(found)
}

fn record(
    row: &sqlx::sqlite::SqliteRow,
    offset: u64,
) -> Result<Result<StoredRecord, String>, sqlx::Error> {
    let Some(compression) = Compression::from_number(row.try_get("compression")?) else {
        return Ok(Err("an unknown compression".to_owned()));
    };
    let payload = expand(
        compression,
        row.try_get("raw_len")?,
        row.try_get("payload")?,
    );
    let at_ns: i64 = row.try_get("at_ns")?;
    let mark = row.try_get("mark")?;
    Ok(payload.map(|payload| StoredRecord {
        offset,
        at_ns: at_ns.cast_unsigned(),
        mark,
        payload,
    }))
}

/// The first offset of that time or later: times grow with offsets, so it is found by halving.
async fn first_at(
    db: &mut SqliteConnection,
    stream: StreamId,
    at_ns: u64,
    end: u64,
) -> Result<u64, sqlx::Error> {
    let (mut low, mut high) = (0, end);
    while low < high {
        let middle = low + (high - low) / 2;
        let at: Option<i64> = sqlx::query_scalar(
            "SELECT at_ns FROM stream_records WHERE key BETWEEN ?1 AND ?2 ORDER BY key LIMIT 1",
        )
        .bind(key(stream, middle))
        .bind(key(stream, u64::MAX))
        .fetch_optional(&mut *db)
        .await?;
        if at.is_none_or(|at| at.cast_unsigned() >= at_ns) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}

/// Every stream.
pub(super) async fn streams(store: &Store) -> Result<Vec<StreamStats>, StreamError> {
    let snapshot = store.snapshot().await;
    let db = &mut *snapshot.map_err(|error| refused(store.path(), &error))?;
    let rows = sqlx::query(
        "SELECT s.*, coalesce(e.next, 0) AS next FROM streams s LEFT JOIN stream_ends e ON e.stream = s.id
         WHERE s.dropped_at_ms IS NULL ORDER BY s.uid, s.kind DESC, s.name",
    )
    .fetch_all(&mut *db)
    .await
    .map_err(fault(store))?;
    let trouble = store.health().trouble;
    let mut streams = Vec::with_capacity(rows.len());
    for row in &rows {
        let (id, name, spec) = described(row).map_err(fault(store))?;
        let next: i64 = row.try_get("next").map_err(fault(store))?;
        let (first, count, bytes): (Option<i64>, i64, i64) = sqlx::query_as(
            "SELECT min(key), count(*), coalesce(sum(length(payload)), 0) FROM stream_records
             WHERE key BETWEEN ?1 AND ?2",
        )
        .bind(key(id, 0))
        .bind(key(id, u64::MAX))
        .fetch_one(&mut *db)
        .await
        .map_err(fault(store))?;
        streams.push(StreamStats {
            id,
            name,
            spec,
            first: first.map_or(next.cast_unsigned(), offset_of),
            next: next.cast_unsigned(),
            unsettled: count.cast_unsigned(),
            disk_bytes: bytes.cast_unsigned(),
            damaged: Vec::new(),
            trouble: trouble.clone(),
        });
    }
    Ok(streams)
}
