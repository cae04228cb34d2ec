//! The agent's side of the gateway: accepts its connections, turns each request away or into an [`Exchange`].

use agentd_sandbox::rules::tighten;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::GatewayContext;
use super::api::{Call, Provider};
use super::body::{self, AnswerBody};
use super::budget::Exhausted;
use super::exchange::Exchange;
use super::headers;
use super::meter::Meter;
use super::request::{ModelRequest, RequestRefused};
use super::under_way::Cut;

/// The most bytes of a request.
const MAX_REQUEST_BYTES: usize = 32 << 20;
/// Connections of one agent at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// How long a client may take over a request's head, and over each piece of its body.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves one agent until `cancel`led. Returns once every running request is settled and on record.
pub async fn serve(listener: TcpListener, context: Arc<GatewayContext>, cancel: CancellationToken) {
    let tasks = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
                listener.accept().await.map(|(stream, _)| (stream, slot))
            } => accepted,
            () = cancel.cancelled() => break,
        };
        let (stream, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer was quicker: neither is helped by trying again at once.
                tracing::warn!(agent = %context.identity.name, %error, "the gateway cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (context, cancel, exchanges) = (context.clone(), cancel.clone(), tasks.clone());
        tasks.spawn(async move {
            let stop = cancel.clone();
            let service = service_fn(move |request| {
                let (context, cancel, exchanges) = (context.clone(), cancel.clone(), exchanges.clone());
                async move { Ok::<_, Infallible>(handle(context, cancel, exchanges, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(CLIENT_TIMEOUT)
                .max_headers(100)
                .max_buf_size(64 << 10)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = connection => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "a gateway connection ended");
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
}

async fn handle(
    context: Arc<GatewayContext>,
    cancel: CancellationToken,
    exchanges: TaskTracker,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    let anthropic = request.headers().contains_key("anthropic-version")
        || request.headers().contains_key("x-api-key");
    let speaks = if anthropic {
        Provider::Anthropic
    } else {
        Provider::OpenAi
    };
    let call = match Call::of(request.method(), request.uri().path(), anthropic) {
        Ok(call) => call,
        Err(status) => {
            let text = format!(
                "agentd's model gateway has no {} {}; it offers POST /v1/messages, /v1/messages/count_tokens, \
                 /v1/chat/completions, /v1/responses and GET /v1/models",
                request.method(),
                request.uri().path()
            );
            // A HEAD or GET of / is how clients look whether anybody is there; it is not worth a line in the record.
            if request.uri().path() != "/" {
                context
                    .deny("call", request.uri().path(), "default", None)
                    .await;
            }
            return body::error(speaks, status, &text);
        }
    };
    match prepare(&context, cancel, call, request).await {
        Ok(exchange) => {
            let (reply, answer) = oneshot::channel();
            exchanges.spawn(exchange.run(reply));
            answer.await.unwrap_or_else(|_| {
                body::error(
                    call.provider(),
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the gateway gave this request up",
                )
            })
        }
        Err(Refused {
            status,
            text,
            denied,
            by,
        }) => {
            if let Some((what, target)) = denied {
                let (rule, origin) = match by {
                    Some(by) => (by.why, Some(by.origin)),
                    None => ("model".into(), None),
                };
                context.deny(what, &target, &rule, origin.as_ref()).await;
            }
            body::error(call.provider(), status, &text)
        }
    }
}

/// A request that doesn't reach the provider.
struct Refused {
    status: StatusCode,
    text: String,
    denied: Option<(&'static str, String)>,
    /// The tightening that refuses it, if one does.
    by: Option<tighten::Refused>,
}

impl Refused {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            denied: None,
            by: None,
        }
    }
}

impl From<RequestRefused> for Refused {
    fn from(refused: RequestRefused) -> Self {
        let text = refused.to_string();
        match refused {
            RequestRefused::Malformed(_) => Self::new(StatusCode::BAD_REQUEST, text),
            RequestRefused::NotAllowed { what, target, .. } => Self {
                status: StatusCode::FORBIDDEN,
                text,
                denied: Some((what, target)),
                by: None,
            },
        }
    }
}

impl GatewayContext {
    /// Rules that changed while the request was on its way in.
    fn refused_meanwhile(&self, cut: Cut) -> Refused {
        match cut {
            Cut::Rule { what, target, by } => Refused {
                status: StatusCode::FORBIDDEN,
                text: by.why.clone(),
                denied: Some((what, target)),
                by: Some(by),
            },
            Cut::Ceiling(exhausted) => self.exhausted(&exhausted),
        }
    }

    fn exhausted(&self, exhausted: &Exhausted) -> Refused {
        Refused {
            status: StatusCode::FORBIDDEN,
            text: format!("{exhausted} ({} of the policy)", exhausted.key()),
            denied: Some((exhausted.what(), exhausted.to_string())),
            by: self.limited_by(exhausted.key()),
        }
    }
}

/// What it would cost nobody could say.
fn no_price(model: &str) -> Refused {
    Refused {
        status: StatusCode::FORBIDDEN,
        text: format!(
            "the model {model:?} has no price, and this agent has a ceiling of dollars (limits.cost of the policy); agentd's \
             administrator adds it to agentd.toml: [[price]] model = {model:?}, input = …, output = … (US dollars for a million tokens)"
        ),
        denied: Some(("price", model.into())),
        by: None,
    }
}

/// Everything that is decided before the provider is asked.
async fn prepare(
    context: &Arc<GatewayContext>,
    cancel: CancellationToken,
    call: Call,
    request: Request<Incoming>,
) -> Result<Exchange, Refused> {
    let provider = call.provider();
    // Before the rules are asked: whoever changes them finds it.
    let entered = context.under_way.enter(call.path());
    let rules = context.rules.now();
    if !rules.enabled {
        let by = rules.closed_by();
        let text = "the policy of this agent has no access to models ([model] access)".into();
        return Err(Refused {
            status: StatusCode::FORBIDDEN,
            text: by.as_ref().map_or(text, |by| by.why.clone()),
            denied: Some(("call", call.path().into())),
            by,
        });
    }
    let upstream = context.upstreams.get(provider).ok_or_else(|| {
        Refused::new(
            StatusCode::NOT_IMPLEMENTED,
            format!(
                "agentd has no key for {provider}; set [model.{provider}] key in its configuration"
            ),
        )
    })?;
    let (parts, incoming) = request.into_parts();
    let query = if parts.uri.query() == Some("beta=true") {
        "?beta=true"
    } else {
        ""
    };
    let uri = upstream
        .uri(&format!("{}{query}", call.path()))
        .map_err(|e| {
            Refused::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("model.{provider}.base_url: {e}"),
            )
        })?;
    let mut headers = headers::for_provider(&parts.headers);
    upstream.authorise(&mut headers);

    let mut exchange = Exchange {
        context: context.clone(),
        cancel,
        entered,
        call,
        model: String::new(),
        stream: false,
        request: Request::default(),
        reservation: None,
        meter: Meter::new(call, 0, true),
    };
    let mut outgoing = Bytes::new();
    if call.path() != "/v1/models" {
        let body = read_body(incoming).await?;
        // As they are once the whole request is here.
        let rules = context.rules.now();
        let checked = ModelRequest::check(call, &body, &rules).map_err(|refused| {
            let by = match &refused {
                RequestRefused::NotAllowed { what, target, .. } if *what == "model" => {
                    rules.refused_by(target)
                }
                _ => None,
            };
            Refused {
                by,
                ..refused.into()
            }
        })?;
        exchange.model.clone_from(&checked.model);
        exchange.entered.asks_for(&checked.model, call.is_metered());
        let rules = context.rules.now();
        if let Some(by) = rules.refused_by(&checked.model) {
            // Between the two looks.
            let (what, target) = ("model", checked.model.clone());
            return Err(context.refused_meanwhile(Cut::Rule { what, target, by }));
        }
        exchange.stream = checked.stream && call.is_metered();
        exchange.meter = Meter::new(
            call,
            checked.input_estimate,
            call != Call::Chat || checked.shows_usage,
        );
        let granted = if call.is_metered() {
            let price = context.prices.of(&checked.model);
            if price.is_none() && rules.max_cost_nano_usd.is_some() {
                return Err(no_price(&checked.model));
            }
            let (input, output) = (checked.input_estimate, checked.output_wanted);
            let reserved = tokio::select! {
                biased;
                cut = exchange.entered.cut() => return Err(context.refused_meanwhile(cut)),
                reserved = context.budget.reserve(input, output, price) => reserved,
            };
            let reservation = reserved.map_err(|exhausted| context.exhausted(&exhausted))?;
            let granted = reservation.granted_output();
            exchange.reservation = Some(reservation);
            granted
        } else {
            u64::MAX
        };
        match checked.render(granted) {
            Ok(body) => outgoing = body.into(),
            Err(refused) => {
                if let Some(reservation) = exchange.reservation.take() {
                    reservation.release();
                }
                return Err(refused.into());
            }
        }
    }
    let method = if outgoing.is_empty() {
        Method::GET
    } else {
        Method::POST
    };
    *exchange.request.method_mut() = method;
    *exchange.request.uri_mut() = uri;
    *exchange.request.headers_mut() = headers;
    *exchange.request.body_mut() = Full::new(outgoing);
    Ok(exchange)
}

async fn read_body(incoming: Incoming) -> Result<Bytes, Refused> {
    // A body may take as long as it keeps coming: each piece has its own time.
    let mut body = Limited::new(incoming, MAX_REQUEST_BYTES);
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(CLIENT_TIMEOUT, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    bytes.extend_from_slice(&data);
                }
            }
            Ok(None) => return Ok(bytes.into()),
            Ok(Some(Err(error))) if error.is::<LengthLimitError>() => {
                let text = format!("the request has more than {MAX_REQUEST_BYTES} bytes");
                return Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, text));
            }
            Ok(Some(Err(error))) => {
                return Err(Refused::new(
                    StatusCode::BAD_REQUEST,
                    format!("the request body broke off: {error}"),
                ));
            }
            Err(_) => {
                return Err(Refused::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request body did not arrive in time",
                ));
            }
        }
    }
}
