//! Destinations that a person has to approve (`[net] ask`).
//!
//! The connection waits while the question is open, and with it every other one to the same host and port: one
//! question per destination. An approval then stands for a while, because one `git clone` makes several connections.
//! A client that gives up takes its question back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentd_api::approvals::{Answer, QuestionKind};
use agentd_sandbox::rules::EgressRule;
use agentd_storage::{Approval, Event, Fact};
use serde_json::Value;

use super::EgressContext;
use crate::approvals::{Answered, Approvals, Ask};

/// How long an approval stands for further connections to the same destination.
const APPROVAL_STANDS: Duration = Duration::from_secs(300);
/// How long a refusal does: a client that tries again at once must not ask again at once.
const REFUSAL_STANDS: Duration = Duration::from_secs(60);
/// Destinations that are remembered or asked about at once.
const MAX_DESTINATIONS: usize = 256;

/// What a person said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Consent {
    Given,
    Refused { why: String },
}

/// One destination. The lock is held while its question is open.
type Place = Arc<tokio::sync::Mutex<Option<(Instant, Consent)>>>;

/// The way to people, and what they said lately.
#[derive(Debug)]
pub(super) struct People {
    approvals: Arc<Approvals>,
    unit: Option<String>,
    timeout: Duration,
    places: Mutex<HashMap<String, Place>>,
}

impl People {
    pub(super) fn new(approvals: Arc<Approvals>, unit: Option<String>, timeout: Duration) -> Self {
        Self {
            approvals,
            unit,
            timeout,
            places: Mutex::default(),
        }
    }

    fn place(&self, target: &str) -> Option<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= MAX_DESTINATIONS && !places.contains_key(target) {
            // Held by nobody else: neither asked about nor waited for.
            places.retain(|_, place| Arc::strong_count(place) > 1);
            if places.len() >= MAX_DESTINATIONS {
                return None;
            }
        }
        Some(Arc::clone(places.entry(target.to_owned()).or_default()))
    }
}

impl EgressContext {
    /// Asks whether the agent may connect to `target`, unless somebody has answered a moment ago.
    pub(super) async fn ask(&self, target: &str, rule: &EgressRule) -> Consent {
        let refused = |why: &str| Consent::Refused { why: why.into() };
        let Some(people) = &self.people else {
            return refused("there is nobody to ask");
        };
        let Some(place) = people.place(target) else {
            return refused("too many destinations wait for an approval");
        };
        let mut said = place.lock().await;
        if let Some((at, consent)) = said.as_ref() {
            let stands = match consent {
                Consent::Given => APPROVAL_STANDS,
                Consent::Refused { .. } => REFUSAL_STANDS,
            };
            if at.elapsed() < stands {
                return consent.clone();
            }
        }
        let request_id = format!("connect {target}");
        let ask = Ask {
            identity: self.identity.clone(),
            unit: people.unit.clone(),
            request_id: request_id.clone(),
            kind: QuestionKind::Connect,
            tool: target.to_owned(),
            input: Value::Null,
            rule: format!("{} ({})", rule.text, rule.origin),
            workspace: None,
            timeout: people.timeout,
        };
        let Answered { answer, by, reason } = people.approvals.ask(ask).await;
        let fact = Fact::Approval(Approval {
            request_id,
            tool: format!("connect {target}"),
            decision: answer.as_str().to_owned(),
            by,
            reason: reason.clone(),
        });
        let event = Event::now(self.identity.id.to_string(), fact);
        let consent = match (self.store.record_durable(event).await, answer) {
            (Ok(()), Answer::Allow) => Consent::Given,
            (Ok(()), Answer::Deny) => Consent::Refused { why: reason },
            (Err(error), _) => Consent::Refused {
                why: format!("agentd can't put the decision on record: {error}"),
            },
        };
        *said = Some((Instant::now(), consent.clone()));
        consent
    }
}
