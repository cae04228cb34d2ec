//! What the stand-in says, before it takes a provider's shape.

use serde_json::Value;

use super::script::Usage;

/// One answer of the model.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Unique number of the request, used in every id.
    pub number: u64,
    /// The model that was asked for.
    pub model: String,
    /// Its text; may be empty.
    pub text: String,
    /// Tools called: name and arguments.
    pub tools: Vec<(String, Value)>,
    /// Namespaces of tools that the request offers: a call of `NAMESPACE__TOOL` is one into it.
    pub namespaces: Vec<String>,
    /// Tokens; `None` leaves the figures out.
    pub usage: Option<Usage>,
    /// Whether the output limit cut the text.
    pub hit_limit: bool,
    /// Characters per delta of a stream.
    pub chunk_chars: usize,
}

impl Answer {
    /// The text in pieces, as a stream carries it.
    pub fn chunks<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut rest = text;
        let mut out = Vec::new();
        while !rest.is_empty() {
            let cut = rest
                .char_indices()
                .nth(self.chunk_chars.max(1))
                .map_or(rest.len(), |(i, _)| i);
            out.push(&rest[..cut]);
            rest = &rest[cut..];
        }
        out
    }

    /// The id of the `index`th tool call, with the provider's prefix.
    pub fn tool_id(&self, prefix: &str, index: usize) -> String {
        format!("{prefix}standin_{}_{index}", self.number)
    }
}

/// One server-sent event.
pub fn sse(event: Option<&str>, data: &Value) -> String {
    match event {
        Some(event) => format!("event: {event}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    }
}
