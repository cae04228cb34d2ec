//! Reads what an answer cost out of the answer itself, and estimates it where the provider didn't say.
//!
//! Pure: events or a whole body in, [`TokenCounts`] out. The provider's own figures win as soon as they are there;
//! until then the text that went by stands for them. A piece that isn't what the API documents is [`Malformed`];
//! fields and events that aren't known are passed over.

use serde_json::Value;

use super::api::Call;
use super::budget::TokenCounts;
use super::sse::SseEvent;

/// About how many bytes of text make a token.
const BYTES_PER_OUTPUT_TOKEN: u64 = 4;

/// What an event means for the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// More will come.
    More,
    /// Tokens for a client that didn't ask to see them: not to be relayed.
    Hidden,
    /// The last event: the counts are final.
    Last,
    /// The provider broke off with an error event.
    Failed,
}

/// The answer isn't what the provider's API documents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the provider's answer is malformed: {0}")]
pub struct Malformed(pub String);

/// The meter of one answer.
#[derive(Debug)]
pub struct Meter {
    call: Call,
    show_usage: bool,
    input: TokenCounts,
    input_known: bool,
    output: u64,
    output_known: bool,
    text: TextLength,
    finished: bool,
    /// The model's name as answered.
    pub model: Option<String>,
    /// The provider's id of the answer.
    pub id: Option<String>,
}

impl Meter {
    /// A meter for the answer to a request of about `input` tokens. With `show_usage` false, a chat stream's usage
    /// event is [`Step::Hidden`].
    pub(super) fn new(call: Call, input: u64, show_usage: bool) -> Self {
        Self {
            call,
            show_usage,
            input: TokenCounts {
                input,
                ..TokenCounts::default()
            },
            input_known: false,
            output: 0,
            output_known: false,
            text: TextLength::default(),
            finished: false,
            model: None,
            id: None,
        }
    }

    /// The best figures so far.
    pub fn counts(&self) -> TokenCounts {
        let estimate = self.text.tokens();
        let output = if self.output_known {
            self.output
        } else {
            self.output.max(estimate)
        };
        TokenCounts {
            output,
            ..self.input
        }
    }

    /// Whether any of the figures is an estimate.
    pub fn is_estimate(&self) -> bool {
        !(self.input_known && self.output_known)
    }

    /// Whether the answer said that it is complete, even if its stream's closing event never came.
    pub fn said_finished(&self) -> bool {
        self.finished
    }

    /// Takes in one event of a stream.
    pub fn event(&mut self, event: &SseEvent) -> Result<Step, Malformed> {
        if event.data.is_empty() {
            return Ok(Step::More);
        }
        if self.call == Call::Chat && event.data == "[DONE]" {
            return Ok(Step::Last);
        }
        let data: Value = serde_json::from_str(&event.data)
            .map_err(|e| Malformed(format!("event {:?} carries no JSON ({e})", event.name)))?;
        if !data.is_object() {
            return Err(Malformed(format!(
                "event {:?} carries no JSON object",
                event.name
            )));
        }
        match self.call {
            Call::Chat => Ok(self.chat_chunk(&data)),
            Call::Responses => Ok(self.response_event(&data)),
            Call::Messages | Call::CountTokens | Call::Models(_) => self.message_event(&data),
        }
    }

    /// Takes in a whole answer.
    pub fn whole(&mut self, body: &Value) -> Result<(), Malformed> {
        if !body.is_object() {
            return Err(Malformed("it is no JSON object".into()));
        }
        self.name(body);
        match self.call {
            Call::Chat => self.chat_usage(&body["usage"]),
            Call::Responses => self.response_usage(&body["usage"]),
            Call::Messages | Call::CountTokens | Call::Models(_) => {
                self.message_usage(&body["usage"], true)
            }
        }
        if !self.output_known {
            for part in [&body["content"], &body["choices"], &body["output"]] {
                self.text.add_all(part);
            }
        }
        self.finished = true;
        Ok(())
    }

    fn name(&mut self, body: &Value) {
        let take = |slot: &mut Option<String>, value: &Value| {
            if let (None, Some(text)) = (&slot, value.as_str()) {
                *slot = Some(text.chars().take(200).collect());
            }
        };
        take(&mut self.model, &body["model"]);
        take(&mut self.id, &body["id"]);
    }

    fn message_event(&mut self, data: &Value) -> Result<Step, Malformed> {
        match data["type"].as_str() {
            Some("message_start") => {
                self.name(&data["message"]);
                self.message_usage(&data["message"]["usage"], false);
            }
            Some("content_block_start") => {
                for key in ["text", "name"] {
                    self.text
                        .add(data["content_block"][key].as_str().unwrap_or_default());
                }
            }
            Some("content_block_delta") => {
                let Some(delta) = data["delta"].as_object() else {
                    return Err(Malformed("a content_block_delta has no delta".into()));
                };
                for key in ["text", "thinking", "partial_json"] {
                    if let Some(text) = delta.get(key).and_then(Value::as_str) {
                        self.text.add(text);
                    }
                }
            }
            Some("message_delta") => {
                self.message_usage(&data["usage"], true);
                self.finished |= data["delta"]["stop_reason"].is_string();
            }
            Some("message_stop") => return Ok(Step::Last),
            Some("error") => return Ok(Step::Failed),
            Some(_) => {}
            None => return Err(Malformed("an event has no type".into())),
        }
        Ok(Step::More)
    }

    fn message_usage(&mut self, usage: &Value, is_final: bool) {
        let figure = |key: &str| usage[key].as_u64();
        if let Some(input) = figure("input_tokens") {
            self.input.input = input;
            self.input_known = true;
        }
        if let Some(read) = figure("cache_read_input_tokens") {
            self.input.cache_read = read;
        }
        if let Some(write) = figure("cache_creation_input_tokens") {
            self.input.cache_write = write;
        }
        if let Some(output) = figure("output_tokens") {
            self.output = output;
            self.output_known = is_final;
        }
    }

    fn chat_chunk(&mut self, data: &Value) -> Step {
        if data["error"].is_object() {
            return Step::Failed;
        }
        self.name(data);
        let choices = data["choices"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        for choice in choices {
            let delta = &choice["delta"];
            for key in ["content", "reasoning_content", "reasoning", "refusal"] {
                self.text.add(delta[key].as_str().unwrap_or_default());
            }
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                self.text
                    .add(call["function"]["name"].as_str().unwrap_or_default());
                self.text
                    .add(call["function"]["arguments"].as_str().unwrap_or_default());
            }
            self.finished |= choice["finish_reason"].is_string();
        }
        if data["usage"].is_object() {
            self.chat_usage(&data["usage"]);
            if choices.is_empty() && !self.show_usage {
                return Step::Hidden;
            }
        }
        Step::More
    }

    fn chat_usage(&mut self, usage: &Value) {
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        self.openai_usage(
            usage["prompt_tokens"].as_u64(),
            cached,
            usage["completion_tokens"].as_u64(),
        );
    }

    fn response_event(&mut self, data: &Value) -> Step {
        let kind = data["type"].as_str().unwrap_or_default();
        self.name(&data["response"]);
        match kind {
            "response.completed" | "response.incomplete" => {
                self.response_usage(&data["response"]["usage"]);
                self.finished = true;
                return Step::Last;
            }
            "response.failed" => {
                self.response_usage(&data["response"]["usage"]);
                return Step::Failed;
            }
            "error" => return Step::Failed,
            _ if kind.ends_with(".delta") => {
                self.text.add(data["delta"].as_str().unwrap_or_default())
            }
            _ => {}
        }
        Step::More
    }

    fn response_usage(&mut self, usage: &Value) {
        let cached = usage["input_tokens_details"]["cached_tokens"].as_u64();
        self.openai_usage(
            usage["input_tokens"].as_u64(),
            cached,
            usage["output_tokens"].as_u64(),
        );
    }

    /// OpenAI counts cached tokens among the input, Anthropic beside it: here they are always beside it.
    fn openai_usage(&mut self, input: Option<u64>, cached: Option<u64>, output: Option<u64>) {
        if let Some(input) = input {
            let cached = cached.unwrap_or(0).min(input);
            self.input = TokenCounts {
                input: input - cached,
                cache_read: cached,
                ..TokenCounts::default()
            };
            self.input_known = true;
        }
        if let Some(output) = output {
            self.output = output;
            self.output_known = true;
        }
    }
}

/// The length of text for estimates. Runs of white space count as one byte, as tokenisers treat indentation.
#[derive(Debug, Default)]
struct TextLength {
    bytes: u64,
    in_space: bool,
}

impl TextLength {
    fn add(&mut self, text: &str) {
        for byte in text.bytes() {
            let space = byte.is_ascii_whitespace();
            if !(space && self.in_space) {
                self.bytes += 1;
            }
            self.in_space = space;
        }
    }

    /// Adds every string inside `value`.
    fn add_all(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.add(text),
            Value::Array(items) => items.iter().for_each(|v| self.add_all(v)),
            Value::Object(map) => map.values().for_each(|v| self.add_all(v)),
            _ => {}
        }
    }

    fn tokens(&self) -> u64 {
        self.bytes.div_ceil(BYTES_PER_OUTPUT_TOKEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::json;

    fn feed(meter: &mut Meter, data: &Value) -> Result<Step, Malformed> {
        meter.event(&SseEvent {
            raw: Bytes::new(),
            name: String::new(),
            data: data.to_string(),
        })
    }

    fn run(meter: &mut Meter, events: &[Value]) -> Vec<Step> {
        events.iter().map(|e| feed(meter, e).unwrap()).collect()
    }

    #[test]
    fn anthropic_stream_is_estimated_until_its_message_delta() {
        let mut m = Meter::new(Call::Messages, 99, true);
        run(
            &mut m,
            &[
                json!({"type":"message_start","message":{"id":"msg_1","model":"m-1","usage":
                {"input_tokens":10,"cache_read_input_tokens":5,"cache_creation_input_tokens":3,"output_tokens":1}}}),
                json!({"type":"ping"}),
                json!({"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"12345678"}}),
                json!({"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"1234"}}),
            ],
        );
        assert_eq!(
            m.counts(),
            TokenCounts {
                input: 10,
                output: 3,
                cache_read: 5,
                cache_write: 3
            }
        );
        assert!(m.is_estimate());
        let end = run(
            &mut m,
            &[
                json!({"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":42}}),
                json!({"type":"message_stop"}),
            ],
        );
        assert_eq!(end, [Step::More, Step::Last]);
        assert_eq!((m.counts().output, m.is_estimate()), (42, false));
        assert_eq!(
            (m.model.as_deref(), m.id.as_deref()),
            (Some("m-1"), Some("msg_1"))
        );
    }

    #[test]
    fn chat_usage_is_hidden_from_a_client_that_did_not_ask() {
        for (asked, want) in [(true, Step::More), (false, Step::Hidden)] {
            let mut m = Meter::new(Call::Chat, 9, asked);
            let usage = json!({"prompt_tokens":30,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":10}});
            let steps = run(
                &mut m,
                &[
                    json!({"id":"c","model":"g","choices":[{"delta":{"content":"hi"},"finish_reason":null}],"usage":null}),
                    json!({"choices":[{"delta":{},"finish_reason":"stop"}]}),
                    json!({"choices":[],"usage":usage}),
                ],
            );
            assert_eq!(steps[2], want);
            assert_eq!(
                m.counts(),
                TokenCounts {
                    input: 20,
                    output: 4,
                    cache_read: 10,
                    cache_write: 0
                }
            );
            assert!(m.said_finished());
        }
    }

    #[test]
    fn a_response_is_final_with_its_completed_event() {
        let mut m = Meter::new(Call::Responses, 9, true);
        let steps = run(
            &mut m,
            &[
                json!({"type":"response.created","response":{"id":"r","model":"g"}}),
                json!({"type":"response.output_text.delta","delta":"abcdefgh"}),
            ],
        );
        assert_eq!(
            (steps, m.counts().output),
            (vec![Step::More, Step::More], 2)
        );
        let usage =
            json!({"input_tokens":7,"output_tokens":2,"input_tokens_details":{"cached_tokens":0}});
        let last = feed(
            &mut m,
            &json!({"type":"response.completed","response":{"usage":usage}}),
        );
        assert_eq!(
            (last, m.counts().input, m.is_estimate()),
            (Ok(Step::Last), 7, false)
        );
    }

    #[test]
    fn errors_in_the_stream_are_seen_in_each_shape() {
        for (call, event) in [
            (
                Call::Messages,
                json!({"type":"error","error":{"type":"overloaded_error","message":"x"}}),
            ),
            (Call::Chat, json!({"error":{"message":"x"}})),
            (
                Call::Responses,
                json!({"type":"response.failed","response":{}}),
            ),
        ] {
            assert_eq!(
                feed(&mut Meter::new(call, 1, true), &event),
                Ok(Step::Failed)
            );
        }
    }

    #[test]
    fn what_is_no_event_of_the_api_is_malformed() {
        let mut m = Meter::new(Call::Messages, 1, true);
        for data in [
            "{",
            "3",
            "{}",
            "{\"type\":\"content_block_delta\",\"delta\":3}",
        ] {
            let event = SseEvent {
                raw: Bytes::new(),
                name: "e".into(),
                data: data.into(),
            };
            assert!(m.event(&event).is_err(), "{data}");
        }
    }

    #[test]
    fn a_whole_answer_without_usage_is_estimated_from_its_text() {
        let mut m = Meter::new(Call::Messages, 11, true);
        m.whole(&json!({"content":[{"type":"text","text":"1234 \n        5678"}]}))
            .unwrap();
        assert_eq!((m.counts().input, m.is_estimate()), (11, true));
        // "text" and the nine bytes that are left of the text.
        assert_eq!(m.counts().output, 13_u64.div_ceil(4));
        assert!(m.whole(&json!([1])).is_err());
    }
}
