//! One view of the three request shapes: what a rule may look at.
//!
//! Never fails: a body of another shape gives empty fields, and the rules decide.

use serde_json::Value;

/// What the request says, whatever its provider's shape.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// The model asked for.
    pub model: String,
    /// All system text, wherever it stands.
    pub system: String,
    /// The first user message.
    pub task: String,
    /// The latest user message that is not only tool results.
    pub last_user: String,
    /// The tool results at the end of the conversation, if it ends with some.
    pub tool_result: Option<String>,
    /// Names of the tools offered; those of a namespace as `NAMESPACE__TOOL`.
    pub tools: Vec<String>,
    /// Namespaces of tools, as the responses API groups them.
    pub namespaces: Vec<String>,
    /// Assistant messages so far.
    pub assistant_turns: usize,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// The output limit, under any of its names.
    pub max_tokens: Option<u64>,
    /// `stream_options.include_usage` of chat completions.
    pub include_usage: bool,
}

impl Conversation {
    /// Reads a request body of any of the known shapes.
    pub fn read(body: &Value) -> Self {
        let mut conv = Self {
            model: body["model"].as_str().unwrap_or_default().to_owned(),
            stream: body["stream"].as_bool().unwrap_or(false),
            include_usage: body["stream_options"]["include_usage"]
                .as_bool()
                .unwrap_or(false),
            max_tokens: ["max_tokens", "max_completion_tokens", "max_output_tokens"]
                .iter()
                .find_map(|k| body[*k].as_u64()),
            ..Self::default()
        };
        conv.push_system(&text_of(&body["system"]));
        conv.push_system(&text_of(&body["instructions"]));
        conv.push_tools(&body["tools"]);
        if let Some(text) = body["input"].as_str() {
            conv.push_user(text);
        }
        for item in body["messages"]
            .as_array()
            .or_else(|| body["input"].as_array())
            .into_iter()
            .flatten()
        {
            conv.push_message(item);
        }
        conv
    }

    fn push_tools(&mut self, tools: &Value) {
        for tool in tools.as_array().into_iter().flatten() {
            let name = [&tool["name"], &tool["function"]["name"], &tool["type"]];
            if let Some(name) = name.into_iter().find_map(Value::as_str) {
                self.push_tool(name, tool);
            }
        }
    }

    fn push_tool(&mut self, name: &str, tool: &Value) {
        if tool["type"] != "namespace" {
            self.tools.push(name.to_owned());
            return;
        }
        self.namespaces.push(name.to_owned());
        let inner = tool["tools"].as_array().into_iter().flatten();
        let names = inner.filter_map(|inner| inner["name"].as_str());
        self.tools
            .extend(names.map(|inner| format!("{name}__{inner}")));
    }

    fn push_system(&mut self, text: &str) {
        if !text.is_empty() {
            self.system.push_str(text);
            self.system.push('\n');
        }
    }

    fn push_user(&mut self, text: &str) {
        if self.task.is_empty() {
            text.clone_into(&mut self.task);
        }
        text.clone_into(&mut self.last_user);
        self.tool_result = None;
    }

    fn push_result(&mut self, text: &str) {
        let all = self.tool_result.get_or_insert_default();
        if !all.is_empty() {
            all.push('\n');
        }
        all.push_str(text);
    }

    fn push_message(&mut self, message: &Value) {
        if message["type"] == "tool_search_output" {
            let before = self.tools.len();
            self.push_tools(&message["tools"]);
            let found = self.tools[before..].join("\n");
            return self.push_result(&found);
        }
        if message["type"] == "function_call_output" || message["type"] == "custom_tool_call_output"
        {
            return self.push_result(&text_of(&message["output"]));
        }
        match message["role"].as_str() {
            Some("system" | "developer") => self.push_system(&text_of(&message["content"])),
            Some("assistant") => {
                self.assistant_turns += 1;
                self.tool_result = None;
            }
            Some("tool") => self.push_result(&text_of(&message["content"])),
            Some("user") => {
                let blocks = message["content"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                let results: Vec<_> = blocks
                    .iter()
                    .filter(|b| b["type"] == "tool_result")
                    .collect();
                if results.is_empty() {
                    self.push_user(&text_of(&message["content"]));
                } else {
                    self.tool_result = None;
                    for block in results {
                        self.push_result(&text_of(&block["content"]));
                    }
                }
            }
            _ if ["function_call", "custom_tool_call", "tool_search_call"]
                .iter()
                .any(|call| message["type"] == *call) =>
            {
                self.assistant_turns += 1;
                self.tool_result = None;
            }
            _ => {}
        }
    }
}

/// All text of a content value: a string, or blocks with `text`, joined by newlines.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(s) => s.clone(),
        Value::Array(blocks) => {
            let texts: Vec<&str> = blocks
                .iter()
                .filter_map(|b| b.as_str().or_else(|| b["text"].as_str()))
                .collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn anthropic_tool_results_at_the_end_are_seen_past_a_system_message() {
        let c = Conversation::read(&json!({"system":[{"type":"text","text":"S1"}],"messages":[
            {"role":"user","content":"task"},
            {"role":"assistant","content":[{"type":"tool_use","id":"t","name":"Bash","input":{}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"out"}]}]},
            {"role":"system","content":"S2"}]}));
        assert_eq!((c.task.as_str(), c.last_user.as_str()), ("task", "task"));
        assert_eq!(c.tool_result.as_deref(), Some("out"));
        assert_eq!((c.assistant_turns, c.system.as_str()), (1, "S1\nS2\n"));
    }

    #[test]
    fn the_tools_of_a_namespace_are_seen_under_their_whole_names() {
        let c = Conversation::read(&json!({"input": [], "tools": [
            {"type": "function", "name": "exec"},
            {"type": "namespace", "name": "mcp__agentd", "tools": [{"type": "function", "name": "request"}]}]}));
        assert_eq!(c.tools, ["exec", "mcp__agentd__request"]);
        assert_eq!(c.namespaces, ["mcp__agentd"]);
        let found = Conversation::read(&json!({"tools": [{"type": "tool_search"}], "input": [
            {"role": "user", "content": "x"}, {"type": "tool_search_call", "call_id": "c"},
            {"type": "tool_search_output", "call_id": "c",
             "tools": [{"type": "namespace", "name": "n", "tools": [{"name": "t"}]}]}]}));
        assert_eq!(found.tools, ["tool_search", "n__t"]);
        assert_eq!(found.tool_result.as_deref(), Some("n__t"));
        assert_eq!(found.assistant_turns, 1);
    }

    #[test]
    fn openai_shapes_give_the_same_view() {
        let chat = Conversation::read(&json!({"messages":[{"role":"user","content":"task"},
            {"role":"assistant","content":null,"tool_calls":[]},{"role":"tool","content":"out"}]}));
        let responses = Conversation::read(
            &json!({"input":[{"role":"user","content":[{"type":"input_text","text":"task"}]},
            {"type":"function_call","name":"x"},{"type":"function_call_output","output":"out"}]}),
        );
        for c in [chat, responses] {
            assert_eq!(
                (c.task.as_str(), c.tool_result.as_deref(), c.assistant_turns),
                ("task", Some("out"), 1)
            );
        }
    }
}
