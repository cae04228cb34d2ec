//! What the audit chain promises: nothing in the record can be edited, added, removed, cut off or put in another order
//! without `verify` finding it, and nothing that agentd does by itself is found.

mod chain;
mod mixtures;

use std::path::{Path, PathBuf};

use agentd_storage::{
    Approval, BootMoment, Denial, Direction, Event, Exit, Expired, Fact, FindingKind, Head, Launch,
    LaunchFailure, LaunchId, Message, NewTask, NoteKind, NotedHead, PublicKey, Question, Ready,
    Settlement, StandingRule, Store, TaskBatch, TaskChange, UnitRow, UnitText, Usage, Verification,
    Verify, Viewer,
    stream::{
        Done, NewRecord, Settle, StreamKind, StreamName, StreamSpec, StreamStore as _,
        sqlite::SqliteStreams,
    },
    verify,
};
use proptest::prelude::*;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _, SqliteConnection,
    sqlite::SqliteConnectOptions,
};

const ALICE: u32 = 1001;
const BOB: u32 = 1002;

fn event(launch: &str, fact: Fact) -> Event {
    Event {
        launch: launch.into(),
        at_ms: 7,
        fact,
    }
}

fn launch(id: &str, uid: u32) -> Event {
    let fact = Launch {
        name: id.into(),
        uid,
        policy: "coding".into(),
        policy_hash: "ab".repeat(32),
        kernel: "6.1".into(),
        workspace: Some("/w".into()),
        ..Launch::default()
    };
    event(id, Fact::Launch(fact))
}

fn note(launch: &str, text: &str) -> Event {
    event(launch, Fact::Note { text: text.into() })
}

fn message(from: &str, to: &str) -> Event {
    let message = Message {
        id: "1".into(),
        from: from.into(),
        to: to.into(),
        to_launch: Some(to.into()),
        subject: Some("ask".into()),
        correlation: Some("4".into()),
        ..Message::default()
    };
    event(from, Fact::Message(message))
}

fn task(id: &str, after: &[&str]) -> NewTask {
    let moment = BootMoment {
        boot_id: "boot".into(),
        boot_ms: 5,
        wall_ms: 6,
    };
    NewTask {
        id: id.into(),
        uid: ALICE,
        submitted_by: "uid 1001".into(),
        request_id: Some(format!("request {id}")),
        text: "do it".into(),
        terms: "{}".into(),
        parent: None,
        retry_of: None,
        depth: 0,
        after: after.iter().map(|&needs| needs.to_owned()).collect(),
        submitted: moment.clone(),
        deadline: Some(moment),
        state: "queued".into(),
        cause: "submitted".into(),
    }
}

fn question(id: &str) -> Fact {
    Fact::Asked(Box::new(Question {
        id: id.into(),
        uid: ALICE,
        request_id: "r".into(),
        kind: "tool".into(),
        tool: "Bash".into(),
        input: serde_json::json!({"command": "ls"}),
        rule: "coding.toml:3".into(),
        asked_at_ms: 1,
        expires_at_ms: 2,
    }))
}

fn rule(id: &str) -> Fact {
    Fact::RuleMade(Box::new(StandingRule {
        id: id.into(),
        uid: ALICE,
        scope: "user".into(),
        subject: String::new(),
        kind: "tool".into(),
        decision: "allow".into(),
        covers: serde_json::json!({"tool": "Bash"}),
        made_at_ms: 1,
        made_by: "uid 1001".into(),
        question: "q".into(),
    }))
}

/// One record of everything that can be put on record, twice where rows can be told apart; closed.
async fn everything(path: &Path) {
    let store = Store::open(path).await.unwrap();
    for (id, uid) in [("a", ALICE), ("b", BOB)] {
        let settled = Settlement {
            id: format!("q-{id}"),
            decision: "allow".into(),
            by: "uid 1001".into(),
            scope: Some("user".into()),
            reason: "why not".into(),
        };
        let line = |direction, line: &str| Fact::DriverLine {
            direction,
            line: line.into(),
            end: Some(9),
        };
        let ready = Ready {
            pid: 5,
            host_uid: 6,
            layers: vec!["landlock".into()],
            landlock_abi: 7,
            degradations: Vec::new(),
        };
        let usage = Usage {
            request_id: Some("r".into()),
            ..Usage::default()
        };
        let denial = Denial {
            origin: Some("coding.toml:7".into()),
            ..Denial::default()
        };
        let revoked = Fact::RuleRevoked {
            id: format!("rule-{id}"),
            by: "uid 1001".into(),
        };
        store.record_durable(launch(id, uid)).await.unwrap();
        let right = Fact::RightRevoked {
            right: "send".into(),
            pattern: "*".into(),
            by: "uid 1001".into(),
        };
        let restored = Fact::RightsRestored {
            by: "uid 1001".into(),
        };
        let facts = [
            right,
            restored,
            Fact::Ready(ready),
            question(&format!("q-{id}")),
            Fact::Settled(settled),
            rule(&format!("rule-{id}")),
            revoked,
            Fact::Usage(usage),
            Fact::Denial(denial),
            Fact::Approval(Approval::default()),
            line(Direction::In, "{}"),
            line(Direction::Out, "with\0a zero, and ünïcode"),
            Fact::Exit(Exit {
                code: Some(0),
                signal: Some(9),
                ..Exit::default()
            }),
        ];
        let events = facts.into_iter().map(|fact| event(id, fact)).collect();
        store.record_all_durable(events).await.unwrap();
    }
    store.record_durable(launch("failed", BOB)).await.unwrap();
    let failure = Fact::LaunchFailed(LaunchFailure::default());
    store
        .record_durable(event("failed", failure))
        .await
        .unwrap();
    let messages = vec![message("a", "b"), message("b", "a")];
    store.record_all_durable(messages).await.unwrap();
    let child = NewTask {
        parent: Some("t-1".into()),
        retry_of: Some("t-1".into()),
        ..task("t-3", &["t-2", "t-1", "t-2"])
    };
    let change = TaskChange {
        task: "t-1".into(),
        from: "queued".into(),
        to: "done".into(),
        launch: Some("a".into()),
        agent: Some("a".into()),
        turn: Some(3),
        not_before: task("t", &[]).deadline,
        result: Some("it is done".into()),
        error: Some("not at once".into()),
        ..TaskChange::default()
    };
    let batch = TaskBatch {
        new: vec![task("t-1", &[]), task("t-2", &["t-1"]), child],
        changes: vec![change],
        events: vec![note("a", "a turn is a task's")],
    };
    store.record_tasks(batch).await.unwrap();
    for owner in ["system", "uid:1001"] {
        for name in ["one", "two"] {
            let unit = UnitRow {
                owner: owner.into(),
                name: name.into(),
                uuid: format!("{owner} {name}"),
                enabled: Some(true),
                changed_at_ms: 3,
            };
            store.keep_unit(unit).await.unwrap();
        }
        let texts = ["x", "y"].map(|place| UnitText {
            place: place.into(),
            origin: format!("/u/{place}"),
            text: "[agent]".into(),
        });
        store
            .keep_unit_texts(owner.into(), texts.to_vec())
            .await
            .unwrap();
    }
    streams(&store).await;
    store.close().await.unwrap();
}

/// Two streams, one of them settled and dropped again; their messages are in no chain.
async fn streams(store: &Store) {
    async fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> T {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        question(Box::new(move |outcome| drop(sender.send(outcome))));
        receiver.await.unwrap().unwrap()
    }
    let streams = SqliteStreams::new(store.clone());
    for uid in [ALICE, BOB] {
        let name = StreamName {
            uid,
            kind: StreamKind::Queue,
            name: "work".into(),
        };
        let spec = StreamSpec::default();
        let id = ask(|done| streams.declare(name.clone(), spec.clone(), done))
            .await
            .id;
        let spec = StreamSpec {
            settings: "other".into(),
            ..spec
        };
        ask(|done| streams.declare(name, spec, done)).await;
        let record = NewRecord {
            at_ns: 1,
            payload: b"contents".as_slice().into(),
        };
        ask(|done| streams.append(id, vec![record.clone(), record], done)).await;
        ask(|done| streams.settle(id, vec![0..1; 1], Settle::Done, done)).await;
        if uid == BOB {
            ask(|done| streams.drop_stream(id, done)).await;
        }
    }
}

/// How `agentctl audit verify` looks at the record of a state directory.
fn in_place(path: &Path) -> Verify {
    Verify {
        record: path.to_owned(),
        key: PublicKey::beside(path).unwrap(),
        noted: None,
        on_file: Head::beside(path).unwrap(),
        wants_file: true,
        known: Vec::new(),
    }
}

async fn verified(path: &Path) -> Verification {
    verify(&in_place(path)).await.unwrap()
}

async fn is_whole(path: &Path) -> Verification {
    let verification = verified(path).await;
    assert!(verification.ok, "{:#?}", verification.findings);
    verification
}

fn kinds(verification: &Verification) -> Vec<FindingKind> {
    verification.findings.iter().map(|it| it.kind).collect()
}

fn noted(verification: &Verification) -> NotedHead {
    verification.head.as_ref().unwrap().parse().unwrap()
}

/// A record of everything in a folder that goes away with it.
async fn sample() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.db");
    everything(&path).await;
    (folder, path)
}

/// A copy of the whole state directory, to be tampered with.
fn copy(path: &Path) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let copied = folder.path().join(path.file_name().unwrap());
    (folder, copied)
}

/// Somebody with an editor for databases, to whom no constraint is sacred.
async fn intruder(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(false)
        .connect()
        .await
        .unwrap()
}

/// How many rows `sql` changed.
async fn run(db: &mut SqliteConnection, sql: &str) -> u64 {
    let done = sqlx::query(AssertSqlSafe(sql)).execute(db).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"))
        .rows_affected()
}

async fn tables(db: &mut SqliteConnection) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
               AND name NOT LIKE '_sqlx_%'
               -- Messages that wait, and how far streams are: in no chain (ADR 24).
               AND name NOT IN ('stream_records', 'stream_ends') ORDER BY name";
    sqlx::query_scalar(sql).fetch_all(db).await.unwrap()
}

/// Name and type of each column.
async fn columns(db: &mut SqliteConnection, table: &str) -> Vec<(String, String)> {
    let sql = "SELECT name, type FROM pragma_table_info(?1) ORDER BY cid";
    let query = sqlx::query_as(sql).bind(table);
    query.fetch_all(db).await.unwrap()
}

/// A value that the column did not have.
fn flipped(column: &str, kind: &str) -> String {
    match kind {
        "INTEGER" => format!("coalesce({column}, 0) + 1000003"),
        "TEXT" => format!("coalesce({column}, '') || 'x'"),
        "BLOB" => format!("CAST(coalesce(substr({column}, 2), x'') || x'7f' AS BLOB)"),
        other => panic!("a column of type {other}"),
    }
}

/// The key columns of each table, to name one of its rows.
async fn keys(db: &mut SqliteConnection, table: &str) -> Vec<String> {
    let sql = "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk";
    let query = sqlx::query_scalar(sql).bind(table);
    query.fetch_all(db).await.unwrap()
}

/// A WHERE clause for the first (`ASC`) or last (`DESC`) row of a table.
async fn one_row(db: &mut SqliteConnection, table: &str, which: &str) -> String {
    let keys = keys(db, table).await.join(", ");
    let order = keys.replace(", ", &format!(" {which}, "));
    format!("({keys}) = (SELECT {keys} FROM {table} ORDER BY {order} {which} LIMIT 1)")
}

#[tokio::test]
async fn what_agentd_records_verifies() {
    let (_folder, path) = sample().await;
    let first = is_whole(&path).await;
    assert_eq!(first.notes.len(), 1);
    assert_eq!(first.notes[0].kind, NoteKind::Begun);
    assert!(first.entries > 50 && first.heads > 5, "{first:?}");
    // Another start goes on where this one ended, and says nothing of itself.
    let store = Store::open(&path).await.unwrap();
    store.record_durable(note("a", "later")).await.unwrap();
    let live = is_whole(&path).await;
    assert_eq!(live.entries, first.entries + 1);
    assert_eq!(
        live.head,
        store
            .head()
            .await
            .unwrap()
            .map(|head| head.noted().to_string())
    );
    store.close().await.unwrap();
    let old = Verify {
        noted: Some(noted(&first)),
        ..in_place(&path)
    };
    assert_eq!(verify(&old).await.unwrap().noted_found, Some(true));
}

#[tokio::test]
async fn any_column_of_any_table_that_is_changed_is_found() {
    let (_folder, path) = sample().await;
    // There must be checkpoints and superseded rows to be changed as well.
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.forget(vec!["failed".into()]).await.unwrap(), 1);
    store.close().await.unwrap();
    is_whole(&path).await;
    let mut db = intruder(&path).await;
    let mut flips = Vec::new();
    for table in tables(&mut db).await {
        let mut rows = vec![
            one_row(&mut db, &table, "ASC").await,
            one_row(&mut db, &table, "DESC").await,
        ];
        if table == "chain" {
            // One on which no head stands.
            rows.push("n = (SELECT min(n) FROM chain WHERE signature IS NULL)".to_owned());
        }
        for row in rows {
            for (column, kind) in columns(&mut db, &table).await {
                let value = flipped(&column, &kind);
                flips.push((
                    format!("{table}.{column}"),
                    format!("UPDATE {table} SET {column} = {value} WHERE {row}"),
                ));
            }
        }
    }
    db.close().await.unwrap();
    assert!(flips.len() > 200, "only {} flips", flips.len());
    for (what, sql) in flips {
        let (_copied, path) = copy(&path);
        let mut db = intruder(&path).await;
        assert_eq!(run(&mut db, &sql).await, 1, "{sql}");
        db.close().await.unwrap();
        let verification = verified(&path).await;
        assert!(
            !verification.ok,
            "{what} was changed and nobody saw it: {sql}"
        );
    }
}

#[tokio::test]
async fn a_row_that_is_removed_or_added_is_found_in_every_table() {
    let (_folder, path) = sample().await;
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.forget(vec!["failed".into()]).await.unwrap(), 1);
    store.close().await.unwrap();
    let mut db = intruder(&path).await;
    let mut changes = Vec::new();
    for table in tables(&mut db).await {
        let row = one_row(&mut db, &table, "ASC").await;
        changes.push(format!("DELETE FROM {table} WHERE {row}"));
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for (column, kind) in columns(&mut db, &table).await {
            values.push(flipped(&column, &kind));
            names.push(column);
        }
        let (names, values) = (names.join(", "), values.join(", "));
        changes.push(format!(
            "INSERT INTO {table} ({names}) SELECT {values} FROM {table} WHERE {row}"
        ));
    }
    db.close().await.unwrap();
    for sql in changes {
        let (_copied, path) = copy(&path);
        let mut db = intruder(&path).await;
        assert_eq!(run(&mut db, &sql).await, 1, "{sql}");
        db.close().await.unwrap();
        let verification = verified(&path).await;
        assert!(!verification.ok, "nobody saw: {sql}");
    }
}

#[tokio::test]
async fn an_edit_a_removal_and_an_addition_are_named_with_their_entry() {
    let (_folder, path) = sample().await;
    let found = async |sql: &str| {
        let (_copied, path) = copy(&path);
        let mut db = intruder(&path).await;
        assert!(run(&mut db, sql).await > 0, "{sql}");
        db.close().await.unwrap();
        verified(&path).await.findings.remove(0)
    };
    let edited = found("UPDATE denials SET target = 'elsewhere'").await;
    assert_eq!(edited.kind, FindingKind::Edited);
    assert_eq!(edited.table.as_deref(), Some("denials"));
    assert!(edited.entry.is_some() && edited.seq.is_some(), "{edited:?}");
    let removed = found("DELETE FROM exits").await;
    assert_eq!(
        (removed.kind, removed.table.as_deref()),
        (FindingKind::Removed, Some("exits"))
    );
    let added = found("INSERT INTO events VALUES (99999, 'a', 1, 'note', 'made up')").await;
    assert_eq!((added.kind, added.seq), (FindingKind::Added, Some(99999)));
    let gap = found("DELETE FROM chain WHERE n = (SELECT min(n) FROM chain WHERE tbl = 7)").await;
    assert_eq!(gap.kind, FindingKind::Gap);
}

#[tokio::test]
async fn rows_and_entries_that_change_places_are_found() {
    let (_folder, path) = sample().await;
    // Two rows with each other's content, and two entries with each other's place.
    let swaps: [&[&str]; 3] = [
        &[
            "UPDATE launches SET seq = -seq WHERE id IN ('a', 'b')",
            "UPDATE launches SET seq = -(SELECT l.seq FROM launches l WHERE l.id <> launches.id AND l.seq < 0)
             WHERE id = 'a'",
            "UPDATE launches SET seq = (SELECT min(seq) FROM chain_notes) + 100000 WHERE id = 'b'",
        ],
        &[
            "UPDATE chain SET n = -n WHERE n IN (7, 8)",
            "UPDATE chain SET n = CASE n WHEN -7 THEN 8 ELSE 7 END WHERE n < 0",
        ],
        &[
            "CREATE TEMP TABLE t AS SELECT n, digest FROM chain WHERE n IN (7, 8)",
            "UPDATE chain SET digest = (SELECT digest FROM t WHERE t.n = 15 - chain.n) WHERE n IN (7, 8)",
        ],
    ];
    for swap in swaps {
        let (_copied, path) = copy(&path);
        let mut db = intruder(&path).await;
        for sql in swap {
            run(&mut db, sql).await;
        }
        db.close().await.unwrap();
        assert!(!verified(&path).await.ok, "{swap:?}");
    }
}

const ALL: Expired = Expired {
    ended_before_ms: i64::MAX,
    keep: 0,
};

#[tokio::test]
async fn what_is_forgotten_leaves_a_chain_that_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.db");
    let store = Store::open(&path).await.unwrap();
    let ids: Vec<String> = (0..8).map(|n| format!("l-{n}")).collect();
    for id in &ids {
        store.record_durable(launch(id, ALICE)).await.unwrap();
    }
    // Everything of all of them interleaved, some of it to each other.
    for n in 0..5 {
        let of = |id: &String| vec![note(id, &n.to_string()), message(id, &ids[n + 1])];
        let events = ids.iter().flat_map(of).collect();
        store.record_all_durable(events).await.unwrap();
    }
    let early = is_whole(&path).await;
    for id in ids.iter().step_by(2) {
        let exit = Fact::Exit(Exit::default());
        store.record_durable(event(id, exit)).await.unwrap();
    }
    let forget = |all: Vec<agentd_storage::ExpiredLaunch>| {
        all.into_iter().map(|it| it.id).collect::<Vec<LaunchId>>()
    };
    let expired = forget(store.expired(Viewer::Root, ALL).await.unwrap());
    assert_eq!(store.forget(expired).await.unwrap(), 4);
    let half = is_whole(&path).await;
    assert!(half.forgotten.len() > 4, "{half:?}");
    let forgotten: u64 = half.forgotten.iter().map(|it| it.last - it.first + 1).sum();
    assert!(half.entries + forgotten > early.entries);
    // The rest goes, and neighbouring checkpoints become one.
    for id in ids.iter().skip(1).step_by(2) {
        let exit = Fact::Exit(Exit::default());
        store.record_durable(event(id, exit)).await.unwrap();
    }
    let expired = forget(store.expired(Viewer::Root, ALL).await.unwrap());
    assert_eq!(store.forget(expired).await.unwrap(), 4);
    let rest = is_whole(&path).await;
    assert!(rest.forgotten.len() <= 3, "{rest:?}");
    assert_eq!(
        rest.notes.iter().map(|it| it.kind).collect::<Vec<_>>(),
        [NoteKind::Begun, NoteKind::Forgot, NoteKind::Forgot]
    );
    store.close().await.unwrap();
    // A head from before lies in what is forgotten: it can't be compared, and is no finding.
    let before = Verify {
        noted: Some(noted(&early)),
        ..in_place(&path)
    };
    let verification = verify(&before).await.unwrap();
    assert!(verification.ok && verification.noted_found.is_none());
    // It goes on after that.
    let store = Store::open(&path).await.unwrap();
    store.record_durable(launch("after", BOB)).await.unwrap();
    store.close().await.unwrap();
    is_whole(&path).await;
}

/// A record as an agentd from before the chain left it.
async fn without_chain(path: &Path) {
    everything(path).await;
    let mut db = intruder(path).await;
    for sql in [
        "DROP TABLE chain",
        "DROP TABLE checkpoints",
        "DROP TABLE chain_notes",
        "DELETE FROM _sqlx_migrations WHERE version = 8",
    ] {
        run(&mut db, sql).await;
    }
    db.close().await.unwrap();
    for name in ["audit.key", "audit.pub", "record.db.head"] {
        std::fs::remove_file(path.with_file_name(name)).unwrap();
    }
}

#[tokio::test]
async fn a_record_from_before_the_chain_is_taken_in_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.db");
    without_chain(&path).await;
    let store = Store::open(&path).await.unwrap();
    let verification = is_whole(&path).await;
    assert_eq!(verification.notes.len(), 1, "{:?}", verification.notes);
    assert_eq!(verification.notes[0].kind, NoteKind::TakenIn);
    store.record_durable(note("a", "later")).await.unwrap();
    store.close().await.unwrap();
    is_whole(&path).await;
    let mut db = intruder(&path).await;
    run(&mut db, "UPDATE approvals SET decision = 'deny'").await;
    db.close().await.unwrap();
    assert!(!verified(&path).await.ok);
}

#[tokio::test]
async fn a_recovered_record_goes_on_from_the_head_that_was_noted() {
    let (_folder, path) = sample().await;
    let before = is_whole(&path).await;
    agentd_storage::recover(&path).await.unwrap();
    let recovered = Verify {
        noted: Some(noted(&before)),
        ..in_place(&path)
    };
    let verification = verify(&recovered).await.unwrap();
    assert!(verification.ok, "{:#?}", verification.findings);
    assert_eq!(verification.noted_found, Some(true));
    assert_eq!(verification.notes.last().unwrap().kind, NoteKind::Recovered);
    let store = Store::open(&path).await.unwrap();
    store.record_durable(note("a", "later")).await.unwrap();
    store.close().await.unwrap();
    is_whole(&path).await;
}

#[tokio::test]
async fn a_copy_verifies_with_nothing_but_the_public_key() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_folder, path) = sample().await;
    let store = Store::open(&path).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let copied = elsewhere.path().join("copy.db");
    store.backup(&copied).await.unwrap();
    let read_only = std::fs::Permissions::from_mode(0o400);
    std::fs::set_permissions(&copied, read_only).unwrap();
    let lone = Verify {
        record: copied,
        on_file: None,
        wants_file: false,
        noted: store.head().await.unwrap().map(|head| head.noted()),
        ..in_place(&path)
    };
    let verification = verify(&lone).await.unwrap();
    assert!(verification.ok, "{:#?}", verification.findings);
    assert_eq!(verification.noted_found, Some(true));
}
