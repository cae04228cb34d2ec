//! The chain itself: entries made of what a transaction wrote, the signed head at its end, and what is looked at when
//! the record is opened.
//!
//! The writer owns one [`Chain`]. [`Chain::seal`] runs inside its transaction and writes the entries; after COMMIT,
//! [`Chain::committed`] moves the chain on and rewrites the head file. A transaction that comes to nothing leaves both
//! as they were. [`Chain::open`] compares the record with the head file and the key, and puts what it finds on record:
//! it refuses nothing, because a daemon that can't start records nothing at all.

use std::{io, path::Path};

use ring::digest;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::{
    GENESIS, Hash,
    content::{self, CHAIN_NOTES, Content, Row, TABLES, Written},
    forget::{self, Checkpoint},
    head::{Head, HeadFile},
    key::{Origin, PublicKey, SigningKey},
    note::{Note, NoteKind},
};
use crate::{
    error::{StoreError, classify},
    event::unix_ms,
    open::io_error,
    transaction,
};

const COLUMNS: &str = "key, tbl, n, digest, prev";
const COLUMNS_OF_HEAD: &str = "key, tbl, n, digest, prev, at_ms, signature";

/// One entry as it is hashed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) n: u64,
    pub(super) tag: u8,
    pub(super) key: i64,
    pub(super) digest: Hash,
    /// The link of the entry before.
    pub(super) prev: Hash,
    /// Whether a signed head stands on it.
    pub(super) ends: bool,
}

impl Entry {
    /// The hash that the next entry carries.
    pub(super) fn link(&self) -> Hash {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"agentd link 1\0");
        context.update(&self.prev);
        context.update(&self.n.to_be_bytes());
        context.update(&[self.tag, u8::from(self.ends)]);
        context.update(&self.key.to_be_bytes());
        context.update(&self.digest);
        let mut link = [0; 32];
        link.copy_from_slice(context.finish().as_ref());
        link
    }
}

/// A number of ours as SQLite keeps it; no chain gets near the limit.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The chain as of the last commit.
pub(crate) struct Chain {
    key: SigningKey,
    file: HeadFile,
    /// The last entry, 0 for none, and its link.
    n: u64,
    link: Hash,
    /// What the opening found that should not have happened.
    pub(crate) incidents: Vec<Note>,
}

/// What a transaction adds; nothing of it holds before COMMIT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed(Option<Head>);

impl Chain {
    /// Takes up the chain of the record, and begins it where there is none yet. `seq` is the number of the next fact;
    /// the number after those used here comes back with it.
    pub(crate) async fn open(
        path: &Path,
        db: &mut SqliteConnection,
        seq: i64,
    ) -> Result<(Self, i64), StoreError> {
        let on_file = Head::beside(path).map_err(|error| io_error(path, &error))?;
        let (mut chain, origin) = Self::beside(path)?;
        let opened = chain.take_up(db, seq, origin, on_file).await;
        let seq = opened.map_err(|error| classify(path, &error))?;
        Ok((chain, seq))
    }

    /// A chain without a row yet, with the key and the head's file beside the record, and where the key comes from.
    fn beside(path: &Path) -> Result<(Self, Origin), StoreError> {
        let (key, origin) = SigningKey::beside(path).map_err(|source| StoreError::Key {
            path: path.to_owned(),
            source,
        })?;
        let file = HeadFile::open(path).map_err(|error| io_error(path, &error))?;
        let chain = Self {
            key,
            file,
            n: 0,
            link: GENESIS,
            incidents: Vec::new(),
        };
        Ok((chain, origin))
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    async fn take_up(
        &mut self,
        db: &mut SqliteConnection,
        mut seq: i64,
        origin: Origin,
        on_file: Option<Head>,
    ) -> Result<i64, sqlx::Error> {
        let mut notes = Vec::new();
        let last = last_head(db).await?;
        match last {
            Some(head) => {
                (self.n, self.link) = (head.n, head.link);
                if !head.is_signed_by(&self.key.public()) {
                    let text = format!(
                        "the head of entry {} is not signed with this agentd's key {}",
                        head.n,
                        self.key.public()
                    );
                    notes.push((NoteKind::NewKey, text));
                }
            }
            None if origin == Origin::Found && on_file.is_none() => {
                let text =
                    "there is a signing key, and neither a chain nor a head on file".to_owned();
                notes.push((NoteKind::HeadLost, text));
            }
            None => {}
        }
        notes.extend(self.judge(db, last, on_file).await?);
        if last.is_none() {
            let rows = self.take_in(db).await?;
            let key = self.key.public();
            notes.push(match rows {
                0 => (NoteKind::Begun, format!("the key is {key}")),
                _ => (
                    NoteKind::TakenIn,
                    format!("{rows} rows from before the chain, as they were; the key is {key}"),
                ),
            });
        }
        for (kind, detail) in notes {
            self.note(db, seq, kind, &detail).await?;
            if kind.is_incident() {
                self.incidents.push(Note {
                    seq,
                    at_ms: unix_ms(),
                    kind,
                    detail,
                });
            }
            seq += 1;
        }
        Ok(seq)
    }

    /// Compares the record with the head on file.
    async fn judge(
        &self,
        db: &mut SqliteConnection,
        last: Option<Head>,
        on_file: Option<Head>,
    ) -> Result<Option<(NoteKind, String)>, sqlx::Error> {
        let Some(on_file) = on_file else {
            return Ok(last.map(|head| {
                let text = format!(
                    "the record goes to entry {}; no head on file says how far it should go",
                    head.n
                );
                (NoteKind::HeadLost, text)
            }));
        };
        if on_file.n > self.n {
            let text = format!(
                "the record ends with entry {}; the head on file is {}",
                self.n,
                on_file.noted()
            );
            return Ok(Some((NoteKind::Cut, text)));
        }
        // The file may be older than the record after a power cut; then its entry is still there.
        let there = match link_at(db, on_file.n).await? {
            At::Entry(link) => link == on_file.link,
            At::Forgotten => true,
            At::Nowhere => false,
        };
        Ok((!there).then(|| {
            let text = format!(
                "entry {} of the record is another than the head on file says, {}",
                on_file.n,
                on_file.noted()
            );
            (NoteKind::Forked, text)
        }))
    }

    /// Makes an entry of every row as it is.
    async fn take_in(&mut self, db: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        let mut rows = 0;
        for table in TABLES {
            let mut after = None;
            loop {
                let contents = table.read(db, after).await?;
                let Some(last) = contents.last() else { break };
                after = Some(last.key);
                rows += contents.len() as u64;
                self.commit(db, Written(contents)).await?;
            }
        }
        Ok(rows)
    }

    /// Takes in a record that was recovered from the damaged one whose last head was `before`. The entries of that
    /// one are replaced by a checkpoint, so that the numbers go on and the last head noted of it still verifies.
    pub(crate) async fn recover(
        path: &Path,
        db: &mut SqliteConnection,
        before: Option<Head>,
        rows_lost: u64,
    ) -> Result<(), StoreError> {
        let fault = |error: sqlx::Error| classify(path, &error);
        let (mut chain, _) = Self::beside(path)?;
        let seq = crate::row::last_seq(db).await.map_err(fault)? + 1;
        chain
            .begin_again(db, seq, before, rows_lost)
            .await
            .map_err(fault)
    }

    async fn begin_again(
        &mut self,
        db: &mut SqliteConnection,
        seq: i64,
        before: Option<Head>,
        rows_lost: u64,
    ) -> Result<(), sqlx::Error> {
        transaction::begin(db).await?;
        let emptied = self.replace_all(db, before).await;
        transaction::settle(db, emptied).await?;
        let rows = self.take_in(db).await?;
        let text =
            format!("{rows} rows of a damaged record, as they were; {rows_lost} were not readable");
        self.note(db, seq, NoteKind::Recovered, &text).await
    }

    async fn replace_all(
        &mut self,
        db: &mut SqliteConnection,
        before: Option<Head>,
    ) -> Result<(), sqlx::Error> {
        for table in ["chain", "checkpoints"] {
            sqlx::query(AssertSqlSafe(format!("DELETE FROM {table}")))
                .execute(&mut *db)
                .await?;
        }
        if let Some(before) = before {
            (self.n, self.link) = (before.n, before.link);
            let stretch = Checkpoint {
                first: 1,
                last: before.n,
                before: GENESIS,
                link: before.link,
                at_ms: unix_ms(),
                why: "recovered from damage".to_owned(),
            };
            stretch.insert(db, &self.key).await?;
        }
        Ok(())
    }

    /// Writes a note in a transaction of its own.
    async fn note(
        &mut self,
        db: &mut SqliteConnection,
        seq: i64,
        kind: NoteKind,
        text: &str,
    ) -> Result<(), sqlx::Error> {
        transaction::begin(db).await?;
        let mut written = Written::default();
        let sealed = async {
            note(db, &mut written, seq, kind, text).await?;
            self.seal(db, written).await
        };
        let sealed = sealed.await;
        let sealed = transaction::settle(db, sealed).await?;
        self.committed(sealed).map_err(sqlx::Error::Io)
    }

    /// Seals in a transaction of its own.
    async fn commit(
        &mut self,
        db: &mut SqliteConnection,
        written: Written,
    ) -> Result<(), sqlx::Error> {
        transaction::begin(db).await?;
        let sealed = self.seal(db, written).await;
        let sealed = transaction::settle(db, sealed).await?;
        self.committed(sealed).map_err(sqlx::Error::Io)
    }

    /// Writes the entries of what a transaction wrote, the last of them with a signed head. To be called in front of
    /// COMMIT, once.
    pub(crate) async fn seal(
        &self,
        db: &mut SqliteConnection,
        written: Written,
    ) -> Result<Sealed, sqlx::Error> {
        let Some((last, others)) = written.0.split_last() else {
            return Ok(Sealed(None));
        };
        let (mut n, mut prev) = (self.n, self.link);
        let mut next = |content: &Content, ends| {
            n += 1;
            let entry = Entry {
                n,
                tag: content.tag,
                key: content.key,
                digest: content.digest,
                prev,
                ends,
            };
            prev = entry.link();
            entry
        };
        let entries: Vec<Entry> = others.iter().map(|it| next(it, false)).collect();
        let end = next(last, true);
        let mut rest = &entries[..];
        while let Some(size) = content::piece(rest.len()) {
            let (piece, others) = rest.split_at(size);
            rest = others;
            let sql = content::insert_sql("chain", COLUMNS, size);
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for entry in piece {
                query = bind(query, entry);
            }
            query.execute(&mut *db).await?;
        }
        let head = Head::signed(end.n, end.link(), unix_ms(), &self.key);
        let sql = content::insert_sql("chain", COLUMNS_OF_HEAD, 1);
        bind(sqlx::query(AssertSqlSafe(sql)), &end)
            .bind(head.at_ms)
            .bind(head.signature.to_vec())
            .execute(db)
            .await?;
        Ok(Sealed(Some(head)))
    }

    /// Moves on to what was committed.
    ///
    /// # Errors
    /// The head file can't be written. The record itself is whole; what is missing is the second witness to its length.
    pub(crate) fn committed(&mut self, sealed: Sealed) -> io::Result<()> {
        let Some(head) = sealed.0 else {
            return Ok(());
        };
        (self.n, self.link) = (head.n, head.link);
        self.file.write(&head)
    }

    /// Takes the entries of rows that are being forgotten out of the chain; see [`forget::fold`].
    pub(crate) async fn fold(
        &self,
        db: &mut SqliteConnection,
        entries: Vec<forget::Folding>,
    ) -> Result<(), sqlx::Error> {
        forget::fold(db, &self.key, entries).await
    }
}

fn bind<'q>(query: content::Bound<'q>, entry: &Entry) -> content::Bound<'q> {
    query
        .bind(entry.key)
        .bind(i64::from(entry.tag))
        .bind(int(entry.n))
        .bind(entry.digest.to_vec())
        .bind(entry.prev.to_vec())
}

/// Writes a note. The caller holds the transaction.
pub(crate) async fn note(
    db: &mut SqliteConnection,
    written: &mut Written,
    seq: i64,
    kind: NoteKind,
    text: &str,
) -> Result<(), sqlx::Error> {
    Row::of(CHAIN_NOTES, seq)
        .set("seq", seq)
        .set("at_ms", unix_ms())
        .set("kind", kind.name())
        .set("detail", text)
        .insert(db, written)
        .await
}

/// The head that the record ends with, as it stands there: nobody has verified it.
pub(crate) async fn last_head(db: &mut SqliteConnection) -> Result<Option<Head>, sqlx::Error> {
    let row =
        sqlx::query("SELECT * FROM chain WHERE signature IS NOT NULL ORDER BY n DESC LIMIT 1")
            .fetch_optional(db)
            .await?;
    row.map(|row| {
        let entry = entry_of(&row)?;
        Ok(Head {
            n: entry.n,
            link: entry.link(),
            at_ms: row.try_get("at_ms")?,
            signature: bytes(&row, "signature")?,
        })
    })
    .transpose()
}

/// What the record has at a place of the chain.
enum At {
    Entry(Hash),
    Forgotten,
    Nowhere,
}

/// Looks for entry `n`, on which a signed head stood.
async fn link_at(db: &mut SqliteConnection, n: u64) -> Result<At, sqlx::Error> {
    if n == 0 {
        return Ok(At::Entry(GENESIS));
    }
    // As the index of heads is written, so that it serves.
    let row = sqlx::query("SELECT * FROM chain WHERE n = ?1 AND signature IS NOT NULL")
        .bind(int(n))
        .fetch_optional(&mut *db)
        .await?;
    if let Some(row) = row {
        return Ok(At::Entry(entry_of(&row)?.link()));
    }
    let forgotten: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM checkpoints WHERE first <= ?1 AND last >= ?1)",
    )
    .bind(int(n))
    .fetch_one(db)
    .await?;
    Ok(if forgotten {
        At::Forgotten
    } else {
        At::Nowhere
    })
}

/// An entry from its row.
pub(super) fn entry_of(row: &sqlx::sqlite::SqliteRow) -> Result<Entry, sqlx::Error> {
    let n: i64 = row.try_get("n")?;
    let tag: i64 = row.try_get("tbl")?;
    let signature: Option<Vec<u8>> = row.try_get("signature")?;
    Ok(Entry {
        n: u64::try_from(n).map_err(wrong("n"))?,
        tag: u8::try_from(tag).map_err(wrong("tbl"))?,
        key: row.try_get("key")?,
        digest: bytes(row, "digest")?,
        prev: bytes(row, "prev")?,
        ends: signature.is_some(),
    })
}

/// A blob of known length.
pub(super) fn bytes<const N: usize>(
    row: &sqlx::sqlite::SqliteRow,
    column: &str,
) -> Result<[u8; N], sqlx::Error> {
    let found: Vec<u8> = row.try_get(column)?;
    <[u8; N]>::try_from(found).map_err(|found| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: format!("{} bytes instead of {N}", found.len()).into(),
    })
}

fn wrong<E>(column: &str) -> impl FnOnce(E) -> sqlx::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    let index = column.to_owned();
    move |source| sqlx::Error::ColumnDecode {
        index,
        source: Box::new(source),
    }
}
