//! What every store of streams promises, said once and run against each.
//!
//! A store is given as a way to open it on a folder, so that everything here is also true of a store that was closed, or
//! dropped without closing, and opened again.

use std::{path::Path, sync::Arc, time::Duration};

use proptest::{prelude::*, test_runner::TestRunner};

use super::{
    Compression, Declared, Done, NewRecord, ReadFrom, ReadLimit, Records, Retention, Settle,
    StreamError, StreamId, StreamKind, StreamName, StreamSpec, StreamStore, waiter,
};

/// Opens a store on a folder; again and again on the same one.
pub(super) type Opener<'a> = &'a dyn Fn(&Path) -> Arc<dyn StreamStore>;

/// Everything.
pub(super) fn conforms(open: Opener<'_>) {
    offsets_count_up_from_zero_and_are_never_used_again(open);
    what_is_read_is_what_was_appended(open);
    reading_goes_on_where_it_stopped(open);
    times_never_go_back_and_are_found(open);
    settled_records_are_not_given_out_again(open);
    marks_stay_with_their_records(open);
    names_are_told_apart_and_kept(open);
    what_can_not_be_is_refused_and_says_why(open);
    compressed_payloads_come_back_whole(open);
    retention_takes_the_oldest_and_nothing_else(open);
    random_histories_agree_with_a_list(open);
}

/// Asks and waits.
fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> Result<T, StreamError> {
    let (done, answer) = waiter();
    question(done);
    answer.wait()
}

fn name(kind: StreamKind, name: &str) -> StreamName {
    StreamName {
        uid: 1000,
        kind,
        name: name.to_owned(),
    }
}

fn declare(store: &dyn StreamStore, kind: StreamKind, spec: StreamSpec) -> Declared {
    ask(|done| store.declare(name(kind, "work"), spec, done)).unwrap()
}

fn queue(store: &dyn StreamStore) -> StreamId {
    declare(store, StreamKind::Queue, StreamSpec::default()).id
}

fn record(at_ns: u64, payload: &[u8]) -> NewRecord {
    NewRecord {
        at_ns,
        payload: payload.into(),
    }
}

fn append(store: &dyn StreamStore, stream: StreamId, payloads: &[&[u8]]) -> u64 {
    let records = payloads.iter().map(|it| record(0, it)).collect();
    ask(|done| store.append(stream, records, done)).unwrap()
}

fn all(store: &dyn StreamStore, stream: StreamId, from: ReadFrom) -> Records {
    ask(|done| store.read(stream, from, ReadLimit::default(), done)).unwrap()
}

fn payloads(records: &Records) -> Vec<&[u8]> {
    records.records.iter().map(|it| &*it.payload).collect()
}

fn offsets(records: &Records) -> Vec<u64> {
    records.records.iter().map(|it| it.offset).collect()
}

fn settle(store: &dyn StreamStore, stream: StreamId, offsets: &[u64]) {
    let ranges = offsets.iter().map(|it| *it..it.saturating_add(1)).collect();
    ask(|done| store.settle(stream, ranges, Settle::Done, done)).unwrap();
}

fn unsettled(store: &dyn StreamStore, stream: StreamId) -> Vec<u64> {
    let all = ask(|done| store.unsettled(stream, 0, ReadLimit::default(), done));
    offsets(&all.unwrap())
}

fn offsets_count_up_from_zero_and_are_never_used_again(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let stream = queue(&*store);
    assert_eq!(append(&*store, stream, &[b"a", b"b"]), 0);
    assert_eq!(append(&*store, stream, &[b"c"]), 2);
    assert_eq!(append(&*store, stream, &[]), 3);
    settle(&*store, stream, &[0, 1, 2]);
    ask(|done| store.flush(done)).unwrap();
    drop(store);
    let store = open(folder.path());
    let again = declare(&*store, StreamKind::Queue, StreamSpec::default());
    assert_eq!((again.id, again.new, again.next), (stream, false, 3));
    assert_eq!(append(&*store, stream, &[b"d"]), 3);
    // Nor is the id of a stream that is gone.
    ask(|done| store.drop_stream(stream, done)).unwrap();
    let gone = ask(|done| store.append(stream, vec![record(0, b"e")], done));
    assert!(matches!(gone, Err(StreamError::Unknown { id }) if id == stream));
    drop(store);
    let store = open(folder.path());
    let new = declare(&*store, StreamKind::Queue, StreamSpec::default());
    assert!(new.new && new.id != stream && new.next == 0, "{new:?}");
    assert_eq!(unsettled(&*store, new.id), [0; 0]);
}

fn what_is_read_is_what_was_appended(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let stream = queue(&*store);
    let large = vec![7_u8; NewRecord::MAX];
    append(&*store, stream, &[b"", b"one", &large]);
    append(&*store, stream, &[b"\0\0\0\0"]);
    let want: [&[u8]; 4] = [b"", b"one", &large, b"\0\0\0\0"];
    let limit = ReadLimit {
        records: 10,
        bytes: 4 << 20,
    };
    let read = |store: &dyn StreamStore| {
        ask(|done| store.read(stream, ReadFrom::Offset(0), limit, done)).unwrap()
    };
    let first = read(&*store);
    assert!(payloads(&first) == want && first.next == 4 && first.end == 4);
    drop(store);
    let store = open(folder.path());
    let again = read(&*store);
    assert!(again == first);
    let left = ask(|done| store.unsettled(stream, 0, limit, done)).unwrap();
    assert!(left == first);
}

fn reading_goes_on_where_it_stopped(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let stream = queue(&*store);
    let texts: Vec<String> = (0..500).map(|at| format!("record {at}")).collect();
    let texts: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
    for chunk in texts.chunks(7) {
        append(&*store, stream, chunk);
    }
    for limit in [(1, 1 << 20), (64, 1 << 20), (1000, 1), (1000, 100)] {
        let limit = ReadLimit {
            records: limit.0,
            bytes: limit.1,
        };
        let (mut at, mut seen) = (0, Vec::new());
        loop {
            let some = ask(|done| store.read(stream, ReadFrom::Offset(at), limit, done)).unwrap();
            assert!(some.records.len() <= limit.records && some.damaged.is_empty());
            if some.records.is_empty() {
                assert_eq!(some.next, some.end);
                break;
            }
            seen.extend(some.records.iter().map(|it| it.payload.to_vec()));
            at = some.next;
        }
        assert!(seen == texts);
    }
    let beyond = all(&*store, stream, ReadFrom::Offset(10_000));
    assert!(beyond.records.is_empty() && beyond.end == 500);
}

fn times_never_go_back_and_are_found(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let stream = declare(&*store, StreamKind::Topic, StreamSpec::default()).id;
    for at_ns in [10, 20, 20, 15, 30] {
        ask(|done| store.append(stream, vec![record(at_ns, b"x")], done)).unwrap();
    }
    drop(store);
    let store = open(folder.path());
    for _round in 0..2 {
        let from = |at_ns| offsets(&all(&*store, stream, ReadFrom::Time(at_ns)));
        assert_eq!(from(0), [0, 1, 2, 3, 4]);
        assert_eq!(from(11), [1, 2, 3, 4]);
        assert_eq!(from(20), [1, 2, 3, 4]);
        assert_eq!(from(21), [4]);
        assert_eq!(from(31), [0; 0]);
    }
    // Nor over a restart.
    ask(|done| store.append(stream, vec![record(5, b"x")], done)).unwrap();
    let read = all(&*store, stream, ReadFrom::Time(30));
    assert_eq!(offsets(&read), [4, 5]);
    let times: Vec<u64> = read.records.iter().map(|it| it.at_ns).collect();
    assert_eq!(times, [30, 30]);
}

fn settled_records_are_not_given_out_again(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let stream = queue(&*store);
    append(&*store, stream, &[b"a", b"b", b"c", b"d", b"e"]);
    settle(&*store, stream, &[3, 1]);
    assert_eq!(unsettled(&*store, stream), [0, 2, 4]);
    // Twice, and what is not there.
    settle(&*store, stream, &[1, 99, u64::MAX]);
    drop(store);
    let store = open(folder.path());
    assert_eq!(unsettled(&*store, stream), [0, 2, 4]);
    let stats = ask(|done| store.streams(done)).unwrap();
    assert_eq!((stats[0].unsettled, stats[0].next), (3, 5));
    settle(&*store, stream, &[0, 2, 4]);
    append(&*store, stream, &[b"f"]);
    assert_eq!(unsettled(&*store, stream), [5]);
    drop(store);
    let store = open(folder.path());
    assert_eq!(unsettled(&*store, stream), [5]);
}

fn marks_stay_with_their_records(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let stream = queue(&*store);
    append(&*store, stream, &[b"a", b"b", b"c", b"d"]);
    let mark = |store: &dyn StreamStore, offsets, mark| {
        ask(|done| store.settle(stream, vec![offsets], Settle::Mark(mark), done)).unwrap();
    };
    let marks = |store: &dyn StreamStore| -> Vec<(u64, u8)> {
        let all = ask(|done| store.unsettled(stream, 0, ReadLimit::default(), done));
        all.unwrap()
            .records
            .iter()
            .map(|it| (it.offset, it.mark))
            .collect()
    };
    mark(&*store, 0..3, 2);
    mark(&*store, 1..2, 0);
    mark(&*store, 2..99, 7);
    assert_eq!(marks(&*store), [(0, 2), (1, 0), (2, 7), (3, 7)]);
    settle(&*store, stream, &[2]);
    mark(&*store, 2..3, 5);
    drop(store);
    let mut store = open(folder.path());
    // Behind a restart, and behind the first append after one.
    for round in 0..2_u8 {
        assert_eq!(marks(&*store)[..3], [(0, 2), (1, 0), (3, 7)]);
        append(&*store, stream, &[&[round]]);
        drop(store);
        store = open(folder.path());
    }
    assert_eq!(marks(&*store), [(0, 2), (1, 0), (3, 7), (4, 0), (5, 0)]);
}

fn names_are_told_apart_and_kept(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut names = Vec::new();
    for uid in [0, 1000] {
        for kind in [StreamKind::Topic, StreamKind::Queue] {
            for name in ["a", "../a", "a/b", "ä ö", "#"] {
                names.push(StreamName {
                    uid,
                    kind,
                    name: name.to_owned(),
                });
            }
        }
    }
    let spec = StreamSpec {
        retention: Retention {
            max_bytes: Some(1 << 30),
            max_age: Some(Duration::from_secs(3600)),
        },
        compression: Compression::Zstd,
        compress_above: 77,
        settings: "{\"prefetch\": 3}".to_owned(),
    };
    for (at, name) in names.iter().enumerate() {
        let made = ask(|done| store.declare(name.clone(), StreamSpec::default(), done)).unwrap();
        assert!(made.new);
        let text = at.to_string();
        append(&*store, made.id, &[text.as_bytes()]);
        // Declared again: the same one, kept as is said last.
        let found = ask(|done| store.declare(name.clone(), spec.clone(), done)).unwrap();
        assert!(!found.new && found.id == made.id);
    }
    drop(store);
    let store = open(folder.path());
    let stats = ask(|done| store.streams(done)).unwrap();
    assert_eq!(stats.len(), names.len());
    for (at, name) in names.iter().enumerate() {
        let one = stats.iter().find(|it| it.name == *name).unwrap();
        assert!(one.spec == spec && one.next == 1 && one.trouble.is_none());
        let read = all(&*store, one.id, ReadFrom::Offset(0));
        assert_eq!(payloads(&read), [at.to_string().as_bytes()]);
    }
}

fn what_can_not_be_is_refused_and_says_why(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for bad in ["", &"x".repeat(129), "a\nb", "\0"] {
        let refused =
            ask(|done| store.declare(name(StreamKind::Queue, bad), StreamSpec::default(), done));
        assert!(
            matches!(refused, Err(StreamError::BadName { .. })),
            "{bad:?}"
        );
    }
    let stream = queue(&*store);
    let huge = vec![0; NewRecord::MAX + 1];
    let refused = ask(|done| store.append(stream, vec![record(0, &huge)], done));
    assert!(matches!(refused, Err(StreamError::RecordTooLarge { bytes }) if bytes == huge.len()));
    let many = vec![record(0, &huge[..NewRecord::MAX]); 4];
    let refused = ask(|done| store.append(stream, many, done));
    assert!(matches!(refused, Err(StreamError::BatchTooLarge { .. })));
    // Nothing of it is there.
    assert_eq!(append(&*store, stream, &[b"a"]), 0);
    let nobody = StreamId(77);
    let limit = ReadLimit::default();
    let unknown = [
        ask(|done| store.settle(nobody, vec![0..1], Settle::Done, done)),
        ask(|done| store.drop_stream(nobody, done)),
        ask(|done| store.retain(nobody, 0, done)).map(drop),
        ask(|done| store.read(nobody, ReadFrom::Offset(0), limit, done)).map(drop),
        ask(|done| store.unsettled(nobody, 0, limit, done)).map(drop),
    ];
    for answer in unknown {
        assert!(matches!(answer, Err(StreamError::Unknown { id }) if id == nobody));
    }
}

fn compressed_payloads_come_back_whole(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let text = "the same again and again ".repeat(4000).into_bytes();
    // Does not get smaller.
    let noise: Vec<u8> = (0..60_000_u32)
        .map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for compression in [Compression::Lz4, Compression::Zstd, Compression::None] {
        let spec = StreamSpec {
            compression,
            compress_above: 1024,
            ..StreamSpec::default()
        };
        let stream = declare(&*store, StreamKind::Queue, spec).id;
        append(&*store, stream, &[&text, b"short", &noise]);
    }
    let stream = queue(&*store);
    let read = all(&*store, stream, ReadFrom::Offset(0));
    assert_eq!(read.records.len(), 9);
    for three in read.records.chunks(3) {
        assert!(*three[0].payload == text[..] && &*three[1].payload == b"short");
        assert!(*three[2].payload == noise[..]);
    }
}

fn retention_takes_the_oldest_and_nothing_else(open: Opener<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let spec = |max_bytes, max_age| StreamSpec {
        retention: Retention { max_bytes, max_age },
        ..StreamSpec::default()
    };
    let stream = declare(&*store, StreamKind::Topic, spec(None, None)).id;
    let payload = vec![1_u8; 10_000];
    for at_ns in 0..300 {
        ask(|done| store.append(stream, vec![record(at_ns, &payload)], done)).unwrap();
    }
    let first = || ask(|done| store.streams(done)).unwrap()[0].first;
    // Nothing said: nothing goes.
    assert_eq!(ask(|done| store.retain(stream, 1 << 60, done)).unwrap(), 0);
    declare(&*store, StreamKind::Topic, spec(Some(1_500_000), None));
    let gone = ask(|done| store.retain(stream, 300, done)).unwrap();
    assert!(gone > 0 && gone < 300 && first() == gone, "{gone}");
    let limit = ReadLimit {
        records: 1000,
        bytes: 64 << 20,
    };
    let read = ask(|done| store.read(stream, ReadFrom::Offset(0), limit, done)).unwrap();
    assert!(offsets(&read) == (gone..300).collect::<Vec<_>>());
    // Of those that stay none is too old; those that are younger all stay.
    declare(
        &*store,
        StreamKind::Topic,
        spec(None, Some(Duration::from_nanos(50))),
    );
    ask(|done| store.retain(stream, 300, done)).unwrap();
    assert!(first() <= 250);
    let gone = ask(|done| store.retain(stream, 10_000, done)).unwrap();
    assert!(first() == 300 && gone > 0);
    drop(store);
    let store = open(folder.path());
    assert_eq!(append(&*store, stream, &[b"still here"]), 300);
    assert_eq!(offsets(&all(&*store, stream, ReadFrom::Offset(0))), [300]);
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<Vec<u8>>),
    Settle(Vec<u64>),
    Reopen,
}

fn random_histories_agree_with_a_list(open: Opener<'_>) {
    let payload = proptest::collection::vec(any::<u8>(), 0..200);
    let step = prop_oneof![
        6 => proptest::collection::vec(payload, 1..8).prop_map(Step::Append),
        3 => proptest::collection::vec(0_u64..60, 0..10).prop_map(Step::Settle),
        1 => Just(Step::Reopen),
    ];
    let histories = proptest::collection::vec(step, 1..14);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&histories, |history| {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let stream = declare(&*store, StreamKind::Topic, StreamSpec::default()).id;
        let (mut list, mut settled) = (Vec::<Vec<u8>>::new(), std::collections::BTreeSet::new());
        for step in history {
            match step {
                Step::Append(new) => {
                    let some: Vec<&[u8]> = new.iter().map(Vec::as_slice).collect();
                    prop_assert_eq!(append(&*store, stream, &some), list.len() as u64);
                    list.extend(new);
                }
                Step::Settle(some) => {
                    settled.extend(some.iter().copied().filter(|it| *it < list.len() as u64));
                    settle(&*store, stream, &some);
                }
                Step::Reopen => {
                    drop(store);
                    store = open(folder.path());
                }
            }
            let want: Vec<u64> = (0..list.len() as u64)
                .filter(|it| !settled.contains(it))
                .collect();
            prop_assert_eq!(unsettled(&*store, stream), want);
        }
        // Settled ones may be gone; those that are not are whole.
        let limit = ReadLimit {
            records: 10_000,
            bytes: 64 << 20,
        };
        let left = ask(|done| store.unsettled(stream, 0, limit, done)).unwrap();
        for it in &left.records {
            prop_assert_eq!(&*it.payload, &list[usize::try_from(it.offset).unwrap()][..]);
        }
        Ok(())
    });
    outcome.unwrap();
}
