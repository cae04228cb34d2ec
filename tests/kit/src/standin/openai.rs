//! Answers in the shapes of the OpenAI chat-completions and responses APIs
//! (<https://platform.openai.com/docs/api-reference/chat>, <https://platform.openai.com/docs/api-reference/responses>).

use serde_json::{Value, json};

use super::answer::{Answer, sse};
use super::script::Usage;

fn chat_usage(u: Usage) -> Value {
    let prompt = u.input + u.cache_read + u.cache_write;
    json!({"prompt_tokens": prompt, "completion_tokens": u.output, "total_tokens": prompt + u.output,
        "prompt_tokens_details": {"cached_tokens": u.cache_read}})
}

fn response_usage(u: Usage) -> Value {
    let input = u.input + u.cache_read + u.cache_write;
    json!({"input_tokens": input, "input_tokens_details": {"cached_tokens": u.cache_read},
        "output_tokens": u.output, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": input + u.output})
}

fn finish_reason(answer: &Answer) -> &'static str {
    match (answer.hit_limit, answer.tools.is_empty()) {
        (true, _) => "length",
        (false, true) => "stop",
        (false, false) => "tool_calls",
    }
}

fn chat_tool(answer: &Answer, i: usize, name: &str, arguments: &str) -> Value {
    json!({"id": answer.tool_id("call_", i), "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// A whole chat completion.
pub fn chat(answer: &Answer) -> Value {
    let mut message = json!({"role": "assistant", "content": answer.text});
    if !answer.tools.is_empty() {
        let calls = answer.tools.iter().enumerate();
        message["tool_calls"] = calls
            .map(|(i, (n, v))| chat_tool(answer, i, n, &v.to_string()))
            .collect();
    }
    let mut out = json!({"id": format!("chatcmpl-standin-{}", answer.number), "object": "chat.completion",
        "created": 0, "model": answer.model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason(answer)}]});
    if let Some(u) = answer.usage {
        out["usage"] = chat_usage(u);
    }
    out
}

/// The same completion as the events of a stream; usage only where the request asked for it.
pub fn chat_events(answer: &Answer, include_usage: bool) -> Vec<String> {
    let chunk = |choices: Value| {
        json!({"id": format!("chatcmpl-standin-{}", answer.number), "object": "chat.completion.chunk",
            "created": 0, "model": answer.model, "choices": choices})
    };
    let delta = |delta: Value| chunk(json!([{"index": 0, "delta": delta, "finish_reason": null}]));
    let mut out = vec![delta(json!({"role": "assistant", "content": ""}))];
    out.extend(
        answer
            .chunks(&answer.text)
            .into_iter()
            .map(|piece| delta(json!({"content": piece}))),
    );
    for (i, (name, input)) in answer.tools.iter().enumerate() {
        let mut head = chat_tool(answer, i, name, "");
        head["index"] = i.into();
        out.push(delta(json!({"tool_calls": [head]})));
        for piece in answer.chunks(&input.to_string()) {
            out.push(delta(
                json!({"tool_calls": [{"index": i, "function": {"arguments": piece}}]}),
            ));
        }
    }
    out.push(chunk(
        json!([{"index": 0, "delta": {}, "finish_reason": finish_reason(answer)}]),
    ));
    if let (true, Some(u)) = (include_usage, answer.usage) {
        let mut last = chunk(json!([]));
        last["usage"] = chat_usage(u);
        out.push(last);
    }
    let mut events: Vec<String> = out.iter().map(|v| sse(None, v)).collect();
    events.push("data: [DONE]\n\n".into());
    events
}

fn output_items(answer: &Answer) -> Vec<Value> {
    let mut items = Vec::new();
    if !answer.text.is_empty() {
        items.push(json!({"type": "message", "id": answer.tool_id("msg_", 99), "role": "assistant",
            "status": "completed", "content": [{"type": "output_text", "text": answer.text, "annotations": []}]}));
    }
    items.extend(
        answer
            .tools
            .iter()
            .enumerate()
            .map(|(i, (name, input))| call_item(answer, i, name, input)),
    );
    items
}

/// A call of a tool: into a namespace if its name begins with one that was offered; a custom tool's if its input is
/// plain text; the search for tools, which is a call of its own kind.
fn call_item(answer: &Answer, i: usize, name: &str, input: &Value) -> Value {
    let call_id = answer.tool_id("call_", i);
    if name == "tool_search" {
        return json!({"type": "tool_search_call", "id": answer.tool_id("tsc_", i), "status": "completed",
            "call_id": call_id, "execution": "client", "arguments": input});
    }
    if let Some(text) = input.as_str() {
        return json!({"type": "custom_tool_call", "id": answer.tool_id("ctc_", i), "status": "completed",
            "call_id": call_id, "name": name, "input": text});
    }
    let mut item = json!({"type": "function_call", "id": answer.tool_id("fc_", i), "status": "completed",
        "call_id": call_id, "name": name, "arguments": input.to_string()});
    let inside = answer.namespaces.iter().find_map(|namespace| {
        let tool = name.strip_prefix(namespace.as_str())?.strip_prefix("__")?;
        Some((namespace, tool))
    });
    if let Some((namespace, tool)) = inside {
        item["namespace"] = json!(namespace);
        item["name"] = json!(tool);
    }
    item
}

fn response_body(answer: &Answer, status: &str) -> Value {
    json!({"id": format!("resp_standin_{}", answer.number), "object": "response", "created_at": 0,
        "status": status, "model": answer.model, "output": []})
}

/// A whole response.
pub fn response(answer: &Answer) -> Value {
    let mut out = response_body(
        answer,
        if answer.hit_limit {
            "incomplete"
        } else {
            "completed"
        },
    );
    out["output"] = output_items(answer).into();
    if answer.hit_limit {
        out["incomplete_details"] = json!({"reason": "max_output_tokens"});
    }
    if let Some(u) = answer.usage {
        out["usage"] = response_usage(u);
    }
    out
}

/// The same response as the events of a stream.
pub fn response_events(answer: &Answer) -> Vec<String> {
    let mut out = Vec::new();
    let mut push = |mut data: Value| {
        data["sequence_number"] = out.len().into();
        let event = data["type"]
            .as_str()
            .expect("each event has a type")
            .to_owned();
        out.push(sse(Some(&event), &data));
    };
    push(json!({"type": "response.created", "response": response_body(answer, "in_progress")}));
    for (index, item) in output_items(answer).into_iter().enumerate() {
        let mut opened = item.clone();
        opened["status"] = "in_progress".into();
        let id = item["id"].clone();
        if item["type"] == "message" {
            opened["content"] = json!([]);
            push(
                json!({"type": "response.output_item.added", "output_index": index, "item": opened}),
            );
            for piece in answer.chunks(&answer.text) {
                push(
                    json!({"type": "response.output_text.delta", "item_id": id, "output_index": index,
                    "content_index": 0, "delta": piece}),
                );
            }
            push(
                json!({"type": "response.output_text.done", "item_id": id, "output_index": index,
                "content_index": 0, "text": answer.text}),
            );
        } else if item["type"] == "custom_tool_call" {
            opened["input"] = "".into();
            push(
                json!({"type": "response.output_item.added", "output_index": index, "item": opened}),
            );
            let input = item["input"].as_str().unwrap_or_default().to_owned();
            for piece in answer.chunks(&input) {
                push(
                    json!({"type": "response.custom_tool_call_input.delta", "item_id": id,
                    "output_index": index, "delta": piece}),
                );
            }
            push(
                json!({"type": "response.custom_tool_call_input.done", "item_id": id,
                "output_index": index, "input": input}),
            );
        } else if item["type"] == "tool_search_call" {
            push(
                json!({"type": "response.output_item.added", "output_index": index, "item": opened}),
            );
        } else {
            opened["arguments"] = "".into();
            push(
                json!({"type": "response.output_item.added", "output_index": index, "item": opened}),
            );
            let arguments = item["arguments"].as_str().unwrap_or_default().to_owned();
            for piece in answer.chunks(&arguments) {
                push(
                    json!({"type": "response.function_call_arguments.delta", "item_id": id,
                    "output_index": index, "delta": piece}),
                );
            }
            push(
                json!({"type": "response.function_call_arguments.done", "item_id": id,
                "output_index": index, "arguments": arguments}),
            );
        }
        push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
    }
    let end = if answer.hit_limit {
        "response.incomplete"
    } else {
        "response.completed"
    };
    push(json!({"type": end, "response": response(answer)}));
    out
}

/// An error body.
pub fn error(kind: &str, message: &str) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": null}})
}
