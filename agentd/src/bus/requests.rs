//! Requests to an agent that a part of the daemon answers for it: how another agent's question becomes
//! a driven model's turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentd_bus::frame::{Frame, PeerId, kind};
use agentd_bus::message::{Control, Request};
use agentd_bus::router::ConnId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::port::{left_the_bus, malformed, respond};
use super::server::{ConnHandle, UserBus};
use super::types::{BusError, protection};

/// Cancellation of the requests in hand, by their ids.
type Tokens = Arc<Mutex<HashMap<u32, CancellationToken>>>;

/// Incoming requests for an agent that the daemon answers for.
pub struct Requests {
    bus: UserBus,
    conn: ConnId,
    receiver: mpsc::Receiver<IncomingRequest>,
    stop: CancellationToken,
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests")
            .field("conn", &self.conn)
            .finish_non_exhaustive()
    }
}

impl Requests {
    pub(super) fn start(
        bus: UserBus,
        peer: PeerId,
        window: u32,
        gone: CancellationToken,
    ) -> Result<Self, BusError> {
        let (conn, handle) = bus.connect(peer).map_err(|_| left_the_bus())?;
        let window = window.clamp(1, bus.limits().max_inflight as u32);
        // The router hands out at most `window` at a time, so the channel never makes it wait.
        let (sender, receiver) = mpsc::channel(window as usize);
        let stop = gone.child_token();
        tokio::spawn(take_requests(
            bus.clone(),
            conn,
            handle,
            sender,
            stop.clone(),
        ));
        let payload = Control::Serve { window }.encode().map_err(malformed)?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 1, payload);
        bus.say(conn, frame);
        Ok(Self {
            bus,
            conn,
            receiver,
            stop,
        })
    }

    /// The next request; `None` once the agent was detached. Cancel safe.
    pub async fn next(&mut self) -> Option<IncomingRequest> {
        self.receiver.recv().await
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.stop.cancel();
        // Whoever still waits for an answer is told that it will not come.
        self.bus.disconnect(self.conn);
    }
}

async fn take_requests(
    bus: UserBus,
    conn: ConnId,
    handle: Arc<ConnHandle>,
    sender: mpsc::Sender<IncomingRequest>,
    stop: CancellationToken,
) {
    let tokens = Tokens::default();
    loop {
        while let Some(frame) = bus.pull(conn).await {
            match frame.kind() {
                kind::REQUEST if protection(&frame).is_some() => {
                    let text = "the request is signed or sealed, and this agent is driven by programs that hold no keys";
                    let refused = respond(&bus, conn, frame.correlation(), Err(text.into()));
                    if let Err(error) = refused.await {
                        tracing::debug!(%error, "the refusal of a protected request went nowhere");
                    }
                }
                kind::REQUEST => {
                    let request = IncomingRequest::new(&bus, conn, &frame, &tokens).await;
                    if let Some(request) = request
                        && sender.send(request).await.is_err()
                    {
                        return;
                    }
                }
                kind::COMMAND => {
                    if let Ok(Control::Cancel { request }) = Control::parse(&frame.payload)
                        && let Some(token) = lock(&tokens).remove(&request)
                    {
                        token.cancel();
                    }
                }
                _ => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = handle.wake.notified() => {}
        }
    }
}

fn lock(tokens: &Tokens) -> std::sync::MutexGuard<'_, HashMap<u32, CancellationToken>> {
    tokens.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request. Dropping it unanswered tells the requester that it failed.
pub struct IncomingRequest {
    pub from: String,
    pub from_id: Uuid,
    pub method: String,
    pub payload: Vec<u8>,
    /// How long the requester waits, as it said.
    pub timeout: Duration,
    responder: Responder,
}

impl std::fmt::Debug for IncomingRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IncomingRequest")
            .field("from", &self.from)
            .field("method", &self.method)
            .field("bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

struct Responder {
    bus: UserBus,
    conn: ConnId,
    id: u32,
    tokens: Tokens,
    cancelled: CancellationToken,
    answered: bool,
}

impl IncomingRequest {
    async fn new(bus: &UserBus, conn: ConnId, frame: &Frame, tokens: &Tokens) -> Option<Self> {
        // The router let it through, so it parses.
        let request = Request::parse(&frame.payload).ok()?;
        let asker = frame.header.source;
        let from = bus
            .shard
            .ask(move |router, _, _| router.name(asker).unwrap_or_default().to_owned());
        let from = from.await?;
        let cancelled = CancellationToken::new();
        let id = frame.correlation();
        lock(tokens).insert(id, cancelled.clone());
        Some(Self {
            from,
            from_id: Uuid::from_bytes(asker.0),
            method: request.method.to_owned(),
            payload: request.params.to_vec(),
            timeout: Duration::from_millis(u64::from(request.timeout_ms)),
            responder: Responder {
                bus: bus.clone(),
                conn,
                id,
                tokens: tokens.clone(),
                cancelled,
                answered: false,
            },
        })
    }

    /// Answers. A long `Err` text goes along in full.
    pub async fn respond(mut self, result: Result<Vec<u8>, String>) -> Result<(), BusError> {
        let responder = &mut self.responder;
        responder.answered = true;
        respond(&responder.bus, responder.conn, responder.id, result).await
    }

    /// Resolves when the requester no longer waits: it cancelled, died, or its deadline passed.
    pub async fn cancelled(&self) {
        self.responder.cancelled.cancelled().await;
    }

    /// [`Self::cancelled`] as a token, for work that outlives a borrow.
    pub fn cancellation(&self) -> CancellationToken {
        self.responder.cancelled.clone()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        lock(&self.tokens).remove(&self.id);
        if !self.answered && !self.cancelled.is_cancelled() {
            let (bus, conn, id) = (self.bus.clone(), self.conn, self.id);
            self.bus.runtime().spawn(async move {
                let text = "the agent gave no answer to the request".to_owned();
                if let Err(error) = respond(&bus, conn, id, Err(text)).await {
                    tracing::debug!("unanswered request {id}: {error}");
                }
            });
        }
    }
}
