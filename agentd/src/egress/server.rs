//! The agent's side of the proxy: accepts, tells the two forms apart, and turns everything else away.

use std::convert::Infallible;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::EgressContext;
use crate::revocation::Admitted;

use super::destination::{Destination, Refused};
use super::terminate::Terminated;
use super::{http as plain, tunnel};

/// Connections of one agent at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// How long an agent may take over a request's head.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// The most bytes of a head.
pub(super) const MAX_HEAD_BYTES: usize = 32 << 10;

pub(super) type ProxyBody = BoxBody<Bytes, hyper::Error>;

/// A connection's place among those of its agent, and in the switch of its network.
pub(super) type Seat = (OwnedSemaphorePermit, Option<Admitted>);

/// What every connection shares.
#[derive(Clone)]
struct Shared {
    context: Arc<EgressContext>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// Serves one agent until `cancel`led, and returns when all its connections are closed.
pub async fn serve(listener: TcpListener, context: Arc<EgressContext>, cancel: CancellationToken) {
    let shared = Shared {
        context,
        cancel,
        tasks: TaskTracker::new(),
    };
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
                listener.accept().await.map(|(stream, _)| (stream, slot))
            } => accepted,
            () = shared.cancel.cancelled() => break,
        };
        let (stream, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer was quicker: neither is helped by trying again at once.
                tracing::warn!(agent = %shared.context.identity.name, %error, "the egress proxy cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let mut mine = shared.clone();
        let admitted = match &shared.context.switch {
            None => None,
            Some(switch) => match switch.admit(stream.as_fd()) {
                Ok(Some(admitted)) => Some(admitted),
                // The network is revoked.
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(agent = %shared.context.identity.name, %error, "the egress proxy closes a connection");
                    continue;
                }
            },
        };
        if let Some(admitted) = &admitted {
            mine.cancel = admitted.cancel.clone();
        }
        shared.tasks.spawn(async move {
            // Both stay taken for as long as a tunnel that began here.
            let slot = Arc::new((slot, admitted));
            let stop = mine.cancel.clone();
            let service = service_fn(move |request| {
                let (shared, slot) = (mine.clone(), slot.clone());
                async move { Ok::<_, Infallible>(shared.handle(request, slot).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_headers(100)
                .max_buf_size(MAX_HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::select! {
                served = connection => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "a proxy connection ended");
                    }
                }
                () = stop.cancelled() => {}
            }
        });
    }
    drop(listener);
    shared.tasks.close();
    shared.tasks.wait().await;
}

impl Shared {
    async fn handle(&self, request: Request<Incoming>, slot: Arc<Seat>) -> Response<ProxyBody> {
        let answered = if request.method() == Method::CONNECT {
            self.tunnel(request, slot).await
        } else if request.uri().authority().is_some() {
            plain::forward(
                &self.context,
                &self.tasks,
                &self.cancel,
                slot.1.as_ref(),
                request,
            )
            .await
            .map(|r| r.map(BodyExt::boxed))
        } else {
            Err(Refused::new(
                StatusCode::BAD_REQUEST,
                "agentd: this is the egress proxy of an agent's sandbox; it takes CONNECT host:port and requests with \
                 a whole http:// address, as programs send that honour HTTP_PROXY and HTTPS_PROXY\n",
            ))
        };
        answered.unwrap_or_else(|refused| refusal(&refused))
    }

    /// `CONNECT`: the connection to the host is open before the agent hears of it.
    async fn tunnel(
        &self,
        request: Request<Incoming>,
        slot: Arc<Seat>,
    ) -> Result<Response<ProxyBody>, Refused> {
        let destination = request
            .uri()
            .authority()
            .and_then(|a| Destination::parse(a, None))
            .ok_or_else(|| {
                Refused::new(
                    StatusCode::BAD_REQUEST,
                    "agentd: CONNECT wants host:port and nothing else\n",
                )
            })?;
        let network = self.context.connect(&destination, slot.1.as_ref()).await?;
        let inspected = self
            .context
            .credentials
            .as_ref()
            .filter(|c| c.cover(&destination.host, destination.port));
        if let Some(credentials) = inspected {
            let terminated = Arc::new(Terminated {
                context: Arc::clone(&self.context),
                credentials: credentials.clone(),
                destination,
                tasks: self.tasks.clone(),
                cancel: self.cancel.clone(),
                seat: Arc::clone(&slot),
                first: Mutex::new(Some(network)),
                sender: Mutex::default(),
            });
            let cancel = self.cancel.clone();
            self.tasks.spawn(async move {
                let serving = async {
                    match hyper::upgrade::on(request).await {
                        Ok(upgraded) => terminated.serve(TokioIo::new(upgraded)).await,
                        Err(error) => {
                            tracing::debug!(%error, "the agent left before its tunnel stood");
                        }
                    }
                };
                tokio::select! {
                    () = serving => {}
                    () = cancel.cancelled() => {}
                }
                drop(slot);
            });
            return Ok(Response::new(
                Empty::new().map_err(|never| match never {}).boxed(),
            ));
        }
        let shared = self.clone();
        let counters = self.context.counters();
        let open = counters.opened();
        self.tasks.spawn(async move {
            let agent = tokio::select! {
                upgraded = hyper::upgrade::on(request) => match upgraded {
                    Ok(upgraded) => TokioIo::new(upgraded),
                    Err(error) => return tracing::debug!(%error, "the agent left before its tunnel stood"),
                },
                () = shared.cancel.cancelled() => return,
            };
            let (context, idle) = (&shared.context, shared.context.idle_timeout);
            let is_meant = |server: &str| context.is_meant(&destination, server, slot.1.as_ref());
            tokio::select! {
                ended = tunnel::run(agent, network, &counters, idle, is_meant) => {
                    if let Err(fronted) = ended {
                        context.deny_fronted(&destination, &fronted).await;
                    }
                }
                () = shared.cancel.cancelled() => {}
            }
            drop((open, slot));
        });
        Ok(Response::new(
            Empty::new().map_err(|never| match never {}).boxed(),
        ))
    }
}

pub(super) fn refusal(refused: &Refused) -> Response<ProxyBody> {
    let body = Full::new(Bytes::from(refused.text.clone()))
        .map_err(|never| match never {})
        .boxed();
    let mut response = Response::new(body);
    *response.status_mut() = refused.status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    // After a refused CONNECT the client may already be sending what was meant for the host.
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    // Names the speaker: a 403 of the host itself looks the same otherwise.
    response
        .headers_mut()
        .insert("x-agentd-egress", HeaderValue::from_static("refused"));
    response
}
