//! The HTTP side of the stand-in: routes, the key check, rules to answers, streams with their delays and breaks.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::answer::Answer;
use super::conversation::Conversation;
use super::log::{End, Log, Logged};
use super::script::{Captures, Reply, Script, Usage};
use super::{anthropic, openai};

struct Server {
    script: Script,
    used: Vec<AtomicU32>,
    log: Arc<Log>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Messages,
    CountTokens,
    Chat,
    Responses,
    Models,
}

impl Shape {
    fn of(method: &str, path: &str) -> Option<Self> {
        match (method, path) {
            ("POST", "/v1/messages") => Some(Self::Messages),
            ("POST", "/v1/messages/count_tokens") => Some(Self::CountTokens),
            ("POST", "/v1/chat/completions") => Some(Self::Chat),
            ("POST", "/v1/responses") => Some(Self::Responses),
            ("GET", "/v1/models") => Some(Self::Models),
            _ => None,
        }
    }

    fn error(self, kind: &str, message: &str) -> Value {
        match self {
            Self::Chat | Self::Responses => openai::error(kind, message),
            Self::Messages | Self::CountTokens | Self::Models => anthropic::error(kind, message),
        }
    }
}

/// The service for a script.
pub fn router(script: Script, log: Arc<Log>) -> Router {
    let used = script.rules.iter().map(|_| AtomicU32::new(0)).collect();
    Router::new()
        .fallback(handle)
        .with_state(Arc::new(Server { script, used, log }))
}

/// What was decided about a request before it is logged.
struct Decided<'a> {
    status: StatusCode,
    rule: Option<String>,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Json(Value),
    Reply(&'a Reply, Captures),
}

impl Decided<'_> {
    fn json(status: StatusCode, value: Value) -> Self {
        Self {
            status,
            rule: None,
            kind: Kind::Json(value),
        }
    }
}

async fn handle(
    State(server): State<Arc<Server>>,
    request: Request,
) -> Result<Response, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts
        .uri
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) => return Ok((StatusCode::BAD_REQUEST, e.to_string()).into_response()),
    };
    let json: Option<Value> = serde_json::from_slice(&bytes).ok();
    let shape = Shape::of(parts.method.as_str(), parts.uri.path());
    let conv = json.as_ref().map(Conversation::read).unwrap_or_default();
    let decided = server.decide(
        shape,
        &path,
        &parts.headers,
        json.is_some(),
        &conv,
        bytes.len(),
    );
    let number = server.log.request(Logged {
        number: 0,
        method: parts.method.to_string(),
        path,
        headers: header_map(&parts.headers),
        body: json.unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned().into()),
        rule: decided.rule.clone(),
        status: decided.status.as_u16(),
        end: None,
    });
    let guard = EndGuard {
        log: server.log.clone(),
        number,
    };
    match decided.kind {
        Kind::Json(value) => Ok(whole(
            decided.status,
            "application/json",
            value.to_string(),
            guard,
        )),
        Kind::Reply(reply, captures) => {
            let shape = shape.expect("a rule is only looked up for a known shape");
            Ok(respond(
                shape,
                reply,
                &captures,
                &conv,
                decided.status,
                bytes.len(),
                guard,
            )
            .await)
        }
    }
}

impl Server {
    fn decide(
        &self,
        shape: Option<Shape>,
        path: &str,
        headers: &HeaderMap,
        is_json: bool,
        conv: &Conversation,
        size: usize,
    ) -> Decided<'_> {
        let Some(shape) = shape else {
            let text = format!("the stand-in has no {path}");
            return Decided::json(
                StatusCode::NOT_FOUND,
                anthropic::error("not_found_error", &text),
            );
        };
        let given = headers
            .get("x-api-key")
            .and_then(|v| v.to_str().ok())
            .or_else(|| {
                headers
                    .get(header::AUTHORIZATION)
                    .and_then(|v| v.to_str().ok())
                    .and_then(|v| v.strip_prefix("Bearer "))
            });
        if let Some(key) = &self.script.require_key
            && given != Some(key)
        {
            return Decided::json(
                StatusCode::UNAUTHORIZED,
                shape.error(
                    "authentication_error",
                    "the stand-in was asked without its key",
                ),
            );
        }
        if shape == Shape::Models {
            let data: Vec<Value> = self
                .script
                .models
                .iter()
                .map(|id| json!({"id": id, "type": "model", "object": "model"}))
                .collect();
            return Decided::json(
                StatusCode::OK,
                json!({"object": "list", "data": data, "has_more": false}),
            );
        }
        if !is_json {
            return Decided::json(
                StatusCode::BAD_REQUEST,
                shape.error("invalid_request_error", "the body is not JSON"),
            );
        }
        if shape == Shape::CountTokens {
            return Decided::json(StatusCode::OK, json!({"input_tokens": size.div_ceil(4)}));
        }
        let header = |name: &str| {
            headers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned)
        };
        for (rule, used) in self.script.rules.iter().zip(&self.used) {
            let Some(captures) = rule.matches(path, header, conv) else {
                continue;
            };
            if let Some(times) = rule.times {
                // One thread answers, so the count can't be overtaken between these two lines.
                if used.load(Ordering::Relaxed) >= times {
                    continue;
                }
                used.fetch_add(1, Ordering::Relaxed);
            }
            let default = if rule.reply.error.is_some() { 500 } else { 200 };
            let status = rule.reply.status.unwrap_or(default);
            return Decided {
                status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                rule: Some(rule.name.clone()),
                kind: Kind::Reply(&rule.reply, captures),
            };
        }
        let asked = conv.tool_result.as_ref().unwrap_or(&conv.last_user);
        let start: String = asked.chars().take(300).collect();
        let text = format!(
            "no rule of the stand-in's script matches turn {}: {start:?}",
            conv.assistant_turns
        );
        Decided::json(
            StatusCode::INTERNAL_SERVER_ERROR,
            shape.error("api_error", &text),
        )
    }
}

async fn respond(
    shape: Shape,
    reply: &Reply,
    captures: &Captures,
    conv: &Conversation,
    status: StatusCode,
    size: usize,
    guard: EndGuard,
) -> Response {
    if reply.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(reply.delay_ms)).await;
    }
    if let Some(kind) = &reply.error {
        let text = captures.fill(reply.text.as_deref().unwrap_or("the script says so"));
        return whole(
            status,
            "application/json",
            shape.error(kind, &text).to_string(),
            guard,
        );
    }
    if let Some(raw) = &reply.raw {
        let content_type = reply.content_type.as_deref().unwrap_or("application/json");
        return whole(status, content_type, captures.fill(raw), guard);
    }
    let answer = make_answer(reply, captures, conv, size, guard.number);
    if conv.stream {
        let events = match shape {
            Shape::Chat => openai::chat_events(&answer, conv.include_usage),
            Shape::Responses => openai::response_events(&answer),
            Shape::Messages | Shape::CountTokens | Shape::Models => anthropic::events(&answer),
        };
        return streamed(status, events, reply, guard);
    }
    let body = match shape {
        Shape::Chat => openai::chat(&answer),
        Shape::Responses => openai::response(&answer),
        Shape::Messages | Shape::CountTokens | Shape::Models => anthropic::message(&answer),
    };
    whole(status, "application/json", body.to_string(), guard)
}

fn make_answer(
    reply: &Reply,
    captures: &Captures,
    conv: &Conversation,
    size: usize,
    number: u64,
) -> Answer {
    let mut text = captures
        .fill(reply.text.as_deref().unwrap_or_default())
        .repeat(reply.repeat.max(1));
    let tools: Vec<(String, Value)> = reply
        .tools
        .iter()
        .map(|t| {
            let input = captures.fill_value(&t.input);
            (
                captures.fill(&t.name),
                if input.is_null() { json!({}) } else { input },
            )
        })
        .collect();
    // As a real model does, stay within the limit: four characters count as a token.
    let mut hit_limit = false;
    if !reply.ignore_limit
        && let Some(limit) = conv.max_tokens
        && let Some((cut, _)) = text
            .char_indices()
            .nth(usize::try_from(limit.saturating_mul(4)).unwrap_or(usize::MAX))
    {
        text.truncate(cut);
        hit_limit = true;
    }
    let written = text.len()
        + tools
            .iter()
            .map(|(n, v)| n.len() + v.to_string().len())
            .sum::<usize>();
    let computed = Usage {
        input: size.div_ceil(4) as u64,
        output: written.div_ceil(4) as u64,
        ..Usage::default()
    };
    let mut usage = reply.usage.unwrap_or(computed);
    if let (Some(limit), false) = (conv.max_tokens, reply.ignore_limit) {
        usage.output = usage.output.min(limit);
    }
    let usage = (!reply.omit_usage).then_some(usage);
    Answer {
        number,
        model: conv.model.clone(),
        text,
        tools,
        namespaces: conv.namespaces.clone(),
        usage,
        hit_limit,
        chunk_chars: reply.chunk_chars,
    }
}

/// Notes the end of an answer: `Aborted` unless somebody said otherwise before it was dropped.
struct EndGuard {
    log: Arc<Log>,
    number: u64,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.log.end(self.number, End::Aborted);
    }
}

fn whole(status: StatusCode, content_type: &str, body: String, guard: EndGuard) -> Response {
    guard.log.end(guard.number, End::Complete);
    (
        status,
        [(header::CONTENT_TYPE, content_type.to_owned())],
        body,
    )
        .into_response()
}

fn streamed(status: StatusCode, events: Vec<String>, reply: &Reply, guard: EndGuard) -> Response {
    let delay = Duration::from_millis(reply.event_delay_ms);
    let (truncate_after, hang) = (reply.truncate_after, reply.hang);
    let total = events.len();
    let state = (events.into_iter().enumerate(), guard);
    let body = stream::unfold(Some(state), move |state| async move {
        let (mut events, guard) = state?;
        let Some((i, event)) = events.next() else {
            guard.log.end(guard.number, End::Complete);
            return None;
        };
        if truncate_after == Some(i) {
            // The connection writes out what it has while the body is not ready.
            tokio::task::yield_now().await;
            guard.log.end(guard.number, End::Truncated);
            return Some((
                Err(io::Error::other("the script breaks the stream here")),
                None,
            ));
        }
        if hang && i + 2 >= total {
            std::future::pending::<()>().await;
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Some((
            Ok::<_, io::Error>(Bytes::from(event)),
            Some((events, guard)),
        ))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (status, headers, Body::from_stream(body)).into_response()
}

fn header_map(headers: &HeaderMap) -> std::collections::BTreeMap<String, String> {
    headers
        .keys()
        .map(|name| {
            let values: Vec<_> = headers
                .get_all(name)
                .iter()
                .map(|v| String::from_utf8_lossy(v.as_bytes()))
                .collect();
            (name.as_str().to_owned(), values.join(", "))
        })
        .collect()
}
