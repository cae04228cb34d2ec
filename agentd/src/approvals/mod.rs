//! Questions that a person decides: tools and connections for which an agent's policy says `ask`.
//!
//! [`Approvals::ask`] is called by whoever holds an agent's question (its driver, the egress proxy) and resolves to
//! an answer: from a remembered decision ([`rules`]), from a person ([`Approvals::decide`], over D-Bus), or, when the
//! time is up, as a refusal. A question is on the disk before anybody is shown it, and its decision before the agent
//! hears of it: a daemon that dies in between asks the same question again, under the same id and with the time that
//! is left, or gives the answer that was given ([`Approvals::start`] reads what was left unfinished).
//!
//! Who may decide is the caller's uid alone, as the kernel attests it: the owner of the agent, or root. Nothing inside
//! a sandbox reaches this. Dropping the future of `ask`, as happens when the agent takes its question back or ends,
//! closes the question. The number of open questions is bounded per agent and per user; one more is refused at once.
//!
//! Runs on daemon tasks without privilege; the lock is held for look-ups only. If the record can't be written a
//! question is refused, and a decision is not taken.

mod question;
mod rules;
mod tell;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentd_api::approvals::{Answer, Approval, ApprovalRule, Decision, QuestionKind};
use agentd_api::{AgentIdentity, Error};
use agentd_storage::{
    Asked, Event, Fact, LaunchId, Settlement, Store, StoreError, Viewer, unix_ms,
};
use serde_json::Value;
use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;

use crate::agents::Caller;
use question::{approval, one_meant_by};
use rules::Rules;

pub use tell::tell_attached;

/// Questions of one agent that may wait at once.
const MAX_OPEN_PER_AGENT: usize = 32;
/// Questions of all agents of one user that may wait at once.
const MAX_OPEN_PER_USER: usize = 256;
/// The most bytes of arguments that are kept and shown.
const MAX_INPUT_BYTES: usize = 256 * 1024;
/// The longest reason.
const MAX_REASON_BYTES: usize = 2048;
/// Changes a slow follower may be behind before it has to list again.
const CHANGES: usize = 256;

/// What an agent wants to do and may do only if somebody says so.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Who asks.
    pub identity: AgentIdentity,
    /// The unit it was started from, if any.
    pub unit: Option<String>,
    /// Of the question in the agent's own protocol.
    pub request_id: String,
    pub kind: QuestionKind,
    /// The tool, or the host and port.
    pub tool: String,
    pub input: Value,
    /// The line of the policy that asks.
    pub rule: String,
    /// Where relative patterns begin.
    pub workspace: Option<String>,
    /// How long a person may take.
    pub timeout: Duration,
}

/// The end of a question, for whoever asked it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub answer: Answer,
    /// For the record: `uid 1000`, `rule 1a2b3c4d`, `time-out`, `agentd`.
    pub by: String,
    /// For the record and, with a refusal, for the agent's model.
    pub reason: String,
}

impl Answered {
    fn refused(by: &str, reason: impl Into<String>) -> Self {
        Self {
            answer: Answer::Deny,
            by: by.to_owned(),
            reason: reason.into(),
        }
    }
}

/// What changed, for those who mirror the list.
#[derive(Debug, Clone)]
pub enum Change {
    Added(Approval),
    Decided(Approval),
    Removed(Approval),
}

/// All questions of this daemon.
#[derive(Debug)]
pub struct Approvals {
    store: Store,
    inner: Mutex<Inner>,
    changes: broadcast::Sender<Change>,
}

#[derive(Debug, Default)]
struct Inner {
    open: BTreeMap<String, Pending>,
    /// Left by a daemon that died: not yet asked again.
    unfinished: Vec<Asked>,
    rules: Rules,
}

/// A question that waits for a person.
#[derive(Debug)]
struct Pending {
    asked: Asked,
    unit: Option<String>,
    workspace: Option<String>,
    deadline: Instant,
    answer: oneshot::Sender<Answered>,
}

impl Approvals {
    /// Reads what is remembered and what an earlier daemon left unfinished.
    ///
    /// # Errors
    /// The trouble of the record.
    pub async fn start(store: Store) -> Result<Arc<Self>, StoreError> {
        let inner = Inner {
            open: BTreeMap::new(),
            unfinished: store.unfinished_questions().await?,
            rules: Rules::load(store.standing_rules().await?),
        };
        Ok(Arc::new(Self {
            store,
            inner: Mutex::new(inner),
            changes: broadcast::Sender::new(CHANGES),
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what happens from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    fn announce(&self, change: Change) {
        // Nobody listening is the normal case.
        drop(self.changes.send(change));
    }

    /// Waits for an answer. Drop the future to take the question back.
    pub async fn ask(self: &Arc<Self>, ask: Ask) -> Answered {
        if let Err(why) = self.has_room(&ask) {
            return Answered::refused("agentd", why);
        }
        let (question, is_new) = match self.take_unfinished(&ask) {
            Some(Asked {
                settlement: Some(settlement),
                ..
            }) => return question::answered(&settlement),
            Some(asked) => (asked.question, false),
            None => match self.inner().rules.consult(&ask) {
                Some(answered) => return answered,
                None => (question::new(&ask), true),
            },
        };
        let id = question.id.clone();
        let launch = LaunchId::new(ask.identity.id.to_string());
        let left = u64::try_from(question.expires_at_ms - unix_ms()).unwrap_or(0);
        let deadline = Instant::now() + Duration::from_millis(left).min(ask.timeout);
        let asked = Asked {
            launch: launch.clone(),
            agent: ask.identity.name.clone(),
            question,
            decided_at_ms: None,
            settlement: None,
        };
        // From here on the question ends on record, whatever becomes of this future.
        let mut held = Held {
            approvals: Arc::clone(self),
            asked: Some(asked.clone()),
        };
        if is_new {
            let fact = Fact::Asked(Box::new(asked.question.clone()));
            if let Err(error) = self.store.record_durable(Event::now(launch, fact)).await {
                held.asked = None;
                return Answered::refused(
                    "agentd",
                    format!("agentd can't put this question on record: {error}"),
                );
            }
        }
        let (sender, mut answer) = oneshot::channel();
        let shown = approval(&asked);
        self.inner().open.insert(
            id.clone(),
            Pending {
                asked,
                unit: ask.unit,
                workspace: ask.workspace,
                deadline,
                answer: sender,
            },
        );
        self.announce(Change::Added(shown));
        let answered = tokio::select! {
            answered = &mut answer => answered.ok(),
            () = tokio::time::sleep_until(deadline) => {
                let was_open = self.inner().open.remove(&id).is_some();
                // If not, somebody is deciding at this very moment, and tells or gives up soon.
                if was_open { None } else { answer.await.ok() }
            }
        };
        let answered = match answered {
            Some(answered) => answered,
            None => self.time_is_up(&mut held).await,
        };
        held.asked = None;
        answered
    }

    /// Silence is a refusal.
    async fn time_is_up(&self, held: &mut Held) -> Answered {
        let Some(mut asked) = held.asked.take() else {
            unreachable!("the question is held until it is answered")
        };
        let waited = (asked.question.expires_at_ms - asked.question.asked_at_ms) / 1000;
        let answered = Answered::refused(
            "time-out",
            format!("nobody answered in {waited} s; it may be asked for again"),
        );
        let settlement = Settlement {
            id: asked.question.id.clone(),
            decision: answered.answer.as_str().to_owned(),
            by: answered.by.clone(),
            scope: None,
            reason: answered.reason.clone(),
        };
        let event = Event::now(asked.launch.clone(), Fact::Settled(settlement.clone()));
        if let Err(error) = self.store.record_durable(event).await {
            // A refusal holds without the record as well.
            tracing::error!(agent = asked.agent, "a time-out can't be recorded: {error}");
        }
        asked.decided_at_ms = Some(unix_ms());
        asked.settlement = Some(settlement);
        self.announce(Change::Decided(approval(&asked)));
        answered
    }

    fn has_room(&self, ask: &Ask) -> Result<(), String> {
        let inner = self.inner();
        let launch = ask.identity.id.to_string();
        let of_agent = |p: &&Pending| p.asked.launch.as_str() == launch;
        let of_user = |p: &&Pending| p.asked.question.uid == ask.identity.uid;
        if inner.open.values().filter(of_agent).count() >= MAX_OPEN_PER_AGENT {
            return Err(format!(
                "{MAX_OPEN_PER_AGENT} questions of this agent wait already"
            ));
        }
        if inner.open.values().filter(of_user).count() >= MAX_OPEN_PER_USER {
            return Err(format!(
                "{MAX_OPEN_PER_USER} questions of this user's agents wait already"
            ));
        }
        if ask.input.to_string().len() > MAX_INPUT_BYTES {
            return Err(format!(
                "its arguments are over {} KiB, too many for a person to judge",
                MAX_INPUT_BYTES >> 10
            ));
        }
        Ok(())
    }

    /// The same question of the same launch, if an earlier daemon left it.
    fn take_unfinished(&self, ask: &Ask) -> Option<Asked> {
        let launch = ask.identity.id.to_string();
        let mut inner = self.inner();
        let at = inner.unfinished.iter().position(|a| {
            a.launch.as_str() == launch
                && a.question.request_id == ask.request_id
                && a.question.kind == ask.kind.as_str()
                && a.question.tool == ask.tool
                && a.question.input == ask.input
        })?;
        Some(inner.unfinished.remove(at))
    }

    /// Closes what an earlier daemon left for launches that did not come back. Called once, when adoption is over.
    pub async fn forget_lost(&self, lives: impl Fn(&LaunchId) -> bool) {
        let lost: Vec<LaunchId> = {
            let inner = self.inner();
            let mut lost: Vec<_> = inner.unfinished.iter().map(|a| a.launch.clone()).collect();
            lost.extend(inner.rules.launches());
            lost.sort();
            lost.dedup();
            lost.retain(|launch| !lives(launch));
            lost
        };
        for launch in lost {
            self.agent_ended(&launch).await;
        }
    }

    /// The launch is over: what is still unfinished of it is closed, and what was remembered for it alone forgotten.
    pub async fn agent_ended(&self, launch: &LaunchId) {
        let facts = {
            let mut inner = self.inner();
            let (over, rest) = std::mem::take(&mut inner.unfinished)
                .into_iter()
                .partition::<Vec<_>, _>(|a| a.launch == *launch);
            inner.unfinished = rest;
            let mut facts: Vec<Fact> = over
                .iter()
                .filter(|a| a.settlement.is_none())
                .map(|a| Fact::Settled(question::withdrawn(a)))
                .collect();
            facts.extend(inner.rules.end_launch(launch));
            facts
        };
        for fact in facts {
            if let Err(error) = self.store.record(Event::now(launch.clone(), fact)).await {
                tracing::error!(%launch, "the record is incomplete: {error}");
            }
        }
    }

    /// Open questions that `caller` may decide, oldest first.
    pub fn list(&self, caller: Caller) -> Vec<Approval> {
        let inner = self.inner();
        let mut open: Vec<&Asked> = inner
            .open
            .values()
            .map(|p| &p.asked)
            .filter(|a| caller.may_touch(a.question.uid))
            .collect();
        open.sort_by_key(|a| (a.question.asked_at_ms, &a.question.id));
        open.into_iter().map(approval).collect()
    }

    /// One question, open or settled.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidArgument`] when several are meant.
    pub async fn find(&self, caller: Caller, typed: &str) -> Result<Approval, Error> {
        let viewer = Viewer::from_uid(caller.uid);
        let found = self.store.questions_meant_by(viewer, typed).await;
        match found
            .map_err(|e| Error::Internal(e.to_string()))?
            .as_slice()
        {
            [one] => Ok(approval(one)),
            [] => Err(Error::NotFound(format!(
                "no question is called `{typed}`; `agentctl approvals list` shows what is open"
            ))),
            several => Err(Error::InvalidArgument(format!(
                "`{typed}` could be any of {} questions; type more of the id",
                several.len()
            ))),
        }
    }

    /// Decides an open question. The decision is on the disk when this returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] also for what `caller` may not see; [`Error::Unavailable`] when it is settled already;
    /// [`Error::InvalidArgument`] for a rule that does not cover the question.
    pub async fn decide(
        &self,
        caller: Caller,
        typed: &str,
        decision: &Decision,
    ) -> Result<Approval, Error> {
        if decision
            .reason
            .as_ref()
            .is_some_and(|r| r.len() > MAX_REASON_BYTES)
        {
            return Err(Error::InvalidArgument(format!(
                "the reason is longer than {MAX_REASON_BYTES} bytes"
            )));
        }
        let taken = self.take_open(caller, typed, decision)?;
        let Some((pending, rule)) = taken else {
            let settled = self.find(caller, typed).await?;
            let id = settled.short_id();
            return Err(Error::Unavailable(match (&settled.decision, &settled.by) {
                (Some(decision), Some(by)) => {
                    format!("the question {id} is settled: {decision} by {by}")
                }
                _ => format!(
                    "the question {id} can't be decided now: another decision is under way, or agentd was started \
                     anew and the agent has not asked again yet; see `agentctl approvals list`"
                ),
            }));
        };
        let mut asked = pending.asked.clone();
        let by = format!("uid {}", caller.uid);
        let settlement = Settlement {
            id: asked.question.id.clone(),
            decision: decision.answer.as_str().to_owned(),
            by: by.clone(),
            scope: decision.always.map(|s| s.as_str().to_owned()),
            reason: question::reason(decision, &by),
        };
        let mut facts = vec![Fact::Settled(settlement.clone())];
        facts.extend(
            rule.iter()
                .map(|r| Fact::RuleMade(Box::new(r.record.clone()))),
        );
        let events = facts
            .into_iter()
            .map(|fact| Event::now(asked.launch.clone(), fact))
            .collect();
        if let Err(error) = self.store.record_all_durable(events).await {
            // Not decided, so still open, unless its time has come meanwhile: then dropping the sender says so.
            if Instant::now() < pending.deadline && !pending.answer.is_closed() {
                self.inner().open.insert(asked.question.id.clone(), pending);
            }
            return Err(Error::Internal(format!(
                "the decision can't be recorded: {error}"
            )));
        }
        if let Some(rule) = rule {
            self.inner().rules.add(rule);
        }
        asked.decided_at_ms = Some(unix_ms());
        asked.settlement = Some(settlement.clone());
        let shown = approval(&asked);
        if pending
            .answer
            .send(question::answered(&settlement))
            .is_err()
        {
            tracing::debug!(
                agent = asked.agent,
                "took its question back while it was decided"
            );
        }
        self.announce(Change::Decided(shown.clone()));
        Ok(shown)
    }

    /// Takes an open question out, so that nobody else decides it; `None` when none that is open is meant.
    fn take_open(
        &self,
        caller: Caller,
        typed: &str,
        decision: &Decision,
    ) -> Result<Option<(Pending, Option<rules::Rule>)>, Error> {
        let mut inner = self.inner();
        let visible = inner
            .open
            .values()
            .filter(|p| caller.may_touch(p.asked.question.uid))
            .map(|p| p.asked.question.id.as_str());
        let Some(id) = one_meant_by(visible, typed, "questions")?.map(str::to_owned) else {
            return Ok(None);
        };
        let pending = &inner.open[&id];
        let rule = inner.rules.plan(caller, pending, decision)?;
        Ok(inner.open.remove(&id).map(|pending| (pending, rule)))
    }

    /// What is remembered for agents that `caller` may touch, oldest first.
    pub fn rules(&self, caller: Caller) -> Vec<ApprovalRule> {
        self.inner()
            .rules
            .visible(caller)
            .map(rules::Rule::shown)
            .collect()
    }

    /// Forgets a remembered decision.
    ///
    /// # Errors
    /// [`Error::NotFound`] also for what `caller` may not see.
    pub async fn revoke(&self, caller: Caller, typed: &str) -> Result<ApprovalRule, Error> {
        let rule = {
            let inner = self.inner();
            let visible = inner.rules.visible(caller).map(|r| r.record.id.as_str());
            let id = one_meant_by(visible, typed, "rules")?.map(str::to_owned);
            id.and_then(|id| inner.rules.get(&id).cloned())
        };
        let Some(rule) = rule else {
            return Err(Error::NotFound(format!(
                "nothing that is remembered is called `{typed}`; `agentctl approvals rules` lists it"
            )));
        };
        let fact = Fact::RuleRevoked {
            id: rule.record.id.clone(),
            by: format!("uid {}", caller.uid),
        };
        // The launch of the question may be pruned; nothing in this fact refers to it.
        let event = Event::now(rule.record.question.clone(), fact);
        self.store
            .record_durable(event)
            .await
            .map_err(|e| Error::Internal(format!("it can't be recorded: {e}")))?;
        self.inner().rules.remove(&rule.record.id);
        Ok(rule.shown())
    }
}

/// An asked question; closes it when dropped before its end.
struct Held {
    approvals: Arc<Approvals>,
    asked: Option<Asked>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(mut asked) = self.asked.take() else {
            return;
        };
        self.approvals.inner().open.remove(&asked.question.id);
        let settlement = question::withdrawn(&asked);
        let event = Event::now(asked.launch.clone(), Fact::Settled(settlement.clone()));
        if let Err(error) = self.approvals.store.try_record(event) {
            // The next daemon closes it.
            tracing::error!(
                agent = asked.agent,
                "a question's end can't be recorded: {error}"
            );
        }
        asked.decided_at_ms = Some(unix_ms());
        asked.settlement = Some(settlement);
        self.approvals.announce(Change::Removed(approval(&asked)));
    }
}

#[cfg(test)]
mod tests;
