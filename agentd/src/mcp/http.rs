//! Streamable HTTP at `/mcp`, on a socket that was born inside the agent's network namespace.
//!
//! Only that agent can reach it, but a browser it runs might be steered here: any `Origin` is refused,
//! and so is a `Host` that is not the loopback. Connections, sessions and request bodies are bounded.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rmcp::model::ProtocolVersion;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::handler::{Handler, Rights};

/// Connections of one agent at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// Sessions of one agent at a time.
const MAX_SESSIONS: usize = 32;
/// Largest request body: a message of the bus's largest size, as escaped JSON.
const MAX_BODY_BYTES: usize = 4 << 20;
/// How long a client may take over a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

type Body = BoxBody<Bytes, Infallible>;
type Mcp = StreamableHttpService<Handler, LocalSessionManager>;

/// Serves MCP at `/mcp` on `listener` until `cancel`; returns when all connections are closed.
///
/// # Errors
/// None at present; the listener's own errors are logged and outlived.
pub async fn serve(
    listener: TcpListener,
    rights: impl Into<Rights>,
    cancel: CancellationToken,
) -> io::Result<()> {
    let sessions = Arc::new(LocalSessionManager::default());
    let config = StreamableHttpServerConfig::default()
        .with_cancellation_token(cancel.child_token())
        .with_max_request_body_bytes(MAX_BODY_BYTES)
        .with_json_response(true)
        .enforce_origin_validation();
    let handler = Handler {
        rights: rights.into(),
    };
    let mcp = Mcp::new(move || Ok(handler.clone()), sessions.clone(), config);
    let tasks = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accept = async {
            let slot = slots
                .clone()
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            listener.accept().await.map(|(stream, _)| (stream, slot))
        };
        let (stream, slot) = tokio::select! {
            accepted = accept => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer was quicker: trying again at once helps neither.
                    tracing::warn!("the MCP server can't accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = cancel.cancelled() => break,
        };
        let (mcp, sessions, stop) = (mcp.clone(), sessions.clone(), cancel.clone());
        tasks.spawn(async move {
            let service = service_fn(move |request| {
                let (mcp, sessions) = (mcp.clone(), sessions.clone());
                async move { Ok::<_, Infallible>(answer(&mcp, &sessions, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_headers(100)
                .max_buf_size(64 << 10)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = connection => {
                    if let Err(error) = served {
                        tracing::debug!("an MCP connection ended: {error}");
                    }
                }
                () = stop.cancelled() => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn answer(
    mcp: &Mcp,
    sessions: &LocalSessionManager,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.uri().path() != "/mcp" {
        let text = format!(
            "there is nothing at {}; the MCP server is at /mcp",
            request.uri().path()
        );
        return plain(StatusCode::NOT_FOUND, text);
    }
    if may_open_session(&request) && sessions.sessions.read().await.len() >= MAX_SESSIONS {
        let text = format!(
            "{MAX_SESSIONS} MCP sessions are open, the most allowed; end one with DELETE, or use protocol version {}",
            ProtocolVersion::V_2026_07_28.as_str()
        );
        return plain(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    mcp.handle(request).await
}

/// A POST outside any session, of the protocol era that has sessions.
fn may_open_session(request: &Request<Incoming>) -> bool {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let stateless =
        header("mcp-protocol-version").is_some_and(|v| v >= ProtocolVersion::V_2026_07_28.as_str());
    request.method() == http::Method::POST && header("mcp-session-id").is_none() && !stateless
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text + "\n")).boxed());
    *response.status_mut() = status;
    response
}
