//! An agent's rights on the bus, for the daemon's own parts that act in its name: the MCP server and
//! the drivers.
//!
//! A port is a connection of the router without a socket: it goes through the same checks and the same
//! bounded queues as the agent's own processes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentd_api::AgentIdentity;
use agentd_bus::frame::{Frame, HEADER_LEN, PeerId, flags, kind};
use agentd_bus::listing::InboxBatch;
use agentd_bus::message::{
    Control, Delivery, Event, MessageError, Request, Response, Status, SubscribeOptions,
};
use agentd_bus::router::ConnId;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::requests::Requests;
use super::server::{ConnHandle, UserBus};
use super::types::{BusError, Inbox, Message, PeerInfo, Reply};

/// One agent on the bus. Clones share it.
#[derive(Clone, Debug)]
pub struct AgentPort {
    inner: Arc<PortInner>,
}

struct PortInner {
    bus: UserBus,
    identity: AgentIdentity,
    id: PeerId,
    conn: Option<ConnId>,
    calls: Arc<Calls>,
    gone: CancellationToken,
}

impl std::fmt::Debug for PortInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortInner")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Calls that await their answers, by correlation id.
#[derive(Debug, Default)]
struct Calls {
    next: AtomicU32,
    open: Mutex<HashMap<u32, oneshot::Sender<Frame>>>,
}

impl Calls {
    fn begin(&self) -> (u32, oneshot::Receiver<Frame>) {
        let (sender, receiver) = oneshot::channel();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let id = self.next.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if id != 0 && !open.contains_key(&id) {
                open.insert(id, sender);
                return (id, receiver);
            }
        }
    }

    fn end(&self, id: u32) -> Option<oneshot::Sender<Frame>> {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id)
    }
}

impl AgentPort {
    pub(super) fn start(bus: UserBus, identity: AgentIdentity, gone: CancellationToken) -> Self {
        let id = PeerId(*identity.id.0.as_bytes());
        let calls = Arc::new(Calls::default());
        // Detached in the same moment: every call says so.
        let conn = bus.connect(id).ok().map(|(conn, handle)| {
            tokio::spawn(deliver_answers(
                bus.clone(),
                conn,
                handle,
                calls.clone(),
                gone.clone(),
            ));
            conn
        });
        Self {
            inner: Arc::new(PortInner {
                bus,
                identity,
                id,
                conn,
                calls,
                gone,
            }),
        }
    }

    /// Whose port this is.
    pub fn identity(&self) -> &AgentIdentity {
        &self.inner.identity
    }

    /// Largest payload that fits into one message, bytes.
    pub fn max_payload(&self) -> usize {
        // Room for the longest fixed part and texts of a request or event.
        self.inner.bus.limits().max_payload as usize - 4 * HEADER_LEN
    }

    /// The live agents of the same user, this one left out.
    pub async fn agents(&self) -> Result<Vec<PeerInfo>, BusError> {
        self.check_attached()?;
        let id = self.inner.id;
        let list = self
            .inner
            .bus
            .shard
            .ask(move |router, now, _| router.agents(id, now));
        let list = list.await.ok_or_else(left_the_bus)?;
        Ok(list.into_iter().map(PeerInfo::from).collect())
    }

    /// Puts a message into the inbox of the agent named (or with the id) `to`.
    pub async fn send(
        &self,
        to: &str,
        event_type: &str,
        payload: impl Into<Vec<u8>>,
    ) -> Result<(), BusError> {
        let to = self.resolve(to).await?;
        let data = self.fit(payload.into())?;
        let payload = Event::normal(event_type, "", &data)
            .encode()
            .map_err(malformed)?;
        self.call(kind::EVENT, to, payload).await.map(drop)
    }

    /// Asks the agent `to` and waits for its answer. Dropping the future withdraws the request.
    pub async fn request(
        &self,
        to: &str,
        method: &str,
        payload: impl Into<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Reply, BusError> {
        let to = self.resolve(to).await?;
        let params = self.fit(payload.into())?;
        let timeout_ms = u32::try_from(timeout.as_millis())
            .unwrap_or(u32::MAX)
            .max(1);
        let payload = Request {
            method,
            params: &params,
            timeout_ms,
        }
        .encode()
        .map_err(malformed)?;
        let (from, payload) = self.call(kind::REQUEST, to, payload).await?;
        Ok(Reply {
            from_id: Uuid::from_bytes(from.0),
            payload,
        })
    }

    /// Answers a request that was read from the inbox. A long `Err` text goes along in full.
    pub async fn respond(
        &self,
        request_id: u32,
        result: Result<Vec<u8>, String>,
    ) -> Result<(), BusError> {
        let conn = self.check_attached()?;
        respond(&self.inner.bus, conn, request_id, result).await
    }

    /// Takes up to `max` messages; with none there, waits up to `wait` for the first.
    pub async fn inbox(&self, max: usize, wait: Duration) -> Result<Inbox, BusError> {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let result = self.control(Control::Inbox { max, wait_ms }).await?;
        let batch = InboxBatch::parse(&result).map_err(malformed)?;
        let messages = batch
            .messages
            .into_iter()
            .filter_map(|(name, frame)| Message::from_frame(name, &frame))
            .collect();
        Ok(Inbox {
            messages,
            lost: batch.lost,
        })
    }

    /// Publishes to `topic`; the number of subscribers reached.
    pub async fn publish(
        &self,
        topic: &str,
        event_type: &str,
        payload: impl Into<Vec<u8>>,
    ) -> Result<u32, BusError> {
        let data = self.fit(payload.into())?;
        let payload = Event::normal(event_type, topic, &data)
            .encode()
            .map_err(malformed)?;
        let (_, result) = self.call(kind::EVENT, PeerId::BUS, payload).await?;
        Ok(result.try_into().map_or(0, u32::from_le_bytes))
    }

    /// From now on, messages to topics that `pattern` covers come into this agent's inbox.
    pub async fn subscribe(&self, pattern: &str) -> Result<(), BusError> {
        self.control(Control::Subscribe {
            delivery: Delivery::Inbox,
            options: SubscribeOptions::default(),
            pattern,
        })
        .await
        .map(drop)
    }

    /// Undoes [`Self::subscribe`].
    pub async fn unsubscribe(&self, pattern: &str) -> Result<(), BusError> {
        self.control(Control::Unsubscribe {
            delivery: Delivery::Inbox,
            pattern,
        })
        .await
        .map(drop)
    }

    /// From now on the caller answers requests to this agent, at most `window` open ones at a time.
    /// Dropping the receiver stops it.
    pub fn serve_requests(&self, window: u32) -> Result<Requests, BusError> {
        self.check_attached()?;
        Requests::start(
            self.inner.bus.clone(),
            self.inner.id,
            window,
            self.inner.gone.clone(),
        )
    }

    /// The agent has ended: everyone who waits for it is told, its connections close. Idempotent.
    pub fn detach(&self) {
        self.inner.bus.detach(self.inner.id);
        self.inner.gone.cancel();
    }

    fn check_attached(&self) -> Result<ConnId, BusError> {
        match self.inner.conn {
            Some(conn) if !self.inner.gone.is_cancelled() => Ok(conn),
            _ => Err(left_the_bus()),
        }
    }

    async fn resolve(&self, to: &str) -> Result<PeerId, BusError> {
        let (uid, name) = (self.inner.identity.uid, to.to_owned());
        let found = self
            .inner
            .bus
            .shard
            .ask(move |router, _, _| router.lookup(uid, &name));
        found
            .await
            .flatten()
            .or_else(|| Uuid::try_parse(to).ok().map(|id| PeerId(*id.as_bytes())))
            .ok_or_else(|| {
                let text =
                    format!("no agent called {to:?} is on the bus; list the agents to see who is");
                BusError::new(Status::NO_SUCH_AGENT, text)
            })
    }

    fn fit(&self, payload: Vec<u8>) -> Result<Vec<u8>, BusError> {
        let (len, limit) = (payload.len(), self.max_payload());
        if len > limit {
            let text = format!(
                "a payload of {len} bytes is over the limit of {limit}; send it in parts, or as a file"
            );
            return Err(BusError::new(Status::TOO_LARGE, text));
        }
        Ok(payload)
    }

    pub(super) async fn control(&self, control: Control<'_>) -> Result<Vec<u8>, BusError> {
        let payload = control.encode().map_err(malformed)?;
        self.call(kind::COMMAND, PeerId::BUS, payload)
            .await
            .map(|(_, result)| result)
    }

    /// Sends one frame that will be answered, and gives the answer's source and result.
    async fn call(
        &self,
        bits: u16,
        to: PeerId,
        payload: Vec<u8>,
    ) -> Result<(PeerId, Vec<u8>), BusError> {
        let conn = self.check_attached()?;
        let (correlation, receiver) = self.inner.calls.begin();
        let call = OpenCall {
            port: &self.inner,
            conn,
            correlation,
            withdraw: bits == kind::REQUEST,
        };
        let mut frame = Frame::new(bits, to, correlation, payload);
        frame.header.flags = (frame.header.flags.get() | flags::ACK).into();
        self.inner.bus.say(conn, frame);
        self.inner.bus.throttle().await;
        let answer = tokio::select! {
            biased;
            answer = receiver => answer.map_err(|_| left_the_bus())?,
            () = self.inner.gone.cancelled() => return Err(left_the_bus()),
        };
        drop(call);
        let response = Response::parse(&answer.payload).map_err(malformed)?;
        if response.status == Status::OK {
            return Ok((answer.header.source, response.result.to_vec()));
        }
        Err(BusError::new(response.status, full_error_text(&response)))
    }
}

/// Cleans up after a call, also when its future was dropped half-way.
struct OpenCall<'a> {
    port: &'a PortInner,
    conn: ConnId,
    correlation: u32,
    withdraw: bool,
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        let unanswered = self.port.calls.end(self.correlation).is_some();
        if unanswered && self.withdraw {
            let payload = Control::Cancel {
                request: self.correlation,
            }
            .encode()
            .expect("fixed size");
            let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
            self.port.bus.say(self.conn, frame);
        }
    }
}

/// Hands the router's answers to the calls that wait for them.
async fn deliver_answers(
    bus: UserBus,
    conn: ConnId,
    handle: Arc<ConnHandle>,
    calls: Arc<Calls>,
    gone: CancellationToken,
) {
    loop {
        while let Some(frame) = bus.pull(conn).await {
            if frame.kind() & kind::RESPONSE != 0
                && let Some(waiting) = calls.end(frame.correlation())
            {
                // The caller may have gone in this moment; then nobody needs the answer.
                drop(waiting.send(frame));
            }
        }
        tokio::select! {
            () = gone.cancelled() => return,
            () = handle.wake.notified() => {}
        }
    }
}

/// Sends the answer to request `request_id` on `conn`.
pub(super) async fn respond(
    bus: &UserBus,
    conn: ConnId,
    request_id: u32,
    result: Result<Vec<u8>, String>,
) -> Result<(), BusError> {
    let limit = bus.limits().max_payload as usize - 4 * HEADER_LEN;
    let too_large = match &result {
        Ok(bytes) => (bytes.len() > limit).then_some(bytes.len()),
        Err(text) => (text.len() > limit).then_some(text.len()),
    };
    let payload = match (&result, too_large) {
        (_, Some(len)) => {
            let error = format!("the answer of {len} bytes is over the bus's limit of {limit}");
            Response {
                status: Status::FAILED,
                error: &error,
                result: &[],
            }
            .encode()
        }
        (Ok(bytes), None) => Response::ok(bytes).encode(),
        (Err(text), None) if text.len() <= agentd_bus::message::ERROR_MAX => Response {
            status: Status::FAILED,
            error: text,
            result: &[],
        }
        .encode(),
        // The error field is short by design; a longer text goes along whole, as the result.
        (Err(text), None) => Response {
            status: Status::FAILED,
            error: "",
            result: text.as_bytes(),
        }
        .encode(),
    };
    let frame = Frame::new(
        kind::RESPONSE,
        PeerId::BUS,
        request_id,
        payload.map_err(malformed)?,
    );
    // An answer that reached someone leaves an entry for the record.
    let delivered = bus.shard.ask(move |router, now, fx| {
        let before = fx.record.len();
        router.frame(conn, frame, None, now, fx);
        fx.record.len() > before
    });
    let delivered = delivered.await.unwrap_or(false);
    bus.throttle().await;
    match too_large {
        Some(len) => {
            let text = format!(
                "the answer of {len} bytes is over the limit of {limit}; the requester was told"
            );
            Err(BusError::new(Status::TOO_LARGE, text))
        }
        None if delivered => Ok(()),
        None => {
            let text = format!(
                "request {request_id} waits for no answer: it was answered, cancelled or too late"
            );
            Err(BusError::new(Status::NO_SUCH_REQUEST, text))
        }
    }
}

/// The error text of a failed answer, or its result where that carries a longer one.
fn full_error_text(response: &Response<'_>) -> String {
    if response.error.is_empty() && !response.result.is_empty() {
        String::from_utf8_lossy(response.result).into_owned()
    } else {
        response.error.to_owned()
    }
}

pub(super) fn malformed(error: MessageError) -> BusError {
    BusError::new(Status::MALFORMED, error.to_string())
}

pub(super) fn left_the_bus() -> BusError {
    BusError::new(Status::PEER_GONE, "this agent has left the bus")
}
