//! The scheduler without agents: what it acknowledges, refuses and keeps. Work that is really done is in the e2e tests.

use std::sync::Arc;

use agentd_api::tasks::TaskSpec;
use agentd_api::{Error, ErrorCode};
use agentd_storage::{Store, Viewer, Which};

use super::*;
use crate::agents::{Caller, Registry};

const ALICE: Caller = Caller {
    uid: 1000,
    gid: 1000,
};
const BOB: Caller = Caller {
    uid: 1001,
    gid: 1001,
};

async fn tasks_in(folder: &tempfile::TempDir) -> (Tasks, Store) {
    let store = Store::open(folder.path().join("record.db")).await.unwrap();
    let agents = Arc::new(Registry::new(8));
    let tasks = Tasks::start(store.clone(), Arc::clone(&agents), FleetChanged::default())
        .await
        .unwrap();
    tasks.serve(Arc::new(RunningAgents::new(agents))).await;
    (tasks, store)
}

fn spec(text: &str) -> TaskSpec {
    TaskSpec {
        text: text.into(),
        agent: Some("coder".into()),
        ..TaskSpec::default()
    }
}

fn id(reply: &agentd_api::tasks::TaskReply) -> TaskId {
    reply.id.parse().unwrap()
}

#[tokio::test]
async fn an_acknowledged_task_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (tasks, store) = tasks_in(&folder).await;
    let first = tasks.submit(ALICE, spec("one")).await.unwrap();
    let after = TaskSpec {
        after: Some(vec![first.id.clone()]),
        deadline_ms: Some(3_600_000),
        ..spec("two")
    };
    let second = tasks.submit(ALICE, after).await.unwrap();
    store.close().await.unwrap();
    drop(tasks);

    let (tasks, store) = tasks_in(&folder).await;
    let open = store.tasks(Viewer::Root, Which::Open, 9).await.unwrap();
    let states: Vec<_> = open.iter().map(|it| (&it.id, it.state.as_str())).collect();
    assert_eq!(states, [(&second.id, "waiting"), (&first.id, "queued")]);
    // The dependency is known again: with it goes its dependant.
    tasks.cancel(ALICE, id(&first), "alice").await.unwrap();
    let ended = tasks.wait(Viewer::Uid(1000), id(&second)).await.unwrap();
    assert_eq!(ended.state, "failed");
    assert!(ended.cause.contains(&first.id), "{}", ended.cause);
}

#[tokio::test]
async fn a_repetition_is_answered_even_where_a_new_task_would_be_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (tasks, _store) = tasks_in(&folder).await;
    // Not over before a busy machine has taken the task.
    let soon = TaskSpec {
        deadline_at_ms: Some(agentd_storage::unix_ms() + 3_000),
        request_id: Some("r".into()),
        ..spec("one")
    };
    let first = tasks.submit(ALICE, soon.clone()).await.unwrap();
    assert!(first.new);
    let ended = tasks.wait(Viewer::Root, id(&first)).await.unwrap();
    assert_eq!(ended.state, "timed-out");
    let again = tasks.submit(ALICE, soon.clone()).await.unwrap();
    assert_eq!((again.id.as_str(), again.new), (first.id.as_str(), false));
    let other = TaskSpec {
        text: "other".into(),
        deadline_at_ms: None,
        ..soon
    };
    let error = tasks.submit(ALICE, other).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Exists);
    assert!(error.text().contains(&first.id), "{}", error.text());
}

#[tokio::test]
async fn each_of_many_submissions_stands_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (tasks, store) = tasks_in(&folder).await;
    let bad = TaskSpec {
        agent: None,
        ..spec("bad")
    };
    let missing = TaskSpec {
        after: Some(vec!["0198c0de-1111-7222-8333-4444feedbeef".into()]),
        ..spec("missing")
    };
    let outcomes = tasks
        .submit_many(ALICE, vec![spec("a"), bad, spec("b"), missing])
        .await;
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    assert!(matches!(outcomes[1], Err(Error::InvalidArgument(_))));
    assert!(matches!(outcomes[3], Err(Error::NotFound(_))));
    let open = store.tasks(Viewer::Root, Which::Open, 9).await.unwrap();
    let texts: Vec<_> = open.iter().map(|it| it.text.as_str()).collect();
    assert_eq!(texts, ["b", "a"]);
}

#[tokio::test]
async fn the_tasks_of_others_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let (tasks, _store) = tasks_in(&folder).await;
    let alices = tasks.submit(ALICE, spec("secret")).await.unwrap();
    let bob = Viewer::Uid(BOB.uid);
    assert!(matches!(
        tasks.resolve(bob, &alices.id).await,
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        tasks.cancel(BOB, id(&alices), "bob").await,
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        tasks.retry(BOB, id(&alices)).await,
        Err(Error::NotFound(_))
    ));
    let after = TaskSpec {
        after: Some(vec![alices.id.clone()]),
        ..spec("spy")
    };
    assert!(matches!(
        tasks.submit(BOB, after).await,
        Err(Error::NotFound(_))
    ));
    let root = Caller { uid: 0, gid: 0 };
    tasks.cancel(root, id(&alices), "root").await.unwrap();
}

#[tokio::test]
async fn why_a_task_waits_is_said_and_a_retry_is_a_new_task() {
    let folder = tempfile::tempdir().unwrap();
    let (tasks, _store) = tasks_in(&folder).await;
    let first = tasks.submit(ALICE, spec("one")).await.unwrap();
    let document = tasks.document(Viewer::Root, id(&first)).await.unwrap();
    assert!(
        document.contains("no agent named coder is running"),
        "{document}"
    );
    let error = tasks.retry(ALICE, id(&first)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    tasks.cancel(ALICE, id(&first), "alice").await.unwrap();
    let error = tasks.cancel(ALICE, id(&first), "alice").await.unwrap_err();
    assert!(error.text().contains("ended already"), "{}", error.text());
    let again = tasks.retry(ALICE, id(&first)).await.unwrap();
    assert!(again.new && again.id != first.id);
    let summary = tasks.summary(Viewer::Root, id(&again)).await.unwrap();
    assert_eq!(summary.retry_of, Some(first.id));
}
