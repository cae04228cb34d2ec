//! What an agent links to be on the bus: blocking calls over the socket that the sandbox provides.
//!
//! ```no_run
//! use std::time::Duration;
//! # fn main() -> Result<(), agentd_bus::client::ClientError> {
//! let bus = agentd_bus::client::Client::connect()?; // $AGENTD_BUS
//! let reply = bus.request("fixer", "fix", br#"{"test":"adds"}"#, Duration::from_secs(60))?;
//! println!("{}", String::from_utf8_lossy(&reply.result));
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is shared freely between threads. It has one thread of its own, which reads the socket
//! and sends heartbeats, and a second one where it is on the direct path, which reads that; every queue
//! they fill is bounded. Fails with [`ClientError`].
//!
//! The daemon behind the socket may be restarted while the agent lives. The socket goes on listening meanwhile, so the
//! next call after the loss connects anew and waits for the daemon's successor; subscriptions, requests and lane offers
//! are taken up again by the one who waits for them. A call that was under way fails with [`ClientError::Lost`], because
//! nobody can say whether it was done: it is for the program to make it again. A lane ends with
//! [`Status::REPLACED`] after everything that was put into it has been received; its sender opens another, or had
//! opened a [`LastingLane`], which does that by itself.

mod bulk;
mod direct;
mod ends;
mod guard;
mod inbox;
mod lanes;
mod link;
mod logs;
mod mailbox;
mod pipeline;
mod queue;
mod route;
mod sealed;
mod serve;
mod topics;

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::channel::Tier;
use crate::frame::{Frame, PeerId, flags, kind};
use crate::listing::{InboxBatch, PeerEntry, Welcome};
use crate::message::{
    self, Control, Event, HELLO_SHARED_MEMORY, MessageError, Request, Response, Status,
    SubscribeOptions,
};
use crate::protect::policy::Addressee;
use crate::protect::{ProtectError, Protection};
use crate::shm::{barrier, park};

pub use bulk::{BulkLaneReceiver, BulkLaneSender, IntoBulkError};
pub use direct::DirectUse;
pub use ends::{BellRefused, SegmentAnnouncer, SegmentArrival, SegmentArrivals};
pub use guard::{Refusal, Refusals};
pub use lanes::{
    DEFAULT_SLOTS, LaneError, LaneOffer, LaneOffers, LaneOptions, LaneReceiver, LaneSender,
    LastingError, LastingLane, SLOTS_MIN,
};
pub use logs::{
    FollowOptions, LastingLog, LastingLogError, LogError, LogOptions, LogReader, LogReaders,
    LogWriter,
};
pub use mailbox::Received;
pub use pipeline::{Answer, Done, Pipeline, PipelineError, Ticket, WINDOW_MAX};
pub use queue::{Consumer, Delivery, ProduceError, Producer, Queue};
pub use sealed::{Body, HELD_MAX as SEALED_HELD_MAX, InPlaceError, SealedSendError};
pub use serve::{Incoming, Requests, Subscription};
pub use topics::PublishOptions;

use direct::Asking;
use guard::Guard;
use link::Link;
use route::{ROUTE_SLOTS, Route};

/// Where the sandbox says the bus is.
pub const BUS_ENV: &str = "AGENTD_BUS";
/// How much longer than a request's own time-out to wait for the bus to say that it passed.
const GRACE: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "{BUS_ENV} is not set: this program was not started by agentd; name the socket to connect to"
    )]
    NotInAgent,
    #[error("bus socket {path}: {source}")]
    Connect {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The bus, or the agent at the other end, refused or failed.
    #[error("{status}: {text}")]
    Refused { status: Status, text: String },
    #[error("the connection to the bus is closed: {why}")]
    Closed { why: String },
    /// It may have been done or not. Another call finds the bus again.
    #[error("the connection to the bus was lost before the answer came ({why}); try again")]
    Lost { why: String },
    #[error("no answer from the bus within {seconds} s")]
    NoAnswer { seconds: u64 },
    #[error(transparent)]
    Message(#[from] MessageError),
    /// What was to go out could not be protected, or an answer was not believed.
    #[error(transparent)]
    Protect(#[from] ProtectError),
    #[error("a payload of {len} bytes is over this bus's limit of {limit}")]
    TooLarge { len: usize, limit: usize },
}

impl ClientError {
    /// What the bus said, if it was the bus that said it.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same call may succeed now, if it does no harm to make it twice.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Who answered.
    pub from: PeerId,
    pub result: Vec<u8>,
}

/// One agent's connection to the bus. Clones share it; the last one to go closes it.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
    guard: Arc<Guard>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// The connection that serves now. Held while another is made: whoever needs one waits for it.
    link: Mutex<Arc<Link>>,
    welcome: Welcome,
    /// What the present connection was told of shared memory.
    tier: Mutex<Tier>,
    routing: Routing,
    /// A second connection, whose frames go by shared memory, once something wanted one.
    routed: Mutex<Routed>,
    /// What was published so far.
    published: AtomicU32,
    /// Ids of agents that were addressed by name.
    names: Mutex<HashMap<String, PeerId>>,
    direct: Mutex<DirectUse>,
}

/// Whether queues and topics go by routed shared memory where the tier allows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// From the first use of a queue on, and from the sixteenth publish.
    #[default]
    Auto,
    /// Never: everything goes over the socket.
    Socket,
    /// This connection itself, from the start.
    Whole,
}

/// The connection whose frames go by shared memory.
#[derive(Debug, Default)]
enum Routed {
    #[default]
    NotTried,
    Open(Client),
    Refused,
}

/// Publishes over the socket before rings are opened for them: they cost a connection, half a mebibyte and a millisecond.
const PUBLISHED_BEFORE_ROUTE: u32 = 16;

impl Client {
    /// Connects to the bus of the sandbox this program runs in.
    pub fn connect() -> Result<Self, ClientError> {
        let path = std::env::var_os(BUS_ENV).ok_or(ClientError::NotInAgent)?;
        Self::connect_to(Path::new(&path))
    }

    /// Connects to the bus socket at `path`.
    pub fn connect_to(path: &Path) -> Result<Self, ClientError> {
        Self::connect_with(path, Routing::Auto)
    }

    /// As [`Self::connect_to`], and says what may go by routed shared memory. With [`Routing::Whole`] all that this
    /// client does goes that way from the start, if the tier allows it ([`Self::is_routed`]).
    pub fn connect_with(path: &Path, routing: Routing) -> Result<Self, ClientError> {
        let (link, welcome) = greet(path, routing)?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                link: Mutex::new(link),
                tier: Mutex::new(welcome.tier),
                routing,
                routed: Mutex::default(),
                published: AtomicU32::new(0),
                welcome,
                names: Mutex::default(),
                direct: Mutex::default(),
            }),
            guard: Arc::new(Guard::new(Protection::default())),
        })
    }

    /// This connection with `protection`: from here on whatever the clone that is returned sends is protected as that says, and
    /// whatever it hands out has been verified. Requests, subscriptions and reads of the inbox that were begun before are not.
    ///
    /// A frame that is handed out has a plain payload; the signed or sealed flag in its header then says how it came.
    #[must_use]
    pub fn with_protection(&self, protection: Protection) -> Self {
        Self {
            inner: self.inner.clone(),
            guard: Arc::new(Guard::new(protection)),
        }
    }

    /// What was not believed since the last call.
    pub fn refused(&self) -> Refusals {
        self.guard.take_refusals()
    }

    /// The connection that serves, made anew if the last one was lost.
    fn link(&self) -> Result<Arc<Link>, ClientError> {
        let mut link = self
            .inner
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = link.lost() {
            let (anew, welcome) =
                greet(&self.inner.path, self.inner.routing).map_err(|error| match error {
                    // Nobody listens: the bus has gone for good.
                    ClientError::Connect { .. } => ClientError::Closed { why },
                    other => other,
                })?;
            *link = anew;
            *self
                .inner
                .tier
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = welcome.tier;
        }
        Ok(link.clone())
    }

    /// Whether frames of this connection go by routed shared memory now.
    pub fn is_routed(&self) -> bool {
        self.link().is_ok_and(|link| link.is_routed())
    }

    /// This client with its traffic on routed shared memory, where the tier and [`Routing`] allow it; else itself. The
    /// first call opens the rings, over a connection of their own.
    pub fn routed(&self) -> Self {
        if self.inner.routing != Routing::Auto || self.tier() != Tier::SharedMemory {
            return self.clone();
        }
        let mut routed = self
            .inner
            .routed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if matches!(*routed, Routed::NotTried) {
            *routed = match Self::connect_with(&self.inner.path, Routing::Whole) {
                Ok(client) if client.is_routed() => Routed::Open(client),
                // An older bus, or too many connections: the socket that is there does it too.
                Ok(_) | Err(_) => Routed::Refused,
            };
        }
        let Routed::Open(client) = &*routed else {
            return self.clone();
        };
        let client = client.clone();
        Self {
            guard: self.guard.clone(),
            ..client
        }
    }

    /// Says when small requests take the direct path, where there is one. It holds for all clones.
    pub fn use_direct(&self, how: DirectUse) {
        let direct = self.inner.direct.lock();
        *direct.unwrap_or_else(PoisonError::into_inner) = how;
    }

    fn direct_use(&self) -> DirectUse {
        let direct = self.inner.direct.lock();
        *direct.unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the agent this connection speaks for.
    pub fn name(&self) -> &str {
        &self.inner.welcome.name
    }

    /// How this agent's messages may travel, and why.
    pub fn tier(&self) -> Tier {
        *self
            .inner
            .tier
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Its id.
    pub fn id(&self) -> PeerId {
        self.inner.welcome.id
    }

    /// The other agents of the same user.
    pub fn agents(&self) -> Result<Vec<PeerEntry>, ClientError> {
        let answer = self.control(Control::Agents)?;
        Ok(PeerEntry::parse_list(ok_result(&answer)?.result)?)
    }

    /// Puts a message into the inbox of the agent called `to`. Returns once the bus has it there.
    pub fn send(&self, to: &str, event_type: &str, data: &[u8]) -> Result<(), ClientError> {
        let payload = Event::normal(event_type, "", data).encode()?;
        self.addressed(to, |id| {
            let to = (id, Addressee::Agent(to));
            self.acknowledged(kind::EVENT, to, payload.clone(), None)
        })
        .map(drop)
    }

    /// Asks the agent called `to` and waits for its answer.
    pub fn request(
        &self,
        to: &str,
        method: &str,
        params: &[u8],
        timeout: Duration,
    ) -> Result<Reply, ClientError> {
        let timeout_ms = u32::try_from(timeout.as_millis())
            .unwrap_or(u32::MAX)
            .max(1);
        let payload = Request {
            method,
            params,
            timeout_ms,
        }
        .encode()?;
        let asking = Asking::about(self, to, &payload);
        if let Some(asking) = &asking
            && let Some(reply) = asking.ask(&payload, timeout)?
        {
            return Ok(reply);
        }
        let wait = Some(timeout.saturating_add(GRACE));
        let answer = self.addressed(to, |id| {
            let to = (id, Addressee::Agent(to));
            self.acknowledged(kind::REQUEST, to, payload.clone(), wait)
        })?;
        if let Some(asking) = asking {
            asking.answered_by_bus();
        }
        Ok(Reply {
            from: answer.header.source,
            result: ok_result(&answer)?.result.to_vec(),
        })
    }

    /// Answers request `id`, which was read from the inbox.
    pub fn respond(&self, id: u32, result: Result<&[u8], &str>) -> Result<(), ClientError> {
        let answering = self.guard.answering(id);
        serve::respond(&*self.link()?, self, answering.as_ref(), id, result)
    }

    /// Takes up to `max` messages out of the inbox; with none there, waits up to `wait` for the first. What does not verify is
    /// left out (see [`Self::refused`]), so there may be none even so.
    pub fn inbox(&self, max: u32, wait: Duration) -> Result<InboxBatch, ClientError> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let payload = Control::Inbox { max, wait_ms }.encode()?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        let answer = self.link()?.call(frame, Some(wait.saturating_add(GRACE)))?;
        self.verified_inbox(InboxBatch::parse(ok_result(&answer)?.result)?)
    }

    /// What of a read of the inbox is believed.
    fn verified_inbox(&self, batch: InboxBatch) -> Result<InboxBatch, ClientError> {
        let mut messages = Vec::with_capacity(batch.messages.len());
        for (name, frame) in batch.messages {
            let (from, id, bits) = (frame.header.source, frame.correlation(), frame.kind());
            match self.guard.open_from_inbox(frame, self.id()) {
                Ok(frame) => messages.push((name, frame)),
                Err(why) => {
                    if bits == kind::REQUEST {
                        self.respond(id, Err(&why.to_string()))?;
                    }
                    self.guard.refuse(from, why);
                }
            }
        }
        let lost = batch.lost;
        Ok(InboxBatch { lost, messages })
    }

    /// Publishes to `topic`; how many subscribers it reached.
    pub fn publish(&self, topic: &str, event_type: &str, data: &[u8]) -> Result<u32, ClientError> {
        let payload = Event::normal(event_type, topic, data).encode()?;
        let to = (PeerId::BUS, Addressee::Topic(topic));
        let published = self.inner.published.fetch_add(1, Ordering::Relaxed);
        let answer = if published < PUBLISHED_BEFORE_ROUTE {
            self.acknowledged(kind::EVENT, to, payload, None)?
        } else {
            // Each publish has been answered before the next: their order does not depend on the way.
            self.routed().acknowledged(kind::EVENT, to, payload, None)?
        };
        let result = ok_result(&answer)?.result;
        Ok(result.try_into().map_or(0, u32::from_le_bytes))
    }

    /// A message to the inbox of every agent that this one may send to; how many took it.
    pub fn broadcast(&self, event_type: &str, data: &[u8]) -> Result<u32, ClientError> {
        let payload = Event::normal(event_type, "", data).encode()?;
        let to = (PeerId::BUS, Addressee::All);
        let answer = self.acknowledged(kind::EVENT | kind::BROADCAST, to, payload, None)?;
        let result = ok_result(&answer)?.result;
        Ok(result.try_into().map_or(0, u32::from_le_bytes))
    }

    /// Messages to topics that `pattern` covers, as they come.
    pub fn subscribe(&self, pattern: &str) -> Result<Subscription, ClientError> {
        self.subscribe_with(pattern, SubscribeOptions::default())
    }

    /// The same, with what happens when this program reads too slowly, and whether what the topics retain comes first.
    pub fn subscribe_with(
        &self,
        pattern: &str,
        options: SubscribeOptions,
    ) -> Result<Subscription, ClientError> {
        Subscription::start(self.clone(), pattern, options)
    }

    /// From now on, messages to topics that `pattern` covers come into the agent's inbox.
    pub fn follow(&self, pattern: &str) -> Result<(), ClientError> {
        let answer = self.control(Control::Subscribe {
            delivery: message::Delivery::Inbox,
            options: SubscribeOptions::default(),
            pattern,
        })?;
        ok_result(&answer).map(drop)
    }

    /// From now on this connection takes requests to the agent, at most `window` open ones at a time.
    pub fn serve(&self, window: u32) -> Result<Requests, ClientError> {
        Requests::start(self.clone(), window)
    }

    fn max_payload(&self) -> u32 {
        self.inner.welcome.max_payload
    }

    fn control(&self, control: Control<'_>) -> Result<Frame, ClientError> {
        command(&*self.link()?, control)
    }

    fn acknowledged(
        &self,
        bits: u16,
        (to, addressee): (PeerId, Addressee<'_>),
        payload: Vec<u8>,
        wait: Option<Duration>,
    ) -> Result<Frame, ClientError> {
        self.acknowledged_with(bits, 1, (to, addressee), payload, wait)
    }

    /// With these flags besides the one that asks for the answer.
    fn acknowledged_with(
        &self,
        bits: u16,
        header_flags: u32,
        (to, addressee): (PeerId, Addressee<'_>),
        payload: Vec<u8>,
        wait: Option<Duration>,
    ) -> Result<Frame, ClientError> {
        let (len, limit) = (payload.len(), self.max_payload() as usize);
        let too_large = |len| ClientError::TooLarge { len, limit };
        if len > limit {
            return Err(too_large(len));
        }
        let mut frame = Frame::new(bits, to, 0, payload);
        frame.header.flags = (header_flags | flags::ACK).into();
        let (frame, asked) = self.guard.outgoing(frame, self.id(), to, addressee)?;
        if frame.payload.len() > limit {
            return Err(too_large(frame.payload.len()));
        }
        let answer = self.link()?.call(frame, wait)?;
        let answer = self.guard.answer(answer, self.id(), asked)?;
        ok_result(&answer)?;
        Ok(answer)
    }

    /// Runs `call` with the id of the agent called `name`. A remembered id may be that of an earlier
    /// agent of the name: then it is looked up again, once.
    fn addressed(
        &self,
        name: &str,
        mut call: impl FnMut(PeerId) -> Result<Frame, ClientError>,
    ) -> Result<Frame, ClientError> {
        if let Some(id) = self.remembered(name) {
            match call(id) {
                // Nothing was delivered, so trying again can't deliver it twice.
                Err(error) if error.status() == Some(Status::NO_SUCH_AGENT) => {}
                other => return other,
            }
        }
        call(self.look_up(name)?)
    }

    fn remembered(&self, name: &str) -> Option<PeerId> {
        let names = self.inner.names.lock();
        let names = names.unwrap_or_else(PoisonError::into_inner);
        names.get(name).copied()
    }

    /// An agent has gone: perhaps another has its name now.
    fn forget_names(&self) {
        let names = self.inner.names.lock();
        names.unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Asks the bus for the id of the agent called `name`, and remembers it.
    fn look_up(&self, name: &str) -> Result<PeerId, ClientError> {
        let answer = self.control(Control::Lookup { name })?;
        let id = ok_result(&answer)?.result;
        let id = PeerId(
            id.try_into()
                .map_err(|_| MessageError::Missing { what: "agent id" })?,
        );
        let names = self.inner.names.lock();
        let mut names = names.unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_owned(), id);
        Ok(id)
    }
}

/// A connection that has said hello.
fn greet(path: &Path, routing: Routing) -> Result<(Arc<Link>, Welcome), ClientError> {
    let failed = |source| ClientError::Connect {
        path: path.to_owned(),
        source,
    };
    let stream = UnixStream::connect(path).map_err(failed)?;
    let link = Link::start(stream).map_err(failed)?;
    // Once per process; lost at exec, hence here. Refused, both sides of a channel pay a fence instead.
    barrier::register();
    let able = park::probe_waitv().is_ok();
    let hello = Control::Hello {
        version: crate::frame::VERSION,
        options: if able { HELLO_SHARED_MEMORY } else { 0 },
    };
    let answer = command(&link, hello)?;
    let welcome = Welcome::parse(ok_result(&answer)?.result)?;
    link.set_heartbeat(Duration::from_millis(u64::from(welcome.heartbeat_ms)));
    if routing == Routing::Whole && welcome.tier == Tier::SharedMemory {
        match Route::open(&link, ROUTE_SLOTS, welcome.max_payload) {
            Ok(route) => link.set_route(route),
            // An older bus, or one without memory to spare: the socket does all.
            Err(LaneError::Client(ClientError::Refused { .. })) => {}
            Err(LaneError::Client(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok((link, welcome))
}

/// A command to the bus, and its answer.
fn command(link: &Link, control: Control<'_>) -> Result<Frame, ClientError> {
    let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, control.encode()?);
    link.call(frame, None)
}

/// The response in `frame`, or the refusal that it is.
fn ok_result(frame: &Frame) -> Result<Response<'_>, ClientError> {
    let response = Response::parse(&frame.payload)?;
    if response.status == Status::OK {
        return Ok(response);
    }
    Err(refusal_of(&response))
}

fn refusal_of(response: &Response<'_>) -> ClientError {
    // A text over the error field's limit travels as the result.
    let text = if response.error.is_empty() {
        String::from_utf8_lossy(response.result).into_owned()
    } else {
        response.error.to_owned()
    };
    ClientError::Refused {
        status: response.status,
        text,
    }
}
