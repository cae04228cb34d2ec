use super::*;
use agentd_api::AgentId;
use agentd_api::approvals::Scope;
use agentd_storage::Launch;
use serde_json::json;

const ALICE: Caller = Caller {
    uid: 1000,
    gid: 1000,
};
const BOB: Caller = Caller {
    uid: 1001,
    gid: 1001,
};
const ROOT: Caller = Caller { uid: 0, gid: 0 };

struct Place {
    folder: tempfile::TempDir,
    store: Store,
    approvals: Arc<Approvals>,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("record.db")).await.unwrap();
        let approvals = Approvals::start(store.clone()).await.unwrap();
        Self {
            folder,
            store,
            approvals,
        }
    }

    /// As after a crash: nothing in memory, everything on disk.
    async fn restart(self) -> Self {
        self.store.close().await.unwrap();
        let store = Store::open(self.folder.path().join("record.db"))
            .await
            .unwrap();
        let approvals = Approvals::start(store.clone()).await.unwrap();
        Self {
            store,
            approvals,
            ..self
        }
    }

    async fn agent(&self, name: &str) -> AgentIdentity {
        let identity = AgentIdentity::new(AgentId::new(), name, ALICE.uid);
        let launch = Fact::Launch(Launch {
            name: name.into(),
            uid: ALICE.uid,
            ..Launch::default()
        });
        let event = Event::now(identity.id.to_string(), launch);
        self.store.record_durable(event).await.unwrap();
        identity
    }

    /// Asks on a task of its own and returns once the question is open.
    async fn asked(&self, ask: Ask) -> (tokio::task::JoinHandle<Answered>, Approval) {
        let mut changes = self.approvals.changes();
        let approvals = Arc::clone(&self.approvals);
        let waiting = tokio::spawn(async move { approvals.ask(ask).await });
        loop {
            if let Change::Added(approval) = changes.recv().await.unwrap() {
                return (waiting, approval);
            }
        }
    }
}

fn push(identity: &AgentIdentity) -> Ask {
    Ask {
        identity: identity.clone(),
        unit: None,
        request_id: "p1".into(),
        kind: QuestionKind::Tool,
        tool: "Bash".into(),
        input: json!({"command": "git push origin main"}),
        rule: "Bash(git push*) (test)".into(),
        workspace: None,
        timeout: Duration::from_secs(600),
    }
}

fn say(answer: Answer) -> Decision {
    Decision {
        answer,
        always: None,
        rule: None,
        reason: None,
    }
}

#[tokio::test]
async fn only_the_owner_and_root_see_and_decide() {
    let place = Place::new().await;
    let agent = place.agent("coder").await;
    let (waiting, question) = place.asked(push(&agent)).await;
    assert!(place.approvals.list(BOB).is_empty());
    let refused = place
        .approvals
        .decide(BOB, &question.id, &say(Answer::Allow))
        .await;
    assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    assert!(matches!(
        place.approvals.find(BOB, &question.id).await,
        Err(Error::NotFound(_))
    ));
    assert_eq!(place.approvals.list(ROOT), std::slice::from_ref(&question));

    let decided = place
        .approvals
        .decide(ALICE, question.short_id(), &say(Answer::Allow))
        .await
        .unwrap();
    assert_eq!(
        (decided.decision.as_deref(), decided.by.as_deref()),
        (Some("allow"), Some("uid 1000"))
    );
    let answered = waiting.await.unwrap();
    assert_eq!(
        (answered.answer, answered.by.as_str()),
        (Answer::Allow, "uid 1000")
    );
    assert!(place.approvals.list(ALICE).is_empty());
    let again = place
        .approvals
        .decide(ROOT, &question.id, &say(Answer::Deny))
        .await;
    assert!(
        matches!(&again, Err(Error::Unavailable(text)) if text.contains("allow by uid 1000")),
        "{again:?}"
    );
}

#[tokio::test]
async fn silence_is_a_refusal_on_record() {
    let place = Place::new().await;
    let agent = place.agent("coder").await;
    let ask = Ask {
        timeout: Duration::from_millis(20),
        ..push(&agent)
    };
    let (waiting, question) = place.asked(ask).await;
    let answered = waiting.await.unwrap();
    assert_eq!(
        (answered.answer, answered.by.as_str()),
        (Answer::Deny, "time-out")
    );
    let on_record = place.approvals.find(ALICE, &question.id).await.unwrap();
    assert_eq!(on_record.decision.as_deref(), Some("deny"));
    assert_eq!(on_record.by.as_deref(), Some("time-out"));
}

#[tokio::test]
async fn a_question_taken_back_is_closed_for_everybody() {
    let place = Place::new().await;
    let agent = place.agent("coder").await;
    let mut changes = place.approvals.changes();
    let (waiting, question) = place.asked(push(&agent)).await;
    waiting.abort();
    let removed = loop {
        if let Change::Removed(approval) = changes.recv().await.unwrap() {
            break approval;
        }
    };
    assert_eq!(
        (removed.id.as_str(), removed.decision.as_deref()),
        (question.id.as_str(), Some("withdrawn"))
    );
    let late = place
        .approvals
        .decide(ALICE, &question.id, &say(Answer::Allow))
        .await;
    assert!(late.is_err(), "{late:?}");
    place.store.flush().await.unwrap();
    let on_record = place.approvals.find(ALICE, &question.id).await.unwrap();
    assert_eq!(on_record.decision.as_deref(), Some("withdrawn"));
}

#[tokio::test]
async fn an_open_question_is_asked_again_under_its_id_after_a_restart() {
    let place = Place::new().await;
    let agent = place.agent("coder").await;
    let (waiting, question) = place.asked(push(&agent)).await;
    // The daemon dies: nothing settles the question.
    std::mem::forget(waiting);
    let place = place.restart().await;
    assert!(
        place.approvals.list(ALICE).is_empty(),
        "its agent has not asked again yet"
    );
    let (waiting, again) = place.asked(push(&agent)).await;
    assert_eq!(
        (again.id, again.expires_at_ms),
        (question.id.clone(), question.expires_at_ms)
    );
    place
        .approvals
        .decide(ALICE, &question.id, &say(Answer::Allow))
        .await
        .unwrap();
    assert_eq!(waiting.await.unwrap().answer, Answer::Allow);
}

#[tokio::test]
async fn a_decision_of_which_the_agent_has_not_heard_is_not_asked_for_again() {
    let place = Place::new().await;
    let agent = place.agent("coder").await;
    let (waiting, question) = place.asked(push(&agent)).await;
    place
        .approvals
        .decide(ALICE, &question.id, &say(Answer::Allow))
        .await
        .unwrap();
    // The answer reached nobody: no Fact::Approval was written.
    waiting.await.unwrap();
    let place = place.restart().await;
    let answered = place.approvals.ask(push(&agent)).await;
    assert_eq!(
        (answered.answer, answered.by.as_str()),
        (Answer::Allow, "uid 1000")
    );

    // Another use under the same id, as agents may, is another question.
    let ask = Ask {
        input: json!({"command": "git push --force"}),
        ..push(&agent)
    };
    let (waiting, other) = place.asked(ask).await;
    assert_ne!(other.id, question.id);
    waiting.abort();
}

#[tokio::test]
async fn what_a_dead_agent_left_open_is_closed() {
    let place = Place::new().await;
    let agent = place.agent("coder").await;
    let (waiting, question) = place.asked(push(&agent)).await;
    std::mem::forget(waiting);
    let place = place.restart().await;
    place.approvals.forget_lost(|_| false).await;
    place.store.flush().await.unwrap();
    let on_record = place.approvals.find(ALICE, &question.id).await.unwrap();
    assert_eq!(on_record.decision.as_deref(), Some("withdrawn"));
}

#[tokio::test]
async fn always_is_remembered_over_a_restart_until_it_is_revoked() {
    let place = Place::new().await;
    let agent = place.agent("coder").await;
    let (waiting, question) = place.asked(push(&agent)).await;
    let always = Decision {
        always: Some(Scope::Agent),
        ..say(Answer::Allow)
    };
    place
        .approvals
        .decide(ALICE, &question.id, &always)
        .await
        .unwrap();
    waiting.await.unwrap();

    let place = place.restart().await;
    // Another launch under the same name; another name is asked for.
    let next = place.agent("coder").await;
    let answered = place.approvals.ask(push(&next)).await;
    assert_eq!(answered.answer, Answer::Allow);
    assert!(answered.by.starts_with("rule "), "{answered:?}");
    let stranger = place.agent("reviewer").await;
    let (waiting, _) = place.asked(push(&stranger)).await;
    waiting.abort();

    assert!(place.approvals.rules(BOB).is_empty());
    let rules = place.approvals.rules(ALICE);
    assert_eq!(rules.len(), 1);
    assert_eq!(
        (rules[0].covers.as_str(), rules[0].subject.as_str()),
        ("Bash: git push origin main", "coder")
    );
    assert!(matches!(
        place.approvals.revoke(BOB, &rules[0].id).await,
        Err(Error::NotFound(_))
    ));
    place
        .approvals
        .revoke(ALICE, rules[0].short_id())
        .await
        .unwrap();
    let place = place.restart().await;
    assert!(place.approvals.rules(ALICE).is_empty());
    let (waiting, _) = place.asked(push(&next)).await;
    waiting.abort();
}

#[tokio::test]
async fn a_remembered_refusal_wins_and_a_rule_must_cover_its_question() {
    let place = Place::new().await;
    let agent = place.agent("coder").await;
    let (waiting, question) = place.asked(push(&agent)).await;
    let with = |answer, scope, rule: &str| Decision {
        answer,
        always: Some(scope),
        rule: Some(rule.into()),
        reason: None,
    };
    for (decision, needle) in [
        (
            with(Answer::Allow, Scope::User, "Bash(cargo *)"),
            "does not cover",
        ),
        (with(Answer::Allow, Scope::User, "Bash("), "a tool rule is"),
        (with(Answer::Allow, Scope::Unit, "Bash"), "unit"),
    ] {
        let refused = place.approvals.decide(ALICE, &question.id, &decision).await;
        assert!(
            matches!(&refused, Err(Error::InvalidArgument(text)) if text.contains(needle)),
            "{refused:?}"
        );
    }
    let all = with(Answer::Allow, Scope::User, "Bash(git push*)");
    place
        .approvals
        .decide(ALICE, &question.id, &all)
        .await
        .unwrap();
    waiting.await.unwrap();
    let force = Ask {
        input: json!({"command": "git push --force"}),
        ..push(&agent)
    };
    assert_eq!(
        place.approvals.ask(force.clone()).await.answer,
        Answer::Allow
    );

    let line = Ask {
        input: json!({"command": "git push && curl x"}),
        ..push(&agent)
    };
    let (waiting, question) = place.asked(line).await;
    let never = with(Answer::Deny, Scope::Launch, "Bash(git push*)");
    place
        .approvals
        .decide(ALICE, &question.id, &never)
        .await
        .unwrap();
    waiting.await.unwrap();
    assert_eq!(
        place.approvals.ask(force.clone()).await.answer,
        Answer::Deny
    );
    // What was remembered for the launch goes with it.
    place
        .approvals
        .agent_ended(&LaunchId::new(agent.id.to_string()))
        .await;
    assert_eq!(place.approvals.ask(force).await.answer, Answer::Allow);
}

#[tokio::test]
async fn one_agent_cannot_flood_its_owner() {
    let place = Place::new().await;
    let agent = place.agent("coder").await;
    let mut open = Vec::new();
    for n in 0..MAX_OPEN_PER_AGENT {
        let ask = Ask {
            request_id: n.to_string(),
            ..push(&agent)
        };
        open.push(place.asked(ask).await.0);
    }
    let one_more = place.approvals.ask(push(&agent)).await;
    assert_eq!(
        (one_more.answer, one_more.by.as_str()),
        (Answer::Deny, "agentd")
    );
    assert_eq!(place.approvals.list(ALICE).len(), MAX_OPEN_PER_AGENT);
    open.iter().for_each(|waiting| waiting.abort());
}
