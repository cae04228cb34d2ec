//! MCP without a transport of its own: a driven agent's protocol carries the JSON-RPC messages, and the
//! same handler answers them.
//!
//! Each message is served on its own, so a slow call holds up no other; a cancelled one is found by its
//! JSON-RPC id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rmcp::model::ClientJsonRpcMessage;
use rmcp::service::serve_directly_with_ct;
use rmcp::transport::OneshotTransport;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::handler::{Handler, Rights};

/// The same server without a transport: JSON-RPC values in, JSON-RPC values out. Clones share it.
#[derive(Clone, Debug)]
pub struct InBand {
    handler: Handler,
    /// Calls under way, by the text of their ids (`1` and `"1"` differ).
    running: Arc<Mutex<HashMap<String, CancellationToken>>>,
}

impl InBand {
    /// A server that acts with these rights.
    pub fn new(rights: impl Into<Rights>) -> Self {
        Self {
            handler: Handler {
                rights: rights.into(),
            },
            running: Arc::default(),
        }
    }

    /// Answers one message; `None` for a notification. Dropping the future cancels the call.
    pub async fn handle(&self, message: Value) -> Option<Value> {
        let id = message.get("id").cloned();
        if message
            .get("method")
            .is_some_and(|method| method == "notifications/cancelled")
        {
            let cancelled = message
                .pointer("/params/requestId")
                .map(Value::to_string)
                .unwrap_or_default();
            if let Some(token) = self.lock().get(&cancelled) {
                token.cancel();
            }
            return None;
        }
        let request = match serde_json::from_value::<ClientJsonRpcMessage>(message) {
            Ok(request @ ClientJsonRpcMessage::Request(_)) => request,
            // Notifications ask for nothing, and this server asks nothing that could be answered.
            Ok(_) => return None,
            Err(_) if id.is_none() => return None,
            Err(error) => {
                let text = format!("not a JSON-RPC request of the Model Context Protocol: {error}");
                return Some(failure(id, -32600, &text));
            }
        };
        let id = id.unwrap_or_default();
        let key = id.to_string();
        let token = CancellationToken::new();
        self.lock().insert(key.clone(), token.clone());
        let _running = Running {
            server: self,
            key,
            token: token.clone(),
        };
        let (transport, mut answers) = OneshotTransport::new(request);
        let service = serve_directly_with_ct(self.handler.clone(), transport, None, token.clone());
        let answer = tokio::select! {
            answer = answers.recv() => answer,
            () = token.cancelled() => None,
        };
        drop(service);
        let Some(answer) = answer else {
            return Some(failure(Some(id), -32800, "the call was cancelled"));
        };
        Some(serde_json::to_value(&answer).unwrap_or_else(|error| {
            failure(
                Some(id),
                -32603,
                &format!("the answer could not be written: {error}"),
            )
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a call, also when its future is dropped half-way.
struct Running<'a> {
    server: &'a InBand,
    key: String,
    token: CancellationToken,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.token.cancel();
        self.server.lock().remove(&self.key);
    }
}

fn failure(id: Option<Value>, code: i32, text: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}})
}
