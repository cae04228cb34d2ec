//! The durable side: order, refusals, and what a restart gives back, over a real segment store.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agentd_bus::frame::PeerId;
use agentd_bus::message::{BatchBuilder, QueueSpec, ReplayFrom, Replayed, StreamKind, TopicSpec};
use agentd_bus::router::{
    Batch, DeadReason, OffsetRange, Persist, PersistError, Settled, StreamId, StreamSpec,
};
use agentd_storage::stream::segment::{Disk, Options, SegmentStore};

use super::durable::{Back, Durable};
use crate::config::DurableConfig;

const WATCHDOG: Duration = Duration::from_secs(30);

#[derive(Debug)]
enum Said {
    Persisted(u64, Result<u64, PersistError>),
    Records(u64, Result<(u64, Vec<Replayed>), PersistError>),
}

struct Ear(Mutex<Sender<Said>>);

impl Back for Ear {
    fn persisted(&self, _uid: u32, ticket: u64, outcome: Result<u64, PersistError>) {
        let said = Said::Persisted(ticket, outcome);
        self.0.lock().unwrap().send(said).unwrap();
    }

    fn records(&self, _uid: u32, ticket: u64, outcome: Result<(u64, Vec<Replayed>), PersistError>) {
        let said = Said::Records(ticket, outcome);
        self.0.lock().unwrap().send(said).unwrap();
    }
}

fn over(directory: &Path) -> (Arc<Durable>, Receiver<Said>) {
    // The last handle of the store before may go on one of its own threads, a moment after its last answer: until then it
    // holds the directory.
    let end = Instant::now() + WATCHDOG;
    let store = loop {
        match SegmentStore::open(directory, Disk::plain("for a test"), Options::default()) {
            Ok((store, _)) => break store,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    listening(Durable::new(Arc::new(store), DurableConfig::default()))
}

fn listening(durable: Arc<Durable>) -> (Arc<Durable>, Receiver<Said>) {
    let (sender, said) = channel();
    durable.connect(Arc::new(Ear(Mutex::new(sender))));
    (durable, said)
}

fn queue() -> StreamId {
    StreamId {
        uid: 7,
        kind: StreamKind::Queue,
        name: "work".into(),
    }
}

fn spec() -> QueueSpec {
    QueueSpec {
        durable: true,
        max_deliver: 9,
        ..QueueSpec::default()
    }
}

fn declare(ticket: u64) -> Persist {
    Persist::Declare {
        stream: queue(),
        ticket,
        spec: StreamSpec::Queue(spec()),
    }
}

fn append(ticket: u64, messages: &[&str]) -> Persist {
    let mut builder = BatchBuilder::new();
    for message in messages {
        assert!(builder.push(2, message.as_bytes()));
    }
    Persist::Append {
        stream: queue(),
        ticket,
        batch: Batch::of_messages(PeerId([3; 16]), 44, builder.messages()),
    }
}

fn settle(ticket: u64, first: u64, how: Settled) -> Persist {
    Persist::Settle {
        stream: queue(),
        ticket,
        offsets: vec![OffsetRange { first, count: 1 }],
        how,
    }
}

fn persisted(said: &Receiver<Said>) -> (u64, Result<u64, PersistError>) {
    match said.recv_timeout(WATCHDOG).unwrap() {
        Said::Persisted(ticket, outcome) => (ticket, outcome),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_not_settled_comes_back_with_its_sender_priority_and_fate() {
    let home = tempfile::tempdir().unwrap();
    let (durable, said) = over(home.path());
    // All at once: what needs the stream waits for it, and keeps its order.
    durable.persist(vec![
        declare(1),
        append(2, &["a", "b"]),
        append(3, &["c", "d"]),
        settle(4, 1, Settled::Gone),
        settle(5, 2, Settled::Dead(DeadReason::Rejected)),
        settle(6, 3, Settled::Dead(DeadReason::MaxDeliver)),
        settle(0, 3, Settled::Requeued),
    ]);
    let mut answers: Vec<_> = (0..6).map(|_| persisted(&said)).collect();
    answers.sort_by_key(|answer| answer.0);
    let offsets: Vec<u64> = answers.into_iter().map(|it| it.1.unwrap()).collect();
    assert_eq!(offsets[1..3], [0, 2]);
    drop(durable);

    let (durable, said) = over(home.path());
    let kept = durable.restore().await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(
        (&kept[0].stream, kept[0].spec),
        (&queue(), StreamSpec::Queue(spec()))
    );
    let found: Vec<_> = kept[0]
        .records
        .iter()
        .map(|it| (it.offset, it.dead, &it.data[..]))
        .collect();
    assert_eq!(
        found,
        [
            (0, None, &b"a"[..]),
            (2, Some(DeadReason::Rejected), b"c"),
            (3, None, b"d"),
        ]
    );
    let first = &kept[0].records[0];
    assert_eq!(
        (first.from, first.priority, first.at_ns),
        (PeerId([3; 16]), 2, 44)
    );

    // It is known again without a declaration, and goes on where it ended.
    durable.persist(vec![append(1, &["e"])]);
    assert_eq!(persisted(&said), (1, Ok(4)));
    durable.persist(vec![Persist::Read {
        stream: queue(),
        ticket: 2,
        from: ReplayFrom::Offset(3),
        max: 1,
        max_bytes: 1 << 20,
    }]);
    match said.recv_timeout(WATCHDOG).unwrap() {
        Said::Records(2, Ok((4, list))) => {
            assert_eq!(
                (list.len(), list[0].offset, &list[0].data[..]),
                (1, 3, &b"d"[..])
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_topic_comes_back_with_as_much_as_it_retains() {
    let home = tempfile::tempdir().unwrap();
    let (durable, said) = over(home.path());
    let stream = StreamId {
        kind: StreamKind::Topic,
        ..queue()
    };
    let spec = StreamSpec::Topic(TopicSpec {
        retain: 2,
        durable: true,
        max_age_s: 60,
        max_bytes: 1 << 20,
    });
    durable.persist(vec![Persist::Declare {
        stream: stream.clone(),
        ticket: 1,
        spec,
    }]);
    persisted(&said).1.unwrap();
    for ticket in 2..6 {
        let payload: Arc<[u8]> = ticket.to_string().into_bytes().into();
        durable.persist(vec![Persist::Append {
            stream: stream.clone(),
            ticket,
            batch: Batch::event(PeerId([1; 16]), 1, 5, payload, 0),
        }]);
        assert_eq!(persisted(&said), (ticket, Ok(ticket - 2)));
    }
    drop(durable);
    let (durable, _said) = over(home.path());
    let kept = durable.restore().await.unwrap();
    assert_eq!(kept[0].spec, spec);
    let found: Vec<_> = kept[0].records.iter().map(|it| &it.data[..]).collect();
    assert_eq!(found, [b"4", b"5"]);
}

#[test]
fn without_a_store_everything_is_refused_with_the_reason() {
    let (durable, said) = listening(Durable::without_store());
    durable.persist(vec![declare(1), append(2, &["a"])]);
    for ticket in 1..3 {
        assert_eq!(persisted(&said), (ticket, Err(PersistError::NoStore)));
    }
}

#[test]
fn a_stream_that_was_dropped_is_gone_and_can_be_declared_again() {
    let home = tempfile::tempdir().unwrap();
    let (durable, said) = over(home.path());
    durable.persist(vec![declare(1), append(2, &["a"])]);
    for ticket in 1..3 {
        assert_eq!(persisted(&said).0, ticket);
    }
    durable.persist(vec![Persist::Drop { stream: queue() }, append(3, &["b"])]);
    let (ticket, outcome) = persisted(&said);
    assert!(
        ticket == 3
            && outcome
                .unwrap_err()
                .to_string()
                .contains("declare it again")
    );
    durable.persist(vec![declare(4), append(5, &["c"])]);
    let mut answers = [persisted(&said), persisted(&said)];
    answers.sort_by_key(|answer| answer.0);
    assert_eq!(answers[1], (5, Ok(0)));
}

#[test]
fn a_drop_that_waits_for_its_declaration_leaves_room_for_the_next() {
    let home = tempfile::tempdir().unwrap();
    let (durable, said) = over(home.path());
    // The first declaration is still under way when all the others come.
    durable.persist(vec![
        declare(1),
        append(2, &["a", "b"]),
        Persist::Drop { stream: queue() },
        append(3, &["nowhere"]),
        declare(4),
        append(5, &["c"]),
    ]);
    let mut answers: Vec<_> = (0..5).map(|_| persisted(&said)).collect();
    answers.sort_by_key(|answer| answer.0);
    assert!(answers[2].1.is_err(), "{:?}", answers[2]);
    for nth in [0, 1, 3] {
        assert!(answers[nth].1.is_ok(), "{:?}", answers[nth]);
    }
    assert_eq!(answers[4], (5, Ok(0)), "a stream of its own");
    durable.persist(vec![append(6, &["d"])]);
    assert_eq!(persisted(&said), (6, Ok(1)));
}
