//! Which keys of the caller's ssh-agent an agent may use, asked by the daemon for each request.
//!
//! Only two requests ever pass: listing keys and signing. Keys are named by fingerprint; without any, all that the
//! ssh-agent holds may be used.

use super::tighten::Tightening;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// `[ssh]` of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshRules {
    /// Whether there is a socket at all (`agent = "forward"`).
    pub enabled: bool,
    /// `SHA256:…`, as `ssh-add -l` prints them; empty stands for every key.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Whether a person approves each signature (`sign = "ask"`).
    #[serde(default)]
    pub ask: bool,
    /// What was laid over these rules while the agent runs.
    #[serde(skip)]
    pub tightened: Vec<Arc<Tightening>>,
}

impl SshRules {
    /// Whether the key of this fingerprint may be listed and used.
    pub fn allows(&self, fingerprint: &str) -> bool {
        self.enabled
            && (self.keys.is_empty() || self.keys.iter().any(|k| k == fingerprint))
            && self.passes(fingerprint)
    }
}

/// `Err` says what a fingerprint is.
pub(crate) fn check_fingerprint(text: &str) -> Result<(), &'static str> {
    // 32 bytes in base64 without padding.
    let ok = text.strip_prefix("SHA256:").is_some_and(|rest| {
        rest.len() == 43
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
    });
    if ok {
        Ok(())
    } else {
        Err(
            "a key is named by its fingerprint, SHA256: and 43 characters, as `ssh-add -l` prints it",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_list_every_key_may_be_used_and_without_forwarding_none() {
        let rules = SshRules {
            enabled: true,
            ..SshRules::default()
        };
        assert!(rules.allows("SHA256:a") && !SshRules::default().allows("SHA256:a"));
        let one = SshRules {
            keys: vec!["SHA256:a".into()],
            ..rules
        };
        assert!(one.allows("SHA256:a") && !one.allows("SHA256:b"));
    }

    #[test]
    fn a_fingerprint_is_checked() {
        assert!(check_fingerprint(&format!("SHA256:{}", "a".repeat(43))).is_ok());
        for bad in ["", "SHA256:", "MD5:aa", "SHA256:short"] {
            assert!(check_fingerprint(bad).is_err(), "{bad}");
        }
    }
}
