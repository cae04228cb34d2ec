//! What an agent may do on the bus: its policy's rules, less what was taken back while it runs.
//!
//! A revocation is a pattern that no rule can lift until it is restored. For `send`, `request` and `publish` it
//! denies the names and topics that it covers; a subscription is denied when it would follow any topic that the
//! pattern covers, because the bus does not deliver parts of a subscription. Pure.

use agentd_bus::access::{Access, Right};
use agentd_sandbox::IpcRules;
use agentd_sandbox::rules::ipc::NamePattern;

/// The rules of one agent, and what was taken back of them.
#[derive(Clone, Debug)]
pub(super) struct Rights {
    rules: IpcRules,
    revoked: Vec<(Right, NamePattern)>,
}

impl Rights {
    pub fn new(rules: IpcRules) -> Self {
        Self::less(rules, Vec::new())
    }

    /// The rules without what was taken back before.
    pub fn less(rules: IpcRules, revoked: Vec<(Right, NamePattern)>) -> Self {
        Self { rules, revoked }
    }

    /// The same rules with another revocation.
    pub fn without(&self, right: Right, pattern: NamePattern) -> Self {
        let mut rights = self.clone();
        if !rights.revoked.contains(&(right, pattern.clone())) {
            rights.revoked.push((right, pattern));
        }
        rights
    }

    /// The same revocations under other rules.
    pub fn with_rules(&self, rules: IpcRules) -> Self {
        Self {
            rules,
            revoked: self.revoked.clone(),
        }
    }

    /// The policy's rules alone.
    pub fn restored(&self) -> Self {
        Self::new(self.rules.clone())
    }

    /// What was taken back.
    pub fn revoked(&self) -> Vec<(Right, String)> {
        self.revoked
            .iter()
            .map(|(right, pattern)| (*right, pattern.as_str().to_owned()))
            .collect()
    }

    fn is_revoked(&self, right: Right, name: &str) -> bool {
        self.revoked
            .iter()
            .any(|(of, pattern)| *of == right && pattern.overlaps(name))
    }
}

impl Access for Rights {
    fn may_send(&self, to: &str) -> bool {
        self.rules.may_send(to) && !self.is_revoked(Right::Send, to)
    }
    fn may_request(&self, to: &str) -> bool {
        self.rules.may_request(to) && !self.is_revoked(Right::Request, to)
    }
    fn may_publish(&self, topic: &str) -> bool {
        self.rules.may_publish(topic) && !self.is_revoked(Right::Publish, topic)
    }
    fn may_subscribe(&self, pattern: &str) -> bool {
        self.rules.may_subscribe(pattern) && !self.is_revoked(Right::Subscribe, pattern)
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

    #[test]
    fn a_revocation_takes_back_what_it_covers_until_it_is_restored() {
        let everything = || vec![pattern("#")];
        let rights = Rights::new(IpcRules {
            send: everything(),
            request: everything(),
            publish: everything(),
            subscribe: everything(),
            shared_memory: true,
        });
        let less = rights
            .without(Right::Send, pattern("team.*"))
            .without(Right::Subscribe, pattern("secret.#"));
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
