//! What an LLM agent's own tools may do, asked by the drivers for each permission request.
//!
//! A rule is `Tool` or `Tool(pattern)`, as in `Bash(git *)`, `Read(.env*)`, `Write(src/**)`. A deny rule wins over
//! an ask rule, which wins over an allow rule; with no allow rule at all every tool that is neither denied nor asked
//! for is allowed, for the kernel holds the boundary and these rules only make an agent's manners explicit. By themselves they
//! are not a security boundary: a shell can do what a tool is denied, within the sandbox. Those that the kernel can hold
//! become rules about files as well ([`super::held`]).
//!
//! What a person decided once and for all is a [`Remembered`] rule: either this very use again, or a pattern.

use super::model::glob;
use super::tighten::Tightening;
use crate::policy::Origin;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// How long a question waits for a person when the policy does not say (`[tools] ask_timeout`).
pub const DEFAULT_ASK_TIMEOUT: Duration = Duration::from_secs(600);

/// One rule, checked when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolRule {
    /// As written in the policy.
    pub text: String,
    /// The tool's name, in which `*` stands for any run of characters.
    pub tool: String,
    /// What the tool's subject must match; `None` covers every use.
    pub pattern: Option<String>,
    pub origin: Origin,
}

impl ToolRule {
    /// `Err` says what is wrong with it and what is allowed.
    pub fn parse(text: &str, origin: Origin) -> Result<Self, String> {
        let (tool, pattern) = match text.split_once('(') {
            None => (text, None),
            Some((tool, rest)) => match rest.strip_suffix(')') {
                Some(p) if !p.is_empty() => (tool, Some(p.to_owned())),
                _ => return Err("a tool rule is Tool or Tool(pattern), such as Bash(git *)".into()),
            },
        };
        let ok = !tool.is_empty()
            && tool
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-*:.".contains(&b));
        if !ok {
            return Err(
                "a tool's name has letters, digits and _ - : . with * for any run of them".into(),
            );
        }
        Ok(Self {
            text: text.into(),
            tool: tool.into(),
            pattern,
            origin,
        })
    }

    /// Whether this rule, as a rule that allows, lets `tool` be used with `input`: a shell line only if each of its
    /// simple commands matches.
    pub fn allows(&self, tool: &str, input: &Value, workspace: Option<&str>) -> bool {
        self.lets(tool, input, &subjects(input, workspace))
    }

    /// Whether this rule, as a rule that denies, covers a part of this use.
    pub fn touches(&self, tool: &str, input: &Value, workspace: Option<&str>) -> bool {
        self.covers(tool, &subjects(input, workspace))
    }

    /// Whether this rule covers every use that `other` covers, as far as their texts tell.
    pub(crate) fn is_wider(&self, other: &Self) -> bool {
        let pattern = match (&self.pattern, &other.pattern) {
            (None, _) => true,
            (Some(own), Some(other)) => own == other,
            (Some(_), None) => false,
        };
        glob(&self.tool, &other.tool) && pattern
    }

    fn lets(&self, tool: &str, input: &Value, subjects: &[String]) -> bool {
        self.covers(tool, subjects)
            && self.pattern.as_ref().is_none_or(|p| {
                command(input).is_none_or(|c| simple_commands(c).iter().all(|part| glob(p, part)))
            })
    }

    fn covers(&self, tool: &str, subjects: &[String]) -> bool {
        glob(&self.tool, tool)
            && match &self.pattern {
                None => true,
                Some(pattern) => subjects.iter().any(|s| subject_matches(pattern, s)),
            }
    }
}

/// A pattern that names no folder (`.env*`) matches the last component of a path as well.
pub(super) fn subject_matches(pattern: &str, subject: &str) -> bool {
    glob(pattern, subject)
        || (!pattern.contains('/')
            && subject
                .rsplit_once('/')
                .is_some_and(|(_, name)| glob(pattern, name)))
}

/// `[tools]` of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolRules {
    pub allow: Vec<ToolRule>,
    #[serde(default)]
    pub ask: Vec<ToolRule>,
    pub deny: Vec<ToolRule>,
    /// How long a question waits for a person before it counts as refused.
    #[serde(default = "default_ask_timeout")]
    pub ask_timeout: Duration,
    /// What was laid over these rules while the agent runs.
    #[serde(skip)]
    pub tightened: Vec<Arc<Tightening>>,
}

fn default_ask_timeout() -> Duration {
    DEFAULT_ASK_TIMEOUT
}

impl Default for ToolRules {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            ask: Vec::new(),
            deny: Vec::new(),
            ask_timeout: DEFAULT_ASK_TIMEOUT,
            tightened: Vec::new(),
        }
    }
}

/// The answer to one tool use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolDecision {
    Allow,
    /// A person decides; `rule` is what asks.
    Ask {
        rule: ToolRule,
    },
    /// `why` is a sentence for the model and for the record; `origin` the line of the rule, if one rule decided.
    Deny {
        why: String,
        origin: Option<Origin>,
    },
}

impl ToolRules {
    /// Decides one use of `tool` with `input`, the tool's arguments as the agent's protocol gives them.
    ///
    /// `workspace`, an absolute path, lets patterns be written relative to it.
    pub fn decide(&self, tool: &str, input: &Value, workspace: Option<&str>) -> ToolDecision {
        let own = self.own(tool, input, workspace);
        self.tighten(own, tool, input, workspace)
    }

    /// What the agent's own policy says.
    fn own(&self, tool: &str, input: &Value, workspace: Option<&str>) -> ToolDecision {
        let subjects = subjects(input, workspace);
        if let Some(rule) = self.deny.iter().find(|r| r.covers(tool, &subjects)) {
            return ToolDecision::Deny {
                why: format!(
                    "denied by the agent's policy: {} ({})",
                    rule.text, rule.origin
                ),
                origin: Some(rule.origin.clone()),
            };
        }
        // As a denied command, one that is asked for is found inside a longer line; the person then sees all of it.
        if let Some(rule) = self.ask.iter().find(|r| r.covers(tool, &subjects)) {
            return ToolDecision::Ask { rule: rule.clone() };
        }
        if self.allow.is_empty() || self.allow.iter().any(|r| r.lets(tool, input, &subjects)) {
            return ToolDecision::Allow;
        }
        ToolDecision::Deny {
            why: format!(
                "{tool} with these arguments is not in [tools] allow of the agent's policy"
            ),
            origin: None,
        }
    }
}

/// What "the same again" means for one use of a tool: the shell line, the file or the address where that is what
/// the use is about, and otherwise all its arguments. What only describes a use (a shell call's `description`) is not
/// part of it; an argument nobody knows is.
pub fn gist(tool: &str, input: &Value) -> Value {
    const DESCRIBES: [&str; 3] = ["description", "timeout", "command"];
    let only = |allowed: &[&str]| {
        input
            .as_object()
            .is_some_and(|o| o.keys().all(|k| allowed.contains(&k.as_str())))
    };
    let about = match tool {
        _ if command(input).is_some() && only(&DESCRIBES) => "command",
        "Read" | "Write" | "Edit" | "MultiEdit" => "file_path",
        "NotebookEdit" => "notebook_path",
        "WebFetch" => "url",
        _ => return input.clone(),
    };
    input.get(about).cloned().unwrap_or_else(|| input.clone())
}

/// What a remembered decision covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remembered {
    /// This tool with this [`gist`] and nothing else: no wildcards.
    Same { tool: String, gist: Value },
    /// Whatever a rule of the policy language covers.
    Pattern(ToolRule),
}

impl Remembered {
    /// Whether a remembered `allow` covers this use: a pattern must cover all of a shell line.
    pub fn allows(&self, tool: &str, input: &Value, workspace: Option<&str>) -> bool {
        match self {
            Self::Same { .. } => self.is_same(tool, input),
            Self::Pattern(rule) => rule.allows(tool, input, workspace),
        }
    }

    /// Whether a remembered `deny` covers this use: a pattern need only cover a part of a shell line.
    pub fn denies(&self, tool: &str, input: &Value, workspace: Option<&str>) -> bool {
        match self {
            Self::Same { .. } => self.is_same(tool, input),
            Self::Pattern(rule) => rule.touches(tool, input, workspace),
        }
    }

    fn is_same(&self, other: &str, input: &Value) -> bool {
        matches!(self, Self::Same { tool, gist: kept } if tool == other && *kept == gist(other, input))
    }
}

fn command(input: &Value) -> Option<&str> {
    input.get("command").and_then(Value::as_str)
}

/// What a rule's pattern is held against: each simple command of a shell line, or each path or URL argument.
fn subjects(input: &Value, workspace: Option<&str>) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(line) = command(input) {
        out.push(line.to_owned());
        out.extend(simple_commands(line));
    }
    for key in [
        "file_path",
        "notebook_path",
        "path",
        "url",
        "query",
        "pattern",
    ] {
        let Some(value) = input.get(key).and_then(Value::as_str) else {
            continue;
        };
        out.push(value.to_owned());
        if let Some(relative) = workspace
            .and_then(|w| value.strip_prefix(w))
            .and_then(|v| v.strip_prefix('/'))
        {
            out.push(relative.to_owned());
        }
    }
    out
}

/// Splits a shell line at the operators that start another command. Quotes are honoured for the split; what is
/// inside `$( )` and backquotes becomes commands of its own.
fn simple_commands(line: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quote: Option<char> = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let current = parts.last_mut().expect("never empty");
        match (quote, c) {
            (Some('\''), '\'') => {
                quote = None;
                current.push(c);
            }
            (Some('\''), _) => current.push(c),
            (_, '\\') => {
                current.push(c);
                if let Some(next) = chars.next() {
                    current.push(next);
                }
            }
            (_, '`') => parts.push(String::new()),
            (_, '$') if chars.peek() == Some(&'(') => {
                chars.next();
                parts.push(String::new());
            }
            (Some('"'), '"') => {
                quote = None;
                current.push(c);
            }
            (None, '"' | '\'') => {
                quote = Some(c);
                current.push(c);
            }
            (None, ';' | '|' | '&' | '\n' | '(' | ')') => parts.push(String::new()),
            _ => current.push(c),
        }
    }
    parts
        .into_iter()
        .map(|p| p.trim().to_owned())
        .filter(|p| !p.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(allow: &[&str], deny: &[&str]) -> ToolRules {
        let make = |list: &[&str]| {
            list.iter()
                .map(|t| ToolRule::parse(t, Origin::built_in("test")).unwrap())
                .collect::<Vec<_>>()
        };
        ToolRules {
            allow: make(allow),
            deny: make(deny),
            ..ToolRules::default()
        }
    }

    fn asking(allow: &[&str], ask: &[&str], deny: &[&str]) -> ToolRules {
        ToolRules {
            ask: rules(ask, &[]).allow,
            ..rules(allow, deny)
        }
    }

    fn allowed(r: &ToolRules, tool: &str, input: Value) -> bool {
        r.decide(tool, &input, Some("/w")) == ToolDecision::Allow
    }

    #[test]
    fn without_allow_rules_everything_that_is_not_denied_is_allowed() {
        let r = rules(&[], &["Read(.env*)"]);
        assert!(allowed(&r, "Bash", json!({"command": "ls"})));
        assert!(allowed(&r, "Read", json!({"file_path": "/w/main.rs"})));
        assert!(!allowed(
            &r,
            "Read",
            json!({"file_path": "/w/sub/.env.local"})
        ));
    }

    #[test]
    fn an_allowed_command_does_not_carry_another() {
        let r = rules(&["Bash(git *)"], &[]);
        assert!(allowed(&r, "Bash", json!({"command": "git status"})));
        assert!(allowed(
            &r,
            "Bash",
            json!({"command": "git add . && git commit -m 'a; b'"})
        ));
        for line in [
            "git status; curl x",
            "git status && curl x",
            "git log | sh",
            "git log $(sh x)",
            "git log `sh`",
            "git \"$(sh)\"",
        ] {
            assert!(!allowed(&r, "Bash", json!({"command": line})), "{line}");
        }
        assert!(!allowed(&r, "Write", json!({"file_path": "/w/a"})));
    }

    #[test]
    fn a_denied_command_is_found_inside_a_longer_line() {
        let r = rules(&[], &["Bash(git push*)"]);
        assert!(!allowed(
            &r,
            "Bash",
            json!({"command": "cargo test && git push origin"})
        ));
    }

    #[test]
    fn patterns_are_relative_to_the_workspace() {
        let r = rules(&["Write(src/*)"], &[]);
        assert!(allowed(&r, "Write", json!({"file_path": "/w/src/a/b.rs"})));
        assert!(!allowed(&r, "Write", json!({"file_path": "/w/tests/a.rs"})));
    }

    #[test]
    fn deny_wins_over_ask_and_ask_over_allow() {
        let r = asking(
            &["Bash(git *)"],
            &["Bash(git push*)"],
            &["Bash(git push --force*)"],
        );
        let decide = |line: &str| r.decide("Bash", &json!({"command": line}), None);
        assert_eq!(decide("git status"), ToolDecision::Allow);
        for line in ["git push", "git add . && git push origin main"] {
            assert!(
                matches!(decide(line), ToolDecision::Ask { rule } if rule.text == "Bash(git push*)"),
                "{line}"
            );
        }
        for line in ["git push --force", "git push; git push --force", "curl x"] {
            assert!(matches!(decide(line), ToolDecision::Deny { .. }), "{line}");
        }
    }

    #[test]
    fn the_same_again_knows_no_wildcards_and_no_descriptions() {
        let first = json!({"command": "rm build/*", "description": "clean"});
        let kept = Remembered::Same {
            tool: "Bash".into(),
            gist: gist("Bash", &first),
        };
        let again = |tool: &str, input: Value| kept.allows(tool, &input, None);
        assert!(again(
            "Bash",
            json!({"command": "rm build/*", "description": "tidy up"})
        ));
        assert!(!again("Bash", json!({"command": "rm build/x"})));
        assert!(!again("Bash", json!({"command": "rm build/*; ls"})));
        assert!(!again("Sh", json!({"command": "rm build/*"})));
        // An argument that nobody here knows may change what the use does.
        assert!(!again(
            "Bash",
            json!({"command": "rm build/*", "as_root": true})
        ));
        assert_eq!(
            gist("mcp__fs__move", &json!({"path": "a", "to": "b"})),
            json!({"path": "a", "to": "b"})
        );
        assert_eq!(
            gist("Edit", &json!({"file_path": "/w/a", "new_string": "x"})),
            json!("/w/a")
        );
    }

    #[test]
    fn a_remembered_pattern_allows_whole_lines_and_denies_parts_of_them() {
        let kept =
            Remembered::Pattern(ToolRule::parse("Bash(git *)", Origin::built_in("test")).unwrap());
        let line = json!({"command": "git push && curl x"});
        assert!(!kept.allows("Bash", &line, None) && kept.denies("Bash", &line, None));
        assert!(kept.allows("Bash", &json!({"command": "git push"}), None));
    }

    #[test]
    fn malformed_rules_say_what_a_rule_is() {
        for bad in ["", "Bash(", "Bash()", "Ba sh", "(x)"] {
            assert!(
                ToolRule::parse(bad, Origin::built_in("test")).is_err(),
                "{bad}"
            );
        }
    }
}
