//! Requests to hosts with a credential: TLS ends here, each request is judged, given the credential and encrypted anew
//! towards the host.
//!
//! Only for hosts that an agent's policy names a credential for; every other tunnel stays blind. A request passes only
//! under a path and method of one of the credentials; whatever the agent sends as credentials is taken out first. The
//! host's certificate is verified against the host's own roots. Bodies stream through and are not looked at. HTTP/1.1 to both
//! sides, one request at a time.
//!
//! A refusal is a 403 with the reason, and a line on record, as everywhere in the proxy.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{EXPECT, HOST, HeaderValue};
use ::http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::EgressContext;
use super::authority::server_name;
use super::credential::AgentCredentials;
use super::destination::{Destination, Refused};
use super::http::{Counted, drop_hop_by_hop};
use super::server::{HEAD_TIMEOUT, MAX_HEAD_BYTES, ProxyBody, Seat, refusal};
use super::tunnel::Activity;

/// How long either side may take over its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// One tunnel that is looked into.
pub(super) struct Terminated {
    pub(super) context: Arc<EgressContext>,
    pub(super) credentials: AgentCredentials,
    pub(super) destination: Destination,
    pub(super) tasks: TaskTracker,
    pub(super) cancel: CancellationToken,
    pub(super) seat: Arc<Seat>,
    /// The connection to the host, made before the agent heard that its tunnel stands.
    pub(super) first: Mutex<Option<TcpStream>>,
    pub(super) sender: Mutex<Option<SendRequest<Incoming>>>,
}

impl Terminated {
    /// Serves the agent's side until it leaves.
    pub(super) async fn serve(
        self: Arc<Self>,
        agent: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) {
        let host = self.destination.host.to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let Some(config) = self.credentials.authority.server(host) else {
            return tracing::error!(host, "a host with a credential has no certificate");
        };
        let accepted =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(agent));
        let agent = match accepted.await {
            Ok(Ok(agent)) => agent,
            Ok(Err(error)) => {
                let agent = &self.context.identity.name;
                return tracing::info!(%agent, host, %error, "its program does not accept agentd's certificate");
            }
            Err(_) => return tracing::debug!(host, "an agent's TLS handshake took too long"),
        };
        let mine = Arc::clone(&self);
        let service = service_fn(move |request| {
            let mine = Arc::clone(&mine);
            async move {
                let answered = mine.forward(request).await;
                Ok::<_, Infallible>(answered.unwrap_or_else(|refused| refusal(&refused)))
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.context.idle_timeout.max(HEAD_TIMEOUT))
            .max_headers(100)
            .max_buf_size(MAX_HEAD_BYTES.max(8 << 10))
            .serve_connection(TokioIo::new(agent), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an agent's inspected connection ended");
        }
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<ProxyBody>, Refused> {
        self.is_meant(&request)?;
        let path = request.uri().path_and_query().cloned();
        let path = path.ok_or_else(|| bad("the request names no path"))?;
        let Destination { host, port } = &self.destination;
        let credential = match self
            .credentials
            .choose(host, *port, request.method(), path.path())
        {
            Ok(credential) => credential,
            Err(why) => {
                let target = format!(
                    "{} https://{}{}",
                    request.method(),
                    self.destination,
                    path.path()
                );
                self.context.deny(&target, &why, None).await;
                let text = format!("agentd: {target} is not allowed: {why}\n");
                return Err(Refused::new(StatusCode::FORBIDDEN, text));
            }
        };
        if let Some(refused) = self.context.taken_credential(&credential.name) {
            let target = format!("https://{}{}", self.destination, path.path());
            let line = refused.origin.to_string();
            self.context.deny(&target, &refused.why, Some(line)).await;
            let text = format!("agentd: {target} is not allowed: {}\n", refused.why);
            return Err(Refused::new(StatusCode::FORBIDDEN, text));
        }
        tracing::debug!(agent = %self.context.identity.name, credential = credential.name, "used");
        *request.uri_mut() = Uri::from(path);
        let headers = request.headers_mut();
        drop_hop_by_hop(headers);
        // Our server side has answered it already.
        headers.remove(EXPECT);
        self.credentials.replace(credential, headers);
        headers.insert(HOST, self.host_header()?);
        let mut response = self.send(request).await?;
        drop_hop_by_hop(response.headers_mut());
        Ok(response.map(|body| body.boxed()))
    }

    /// The tunnel's destination decides; a Host that says otherwise would be another site on the same address.
    fn is_meant(&self, request: &Request<Incoming>) -> Result<(), Refused> {
        let named = match (request.uri().authority(), request.headers().get(HOST)) {
            (Some(authority), _) => Some(authority.clone()),
            (None, Some(host)) => Some(
                host.to_str()
                    .ok()
                    .and_then(|h| h.parse().ok())
                    .ok_or_else(|| bad("the Host header is malformed"))?,
            ),
            (None, None) => None,
        };
        let meant = named.is_none_or(|authority| {
            Destination::parse(&authority, Some(443)).is_some_and(|d| {
                d.port == self.destination.port
                    && d.host.eq_ignore_ascii_case(&self.destination.host)
            })
        });
        if meant {
            return Ok(());
        }
        let text = format!(
            "agentd: this tunnel leads to {} and to no other host\n",
            self.destination
        );
        Err(Refused::new(StatusCode::MISDIRECTED_REQUEST, text))
    }

    fn host_header(&self) -> Result<HeaderValue, Refused> {
        let text = self.destination.to_string();
        let text = text.strip_suffix(":443").unwrap_or(&text);
        HeaderValue::from_str(text).map_err(|_| bad("the host is malformed"))
    }

    async fn send(&self, request: Request<Incoming>) -> Result<Response<Incoming>, Refused> {
        let mut kept = self.sender.lock().await;
        let ready = match kept.as_mut() {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        let mut sender = match kept.take() {
            Some(sender) if ready => sender,
            _ => self.connect().await?,
        };
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| self.gone(&e))?;
        *kept = Some(sender);
        Ok(response)
    }

    /// A verified connection to the host.
    async fn connect(&self) -> Result<SendRequest<Incoming>, Refused> {
        let first = self.first.lock().await.take();
        let stream = match first {
            Some(stream) => stream,
            None => {
                let seat = self.seat.1.as_ref();
                self.context.connect(&self.destination, seat).await?
            }
        };
        let name =
            server_name(&self.destination.host).ok_or_else(|| bad("the host is malformed"))?;
        let activity = Activity::new();
        let counters = self.context.counters();
        let open = counters.opened();
        let counted = Counted::new(stream, counters, activity.clone());
        let connector = TlsConnector::from(self.credentials.authority.client());
        let secured =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, connector.connect(name, counted)).await;
        let secured = match secured {
            Ok(Ok(secured)) => secured,
            Ok(Err(error)) => return Err(self.gone(&error)),
            Err(_) => return Err(self.gone(&"its TLS handshake took too long")),
        };
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(64 << 10)
            .handshake(TokioIo::new(secured))
            .await
            .map_err(|e| self.gone(&e))?;
        let (idle, cancel) = (self.context.idle_timeout, self.cancel.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection to a host with a credential broke");
                    }
                }
                () = activity.idle_for(idle) => {}
                () = cancel.cancelled() => {}
            }
            drop(open);
        });
        Ok(sender)
    }

    fn gone(&self, error: &dyn std::fmt::Display) -> Refused {
        let text = format!("agentd: {} broke off: {error}\n", self.destination);
        Refused::new(StatusCode::BAD_GATEWAY, text)
    }
}

fn bad(text: &str) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, format!("agentd: {text}\n"))
}
