//! Tasks on record: durable, once, in order, and only for those who may see them.

use agentd_storage::{
    BootMoment, Event, Fact, Launch, NewTask, Store, TaskBatch, TaskChange, TaskTaken, Viewer,
    Which,
};

const ALICE: u32 = 1000;
const BOB: u32 = 1001;

fn moment(boot_ms: u64) -> BootMoment {
    BootMoment {
        boot_id: "this-boot".into(),
        boot_ms,
        wall_ms: 1_700_000_000_000 + boot_ms.cast_signed(),
    }
}

fn task(n: u32, uid: u32) -> NewTask {
    NewTask {
        id: format!("0198c0de-0000-7000-8000-{n:012x}"),
        uid,
        submitted_by: format!("uid {uid}"),
        request_id: None,
        text: format!("do {n}"),
        terms: r#"{"target":{"agent":"coder"}}"#.into(),
        parent: None,
        retry_of: None,
        depth: 0,
        after: Vec::new(),
        submitted: moment(5),
        deadline: None,
        state: "queued".into(),
        cause: "waits for agent coder".into(),
    }
}

fn requested(n: u32, request: &str) -> NewTask {
    NewTask {
        request_id: Some(request.into()),
        ..task(n, ALICE)
    }
}

fn new(tasks: impl IntoIterator<Item = NewTask>) -> TaskBatch {
    TaskBatch {
        new: tasks.into_iter().collect(),
        ..TaskBatch::default()
    }
}

fn change(n: u32, from: &str, to: &str, attempt: u32) -> TaskChange {
    TaskChange {
        task: task(n, ALICE).id,
        at_ms: 1_700_000_000_100,
        from: from.into(),
        to: to.into(),
        attempt,
        cause: format!("{from} to {to}"),
        ..TaskChange::default()
    }
}

async fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("record.db")).await.unwrap();
    (folder, store)
}

#[tokio::test]
async fn a_request_id_gives_the_same_task_however_often_it_comes() {
    let (_folder, store) = store().await;
    let same = |n: u32| TaskTaken::Same {
        id: task(n, ALICE).id,
    };
    let other = NewTask {
        text: "something else".into(),
        ..requested(1, "r")
    };
    // Twice in one batch, then again, then as something else, then by somebody else.
    let repeated = |n| NewTask {
        text: "do it".into(),
        ..requested(n, "r")
    };
    let batch = new([repeated(1), repeated(2)]);
    assert_eq!(
        store.record_tasks(batch).await.unwrap(),
        [TaskTaken::New, same(1)]
    );
    assert_eq!(
        store.record_tasks(new([repeated(3)])).await.unwrap(),
        [same(1)]
    );
    let conflict = TaskTaken::Conflict {
        id: task(1, ALICE).id,
    };
    assert_eq!(store.record_tasks(new([other])).await.unwrap(), [conflict]);
    let bobs = NewTask {
        uid: BOB,
        ..repeated(4)
    };
    assert_eq!(
        store.record_tasks(new([bobs])).await.unwrap(),
        [TaskTaken::New]
    );
    let all = store.tasks(Viewer::Root, Which::All, 10).await.unwrap();
    assert_eq!(all.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_submissions_that_race_are_one_task() {
    let (_folder, store) = store().await;
    let racing = (0..8).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut submitted = requested(n, "only once");
            submitted.text = "do it".into();
            store
                .record_tasks(new([submitted]))
                .await
                .unwrap()
                .remove(0)
        })
    });
    let racing: Vec<_> = racing.collect();
    let mut fresh = 0;
    for one in racing {
        match one.await.unwrap() {
            TaskTaken::New => fresh += 1,
            TaskTaken::Same { .. } => {}
            TaskTaken::Conflict { id } => panic!("conflict with {id}"),
        }
    }
    assert_eq!(fresh, 1);
    assert_eq!(
        store
            .tasks(Viewer::Uid(ALICE), Which::All, 9)
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn a_life_is_read_back_as_it_was_written() {
    let (folder, store) = store().await;
    let launch = Fact::Launch(Launch {
        name: "coder".into(),
        uid: ALICE,
        ..Launch::default()
    });
    store
        .record_durable(Event::now("l1", launch))
        .await
        .unwrap();
    let child = NewTask {
        parent: Some(task(1, ALICE).id),
        depth: 1,
        ..task(2, ALICE)
    };
    let after = NewTask {
        after: vec![task(1, ALICE).id],
        state: "waiting".into(),
        deadline: Some(moment(900)),
        ..task(3, ALICE)
    };
    store
        .record_tasks(new([task(1, ALICE), child, after]))
        .await
        .unwrap();
    let with_agent = |change| TaskChange {
        launch: Some("l1".into()),
        agent: Some("coder".into()),
        ..change
    };
    let batch = TaskBatch {
        changes: vec![
            with_agent(change(1, "queued", "assigned", 1)),
            with_agent(TaskChange {
                turn: Some(7),
                ..change(1, "assigned", "running", 1)
            }),
        ],
        events: vec![Event::now(
            "l1",
            Fact::Note {
                text: "turn 7 is the task".into(),
            },
        )],
        ..TaskBatch::default()
    };
    store.record_tasks(batch).await.unwrap();
    store.close().await.unwrap();

    // As after a crash: only what was committed is there.
    let store = Store::open(folder.path().join("record.db")).await.unwrap();
    let open = store.open_tasks().await.unwrap();
    let found: Vec<_> = open
        .iter()
        .map(|it| (it.state.as_str(), it.turn, it.depth))
        .collect();
    assert_eq!(
        found,
        [
            ("running", Some(7), 0),
            ("queued", None, 1),
            ("waiting", None, 0)
        ]
    );
    assert_eq!(
        open[2].dependencies,
        [(task(1, ALICE).id, "running".into())]
    );
    assert_eq!(open[2].deadline, Some(moment(900)));
    assert_eq!(open[0].launch.as_deref(), Some("l1"));

    let done = TaskBatch {
        changes: vec![
            TaskChange {
                result: Some("it works".into()),
                ..with_agent(change(1, "running", "succeeded", 1))
            },
            change(3, "waiting", "queued", 0),
        ],
        ..TaskBatch::default()
    };
    store.record_tasks(done).await.unwrap();
    let record = store
        .task(Viewer::Uid(ALICE), &task(1, ALICE).id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(record.summary.result.as_deref(), Some("it works"));
    assert_eq!(record.summary.agent.as_deref(), Some("coder"));
    let states: Vec<_> = record.transitions.iter().map(|it| it.to.as_str()).collect();
    assert_eq!(states, ["queued", "assigned", "running", "succeeded"]);
    assert!(record.transitions.is_sorted_by_key(|it| it.seq));
    assert_eq!(record.children.len(), 1);
    let timeline = store
        .inspect(Viewer::Uid(ALICE), &"l1".into())
        .await
        .unwrap()
        .unwrap()
        .timeline;
    assert!(timeline.iter().any(|it| it.text.contains("turn 7")));
    assert_eq!(
        store
            .tasks(Viewer::Root, Which::Open, 9)
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn nobody_sees_the_tasks_of_others() {
    let (_folder, store) = store().await;
    store
        .record_tasks(new([task(1, ALICE), task(2, BOB)]))
        .await
        .unwrap();
    let (alices, bobs) = (task(1, ALICE).id, task(2, BOB).id);
    let bob = Viewer::Uid(BOB);
    assert!(store.task(bob, &alices).await.unwrap().is_none());
    assert!(store.task_summary(bob, &alices).await.unwrap().is_none());
    assert_eq!(store.find_tasks(bob, &alices).await.unwrap(), [""; 0]);
    assert_eq!(
        store.find_tasks(bob, &bobs[32..]).await.unwrap(),
        [bobs.as_str()]
    );
    assert_eq!(store.find_tasks(bob, "%").await.unwrap(), [""; 0]);
    let listed = store.tasks(bob, Which::All, 9).await.unwrap();
    assert_eq!(listed.iter().map(|it| &it.id).collect::<Vec<_>>(), [&bobs]);
    let states = store
        .task_states(BOB, &[alices.clone(), bobs])
        .await
        .unwrap();
    assert_eq!(states.len(), 1);
    assert!(store.task(Viewer::Root, &alices).await.unwrap().is_some());
}

#[tokio::test]
async fn a_batch_is_written_whole_or_not_at_all() {
    let (_folder, store) = store().await;
    // A parent that is not there breaks a constraint, after the first task was written.
    let orphan = NewTask {
        parent: Some(task(9, ALICE).id),
        ..task(2, ALICE)
    };
    let batch = new([task(1, ALICE), orphan]);
    assert!(store.record_tasks(batch).await.is_err());
    assert!(
        store
            .tasks(Viewer::Root, Which::All, 9)
            .await
            .unwrap()
            .is_empty()
    );
    // A fact about a launch that is not on record (any more) is left out, and nothing else.
    let pruned = TaskBatch {
        events: vec![Event::now("pruned", Fact::Note { text: "x".into() })],
        ..new([task(999, ALICE)])
    };
    assert_eq!(store.record_tasks(pruned).await.unwrap(), [TaskTaken::New]);
    // The writer goes on, and neither sequence nor statements are spoilt.
    let many = (1..=200).map(|n| task(n, ALICE));
    let taken = store.record_tasks(new(many)).await.unwrap();
    assert!(taken.iter().all(|it| *it == TaskTaken::New));
    assert_eq!(
        store
            .tasks(Viewer::Root, Which::Open, 999)
            .await
            .unwrap()
            .len(),
        201
    );
}
