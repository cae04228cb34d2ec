//! One exchange with a provider: a task of its own that asks, relays, meters, and settles the bill.
//!
//! It outlives the agent's connection on purpose: whoever hangs up, the tokens are counted and put on record. The
//! record is durable before the last bytes of an answer are relayed. Whatever goes wrong ends in an error of the
//! provider's shape and in a bill for what was seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agentd_sandbox::Origin;
use agentd_sandbox::rules::tighten;
use agentd_storage::{Denial, Event, Fact, Usage, UsageSource};
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::GatewayContext;
use super::api::{Call, error_event};
use super::body::{self, AnswerBody};
use super::budget::{Reservation, TokenCounts};
use super::headers;
use super::meter::{Meter, Step};
use super::sse::SseParser;
use super::under_way::{Cut, Entered};

/// The most bytes of an answer that comes as a whole.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// The most bytes of a provider's error that are passed on.
const MAX_ERROR_BYTES: usize = 256 << 10;
/// No model writes faster: what a request that was given up may have cost is bounded by it.
const MAX_TOKENS_PER_SECOND: u64 = 150;

/// An exchange about to begin.
pub(super) struct Exchange {
    pub context: Arc<GatewayContext>,
    pub cancel: CancellationToken,
    /// Ends it when the rules change under it.
    pub entered: Entered,
    pub call: Call,
    /// The model asked for; empty for calls without one.
    pub model: String,
    pub stream: bool,
    pub request: Request<Full<Bytes>>,
    /// Tokens set aside; `None` for calls that cost none.
    pub reservation: Option<Reservation>,
    pub meter: Meter,
}

/// How a metered answer ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Aborted,
}

/// Where an answer goes while it is under way.
enum Gone {
    Client,
    Daemon,
}

impl Exchange {
    /// Runs to the end. The answer's head goes to `reply`; when its receiver is gone, so is the agent.
    pub async fn run(mut self, mut reply: oneshot::Sender<Response<AnswerBody>>) {
        let upstreams = self.context.upstreams.clone();
        let began = Instant::now();
        let request = std::mem::take(&mut self.request);
        let answered = tokio::select! {
            biased;
            cut = self.entered.cut() => return self.cut_unanswered(cut, reply, began).await,
            answered = tokio::time::timeout(upstreams.answer_timeout, upstreams.client.request(request)) => answered,
            () = reply.closed() => return self.given_up(began).await,
            () = self.cancel.cancelled() => return self.given_up(began).await,
        };
        let provider = self.call.provider();
        let failed = match answered {
            Ok(Ok(response)) => return self.answered(response, reply, began).await,
            Ok(Err(error)) if error.is_connect() => {
                if let Some(reservation) = self.reservation.take() {
                    reservation.release();
                }
                tracing::warn!(%provider, error = %chain(&error), "the model provider cannot be reached");
                body::error(
                    provider,
                    StatusCode::BAD_GATEWAY,
                    "agentd can't reach the model provider",
                )
            }
            Ok(Err(error)) => {
                tracing::warn!(%provider, error = %chain(&error), "the model provider broke off");
                self.given_up(began).await;
                body::error(
                    provider,
                    StatusCode::BAD_GATEWAY,
                    "the model provider closed the connection unanswered",
                )
            }
            Err(_) => {
                self.given_up(began).await;
                let text = format!(
                    "the model provider did not answer in {:?}",
                    upstreams.answer_timeout
                );
                body::error(provider, StatusCode::GATEWAY_TIMEOUT, &text)
            }
        };
        deliver(reply, failed);
    }

    async fn answered(
        mut self,
        response: Response<Incoming>,
        reply: oneshot::Sender<Response<AnswerBody>>,
        began: Instant,
    ) {
        let (parts, incoming) = response.into_parts();
        let mut passed = headers::for_agent(&parts.headers);
        for name in ["request-id", "x-request-id"] {
            if let Some(id) = parts.headers.get(name).and_then(|v| v.to_str().ok()) {
                self.meter
                    .id
                    .get_or_insert_with(|| id.chars().take(200).collect());
            }
        }
        if !parts.status.is_success() {
            let failed = self.provider_error(parts.status, passed, incoming).await;
            deliver(reply, failed);
            return;
        }
        let content_type = parts
            .headers
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        if self.stream && content_type.starts_with("text/event-stream") {
            passed.remove(http::header::RETRY_AFTER);
            let (response, sender) = body::streamed(parts.status, passed);
            if reply.send(response).is_ok() {
                self.relay(incoming, sender).await;
            } else {
                self.given_up(began).await;
            }
        } else {
            self.whole(parts.status, passed, incoming, reply, began)
                .await;
        }
    }

    /// Passes on what the provider had to say instead of an answer. Nothing is billed.
    async fn provider_error(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
        incoming: Incoming,
    ) -> Response<AnswerBody> {
        let provider = self.call.provider();
        if let Some(reservation) = self.reservation.take() {
            reservation.release();
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            tracing::error!(%provider, %status, "the model provider refuses the daemon's key; check [model.{provider}] key");
            let text = format!(
                "the model provider refuses agentd's key ({status}); its administrator must renew it"
            );
            return body::error(provider, status, &text);
        }
        let limited = Limited::new(incoming, MAX_ERROR_BYTES).collect();
        let text = match tokio::time::timeout(self.context.upstreams.idle_timeout, limited).await {
            Ok(Ok(collected)) => self.redacted(collected.to_bytes()),
            _ => {
                return body::error(
                    provider,
                    status,
                    "the model provider reports an error that can't be read",
                );
            }
        };
        body::whole(status, headers, text)
    }

    fn redacted(&self, bytes: Bytes) -> Bytes {
        match self.context.upstreams.get(self.call.provider()) {
            Some(upstream) => upstream.redact(bytes),
            None => bytes,
        }
    }

    /// An answer in one piece: read to its end, metered, recorded, then handed over.
    async fn whole(
        mut self,
        status: StatusCode,
        headers: HeaderMap,
        incoming: Incoming,
        mut reply: oneshot::Sender<Response<AnswerBody>>,
        began: Instant,
    ) {
        let provider = self.call.provider();
        let collect = Limited::new(incoming, MAX_ANSWER_BYTES).collect();
        let read = tokio::select! {
            biased;
            cut = self.entered.cut() => return self.cut_unanswered(cut, reply, began).await,
            read = tokio::time::timeout(self.context.upstreams.answer_timeout, collect) => read,
            () = reply.closed() => return self.given_up(began).await,
            () = self.cancel.cancelled() => return self.given_up(began).await,
        };
        let bytes = match read {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(_)) => {
                self.given_up(began).await;
                return deliver(
                    reply,
                    body::error(
                        provider,
                        StatusCode::BAD_GATEWAY,
                        "the model provider's answer broke off",
                    ),
                );
            }
            Err(_) => {
                self.given_up(began).await;
                return deliver(
                    reply,
                    body::error(
                        provider,
                        StatusCode::GATEWAY_TIMEOUT,
                        "the model provider's answer did not end in time",
                    ),
                );
            }
        };
        let parsed: Result<Value, _> = serde_json::from_slice(&bytes);
        let answer = match parsed {
            Ok(value) if self.reservation.is_none() => Ok(self.unmetered(value, &bytes)),
            Ok(value) => self
                .meter
                .whole(&value)
                .map(|()| bytes)
                .map_err(|e| e.to_string()),
            Err(e) => Err(format!(
                "the provider's answer is malformed: it is no JSON ({e})"
            )),
        };
        let response = match answer {
            Ok(bytes) => {
                self.settle(End::Complete).await;
                body::whole(status, headers, self.redacted(bytes))
            }
            Err(text) => {
                self.given_up(began).await;
                body::error(provider, StatusCode::BAD_GATEWAY, &text)
            }
        };
        deliver(reply, response);
    }

    /// The answer to a call that costs nothing; from a list of models, those the policy doesn't allow are left out.
    fn unmetered(&self, mut value: Value, bytes: &Bytes) -> Bytes {
        let rules = self.context.rules.now();
        let models = match (self.call, value["data"].as_array_mut()) {
            (Call::Models(_), Some(models)) => models,
            _ => return bytes.clone(),
        };
        models.retain(|m| m["id"].as_str().is_some_and(|id| rules.allows_model(id)));
        value.to_string().into()
    }

    /// A streamed answer: relayed event by event until its end, the ceiling, or somebody's leaving.
    async fn relay(mut self, mut incoming: Incoming, sender: mpsc::Sender<Bytes>) {
        let mut parser = SseParser::default();
        let idle = self.context.upstreams.idle_timeout;
        let fault = loop {
            let frame = tokio::select! {
                biased;
                cut = self.entered.cut() => return self.cut(cut, incoming, sender).await,
                () = sender.closed() => return self.settle(End::Aborted).await,
                () = self.cancel.cancelled() => return self.settle(End::Aborted).await,
                frame = tokio::time::timeout(idle, incoming.frame()) => frame,
            };
            let bytes = match frame {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(_))) => break "the model provider's stream broke off".to_owned(),
                Ok(None) if parser.unfinished() == 0 && self.meter.said_finished() => {
                    return self.settle(End::Complete).await;
                }
                Ok(None) => {
                    break "the model provider's stream ended before the answer did".to_owned();
                }
                Err(_) => break format!("the model provider's stream was silent for {idle:?}"),
            };
            parser.push(&bytes);
            match self.relay_events(&mut parser, &sender, idle).await {
                Ok(true) => {}
                Ok(false) => {
                    drop(sender);
                    return drain(incoming).await;
                }
                Err(Stop::Gone(Gone::Client | Gone::Daemon)) => {
                    return self.settle(End::Aborted).await;
                }
                Err(Stop::Fault(text)) => break text,
                Err(Stop::Cut(cut)) => return self.cut(cut, incoming, sender).await,
            }
        };
        let provider = self.call.provider();
        tracing::warn!(%provider, agent = %self.context.identity.name, fault, "a stream of the model provider failed");
        let call = self.call;
        self.settle(End::Aborted).await;
        send_last(
            &sender,
            error_event(call, StatusCode::BAD_GATEWAY, &fault),
            idle,
        )
        .await;
    }

    /// Relays the whole events there are. `Ok(false)`: the last one was among them and the bill is settled.
    async fn relay_events(
        &mut self,
        parser: &mut SseParser,
        sender: &mpsc::Sender<Bytes>,
        idle: Duration,
    ) -> Result<bool, Stop> {
        // Everything that arrived together leaves together.
        let mut ready = BytesMut::new();
        while let Some(event) = parser
            .next_event()
            .map_err(|e| Stop::Fault(e.to_string()))?
        {
            let step = match self.meter.event(&event) {
                Ok(step) => step,
                Err(e) => {
                    self.send(sender, ready.freeze(), idle).await?;
                    return Err(Stop::Fault(e.to_string()));
                }
            };
            match step {
                Step::Hidden => {}
                Step::More => ready.extend_from_slice(&event.raw),
                Step::Last | Step::Failed => {
                    self.send(sender, ready.freeze(), idle).await?;
                    let end = if step == Step::Last {
                        End::Complete
                    } else {
                        End::Aborted
                    };
                    self.settle(end).await;
                    let last = self.redacted(event.raw);
                    self.send(sender, last, idle).await?;
                    return Ok(false);
                }
            }
            if let Some(reservation) = &mut self.reservation {
                let counts = held_to(
                    self.meter.counts(),
                    reservation.granted_output(),
                    self.meter.is_estimate(),
                );
                if let Err(exhausted) = reservation.observe(counts) {
                    self.send(sender, ready.freeze(), idle).await?;
                    return Err(Stop::Cut(Cut::Ceiling(exhausted)));
                }
            }
        }
        self.send(sender, ready.freeze(), idle).await?;
        Ok(true)
    }

    /// Hands bytes to the agent's connection; an agent that doesn't read for `idle` is taken for gone.
    async fn send(
        &self,
        sender: &mpsc::Sender<Bytes>,
        bytes: Bytes,
        idle: Duration,
    ) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        tokio::select! {
            biased;
            cut = self.entered.cut() => Err(Stop::Cut(cut)),
            () = self.cancel.cancelled() => Err(Stop::Gone(Gone::Daemon)),
            sent = tokio::time::timeout(idle, sender.send(bytes)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(Stop::Gone(Gone::Client)),
            },
        }
    }

    /// In the middle of an answer a ceiling is reached, or the rules are others: the provider is left, the agent told.
    async fn cut(mut self, cut: Cut, incoming: Incoming, sender: mpsc::Sender<Bytes>) {
        drop(incoming);
        let call = self.call;
        let idle = self.context.upstreams.idle_timeout;
        self.settle(End::Aborted).await;
        let text = self.context.refuse(&cut).await;
        send_last(
            &sender,
            error_event(call, StatusCode::FORBIDDEN, &text),
            idle,
        )
        .await;
    }

    /// The rules are others before there is an answer to relay.
    async fn cut_unanswered(
        mut self,
        cut: Cut,
        reply: oneshot::Sender<Response<AnswerBody>>,
        began: Instant,
    ) {
        self.given_up(began).await;
        let text = self.context.refuse(&cut).await;
        let provider = self.call.provider();
        deliver(reply, body::error(provider, StatusCode::FORBIDDEN, &text));
    }

    /// Nobody waits for the answer any more, or none came: bills what the provider may have done by now.
    async fn given_up(&mut self, began: Instant) {
        if let Some(reservation) = &mut self.reservation {
            let mut counts = self.meter.counts();
            let most = began
                .elapsed()
                .as_secs()
                .saturating_mul(MAX_TOKENS_PER_SECOND);
            counts.output = counts.output.max(most.min(reservation.granted_output()));
            // An answer that can't be relayed any more need not be stopped: only the bill matters.
            let over = reservation.observe(counts);
            if over.is_err() {
                tracing::debug!("an abandoned request went over the ceiling");
            }
            self.bill(counts, true, End::Aborted).await;
        }
    }

    async fn settle(&mut self, end: End) {
        self.bill(self.meter.counts(), self.meter.is_estimate(), end)
            .await;
    }

    /// Bills and records, once.
    async fn bill(&mut self, counts: TokenCounts, estimated: bool, end: End) {
        let Some(reservation) = self.reservation.take() else {
            return;
        };
        let cost = reservation.cost(&counts);
        reservation.settle(counts);
        let usage = Usage {
            source: UsageSource::Gateway,
            provider: self.call.provider().to_string(),
            model: self
                .meter
                .model
                .take()
                .unwrap_or_else(|| self.model.clone()),
            request_id: self.meter.id.take(),
            input: counts.input,
            output: counts.output,
            cache_read: counts.cache_read,
            cache_write: counts.cache_write,
            aborted: end == End::Aborted,
            estimated,
            cost_nano_usd: cost.map(|c| c.0),
        };
        self.context.record(Fact::Usage(usage)).await;
    }
}

/// Why relaying stopped.
enum Stop {
    Gone(Gone),
    Fault(String),
    Cut(Cut),
}

/// The counts to hold against the ceiling: an estimate of the output may be half too high and is no reason to stop a
/// provider that keeps to the limit it was given; one that plainly doesn't is stopped.
fn held_to(mut counts: TokenCounts, granted: u64, estimate: bool) -> TokenCounts {
    let plainly_over = granted.saturating_add(granted / 2).saturating_add(64);
    if estimate && counts.output <= plainly_over {
        counts.output = counts.output.min(granted);
    }
    counts
}

fn deliver(reply: oneshot::Sender<Response<AnswerBody>>, response: Response<AnswerBody>) {
    if reply.send(response).is_err() {
        tracing::debug!("the agent left before its answer");
    }
}

async fn send_last(sender: &mpsc::Sender<Bytes>, bytes: Bytes, idle: Duration) {
    if !matches!(
        tokio::time::timeout(idle, sender.send(bytes)).await,
        Ok(Ok(()))
    ) {
        tracing::debug!("the agent left before the end of its stream");
    }
}

/// Reads what is left after the last event, so that the connection can be used again.
async fn drain(incoming: Incoming) {
    let rest = Limited::new(incoming, 64 << 10).collect();
    if !matches!(
        tokio::time::timeout(Duration::from_secs(1), rest).await,
        Ok(Ok(_))
    ) {
        tracing::trace!("a provider's connection is not reused");
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

impl GatewayContext {
    /// Puts a fact on record before it goes on. A record that can't be written is reported and stops no one: the
    /// store's health is watched elsewhere.
    pub(super) async fn record(&self, fact: Fact) {
        let event = Event::now(self.identity.id.to_string(), fact);
        if let Err(error) = self.store.record_durable(event).await {
            tracing::error!(agent = %self.identity.name, error = %chain(&error), "the gateway cannot write the record");
        }
    }

    /// The tightening that set this limit as it is.
    pub(super) fn limited_by(&self, key: &str) -> Option<tighten::Refused> {
        let origin = self.rules.now().limited_by(key)?.clone();
        let why = key.to_owned();
        Some(tighten::Refused { why, origin })
    }

    /// Records why an answer is cut; what the agent is told.
    async fn refuse(&self, cut: &Cut) -> String {
        match cut {
            Cut::Ceiling(exhausted) => {
                let key = exhausted.key();
                let by = self.limited_by(key).map(|by| by.origin);
                self.deny(exhausted.what(), &exhausted.to_string(), key, by.as_ref())
                    .await;
                let line = match by {
                    Some(line) => format!("{line}, laid over the agent's policy while it runs"),
                    None => format!("{key} of the policy"),
                };
                format!("{exhausted}; the answer was cut here ({line})")
            }
            Cut::Rule { what, target, by } => {
                self.deny(what, target, &by.why, Some(&by.origin)).await;
                format!("{}; the answer was cut here", by.why)
            }
        }
    }

    /// Records a refusal; `origin` is the line of a tightening.
    pub(super) async fn deny(&self, what: &str, target: &str, rule: &str, origin: Option<&Origin>) {
        let denial = Denial {
            layer: "gateway".into(),
            what: what.into(),
            target: target.chars().take(300).collect(),
            rule: rule.into(),
            origin: match origin {
                Some(line) => Some(line.to_string()),
                None => key_of(what, rule).and_then(|key| self.lines.line(key)),
            },
        };
        self.record(Fact::Denial(denial)).await;
    }
}

/// The key of the policy that such a refusal comes from; `None` for what no policy allows.
fn key_of(what: &str, rule: &str) -> Option<&'static str> {
    Some(match what {
        // The gateway has no such call, whatever a policy says.
        _ if rule == "default" => return None,
        "call" => "model.access",
        "model" => "model.models",
        "tokens" => "limits.tokens",
        // One without a price can't be held to a cost.
        "cost" | "price" => "limits.cost",
        _ => return None,
    })
}
