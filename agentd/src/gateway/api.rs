//! The calls the gateway offers, and the shape in which each provider reports an error.
//!
//! Pure. A path that isn't listed here does not exist for an agent: files, batches, and whatever else a key could do
//! stay out of its reach.

use std::fmt;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// Who serves the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Anthropic Messages.
    Anthropic,
    /// OpenAI chat completions and responses, and servers that speak them.
    OpenAi,
}

impl Provider {
    /// Its name in configuration and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::OpenAi => "openai",
        }
    }

    pub(super) fn default_base_url(self) -> &'static str {
        match self {
            Self::Anthropic => "https://api.anthropic.com",
            Self::OpenAi => "https://api.openai.com",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call the gateway offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Messages,
    CountTokens,
    Chat,
    Responses,
    Models(Provider),
}

impl Call {
    /// The call behind a method and path; an error names the status to answer with.
    pub fn of(method: &Method, path: &str, speaks_anthropic: bool) -> Result<Self, StatusCode> {
        let (want, call) = match path {
            "/v1/messages" => (Method::POST, Self::Messages),
            "/v1/messages/count_tokens" => (Method::POST, Self::CountTokens),
            "/v1/chat/completions" => (Method::POST, Self::Chat),
            "/v1/responses" => (Method::POST, Self::Responses),
            "/v1/models" if speaks_anthropic => (Method::GET, Self::Models(Provider::Anthropic)),
            "/v1/models" => (Method::GET, Self::Models(Provider::OpenAi)),
            _ => return Err(StatusCode::NOT_FOUND),
        };
        if method == want {
            Ok(call)
        } else {
            Err(StatusCode::METHOD_NOT_ALLOWED)
        }
    }

    pub fn path(self) -> &'static str {
        match self {
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Models(_) => "/v1/models",
        }
    }

    pub fn provider(self) -> Provider {
        match self {
            Self::Messages | Self::CountTokens => Provider::Anthropic,
            Self::Chat | Self::Responses => Provider::OpenAi,
            Self::Models(provider) => provider,
        }
    }

    /// Whether it makes a model write, so costs tokens.
    pub fn is_metered(self) -> bool {
        matches!(self, Self::Messages | Self::Chat | Self::Responses)
    }
}

/// The body of an error in the provider's shape.
pub(super) fn error_body(provider: Provider, status: StatusCode, message: &str) -> Value {
    let kind = match status.as_u16() {
        400 | 405 | 413 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        429 => "rate_limit_error",
        _ => "api_error",
    };
    match provider {
        Provider::Anthropic => {
            json!({"type": "error", "error": {"type": kind, "message": message}})
        }
        Provider::OpenAi => {
            json!({"error": {"type": kind, "message": message, "param": null, "code": null}})
        }
    }
}

/// The event that ends a stream with an error, in the shape the call's clients understand.
pub(super) fn error_event(call: Call, status: StatusCode, message: &str) -> Bytes {
    let body = error_body(call.provider(), status, message);
    let text = match call {
        Call::Chat => format!("data: {body}\n\n"),
        Call::Responses => {
            let event = json!({"type": "error", "code": body["error"]["type"], "message": message, "param": null});
            format!("event: error\ndata: {event}\n\n")
        }
        Call::Messages | Call::CountTokens | Call::Models(_) => {
            format!("event: error\ndata: {body}\n\n")
        }
    };
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listed_calls_exist() {
        assert_eq!(
            Call::of(&Method::POST, "/v1/messages", true),
            Ok(Call::Messages)
        );
        assert_eq!(
            Call::of(&Method::GET, "/v1/models", false),
            Ok(Call::Models(Provider::OpenAi))
        );
        assert_eq!(
            Call::of(&Method::GET, "/v1/messages", true),
            Err(StatusCode::METHOD_NOT_ALLOWED)
        );
        for path in [
            "/v1/files",
            "/v1/messages/batches",
            "/v1/messages/",
            "//v1/messages",
            "/v1/organizations",
            "/",
        ] {
            assert_eq!(
                Call::of(&Method::POST, path, true),
                Err(StatusCode::NOT_FOUND),
                "{path}"
            );
        }
    }

    #[test]
    fn each_stream_ends_with_an_event_its_client_knows() {
        let event = |call| {
            String::from_utf8(error_event(call, StatusCode::FORBIDDEN, "no").to_vec()).unwrap()
        };
        assert!(event(Call::Messages).starts_with(
            "event: error\ndata: {\"error\":{\"message\":\"no\",\"type\":\"permission_error\"}"
        ));
        assert!(event(Call::Chat).starts_with("data: {\"error\""));
        assert!(event(Call::Responses).contains("\"type\":\"error\""));
    }
}
