//! Answers in the shape of the Anthropic Messages API
//! (<https://docs.anthropic.com/en/api/messages>, <https://docs.anthropic.com/en/api/messages-streaming>).

use serde_json::{Value, json};

use super::answer::{Answer, sse};

fn stop_reason(answer: &Answer) -> &'static str {
    match (answer.hit_limit, answer.tools.is_empty()) {
        (true, _) => "max_tokens",
        (false, true) => "end_turn",
        (false, false) => "tool_use",
    }
}

fn envelope(answer: &Answer) -> Value {
    json!({
        "id": format!("msg_standin_{}", answer.number), "type": "message", "role": "assistant",
        "model": answer.model, "content": [], "stop_reason": null, "stop_sequence": null,
    })
}

/// A whole answer.
pub fn message(answer: &Answer) -> Value {
    let mut content = Vec::new();
    if !answer.text.is_empty() {
        content.push(json!({"type": "text", "text": answer.text}));
    }
    for (i, (name, input)) in answer.tools.iter().enumerate() {
        content.push(json!({"type": "tool_use", "id": answer.tool_id("toolu_", i), "name": name, "input": input}));
    }
    let mut message = envelope(answer);
    message["content"] = content.into();
    message["stop_reason"] = stop_reason(answer).into();
    if let Some(u) = answer.usage {
        message["usage"] = json!({"input_tokens": u.input, "output_tokens": u.output,
            "cache_read_input_tokens": u.cache_read, "cache_creation_input_tokens": u.cache_write});
    }
    message
}

/// The same answer as the events of a stream.
pub fn events(answer: &Answer) -> Vec<String> {
    let mut out = Vec::new();
    let mut push = |data: Value| {
        let event = data["type"]
            .as_str()
            .expect("each event has a type")
            .to_owned();
        out.push(sse(Some(&event), &data));
    };
    let mut start = envelope(answer);
    if let Some(u) = answer.usage {
        start["usage"] = json!({"input_tokens": u.input, "output_tokens": 1,
            "cache_read_input_tokens": u.cache_read, "cache_creation_input_tokens": u.cache_write});
    }
    push(json!({"type": "message_start", "message": start}));
    push(json!({"type": "ping"}));
    let mut index = 0;
    if !answer.text.is_empty() {
        push(
            json!({"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}),
        );
        for piece in answer.chunks(&answer.text) {
            push(json!({"type": "content_block_delta", "index": index,
                "delta": {"type": "text_delta", "text": piece}}));
        }
        push(json!({"type": "content_block_stop", "index": index}));
        index += 1;
    }
    for (i, (name, input)) in answer.tools.iter().enumerate() {
        push(
            json!({"type": "content_block_start", "index": index, "content_block":
            {"type": "tool_use", "id": answer.tool_id("toolu_", i), "name": name, "input": {}}}),
        );
        for piece in answer.chunks(&input.to_string()) {
            push(json!({"type": "content_block_delta", "index": index,
                "delta": {"type": "input_json_delta", "partial_json": piece}}));
        }
        push(json!({"type": "content_block_stop", "index": index}));
        index += 1;
    }
    let mut end = json!({"type": "message_delta",
        "delta": {"stop_reason": stop_reason(answer), "stop_sequence": null}});
    if let Some(u) = answer.usage {
        end["usage"] = json!({"output_tokens": u.output});
    }
    push(end);
    push(json!({"type": "message_stop"}));
    out
}

/// An error body.
pub fn error(kind: &str, message: &str) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": message}})
}
