//! What a transition says and to whom: on record, as an event, to those who wait.

use agentd_api::tasks::TaskEvent;
use agentd_orchestrator::driver::TurnOutcome;
use agentd_orchestrator::task::{AttemptEnd, Change};
use agentd_storage::Event;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::Msg;
use crate::tasks::journal::Then;

/// Of what a failed attempt said, this much is in the cause of the transition; the task has all of it.
const CAUSE_CHARS: usize = 200;

/// What goes on record with the first of some transitions, and what follows from them all.
#[derive(Default)]
pub(super) struct Extras {
    pub(super) turn: Option<u64>,
    pub(super) result: Option<String>,
    pub(super) error: Option<String>,
    pub(super) events: Vec<Event>,
    pub(super) then: Vec<Then>,
}

impl Extras {
    pub(super) fn then(then: Then) -> Self {
        Self {
            then: vec![then],
            ..Self::default()
        }
    }
}

/// Answers whoever waits, if somebody still does.
pub(super) fn answer<T: Send + 'static>(reply: oneshot::Sender<T>, value: T) -> Then {
    Box::new(move || drop(reply.send(value)))
}

/// Tells the scheduler, if it still runs.
pub(super) fn send(mailbox: &mpsc::WeakUnboundedSender<Msg>, msg: Msg) {
    if let Some(mailbox) = mailbox.upgrade() {
        drop(mailbox.send(msg));
    }
}

/// Terms as they are stored and compared.
pub fn terms_text(terms: &agentd_orchestrator::task::Terms) -> String {
    // Plain structs without maps: serialising them can't fail, and gives the same text every time.
    serde_json::to_string(terms).expect("terms are plain data")
}

pub(super) fn event_of(change: &Change) -> TaskEvent {
    TaskEvent {
        id: change.task.to_string(),
        uid: change.uid,
        from: change.from.as_str().to_owned(),
        state: change.to.as_str().to_owned(),
        attempt: change.attempt,
        agent: change.agent.as_ref().map(|it| it.agent.clone()),
        cause: change.cause.clone(),
        at_ms: change.at_ms,
    }
}

/// What a turn's end means for the attempt, and all that was said.
pub(super) fn end_of(outcome: TurnOutcome) -> (AttemptEnd, String) {
    let TurnOutcome {
        text,
        is_error,
        kind,
    } = outcome;
    if !is_error {
        return (AttemptEnd::Done, text);
    }
    let first_line = text.lines().next().unwrap_or_default();
    let mut why: String = first_line.chars().take(CAUSE_CHARS).collect();
    if why.is_empty() {
        why = kind.clone();
    }
    // "closed" is the driver's word for an agent that ended in the middle of its turn.
    let end = if kind == "closed" {
        AttemptEnd::AgentGone { why }
    } else {
        AttemptEnd::Failed { why }
    };
    (end, text)
}

/// An even draw from all of `u64`.
pub(super) fn jitter() -> u64 {
    // The low half of a random UUID but for its two variant bits, which are at the top: shift them out and mix.
    let (high, low) = Uuid::new_v4().as_u64_pair();
    (low << 2) ^ (high >> 62)
}
