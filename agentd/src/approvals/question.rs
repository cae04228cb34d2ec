//! Between a question as it is asked, as it is on record and as it is shown. Pure; no state.

use agentd_api::Error;
use agentd_api::approvals::{Answer, Approval, Decision, QuestionKind, Scope};
use agentd_storage::{Asked, Question, Settlement, unix_ms};
use uuid::Uuid;

use super::{Answered, Ask};

/// A question that is asked now for the first time.
pub(super) fn new(ask: &Ask) -> Question {
    let now = unix_ms();
    Question {
        id: Uuid::now_v7().to_string(),
        uid: ask.identity.uid,
        request_id: ask.request_id.clone(),
        kind: ask.kind.as_str().to_owned(),
        tool: ask.tool.clone(),
        input: ask.input.clone(),
        rule: ask.rule.clone(),
        asked_at_ms: now,
        expires_at_ms: now + i64::try_from(ask.timeout.as_millis()).unwrap_or(i64::MAX / 2),
    }
}

/// Nobody wants the answer any more.
pub(super) fn withdrawn(asked: &Asked) -> Settlement {
    Settlement {
        id: asked.question.id.clone(),
        decision: "withdrawn".to_owned(),
        by: "agent".to_owned(),
        scope: None,
        reason: "the agent took the question back or has ended".to_owned(),
    }
}

/// A decision's reason on record and, with a refusal, for the model.
pub(super) fn reason(decision: &Decision, by: &str) -> String {
    match (&decision.reason, decision.answer) {
        (Some(reason), _) => reason.clone(),
        (None, Answer::Allow) => format!("allowed by {by}"),
        (None, Answer::Deny) => "the user refused it".to_owned(),
    }
}

/// The answer that a settlement on record means. What is neither of its two words is a refusal.
pub(super) fn answered(settlement: &Settlement) -> Answered {
    Answered {
        answer: settlement.decision.parse().unwrap_or(Answer::Deny),
        by: settlement.by.clone(),
        reason: settlement.reason.clone(),
    }
}

/// As D-Bus and agentctl show it.
pub(super) fn approval(asked: &Asked) -> Approval {
    let q = &asked.question;
    let ms = |at: i64| u64::try_from(at).unwrap_or(0);
    let settlement = asked.settlement.as_ref();
    Approval {
        id: q.id.clone(),
        uid: q.uid,
        agent: asked.agent.clone(),
        launch: asked.launch.to_string(),
        kind: q.kind.parse().unwrap_or(QuestionKind::Tool),
        tool: q.tool.clone(),
        input: q.input.to_string(),
        rule: q.rule.clone(),
        asked_at_ms: ms(q.asked_at_ms),
        expires_at_ms: ms(q.expires_at_ms),
        decided_at_ms: asked.decided_at_ms.map(ms),
        decision: settlement.map(|s| s.decision.clone()),
        by: settlement.map(|s| s.by.clone()),
        scope: settlement.and_then(|s| s.scope.as_deref()?.parse::<Scope>().ok()),
        reason: settlement.map(|s| s.reason.clone()),
    }
}

/// The last eight digits, as lists show an id.
pub(super) fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id)
}

/// The one id that `typed` means: all of it, or at least four digits from an end.
pub(super) fn one_meant_by<'a>(
    ids: impl Iterator<Item = &'a str>,
    typed: &str,
    what: &str,
) -> Result<Option<&'a str>, Error> {
    const SHORTEST: usize = 4;
    let plain = |text: &str| -> String {
        text.chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect()
    };
    let typed_hex = plain(typed);
    if typed_hex.len() < SHORTEST {
        return Err(Error::InvalidArgument(format!(
            "`{typed}` is too short; type at least {SHORTEST} digits of the id"
        )));
    }
    let mut meant = ids.filter(|id| {
        let id = plain(id);
        id.starts_with(&typed_hex) || id.ends_with(&typed_hex)
    });
    match (meant.next(), meant.count()) {
        (found, 0) => Ok(found),
        (_, more) => Err(Error::InvalidArgument(format!(
            "`{typed}` could be any of {} {what}; type more of the id",
            more + 1
        ))),
    }
}
