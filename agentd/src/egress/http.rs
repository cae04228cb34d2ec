//! Plain requests with a whole `http://` address: one connection to the host for each, headers cleaned both ways.
//!
//! The request is parsed and written anew, never copied through, so that the host and this proxy can't disagree about
//! where it ends; what follows it is the next request and is judged by itself.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use ::http::{Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::EgressContext;
use super::counters::EgressCounters;
use super::destination::{Destination, Refused};
use super::tunnel::Activity;
use crate::revocation::Admitted;

/// Sends `request` to its host and returns the head of the answer; its body follows.
pub async fn forward(
    context: &Arc<EgressContext>,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
    seat: Option<&Admitted>,
    mut request: Request<Incoming>,
) -> Result<Response<Incoming>, Refused> {
    let bad = |text: &str| Refused::new(StatusCode::BAD_REQUEST, format!("agentd: {text}\n"));
    if request.uri().scheme_str() != Some("http") {
        return Err(bad(
            "only http:// addresses are fetched; for https use CONNECT, as HTTPS_PROXY does",
        ));
    }
    let authority = request
        .uri()
        .authority()
        .ok_or_else(|| bad("the address has no host"))?
        .clone();
    let destination = Destination::parse(&authority, Some(80))
        .ok_or_else(|| bad("the address is not host:port"))?;
    let stream = context.connect(&destination, seat).await?;

    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let path: Uri = path.parse().map_err(|_| bad("the path is malformed"))?;
    *request.uri_mut() = path;
    drop_hop_by_hop(request.headers_mut());
    // The address decides; a Host header that says otherwise is a way around the rules on shared hosts.
    let host =
        HeaderValue::from_str(authority.as_str()).map_err(|_| bad("the host is malformed"))?;
    request.headers_mut().insert(HOST, host);

    let gone = |error: hyper::Error| {
        Refused::new(
            StatusCode::BAD_GATEWAY,
            format!("agentd: {destination} broke off: {error}\n"),
        )
    };
    let activity = Activity::new();
    let counters = context.counters();
    let open = counters.opened();
    let counted = Counted::new(stream, counters, activity.clone());
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(64 << 10)
        .handshake(TokioIo::new(counted))
        .await
        .map_err(gone)?;
    let (idle, cancel) = (context.idle_timeout, cancel.clone());
    tasks.spawn(async move {
        tokio::select! {
            ended = connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a forwarded request's connection broke");
                }
            }
            () = activity.idle_for(idle) => {}
            () = cancel.cancelled() => {}
        }
        drop(open);
    });
    let mut response = sender.send_request(request).await.map_err(gone)?;
    drop_hop_by_hop(response.headers_mut());
    Ok(response)
}

/// Removes what concerns one connection only, named by the standard or by the message itself (RFC 9110, 7.6.1).
pub(super) fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
}

/// A connection whose bytes are counted.
pub(super) struct Counted {
    stream: TcpStream,
    counters: Arc<EgressCounters>,
    activity: Activity,
}

impl Counted {
    pub(super) fn new(
        stream: TcpStream,
        counters: Arc<EgressCounters>,
        activity: Activity,
    ) -> Self {
        Self {
            stream,
            counters,
            activity,
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.counters.received(read);
            self.activity.touch();
        }
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.counters.sent(*written);
            self.activity.touch();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_stays_with_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ] {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        drop_hop_by_hop(&mut headers);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["accept"]
        );
    }
}
