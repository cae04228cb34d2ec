//! An agent's model request: checked against the policy, weighed, and rewritten where the daemon has a say.
//!
//! Pure. Only the top level is taken apart, and every value the daemon doesn't change goes on byte for byte: order
//! and spelling matter to prompt caches. What could make the provider act for the agent out of the policy's sight is
//! refused: tools the provider runs itself, remote MCP servers, content fetched from a URL, background answers.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::api::Call;
use super::weigh::{self, Weight};
use agentd_sandbox::ModelRules;

/// Output reserved for a request that sets no limit of its own.
const DEFAULT_OUTPUT: u64 = 32_000;

/// Why a request goes no further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefused {
    /// It is not a request of this API.
    #[error("{0}")]
    Malformed(String),
    /// The policy doesn't allow it.
    #[error("{text}")]
    NotAllowed {
        /// What was asked for, for the record: "model", "hosted tool".
        what: &'static str,
        /// Which one.
        target: String,
        /// The sentence for the agent.
        text: String,
    },
}

fn malformed(text: impl Into<String>) -> RequestRefused {
    RequestRefused::Malformed(text.into())
}

fn not_allowed(
    what: &'static str,
    target: impl Into<String>,
    text: impl Into<String>,
) -> RequestRefused {
    RequestRefused::NotAllowed {
        what,
        target: target.into(),
        text: text.into(),
    }
}

/// The top level of a JSON object, in order, values untouched.
#[derive(Debug)]
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields: Vec<(String, &'de RawValue)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                    // Two readers may pick different ones of two: the check here, the provider there.
                    if fields.iter().any(|(k, _)| *k == key) {
                        return Err(de::Error::custom(format_args!(
                            "the field {key:?} stands twice"
                        )));
                    }
                    fields.push((key, value));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor).map(Fields)
    }
}

/// A request that the policy allows.
#[derive(Debug)]
pub struct ModelRequest<'a> {
    call: Call,
    fields: Fields<'a>,
    /// The model asked for.
    pub model: String,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// About how many tokens the request has.
    pub input_estimate: u64,
    /// The most tokens the answer may have before the ceiling is asked: all alternatives together.
    pub output_wanted: u64,
    /// Whether a chat client asked for the usage event itself.
    pub shows_usage: bool,
    choices: u64,
    asked_limit: Option<u64>,
    thinking: u64,
    capped: bool,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
struct Thinking {
    budget_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Those of a namespace.
    tools: Option<Vec<Tool>>,
}

impl Tool {
    /// The first kind, here or below, that the agent's own side doesn't run.
    fn hosted(&self) -> Option<&str> {
        let own = |kind: &&str| !CLIENT_TOOLS.iter().any(|known| kind.starts_with(known));
        let below = || self.tools.iter().flatten().find_map(Self::hosted);
        self.kind.as_deref().filter(own).or_else(below)
    }
}

impl<'a> ModelRequest<'a> {
    /// Reads and checks the body of a metered call or of a token count.
    pub(super) fn check(
        call: Call,
        body: &'a [u8],
        rules: &ModelRules,
    ) -> Result<Self, RequestRefused> {
        let fields: Fields<'a> = serde_json::from_slice(body)
            .map_err(|e| malformed(format!("the request body is malformed: {e}")))?;
        let get = |key: &str| fields.get(key);
        let model: String =
            typed(&fields, "model")?.ok_or_else(|| malformed("model: field required"))?;
        if !rules.allows_model(&model) {
            let allowed = rules.models.join(", ");
            let text = match rules.refused_by(&model) {
                Some(refused) => refused.why,
                None => format!(
                    "the policy of this agent doesn't allow the model {model:?}; [model] models = [{allowed}]"
                ),
            };
            return Err(not_allowed("model", &model, text));
        }
        let conversation = if call == Call::Responses {
            "input"
        } else {
            "messages"
        };
        if get(conversation).is_none()
            && get("prompt").is_none()
            && get("previous_response_id").is_none()
        {
            return Err(malformed(format!("{conversation}: field required")));
        }
        check_hosted(&fields)?;
        let weight = weigh::weigh(body)
            .map_err(|e| malformed(format!("the request body is malformed: {e}")))?;
        if let Some(url) = &weight.remote_content {
            return Err(not_allowed(
                "remote content",
                url,
                format!(
                    "the provider would fetch {url:?}, past the policy's [net] rules; send the content itself"
                ),
            ));
        }
        let limits = limit_keys(call);
        let mut asked_limit = None;
        for key in limits {
            if let Some(limit) = typed::<u64>(&fields, key)? {
                asked_limit = Some(asked_limit.map_or(limit, |a: u64| a.min(limit)));
            }
        }
        if asked_limit == Some(0) || (call == Call::Messages && asked_limit.is_none()) {
            return Err(malformed("max_tokens: a number of at least 1 is required"));
        }
        let choices = if call == Call::Chat {
            typed::<u64>(&fields, "n")?.unwrap_or(1).max(1)
        } else {
            1
        };
        let per_choice = asked_limit
            .unwrap_or(DEFAULT_OUTPUT)
            .min(rules.max_tokens_per_request.unwrap_or(u64::MAX));
        let stream_options: Option<StreamOptions> = typed(&fields, "stream_options")?;
        let thinking: Option<Thinking> = typed(&fields, "thinking")?;
        Ok(Self {
            call,
            stream: typed(&fields, "stream")?.unwrap_or(false),
            input_estimate: input_tokens(&weight),
            output_wanted: per_choice.saturating_mul(choices),
            shows_usage: stream_options.is_some_and(|o| o.include_usage),
            choices,
            asked_limit,
            thinking: thinking.and_then(|t| t.budget_tokens).unwrap_or(0),
            capped: rules.max_tokens_total.is_some()
                || rules.max_tokens_per_request.is_some()
                || rules.max_cost_nano_usd.is_some(),
            fields,
            model,
        })
    }

    /// The body for the provider, when the answer may have `granted` tokens in all.
    pub fn render(&self, granted: u64) -> Result<Vec<u8>, RequestRefused> {
        let limit = (granted / self.choices).max(1);
        if self.thinking >= limit && self.asked_limit.is_some_and(|asked| asked > self.thinking) {
            return Err(not_allowed(
                "tokens",
                self.thinking.to_string(),
                format!(
                    "only {limit} tokens may be written under this agent's ceilings, too few for a thinking \
                     budget of {}; ask with less thinking, or raise limits.tokens or limits.cost",
                    self.thinking
                ),
            ));
        }
        let limits = limit_keys(self.call);
        let clamp = self.capped && self.asked_limit.is_none_or(|asked| asked > limit);
        let add_usage = self.call == Call::Chat && self.stream && !self.shows_usage;
        let mut out = Vec::from(b"{");
        for (key, value) in &self.fields.0 {
            if (clamp && limits.contains(&key.as_str())) || (add_usage && key == "stream_options") {
                continue;
            }
            push_field(&mut out, key, value.get());
        }
        if clamp && let Some(key) = self.limit_key() {
            push_field(&mut out, key, &limit.to_string());
        }
        if add_usage {
            push_field(&mut out, "stream_options", r#"{"include_usage":true}"#);
        }
        out.push(b'}');
        Ok(out)
    }

    /// Under which name the limit goes out: the client's own, or the API's newest.
    fn limit_key(&self) -> Option<&'static str> {
        let keys = limit_keys(self.call);
        keys.iter()
            .find(|k| self.fields.get(k).is_some())
            .or(keys.first())
            .copied()
    }
}

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&RawValue> {
        let (_, value) = self.0.iter().find(|(k, _)| k == key)?;
        (value.get() != "null").then_some(*value)
    }
}

fn typed<T: de::DeserializeOwned>(
    fields: &Fields<'_>,
    key: &str,
) -> Result<Option<T>, RequestRefused> {
    let parse = |raw: &RawValue| {
        serde_json::from_str(raw.get()).map_err(|e| malformed(format!("{key}: {e}")))
    };
    fields.get(key).map(parse).transpose()
}

fn push_field(out: &mut Vec<u8>, key: &str, value: &str) {
    if out.len() > 1 {
        out.push(b',');
    }
    out.extend_from_slice(serde_json::Value::from(key).to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(value.as_bytes());
}

fn limit_keys(call: Call) -> &'static [&'static str] {
    match call {
        Call::Messages => &["max_tokens"],
        Call::Chat => &["max_completion_tokens", "max_tokens"],
        Call::Responses => &["max_output_tokens"],
        Call::CountTokens | Call::Models(_) => &[],
    }
}

/// A picture or document weighs about this many tokens, whatever its size in base64.
const TOKENS_PER_BLOB: u64 = 1_600;
/// Text weighs about a token per this many bytes; a little low, so that the estimate is a little high.
const BYTES_PER_INPUT_TOKEN: u64 = 3;

fn input_tokens(weight: &Weight) -> u64 {
    weight.text_bytes.div_ceil(BYTES_PER_INPUT_TOKEN) + weight.blobs * TOKENS_PER_BLOB
}

/// Kinds of tools that the agent's own side runs: the answer names the call, and nothing happens until the agent acts.
const CLIENT_TOOLS: [&str; 11] = [
    "custom",
    "function",
    "computer",
    "bash_",
    "text_editor_",
    "memory_",
    "tool_search",
    "local_shell",
    "apply_patch",
    "shell",
    "namespace",
];

/// Refuses what the provider would run or reach by itself.
fn check_hosted(fields: &Fields<'_>) -> Result<(), RequestRefused> {
    let hosted = |target: &str| {
        not_allowed(
            "hosted tool",
            target,
            format!(
                "{target:?} would run at the provider, where this agent's policy can't see or stop it; use tools that \
                 the agent runs itself"
            ),
        )
    };
    let tools: Vec<Tool> = typed(fields, "tools")?.unwrap_or_default();
    if let Some(kind) = tools.iter().find_map(Tool::hosted) {
        return Err(hosted(kind));
    }
    for key in ["mcp_servers", "web_search_options", "container"] {
        if fields
            .get(key)
            .is_some_and(|v| !matches!(v.get(), "[]" | "{}"))
        {
            return Err(hosted(key));
        }
    }
    if fields.get("background").is_some_and(|v| v.get() == "true") {
        return Err(not_allowed(
            "background answer",
            "background",
            "a background answer can't be metered; ask with background = false",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn rules() -> ModelRules {
        ModelRules {
            enabled: true,
            max_tokens_total: Some(1000),
            ..ModelRules::default()
        }
    }

    fn check(call: Call, body: &str) -> Result<ModelRequest<'_>, RequestRefused> {
        ModelRequest::check(call, body.as_bytes(), &rules())
    }

    #[test]
    fn untouched_values_go_on_byte_for_byte_and_in_order() {
        let body = r#"{"model":"m", "z" : {"b":1.0e2,"a":[ 1 ]},"messages":[],"max_tokens":50,"a":"\u00e9"}"#;
        let out = check(Call::Messages, body).unwrap().render(20).unwrap();
        let want =
            r#"{"model":"m","z":{"b":1.0e2,"a":[ 1 ]},"messages":[],"a":"\u00e9","max_tokens":20}"#;
        assert_eq!(String::from_utf8(out).unwrap(), want);
        let out = check(Call::Messages, body).unwrap().render(50).unwrap();
        assert!(
            String::from_utf8(out)
                .unwrap()
                .contains(r#""max_tokens":50,"a""#)
        );
    }

    #[test]
    fn chat_streams_ask_for_usage_and_keep_the_clients_name_of_the_limit() {
        let body = r#"{"model":"m","messages":[],"stream":true,"max_tokens":500,"n":2}"#;
        let request = check(Call::Chat, body).unwrap();
        assert_eq!((request.output_wanted, request.shows_usage), (1000, false));
        let out: Value = serde_json::from_slice(&request.render(100).unwrap()).unwrap();
        assert_eq!(
            (&out["max_tokens"], &out["stream_options"]["include_usage"]),
            (&json!(50), &json!(true))
        );
        let unlimited = r#"{"model":"m","input":"x"}"#;
        let out: Value = serde_json::from_slice(
            &check(Call::Responses, unlimited)
                .unwrap()
                .render(77)
                .unwrap(),
        )
        .unwrap();
        assert_eq!(out["max_output_tokens"], 77);
    }

    #[test]
    fn the_policys_limit_per_request_holds_without_a_ceiling() {
        let rules = ModelRules {
            enabled: true,
            max_tokens_per_request: Some(10),
            ..ModelRules::default()
        };
        let body = br#"{"model":"m","messages":[],"max_tokens":50}"#;
        let request = ModelRequest::check(Call::Messages, body, &rules).unwrap();
        assert_eq!(request.output_wanted, 10);
        let out: Value = serde_json::from_slice(&request.render(10).unwrap()).unwrap();
        assert_eq!(out["max_tokens"], 10);
    }

    #[test]
    fn malformed_requests_are_refused_with_the_field() {
        for (body, needle) in [
            ("", "malformed"),
            ("[]", "JSON object"),
            ("{\"model\":\"m\",", "malformed"),
            (
                "{\"messages\":[],\"max_tokens\":1}",
                "model: field required",
            ),
            ("{\"model\":3,\"messages\":[],\"max_tokens\":1}", "model: "),
            (
                "{\"model\":\"m\",\"max_tokens\":1}",
                "messages: field required",
            ),
            ("{\"model\":\"m\",\"messages\":[]}", "max_tokens"),
            (
                "{\"model\":\"m\",\"messages\":[],\"max_tokens\":-1}",
                "max_tokens",
            ),
            (
                "{\"model\":\"m\",\"messages\":[],\"max_tokens\":0}",
                "max_tokens",
            ),
            (
                "{\"model\":\"m\",\"model\":\"n\",\"messages\":[],\"max_tokens\":1}",
                "stands twice",
            ),
            (
                "{\"model\":\"m\",\"messages\":[],\"max_tokens\":1,\"\\u006dax_tokens\":9}",
                "stands twice",
            ),
        ] {
            match check(Call::Messages, body).unwrap_err() {
                RequestRefused::Malformed(text) => assert!(text.contains(needle), "{body}: {text}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_the_provider_would_run_or_fetch_is_refused_by_name() {
        for (call, field, what, target) in [
            (
                Call::Messages,
                r#""tools":[{"name":"x"},{"type":"web_search_20250305","name":"w"}]"#,
                "hosted tool",
                "web_search_20250305",
            ),
            (
                Call::Messages,
                r#""tools":[{"type":"code_execution_20250825","name":"w"}]"#,
                "hosted tool",
                "code_execution_20250825",
            ),
            (
                Call::Messages,
                r#""mcp_servers":[{"url":"https://x"}]"#,
                "hosted tool",
                "mcp_servers",
            ),
            (
                Call::Responses,
                r#""tools":[{"type":"mcp","server_url":"https://x"}]"#,
                "hosted tool",
                "mcp",
            ),
            (
                Call::Responses,
                r#""tools":[{"type":"namespace","name":"n","tools":[{"type":"function","name":"f"},{"type":"web_search"}]}]"#,
                "hosted tool",
                "web_search",
            ),
            (
                Call::Responses,
                r#""input":"a","background":true"#,
                "background answer",
                "background",
            ),
            (
                Call::Chat,
                r#""web_search_options":{"a":1}"#,
                "hosted tool",
                "web_search_options",
            ),
            (
                Call::Messages,
                r#""system":[{"type":"image","source":{"type":"url","url":"https://e.org/?secret"}}]"#,
                "remote content",
                "https://e.org/?secret",
            ),
        ] {
            let rest = if call == Call::Responses {
                "\"prompt\":{}"
            } else {
                "\"messages\":[]"
            };
            let body = format!(r#"{{"model":"m","max_tokens":1,{rest},{field}}}"#);
            match check(call, &body).unwrap_err() {
                RequestRefused::NotAllowed {
                    what: w, target: t, ..
                } => assert_eq!((w, t.as_str()), (what, target)),
                other => panic!("{body}: {other:?}"),
            }
        }
        let fine = r#"{"model":"m","messages":[],"max_tokens":1,"mcp_servers":[],"tools":[{"type":"bash_20250124","name":"bash"},{"type":"custom","name":"c"},{"name":"d"}]}"#;
        assert!(check(Call::Messages, fine).is_ok());
    }

    #[test]
    fn a_thinking_budget_that_no_longer_fits_is_refused_with_the_reason() {
        let body = r#"{"model":"m","messages":[],"max_tokens":900,"thinking":{"type":"enabled","budget_tokens":500}}"#;
        let request = check(Call::Messages, body).unwrap();
        assert!(request.render(501).is_ok());
        assert!(
            request
                .render(500)
                .unwrap_err()
                .to_string()
                .contains("thinking budget of 500")
        );
    }

    #[test]
    fn a_model_outside_the_policy_is_refused_with_the_list() {
        let rules = ModelRules {
            models: vec!["claude-*".into()],
            ..rules()
        };
        let body = br#"{"model":"gpt-9","messages":[],"max_tokens":1}"#;
        let refused = ModelRequest::check(Call::Messages, body, &rules).unwrap_err();
        assert!(refused.to_string().contains("[claude-*]"), "{refused}");
    }
}
