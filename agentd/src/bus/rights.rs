//! What an agent may do on the bus: its policy's rules, less what was taken back while it runs.
//!
//! A revocation is a pattern that no rule can lift until it is restored. For `send`, `request` and `publish` it
//! denies the names and topics that it covers; a subscription is denied when it would follow any topic that the
//! pattern covers, because the bus does not deliver parts of a subscription. Pure, but for the queue that refusals are put into.

use std::sync::Arc;

use agentd_bus::access::{Access, Right};
use agentd_sandbox::IpcRules;
use agentd_sandbox::rules::ipc::NamePattern;

use super::refusals::{RefusalSink, Refused, TakenBack};

/// One right that was taken back.
#[derive(Clone, Debug)]
pub(super) struct Revoked {
    pub right: Right,
    pub pattern: NamePattern,
    /// Whose hand it was.
    pub by: Arc<str>,
}

/// The rules of one agent, and what was taken back of them.
#[derive(Clone, Debug)]
pub(super) struct Rights {
    rules: IpcRules,
    revoked: Vec<Revoked>,
    /// Who hears of refusals.
    sink: Option<RefusalSink>,
}

impl Rights {
    pub fn new(rules: IpcRules) -> Self {
        Self::less(rules, Vec::new(), None)
    }

    /// The rules without what was taken back before.
    pub fn less(rules: IpcRules, revoked: Vec<Revoked>, sink: Option<RefusalSink>) -> Self {
        Self {
            rules,
            revoked,
            sink,
        }
    }

    /// The same rules with another revocation. What is taken already stays with whoever took it.
    pub fn without(&self, revoked: Revoked) -> Self {
        let mut rights = self.clone();
        let same =
            |taken: &Revoked| taken.right == revoked.right && taken.pattern == revoked.pattern;
        if !rights.revoked.iter().any(same) {
            rights.revoked.push(revoked);
        }
        rights
    }

    /// The same revocations under other rules.
    pub fn with_rules(&self, rules: IpcRules) -> Self {
        Self {
            rules,
            ..self.clone()
        }
    }

    /// The policy's rules alone.
    pub fn restored(&self) -> Self {
        Self {
            revoked: Vec::new(),
            ..self.clone()
        }
    }

    /// What was taken back.
    pub fn revoked(&self) -> Vec<(Right, String)> {
        self.revoked
            .iter()
            .map(|taken| (taken.right, taken.pattern.as_str().to_owned()))
            .collect()
    }

    fn taken(&self, right: Right, name: &str) -> Option<&Revoked> {
        self.revoked
            .iter()
            .find(|taken| taken.right == right && taken.pattern.overlaps(name))
    }

    fn is_revoked(&self, right: Right, name: &str) -> bool {
        self.taken(right, name).is_some()
    }

    /// What the policy says, whatever was taken back.
    fn is_ruled(&self, right: Right, name: &str) -> bool {
        match right {
            Right::Send => self.rules.may_send(name),
            Right::Request => self.rules.may_request(name),
            Right::Publish => self.rules.may_publish(name),
            Right::Subscribe => self.rules.may_subscribe(name),
        }
    }
}

impl Access for Rights {
    fn may_send(&self, to: &str) -> bool {
        self.is_ruled(Right::Send, to) && !self.is_revoked(Right::Send, to)
    }
    fn may_request(&self, to: &str) -> bool {
        self.is_ruled(Right::Request, to) && !self.is_revoked(Right::Request, to)
    }
    fn may_publish(&self, topic: &str) -> bool {
        self.is_ruled(Right::Publish, topic) && !self.is_revoked(Right::Publish, topic)
    }
    fn may_subscribe(&self, pattern: &str) -> bool {
        self.is_ruled(Right::Subscribe, pattern) && !self.is_revoked(Right::Subscribe, pattern)
    }
    fn refused(&self, right: Right, what: &str) {
        let Some(sink) = &self.sink else { return };
        sink.put(|| {
            // What the policy does not give anyway nobody could have taken.
            let taken = self.is_ruled(right, what).then(|| self.taken(right, what));
            let key = format!("ipc.{}", right.as_str());
            let line = self.rules.refused_by(&key, what);
            Refused {
                right,
                what: what.to_owned(),
                tightened: line.map(ToString::to_string),
                taken: taken.flatten().map(|taken| TakenBack {
                    right,
                    pattern: taken.pattern.as_str().to_owned(),
                    by: (*taken.by).to_owned(),
                }),
            }
        });
    }
    fn may_share_memory(&self) -> bool {
        self.rules.shared_memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamePattern {
        NamePattern::parse(text).expect("a pattern")
    }

    fn taken(right: Right, text: &str, by: &str) -> Revoked {
        Revoked {
            right,
            pattern: pattern(text),
            by: by.into(),
        }
    }

    #[tokio::test]
    async fn a_refusal_names_whose_hand_it_was_or_nobodys() {
        let (sink, mut refusals) = super::super::refusals::refusals();
        let rules = IpcRules {
            send: vec![pattern("team.#")],
            ..IpcRules::default()
        };
        let rights = Rights::less(
            rules,
            vec![taken(Right::Send, "team.a", "uid 0")],
            Some(sink),
        )
        .without(taken(Right::Send, "team.a", "uid 1000"));
        rights.refused(Right::Send, "team.a");
        rights.refused(Right::Send, "elsewhere");
        let first = refusals.next().await.expect("told").taken;
        let first = first.expect("it was taken");
        assert_eq!((&*first.pattern, &*first.by), ("team.a", "uid 0"));
        let second = refusals.next().await.expect("told");
        assert_eq!((&*second.what, second.taken), ("elsewhere", None));
        // The queue is the agent's, whatever its rights become.
        let other = rights.restored().with_rules(IpcRules::default());
        drop(rights);
        other.refused(Right::Send, "team.a");
        assert_eq!(refusals.next().await.expect("told").taken, None);
        drop(other);
        assert_eq!(refusals.next().await, None);
    }

    #[test]
    fn a_revocation_takes_back_what_it_covers_until_it_is_restored() {
        let everything = || vec![pattern("#")];
        let rights = Rights::new(IpcRules {
            send: everything(),
            request: everything(),
            publish: everything(),
            subscribe: everything(),
            shared_memory: true,
            tightened: Vec::new(),
        });
        let less = rights
            .without(taken(Right::Send, "team.*", "uid 0"))
            .without(taken(Right::Subscribe, "secret.#", "uid 0"));
        assert!(less.may_send("fixer") && !less.may_send("team.fixer"));
        assert!(less.may_request("team.fixer"), "another right");
        assert!(less.may_subscribe("build.#") && !less.may_subscribe("secret.a"));
        assert!(!less.may_subscribe("#"), "it would follow secrets too");
        let again = less.with_rules(IpcRules {
            send: everything(),
            ..IpcRules::default()
        });
        assert!(!again.may_send("team.fixer"), "no policy lifts it");
        assert_eq!(less.revoked().len(), 2);
        assert!(less.restored().may_send("team.fixer"));
    }
}
