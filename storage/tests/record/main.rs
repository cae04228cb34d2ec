//! What the record promises: everything acknowledged is there after a crash, each user sees their own, and trouble is
//! told in a sentence that helps.

#[path = "../../../tests/kit/src/descriptors.rs"]
mod descriptors;
mod refusals;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agentd_storage::{
    Approval, Degradation, Denial, Direction, Event, Exit, ExitKind, Fact, Head, Launch,
    LaunchFailure, LaunchId, Message, MessageKind, Ready, Store, StoreError, Unended, Usage,
    UsageSource, Verify, Viewer, verify,
};
use agentd_testkit::skip;

const ALICE: Viewer = Viewer::Uid(1001);
const BOB: Viewer = Viewer::Uid(1002);

fn launch(name: &str, uid: u32) -> Fact {
    Fact::Launch(Launch {
        name: name.into(),
        uid,
        policy: "coding".into(),
        policy_hash: "ab".repeat(32),
        argv: vec!["claude".into(), "-c".into()],
        workspace: Some("/home/a/repo".into()),
        driver: "claude".into(),
        mode: "root".into(),
        kernel: "6.1".into(),
        details: serde_json::json!({"timeout_ms": 5}),
    })
}

fn event(launch: &str, at_ms: i64, fact: Fact) -> Event {
    Event {
        launch: launch.into(),
        at_ms,
        fact,
    }
}

fn note(launch: &str, text: &str) -> Event {
    event(launch, 0, Fact::Note { text: text.into() })
}

fn id(text: &str) -> LaunchId {
    text.into()
}

/// The lock of a store that is closed is free at once, whatever tests beside this one are about to execute.
async fn new_store() -> (tempfile::TempDir, Store) {
    descriptors::own_descriptors();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("record.db")).await.unwrap();
    (folder, store)
}

/// A store with launch `l` of alice.
async fn store_with_launch() -> (tempfile::TempDir, Store) {
    let (folder, store) = new_store().await;
    store
        .record_durable(event("l", 1, launch("a", 1001)))
        .await
        .unwrap();
    (folder, store)
}

async fn refusal(path: &Path) -> StoreError {
    let error = Store::open(path)
        .await
        .expect_err("this file must be refused");
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    error
}

#[tokio::test]
async fn everything_of_a_launch_is_read_back_in_order() {
    let (_folder, store) = new_store().await;
    let message = Message {
        id: "9".into(),
        from: "a".into(),
        to: "b".into(),
        to_launch: Some(id("l-2")),
        kind: MessageKind::Request,
        subject: Some("ask".into()),
        correlation: Some("4".into()),
        bytes: 120,
        outcome: "delivered".into(),
    };
    let usage = Usage {
        provider: "anthropic".into(),
        model: "m".into(),
        request_id: Some("r".into()),
        input: 100,
        output: 20,
        cache_read: 7,
        cache_write: 3,
        aborted: true,
        ..Usage::default()
    };
    let own_account = Usage {
        source: UsageSource::Protocol,
        input: 1_000_000,
        ..usage.clone()
    };
    let denial = Denial {
        layer: "egress".into(),
        what: "connect".into(),
        target: "evil:443".into(),
        rule: "default".into(),
        origin: Some("coding.toml:7".into()),
    };
    let approval = Approval {
        request_id: "q".into(),
        tool: "Bash".into(),
        decision: "allow".into(),
        by: "policy".into(),
        reason: "no rule against it".into(),
    };
    let ready = Ready {
        pid: 77,
        host_uid: 2_046_820_353,
        layers: vec!["landlock".into(), "seccomp".into()],
        landlock_abi: 7,
        degradations: vec![Degradation {
            property: "cgroup-limits".into(),
            why: "no delegation".into(),
        }],
    };
    let exit = Exit {
        kind: ExitKind::TimedOut,
        code: None,
        signal: Some(9),
        cause: "time is up".into(),
        ..Exit::default()
    };
    let stopped = Fact::State {
        state: "stopped".into(),
        cause: "signal 19".into(),
    };
    let line = Fact::DriverLine {
        direction: Direction::Out,
        line: "{}".into(),
        end: Some(3),
    };
    let facts = [
        launch("a", 1001),
        Fact::Ready(ready.clone()),
        Fact::Usage(usage.clone()),
        Fact::Usage(own_account.clone()),
        Fact::Denial(denial.clone()),
        Fact::Approval(approval.clone()),
        Fact::Note {
            text: "a note".into(),
        },
        stopped,
        line,
    ];
    for (at_ms, fact) in (1000..).zip(facts) {
        store.record(event("l-1", at_ms, fact)).await.unwrap();
    }
    store
        .record(event("l-2", 1100, launch("b", 1001)))
        .await
        .unwrap();
    store
        .record(event("l-1", 1200, Fact::Message(message.clone())))
        .await
        .unwrap();
    store
        .record_durable(event("l-1", 1300, Fact::Exit(exit.clone())))
        .await
        .unwrap();

    let record = store.inspect(ALICE, &id("l-1")).await.unwrap().unwrap();
    assert_eq!(
        (record.name.as_str(), record.uid, record.state.as_str()),
        ("a", 1001, "exited")
    );
    assert_eq!(record.argv, ["claude", "-c"]);
    assert_eq!(record.details["timeout_ms"], 5);
    assert_eq!(
        (record.pid, record.host_uid, record.landlock_abi),
        (Some(77), Some(2_046_820_353), Some(7))
    );
    assert_eq!(
        (record.layers, record.degradations),
        (ready.layers, ready.degradations)
    );
    assert_eq!(
        (record.started_at_ms, record.ready_at_ms, record.ended_at_ms),
        (1000, Some(1001), Some(1300))
    );
    assert_eq!(record.exit, Some(exit));
    assert_eq!(record.messages[0].what, message);
    assert_eq!(record.denials[0].what, denial);
    assert_eq!(record.approvals[0].what, approval);
    assert_eq!(
        (&record.usage[0].what, &record.usage[1].what),
        (&usage, &own_account)
    );
    // What the agent says of itself is kept and never counted.
    assert_eq!(
        (
            record.tokens.requests,
            record.tokens.aborted,
            record.tokens.all()
        ),
        (1, 1, 130)
    );
    let kinds: Vec<&str> = record
        .timeline
        .iter()
        .map(|entry| entry.kind.as_str())
        .collect();
    assert_eq!(
        kinds,
        [
            "launch", "ready", "usage", "denial", "approval", "note", "state", "message", "exit"
        ]
    );
    assert!(record.timeline.is_sorted_by_key(|entry| entry.seq));

    let lines = store.driver_lines(ALICE, &id("l-1"), 0, 10).await.unwrap();
    assert_eq!(
        (
            lines.len(),
            lines[0].direction,
            lines[0].line.as_str(),
            lines[0].end,
        ),
        (1, Direction::Out, "{}", Some(3))
    );
    // The receiver of a message has it on its record as well.
    assert_eq!(
        store.messages(ALICE, &id("l-2")).await.unwrap()[0].what,
        message
    );
    let list = store.launches(ALICE, 10).await.unwrap();
    assert_eq!(
        list.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(),
        ["l-2", "l-1"]
    );
    assert_eq!(
        (list[1].tokens.all(), list[1].exit.as_ref().unwrap().kind),
        (130, ExitKind::TimedOut)
    );
    assert_eq!(
        (list[0].state.as_str(), list[0].exit.is_none()),
        ("starting", true)
    );
}

#[tokio::test]
async fn a_failed_launch_says_where() {
    let (_folder, store) = store_with_launch().await;
    let failure = LaunchFailure {
        step: "mount /usr".into(),
        errno: 13,
        text: "no".into(),
    };
    store
        .record_durable(event("l", 2, Fact::LaunchFailed(failure.clone())))
        .await
        .unwrap();
    let record = store
        .inspect(Viewer::Root, &id("l"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (record.state.as_str(), record.failure, record.ended_at_ms),
        ("failed", Some(failure), Some(2))
    );
    assert_eq!(
        store.launches(Viewer::Root, 1).await.unwrap()[0].ended_at_ms,
        Some(2)
    );
}

#[tokio::test]
async fn what_neither_failed_nor_ended_is_unended() {
    let (_folder, store) = new_store().await;
    for (n, name) in ["starts", "fails", "ends"].into_iter().enumerate() {
        store
            .record(event(name, n as i64, launch(name, 1001)))
            .await
            .unwrap();
    }
    let failure = Fact::LaunchFailed(LaunchFailure::default());
    store.record(event("fails", 4, failure)).await.unwrap();
    let exit = Fact::Exit(Exit::default());
    store.record(event("ends", 5, exit)).await.unwrap();
    store.flush().await.unwrap();
    let unended = |ready| Unended {
        id: id("starts"),
        ready,
    };
    assert_eq!(store.unended(ALICE).await.unwrap(), [unended(false)]);
    assert_eq!(store.unended(BOB).await.unwrap(), []);
    let ready = Fact::Ready(Ready::default());
    store.record(event("starts", 6, ready)).await.unwrap();
    store.flush().await.unwrap();
    assert_eq!(store.unended(ALICE).await.unwrap(), [unended(true)]);
}

#[tokio::test]
async fn another_users_launch_looks_like_none() {
    let (_folder, store) = new_store().await;
    let launch_id = "0190aaaa-0000";
    store
        .record(event(launch_id, 1, launch("secret", 1001)))
        .await
        .unwrap();
    let line = Fact::DriverLine {
        direction: Direction::In,
        line: "x".into(),
        end: None,
    };
    for fact in [
        Fact::Usage(Usage::default()),
        Fact::Denial(Denial::default()),
        Fact::Message(Message::default()),
        line,
    ] {
        store.record(event(launch_id, 2, fact)).await.unwrap();
    }
    store.flush().await.unwrap();
    let it = id(launch_id);
    assert_eq!(store.launches(BOB, 10).await.unwrap(), []);
    assert_eq!(store.inspect(BOB, &it).await.unwrap(), None);
    assert_eq!(store.usage(BOB, &it).await.unwrap(), []);
    assert_eq!(store.denials(BOB, &it).await.unwrap(), []);
    assert_eq!(store.messages(BOB, &it).await.unwrap(), []);
    assert_eq!(store.driver_lines(BOB, &it, 0, 10).await.unwrap(), []);
    for name in ["secret", launch_id, "0190aaaa"] {
        assert_eq!(store.find(BOB, name).await.unwrap(), None);
        for viewer in [ALICE, Viewer::Root] {
            assert_eq!(store.find(viewer, name).await.unwrap(), Some(it.clone()));
        }
    }
    assert_eq!(store.usage(ALICE, &it).await.unwrap().len(), 1);
    assert_eq!(
        store
            .driver_lines(Viewer::Root, &it, 0, 10)
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn a_name_finds_the_newest_and_an_ambiguous_prefix_nothing() {
    let (_folder, store) = new_store().await;
    for launch_id in ["0190aaaa-1", "0190aaaa-2"] {
        store
            .record(event(launch_id, 1, launch("same", 1001)))
            .await
            .unwrap();
    }
    store.flush().await.unwrap();
    assert_eq!(
        store.find(ALICE, "same").await.unwrap(),
        Some(id("0190aaaa-2"))
    );
    assert_eq!(store.find(ALICE, "0190aaaa").await.unwrap(), None);
    assert_eq!(
        store.find(ALICE, "0190aaaa-1").await.unwrap(),
        Some(id("0190aaaa-1"))
    );
    assert_eq!(store.find(ALICE, "%").await.unwrap(), None);
}

#[tokio::test]
async fn one_bad_fact_spoils_nothing_else() {
    let (_folder, store) = store_with_launch().await;
    let mut writes = Vec::new();
    for n in 0..50 {
        let store = store.clone();
        let to = if n % 10 == 3 { "no-such-launch" } else { "l" };
        writes.push(tokio::spawn(async move {
            (to, store.record_durable(note(to, &n.to_string())).await)
        }));
    }
    for write in writes {
        match write.await.unwrap() {
            ("l", result) => result.unwrap(),
            (_, result) => {
                let error = result.unwrap_err();
                assert!(
                    matches!(&error, StoreError::Refused { kind: "note", .. }),
                    "{error}"
                );
                assert!(error.to_string().contains("no such launch"), "{error}");
            }
        }
    }
    let error = store
        .record_durable(event("l", 1, launch("a", 1001)))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("there already"), "{error}");
    let notes = store
        .inspect(ALICE, &id("l"))
        .await
        .unwrap()
        .unwrap()
        .timeline;
    assert_eq!(
        notes.iter().filter(|entry| entry.kind == "note").count(),
        45
    );
}

#[tokio::test]
async fn facts_that_nobody_waits_for_are_counted_when_they_are_lost() {
    let (_folder, store) = new_store().await;
    store.record(note("nowhere", "x")).await.unwrap();
    store.flush().await.unwrap();
    let health = store.health();
    assert_eq!(health.lost, 1);
    assert!(health.trouble.unwrap().contains("nowhere"));
}

#[tokio::test]
async fn a_group_stands_or_falls_together() {
    let (_folder, store) = store_with_launch().await;
    store
        .record_all_durable(vec![note("l", "x"), note("nowhere", "y")])
        .await
        .unwrap_err();
    store
        .record_all_durable(vec![note("l", "x"), note("l", "y")])
        .await
        .unwrap();
    let timeline = store
        .inspect(ALICE, &id("l"))
        .await
        .unwrap()
        .unwrap()
        .timeline;
    assert_eq!(timeline.len(), 3);
}

#[tokio::test]
async fn a_closed_record_says_so_and_opens_again_with_its_order() {
    let (folder, store) = store_with_launch().await;
    store.record(note("l", "first")).await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(
        store.record(note("l", "late")).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(
        store.launches(ALICE, 1).await,
        Err(StoreError::Closed)
    ));
    let store = Store::open(folder.path().join("record.db")).await.unwrap();
    store.record_durable(note("l", "second")).await.unwrap();
    let timeline = store
        .inspect(ALICE, &id("l"))
        .await
        .unwrap()
        .unwrap()
        .timeline;
    let texts: Vec<String> = timeline
        .into_iter()
        .skip(1)
        .map(|entry| entry.text)
        .collect();
    assert_eq!(texts, ["first", "second"]);
}

#[tokio::test]
async fn only_its_owner_may_read_the_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let (folder, _store) = store_with_launch().await;
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{entry:?}");
        seen.insert(entry.file_name().into_string().unwrap());
    }
    assert!(
        seen.contains("record.db") && seen.contains("record.db-wal"),
        "{seen:?}"
    );
}

/// This test binary again, in the role `role`, as a process of its own.
fn child(role: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", "child_process"])
        .env("RECORD_ROLE", role)
        .env("RECORD_PATH", path)
        .stdout(Stdio::piped());
    command
}

/// The other process of the tests below.
#[tokio::test]
#[ignore = "a part of other tests, which start it"]
async fn child_process() {
    let path = PathBuf::from(std::env::var_os("RECORD_PATH").unwrap());
    match std::env::var("RECORD_ROLE").unwrap().as_str() {
        "record for ever" => record_for_ever(&path).await,
        "fill the disk" => fill_the_disk(&path).await,
        "open read-only" => {
            let error = refusal(&path).await;
            assert!(
                matches!(error, StoreError::Open { .. } | StoreError::ReadOnly { .. }),
                "{error}"
            );
        }
        role => panic!("no role {role}"),
    }
}

/// Says each note's number after it was acknowledged.
async fn record_for_ever(path: &Path) {
    use std::io::Write as _;
    let store = Store::open(path).await.unwrap();
    let launch_id = format!("launch-{}", std::process::id());
    store
        .record_durable(event(&launch_id, 1, launch("a", 1001)))
        .await
        .unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let (store, launch_id) = (store.clone(), launch_id.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    let text = format!("{task}-{n}");
                    store.record_durable(note(&launch_id, &text)).await.unwrap();
                    let mut out = std::io::stdout();
                    writeln!(out, "acknowledged {launch_id} {text}").unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn kill_9_loses_nothing_that_was_acknowledged() {
    const ROUNDS: usize = 6;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.db");
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let mut child = child("record for ever", &path).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.starts_with("acknowledged"));
        // A different moment each time; the child is in the middle of its next commits.
        acknowledged.extend(lines.by_ref().take(5 + 37 * round));
        child.kill().unwrap();
        // The last line may be cut off by the death.
        acknowledged
            .extend(lines.filter(|line| line.matches('-').count() == 2 && !line.ends_with('-')));
        child.wait().unwrap();
    }
    assert!(
        acknowledged.len() >= ROUNDS * 5,
        "only {} were recorded",
        acknowledged.len()
    );
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.integrity_check().await.unwrap(), "ok");
    let mut present = BTreeSet::new();
    for launch in store.launches(ALICE, 100).await.unwrap() {
        let record = store.inspect(ALICE, &launch.id).await.unwrap().unwrap();
        for entry in record.timeline {
            present.insert(format!("acknowledged {} {}", launch.id, entry.text));
        }
    }
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|line| !present.contains(*line))
        .collect();
    assert!(
        lost.is_empty(),
        "lost {} of {}: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    // Deaths are no edits.
    let whole = Verify {
        record: path.clone(),
        key: store.public_key(),
        noted: None,
        on_file: Head::beside(&path).unwrap(),
        wants_file: true,
        known: Vec::new(),
    };
    let verification = verify(&whole).await.unwrap();
    assert!(verification.ok, "{:?}", verification.findings);
}

/// Records until there is no room, and a while longer.
async fn fill_the_disk(path: &Path) {
    let ballast = path.with_extension("ballast");
    std::fs::write(&ballast, vec![0; 100_000]).unwrap();
    let store = Store::open(path).await.unwrap();
    store
        .record_durable(event("l", 1, launch("a", 1001)))
        .await
        .unwrap();
    let mut kept = 0;
    let error = loop {
        match store.record_durable(note("l", &"x".repeat(4000))).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(
        store
            .record_durable(note("l", &"x".repeat(4000)))
            .await
            .is_err()
    );
    let record = store.inspect(ALICE, &id("l")).await.unwrap().unwrap();
    assert_eq!(record.timeline.len(), kept + 1);
    assert_eq!(store.integrity_check().await.unwrap(), "ok");
    // With room again, the same store goes on.
    std::fs::remove_file(ballast).unwrap();
    store.record_durable(note("l", "after")).await.unwrap();
}

/// Runs a role where `folder` has first been mounted by `mount`, in namespaces that vanish with it.
fn run_on_mount(role: &str, folder: &Path, mount: &str) {
    const NAMESPACES: [&str; 3] = ["--user", "--map-root-user", "--mount"];
    let possible = Command::new("unshare")
        .args(NAMESPACES)
        .arg("true")
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return skip(
            "user-namespace",
            "unshare --user --mount does not work here",
        );
    }
    let inner = child(role, &folder.join("record.db"));
    let status = Command::new("unshare")
        .args(NAMESPACES)
        .args(["sh", "-ec", &format!("{mount}; exec \"$@\""), "sh"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .envs(
            inner
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env("FOLDER", folder)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_full_disk_is_named_and_what_is_there_stays_readable() {
    let folder = tempfile::tempdir().unwrap();
    run_on_mount(
        "fill the disk",
        folder.path(),
        "mount -t tmpfs -o size=900k none \"$FOLDER\"",
    );
}

#[test]
fn a_read_only_file_system_is_named() {
    let folder = tempfile::tempdir().unwrap();
    run_on_mount(
        "open read-only",
        folder.path(),
        "mount --bind \"$FOLDER\" \"$FOLDER\"; mount -o remount,bind,ro \"$FOLDER\"",
    );
}

#[tokio::test]
async fn what_was_taken_from_an_agent_is_there_until_it_is_given_back_over_a_restart() {
    let taken = |launch: &str, right: &str, pattern: &str| {
        let fact = Fact::RightRevoked {
            right: right.into(),
            pattern: pattern.into(),
            by: "uid 1001".into(),
        };
        event(launch, 7, fact)
    };
    let (folder, store) = store_with_launch().await;
    for (name, uid) in [("m", 1001), ("n", 1002)] {
        let begun = event(name, 2, launch(name, uid));
        store.record_durable(begun).await.unwrap();
    }
    let events = vec![
        taken("l", "send", "#"),
        taken("l", "publish", "secret.#"),
        taken("l", "send", "#"),
        taken("m", "request", "a"),
    ];
    store.record_all_durable(events).await.unwrap();
    let restored = Fact::RightsRestored { by: "uid 0".into() };
    store.record_durable(event("m", 9, restored)).await.unwrap();
    store.record_durable(taken("m", "send", "b")).await.unwrap();
    store.close().await.unwrap();
    let store = Store::open(folder.path().join("record.db")).await.unwrap();
    let held = async |launch: &str| -> Vec<(String, String)> {
        let held = store.revocations(&id(launch)).await.unwrap();
        assert!(held.iter().all(|r| r.by == "uid 1001"), "{held:?}");
        held.into_iter().map(|r| (r.right, r.pattern)).collect()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        let owned = pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        owned.collect()
    };
    assert_eq!(
        held("l").await,
        pairs(&[("send", "#"), ("publish", "secret.#")])
    );
    assert_eq!(
        held("m").await,
        pairs(&[("send", "b")]),
        "taken after it was given back"
    );
    assert_eq!(held("n").await, pairs(&[]));
}
