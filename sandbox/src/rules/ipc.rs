//! Whom an agent may address on the bus, and which topics it may publish and follow.
//!
//! A pattern is a name of segments separated by `.`, in which `*` stands for exactly one segment and `#`, as
//! the last one, for the rest (none or more). The bus asks; it adds the rule that agents of different users
//! never talk, which no policy can lift.

use super::tighten::Tightening;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A name with optional wildcards, checked when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NamePattern(String);

impl NamePattern {
    /// `Err` says what is wrong with it and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > 255 {
            return Err("a pattern has 1 to 255 bytes".into());
        }
        let last = text.split('.').count() - 1;
        for (i, segment) in text.split('.').enumerate() {
            match segment {
                "" => return Err("a pattern has no empty segment between dots".into()),
                "*" => {}
                "#" if i == last => {}
                "#" => {
                    return Err("# stands for the rest, so it can only be the last segment".into());
                }
                s => {
                    if let Some(bad) = s
                        .chars()
                        .find(|c| !(c.is_ascii_alphanumeric() || "-_:/@".contains(*c)))
                    {
                        return Err(format!(
                            "{bad:?} is not allowed in a pattern; allowed are letters, digits, - _ : / @, \
                             dots between segments, * for one segment and a last # for the rest"
                        ));
                    }
                }
            }
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this pattern covers every name that `name`, itself a name or a pattern, stands for.
    pub fn covers(&self, name: &str) -> bool {
        let mut own = self.0.split('.');
        let mut other = name.split('.');
        loop {
            match (own.next(), other.next()) {
                (Some("#"), _) => return true,
                (Some("*"), Some(s)) => {
                    if s == "#" || s.is_empty() {
                        return false;
                    }
                }
                (Some(p), Some(s)) => {
                    if p != s {
                        return false;
                    }
                }
                (None, None) => return true,
                _ => return false,
            }
        }
    }
}

impl NamePattern {
    /// Whether any name is covered by both this pattern and `other`, itself a name or a pattern.
    pub fn overlaps(&self, other: &str) -> bool {
        let mut own = self.0.split('.');
        let mut other = other.split('.');
        loop {
            match (own.next(), other.next()) {
                (Some("#"), _) | (_, Some("#")) => return true,
                (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }
}

/// `[ipc]` of a policy. An empty list allows nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcRules {
    /// Agents this one may send one-way messages to.
    pub send: Vec<NamePattern>,
    /// Agents this one may ask and await an answer from.
    pub request: Vec<NamePattern>,
    pub publish: Vec<NamePattern>,
    pub subscribe: Vec<NamePattern>,
    /// Its processes may share memory with those of other agents: lanes, logs, segments. If not, all its messages
    /// go through the socket.
    #[serde(default = "yes")]
    pub shared_memory: bool,
    /// What was laid over these rules while the agent runs.
    #[serde(skip)]
    pub tightened: Vec<Arc<Tightening>>,
}

fn yes() -> bool {
    true
}

impl Default for IpcRules {
    fn default() -> Self {
        Self {
            send: Vec::new(),
            request: Vec::new(),
            publish: Vec::new(),
            subscribe: Vec::new(),
            shared_memory: true,
            tightened: Vec::new(),
        }
    }
}

impl IpcRules {
    /// Whether a one-way message may go to the agent of this name.
    pub fn may_send(&self, to: &str) -> bool {
        covers(&self.send, to) && self.passes("ipc.send", to)
    }

    /// Whether a request may go to the agent of this name.
    pub fn may_request(&self, to: &str) -> bool {
        covers(&self.request, to) && self.passes("ipc.request", to)
    }

    /// Whether this topic, a plain name, may be published to.
    pub fn may_publish(&self, topic: &str) -> bool {
        covers(&self.publish, topic)
            && !topic.split('.').any(|s| s == "*" || s == "#")
            && self.passes("ipc.publish", topic)
    }

    /// Whether this subscription, a name or a pattern, stays within what may be followed.
    pub fn may_subscribe(&self, pattern: &str) -> bool {
        covers(&self.subscribe, pattern) && self.passes("ipc.subscribe", pattern)
    }
}

fn covers(patterns: &[NamePattern], name: &str) -> bool {
    patterns.iter().any(|p| p.covers(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamePattern {
        NamePattern::parse(text).unwrap()
    }

    #[test]
    fn patterns_overlap_when_one_name_fits_both() {
        for (a, b, fits) in [
            ("build.*", "build.done", true),
            ("build.*", "build.done.now", false),
            ("build.#", "build", true),
            ("#", "a.b", true),
            ("a.b", "#", true),
            ("a.*", "*.b", true),
            ("a.*.c", "a.#", true),
            ("a.b", "a.c", false),
            ("a", "a.b", false),
        ] {
            assert_eq!(pattern(a).overlaps(b), fits, "{a} and {b}");
            assert_eq!(pattern(b).overlaps(a), fits, "{b} and {a}");
        }
    }

    #[test]
    fn rules_kept_by_an_earlier_agentd_share_memory() {
        let kept = r#"{"send":[],"request":[],"publish":[],"subscribe":[]}"#;
        let rules: IpcRules = serde_json::from_str(kept).unwrap();
        assert!(rules.shared_memory);
        assert_eq!(rules, IpcRules::default());
    }

    #[test]
    fn star_is_one_segment_and_hash_is_the_rest() {
        assert!(pattern("build.*").covers("build.done"));
        assert!(!pattern("build.*").covers("build"));
        assert!(!pattern("build.*").covers("build.a.b"));
        assert!(pattern("build.#").covers("build"));
        assert!(pattern("build.#").covers("build.a.b"));
        assert!(pattern("#").covers("anything.at.all"));
        assert!(!pattern("build").covers("buildx"));
    }

    #[test]
    fn a_subscription_may_not_be_wider_than_the_rule() {
        let rules = IpcRules {
            subscribe: vec![pattern("build.*")],
            ..IpcRules::default()
        };
        assert!(rules.may_subscribe("build.done"));
        assert!(rules.may_subscribe("build.*"));
        assert!(!rules.may_subscribe("build.#"));
        assert!(!rules.may_subscribe("*.*"));
        assert!(!rules.may_subscribe("#"));
    }

    #[test]
    fn nothing_is_published_to_a_pattern() {
        let rules = IpcRules {
            publish: vec![pattern("#")],
            ..IpcRules::default()
        };
        assert!(rules.may_publish("a.b"));
        assert!(!rules.may_publish("a.*"));
        assert!(!rules.may_publish("#"));
    }

    #[test]
    fn malformed_patterns_say_what_is_allowed() {
        assert!(
            NamePattern::parse("a..b")
                .unwrap_err()
                .contains("empty segment")
        );
        assert!(
            NamePattern::parse("#.a")
                .unwrap_err()
                .contains("last segment")
        );
        assert!(
            NamePattern::parse("a b")
                .unwrap_err()
                .contains("' ' is not allowed")
        );
    }
}
