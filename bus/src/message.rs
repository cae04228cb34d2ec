//! Typed payloads: request, response, event, and the control messages between a client and the bus.
//!
//! Field limits are part of the format: a longer field is an error at both ends, never cut. All
//! integers are little-endian, all text is UTF-8. `docs/bus.md` has the same tables for people.
//!
//! Pure; parses untrusted bytes by copy-free views that never outlive them. Fails with
//! [`MessageError`], which says which field was wrong and what it may be.

#![forbid(unsafe_code)]

use crate::channel::{Class, Overflow};
use crate::frame::PeerId;
use crate::wire::{Reader, check_len};

/// Longest method name of a request, bytes.
pub const METHOD_MAX: usize = 64;
/// Longest error text of a response, bytes.
pub const ERROR_MAX: usize = 256;
/// Longest event type, bytes.
pub const EVENT_TYPE_MAX: usize = 64;
/// Longest topic or topic pattern, bytes.
pub const TOPIC_MAX: usize = 128;
/// Longest agent name, bytes.
pub const NAME_MAX: usize = 64;

/// Why a payload can't be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("{what} of {len} bytes is over its limit of {limit}")]
    TooLong {
        what: &'static str,
        len: usize,
        limit: usize,
    },
    #[error("{what} is missing")]
    Missing { what: &'static str },
    #[error("{what} needs {need} bytes but {have} are left")]
    Short {
        what: &'static str,
        need: usize,
        have: usize,
    },
    #[error("{extra} bytes follow the end of {what}")]
    Trailing { what: &'static str, extra: usize },
    #[error("{what} is not UTF-8")]
    NotUtf8 { what: &'static str },
    #[error("{what} is reserved and must be 0")]
    Reserved { what: &'static str },
    #[error("{what} {found} is unknown; known are {known}")]
    Unknown {
        what: &'static str,
        found: u32,
        known: &'static str,
    },
}

/// What became of a request, a send or a control message.
///
/// 1 to 99 are said by the bus alone: it refuses them from agents, so whoever reads `PeerGone` knows
/// that the kernel said so. 100 and up belong to applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

impl Status {
    pub const OK: Self = Self(0);
    /// The policy does not allow it, or the other agent belongs to another user.
    pub const DENIED: Self = Self(1);
    /// No agent of that name or id is there.
    pub const NO_SUCH_AGENT: Self = Self(2);
    /// The agent ended before it answered.
    pub const PEER_GONE: Self = Self(3);
    /// The deadline passed first.
    pub const DEADLINE: Self = Self(4);
    /// A bounded queue is full; try again later.
    pub const QUEUE_FULL: Self = Self(5);
    /// The bus could not make sense of the message.
    pub const MALFORMED: Self = Self(6);
    /// Larger than the receiving connection takes.
    pub const TOO_LARGE: Self = Self(7);
    /// The requester withdrew it.
    pub const CANCELLED: Self = Self(8);
    /// Nothing is open under that correlation id, or it is someone else's.
    pub const NO_SUCH_REQUEST: Self = Self(9);
    /// The other side can't do this, e.g. take lanes.
    pub const UNSUPPORTED: Self = Self(10);
    /// The bus that introduced the two sides of a lane was restarted: open another. Never sent.
    pub const REPLACED: Self = Self(11);
    /// The answering agent reports a failure of its own.
    pub const FAILED: Self = Self(100);

    /// True for the range that only the bus may use.
    pub fn is_bus_only(self) -> bool {
        (1..100).contains(&self.0)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match *self {
            Self::OK => "ok",
            Self::DENIED => "denied",
            Self::NO_SUCH_AGENT => "no such agent",
            Self::PEER_GONE => "peer gone",
            Self::DEADLINE => "deadline passed",
            Self::QUEUE_FULL => "queue full",
            Self::MALFORMED => "malformed",
            Self::TOO_LARGE => "too large",
            Self::CANCELLED => "cancelled",
            Self::NO_SUCH_REQUEST => "no such request",
            Self::UNSUPPORTED => "unsupported",
            Self::REPLACED => "replaced",
            Self::FAILED => "failed",
            Self(other) => return write!(f, "status {other}"),
        };
        f.write_str(text)
    }
}

/// `timeout_ms u32 · method_len u16 · 0 u16 · method · params`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// 1 to [`METHOD_MAX`] bytes.
    pub method: &'a str,
    /// Opaque to the bus; JSON by custom.
    pub params: &'a [u8],
    /// How long the requester waits, from the moment the bus reads it. 0 = the bus's default.
    pub timeout_ms: u32,
}

impl<'a> Request<'a> {
    /// Reads untrusted bytes.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(payload);
        let timeout_ms = reader.u32("timeout")?;
        let method_len = reader.u16("method length")?;
        reader.zero(2, "request field at 6")?;
        let method = reader.text(usize::from(method_len), METHOD_MAX, "method")?;
        let request = Self {
            method,
            params: reader.rest(),
            timeout_ms,
        };
        request.check()?;
        Ok(request)
    }

    /// The payload's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        self.check()?;
        let mut out = Vec::with_capacity(8 + self.method.len() + self.params.len());
        out.extend_from_slice(&self.timeout_ms.to_le_bytes());
        out.extend_from_slice(&(self.method.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.method.as_bytes());
        out.extend_from_slice(self.params);
        Ok(out)
    }

    fn check(&self) -> Result<(), MessageError> {
        check_len(self.method.len(), METHOD_MAX, "method")?;
        if self.method.is_empty() {
            Err(MessageError::Missing { what: "method" })
        } else {
            Ok(())
        }
    }
}

/// `status u32 · error_len u16 · 0 u16 · error · result`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    pub status: Status,
    /// At most [`ERROR_MAX`] bytes; empty when the status is [`Status::OK`].
    pub error: &'a str,
    pub result: &'a [u8],
}

impl<'a> Response<'a> {
    /// A success.
    pub fn ok(result: &'a [u8]) -> Self {
        Self {
            status: Status::OK,
            error: "",
            result,
        }
    }

    /// Reads untrusted bytes.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(payload);
        let status = Status(reader.u32("status")?);
        let error_len = reader.u16("error length")?;
        reader.zero(2, "response field at 6")?;
        let error = reader.text(usize::from(error_len), ERROR_MAX, "error text")?;
        Ok(Self {
            status,
            error,
            result: reader.rest(),
        })
    }

    /// The payload's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        check_len(self.error.len(), ERROR_MAX, "error text")?;
        let mut out = Vec::with_capacity(8 + self.error.len() + self.result.len());
        out.extend_from_slice(&self.status.0.to_le_bytes());
        out.extend_from_slice(&(self.error.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.error.as_bytes());
        out.extend_from_slice(self.result);
        Ok(out)
    }
}

/// `priority u8 · 0 u8 · type_len u16 · topic_len u16 · 0 u16 · type · topic · data`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// 0 lowest to 3 urgent.
    pub priority: u8,
    /// What kind of event, for the reader; may be empty. At most [`EVENT_TYPE_MAX`] bytes.
    pub event_type: &'a str,
    /// Empty for a message to one agent's inbox. At most [`TOPIC_MAX`] bytes.
    pub topic: &'a str,
    pub data: &'a [u8],
}

impl<'a> Event<'a> {
    /// Reads untrusted bytes.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(payload);
        let priority = reader.u8("priority")?;
        reader.zero(1, "event field at 1")?;
        let type_len = reader.u16("event type length")?;
        let topic_len = reader.u16("topic length")?;
        reader.zero(2, "event field at 6")?;
        let event_type = reader.text(usize::from(type_len), EVENT_TYPE_MAX, "event type")?;
        let topic = reader.text(usize::from(topic_len), TOPIC_MAX, "topic")?;
        let event = Self {
            priority,
            event_type,
            topic,
            data: reader.rest(),
        };
        event.check()?;
        Ok(event)
    }

    /// The payload's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        self.check()?;
        let mut out =
            Vec::with_capacity(8 + self.event_type.len() + self.topic.len() + self.data.len());
        out.extend_from_slice(&[self.priority, 0]);
        out.extend_from_slice(&(self.event_type.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.topic.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.event_type.as_bytes());
        out.extend_from_slice(self.topic.as_bytes());
        out.extend_from_slice(self.data);
        Ok(out)
    }

    fn check(&self) -> Result<(), MessageError> {
        check_len(self.event_type.len(), EVENT_TYPE_MAX, "event type")?;
        check_len(self.topic.len(), TOPIC_MAX, "topic")?;
        if self.priority > 3 {
            return Err(MessageError::Unknown {
                what: "priority",
                found: u32::from(self.priority),
                known: "0 to 3",
            });
        }
        Ok(())
    }
}

/// Where a subscription's messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Pushed to the subscribing connection as they come; ends with it.
    Push,
    /// Into the agent's inbox, which any of its connections may read; lasts as long as the agent.
    Inbox,
}

/// What a client and the bus say to each other about the connection itself (`verb u16 · 0 u16 · body`
/// in a COMMAND frame). The answer is a RESPONSE with the same correlation id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control<'a> {
    /// First frame of every connection: `version u16 · options u16`. Answered with [`Welcome`].
    Hello { version: u16, options: u16 },
    /// Who is there. Answered with a list of [`PeerEntry`].
    Agents,
    /// The id of the agent called `name`, as 16 bytes.
    Lookup { name: &'a str },
    /// This connection answers requests, at most `window` open ones at a time (`window u32`, 0 stops).
    Serve { window: u32 },
    /// `delivery u8 · 0 u8 · pattern`
    Subscribe {
        delivery: Delivery,
        pattern: &'a str,
    },
    /// `delivery u8 · 0 u8 · pattern`
    Unsubscribe {
        delivery: Delivery,
        pattern: &'a str,
    },
    /// Takes up to `max` messages, waits up to `wait_ms` for the first. Answered with [`InboxBatch`].
    Inbox { max: u32, wait_ms: u32 },
    /// Client to bus: withdraw my request `request`. Bus to server: that request is no longer wanted.
    Cancel { request: u32 },
    /// Bus to client: `count` topic messages were dropped because this connection reads too slowly.
    Lost { count: u64 },
    /// Client to bus, with the data memory attached: a lane to agent `to`. Answered with
    /// `lane u32` and the receiver's cursor memory. `to 16 · class u8 · overflow u8 · 0 u16 · slots u32`
    LaneOffer { to: PeerId, shape: Shape },
    /// Bus to client, with the data memory attached: `from` offers a lane. Answer with a RESPONSE (its
    /// correlation id is the lane's number) that carries the cursor memory, or with an error.
    /// `from 16 · lane u32 · class u8 · overflow u8 · 0 u16 · slots u32`
    LaneOffered {
        from: PeerId,
        lane: u32,
        shape: Shape,
    },
    /// Either way: a lane, a log or one reader of a log is over; `status` says why. Whoever has let go of its
    /// end says so too, even after it was told. `channel u32 · status u32`
    ChannelClosed { channel: u32, status: Status },
    /// This connection takes lane offers.
    AcceptLanes,
    /// Client to bus, with the data memory attached: a log under `topic`. Answered with `log u32`.
    /// `class u8 · overflow u8 · 0 u16 · slots u32 · topic`
    LogOffer { shape: Shape, topic: &'a str },
    /// Client to bus: give me each log whose topic `pattern` covers, now and later. Answered with
    /// `follow u32`. `reliable u8 (0 or 1) · 0 u8 · pattern`
    LogFollow { reliable: bool, pattern: &'a str },
    /// Client to bus: no further logs for that [`Control::LogFollow`]; those that are open stay. `follow u32`
    LogUnfollow { follow: u32 },
    /// Bus to client, with the data memory attached: a log for your follow number `follow`. Answer with a
    /// RESPONSE (its correlation id is `channel`) that carries the cursor memory, or with an error.
    /// `from 16 · follow u32 · channel u32 · topic`
    LogOffered {
        from: PeerId,
        follow: u32,
        channel: u32,
        topic: &'a str,
    },
    /// Bus to the producer of `log`, with the cursor memory attached: another reader, called `channel` from now
    /// on. `from 16 · log u32 · channel u32 · reliable u8 · 0 u8`
    LogFollower {
        from: PeerId,
        log: u32,
        channel: u32,
        reliable: bool,
    },
    /// With the memory attached: segment `index` of the producer's arena. Client to bus: for the other side of
    /// lane `channel`, or for all readers of log `channel`, later ones too. Bus to client: for your end
    /// `channel`. `channel u32 · index u32 · sealed u8 (0 or 1) · 0 u8`
    Segment {
        channel: u32,
        index: u32,
        /// Nobody, its maker included, can write to it any more: it may be read in place.
        sealed: bool,
    },
    /// The same way: the segment will not be referred to again. `channel u32 · index u32`
    SegmentDropped { channel: u32, index: u32 },
    /// With an eventfd attached. From the reader of `channel` to the bus, from the bus to its producer: ring it
    /// when the parked word says so. `channel u32`
    Bell { channel: u32 },
}

/// What a producer declares when it opens a lane or a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub class: Class,
    pub overflow: Overflow,
    /// As in the data memory, which alone counts.
    pub slots: u32,
}

impl Shape {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (class, overflow) = (reader.u8("class")?, reader.u8("overflow")?);
        reader.zero(2, "channel shape at 2")?;
        Ok(Self {
            class: Class::from_code(class).ok_or(MessageError::Unknown {
                what: "class",
                found: class.into(),
                known: "0 bulk, 1 normal, 2 high, 3 control",
            })?,
            overflow: Overflow::from_code(overflow).ok_or(MessageError::Unknown {
                what: "overflow",
                found: overflow.into(),
                known: "0 block, 1 drop-newest, 2 drop-oldest, 3 disconnect",
            })?,
            slots: reader.u32("slots")?,
        })
    }

    fn encode_into(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.class as u8, self.overflow.code(), 0, 0]);
        out.extend_from_slice(&self.slots.to_le_bytes());
    }
}

/// A yes or no in a byte, followed by a reserved one.
fn parse_yes(reader: &mut Reader<'_>, what: &'static str) -> Result<bool, MessageError> {
    let byte = reader.u8(what)?;
    reader.zero(1, "field after a yes or no")?;
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(MessageError::Unknown {
            what,
            found: found.into(),
            known: "0 no, 1 yes",
        }),
    }
}

/// The rest, as a topic or a pattern.
fn parse_topic<'a>(reader: &mut Reader<'a>, what: &'static str) -> Result<&'a str, MessageError> {
    let bytes = reader.rest();
    Reader::new(bytes).text(bytes.len(), TOPIC_MAX, what)
}

/// What the descriptor of a frame has to be. The daemon asks the kernel before it passes one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdKind {
    /// The memory of a lane or log that its producer alone writes.
    Data,
    /// A page that one reader alone writes.
    Cursor,
    /// A segment of an arena.
    Segment,
    /// As a segment, and nobody can write to it.
    SealedSegment,
    /// An eventfd.
    Bell,
}

/// Hello option: send CRCs on every frame to this client.
pub const HELLO_WANT_CRC: u16 = 1;
/// Hello option: this client can map and wait on shared memory.
pub const HELLO_SHARED_MEMORY: u16 = 2;

const VERBS: &str = "1 hello, 2 agents, 3 lookup, 4 serve, 5 subscribe, 6 unsubscribe, 7 inbox, 8 cancel, \
                     9 lost, 10 lane offer, 11 lane offered, 12 channel closed, 13 accept lanes, 14 log offer, \
                     15 log follow, 16 log unfollow, 17 log offered, 18 log follower, 19 segment, \
                     20 segment dropped, 21 bell";

impl<'a> Control<'a> {
    fn verb(&self) -> u16 {
        match self {
            Self::Hello { .. } => 1,
            Self::Agents => 2,
            Self::Lookup { .. } => 3,
            Self::Serve { .. } => 4,
            Self::Subscribe { .. } => 5,
            Self::Unsubscribe { .. } => 6,
            Self::Inbox { .. } => 7,
            Self::Cancel { .. } => 8,
            Self::Lost { .. } => 9,
            Self::LaneOffer { .. } => 10,
            Self::LaneOffered { .. } => 11,
            Self::ChannelClosed { .. } => 12,
            Self::AcceptLanes => 13,
            Self::LogOffer { .. } => 14,
            Self::LogFollow { .. } => 15,
            Self::LogUnfollow { .. } => 16,
            Self::LogOffered { .. } => 17,
            Self::LogFollower { .. } => 18,
            Self::Segment { .. } => 19,
            Self::SegmentDropped { .. } => 20,
            Self::Bell { .. } => 21,
        }
    }

    /// What the one file descriptor is that the message carries; `None`: it carries none. The cursor memory
    /// that answers an offer comes with a RESPONSE instead.
    pub fn fd_kind(&self) -> Option<FdKind> {
        match self {
            Self::LaneOffer { .. }
            | Self::LaneOffered { .. }
            | Self::LogOffer { .. }
            | Self::LogOffered { .. } => Some(FdKind::Data),
            Self::LogFollower { .. } => Some(FdKind::Cursor),
            Self::Segment { sealed: false, .. } => Some(FdKind::Segment),
            Self::Segment { sealed: true, .. } => Some(FdKind::SealedSegment),
            Self::Bell { .. } => Some(FdKind::Bell),
            _ => None,
        }
    }

    /// Reads untrusted bytes.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(payload);
        let verb = reader.u16("control verb")?;
        reader.zero(2, "control field at 2")?;
        let control = match verb {
            1 => Self::Hello {
                version: reader.u16("version")?,
                options: reader.u16("options")?,
            },
            2 => Self::Agents,
            3 => {
                let name = reader.rest();
                Self::Lookup {
                    name: Reader::new(name).text(name.len(), NAME_MAX, "agent name")?,
                }
            }
            4 => Self::Serve {
                window: reader.u32("window")?,
            },
            5 | 6 => {
                let delivery = match reader.u8("delivery")? {
                    1 => Delivery::Push,
                    2 => Delivery::Inbox,
                    found => {
                        return Err(MessageError::Unknown {
                            what: "delivery",
                            found: u32::from(found),
                            known: "1 push, 2 inbox",
                        });
                    }
                };
                reader.zero(1, "subscribe field at 1")?;
                let pattern = reader.rest();
                let pattern =
                    Reader::new(pattern).text(pattern.len(), TOPIC_MAX, "topic pattern")?;
                if verb == 5 {
                    Self::Subscribe { delivery, pattern }
                } else {
                    Self::Unsubscribe { delivery, pattern }
                }
            }
            7 => Self::Inbox {
                max: reader.u32("max")?,
                wait_ms: reader.u32("wait")?,
            },
            8 => Self::Cancel {
                request: reader.u32("request")?,
            },
            9 => Self::Lost {
                count: reader.u64("count")?,
            },
            10 => Self::LaneOffer {
                to: PeerId(reader.id("receiver")?),
                shape: Shape::parse(&mut reader)?,
            },
            11 => Self::LaneOffered {
                from: PeerId(reader.id("sender")?),
                lane: reader.u32("lane")?,
                shape: Shape::parse(&mut reader)?,
            },
            12 => Self::ChannelClosed {
                channel: reader.u32("channel")?,
                status: Status(reader.u32("status")?),
            },
            13 => Self::AcceptLanes,
            14 => Self::LogOffer {
                shape: Shape::parse(&mut reader)?,
                topic: parse_topic(&mut reader, "topic")?,
            },
            15 => Self::LogFollow {
                reliable: parse_yes(&mut reader, "reliable")?,
                pattern: parse_topic(&mut reader, "topic pattern")?,
            },
            16 => Self::LogUnfollow {
                follow: reader.u32("follow")?,
            },
            17 => Self::LogOffered {
                from: PeerId(reader.id("producer")?),
                follow: reader.u32("follow")?,
                channel: reader.u32("channel")?,
                topic: parse_topic(&mut reader, "topic")?,
            },
            18 => Self::LogFollower {
                from: PeerId(reader.id("reader")?),
                log: reader.u32("log")?,
                channel: reader.u32("channel")?,
                reliable: parse_yes(&mut reader, "reliable")?,
            },
            19 => Self::Segment {
                channel: reader.u32("channel")?,
                index: reader.u32("index")?,
                sealed: parse_yes(&mut reader, "sealed")?,
            },
            20 => Self::SegmentDropped {
                channel: reader.u32("channel")?,
                index: reader.u32("index")?,
            },
            21 => Self::Bell {
                channel: reader.u32("channel")?,
            },
            found => {
                return Err(MessageError::Unknown {
                    what: "control verb",
                    found: u32::from(found),
                    known: VERBS,
                });
            }
        };
        reader.finish("control message")?;
        Ok(control)
    }

    /// The payload's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let mut out = self.verb().to_le_bytes().to_vec();
        out.extend_from_slice(&[0; 2]);
        match *self {
            Self::Hello { version, options } => {
                out.extend_from_slice(&version.to_le_bytes());
                out.extend_from_slice(&options.to_le_bytes());
            }
            Self::Agents | Self::AcceptLanes => {}
            Self::Lookup { name } => {
                check_len(name.len(), NAME_MAX, "agent name")?;
                out.extend_from_slice(name.as_bytes());
            }
            Self::Serve { window } => out.extend_from_slice(&window.to_le_bytes()),
            Self::Subscribe { delivery, pattern } | Self::Unsubscribe { delivery, pattern } => {
                check_len(pattern.len(), TOPIC_MAX, "topic pattern")?;
                out.push(match delivery {
                    Delivery::Push => 1,
                    Delivery::Inbox => 2,
                });
                out.push(0);
                out.extend_from_slice(pattern.as_bytes());
            }
            Self::Inbox { max, wait_ms } => {
                out.extend_from_slice(&max.to_le_bytes());
                out.extend_from_slice(&wait_ms.to_le_bytes());
            }
            Self::Cancel { request } => out.extend_from_slice(&request.to_le_bytes()),
            Self::Lost { count } => out.extend_from_slice(&count.to_le_bytes()),
            Self::LaneOffer { to, shape } => {
                out.extend_from_slice(&to.0);
                shape.encode_into(&mut out);
            }
            Self::LaneOffered { from, lane, shape } => {
                out.extend_from_slice(&from.0);
                out.extend_from_slice(&lane.to_le_bytes());
                shape.encode_into(&mut out);
            }
            Self::ChannelClosed { channel, status } => {
                out.extend_from_slice(&channel.to_le_bytes());
                out.extend_from_slice(&status.0.to_le_bytes());
            }
            Self::LogOffer { shape, topic } => {
                check_len(topic.len(), TOPIC_MAX, "topic")?;
                shape.encode_into(&mut out);
                out.extend_from_slice(topic.as_bytes());
            }
            Self::LogFollow { reliable, pattern } => {
                check_len(pattern.len(), TOPIC_MAX, "topic pattern")?;
                out.extend_from_slice(&[u8::from(reliable), 0]);
                out.extend_from_slice(pattern.as_bytes());
            }
            Self::LogUnfollow { follow } => out.extend_from_slice(&follow.to_le_bytes()),
            Self::LogOffered {
                from,
                follow,
                channel,
                topic,
            } => {
                check_len(topic.len(), TOPIC_MAX, "topic")?;
                out.extend_from_slice(&from.0);
                out.extend_from_slice(&follow.to_le_bytes());
                out.extend_from_slice(&channel.to_le_bytes());
                out.extend_from_slice(topic.as_bytes());
            }
            Self::LogFollower {
                from,
                log,
                channel,
                reliable,
            } => {
                out.extend_from_slice(&from.0);
                out.extend_from_slice(&log.to_le_bytes());
                out.extend_from_slice(&channel.to_le_bytes());
                out.extend_from_slice(&[u8::from(reliable), 0]);
            }
            Self::Segment {
                channel,
                index,
                sealed,
            } => {
                out.extend_from_slice(&channel.to_le_bytes());
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&[u8::from(sealed), 0]);
            }
            Self::SegmentDropped { channel, index } => {
                out.extend_from_slice(&channel.to_le_bytes());
                out.extend_from_slice(&index.to_le_bytes());
            }
            Self::Bell { channel } => out.extend_from_slice(&channel.to_le_bytes()),
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_method_of_65_bytes_is_an_error_not_a_truncation() {
        let method = "m".repeat(65);
        let request = Request {
            method: &method,
            params: b"",
            timeout_ms: 1,
        };
        let expected = MessageError::TooLong {
            what: "method",
            len: 65,
            limit: 64,
        };
        assert_eq!(request.encode(), Err(expected));
        let mut bytes = Request {
            method: &method[..64],
            params: b"m",
            timeout_ms: 1,
        }
        .encode()
        .unwrap();
        bytes[4] = 65;
        assert_eq!(Request::parse(&bytes), Err(expected));
    }

    #[test]
    fn limits_of_events_and_responses_hold() {
        let long = "x".repeat(300);
        let event = |event_type, topic| Event {
            priority: 1,
            event_type,
            topic,
            data: b"",
        };
        assert!(event(&long[..64], &long[..128]).encode().is_ok());
        assert!(event(&long[..65], "").encode().is_err());
        assert!(event("", &long[..129]).encode().is_err());
        let response = |error| Response {
            status: Status::FAILED,
            error,
            result: b"",
        };
        assert!(response(&long[..256]).encode().is_ok());
        assert!(response(&long[..257]).encode().is_err());
    }

    #[test]
    fn request_bytes_are_the_documented_ones() {
        let bytes = Request {
            method: "fix",
            params: b"{}",
            timeout_ms: 0x0102,
        }
        .encode()
        .unwrap();
        assert_eq!(
            bytes,
            [2, 1, 0, 0, 3, 0, 0, 0, b'f', b'i', b'x', b'{', b'}']
        );
    }

    #[test]
    fn an_unknown_verb_names_the_known_ones() {
        let error = Control::parse(&[99, 0, 0, 0]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("control verb 99 is unknown; known are 1 hello")
        );
    }

    fn controls() -> Vec<Control<'static>> {
        vec![
            Control::Hello {
                version: 1,
                options: HELLO_WANT_CRC,
            },
            Control::Agents,
            Control::Lookup { name: "fixer" },
            Control::Serve { window: 4 },
            Control::Subscribe {
                delivery: Delivery::Push,
                pattern: "build.*",
            },
            Control::Unsubscribe {
                delivery: Delivery::Inbox,
                pattern: "#",
            },
            Control::Inbox {
                max: 7,
                wait_ms: 1000,
            },
            Control::Cancel { request: 9 },
            Control::Lost { count: 1 << 40 },
            Control::LaneOffer {
                to: PeerId([3; 16]),
                shape: SHAPE,
            },
            Control::LaneOffered {
                from: PeerId([4; 16]),
                lane: 5,
                shape: Shape::default(),
            },
            Control::ChannelClosed {
                channel: 5,
                status: Status::PEER_GONE,
            },
            Control::AcceptLanes,
            Control::LogOffer {
                shape: SHAPE,
                topic: "ticks",
            },
            Control::LogFollow {
                reliable: true,
                pattern: "ticks.#",
            },
            Control::LogUnfollow { follow: 9 },
            Control::LogOffered {
                from: PeerId([5; 16]),
                follow: 9,
                channel: 10,
                topic: "ticks",
            },
            Control::LogFollower {
                from: PeerId([6; 16]),
                log: 8,
                channel: 10,
                reliable: false,
            },
            Control::Segment {
                channel: 10,
                index: 3,
                sealed: true,
            },
            Control::SegmentDropped {
                channel: 10,
                index: 3,
            },
            Control::Bell { channel: 10 },
        ]
    }

    const SHAPE: Shape = Shape {
        class: Class::High,
        overflow: Overflow::Disconnect,
        slots: 0x0102_0304,
    };

    #[test]
    fn the_bytes_about_channels_are_the_documented_ones() {
        let id = |byte: u8| vec![byte; 16];
        let shape = vec![2, 3, 0, 0, 4, 3, 2, 1];
        let tail = |head: Vec<u8>, more: &[u8]| [head.as_slice(), more].concat();
        let golden: Vec<(Control<'_>, Vec<u8>)> = vec![
            (
                Control::LaneOffer {
                    to: PeerId([3; 16]),
                    shape: SHAPE,
                },
                [vec![10, 0, 0, 0], id(3), shape.clone()].concat(),
            ),
            (
                Control::LaneOffered {
                    from: PeerId([4; 16]),
                    lane: 5,
                    shape: SHAPE,
                },
                [vec![11, 0, 0, 0], id(4), vec![5, 0, 0, 0], shape.clone()].concat(),
            ),
            (
                Control::ChannelClosed {
                    channel: 5,
                    status: Status::PEER_GONE,
                },
                vec![12, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0],
            ),
            (
                Control::LogOffer {
                    shape: SHAPE,
                    topic: "t.a",
                },
                tail([vec![14, 0, 0, 0], shape].concat(), b"t.a"),
            ),
            (
                Control::LogFollow {
                    reliable: true,
                    pattern: "t.#",
                },
                tail(vec![15, 0, 0, 0, 1, 0], b"t.#"),
            ),
            (
                Control::LogUnfollow { follow: 9 },
                vec![16, 0, 0, 0, 9, 0, 0, 0],
            ),
            (
                Control::LogOffered {
                    from: PeerId([5; 16]),
                    follow: 9,
                    channel: 10,
                    topic: "t.a",
                },
                tail(
                    [vec![17, 0, 0, 0], id(5), vec![9, 0, 0, 0, 10, 0, 0, 0]].concat(),
                    b"t.a",
                ),
            ),
            (
                Control::LogFollower {
                    from: PeerId([6; 16]),
                    log: 8,
                    channel: 10,
                    reliable: true,
                },
                [
                    vec![18, 0, 0, 0],
                    id(6),
                    vec![8, 0, 0, 0, 10, 0, 0, 0, 1, 0],
                ]
                .concat(),
            ),
            (
                Control::Segment {
                    channel: 10,
                    index: 3,
                    sealed: true,
                },
                vec![19, 0, 0, 0, 10, 0, 0, 0, 3, 0, 0, 0, 1, 0],
            ),
            (
                Control::SegmentDropped {
                    channel: 10,
                    index: 3,
                },
                vec![20, 0, 0, 0, 10, 0, 0, 0, 3, 0, 0, 0],
            ),
            (
                Control::Bell { channel: 10 },
                vec![21, 0, 0, 0, 10, 0, 0, 0],
            ),
        ];
        for (control, bytes) in golden {
            assert_eq!(control.encode().unwrap(), bytes, "{control:?}");
            assert_eq!(Control::parse(&bytes), Ok(control));
        }
    }

    #[test]
    fn what_a_channel_message_may_not_say_is_named() {
        let mut offer = Control::LaneOffer {
            to: PeerId([3; 16]),
            shape: SHAPE,
        }
        .encode()
        .unwrap();
        offer[20] = 4;
        let error = Control::parse(&offer).unwrap_err().to_string();
        assert!(
            error.contains("class 4 is unknown; known are 0 bulk"),
            "{error}"
        );
        offer[20] = 0;
        offer[21] = 9;
        let error = Control::parse(&offer).unwrap_err().to_string();
        assert!(error.contains("overflow 9 is unknown"), "{error}");
        let error = Control::parse(&[15, 0, 0, 0, 2, 0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "reliable 2 is unknown; known are 0 no, 1 yes"
        );
        let long = "t".repeat(TOPIC_MAX + 1);
        let control = Control::LogFollow {
            reliable: false,
            pattern: &long,
        };
        assert!(control.encode().is_err());
    }

    #[test]
    fn every_control_survives_a_round_trip_and_refuses_a_cut() {
        for control in controls() {
            let bytes = control.encode().unwrap();
            assert_eq!(Control::parse(&bytes), Ok(control));
            if !matches!(
                control,
                Control::Lookup { .. }
                    | Control::Subscribe { .. }
                    | Control::Unsubscribe { .. }
                    | Control::LogOffer { .. }
                    | Control::LogFollow { .. }
                    | Control::LogOffered { .. }
            ) {
                assert!(
                    Control::parse(&bytes[..bytes.len() - 1]).is_err(),
                    "{control:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn messages_survive_a_round_trip(
            method in "[a-z]{1,64}", text in "\\PC{0,60}", data: Vec<u8>, timeout_ms: u32, priority in 0u8..4,
        ) {
            let request = Request { method: &method, params: &data, timeout_ms };
            let bytes = request.encode().unwrap();
            prop_assert_eq!(Request::parse(&bytes), Ok(request));
            let response = Response { status: Status(timeout_ms), error: &text, result: &data };
            let bytes = response.encode().unwrap();
            prop_assert_eq!(Response::parse(&bytes), Ok(response));
            let event = Event { priority, event_type: &method, topic: &method, data: &data };
            let bytes = event.encode().unwrap();
            prop_assert_eq!(Event::parse(&bytes), Ok(event));
        }

        #[test]
        fn arbitrary_payloads_never_panic(bytes: Vec<u8>) {
            // What parses must encode to the same bytes: nothing is silently dropped.
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert_eq!(request.encode().unwrap(), bytes.clone());
            }
            if let Ok(response) = Response::parse(&bytes) {
                prop_assert_eq!(response.encode().unwrap(), bytes.clone());
            }
            if let Ok(event) = Event::parse(&bytes) {
                prop_assert_eq!(event.encode().unwrap(), bytes.clone());
            }
            if let Ok(control) = Control::parse(&bytes) {
                prop_assert_eq!(control.encode().unwrap(), bytes);
            }
        }
    }
}
