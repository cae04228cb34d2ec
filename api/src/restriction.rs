//! What was taken from a running agent, and by whom: the words and the answer of `Revoke`, `Tighten`, `Restore`, `Freeze` and
//! `Thaw`.
//!
//! Plain data. What each right means and who may give it back is in `docs/live-control.md`.

use serde_json::{Value, json};
use zbus::{DeserializeDict, SerializeDict, Type};

use crate::vocabulary::words;

words! {
    /// A right that the kernel takes from a running agent.
    pub enum Revocable: "right" {
        /// The network: everything but the model gateway, the bus and MCP.
        Net = "net",
        /// Starting programs.
        Exec = "exec",
        /// Changing files.
        Write = "write",
        /// What its policy allows: taken by `Tighten`, and here only to be given back.
        Policy = "policy",
    }
}

/// Somebody who took something, and when: a uid, and Unix time in milliseconds.
pub type Hand = (u32, u64);

/// By what an agent is tightened: a policy, with settings over it, or settings alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct TightenSpec {
    /// Name of a policy that the daemon knows.
    pub policy: Option<String>,
    /// The text of a policy file, read by the caller. Wins over `policy`.
    pub policy_text: Option<String>,
    /// What the text is called in messages, usually the file's path.
    pub policy_origin: Option<String>,
    /// `--set key=value`, in order.
    pub settings: Option<Vec<(String, String)>>,
}

/// What is taken from an agent now.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct Restrictions {
    pub revoked: Vec<(Revocable, Hand)>,
    /// Who froze it.
    pub frozen: Option<Hand>,
    /// Connections through the egress proxy that this call shut.
    pub shut: Option<u32>,
    /// What was laid over its policy, each by its name.
    pub tightened: Option<Vec<(String, Hand)>>,
    /// Requests to models that this call cut.
    pub cut: Option<u32>,
    /// What this call closed on the bus: lanes, logs, subscriptions, requests.
    pub closed: Option<u32>,
    /// Lines of the policy of this call that change no agent that runs: key, line, and what to do instead.
    pub unchanged: Option<Vec<(String, String, String)>>,
}

impl Restrictions {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        let hand = |(uid, at_ms): Hand| json!({ "uid": uid, "at_ms": at_ms });
        let revoked = self
            .revoked
            .iter()
            .map(|(right, (uid, at_ms))| json!({ "right": right, "uid": uid, "at_ms": at_ms }));
        let tightened = self.tightened.iter().flatten();
        let tightened = tightened
            .map(|(name, (uid, at_ms))| json!({ "name": name, "uid": uid, "at_ms": at_ms }));
        let unchanged = self.unchanged.iter().flatten();
        let unchanged = unchanged
            .map(|(key, line, instead)| json!({ "key": key, "line": line, "instead": instead }));
        json!({
            "revoked": revoked.collect::<Value>(),
            "frozen": self.frozen.map(hand),
            "shut": self.shut,
            "tightened": tightened.collect::<Value>(),
            "cut": self.cut,
            "closed": self.closed,
            "unchanged": unchanged.collect::<Value>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_that_nobody_can_take_is_refused_with_those_that_can_be() {
        let error = "files".parse::<Revocable>().expect_err("no such right");
        assert_eq!(
            error.to_string(),
            "right is \"files\"; allowed: net, exec, write, policy"
        );
    }

    #[test]
    fn the_json_names_who_took_what() {
        let restrictions = Restrictions {
            revoked: vec![(Revocable::Net, (1000, 5))],
            shut: Some(2),
            tightened: Some(vec![("tight".into(), (0, 6))]),
            ..Restrictions::default()
        };
        assert_eq!(
            restrictions.to_json(),
            json!({
                "revoked": [{ "right": "net", "uid": 1000, "at_ms": 5 }], "frozen": null, "shut": 2,
                "tightened": [{ "name": "tight", "uid": 0, "at_ms": 6 }], "cut": null, "closed": null, "unchanged": []
            })
        );
    }
}
