//! Keeping the record small and whole: pruning, copies, checks, and what is saved of a damaged file.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use agentd_storage::{
    Direction, Event, Exit, Expired, Fact, Launch, LaunchId, Store, StoreError, Viewer,
};

const ALICE: u32 = 1001;
const BOB: u32 = 1002;

fn event(launch: &str, at_ms: i64, fact: Fact) -> Event {
    Event {
        launch: launch.into(),
        at_ms,
        fact,
    }
}

fn launch(id: &str, uid: u32) -> Event {
    let fact = Launch {
        name: id.into(),
        uid,
        ..Launch::default()
    };
    event(id, 1, Fact::Launch(fact))
}

/// A launch of `uid` with `lines` lines of protocol, ended at `ended_ms` if at all.
async fn record(store: &Store, id: &str, uid: u32, lines: u32, ended_ms: Option<i64>) {
    let mut events = vec![launch(id, uid)];
    for n in 0..lines {
        let line = Fact::DriverLine {
            direction: Direction::In,
            line: format!("{n} {}", "x".repeat(1000)),
            end: Some(u64::from(n)),
        };
        events.push(event(id, 2, line));
    }
    events.extend(ended_ms.map(|at| event(id, at, Fact::Exit(Exit::default()))));
    store.record_all_durable(events).await.unwrap();
}

async fn ids(store: &Store, viewer: Viewer, which: Expired) -> Vec<String> {
    let found = store.expired(viewer, which).await.unwrap();
    found.iter().map(|l| l.id.to_string()).collect()
}

const OLD: Expired = Expired {
    ended_before_ms: 100,
    keep: 0,
};

#[tokio::test]
async fn only_what_ended_long_ago_is_chosen_and_only_the_viewers_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("r.db")).await.unwrap();
    record(&store, "old", ALICE, 0, Some(50)).await;
    record(&store, "recent", ALICE, 0, Some(150)).await;
    record(&store, "alive", ALICE, 0, None).await;
    record(&store, "bobs", BOB, 0, Some(40)).await;
    assert_eq!(ids(&store, Viewer::Uid(ALICE), OLD).await, ["old"]);
    assert_eq!(ids(&store, Viewer::Root, OLD).await, ["bobs", "old"]);
    let keep = |keep| Expired { keep, ..OLD };
    assert_eq!(ids(&store, Viewer::Root, keep(2)).await, ["old"]);
    assert_eq!(ids(&store, Viewer::Root, keep(3)).await, [""; 0]);
}

#[tokio::test]
async fn what_is_forgotten_is_gone_with_all_its_rows_and_the_file_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.db");
    let store = Store::open(&path).await.unwrap();
    record(&store, "old", ALICE, 3000, Some(50)).await;
    record(&store, "alive", ALICE, 3, None).await;
    let forget = ["old", "alive"].map(LaunchId::from).to_vec();
    assert_eq!(store.forget(forget).await.unwrap(), 1, "what lives is left");
    let root = Viewer::Root;
    assert_eq!(store.inspect(root, &"old".into()).await.unwrap(), None);
    let lines = async |id: &str| store.driver_lines(root, &id.into(), 0, 9).await.unwrap();
    assert_eq!(
        (lines("old").await.len(), lines("alive").await.len()),
        (0, 3)
    );
    store.close().await.unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes < 1_000_000, "{bytes} bytes are left of 3 MB");
}

#[tokio::test]
async fn a_copy_taken_in_use_is_whole_and_holds_all_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("r.db")).await.unwrap();
    record(&store, "a", ALICE, 10, Some(50)).await;
    let copy = dir.path().join("copy.db");
    store.backup(&copy).await.unwrap();
    assert_eq!(agentd_storage::check(&copy).await.unwrap(), "ok");
    let again = Store::open(&copy).await.unwrap();
    let lines = again.driver_lines(Viewer::Root, &"a".into(), 0, 99).await;
    assert_eq!(lines.unwrap().len(), 10);
}

#[tokio::test]
async fn a_record_in_use_is_neither_checked_nor_recovered_behind_the_daemons_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.db");
    let _store = Store::open(&path).await.unwrap();
    let in_use = |error| matches!(error, StoreError::InUse { .. });
    assert!(in_use(agentd_storage::check(&path).await.unwrap_err()));
    assert!(in_use(agentd_storage::recover(&path).await.unwrap_err()));
}

/// Overwrites the middle third of the file, page by page.
fn damage(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    for page in length / 4096 / 3..length / 4096 * 2 / 3 {
        file.write_all_at(&[0xa5; 4096], page * 4096).unwrap();
    }
}

#[tokio::test]
async fn what_can_be_read_of_a_damaged_record_is_saved_and_the_damaged_file_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.db");
    let store = Store::open(&path).await.unwrap();
    for n in 0..40 {
        record(&store, &format!("launch-{n}"), ALICE, 20, Some(50)).await;
    }
    store.close().await.unwrap();
    damage(&path);
    let damaged_bytes = std::fs::read(&path).unwrap();
    assert_ne!(agentd_storage::check(&path).await.unwrap(), "ok");

    let salvage = agentd_storage::recover(&path).await.unwrap();
    assert_eq!(std::fs::read(&salvage.damaged).unwrap(), damaged_bytes);
    let lines = salvage.tables.iter().find(|t| t.name == "driver_lines");
    let lines = lines.unwrap();
    let undamaged = salvage.tables.iter().filter(|t| t.rows == 0);
    assert_eq!(
        undamaged.map(|t| t.unreadable).sum::<u64>(),
        0,
        "{salvage:?}"
    );
    assert!(lines.rows > 100 && lines.unreadable > 0, "{lines:?}");
    assert_eq!(agentd_storage::check(&path).await.unwrap(), "ok");
    // It can be written to again.
    let store = Store::open(&path).await.unwrap();
    record(&store, "after", BOB, 1, Some(60)).await;
    assert!(!store.launches(Viewer::Root, 99).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_with_the_verb_that_helps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.db");
    std::fs::write(
        &path,
        "not a database at all, but long enough to be read as one",
    )
    .unwrap();
    let error = Store::open(&path).await.unwrap_err().to_string();
    assert!(error.contains("agentctl db recover"), "{error}");
    // Nothing can be read of it, and nothing of it is lost.
    assert!(agentd_storage::recover(&path).await.is_err());
    assert!(path.exists());
}
