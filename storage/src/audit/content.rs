//! What of a row goes into the chain: its table, its key, and the hash of every column that is not NULL.
//!
//! [`TABLES`] says it for each table, and the same list makes the statements that write rows ([`Row`]), update them
//! ([`update`]) and read them back ([`Table::read`]), so that what is hashed is what is stored. NULLs are left out:
//! a nullable column added by a later migration changes nothing of earlier rows. Some tables have no number of
//! their own; there, all rows of one owner or task are one entry.

use std::borrow::Cow;

use ring::digest;
use sqlx::{
    AssertSqlSafe, Row as _, Sqlite, SqliteConnection, TypeInfo as _, ValueRef as _,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::Hash;

/// Rows of one INSERT. Few different numbers, so that each statement is prepared once.
const ROWS: [usize; 3] = [64, 8, 1];

/// Groups read at once while everything is read.
const PAGE: i64 = 4096;

/// One table of the record.
#[derive(Debug)]
pub(crate) struct Table {
    /// Its number in the chain: never used again for another table.
    pub(crate) tag: u8,
    pub(crate) name: &'static str,
    /// What is hashed, in this order; new ones at the end.
    pub(crate) columns: &'static [&'static str],
    keyed: Keyed,
    /// Whose column `launch` says that a row goes when its launch is forgotten.
    pub(crate) of_launch: bool,
}

/// What identifies an entry's content.
#[derive(Debug)]
enum Keyed {
    /// The row's own `seq`.
    Seq,
    /// All rows together for which this expression over the FROM clause has the same value.
    Group {
        key: &'static str,
        from: &'static str,
        order: &'static str,
    },
}

/// `system` is -1, `uid:N` is N; anybody else never had an entry.
const OWNER: &str = "CASE WHEN owner = 'system' THEN -1 WHEN owner = 'uid:' || CAST(substr(owner, 5) AS INTEGER) \
                     THEN CAST(substr(owner, 5) AS INTEGER) ELSE -2 END";

macro_rules! tables {
    ($($const:ident = $tag:literal $name:literal $keyed:expr, $of_launch:literal, [$($column:literal),* $(,)?];)*) => {
        $(pub(crate) const $const: &Table = &Table {
            tag: $tag, name: $name, keyed: $keyed, of_launch: $of_launch, columns: &[$($column),*],
        };)*
        /// Every table that the chain covers.
        pub(crate) const TABLES: &[&Table] = &[$($const),*];
    };
}

tables! {
    LAUNCHES = 1 "launches" Keyed::Seq, false, [
        "id", "seq", "at_ms", "name", "uid", "policy", "policy_hash", "argv", "workspace", "driver", "mode", "kernel",
        "details", "state", "ready_at_ms", "pid", "host_uid", "layers", "landlock_abi", "degradations",
    ];
    EVENTS = 2 "events" Keyed::Seq, true, ["seq", "launch", "at_ms", "kind", "detail"];
    EXITS = 3 "exits" Keyed::Seq, true, [
        "launch", "seq", "at_ms", "kind", "code", "signal", "cause", "resources",
    ];
    MESSAGES = 4 "messages" Keyed::Seq, true, [
        "seq", "launch", "to_launch", "at_ms", "id", "sender", "receiver", "kind", "subject", "correlation", "bytes",
        "outcome",
    ];
    USAGE = 5 "usage" Keyed::Seq, true, [
        "seq", "launch", "at_ms", "source", "provider", "model", "request_id", "input", "output", "cache_read",
        "cache_write", "aborted", "estimated", "cost_nano_usd",
    ];
    DENIALS = 6 "denials" Keyed::Seq, true, [
        "seq", "launch", "at_ms", "layer", "what", "target", "rule", "origin",
    ];
    APPROVALS = 7 "approvals" Keyed::Seq, true, [
        "seq", "launch", "at_ms", "request_id", "tool", "decision", "decided_by", "reason",
    ];
    DRIVER_LINES = 8 "driver_lines" Keyed::Seq, true, [
        "seq", "launch", "at_ms", "direction", "line", "end_offset",
    ];
    QUESTIONS = 9 "questions" Keyed::Seq, true, [
        "id", "seq", "launch", "uid", "request_id", "kind", "tool", "input", "rule", "asked_at_ms", "expires_at_ms",
        "decided_at_ms", "decision", "decided_by", "scope", "reason",
    ];
    STANDING_RULES = 10 "standing_rules" Keyed::Seq, false, [
        "id", "seq", "uid", "scope", "subject", "kind", "decision", "covers", "made_at_ms", "made_by", "question",
        "revoked_at_ms", "revoked_by",
    ];
    TASKS = 11 "tasks" Keyed::Seq, false, [
        "seq", "id", "at_ms", "uid", "submitted_by", "request_id", "text", "terms", "parent", "retry_of", "depth",
        "boot_id", "queued_boot_ms", "deadline_boot_ms", "deadline_ms", "state", "cause", "changed_at_ms", "attempt",
        "launch", "agent", "turn", "not_before_boot_id", "not_before_boot_ms", "not_before_ms", "result", "error",
    ];
    TASK_TRANSITIONS = 12 "task_transitions" Keyed::Seq, false, [
        "seq", "task", "at_ms", "from_state", "to_state", "attempt", "launch", "agent", "cause",
    ];
    TASK_DEPENDENCIES = 13 "task_dependencies" Keyed::Group {
        key: "coalesce(t.seq, -1)",
        from: "task_dependencies d LEFT JOIN tasks t ON t.id = d.task",
        order: "d.task, d.needs",
    }, false, ["task", "needs"];
    UNITS = 14 "units" Keyed::Group { key: OWNER, from: "units", order: "owner, name" }, false, [
        "owner", "name", "uuid", "enabled", "changed_at_ms",
    ];
    UNIT_FILES = 15 "unit_files" Keyed::Group { key: OWNER, from: "unit_files", order: "owner, place" }, false, [
        "owner", "place", "origin", "text",
    ];
    REVOCATIONS = 17 "revocations" Keyed::Seq, true, [
        "seq", "launch", "at_ms", "kind", "pattern", "taken_by", "restored_at_ms", "restored_by",
    ];
    STREAMS = 18 "streams" Keyed::Seq, false, [
        "seq", "id", "uid", "kind", "name", "at_ms", "max_bytes", "max_age_ms", "compression", "compress_above", "settings",
        "dropped_at_ms",
    ];
    CHAIN_NOTES = 16 "chain_notes" Keyed::Seq, false, ["seq", "at_ms", "kind", "detail"];
}

/// The table with this number.
pub(crate) fn table(tag: i64) -> Option<&'static Table> {
    TABLES
        .iter()
        .copied()
        .find(|table| i64::from(table.tag) == tag)
}

/// What a version of a row, or of a group of rows, hashed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) tag: u8,
    pub(crate) key: i64,
    pub(crate) digest: Hash,
}

/// What a transaction wrote, in order; the chain's entries are made of it just before COMMIT.
#[derive(Debug, Default)]
pub(crate) struct Written(pub(crate) Vec<Content>);

impl Table {
    /// The list of columns for SELECT and RETURNING, with the entry's key in front.
    fn selected(&self) -> String {
        let key = match &self.keyed {
            Keyed::Seq => "seq",
            Keyed::Group { key, .. } => key,
        };
        format!("{key} AS k, {}", self.columns.join(", "))
    }

    /// Contents of all rows whose key is beyond `after`, some pages of them, in the order of keys. Empty at the end.
    pub(crate) async fn read(
        &self,
        db: &mut SqliteConnection,
        after: Option<i64>,
    ) -> Result<Vec<Content>, sqlx::Error> {
        let selected = self.selected();
        let rows = match &self.keyed {
            Keyed::Seq => {
                let sql = format!(
                    "SELECT {selected} FROM {} WHERE seq > ?1 ORDER BY seq LIMIT {PAGE}",
                    self.name
                );
                let query = sqlx::query(AssertSqlSafe(sql));
                query.bind(after.unwrap_or(i64::MIN)).fetch_all(db).await?
            }
            // Few: all at once.
            Keyed::Group { .. } if after.is_some() => Vec::new(),
            Keyed::Group { from, order, .. } => {
                let sql = format!("SELECT {selected} FROM {from} ORDER BY k, {order}");
                sqlx::query(AssertSqlSafe(sql)).fetch_all(db).await?
            }
        };
        self.contents(&rows)
    }

    /// The content of one key: none where there is no row.
    pub(crate) async fn read_one(
        &self,
        db: &mut SqliteConnection,
        key: i64,
    ) -> Result<Option<Content>, sqlx::Error> {
        let selected = self.selected();
        let sql = match &self.keyed {
            Keyed::Seq => format!("SELECT {selected} FROM {} WHERE seq = ?1", self.name),
            Keyed::Group { from, order, .. } => {
                format!("SELECT {selected} FROM {from} WHERE k = ?1 ORDER BY {order}")
            }
        };
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(key)
            .fetch_all(db)
            .await?;
        Ok(self.contents(&rows)?.pop())
    }

    /// The content of a group that has no row any more.
    pub(crate) fn nothing(&self, key: i64) -> Content {
        Digest::of(self).finish(self, key)
    }

    /// Hashes rows that are sorted by key.
    fn contents(&self, rows: &[SqliteRow]) -> Result<Vec<Content>, sqlx::Error> {
        let mut contents = Vec::with_capacity(rows.len());
        let mut open: Option<(i64, Digest)> = None;
        for row in rows {
            // A key that is no number (the file was tampered with) is one that never had an entry.
            let key: i64 = row.try_get("k").unwrap_or(i64::MIN);
            if open.as_ref().is_none_or(|(of, _)| *of != key)
                && let Some((of, digest)) = open.replace((key, Digest::of(self)))
            {
                contents.push(digest.finish(self, of));
            }
            if let Some((_, digest)) = &mut open {
                digest.row(row)?;
            }
        }
        contents.extend(open.map(|(key, digest)| digest.finish(self, key)));
        Ok(contents)
    }
}

/// A row's hash in the making. Each column is its place, the type, the length and the bytes, so no two rows look alike.
struct Digest(digest::Context);

impl Digest {
    fn of(table: &Table) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"agentd row 1\0");
        context.update(&[table.tag]);
        Self(context)
    }

    fn begin_row(&mut self) {
        self.0.update(&[0xff]);
    }

    fn column(&mut self, place: usize, kind: u8, bytes: &[u8]) {
        let mut head = [0; 10];
        // Tables have far fewer columns than that.
        head[0] = u8::try_from(place).unwrap_or(0xfe);
        head[1] = kind;
        head[2..].copy_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.0.update(&head);
        self.0.update(bytes);
    }

    fn value(&mut self, place: usize, value: &Value<'_>) {
        match value {
            Value::Null => {}
            Value::Int(it) => self.column(place, b'i', &it.to_be_bytes()),
            Value::Text(it) => self.column(place, b't', it.as_bytes()),
        }
    }

    /// A row as it came from the database; the first column is the key, and every type may turn up in a file that
    /// somebody else wrote to.
    fn row(&mut self, row: &SqliteRow) -> Result<(), sqlx::Error> {
        self.begin_row();
        for place in 0..row.len() - 1 {
            let raw = row.try_get_raw(place + 1)?;
            if raw.is_null() {
                continue;
            }
            let kind = raw.type_info().name().to_owned();
            if kind == "INTEGER" {
                let it: i64 = row.try_get_unchecked(place + 1)?;
                self.column(place, b'i', &it.to_be_bytes());
            } else {
                let bytes: &[u8] = row.try_get_unchecked(place + 1)?;
                let kind = match kind.as_str() {
                    "TEXT" => b't',
                    "BLOB" => b'b',
                    _ => b'?',
                };
                self.column(place, kind, bytes);
            }
        }
        Ok(())
    }

    fn finish(self, table: &Table, key: i64) -> Content {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.0.finish().as_ref());
        Content {
            tag: table.tag,
            key,
            digest,
        }
    }
}

/// A column's value.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Null,
    Int(i64),
    Text(Cow<'a, str>),
}

macro_rules! value_from_ints {
    ($($int:ty),*) => {$(
        impl From<$int> for Value<'_> {
            fn from(it: $int) -> Self {
                Self::Int(i64::from(it))
            }
        }
    )*};
}
value_from_ints!(i64, i32, u32, bool);

impl<'a> From<&'a str> for Value<'a> {
    fn from(it: &'a str) -> Self {
        Self::Text(Cow::Borrowed(it))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(it: &'a String) -> Self {
        Self::Text(Cow::Borrowed(it))
    }
}

impl From<String> for Value<'_> {
    fn from(it: String) -> Self {
        Self::Text(Cow::Owned(it))
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(it: Option<T>) -> Self {
        it.map_or(Self::Null, Into::into)
    }
}

impl<'a, T> From<&'a Option<T>> for Value<'a>
where
    &'a T: Into<Value<'a>>,
{
    fn from(it: &'a Option<T>) -> Self {
        it.as_ref().map_or(Self::Null, Into::into)
    }
}

pub(crate) type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

impl<'a> Value<'a> {
    fn bind<'q>(self, query: Bound<'q>) -> Bound<'q>
    where
        'a: 'q,
    {
        match self {
            Self::Null => query.bind(None::<i64>),
            Self::Int(it) => query.bind(it),
            Self::Text(Cow::Borrowed(it)) => query.bind(it),
            Self::Text(Cow::Owned(it)) => query.bind(it),
        }
    }
}

/// A row to be written. Columns are set in the order of the table's list; what is not set is NULL.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    table: &'static Table,
    key: i64,
    values: Vec<(usize, Value<'a>)>,
}

impl<'a> Row<'a> {
    /// A row of `table` with the entry's key `key`.
    pub(crate) fn of(table: &'static Table, key: i64) -> Self {
        let values = Vec::with_capacity(table.columns.len());
        Self { table, key, values }
    }

    pub(crate) fn set(mut self, column: &str, value: impl Into<Value<'a>>) -> Self {
        let from = self.values.last().map_or(0, |(last, _)| last + 1);
        let place = self.table.columns[from..]
            .iter()
            .position(|it| *it == column)
            .expect("columns of the table's list, in its order");
        self.values.push((from + place, value.into()));
        self
    }

    pub(crate) fn content(&self) -> Content {
        Self::group_content(self.table, self.key, std::slice::from_ref(self))
    }

    /// What all rows of a group hash to together; they are sorted as the table's list says.
    pub(crate) fn group_content(table: &'static Table, key: i64, rows: &[Self]) -> Content {
        let mut digest = Digest::of(table);
        for row in rows {
            digest.begin_row();
            for (place, value) in &row.values {
                digest.value(*place, value);
            }
        }
        digest.finish(table, key)
    }

    /// Writes it.
    pub(crate) async fn insert(
        self,
        db: &mut SqliteConnection,
        written: &mut Written,
    ) -> Result<(), sqlx::Error> {
        Self::insert_all(db, written, vec![self]).await
    }

    /// Writes rows of one table that set the same columns, in few statements.
    pub(crate) async fn insert_all(
        db: &mut SqliteConnection,
        written: &mut Written,
        rows: Vec<Self>,
    ) -> Result<(), sqlx::Error> {
        written.0.extend(rows.iter().map(Self::content));
        Self::store(db, rows).await
    }

    /// Writes rows whose entry somebody else makes.
    pub(crate) async fn store(
        db: &mut SqliteConnection,
        rows: Vec<Self>,
    ) -> Result<(), sqlx::Error> {
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let table = first.table;
        let columns: Vec<&str> = first
            .values
            .iter()
            .map(|(place, _)| table.columns[*place])
            .collect();
        let columns = columns.join(", ");
        let mut rows = rows.into_iter();
        while let Some(size) = piece(rows.len()) {
            let sql = insert_sql(table.name, &columns, size);
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (_, value) in rows.by_ref().take(size).flat_map(|row| row.values) {
                query = value.bind(query);
            }
            query.execute(&mut *db).await?;
        }
        Ok(())
    }
}

/// Carries out `UPDATE table SET {set}`, and notes each row's new content. `set` ends with a WHERE clause.
pub(crate) async fn update<'q>(
    db: &mut SqliteConnection,
    written: &mut Written,
    table: &'static Table,
    set: &str,
    bind: impl FnOnce(Bound<'q>) -> Bound<'q>,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "UPDATE {} SET {set} RETURNING {}",
        table.name,
        table.selected()
    );
    let query = sqlx::query(AssertSqlSafe(sql));
    let rows = bind(query).fetch_all(db).await?;
    written.0.extend(table.contents(&rows)?);
    Ok(())
}

/// How many of `left` rows the next INSERT takes.
pub(crate) fn piece(left: usize) -> Option<usize> {
    ROWS.into_iter().find(|size| *size <= left)
}

/// `INSERT INTO table (columns) VALUES (?, …), …`.
pub(crate) fn insert_sql(table: &str, columns: &str, rows: usize) -> String {
    let row = vec!["?"; columns.split(',').count()].join(",");
    let values = vec![format!("({row})"); rows].join(",");
    format!("INSERT INTO {table} ({columns}) VALUES {values}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_into_few_sizes_and_nothing_is_lost() {
        let mut left = 139;
        let mut sizes = Vec::new();
        while let Some(size) = piece(left) {
            sizes.push(size);
            left -= size;
        }
        assert_eq!(sizes, [64, 64, 8, 1, 1, 1]);
        assert_eq!(piece(0), None);
        assert_eq!(
            insert_sql("t", "a, b", 2),
            "INSERT INTO t (a, b) VALUES (?,?),(?,?)"
        );
    }

    #[test]
    fn tables_have_numbers_of_their_own() {
        for (at, table) in TABLES.iter().enumerate() {
            assert!(TABLES[..at].iter().all(|it| it.tag != table.tag));
            assert_eq!(
                table.columns.contains(&"seq"),
                matches!(table.keyed, Keyed::Seq)
            );
            assert!(!table.of_launch || table.columns.contains(&"launch"));
        }
    }

    /// The form of what is hashed is for ever: other builds of agentd verify it.
    #[test]
    fn the_hash_of_a_known_row_is_known() {
        let row = Row::of(EXITS, 7)
            .set("launch", "l")
            .set("seq", 7_i64)
            .set("at_ms", 12_i64)
            .set("kind", "exited")
            .set("code", 0_i32)
            .set("signal", None::<i32>)
            .set("cause", "program ended")
            .set("resources", "{}");
        let bytes: &[u8] = b"agentd row 1\0\x03\xff\
            \x00t\0\0\0\0\0\0\0\x01l\
            \x01i\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x07\
            \x02i\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x0c\
            \x03t\0\0\0\0\0\0\0\x06exited\
            \x04i\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\
            \x06t\0\0\0\0\0\0\0\x0dprogram ended\
            \x07t\0\0\0\0\0\0\0\x02{}";
        let expected = digest::digest(&digest::SHA256, bytes);
        let content = row.content();
        assert_eq!((content.tag, content.key), (3, 7));
        assert_eq!(content.digest[..], *expected.as_ref());
    }
}
