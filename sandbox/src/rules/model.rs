//! Which models an agent may use through the gateway, and how much.
//!
//! The gateway asks; it counts tokens itself. A limit of `None` means that the policy sets none.

use super::tighten::Tightening;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// `[model]` and `limits.tokens` of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRules {
    /// Whether there is a gateway at all (`[model] access = "gateway"`).
    pub enabled: bool,
    /// Model names, in which `*` stands for any run of characters. Empty: every model the gateway offers.
    pub models: Vec<String>,
    /// Input and output tokens of the whole launch (`limits.tokens`).
    pub max_tokens_total: Option<u64>,
    /// The most output tokens one request may ask for (`model.max_tokens`).
    pub max_tokens_per_request: Option<u64>,
    /// What the whole launch may cost (`limits.cost`), in billionths of a US dollar.
    #[serde(default)]
    pub max_cost_nano_usd: Option<u64>,
    /// What was laid over these rules while the agent runs.
    #[serde(skip)]
    pub tightened: Vec<Arc<Tightening>>,
}

impl ModelRules {
    pub fn allows_model(&self, model: &str) -> bool {
        self.enabled
            && (self.models.is_empty() || self.models.iter().any(|p| glob(p, model)))
            && self.refused_by(model).is_none()
    }
}

/// Whether a model's name is one of those that a pattern means.
pub fn matches_model(pattern: &str, model: &str) -> bool {
    glob(pattern, model)
}

/// Whether `text` matches `pattern`, in which `*` stands for any run of characters, `/` included.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let (p, t) = (pattern.as_bytes(), text.as_bytes());
    let (mut pi, mut ti) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while ti < t.len() {
        if pi < p.len() && p[pi] == b'*' {
            retry = Some((pi, ti));
            pi += 1;
        } else if pi < p.len() && p[pi] == t[ti] {
            pi += 1;
            ti += 1;
        } else if let Some((star, at)) = retry {
            pi = star + 1;
            ti = at + 1;
            retry = Some((star, at + 1));
        } else {
            return false;
        }
    }
    p[pi..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glob_matches_runs_anywhere() {
        assert!(glob("claude-*", "claude-sonnet-5"));
        assert!(glob("*sonnet*", "claude-sonnet-5"));
        assert!(glob("*", ""));
        assert!(!glob("claude-*", "gpt-5"));
        assert!(!glob("", "x"));
        assert!(glob("a*b*c", "a-b-b-c"));
        assert!(!glob("a*b*c", "a-c-b"));
    }

    #[test]
    fn no_list_means_every_model_and_no_gateway_means_none() {
        let mut rules = ModelRules {
            enabled: true,
            ..ModelRules::default()
        };
        assert!(rules.allows_model("anything"));
        rules.models = vec!["claude-*".into()];
        assert!(!rules.allows_model("anything"));
        rules.enabled = false;
        assert!(!rules.allows_model("claude-x"));
    }
}
