//! The stand-in's script: ordered rules, the first that matches answers.
//!
//! Rules look only at the request, so the same conversation always gets the same answer, whatever else runs;
//! the one exception is `times`, which retires a rule after so many answers. Patterns are regular expressions;
//! their captured groups fill `{{…}}` in the reply: `{{1}}` or `{{name}}` from any pattern of the rule.
//! A script that can't mean anything (unknown key, bad pattern, two replies in one) is refused when it is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex_lite::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::conversation::Conversation;

/// Why a script was refused.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file can't be read.
    #[error("cannot read the script {}", path.display())]
    Read {
        /// The script's path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The text is neither valid TOML nor valid JSON for a script.
    #[error("{origin}: {message}")]
    Syntax {
        /// The file, or `<text>`.
        origin: String,
        /// The parser's words.
        message: String,
    },
    /// A rule is well formed and still wrong.
    #[error("{origin}: rule {rule}: {message}")]
    Rule {
        /// The file, or `<text>`.
        origin: String,
        /// The rule's name or its number, from 1.
        rule: String,
        /// What is wrong and what is allowed.
        message: String,
    },
}

/// A whole script.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Refuse every request that does not carry this key (`x-api-key` or `authorization: Bearer`) with 401.
    #[serde(default)]
    pub require_key: Option<String>,
    /// What `/v1/models` lists.
    #[serde(default = "default_models")]
    pub models: Vec<String>,
    /// The rules, in order.
    #[serde(default, rename = "rule")]
    pub rules: Vec<Rule>,
}

fn default_models() -> Vec<String> {
    vec!["stand-in-1".into()]
}

/// When to answer, and with what.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Shown in the log.
    #[serde(default)]
    pub name: String,
    /// All of these must hold.
    #[serde(default)]
    pub when: When,
    /// How many requests it may answer; unlimited by default.
    #[serde(default)]
    pub times: Option<u32>,
    /// The answer.
    pub reply: Reply,
}

/// The conditions of a rule. Patterns are regular expressions searched for anywhere in the text.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// The request path begins with this.
    pub path: Option<String>,
    /// The model asked for.
    pub model: Option<Pattern>,
    /// Header name → pattern.
    #[serde(default)]
    pub header: BTreeMap<String, Pattern>,
    /// All system text.
    pub system: Option<Pattern>,
    /// The first user message: the task.
    pub task: Option<Pattern>,
    /// The latest user text.
    pub user: Option<Pattern>,
    /// What the tools answered in the last message; never matches when that message holds no tool result.
    pub tool_result: Option<Pattern>,
    /// A tool of this name is offered.
    pub tool: Option<String>,
    /// How many assistant messages the conversation holds.
    pub turn: Option<usize>,
    /// Whether the request asks for a stream.
    pub stream: Option<bool>,
}

/// What to answer with.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// Text of the answer.
    pub text: Option<String>,
    /// Repeat the text this often: long streams.
    #[serde(default = "one")]
    pub repeat: usize,
    /// Tools to call, after the text.
    #[serde(default)]
    pub tools: Vec<ToolCall>,
    /// Token counts; computed from the sizes when absent.
    pub usage: Option<Usage>,
    /// Wait before the first byte.
    #[serde(default)]
    pub delay_ms: u64,
    /// Wait before each event of a stream.
    #[serde(default)]
    pub event_delay_ms: u64,
    /// Characters per delta of a stream.
    #[serde(default = "default_chunk")]
    pub chunk_chars: usize,
    /// HTTP status; with `error`, an error of the provider's shape.
    pub status: Option<u16>,
    /// Error type, such as `overloaded_error`; `text` is its message.
    pub error: Option<String>,
    /// Send these bytes as the whole body, whatever they are.
    pub raw: Option<String>,
    /// Content type of `raw`.
    pub content_type: Option<String>,
    /// Break the connection after this many events of a stream.
    pub truncate_after: Option<usize>,
    /// Never end the stream: after the last delta, stay silent.
    #[serde(default)]
    pub hang: bool,
    /// Write on past the request's token limit, as some compatible servers do.
    #[serde(default)]
    pub ignore_limit: bool,
    /// Leave every usage figure out, as some compatible servers do.
    #[serde(default)]
    pub omit_usage: bool,
}

fn one() -> usize {
    1
}

fn default_chunk() -> usize {
    24
}

/// One tool call of an answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments; strings are templates.
    #[serde(default)]
    pub input: Value,
}

/// Token counts of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Tokens read, without cached ones.
    #[serde(default)]
    pub input: u64,
    /// Tokens written.
    #[serde(default)]
    pub output: u64,
    /// Tokens read from the cache.
    #[serde(default)]
    pub cache_read: u64,
    /// Tokens written to the cache.
    #[serde(default)]
    pub cache_write: u64,
}

/// A compiled regular expression.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(Regex);

impl TryFrom<String> for Pattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Regex::new(&text)
            .map(Pattern)
            .map_err(|e| format!("bad pattern {text:?}: {e}"))
    }
}

impl Pattern {
    /// Searches `text`, adding what the groups captured to `captures`.
    fn search(&self, text: &str, captures: &mut Captures) -> bool {
        let Some(found) = self.0.captures(text) else {
            return false;
        };
        for (i, name) in self.0.capture_names().enumerate() {
            if let Some(group) = found.get(i) {
                captures.0.insert(i.to_string(), group.as_str().to_owned());
                if let Some(name) = name {
                    captures
                        .0
                        .insert(name.to_owned(), group.as_str().to_owned());
                }
            }
        }
        true
    }
}

/// What the patterns of a rule captured.
#[derive(Debug, Clone, Default)]
pub struct Captures(BTreeMap<String, String>);

impl Captures {
    /// Fills `{{name}}` in `template`; unknown names stay as they are.
    pub fn fill(&self, template: &str) -> String {
        let mut out = String::with_capacity(template.len());
        let mut rest = template;
        while let Some(start) = rest.find("{{") {
            let Some(len) = rest[start..].find("}}") else {
                break;
            };
            out.push_str(&rest[..start]);
            match self.0.get(rest[start + 2..start + len].trim()) {
                Some(value) => out.push_str(value),
                None => out.push_str(&rest[start..start + len + 2]),
            }
            rest = &rest[start + len + 2..];
        }
        out.push_str(rest);
        out
    }

    /// Fills every string inside `value`.
    pub fn fill_value(&self, value: &Value) -> Value {
        match value {
            Value::String(s) => Value::String(self.fill(s)),
            Value::Array(items) => items.iter().map(|v| self.fill_value(v)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(k, v)| (k.clone(), self.fill_value(v)))
                .collect(),
            other => other.clone(),
        }
    }
}

impl Script {
    /// Reads a script from a `.toml` or `.json` file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ScriptError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| ScriptError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a script from TOML, or from JSON when the text begins with `{`.
    pub fn from_text(text: &str) -> Result<Self, ScriptError> {
        Self::parse(text, "<text>")
    }

    fn parse(text: &str, origin: &str) -> Result<Self, ScriptError> {
        let parsed: Result<Self, String> = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|e| e.to_string())
        } else {
            toml::from_str(text).map_err(|e| e.to_string())
        };
        let script = parsed.map_err(|message| ScriptError::Syntax {
            origin: origin.into(),
            message,
        })?;
        for (i, rule) in script.rules.iter().enumerate() {
            rule.check().map_err(|message| ScriptError::Rule {
                origin: origin.into(),
                rule: if rule.name.is_empty() {
                    (i + 1).to_string()
                } else {
                    rule.name.clone()
                },
                message,
            })?;
        }
        Ok(script)
    }

    /// A script that answers everything with `text`.
    pub fn always(text: &str) -> Self {
        let reply = Reply {
            text: Some(text.into()),
            repeat: 1,
            chunk_chars: default_chunk(),
            ..Reply::default()
        };
        Self {
            models: default_models(),
            rules: vec![Rule {
                reply,
                ..Rule::default()
            }],
            require_key: None,
        }
    }

    /// The same script, refusing requests without `key`.
    pub fn requiring_key(mut self, key: &str) -> Self {
        self.require_key = Some(key.into());
        self
    }
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        let reply = &self.reply;
        // The text of an error is its message.
        let content = !reply.tools.is_empty() || (reply.text.is_some() && reply.error.is_none());
        let kinds = usize::from(content)
            + usize::from(reply.error.is_some())
            + usize::from(reply.raw.is_some());
        match kinds {
            1 => Ok(()),
            0 => Err("the reply has none of text, tools, error, raw".into()),
            _ => Err(
                "the reply may have text and tools, or error, or raw, but not several of these"
                    .into(),
            ),
        }
    }

    /// Whether this rule answers the request, and with which captures.
    pub fn matches(
        &self,
        path: &str,
        header: impl Fn(&str) -> Option<String>,
        conv: &Conversation,
    ) -> Option<Captures> {
        let mut captures = Captures::default();
        let when = &self.when;
        let text = |pattern: &Option<Pattern>, text: &str, captures: &mut Captures| {
            pattern.as_ref().is_none_or(|p| p.search(text, captures))
        };
        let all = when
            .path
            .as_ref()
            .is_none_or(|p| path.starts_with(p.as_str()))
            && when.turn.is_none_or(|t| t == conv.assistant_turns)
            && when.stream.is_none_or(|s| s == conv.stream)
            && when.tool.as_ref().is_none_or(|t| conv.tools.contains(t))
            && when
                .header
                .iter()
                .all(|(name, p)| header(name).is_some_and(|v| p.search(&v, &mut captures)))
            && text(&when.model, &conv.model, &mut captures)
            && text(&when.system, &conv.system, &mut captures)
            && text(&when.task, &conv.task, &mut captures)
            && text(&when.user, &conv.last_user, &mut captures)
            && (when.tool_result.is_none()
                || conv
                    .tool_result
                    .as_ref()
                    .is_some_and(|r| text(&when.tool_result, r, &mut captures)));
        all.then_some(captures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let err = Script::from_text("[[rule]]\nwhenn = {}\nreply = { text = 'a' }").unwrap_err();
        assert!(err.to_string().contains("whenn"), "{err}");
    }

    #[test]
    fn a_bad_pattern_is_refused_with_the_pattern() {
        let err =
            Script::from_text("[[rule]]\nwhen.user = '('\nreply = { text = 'a' }").unwrap_err();
        assert!(err.to_string().contains("bad pattern \"(\""), "{err}");
    }

    #[test]
    fn a_rule_without_an_answer_is_refused_by_name() {
        let err = Script::from_text("[[rule]]\nname = 'x'\nreply = { delay_ms = 1 }").unwrap_err();
        assert!(err.to_string().contains("rule x"), "{err}");
    }

    #[test]
    fn captures_fill_names_numbers_and_leave_the_unknown() {
        let mut c = Captures::default();
        let p = Pattern::try_from(r"fix (?<file>\S+)".to_owned()).unwrap();
        assert!(p.search("please fix a.sh now", &mut c));
        assert_eq!(
            c.fill("{{file}}|{{1}}|{{nope}}|{{ open"),
            "a.sh|a.sh|{{nope}}|{{ open"
        );
    }

    #[test]
    fn json_scripts_are_read_too() {
        let s =
            Script::from_text(r#"{"rule":[{"when":{"turn":1},"reply":{"text":"b"}}]}"#).unwrap();
        assert_eq!(s.rules[0].when.turn, Some(1));
    }
}
