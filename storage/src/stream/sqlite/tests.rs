//! Streams in the record: the promises of every store, and one transaction with the rest of the record.

use std::{path::Path, sync::Arc};

use super::*;
use crate::{
    Event, Fact, Launch, Verify, Viewer,
    stream::{StreamKind, conformance::conforms},
    verify,
};

/// Closes the record when it is dropped, as a daemon that ends does.
#[derive(Debug)]
struct Closing(SqliteStreams);

impl Drop for Closing {
    fn drop(&mut self) {
        let (done, waiter) = crate::stream::waiter();
        self.0.flush(done);
        waiter.wait().unwrap();
        let store = self.0.store.clone();
        self.0
            .runtime
            .block_on(async move { store.close().await })
            .unwrap();
    }
}

impl StreamStore for Closing {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn declare(&self, name: StreamName, spec: StreamSpec, done: Done<Declared>) {
        self.0.declare(name, spec, done);
    }
    fn drop_stream(&self, stream: StreamId, done: Done<()>) {
        self.0.drop_stream(stream, done);
    }
    fn append(&self, stream: StreamId, records: Vec<NewRecord>, done: Done<u64>) {
        self.0.append(stream, records, done);
    }
    fn settle(&self, stream: StreamId, offsets: Vec<Range<u64>>, how: Settle, done: Done<()>) {
        self.0.settle(stream, offsets, how, done);
    }
    fn read(&self, stream: StreamId, from: ReadFrom, limit: ReadLimit, done: Done<Records>) {
        self.0.read(stream, from, limit, done);
    }
    fn unsettled(&self, stream: StreamId, from: u64, limit: ReadLimit, done: Done<Records>) {
        self.0.unsettled(stream, from, limit, done);
    }
    fn retain(&self, stream: StreamId, now_ns: u64, done: Done<u64>) {
        self.0.retain(stream, now_ns, done);
    }
    fn streams(&self, done: Done<Vec<StreamStats>>) {
        self.0.streams(done);
    }
    fn flush(&self, done: Done<()>) {
        self.0.flush(done);
    }
}

#[test]
fn the_record_keeps_what_a_store_promises() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    conforms(&|root: &Path| {
        let opened = runtime.block_on(async {
            let store = Store::open(root.join("record.db")).await.unwrap();
            SqliteStreams::new(store)
        });
        Arc::new(Closing(opened))
    });
}

async fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> Result<T, StreamError> {
    let (sender, receiver) = oneshot::channel();
    question(Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.await.unwrap_or(Err(StreamError::Closed))
}

fn launch() -> Event {
    Event::now(
        "l",
        Fact::Launch(Launch {
            name: "a".into(),
            uid: 1,
            policy: "p".into(),
            policy_hash: "h".into(),
            argv: Vec::new(),
            workspace: None,
            driver: "none".into(),
            mode: "user".into(),
            kernel: "k".into(),
            details: serde_json::Value::Null,
        }),
    )
}

fn note(launch: &str) -> Event {
    let text = "done".to_owned();
    Event::now(launch, Fact::Note { text })
}

fn facts(event: Event) -> TaskBatch {
    TaskBatch {
        events: vec![event],
        ..TaskBatch::default()
    }
}

fn message(text: &str) -> NewRecord {
    NewRecord {
        at_ns: 1,
        payload: text.as_bytes().into(),
    }
}

#[tokio::test]
async fn a_settled_message_and_a_fact_are_one_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.db");
    let store = Store::open(&path).await.unwrap();
    let streams = SqliteStreams::new(store.clone());
    store.record_durable(launch()).await.unwrap();
    let name = StreamName {
        uid: 1,
        kind: StreamKind::Queue,
        name: "work".to_owned(),
    };
    let queue = ask(|done| streams.declare(name, StreamSpec::default(), done))
        .await
        .unwrap()
        .id;
    ask(|done| streams.append(queue, vec![message("job")], done))
        .await
        .unwrap();
    let settle = || vec![(queue, vec![0..1], Settle::Done)];
    let left = async || {
        let all = ask(|done| streams.unsettled(queue, 0, ReadLimit::default(), done)).await;
        all.unwrap().records.len()
    };

    // The fact can't stand (there is such a launch), so the message is not settled either.
    let refused = streams.record_together(Together {
        settle: settle(),
        append: vec![(queue, vec![message("result")])],
        tasks: facts(launch()),
    });
    refused.await.unwrap_err();
    assert_eq!(left().await, 1);

    // Nor is a fact kept whose message is unknown.
    let unknown = streams.record_together(Together {
        settle: vec![(StreamId(9), vec![0..1], Settle::Done)],
        tasks: facts(note("l")),
        ..Together::default()
    });
    assert!(matches!(
        unknown.await,
        Err(StreamError::Unknown { id: StreamId(9) })
    ));
    let record = async || {
        let found = store.inspect(Viewer::Root, &"l".into()).await.unwrap();
        found
            .unwrap()
            .timeline
            .iter()
            .filter(|it| it.kind == "note")
            .count()
    };
    assert_eq!(record().await, 0);

    let good = streams.record_together(Together {
        settle: settle(),
        append: vec![(queue, vec![message("result")])],
        tasks: facts(note("l")),
    });
    // The refused batch used no offset.
    assert_eq!(good.await.unwrap().offsets, [1]);
    assert_eq!((left().await, record().await), (1, 1));
    let how = Verify {
        record: path.clone(),
        key: store.public_key(),
        noted: None,
        on_file: None,
        wants_file: false,
        known: Vec::new(),
    };
    assert!(verify(&how).await.unwrap().ok);
}
