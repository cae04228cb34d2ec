//! JSON-RPC 2.0 on lines, as Codex and the Agent Client Protocol use it: what a line is, and the lines we write.
//!
//! Pure. A question that is broken still yields its id, so that it can be refused and never hangs.

use serde_json::{Value, json};

use super::{Action, protocol_error, write};

/// JSON-RPC: the method does not exist, or is not offered here.
pub(super) const METHOD_NOT_FOUND: i32 = -32601;
/// JSON-RPC: the parameters are not what the method takes.
pub(super) const INVALID_PARAMS: i32 = -32602;

/// The `jsonrpc` member of every message; Codex leaves it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `"jsonrpc":"2.0"` in each message.
    Strict,
    /// Without it.
    Bare,
}

/// One message of the agent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Incoming {
    /// It wants an answer with this id.
    Request {
        /// A number or a string.
        id: Value,
        method: String,
        params: Value,
    },
    /// It wants none.
    Notification { method: String, params: Value },
    /// The answer to one of our requests.
    Response {
        id: Value,
        result: Result<Value, RpcError>,
    },
}

/// An error in an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RpcError {
    pub code: i64,
    pub message: String,
}

/// A line that is no message.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BadLine {
    pub why: String,
    /// The question's id, if it was one and that much could be read.
    pub question: Option<Value>,
}

impl Incoming {
    pub fn parse(line: &str) -> Result<Self, BadLine> {
        let bad = |why: String| BadLine {
            why,
            question: None,
        };
        let mut value: Value =
            serde_json::from_str(line).map_err(|error| bad(format!("no JSON: {error}")))?;
        if !value.is_object() {
            return Err(bad("a message that is no object".to_owned()));
        }
        let id = value.get("id").filter(|id| !id.is_null()).cloned();
        if let Some(id) = &id
            && !(id.is_string() || id.is_number())
        {
            return Err(bad("an id that is neither a number nor a string".to_owned()));
        }
        let params = value.get_mut("params").map(Value::take).unwrap_or_default();
        match (value.get("method"), id) {
            (Some(Value::String(method)), Some(id)) => Ok(Self::Request {
                id,
                method: method.clone(),
                params,
            }),
            (Some(Value::String(method)), None) => Ok(Self::Notification {
                method: method.clone(),
                params,
            }),
            (Some(_), question) => Err(BadLine {
                why: "a method that is no string".to_owned(),
                question,
            }),
            (None, Some(id)) => {
                let result = match value.get("error").filter(|error| !error.is_null()) {
                    Some(error) => Err(RpcError {
                        code: error["code"].as_i64().unwrap_or_default(),
                        message: error["message"]
                            .as_str()
                            .map_or_else(|| error.to_string(), str::to_owned),
                    }),
                    None => match value.get_mut("result") {
                        Some(result) => Ok(result.take()),
                        None => {
                            return Err(bad("an answer with neither result nor error".to_owned()));
                        }
                    },
                };
                Ok(Self::Response { id, result })
            }
            (None, None) => Err(bad("neither a method nor an id".to_owned())),
        }
    }
}

impl Dialect {
    pub fn request(self, id: &str, method: &str, params: Value) -> Value {
        self.frame(json!({"id": id, "method": method, "params": params}))
    }

    pub fn notification(self, method: &str, params: Value) -> Value {
        let mut message = json!({ "method": method });
        if !params.is_null() {
            message["params"] = params;
        }
        self.frame(message)
    }

    pub fn result(self, id: &Value, result: Value) -> Value {
        self.frame(json!({"id": id, "result": result}))
    }

    pub fn error(self, id: &Value, code: i32, message: &str) -> Value {
        self.frame(json!({"id": id, "error": {"code": code, "message": message}}))
    }

    /// Tells of a line that is no message, and refuses the question that it was, if it was one.
    pub fn refuse(self, bad: &BadLine, line: &str) -> Vec<Action> {
        let refused = bad
            .question
            .as_ref()
            .map(|id| write(&self.error(id, INVALID_PARAMS, &bad.why)));
        refused
            .into_iter()
            .chain([protocol_error(&bad.why, line)])
            .collect()
    }

    fn frame(self, mut message: Value) -> Value {
        if self == Self::Strict {
            message["jsonrpc"] = json!("2.0");
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_of_messages_are_told_apart() {
        assert_eq!(
            Incoming::parse(r#"{"id":0,"method":"a","params":{"b":1}}"#),
            Ok(Incoming::Request {
                id: json!(0),
                method: "a".into(),
                params: json!({"b": 1})
            })
        );
        assert_eq!(
            Incoming::parse(r#"{"jsonrpc":"2.0","method":"a"}"#),
            Ok(Incoming::Notification {
                method: "a".into(),
                params: Value::Null
            })
        );
        assert_eq!(
            Incoming::parse(r#"{"id":"x","result":null}"#),
            Ok(Incoming::Response {
                id: json!("x"),
                result: Ok(Value::Null)
            })
        );
        let failed = Incoming::parse(r#"{"id":"x","error":{"code":-3,"message":"no"}}"#);
        assert!(
            matches!(failed, Ok(Incoming::Response { result: Err(error), .. }) if error.code == -3 && error.message == "no")
        );
    }

    #[test]
    fn a_broken_question_keeps_its_id() {
        let bad = Incoming::parse(r#"{"id":7,"method":5}"#).unwrap_err();
        assert_eq!(bad.question, Some(json!(7)));
        for line in ["", "[]", "7", "{}", r#"{"id":{}}"#, r#"{"id":1}"#, "{"] {
            let bad = Incoming::parse(line).unwrap_err();
            assert_eq!(bad.question, None, "{line}");
        }
    }
}
