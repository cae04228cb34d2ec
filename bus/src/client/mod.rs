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
//! and sends heartbeats; every queue it fills is bounded. Fails with [`ClientError`]; once the
//! connection is lost every call says so, and the program connects anew.

mod lanes;
mod link;
mod mailbox;
mod serve;

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::frame::{Frame, PeerId, flags, kind};
use crate::listing::{InboxBatch, PeerEntry, Welcome};
use crate::message::{Control, Delivery, Event, MessageError, Request, Response, Status};

pub use lanes::{
    DEFAULT_SLOTS, LaneError, LaneOffer, LaneOffers, LaneReceiver, LaneSender, SLOTS_MIN,
};
pub use mailbox::Received;
pub use serve::{Incoming, Requests, Subscription};

use link::Link;

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
    #[error("no answer from the bus within {seconds} s")]
    NoAnswer { seconds: u64 },
    #[error(transparent)]
    Message(#[from] MessageError),
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
    link: Arc<Link>,
    welcome: Arc<Welcome>,
    /// Ids of agents that were addressed by name.
    names: Arc<Mutex<HashMap<String, PeerId>>>,
}

impl Client {
    /// Connects to the bus of the sandbox this program runs in.
    pub fn connect() -> Result<Self, ClientError> {
        let path = std::env::var_os(BUS_ENV).ok_or(ClientError::NotInAgent)?;
        Self::connect_to(Path::new(&path))
    }

    /// Connects to the bus socket at `path`.
    pub fn connect_to(path: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        let link = Link::start(stream).map_err(failed)?;
        let hello = Control::Hello {
            version: crate::frame::VERSION,
            options: 0,
        }
        .encode()?;
        let answer = link.call(Frame::new(kind::COMMAND, PeerId::BUS, 0, hello), None)?;
        let welcome = Welcome::parse(ok_result(&answer)?.result)?;
        link.set_heartbeat(Duration::from_millis(u64::from(welcome.heartbeat_ms)));
        Ok(Self {
            link,
            welcome: Arc::new(welcome),
            names: Arc::default(),
        })
    }

    /// The name of the agent this connection speaks for.
    pub fn name(&self) -> &str {
        &self.welcome.name
    }

    /// Its id.
    pub fn id(&self) -> PeerId {
        self.welcome.id
    }

    /// The other agents of the same user.
    pub fn agents(&self) -> Result<Vec<PeerEntry>, ClientError> {
        let answer = self.control(Control::Agents)?;
        Ok(PeerEntry::parse_list(ok_result(&answer)?.result)?)
    }

    /// Puts a message into the inbox of the agent called `to`. Returns once the bus has it there.
    pub fn send(&self, to: &str, event_type: &str, data: &[u8]) -> Result<(), ClientError> {
        let payload = Event {
            priority: 1,
            event_type,
            topic: "",
            data,
        }
        .encode()?;
        self.addressed(to, |id| {
            self.acknowledged(kind::EVENT, id, payload.clone(), None)
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
        let wait = Some(timeout.saturating_add(GRACE));
        let answer = self.addressed(to, |id| {
            self.acknowledged(kind::REQUEST, id, payload.clone(), wait)
        })?;
        Ok(Reply {
            from: answer.header.source,
            result: ok_result(&answer)?.result.to_vec(),
        })
    }

    /// Answers request `id`, which was read from the inbox.
    pub fn respond(&self, id: u32, result: Result<&[u8], &str>) -> Result<(), ClientError> {
        serve::respond(&self.link, self.welcome.max_payload, id, result)
    }

    /// Takes up to `max` messages out of the inbox; with none there, waits up to `wait` for the first.
    pub fn inbox(&self, max: u32, wait: Duration) -> Result<InboxBatch, ClientError> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let payload = Control::Inbox { max, wait_ms }.encode()?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        let answer = self.link.call(frame, Some(wait.saturating_add(GRACE)))?;
        Ok(InboxBatch::parse(ok_result(&answer)?.result)?)
    }

    /// Publishes to `topic`; how many subscribers it reached.
    pub fn publish(&self, topic: &str, event_type: &str, data: &[u8]) -> Result<u32, ClientError> {
        let payload = Event {
            priority: 1,
            event_type,
            topic,
            data,
        }
        .encode()?;
        let answer = self.acknowledged(kind::EVENT, PeerId::BUS, payload, None)?;
        let result = ok_result(&answer)?.result;
        Ok(result.try_into().map_or(0, u32::from_le_bytes))
    }

    /// A message to the inbox of every agent that this one may send to; how many took it.
    pub fn broadcast(&self, event_type: &str, data: &[u8]) -> Result<u32, ClientError> {
        let payload = Event {
            priority: 1,
            event_type,
            topic: "",
            data,
        }
        .encode()?;
        let answer =
            self.acknowledged(kind::EVENT | kind::BROADCAST, PeerId::BUS, payload, None)?;
        let result = ok_result(&answer)?.result;
        Ok(result.try_into().map_or(0, u32::from_le_bytes))
    }

    /// Messages to topics that `pattern` covers, as they come.
    pub fn subscribe(&self, pattern: &str) -> Result<Subscription, ClientError> {
        let subscription = Subscription::register(self.link.clone(), pattern);
        let answer = self.control(Control::Subscribe {
            delivery: Delivery::Push,
            pattern,
        })?;
        ok_result(&answer)?;
        Ok(subscription)
    }

    /// From now on, messages to topics that `pattern` covers come into the agent's inbox.
    pub fn follow(&self, pattern: &str) -> Result<(), ClientError> {
        let answer = self.control(Control::Subscribe {
            delivery: Delivery::Inbox,
            pattern,
        })?;
        ok_result(&answer).map(drop)
    }

    /// From now on this connection takes requests to the agent, at most `window` open ones at a time.
    pub fn serve(&self, window: u32) -> Result<Requests, ClientError> {
        let requests = Requests::new(self.link.clone(), self.welcome.max_payload);
        let answer = self.control(Control::Serve { window })?;
        ok_result(&answer)?;
        Ok(requests)
    }

    fn control(&self, control: Control<'_>) -> Result<Frame, ClientError> {
        self.link.call(
            Frame::new(kind::COMMAND, PeerId::BUS, 0, control.encode()?),
            None,
        )
    }

    fn acknowledged(
        &self,
        bits: u16,
        to: PeerId,
        payload: Vec<u8>,
        wait: Option<Duration>,
    ) -> Result<Frame, ClientError> {
        let (len, limit) = (payload.len(), self.welcome.max_payload as usize);
        if len > limit {
            return Err(ClientError::TooLarge { len, limit });
        }
        let mut frame = Frame::new(bits, to, 0, payload);
        frame.header.flags = (frame.header.flags.get() | flags::ACK).into();
        let answer = self.link.call(frame, wait)?;
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
        let remembered = self
            .names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .copied();
        if let Some(id) = remembered {
            match call(id) {
                // Nothing was delivered, so trying again can't deliver it twice.
                Err(error) if error.status() == Some(Status::NO_SUCH_AGENT) => {}
                other => return other,
            }
        }
        let answer = self.control(Control::Lookup { name })?;
        let id = ok_result(&answer)?.result;
        let id = PeerId(
            id.try_into()
                .map_err(|_| MessageError::Missing { what: "agent id" })?,
        );
        self.names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), id);
        call(id)
    }
}

/// The response in `frame`, or the refusal that it is.
fn ok_result(frame: &Frame) -> Result<Response<'_>, ClientError> {
    let response = Response::parse(&frame.payload)?;
    if response.status == Status::OK {
        return Ok(response);
    }
    // A text over the error field's limit travels as the result.
    let text = if response.error.is_empty() {
        String::from_utf8_lossy(response.result).into_owned()
    } else {
        response.error.to_owned()
    };
    Err(ClientError::Refused {
        status: response.status,
        text,
    })
}
