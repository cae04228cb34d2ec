//! Segments: the promises of every store, and what becomes of them when bytes are torn, flipped or missing.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::*;
use crate::stream::{StreamKind, conformance::conforms, waiter};

const SMALL: Options = Options {
    segment_min: 64 * 1024,
    segment_max: 512 * 1024,
};

fn opened(root: &Path, disk: Disk) -> (SegmentStore, Vec<String>) {
    SegmentStore::open(&root.join("streams"), disk, SMALL).unwrap()
}

#[test]
fn the_ring_keeps_what_a_store_promises() {
    let disk = Disk::probe();
    if !disk.describe().starts_with("io_uring") {
        return agentd_testkit::skip("io-uring", &disk.describe());
    }
    conforms(&|root| Arc::new(opened(root, Disk::ring_alone()).0));
}

#[test]
fn plain_system_calls_keep_what_a_store_promises() {
    conforms(&|root| Arc::new(opened(root, Disk::plain("for a test")).0));
}

fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> Result<T, StreamError> {
    let (done, answer) = waiter();
    question(done);
    answer.wait()
}

fn work() -> StreamName {
    StreamName {
        uid: 1,
        kind: StreamKind::Queue,
        name: "work".to_owned(),
    }
}

fn declare(store: &SegmentStore) -> StreamId {
    ask(|done| store.declare(work(), StreamSpec::default(), done))
        .unwrap()
        .id
}

fn append(store: &SegmentStore, stream: StreamId, payloads: Vec<Vec<u8>>) -> u64 {
    let record = |payload: Vec<u8>| NewRecord {
        at_ns: 1,
        payload: payload.into(),
    };
    let records = payloads.into_iter().map(record).collect();
    ask(|done| store.append(stream, records, done)).unwrap()
}

fn read(store: &SegmentStore, stream: StreamId) -> Records {
    let limit = ReadLimit {
        records: usize::MAX,
        bytes: usize::MAX,
    };
    ask(|done| store.read(stream, ReadFrom::Offset(0), limit, done)).unwrap()
}

/// A store that was killed: its files are as they were after the last answer.
struct Killed {
    _home: tempfile::TempDir,
    /// The folder of the only stream, and its segments.
    files: Vec<(PathBuf, Vec<u8>)>,
    /// Bytes of the last segment that were written by each commit.
    commits: Vec<usize>,
}

fn payload(at: u64) -> Vec<u8> {
    format!("payload number {at}").into_bytes()
}

/// Three commits of two records each, and one that settles record 1.
fn killed() -> Killed {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = opened(home.path(), Disk::plain("for a test"));
    let stream = declare(&store);
    let mut commits = Vec::new();
    let end = |store: &SegmentStore| {
        let stream = store.streams.get(stream).unwrap();
        let state = stream.state();
        let live = state.segments.back().unwrap().live();
        usize::try_from(live.end).unwrap()
    };
    for at in 0..3 {
        append(&store, stream, vec![payload(2 * at), payload(2 * at + 1)]);
        commits.push(end(&store));
        if at == 1 {
            ask(|done| store.settle(stream, vec![1..2], Settle::Done, done)).unwrap();
            commits.push(end(&store));
        }
    }
    let mut files = Vec::new();
    let root = home.path().join("streams");
    for entry in walk(&root) {
        files.push((
            entry.strip_prefix(&root).unwrap().to_owned(),
            fs::read(&entry).unwrap(),
        ));
    }
    // What closing writes is not among them.
    drop(store);
    Killed {
        _home: home,
        files,
        commits,
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

impl Killed {
    /// Opens a copy in which the last segment is what `change` makes of it.
    fn opened_with(
        &self,
        change: impl FnOnce(&mut Vec<u8>),
    ) -> (tempfile::TempDir, SegmentStore, Vec<String>) {
        let home = tempfile::tempdir().unwrap();
        let mut change = Some(change);
        for (path, bytes) in &self.files {
            let mut bytes = bytes.clone();
            if path.extension().is_some_and(|it| it == "seg")
                && let Some(change) = change.take()
            {
                change(&mut bytes);
            }
            let path = home.path().join("streams").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let (store, notes) = opened(home.path(), Disk::plain("for a test"));
        (home, store, notes)
    }
}

/// What is read is a part of what was written, in order, each record whole; how many.
fn nothing_is_made_up(records: &Records) -> u64 {
    let mut last = None;
    for record in &records.records {
        assert!(last.is_none_or(|last| last < record.offset));
        last = Some(record.offset);
        assert_eq!(*record.payload, payload(record.offset)[..]);
    }
    records.records.len() as u64
}

#[test]
fn a_write_torn_at_any_byte_costs_nothing_that_was_acknowledged() {
    let killed = killed();
    let whole = killed.commits.last().copied().unwrap();
    let acknowledged = killed.commits[killed.commits.len() - 2];
    for cut in acknowledged..=whole {
        // The rest never reached the disk; behind it is what was reserved.
        let (_home, store, _) = killed.opened_with(|bytes| bytes[cut..].fill(0));
        let stream = declare(&store);
        let records = read(&store, stream);
        let count = nothing_is_made_up(&records);
        assert!(count >= 4 && records.damaged.is_empty(), "cut at {cut}");
        assert_eq!(append(&store, stream, vec![payload(count)]), count);
        assert_eq!(nothing_is_made_up(&read(&store, stream)), count + 1);
        let left = ask(|done| store.unsettled(stream, 0, ReadLimit::default(), done)).unwrap();
        assert!(left.records.iter().all(|it| it.offset != 1));
    }
}

#[test]
fn blocks_of_a_torn_write_may_reach_the_disk_in_any_order() {
    let killed = killed();
    let whole = killed.commits.last().copied().unwrap();
    let acknowledged = killed.commits[killed.commits.len() - 2];
    // The first record of the last commit is missing, the second is there.
    for hole in [8, 16, 32, 40] {
        let (_home, store, notes) =
            killed.opened_with(|bytes| bytes[acknowledged..acknowledged + hole].fill(0));
        let stream = declare(&store);
        let records = read(&store, stream);
        assert_eq!(nothing_is_made_up(&records), 4);
        assert!(records.damaged.is_empty() && records.end == 4);
        assert!(
            notes[0].contains("did not reach the disk whole"),
            "{notes:?}"
        );
        // And it never comes back, not even behind what is written in its place.
        append(&store, stream, vec![payload(4)]);
        assert_eq!(nothing_is_made_up(&read(&store, stream)), 5);
    }
    assert!(whole > acknowledged);
}

#[test]
fn a_flipped_bit_costs_its_record_and_is_named() {
    let killed = killed();
    let whole = killed.commits.last().copied().unwrap();
    let last = killed.commits[killed.commits.len() - 2];
    for at in agentd_segment::BLOCK..whole {
        let (_home, store, notes) = killed.opened_with(|bytes| bytes[at] ^= 0x10);
        let stream = declare(&store);
        let records = read(&store, stream);
        let count = nothing_is_made_up(&records);
        if at >= last {
            // In the last commit it can't be told from a write that was cut; but it is told, and kept aside.
            assert!(count >= 4, "{at}");
            let padding = count == 6;
            assert!(
                padding || notes.iter().any(|it| it.contains("cut")),
                "{at}: {notes:?}"
            );
        } else if count < 6 {
            assert_eq!(count, 5, "{at}");
            let stats = ask(|done| store.streams(done)).unwrap();
            assert_eq!(stats[0].damaged.len(), 1, "{at}");
            assert_eq!(
                stats[0].damaged[0].offsets.end - stats[0].damaged[0].offsets.start,
                1
            );
            assert!(notes[0].contains("are lost"), "{notes:?}");
            let folder = store.path().join("00000001");
            let aside = walk(&folder)
                .into_iter()
                .any(|it| it.extension().is_some_and(|it| it == "bad"));
            assert!(aside);
        }
        // The stream goes on.
        assert_eq!(
            append(&store, stream, vec![payload(records.end)]),
            records.end
        );
    }
}

#[test]
fn damage_in_an_older_segment_is_found_when_it_is_read_and_names_what_is_lost() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = opened(home.path(), Disk::probe());
    let stream = declare(&store);
    for at in 0..40 {
        let mut long = payload(at);
        long.resize(8000, b'.');
        append(&store, stream, vec![long]);
    }
    drop(store);
    let segments = walk(&home.path().join("streams/00000001"));
    let oldest = segments
        .iter()
        .filter(|it| it.extension().is_some_and(|it| it == "seg"))
        .min()
        .unwrap();
    let mut bytes = fs::read(oldest).unwrap();
    let place = 4096 + 48 + 3 * 8032 + 100;
    bytes[place] ^= 1;
    fs::write(oldest, bytes).unwrap();
    let (store, notes) = opened(home.path(), Disk::probe());
    assert!(notes.is_empty(), "{notes:?}");
    for _round in 0..2 {
        let records = read(&store, stream);
        let have: Vec<u64> = records.records.iter().map(|it| it.offset).collect();
        let want: Vec<u64> = (0..40).filter(|it| *it != 3).collect();
        assert_eq!(have, want);
        assert_eq!(records.damaged.len(), 1);
        assert_eq!(records.damaged[0].offsets, 3..4);
    }
    let stats = ask(|done| store.streams(done)).unwrap();
    assert_eq!(stats[0].damaged.len(), 1);
}

#[test]
fn a_segment_whose_header_is_damaged_is_put_aside_and_its_offsets_never_come_again() {
    let killed = killed();
    let (_home, store, notes) = killed.opened_with(|bytes| bytes[17] ^= 1);
    let stream = declare(&store);
    assert!(notes[0].contains("its records are lost"), "{notes:?}");
    let stats = ask(|done| store.streams(done)).unwrap();
    assert_eq!(stats[0].damaged.len(), 1);
    let next = append(&store, stream, vec![b"new".to_vec()]);
    assert!(next >= 6, "{next}");
    let records = read(&store, stream);
    assert_eq!(records.records.len(), 1);
    assert_eq!(records.records[0].offset, next);
}

#[test]
fn a_payload_that_looks_like_a_record_is_never_taken_for_one() {
    // The bytes of a whole segment as a payload, and that write torn.
    let killed = killed();
    let (_, trap) = killed
        .files
        .iter()
        .find(|(path, _)| path.extension().is_some_and(|it| it == "seg"))
        .unwrap();
    let home = tempfile::tempdir().unwrap();
    let (store, _) = opened(home.path(), Disk::plain("for a test"));
    let stream = declare(&store);
    append(&store, stream, vec![payload(0)]);
    append(&store, stream, vec![trap[..20_000].to_vec()]);
    let file = store.streams.get(stream).unwrap();
    let file = file.state().segments.back().unwrap().path.clone();
    let mut bytes = fs::read(&file).unwrap();
    drop(store);
    bytes[4096 + 48 + 64 + 40] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (store, _) = opened(home.path(), Disk::plain("for a test"));
    assert_eq!(nothing_is_made_up(&read(&store, stream)), 1);
}

#[test]
fn one_commit_carries_many_streams_and_many_askers() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = opened(home.path(), Disk::probe());
    let streams: Vec<StreamId> = (0..80)
        .map(|at| {
            let name = StreamName {
                name: at.to_string(),
                ..work()
            };
            ask(|done| store.declare(name, StreamSpec::default(), done))
                .unwrap()
                .id
        })
        .collect();
    let mut answers = Vec::new();
    for round in 0..20_u64 {
        for stream in &streams {
            let (done, answer) = waiter();
            let record = NewRecord {
                at_ns: round,
                payload: payload(round).into(),
            };
            store.append(*stream, vec![record], done);
            answers.push((round, answer));
        }
    }
    for (round, answer) in answers {
        assert_eq!(answer.wait().unwrap(), round);
    }
    drop(store);
    let (store, notes) = opened(home.path(), Disk::probe());
    assert!(notes.is_empty(), "{notes:?}");
    for stream in streams {
        assert_eq!(nothing_is_made_up(&read(&store, stream)), 20);
    }
}

#[test]
fn a_queue_that_is_worked_off_gives_its_space_back() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = opened(home.path(), Disk::probe());
    let stream = declare(&store);
    for round in 0..60 {
        let first = append(&store, stream, vec![vec![round; 60_000]]);
        ask(|done| store.settle(stream, vec![first..first + 1], Settle::Done, done)).unwrap();
    }
    ask(|done| store.flush(done)).unwrap();
    let stats = ask(|done| store.streams(done)).unwrap();
    assert_eq!((stats[0].next, stats[0].unsettled), (60, 0));
    assert!(stats[0].first > 40, "{stats:?}");
    assert!(stats[0].disk_bytes <= 3 * SMALL.segment_max, "{stats:?}");
}

#[test]
fn a_folder_in_use_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let (_store, _) = opened(home.path(), Disk::plain("for a test"));
    let again = SegmentStore::open(
        &home.path().join("streams"),
        Disk::plain("for a test"),
        SMALL,
    );
    assert!(again.unwrap_err().to_string().contains("another agentd"));
}
