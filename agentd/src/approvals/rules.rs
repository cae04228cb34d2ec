//! Decisions that are remembered (`--always`): consulted before anybody is asked.
//!
//! A rule belongs to one user and holds for one launch, one agent name, one unit or all of the user's agents. It never
//! widens a policy: it is consulted only where the policy says `ask`. A remembered refusal wins over a remembered
//! permission. Pure data in memory; the record is the caller's business.

use agentd_api::Error;
use agentd_api::approvals::{Answer, ApprovalRule, Decision, QuestionKind, Scope};
use agentd_sandbox::rules::tools::gist;
use agentd_sandbox::{Origin, Remembered, ToolRule};
use agentd_storage::{Fact, LaunchId, StandingRule, unix_ms};
use uuid::Uuid;

use super::question::short;
use super::{Answered, Ask, Pending};
use crate::agents::Caller;

/// What one user may have remembered.
const MAX_PER_USER: usize = 1000;

/// One remembered decision.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) record: StandingRule,
    scope: Scope,
    kind: QuestionKind,
    answer: Answer,
    covers: Remembered,
}

impl Rule {
    fn read(record: StandingRule) -> Option<Self> {
        Some(Self {
            scope: record.scope.parse().ok()?,
            kind: record.kind.parse().ok()?,
            answer: record.decision.parse().ok()?,
            covers: serde_json::from_value(record.covers.clone()).ok()?,
            record,
        })
    }

    fn concerns(&self, ask: &Ask) -> bool {
        let subject = self.record.subject.as_str();
        self.record.uid == ask.identity.uid
            && self.kind == ask.kind
            && match self.scope {
                Scope::Launch => subject == ask.identity.id.to_string(),
                Scope::Agent => subject == ask.identity.name,
                Scope::Unit => ask.unit.as_deref() == Some(subject),
                Scope::User => true,
            }
            && match self.answer {
                Answer::Allow => {
                    self.covers
                        .allows(&ask.tool, &ask.input, ask.workspace.as_deref())
                }
                Answer::Deny => self
                    .covers
                    .denies(&ask.tool, &ask.input, ask.workspace.as_deref()),
            }
    }

    pub(super) fn shown(&self) -> ApprovalRule {
        ApprovalRule {
            id: self.record.id.clone(),
            uid: self.record.uid,
            scope: self.scope,
            subject: self.record.subject.clone(),
            kind: self.kind,
            answer: self.answer,
            covers: match &self.covers {
                Remembered::Pattern(rule) => rule.text.clone(),
                Remembered::Same { tool, gist } if gist.is_null() => tool.clone(),
                Remembered::Same { tool, gist } => match gist.as_str() {
                    Some(text) => format!("{tool}: {text}"),
                    None => format!("{tool}: {gist}"),
                },
            },
            made_at_ms: u64::try_from(self.record.made_at_ms).unwrap_or(0),
            made_by: self.record.made_by.clone(),
            question: self.record.question.clone(),
        }
    }
}

/// All that is remembered, oldest first.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    pub(super) fn load(records: Vec<StandingRule>) -> Self {
        let readable = records.into_iter().filter_map(|record| {
            let id = record.id.clone();
            let rule = Rule::read(record);
            if rule.is_none() {
                tracing::warn!("the remembered decision {id} can't be read and does not hold");
            }
            rule
        });
        Self(readable.collect())
    }

    /// The answer that was given once and for all, if one was.
    pub(super) fn consult(&self, ask: &Ask) -> Option<Answered> {
        let mut found = None;
        for rule in self.0.iter().filter(|r| r.concerns(ask)) {
            if rule.answer == Answer::Deny {
                found = Some(rule);
                break;
            }
            found.get_or_insert(rule);
        }
        found.map(|rule| Answered {
            answer: rule.answer,
            by: format!("rule {}", short(&rule.record.id)),
            reason: format!("remembered since {} said so", rule.record.made_by),
        })
    }

    /// The rule that `decision` about `pending` makes, if it is to be remembered.
    pub(super) fn plan(
        &self,
        caller: Caller,
        pending: &Pending,
        decision: &Decision,
    ) -> Result<Option<Rule>, Error> {
        let wrong = |text: String| Err(Error::InvalidArgument(text));
        let Some(scope) = decision.always else {
            return match &decision.rule {
                Some(_) => wrong("a rule is remembered, so it needs --always".into()),
                None => Ok(None),
            };
        };
        let (asked, unit) = (&pending.asked, pending.unit.as_deref());
        let question = &asked.question;
        if self
            .0
            .iter()
            .filter(|r| r.record.uid == question.uid)
            .count()
            >= MAX_PER_USER
        {
            return Err(Error::Unavailable(format!(
                "{MAX_PER_USER} decisions are remembered already; take some back with `agentctl approvals revoke`"
            )));
        }
        let subject = match (scope, unit) {
            (Scope::Launch, _) => asked.launch.to_string(),
            (Scope::Agent, _) => asked.agent.clone(),
            (Scope::Unit, Some(unit)) => unit.to_owned(),
            (Scope::Unit, None) => {
                return wrong(format!(
                    "{} was not started from a unit; use --always=agent",
                    asked.agent
                ));
            }
            (Scope::User, _) => String::new(),
        };
        let covers = match &decision.rule {
            None if question.kind == QuestionKind::Tool.as_str() => Remembered::Same {
                tool: question.tool.clone(),
                gist: gist(&question.tool, &question.input),
            },
            None => Remembered::Same {
                tool: question.tool.clone(),
                gist: question.input.clone(),
            },
            Some(_) if question.kind != QuestionKind::Tool.as_str() => {
                return wrong("a rule can be given for tools only".into());
            }
            Some(text) => {
                let origin = Origin::new(format!("remembered by uid {}", caller.uid), 0);
                let rule = ToolRule::parse(text, origin).map_err(Error::InvalidArgument)?;
                Remembered::Pattern(rule)
            }
        };
        let workspace = pending.workspace.as_deref();
        let covered = match decision.answer {
            Answer::Allow => covers.allows(&question.tool, &question.input, workspace),
            Answer::Deny => covers.denies(&question.tool, &question.input, workspace),
        };
        if !covered {
            let text = decision.rule.as_deref().unwrap_or_default();
            return wrong(format!(
                "the rule {text} does not cover the question it is to be remembered from"
            ));
        }
        let record = StandingRule {
            id: Uuid::now_v7().to_string(),
            uid: question.uid,
            scope: scope.as_str().to_owned(),
            subject,
            kind: question.kind.clone(),
            decision: decision.answer.as_str().to_owned(),
            covers: serde_json::to_value(&covers).map_err(|e| Error::Internal(e.to_string()))?,
            made_at_ms: unix_ms(),
            made_by: format!("uid {}", caller.uid),
            question: question.id.clone(),
        };
        Ok(Rule::read(record))
    }

    pub(super) fn add(&mut self, rule: Rule) {
        self.0.push(rule);
    }

    pub(super) fn get(&self, id: &str) -> Option<&Rule> {
        self.0.iter().find(|r| r.record.id == id)
    }

    pub(super) fn remove(&mut self, id: &str) {
        self.0.retain(|r| r.record.id != id);
    }

    pub(super) fn visible(&self, caller: Caller) -> impl Iterator<Item = &Rule> {
        self.0
            .iter()
            .filter(move |r| caller.may_touch(r.record.uid))
    }

    /// Launches for which alone something is remembered.
    pub(super) fn launches(&self) -> impl Iterator<Item = LaunchId> {
        self.0
            .iter()
            .filter(|r| r.scope == Scope::Launch)
            .map(|r| LaunchId::new(r.record.subject.clone()))
    }

    /// Forgets what was remembered for this launch alone.
    pub(super) fn end_launch(&mut self, launch: &LaunchId) -> Vec<Fact> {
        let is_over = |r: &Rule| r.scope == Scope::Launch && r.record.subject == launch.as_str();
        let facts = self
            .0
            .iter()
            .filter(|r| is_over(r))
            .map(|r| Fact::RuleRevoked {
                id: r.record.id.clone(),
                by: "the end of the launch".to_owned(),
            });
        let facts = facts.collect();
        self.0.retain(|r| !is_over(r));
        facts
    }
}
