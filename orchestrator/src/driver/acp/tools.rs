//! Tool calls of the Agent Client Protocol as the policy's rules know tools.
//!
//! Pure. The protocol has kinds of tools, not names, and spreads what is known of a call over several messages: the
//! first announces it, later ones and the question itself add to it. So everything that was ever told of a call counts,
//! and a file that was named once stays named. A call whose kind says that it has a subject (a command, a file), and
//! that shows none, can't be judged and is refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::wire::{ToolCall, ToolContent};

/// Calls that are remembered at once; more are known by what their question says.
const MAX_CALLS: usize = 256;
/// The name under which agents know the MCP server, and so the beginning of its tools' names.
pub(super) const MCP_SERVER: &str = "agentd";

/// What is known of one call.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    /// The first title: agents announce a call under its tool's name and describe it later.
    name: String,
    kind: String,
    input: serde_json::Map<String, Value>,
    /// Files it touches, with whether each is new.
    files: BTreeMap<String, bool>,
}

/// The calls of a session that are not over.
#[derive(Debug)]
pub(super) struct Calls {
    /// What paths are relative to, where an agent shows them so.
    cwd: String,
    open: BTreeMap<String, Known>,
}

impl Calls {
    pub fn new(cwd: &str) -> Self {
        Self {
            cwd: cwd.trim_end_matches('/').to_owned(),
            open: BTreeMap::new(),
        }
    }

    /// Takes what is new about a call.
    pub fn learn(&mut self, call: &ToolCall) {
        if matches!(call.status.as_deref(), Some("completed" | "failed")) {
            self.open.remove(&call.tool_call_id);
        } else if self.open.len() < MAX_CALLS || self.open.contains_key(&call.tool_call_id) {
            self.open
                .entry(call.tool_call_id.clone())
                .or_default()
                .learn(call, &self.cwd);
        }
    }

    pub fn forget(&mut self) {
        self.open.clear();
    }

    /// The policy's tools that a call uses, by everything that is known of it.
    ///
    /// # Errors
    /// A sentence, when it can't be judged.
    pub fn tools(&self, call: &ToolCall) -> Result<Vec<(String, Value)>, String> {
        let mut known = self
            .open
            .get(&call.tool_call_id)
            .cloned()
            .unwrap_or_default();
        known.learn(call, &self.cwd);
        known.tools()
    }
}

impl Known {
    fn learn(&mut self, call: &ToolCall, cwd: &str) {
        if self.name.is_empty() {
            self.name = call.title.clone().unwrap_or_default();
        }
        if let Some(kind) = &call.kind {
            self.kind.clone_from(kind);
        }
        if let Some(Value::Object(input)) = &call.raw_input {
            self.input.extend(input.clone());
        }
        for content in call.content.iter().flatten() {
            if let ToolContent::Diff { path, old_text } = content {
                let is_new = old_text.as_deref().is_none_or(str::is_empty);
                self.files.insert(absolute(path, cwd), is_new);
            }
        }
        let named = ["file_path", "filePath", "filepath", "path", "abs_path"];
        let named: Vec<String> = named
            .iter()
            .filter_map(|key| self.text(key))
            .map(|path| absolute(path, cwd))
            .collect();
        let located = call.locations.iter().flatten();
        for path in located.map(|it| absolute(&it.path, cwd)).chain(named) {
            self.files.entry(path).or_insert(false);
        }
    }

    fn tools(self) -> Result<Vec<(String, Value)>, String> {
        match self.kind.as_str() {
            "execute" => {
                let command = self.text("command").ok_or("it names no command")?;
                Ok(vec![("Bash".to_owned(), json!({ "command": command }))])
            }
            "read" => self.on_files(|_| "Read"),
            "edit" => self.on_files(|is_new| if is_new { "Write" } else { "Edit" }),
            "delete" | "move" => self.on_files(|_| "Write"),
            "search" => Ok(vec![("Grep".to_owned(), Value::Object(self.input))]),
            "fetch" => {
                let url = self.text("url").ok_or("it names no address")?;
                Ok(vec![("WebFetch".to_owned(), json!({ "url": url }))])
            }
            "think" => Ok(vec![("Think".to_owned(), Value::Object(self.input))]),
            _ => {
                let tool = named(&self.name)
                    .ok_or_else(|| format!("{:?} is no tool's name", self.name))?;
                Ok(vec![(tool, Value::Object(self.input))])
            }
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.input.get(key).and_then(Value::as_str)
    }

    /// One question for each file.
    fn on_files(
        &self,
        tool: impl Fn(bool) -> &'static str,
    ) -> Result<Vec<(String, Value)>, String> {
        if self.files.is_empty() {
            return Err("it names no file".to_owned());
        }
        let question = |(path, &is_new): (&String, &bool)| {
            (tool(is_new).to_owned(), json!({ "file_path": path }))
        };
        Ok(self.files.iter().map(question).collect())
    }
}

fn absolute(path: &str, cwd: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{cwd}/{path}")
    }
}

/// A tool without a kind, by the name it was announced under. The bus's own get the name that Claude Code and Codex
/// use, whichever of the usual ways an agent joins server and tool by.
fn named(title: &str) -> Option<String> {
    let ok = |c: char| c.is_ascii_alphanumeric() || "_-:.".contains(c);
    if title.is_empty() || !title.chars().all(ok) {
        return None;
    }
    if title.starts_with("mcp__") {
        return Some(title.to_owned());
    }
    let inner = title
        .strip_prefix(MCP_SERVER)
        .and_then(|rest| rest.strip_prefix(['_', '.', ':', '-']));
    Some(match inner {
        Some(tool) => format!("mcp__{MCP_SERVER}__{tool}"),
        None => title.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(value: Value) -> ToolCall {
        serde_json::from_value(value).unwrap()
    }

    fn of(value: Value) -> Result<Vec<(String, Value)>, String> {
        let mut value = value;
        value["toolCallId"] = json!("t");
        Calls::new("/w").tools(&call(value))
    }

    #[test]
    fn kinds_become_the_policys_tools() {
        for (asked, tool, input) in [
            (
                json!({"kind": "execute", "rawInput": {"command": "ls"}}),
                "Bash",
                json!({"command": "ls"}),
            ),
            (
                json!({"kind": "read", "rawInput": {"filePath": "/a"}}),
                "Read",
                json!({"file_path": "/a"}),
            ),
            (
                json!({"kind": "edit", "content": [{"type": "diff", "path": "/a", "oldText": "x", "newText": "y"}]}),
                "Edit",
                json!({"file_path": "/a"}),
            ),
            (
                json!({"kind": "edit", "content": [{"type": "diff", "path": "/a", "oldText": null, "newText": "y"}]}),
                "Write",
                json!({"file_path": "/a"}),
            ),
            (
                json!({"kind": "edit", "rawInput": {"path": "a"}, "content": [{"type": "diff", "path": "/w/a", "newText": "y"}]}),
                "Write",
                json!({"file_path": "/w/a"}),
            ),
            (
                json!({"kind": "delete", "locations": [{"path": "/a"}]}),
                "Write",
                json!({"file_path": "/a"}),
            ),
            (
                json!({"kind": "fetch", "rawInput": {"url": "https://e.org"}}),
                "WebFetch",
                json!({"url": "https://e.org"}),
            ),
            (
                json!({"kind": "other", "title": "agentd_request", "rawInput": {"to": "b"}}),
                "mcp__agentd__request",
                json!({"to": "b"}),
            ),
            (
                json!({"title": "mcp__agentd__send"}),
                "mcp__agentd__send",
                json!({}),
            ),
        ] {
            assert_eq!(
                of(asked.clone()),
                Ok(vec![(tool.to_owned(), input)]),
                "{asked}"
            );
        }
    }

    #[test]
    fn what_shows_no_subject_or_no_name_is_refused() {
        for asked in [
            json!({"kind": "execute", "title": "rm -rf x"}),
            json!({"kind": "read"}),
            json!({"kind": "edit", "rawInput": {}}),
            json!({"kind": "fetch"}),
            json!({"kind": "other"}),
            json!({"kind": "other", "title": "do what I mean"}),
        ] {
            assert!(of(asked.clone()).is_err(), "{asked}");
        }
    }

    #[test]
    fn what_was_told_of_a_call_before_counts() {
        let mut calls = Calls::new("/w");
        calls.learn(&call(
            json!({"toolCallId": "t", "title": "read", "kind": "read", "rawInput": {}}),
        ));
        calls.learn(&call(
            json!({"toolCallId": "t", "locations": [{"path": "/a"}, {"path": "/b"}]}),
        ));
        let question =
            call(json!({"toolCallId": "t", "kind": "read", "locations": [], "rawInput": {}}));
        let tools = calls.tools(&question).unwrap();
        assert_eq!(
            tools,
            [
                ("Read".to_owned(), json!({"file_path": "/a"})),
                ("Read".to_owned(), json!({"file_path": "/b"}))
            ]
        );
        calls.learn(&call(json!({"toolCallId": "t", "status": "completed"})));
        assert!(calls.tools(&question).is_err());
    }
}
