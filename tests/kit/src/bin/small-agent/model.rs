//! Asks the model (Anthropic Messages) and puts its answer together, streamed or whole.

use std::io::{BufRead, Read};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::http;

/// How often a request is tried when the provider says that it may pass.
const TRIES: u32 = 4;

/// Where the model is.
pub struct Model {
    authority: String,
    path: String,
    key: String,
}

/// One answer of the model.
#[derive(Debug, Default)]
pub struct Answer {
    /// Its content blocks.
    pub content: Vec<Value>,
    /// Why it ended.
    pub stop_reason: String,
    /// Tokens it has, as the provider counts.
    pub output_tokens: u64,
}

impl Answer {
    /// All its text.
    pub fn text(&self) -> String {
        self.content
            .iter()
            .filter_map(|b| b["text"].as_str())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Model {
    /// Reads `$ANTHROPIC_BASE_URL` and `$ANTHROPIC_API_KEY`.
    pub fn from_env() -> anyhow::Result<Self> {
        let base = std::env::var("ANTHROPIC_BASE_URL")
            .context("ANTHROPIC_BASE_URL is not set: where is the model?")?;
        let rest = base.strip_prefix("http://").with_context(|| {
            format!("ANTHROPIC_BASE_URL is {base:?}; only http:// (a gateway on loopback) works")
        })?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let authority = if authority.contains(':') {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        let path = path.trim_end_matches('/');
        let path = if path.is_empty() {
            "/v1/messages".to_owned()
        } else {
            format!("/{path}/v1/messages")
        };
        let key = std::env::var("ANTHROPIC_API_KEY").unwrap_or_default();
        Ok(Self {
            authority,
            path,
            key,
        })
    }

    /// Asks once, or again while the provider is only busy.
    pub fn ask(&self, request: &Value) -> anyhow::Result<Answer> {
        let body = request.to_string();
        let headers = [
            ("anthropic-version", "2023-06-01"),
            ("x-api-key", self.key.as_str()),
        ];
        for attempt in 1.. {
            let mut answer = http::post(&self.authority, &self.path, &headers, &body)?;
            if answer.status == 200 {
                let streamed = answer
                    .header("content-type")
                    .is_some_and(|t| t.starts_with("text/event-stream"));
                return if streamed {
                    read_stream(answer.body())
                } else {
                    read_whole(answer.body())
                };
            }
            let busy = matches!(answer.status, 429 | 500..)
                && answer.header("x-should-retry") != Some("false");
            if !busy || attempt == TRIES {
                let status = answer.status;
                let mut text = String::new();
                answer
                    .body()
                    .read_to_string(&mut text)
                    .context("the model's error cannot be read")?;
                let message = serde_json::from_str::<Value>(&text)
                    .ok()
                    .and_then(|v| v["error"]["message"].as_str().map(str::to_owned));
                bail!("the model answered {status}: {}", message.unwrap_or(text));
            }
            std::thread::sleep(Duration::from_millis(250 << attempt));
        }
        unreachable!("the last attempt returns")
    }
}

fn read_whole(body: &mut impl Read) -> anyhow::Result<Answer> {
    let value: Value = serde_json::from_reader(body).context("the model's answer is malformed")?;
    let content = value["content"]
        .as_array()
        .context("the model's answer has no content")?
        .clone();
    Ok(Answer {
        content,
        stop_reason: value["stop_reason"].as_str().unwrap_or_default().to_owned(),
        output_tokens: value["usage"]["output_tokens"].as_u64().unwrap_or(0),
    })
}

fn read_stream(body: &mut impl BufRead) -> anyhow::Result<Answer> {
    let mut answer = Answer::default();
    // Arguments of tools come as pieces of JSON text, one text for each block.
    let mut arguments: Vec<String> = Vec::new();
    for line in body.lines() {
        let line = line.context("the model's stream broke off")?;
        let Some(data) = line.strip_prefix("data:") else {
            continue;
        };
        let event: Value = serde_json::from_str(data).context("the model's stream is malformed")?;
        let index = usize::try_from(event["index"].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
        match event["type"].as_str() {
            Some("content_block_start") => {
                if index != answer.content.len() {
                    bail!("the model's stream is malformed: block {index} comes out of order");
                }
                answer.content.push(event["content_block"].clone());
                arguments.push(String::new());
            }
            Some("content_block_delta") => {
                let block = answer
                    .content
                    .get_mut(index)
                    .context("the model's stream is malformed: no such block")?;
                let delta = &event["delta"];
                if let Some(piece) = delta["partial_json"].as_str() {
                    arguments[index].push_str(piece);
                }
                for key in ["text", "thinking", "signature"] {
                    if let Some(piece) = delta[key].as_str() {
                        block[key] = json!(format!(
                            "{}{piece}",
                            block[key].as_str().unwrap_or_default()
                        ));
                    }
                }
            }
            Some("content_block_stop") => {
                let Some(block) = answer.content.get_mut(index) else {
                    continue;
                };
                if block["type"] == "tool_use" && !arguments[index].is_empty() {
                    block["input"] = serde_json::from_str(&arguments[index])
                        .context("the model called a tool with malformed arguments")?;
                }
            }
            Some("message_delta") => {
                if let Some(reason) = event["delta"]["stop_reason"].as_str() {
                    reason.clone_into(&mut answer.stop_reason);
                }
                answer.output_tokens = event["usage"]["output_tokens"]
                    .as_u64()
                    .unwrap_or(answer.output_tokens);
            }
            Some("message_stop") => return Ok(answer),
            Some("error") => {
                bail!(
                    "the model broke off: {}",
                    event["error"]["message"]
                        .as_str()
                        .unwrap_or("for no stated reason")
                )
            }
            _ => {}
        }
    }
    bail!("the model's stream ended before the answer did")
}
