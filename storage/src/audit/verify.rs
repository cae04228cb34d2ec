//! Verifying: every entry, every link, every signature and every row of a record, in the database or in a copy of it.
//!
//! First the chain from its first entry to its last: numbers without gaps, each entry with the hash of the one before,
//! heads and checkpoints signed by the key. Then every row of every table against the last entry of that row. Then the
//! heads that were kept elsewhere. What is found is sorted by entry, so that the first is where it began.
//!
//! Reads only, in one snapshot, a page at a time; keeps some 50 bytes a row in memory. Nothing that it reads is trusted.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{
    GENESIS, Hash,
    chain::{Entry, bytes, entry_of, int},
    content::{self, Content, TABLES, Table},
    forget::Checkpoint,
    head::{Head, NotedHead},
    key::PublicKey,
    note::{Note, NoteKind},
};
use crate::error::{StoreError, classify};

/// Findings told one by one; the rest is counted.
const TOLD: usize = 64;

/// What to verify, and against what.
#[derive(Clone, Debug)]
pub struct Verify {
    /// The database file.
    pub record: PathBuf,
    /// The key that must have signed it.
    pub key: PublicKey,
    /// A head that somebody noted.
    pub noted: Option<NotedHead>,
    /// The head that was kept beside the record.
    pub on_file: Option<Head>,
    /// Whether a record without such a head is a finding: so it is where agentd keeps one, and not of a lone copy.
    pub wants_file: bool,
    /// Incidents that were looked into: numbers of notes.
    pub known: Vec<i64>,
}

/// What kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Entries are missing between two others.
    Gap,
    /// An entry doesn't follow from the one before.
    Link,
    /// A head, or the last entry, isn't signed by the key.
    Signature,
    /// A checkpoint isn't signed by the key or doesn't fit.
    Checkpoint,
    /// A row is other than its last entry says.
    Edited,
    /// A row that has an entry isn't there.
    Removed,
    /// A row that is there has no entry.
    Added,
    /// The record doesn't go as far as a head that was kept elsewhere.
    Cut,
    /// A head that was kept elsewhere isn't in the record.
    Head,
    /// A start of agentd found the record other than it was left.
    Incident,
    /// Something in the record can't be read as what it should be.
    Unreadable,
}

/// One damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The entry where it shows, if it has one.
    pub entry: Option<u64>,
    /// What kind.
    pub kind: FindingKind,
    /// Of a row: its table.
    pub table: Option<String>,
    /// Of a row: its number in the order of recording.
    pub seq: Option<i64>,
    /// A sentence for people.
    pub text: String,
}

/// Entries that were forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folded {
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// When, ms since the epoch.
    pub at_ms: i64,
    /// Why.
    pub why: String,
}

/// What verifying found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Version of this shape: 1.
    pub schema: u32,
    /// Whether nothing was found.
    pub ok: bool,
    /// The database file.
    pub record: PathBuf,
    /// The public key it was held against.
    pub key: String,
    /// The head it ends with, to be noted.
    pub head: Option<String>,
    /// When that was committed, ms since the epoch.
    pub head_at_ms: Option<i64>,
    /// Entries that are there.
    pub entries: u64,
    /// Signed heads among them.
    pub heads: u64,
    /// Rows that were compared.
    pub rows: u64,
    /// Entries that were forgotten, by checkpoint.
    pub forgotten: Vec<Folded>,
    /// What the chain says about itself.
    pub notes: Vec<Note>,
    /// Whether the noted head was found: `None` where none was given, or where it lies in what was forgotten.
    pub noted_found: Option<bool>,
    /// Damages, the first entry's first; at most 64.
    pub findings: Vec<Finding>,
    /// All damages.
    pub found: u64,
}

/// Verifies a record. It is only read; a daemon may have it open.
///
/// # Errors
/// The file can't be read as a database at all, or is one from before the chain. Damage is no error.
pub async fn verify(what: &Verify) -> Result<Verification, StoreError> {
    let path = &what.record;
    let fault = |error: sqlx::Error| classify(path, &error);
    let mut db = connect(path).await.map_err(fault)?;
    let verified = async {
        let mut snapshot = db.begin().await?;
        let mut verifier = Verifier::new(what);
        verifier.run(&mut snapshot).await?;
        Ok(verifier.result())
    };
    let verified: Result<_, sqlx::Error> = verified.await;
    drop(db.close().await);
    verified.map_err(fault)
}

/// A copy on a medium that can't be written has no place for the files that a reader of a live record needs.
async fn connect(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .create_if_missing(false)
        .optimize_on_close(false, None);
    let mut db = options.clone().connect().await?;
    match sqlx::query("SELECT count(*) FROM sqlite_schema")
        .execute(&mut db)
        .await
    {
        Ok(_) => Ok(db),
        Err(_) => options.immutable(true).connect().await,
    }
}

/// What stands at a place of the chain.
enum Link {
    Entry(Entry, Option<(i64, [u8; 64])>),
    Fold(Checkpoint, Vec<u8>),
}

impl Link {
    fn first(&self) -> u64 {
        match self {
            Self::Entry(entry, _) => entry.n,
            Self::Fold(checkpoint, _) => checkpoint.first,
        }
    }
}

struct Verifier<'a> {
    what: &'a Verify,
    /// The place and link of what was read last.
    n: u64,
    link: Hash,
    /// Whether a signed head stands on it.
    signed: bool,
    head: Option<Head>,
    /// Whether the heads kept elsewhere have been come by.
    noted: Met,
    on_file: Met,
    /// The last version of each row, by table and key.
    rows: HashMap<(u8, i64), (u64, Hash)>,
    findings: Vec<Finding>,
    entries: u64,
    heads: u64,
    compared: u64,
    forgotten: Vec<Folded>,
    notes: Vec<Note>,
}

/// Whether a head that is looked for has been found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Met {
    NotYet,
    Here,
    /// Its entry is there, with another link.
    Other,
    Forgotten,
}

impl<'a> Verifier<'a> {
    fn new(what: &'a Verify) -> Self {
        Self {
            what,
            n: 0,
            link: GENESIS,
            signed: true,
            head: None,
            noted: Met::NotYet,
            on_file: Met::NotYet,
            rows: HashMap::new(),
            findings: Vec::new(),
            entries: 0,
            heads: 0,
            compared: 0,
            forgotten: Vec::new(),
            notes: Vec::new(),
        }
    }

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        self.schema(db).await?;
        self.chain(db).await?;
        for table in TABLES {
            self.table(db, table).await?;
        }
        self.rows_gone();
        self.kept_elsewhere();
        self.read_notes(db).await
    }

    fn found(&mut self, entry: Option<u64>, kind: FindingKind, text: String) {
        self.findings.push(Finding {
            entry,
            kind,
            table: None,
            seq: None,
            text,
        });
    }

    fn found_row(&mut self, entry: Option<u64>, kind: FindingKind, row: (u8, i64), text: &str) {
        let name = content::table(i64::from(row.0)).map_or("?", |table| table.name);
        self.findings.push(Finding {
            entry,
            kind,
            table: Some(name.to_owned()),
            seq: Some(row.1),
            text: format!("{name} {}: {text}", row.1),
        });
    }

    /// A trigger would act on behalf of whoever put it there; agentd has none, and no view.
    async fn schema(&mut self, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let strange: Vec<(String, String)> = sqlx::query_as(
            "SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'view') ORDER BY name",
        )
        .fetch_all(db)
        .await?;
        for (kind, name) in strange {
            let text = format!("there is a {kind} `{name}`, which agentd never makes");
            self.found(None, FindingKind::Added, text);
        }
        Ok(())
    }

    /// Walks entries and checkpoints in order.
    async fn chain(&mut self, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let folds = sqlx::query("SELECT * FROM checkpoints ORDER BY first")
            .fetch_all(&mut *db)
            .await?;
        let mut folds = folds
            .iter()
            .filter_map(|row| self.fold(row))
            .collect::<Vec<_>>();
        folds.reverse();
        // The table is in the order of rows, so SQLite sorts it, in a temporary file if it is large.
        let mut rows = sqlx::query("SELECT * FROM chain ORDER BY n").fetch(db);
        while let Some(row) = rows.try_next().await? {
            let Some(link) = self.entry(&row) else {
                continue;
            };
            while folds
                .last()
                .is_some_and(|fold| fold.first() <= link.first())
            {
                self.follow_last(&mut folds);
            }
            self.follow(&link);
        }
        while !folds.is_empty() {
            self.follow_last(&mut folds);
        }
        if !self.signed {
            let text = format!(
                "the record ends with entry {}, on which no signed head stands",
                self.n
            );
            self.found(Some(self.n), FindingKind::Signature, text);
        }
        Ok(())
    }

    fn follow_last(&mut self, folds: &mut Vec<Link>) {
        if let Some(fold) = folds.pop() {
            self.follow(&fold);
        }
    }

    fn fold(&mut self, row: &SqliteRow) -> Option<Link> {
        let read = || Ok((Checkpoint::of_row(row)?, row.try_get("signature")?));
        match read() {
            Ok((checkpoint, signature)) => Some(Link::Fold(checkpoint, signature)),
            Err(error) => {
                self.unreadable(row.try_get("first").ok(), "checkpoint", &error);
                None
            }
        }
    }

    fn entry(&mut self, row: &SqliteRow) -> Option<Link> {
        let read = || {
            let entry = entry_of(row)?;
            // Only a head has a time, and it is signed with it.
            let at_ms: Option<i64> = row.try_get("at_ms")?;
            let head = match (entry.ends, at_ms) {
                (true, Some(at_ms)) => Some((at_ms, bytes(row, "signature")?)),
                (false, None) => None,
                _ => {
                    return Err(sqlx::Error::Decode(
                        "a time and no signature, or the other way".into(),
                    ));
                }
            };
            Ok((entry, head))
        };
        match read() {
            Ok((entry, head)) => Some(Link::Entry(entry, head)),
            Err(error) => {
                self.unreadable(row.try_get("n").ok(), "entry", &error);
                None
            }
        }
    }

    fn unreadable(&mut self, n: Option<i64>, what: &str, error: &sqlx::Error) {
        let n = n.and_then(|n| u64::try_from(n).ok());
        let text = format!("{what} {} can't be read: {error}", n.unwrap_or(0));
        self.found(n, FindingKind::Unreadable, text);
    }

    fn follow(&mut self, link: &Link) {
        let first = link.first();
        if first <= self.n {
            let text = format!(
                "entry {first} is there twice, or lies in what a checkpoint says was forgotten"
            );
            self.found(Some(first), FindingKind::Link, text);
            if let Link::Entry(entry, _) = link {
                self.remember(entry);
            }
            return;
        }
        let gap = first != self.n + 1;
        if gap {
            let missing = match first - self.n {
                2 => format!("entry {} is missing", self.n + 1),
                _ => format!("entries {} to {} are missing", self.n + 1, first - 1),
            };
            self.found(Some(self.n + 1), FindingKind::Gap, missing);
        }
        match link {
            Link::Entry(entry, head) => self.follow_entry(entry, head.as_ref(), gap),
            Link::Fold(checkpoint, signature) => self.follow_fold(checkpoint, signature, gap),
        }
    }

    fn follow_entry(&mut self, entry: &Entry, head: Option<&(i64, [u8; 64])>, gap: bool) {
        if !gap && entry.prev != self.link {
            let text = format!(
                "entry {} doesn't follow from the one before it: one of the two was changed or is out of its place",
                entry.n
            );
            self.found(Some(entry.n), FindingKind::Link, text);
        }
        self.entries += 1;
        (self.n, self.link) = (entry.n, entry.link());
        self.signed = head.is_some();
        if let Some((at_ms, signature)) = head {
            let head = Head {
                n: entry.n,
                link: self.link,
                at_ms: *at_ms,
                signature: *signature,
            };
            self.heads += 1;
            if !head.is_signed_by(&self.what.key) {
                let after = self.head.map_or(0, |head| head.n);
                let text = format!(
                    "the head of entry {} is not signed by the key: entries {} to {} may be anything",
                    entry.n,
                    after + 1,
                    entry.n
                );
                self.found(Some(after + 1), FindingKind::Signature, text);
            }
            self.head = Some(head);
        }
        self.remember(entry);
        self.meet(entry.n, entry.n);
    }

    fn remember(&mut self, entry: &Entry) {
        let row = (entry.tag, entry.key);
        if content::table(i64::from(entry.tag)).is_none() {
            let text = format!(
                "entry {} is about table {}, which there is not",
                entry.n, entry.tag
            );
            self.found(Some(entry.n), FindingKind::Unreadable, text);
            return;
        }
        let last = self.rows.entry(row).or_insert((entry.n, entry.digest));
        if entry.n >= last.0 {
            *last = (entry.n, entry.digest);
        }
    }

    fn follow_fold(&mut self, checkpoint: &Checkpoint, signature: &[u8], gap: bool) {
        let Checkpoint { first, last, .. } = *checkpoint;
        if !checkpoint.is_signed_by(&self.what.key, signature) || last < first {
            let text = format!(
                "the checkpoint in place of entries {first} to {last} is not signed by the key"
            );
            self.found(Some(first), FindingKind::Checkpoint, text);
        }
        if !gap && checkpoint.before != self.link {
            let text = format!(
                "the checkpoint in place of entries {first} to {last} doesn't follow from entry {}",
                self.n
            );
            self.found(Some(first), FindingKind::Checkpoint, text);
        }
        self.forgotten.push(Folded {
            first,
            last,
            at_ms: checkpoint.at_ms,
            why: checkpoint.why.clone(),
        });
        (self.n, self.link) = (last.max(first), checkpoint.link);
        self.signed = true;
        self.meet(first, last);
    }

    /// Compares the heads that were kept elsewhere with where the chain is.
    fn meet(&mut self, first: u64, last: u64) {
        let link = self.link;
        let met = |n: Option<u64>, wanted: Hash, before: Met| match n {
            _ if wanted == link => Met::Here,
            Some(n) if n == last => Met::Other,
            Some(n) if (first..last).contains(&n) => Met::Forgotten,
            _ => before,
        };
        if let Some(noted) = &self.what.noted {
            self.noted = met(noted.n, noted.link, self.noted);
        }
        if let Some(head) = &self.what.on_file {
            self.on_file = met(Some(head.n), head.link, self.on_file);
        }
    }

    /// Compares every row of a table with its last entry.
    async fn table(
        &mut self,
        db: &mut SqliteConnection,
        table: &'static Table,
    ) -> Result<(), sqlx::Error> {
        let mut after = None;
        loop {
            let contents = table.read(db, after).await?;
            let Some(last) = contents.last() else {
                return Ok(());
            };
            after = Some(last.key);
            for content in &contents {
                self.compare(content);
            }
        }
    }

    fn compare(&mut self, content: &Content) {
        self.compared += 1;
        let row = (content.tag, content.key);
        match self.rows.remove(&row) {
            None => self.found_row(None, FindingKind::Added, row, "no entry is about it"),
            Some((n, digest)) if digest != content.digest => {
                let text = format!("it is other than entry {n} says");
                self.found_row(Some(n), FindingKind::Edited, row, &text);
            }
            Some(_) => {}
        }
    }

    /// What is left has an entry and no row; a group may have become empty.
    fn rows_gone(&mut self) {
        let gone = std::mem::take(&mut self.rows);
        for ((tag, key), (n, digest)) in gone {
            let empty = content::table(i64::from(tag)).map(|table| table.nothing(key).digest);
            if empty != Some(digest) {
                let text = format!("it is gone; entry {n} is about it");
                self.found_row(Some(n), FindingKind::Removed, (tag, key), &text);
            }
        }
    }

    fn kept_elsewhere(&mut self) {
        if let Some(noted) = self.what.noted {
            let text = match (self.noted, noted.n) {
                (Met::Here | Met::Forgotten, _) => None,
                (_, Some(n)) if n > self.n => Some((
                    FindingKind::Cut,
                    format!(
                        "the record ends with entry {}; entries up to {n} were there when the head {noted} was noted",
                        self.n
                    ),
                )),
                _ => Some((
                    FindingKind::Head,
                    format!(
                        "the noted head {noted} is not in the record: something up to it was changed"
                    ),
                )),
            };
            if let Some((kind, text)) = text {
                self.found(noted.n.map(|n| n.min(self.n + 1)), kind, text);
            }
        }
        match self.what.on_file {
            None if self.what.wants_file => {
                let text =
                    "no head is on file beside the record, so nobody can say how far it should go"
                        .to_owned();
                self.found(Some(self.n + 1), FindingKind::Head, text);
            }
            None => {}
            Some(head) => self.head_on_file(&head),
        }
    }

    fn head_on_file(&mut self, head: &Head) {
        if !head.is_signed_by(&self.what.key) {
            let text = format!(
                "the head on file, of entry {}, is not signed by the key",
                head.n
            );
            self.found(Some(head.n.min(self.n + 1)), FindingKind::Head, text);
            return;
        }
        if head.n > self.n {
            let text = format!(
                "the record ends with entry {}; entries up to {} were there when the head on file was written",
                self.n, head.n
            );
            self.found(Some(self.n + 1), FindingKind::Cut, text);
        } else if matches!(self.on_file, Met::Other | Met::NotYet) {
            let text = format!("entry {} is another than the head on file says", head.n);
            self.found(Some(head.n), FindingKind::Head, text);
        }
    }

    async fn read_notes(&mut self, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT * FROM chain_notes ORDER BY seq LIMIT {}",
            int(u64::MAX)
        )))
        .fetch_all(db)
        .await?;
        for row in rows {
            let (kind, detail): (String, String) = (row.try_get("kind")?, row.try_get("detail")?);
            let Some(kind) = NoteKind::ALL.into_iter().find(|it| it.name() == kind) else {
                // Its entry says that it was edited.
                continue;
            };
            let note = Note {
                seq: row.try_get("seq")?,
                at_ms: row.try_get("at_ms")?,
                kind,
                detail,
            };
            if kind.is_incident() && !self.what.known.contains(&note.seq) {
                let text = format!("note {}, {}: {}", note.seq, kind.name(), note.detail);
                self.found(None, FindingKind::Incident, text);
            }
            self.notes.push(note);
        }
        Ok(())
    }

    fn result(mut self) -> Verification {
        self.findings
            .sort_by_key(|it| (it.entry.unwrap_or(u64::MAX), it.kind));
        let found = self.findings.len() as u64;
        self.findings.truncate(TOLD);
        Verification {
            schema: 1,
            ok: found == 0,
            record: self.what.record.clone(),
            key: self.what.key.to_string(),
            head: self.head.map(|head| head.noted().to_string()),
            head_at_ms: self.head.map(|head| head.at_ms),
            entries: self.entries,
            heads: self.heads,
            rows: self.compared,
            forgotten: self.forgotten,
            notes: self.notes,
            noted_found: self.what.noted.and(match self.noted {
                Met::Here => Some(true),
                Met::Forgotten => None,
                Met::NotYet | Met::Other => Some(false),
            }),
            findings: self.findings,
            found,
        }
    }
}
