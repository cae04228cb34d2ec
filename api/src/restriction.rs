//! What was taken from a running agent, and by whom: the words and the answer of `Revoke`, `Restore`, `Freeze` and `Thaw`.
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
    }
}

/// Somebody who took something, and when: a uid, and Unix time in milliseconds.
pub type Hand = (u32, u64);

/// What is taken from an agent now.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct Restrictions {
    pub revoked: Vec<(Revocable, Hand)>,
    /// Who froze it.
    pub frozen: Option<Hand>,
    /// Connections through the egress proxy that this call shut.
    pub shut: Option<u32>,
}

impl Restrictions {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        let hand = |(uid, at_ms): Hand| json!({ "uid": uid, "at_ms": at_ms });
        let revoked = self
            .revoked
            .iter()
            .map(|(right, (uid, at_ms))| json!({ "right": right, "uid": uid, "at_ms": at_ms }));
        json!({
            "revoked": revoked.collect::<Value>(),
            "frozen": self.frozen.map(hand),
            "shut": self.shut,
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
            "right is \"files\"; allowed: net, exec, write"
        );
    }

    #[test]
    fn the_json_names_who_took_what() {
        let restrictions = Restrictions {
            revoked: vec![(Revocable::Net, (1000, 5))],
            frozen: None,
            shut: Some(2),
        };
        assert_eq!(
            restrictions.to_json(),
            json!({ "revoked": [{ "right": "net", "uid": 1000, "at_ms": 5 }], "frozen": null, "shut": 2 })
        );
    }
}
