//! The rules of the book: first one by one, then under any interleaving.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const UID: u32 = 1000;

fn id(n: u128) -> TaskId {
    TaskId(Uuid::from_u128(n))
}

fn at(boot_ms: u64) -> Now {
    // A wall clock that runs backwards: no decision may look at it.
    Now {
        boot_ms,
        wall_ms: 1_000_000_000 - boot_ms.cast_signed(),
    }
}

fn terms() -> Terms {
    Terms {
        retry: Retry {
            retries: 1,
            base_ms: 100,
            cap_ms: 100,
        },
        ..Terms::new(Target::Agent("coder".into()))
    }
}

fn agent(name: &str) -> Assignment {
    Assignment {
        launch: format!("launch of {name}"),
        agent: name.into(),
    }
}

/// A book, its clock, and everything it said.
struct Desk {
    book: Book,
    now: u64,
}

impl Desk {
    fn new() -> Self {
        Self {
            book: Book::new(Limits::default()),
            now: 1_000,
        }
    }

    fn submit_as(
        &mut self,
        n: u128,
        terms: Terms,
        parent: Option<u128>,
    ) -> Result<Change, Refused> {
        let submission = Submission {
            id: id(n),
            uid: UID,
            terms,
            parent: parent.map(id),
        };
        let change = self.book.submit(submission, &[], at(self.now))?;
        assert_eq!(self.book.commit(id(n), at(self.now)), []);
        Ok(change)
    }

    fn submit(&mut self, n: u128, terms: Terms) -> Change {
        self.submit_as(n, terms, None).unwrap()
    }

    fn run(&mut self, n: u128) {
        let now = at(self.now);
        let change = self.book.assign(id(n), agent("coder"), now).unwrap();
        self.book.begin(id(n), change.attempt, now).unwrap();
    }

    fn end(&mut self, n: u128, attempt: u32, end: AttemptEnd) -> Result<Vec<Change>, Stale> {
        self.book.end(id(n), attempt, end, u64::MAX, at(self.now))
    }

    fn tick(&mut self, by: u64) -> Vec<Change> {
        self.now += by;
        self.book.tick(at(self.now))
    }
}

fn failed() -> AttemptEnd {
    AttemptEnd::Failed {
        why: "no idea".into(),
    }
}

fn steps(changes: &[Change]) -> Vec<(u128, State)> {
    changes
        .iter()
        .map(|change| (change.task.0.as_u128(), change.to))
        .collect()
}

#[test]
fn a_task_is_queued_assigned_runs_and_succeeds() {
    let mut desk = Desk::new();
    assert_eq!(desk.submit(1, terms()).to, State::Queued);
    assert_eq!(desk.book.candidates(), [id(1)]);
    desk.run(1);
    assert_eq!(desk.book.candidates(), []);
    let end = desk.end(1, 1, AttemptEnd::Done).unwrap();
    assert_eq!(steps(&end), [(1, State::Succeeded)]);
    assert!(desk.book.is_empty());
    assert_eq!(desk.end(1, 1, failed()).unwrap_err().attempt, 1);
}

#[test]
fn nothing_happens_to_a_task_before_it_is_on_record() {
    let mut desk = Desk::new();
    let submission = Submission {
        id: id(1),
        uid: UID,
        terms: terms(),
        parent: None,
    };
    desk.book.submit(submission, &[], at(0)).unwrap();
    assert_eq!(desk.book.candidates(), []);
    assert!(desk.book.assign(id(1), agent("coder"), at(0)).is_err());
    assert!(desk.book.cancel(id(1), "no".into(), at(0)).is_err());
    desk.book.discard(id(1));
    assert!(desk.book.is_empty() && desk.book.open_of(UID) == 0);
}

#[test]
fn a_dependency_that_ends_while_its_dependant_is_being_recorded_is_not_missed() {
    for (end, expected) in [(AttemptEnd::Done, State::Queued), (failed(), State::Failed)] {
        let mut desk = Desk::new();
        let once = Retry {
            retries: 0,
            ..Retry::default()
        };
        desk.submit(
            1,
            Terms {
                retry: once,
                ..terms()
            },
        );
        desk.run(1);
        let submission = Submission {
            id: id(2),
            uid: UID,
            terms: Terms {
                after: vec![id(1)],
                ..terms()
            },
            parent: None,
        };
        let change = desk.book.submit(submission, &[], at(desk.now)).unwrap();
        assert_eq!(change.to, State::Waiting);
        assert_eq!(desk.end(1, 1, end).unwrap().len(), 1);
        let after = desk.book.commit(id(2), at(desk.now));
        assert_eq!(steps(&after), [(2, expected)]);
    }
}

#[test]
fn a_failed_attempt_is_tried_again_after_its_pause_and_then_fails() {
    let mut desk = Desk::new();
    desk.submit(1, terms());
    desk.run(1);
    let again = desk.end(1, 1, failed()).unwrap();
    assert_eq!(again[0].to, State::Queued);
    assert_eq!(again[0].cause, "attempt 1 failed: no idea; again in 100 ms");
    assert_eq!(desk.book.candidates(), []);
    assert_eq!(desk.book.wake_at(), Some(1_100));
    assert_eq!(desk.tick(100), []);
    desk.run(1);
    assert!(
        desk.end(1, 1, AttemptEnd::Done).is_err(),
        "the first attempt ended"
    );
    let end = desk.end(1, 2, failed()).unwrap();
    assert_eq!(steps(&end), [(1, State::Failed)]);
}

#[test]
fn a_pause_can_be_cut_short() {
    let mut desk = Desk::new();
    desk.submit(1, terms());
    assert!(desk.book.hurry(id(1), at(0)).is_err(), "it does not pause");
    desk.run(1);
    desk.end(1, 1, failed()).unwrap();
    desk.book.hurry(id(1), at(desk.now)).unwrap();
    desk.run(1);
}

#[test]
fn an_agent_that_dies_costs_an_attempt_also_before_it_began() {
    let mut desk = Desk::new();
    desk.submit(1, terms());
    desk.book.assign(id(1), agent("coder"), at(0)).unwrap();
    let gone = AttemptEnd::AgentGone {
        why: "killed".into(),
    };
    assert_eq!(desk.end(1, 1, gone.clone()).unwrap()[0].to, State::Queued);
    assert!(desk.end(1, 1, gone).is_err(), "an attempt ends once");
    assert!(desk.book.begin(id(1), 1, at(0)).is_err());
}

#[test]
fn priority_goes_first_and_age_catches_up() {
    let level = |n| Terms {
        priority: Priority::new(n).unwrap(),
        ..terms()
    };
    let mut desk = Desk::new();
    desk.submit(1, level(0));
    desk.submit(2, level(9));
    desk.submit(3, level(9));
    assert_eq!(desk.book.candidates(), [id(2)], "urgent, and older than 3");
    desk.now += 9 * AGE_STEP_MS + 1;
    desk.submit(4, level(9));
    for expected in [2, 3, 1, 4] {
        assert_eq!(desk.book.candidates(), [id(expected)]);
        desk.run(expected);
    }
}

#[test]
fn each_target_has_a_lane_of_its_own() {
    let mut desk = Desk::new();
    desk.submit(1, terms());
    desk.submit(2, terms());
    desk.submit(3, Terms::new(Target::Role("qa".into())));
    assert_eq!(desk.book.candidates(), [id(1), id(3)]);
}

#[test]
fn deadlines_end_what_waits_and_what_runs() {
    let timed = |ms| Terms {
        deadline: Some(Deadline::In(ms)),
        ..terms()
    };
    let mut desk = Desk::new();
    desk.submit(1, timed(500));
    desk.submit(2, timed(900));
    let absolute = Terms {
        deadline: Some(Deadline::At(at(desk.now).wall_ms + 950)),
        ..terms()
    };
    desk.submit(3, absolute);
    desk.run(2);
    assert_eq!(desk.book.wake_at(), Some(1_500));
    let first = desk.tick(500);
    assert_eq!(steps(&first), [(1, State::TimedOut)]);
    assert!(!first[0].interrupts());
    let second = desk.tick(400);
    assert_eq!(steps(&second), [(2, State::TimedOut)]);
    assert!(second[0].interrupts());
    // The wall clock went backwards meanwhile; the time that passed is what counts.
    assert_eq!(steps(&desk.tick(50)), [(3, State::TimedOut)]);
    assert_eq!(
        desk.submit_as(4, timed(0), None).unwrap_err(),
        Refused::DeadlinePassed
    );
}

#[test]
fn a_failed_dependency_fails_or_skips_the_whole_chain() {
    let after = |n, on_dependency_failure| Terms {
        after: vec![id(n)],
        on_dependency_failure,
        ..terms()
    };
    let mut desk = Desk::new();
    desk.submit(1, terms());
    desk.submit(2, after(1, OnDependencyFailure::Fail));
    desk.submit(3, after(2, OnDependencyFailure::Skip));
    desk.submit(4, after(3, OnDependencyFailure::Fail));
    let ends = desk
        .book
        .cancel(id(1), "by bob".into(), at(desk.now))
        .unwrap();
    assert_eq!(
        steps(&ends),
        [
            (1, State::Cancelled),
            (2, State::Failed),
            (3, State::Cancelled),
            (4, State::Failed)
        ]
    );
    assert!(
        ends[2].cause.starts_with("skipped: task"),
        "{}",
        ends[2].cause
    );
    assert!(desk.book.is_empty());
}

#[test]
fn a_long_chain_of_dependants_ends_without_recursion() {
    let mut desk = Desk::new();
    desk.submit(1, terms());
    for n in 2..=20_000 {
        let after = Terms {
            after: vec![id(n - 1)],
            ..terms()
        };
        desk.submit(n, after);
    }
    let ends = desk.book.cancel(id(1), "by bob".into(), at(0)).unwrap();
    assert_eq!(ends.len(), 20_000);
    assert!(desk.book.is_empty());
}

#[test]
fn dependencies_must_be_there_and_ones_own() {
    let mut desk = Desk::new();
    desk.submit(1, terms());
    let of = |uid, after: u128| Submission {
        id: id(99),
        uid,
        terms: Terms {
            after: vec![id(after)],
            ..terms()
        },
        parent: None,
    };
    for (submission, missing) in [(of(UID, 7), 7), (of(UID + 1, 1), 1)] {
        let refused = desk.book.submit(submission, &[], at(0)).unwrap_err();
        assert_eq!(refused, Refused::NoSuchDependency(id(missing)));
    }
    let ended = [(id(7), State::TimedOut)];
    let change = desk.book.submit(of(UID, 7), &ended, at(0)).unwrap();
    assert_eq!(change.to, State::Failed);
    assert!(desk.book.commit(id(99), at(0)).is_empty());
}

#[test]
fn children_end_with_their_parent_and_delegation_has_bounds() {
    let mut desk = Desk::new();
    let to = |name: &str| Terms::new(Target::Agent(name.into()));
    desk.submit(1, to("coder"));
    assert!(matches!(
        desk.submit_as(2, to("b"), Some(1)),
        Err(Refused::ParentNotRunning { .. })
    ));
    desk.run(1);
    assert!(matches!(
        desk.submit_as(2, to("coder"), Some(1)),
        Err(Refused::Cycle { .. })
    ));
    desk.submit_as(2, to("b"), Some(1)).unwrap();
    let now = at(desk.now);
    desk.book.assign(id(2), agent("b"), now).unwrap();
    desk.book.begin(id(2), 1, now).unwrap();
    assert!(
        matches!(desk.submit_as(3, to("coder"), Some(2)), Err(Refused::Cycle { ancestor, .. }) if ancestor == id(1))
    );
    desk.submit_as(3, to("c"), Some(2)).unwrap();
    let ends = desk.end(1, 1, AttemptEnd::Done).unwrap();
    assert_eq!(
        steps(&ends),
        [
            (1, State::Succeeded),
            (2, State::Cancelled),
            (3, State::Cancelled)
        ]
    );
    assert!(ends[1].interrupts() && !ends[2].interrupts());
    assert_eq!(
        desk.submit_as(4, to("b"), Some(1)).unwrap_err(),
        Refused::NoSuchParent(id(1))
    );
}

#[test]
fn limits_count_what_is_open() {
    let limits = Limits {
        open_per_user: 2,
        children: 1,
        depth: 1,
        dependencies: 0,
    };
    let mut desk = Desk {
        book: Book::new(limits),
        now: 0,
    };
    let to = |name: &str| Terms::new(Target::Agent(name.into()));
    desk.submit(1, to("coder"));
    desk.run(1);
    desk.submit_as(2, to("b"), Some(1)).unwrap();
    assert!(matches!(
        desk.submit_as(3, to("c"), None),
        Err(Refused::TooManyOpen { limit: 2 })
    ));
    desk.book.cancel(id(2), "no".into(), at(0)).unwrap();
    desk.submit_as(3, to("b"), Some(1)).unwrap();
    desk.book.assign(id(3), agent("b"), at(0)).unwrap();
    desk.book.begin(id(3), 1, at(0)).unwrap();
    desk.book.limits.open_per_user = 9;
    assert!(matches!(
        desk.submit_as(4, to("c"), Some(1)),
        Err(Refused::TooManyChildren { .. })
    ));
    assert!(matches!(
        desk.submit_as(4, to("c"), Some(3)),
        Err(Refused::TooDeep { limit: 1 })
    ));
    let after = Terms {
        after: vec![id(1)],
        ..to("c")
    };
    assert!(matches!(
        desk.submit_as(4, after, None),
        Err(Refused::TooManyDependencies { .. })
    ));
}

#[test]
fn a_book_is_restored_as_it_was_and_what_was_missed_follows() {
    let restored = |n, state, attempt| Restored {
        id: id(n),
        uid: UID,
        terms: terms(),
        parent: None,
        depth: 0,
        state,
        attempt,
        agent: Some(agent("coder")),
        queued_boot_ms: -5,
        deadline_boot_ms: None,
        not_before_boot_ms: None,
        dependencies: Vec::new(),
    };
    let waiting = |n, dependencies| Restored {
        dependencies,
        ..restored(n, State::Waiting, 0)
    };
    let mut book = Book::new(Limits::default());
    let changes = book.restore(
        vec![
            restored(1, State::Running, 2),
            restored(2, State::Assigned, 1),
            Restored {
                not_before_boot_ms: Some(50),
                ..restored(3, State::Queued, 1)
            },
            waiting(4, vec![(id(90), State::Succeeded)]),
            waiting(5, vec![(id(91), State::Failed)]),
            waiting(6, vec![(id(1), State::Running), (id(90), State::Succeeded)]),
            Restored {
                parent: Some(id(92)),
                ..restored(7, State::Queued, 0)
            },
            Restored {
                deadline_boot_ms: Some(0),
                ..restored(8, State::Queued, 0)
            },
        ],
        at(10),
    );
    assert_eq!(
        steps(&changes),
        [
            (5, State::Failed),
            (4, State::Queued),
            (7, State::Cancelled)
        ]
    );
    assert_eq!(steps(&book.tick(at(10))), [(8, State::TimedOut)]);
    let under_way = book.under_way();
    assert_eq!(
        under_way.iter().map(|it| (it.0, it.1)).collect::<Vec<_>>(),
        [(id(1), 2), (id(2), 1)]
    );
    assert_eq!(book.wake_at(), Some(50));
    let ends = book.end(id(1), 2, AttemptEnd::Done, 0, at(20)).unwrap();
    assert_eq!(steps(&ends), [(1, State::Succeeded), (6, State::Queued)]);
}

#[test]
fn words_outside_the_vocabulary_name_what_is_allowed() {
    let error = "fastest".parse::<Priority>().unwrap_err().to_string();
    assert!(error.contains("urgent (9)"), "{error}");
    assert_eq!("7".parse::<Priority>().unwrap().to_string(), "high");
    assert_eq!("3".parse::<Priority>().unwrap().to_string(), "3");
    for state in State::ALL {
        assert_eq!(state.as_str().parse(), Ok(state));
    }
    assert!(
        "done"
            .parse::<State>()
            .unwrap_err()
            .to_string()
            .contains("succeeded")
    );
}

/// One thing that may happen.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        after: Option<u8>,
        parent: Option<u8>,
        deadline: Option<u16>,
        target: u8,
        skip: bool,
    },
    Commit(u8),
    Discard(u8),
    Assign(u8),
    Begin(u8, u8),
    Rewind(u8, u8),
    End(u8, u8, u8, u64),
    Cancel(u8),
    Hurry(u8),
    Tick(u16),
    /// The daemon dies and comes back with what is on record.
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let submit = (
        any::<Option<u8>>(),
        any::<Option<u8>>(),
        any::<Option<u16>>(),
        0..3u8,
        any::<bool>(),
    )
        .prop_map(|(after, parent, deadline, target, skip)| Step::Submit {
            after,
            parent,
            deadline,
            target,
            skip,
        });
    prop_oneof![
        4 => submit,
        5 => any::<u8>().prop_map(Step::Commit),
        1 => any::<u8>().prop_map(Step::Discard),
        6 => any::<u8>().prop_map(Step::Assign),
        6 => (any::<u8>(), 0..4u8).prop_map(|(n, back)| Step::Begin(n, back)),
        1 => (any::<u8>(), 0..4u8).prop_map(|(n, back)| Step::Rewind(n, back)),
        6 => (any::<u8>(), 0..4u8, 0..3u8, any::<u64>()).prop_map(|(n, back, how, jitter)| Step::End(n, back, how, jitter)),
        1 => any::<u8>().prop_map(Step::Cancel),
        1 => any::<u8>().prop_map(Step::Hurry),
        3 => any::<u16>().prop_map(Step::Tick),
        1 => Just(Step::Restart),
    ]
}

/// The record, kept by applying changes, and what must be true of it.
#[derive(Default)]
struct Ledger {
    rows: BTreeMap<TaskId, Row>,
    /// Attempts that have ended.
    ended: BTreeSet<(TaskId, u32)>,
}

#[derive(Clone)]
struct Row {
    restored: Restored,
}

impl Ledger {
    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            let row = self
                .rows
                .get_mut(&change.task)
                .expect("only recorded tasks change");
            let state = row.restored.state;
            assert!(!state.is_final(), "{change:?} leaves a final state");
            assert_eq!(state, change.from, "{change:?}");
            assert!(!change.cause.is_empty());
            let attempt_ends = change.from.is_under_way() && !change.to.is_under_way();
            if attempt_ends {
                assert!(
                    self.ended.insert((change.task, change.attempt)),
                    "{change:?} ends an attempt twice"
                );
            }
            match change.to {
                State::Submitted => panic!("{change:?}"),
                State::Assigned if change.from == State::Running => {
                    assert_eq!(change.attempt, row.restored.attempt);
                }
                State::Assigned => assert_eq!(change.attempt, row.restored.attempt + 1),
                State::Running => assert_eq!(change.from, State::Assigned),
                State::Succeeded => assert_eq!(change.from, State::Running),
                _ => assert_eq!(change.attempt, row.restored.attempt),
            }
            row.restored.state = change.to;
            row.restored.attempt = change.attempt;
            row.restored.agent = change.agent.clone();
            row.restored.not_before_boot_ms = change.not_before_boot_ms;
        }
    }

    fn state(&self, id: TaskId) -> State {
        self.rows[&id].restored.state
    }

    fn check(&self, book: &Book) {
        for (id, row) in &self.rows {
            let recorded = row.restored.state;
            match book.state(*id) {
                Some(state) => assert_eq!(state, recorded, "{id}"),
                None => assert!(recorded.is_final(), "{id} is {recorded} and lost"),
            }
            if recorded == State::Waiting {
                let open = |(dependency, _): &&(TaskId, State)| !self.state(*dependency).is_final();
                assert!(
                    row.restored.dependencies.iter().any(|it| open(&it)),
                    "{id} waits for nothing"
                );
            }
            if let Some(parent) = row.restored.parent.filter(|_| !recorded.is_final()) {
                assert!(!self.state(parent).is_final(), "{id} outlives its parent");
            }
            if recorded == State::Queued {
                assert!(book.is_placed(*id), "{id} is queued nowhere");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_keeps_every_task_and_ends_each_attempt_once(steps in prop::collection::vec(any_step(), 1..120)) {
        let mut book = Book::new(Limits::default());
        let mut ledger = Ledger::default();
        // Reserved, and not on record yet.
        let mut pending: BTreeMap<TaskId, Row> = BTreeMap::new();
        let (mut next, mut boot_ms) = (0u128, 0u64);
        for step in steps {
            let now = at(boot_ms);
            let pick = |n: u8| (next > 0).then(|| id(u128::from(n) % next));
            let changes = match step {
                Step::Submit { after, parent, deadline, target, skip } => {
                    let known: Vec<(TaskId, State)> = ledger
                        .rows
                        .iter()
                        .map(|(id, row)| (*id, row.restored.state))
                        .filter(|(_, state)| state.is_final())
                        .collect();
                    let terms = Terms {
                        after: after.and_then(pick).into_iter().collect(),
                        deadline: deadline.map(|ms| Deadline::In(u64::from(ms))),
                        on_dependency_failure: if skip { OnDependencyFailure::Skip } else { OnDependencyFailure::Fail },
                        target: Target::Agent(format!("a{target}")),
                        ..terms()
                    };
                    let submission = Submission { id: id(next), uid: UID, terms: terms.clone(), parent: parent.and_then(pick) };
                    let parent = submission.parent;
                    if let Ok(change) = book.submit(submission, &known, now) {
                        let state = |id: &TaskId| ledger.rows.get(id).map_or(State::Waiting, |row| row.restored.state);
                        let row = Row { restored: Restored {
                            id: id(next),
                            uid: UID,
                            parent,
                            depth: parent.map_or(0, |parent| book.depth(parent).unwrap_or(0) + 1),
                            state: change.to,
                            attempt: 0,
                            agent: None,
                            queued_boot_ms: boot_ms.cast_signed(),
                            deadline_boot_ms: deadline.map(|ms| boot_ms + u64::from(ms)),
                            not_before_boot_ms: None,
                            dependencies: terms.after.iter().map(|id| (*id, state(id))).collect(),
                            terms,
                        }};
                        pending.insert(id(next), row);
                        next += 1;
                    }
                    Vec::new()
                }
                Step::Commit(n) => match pick(n).and_then(|id| pending.remove_entry(&id)) {
                    Some((id, row)) => {
                        ledger.rows.insert(id, row);
                        book.commit(id, now)
                    }
                    None => Vec::new(),
                },
                Step::Discard(n) => {
                    if let Some(id) = pick(n) {
                        book.discard(id);
                        pending.remove(&id);
                    }
                    Vec::new()
                }
                Step::Assign(n) => {
                    let heads = book.candidates();
                    let head = heads.get(usize::from(n) % heads.len().max(1)).copied();
                    let holder = format!("a{}", n % 3);
                    head.and_then(|id| book.assign(id, agent(&holder), now).ok()).into_iter().collect()
                }
                Step::Begin(n, attempt) => {
                    pick(n).and_then(|id| book.begin(id, attempt.into(), now).ok()).into_iter().collect()
                }
                Step::Rewind(n, attempt) => {
                    pick(n).and_then(|id| book.rewind(id, attempt.into(), now).ok()).into_iter().collect()
                }
                Step::End(n, attempt, how, jitter) => {
                    let end = match how {
                        0 => AttemptEnd::Done,
                        1 => failed(),
                        _ => AttemptEnd::AgentGone { why: "killed".into() },
                    };
                    pick(n).and_then(|id| book.end(id, attempt.into(), end, jitter, now).ok()).unwrap_or_default()
                }
                Step::Cancel(n) => pick(n).and_then(|id| book.cancel(id, "no".into(), now).ok()).unwrap_or_default(),
                Step::Hurry(n) => pick(n).and_then(|id| book.hurry(id, now).ok()).into_iter().collect(),
                Step::Tick(ms) => {
                    boot_ms += u64::from(ms);
                    book.tick(at(boot_ms))
                }
                Step::Restart => {
                    pending.clear();
                    book = Book::new(Limits::default());
                    let open: Vec<Restored> = ledger
                        .rows
                        .values()
                        .filter(|row| !row.restored.state.is_final())
                        .map(|row| Restored {
                            dependencies: row.restored.terms.after.iter().map(|id| {
                                // A dependency whose record was never finished is gone with the daemon that took it.
                                (*id, ledger.rows.get(id).map_or(State::Failed, |it| it.restored.state))
                            }).collect(),
                            ..row.restored.clone()
                        })
                        .collect();
                    book.restore(open, now)
                }
            };
            ledger.apply(&changes);
            ledger.check(&book);
        }
    }
}
