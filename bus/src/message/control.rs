//! What a client and the bus say to each other: verbs, and the shapes of channels. Pure.

#![forbid(unsafe_code)]

use super::direct::Direct;
use super::queue::{
    DeadAction, Deliveries, Messages, Numbers, Outcome, QueuePart, QueueSpec, parse_name,
};
use super::stream::{ReplayFrom, StreamKind, TopicSpec, encode_replay, parse_replay};
use super::{MessageError, NAME_MAX, QUEUE_NAME_MAX, Status, TOPIC_MAX};
use crate::channel::{Class, Inline, Overflow};
use crate::frame::PeerId;
use crate::wire::{Reader, check_len};

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
    /// `delivery u8 · options u8 · pattern`
    Subscribe {
        delivery: Delivery,
        options: SubscribeOptions,
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
    /// Bus to client: the events of these `count` correlation ids, from `first` on, were taken, and put into
    /// `receivers` queues in all. For events with the flag [`GATHER`](crate::frame::flags::GATHER).
    /// `first u32 · count u32 · receivers u64`
    Acknowledged {
        first: u32,
        count: u32,
        receivers: u64,
    },
    /// Client to bus, with the data memory attached: a lane to agent `to`. Answered with
    /// `lane u32` and the receiver's cursor memory. `to 16 · class u8 · overflow u8 · inline u8 · 0 u8 · slots u32`
    LaneOffer { to: PeerId, shape: Shape },
    /// Bus to client, with the data memory attached: `from` offers a lane. Answer with a RESPONSE (its
    /// correlation id is the lane's number) that carries the cursor memory, or with an error.
    /// `from 16 · lane u32 · class u8 · overflow u8 · inline u8 · 0 u8 · slots u32`
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
    /// `class u8 · overflow u8 · inline u8 · 0 u8 · slots u32 · topic`
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
    /// There is such a queue from now on. One that is there must have been declared alike. Answered with
    /// `queue u32`. Layout: [`QueueSpec`], then the name
    QueueDeclare { spec: QueueSpec, name: &'a str },
    /// The number of the queue called `name`, which is made with the defaults if it is not there. Answered as 22.
    QueueOpen { name: &'a str },
    /// The queue and all that it holds go. `queue u32`
    QueueDrop { queue: u32 },
    /// Messages for a queue. With a correlation id answered with `taken u32 · 0 u32 · first id u64`; without one
    /// a refusal comes as a notice. `queue u32 · messages` ([`Messages`])
    Produce { queue: u32, messages: Messages<'a> },
    /// This connection takes messages of the queue, at most `credit` at a time in its hands; 0 stops, and what it
    /// holds goes back. `queue u32 · credit u32`
    Consume { queue: u32, credit: u32 },
    /// Bus to consumer. `queue u32 · deliveries` ([`Deliveries`])
    Delivered {
        queue: u32,
        deliveries: Deliveries<'a>,
    },
    /// What became of deliveries. With a correlation id answered with `settled u32`, of a durable queue once that
    /// is stored. `queue u32 · outcome u8 · 0 u8 · 0 u16 · milliseconds u32 · tags u64…`
    Settle {
        queue: u32,
        outcome: Outcome,
        tags: Numbers<'a>,
    },
    /// Up to `max` messages from id `from` on, as they lie: answered as [`Control::Delivered`],
    /// without the number, each with tag 0 (a dead letter: with its reason).
    /// `queue u32 · part u8 (0 live, 1 dead) · 0 u8 · 0 u16 · max u32 · from u64`
    QueuePeek {
        queue: u32,
        part: QueuePart,
        max: u32,
        from: u64,
    },
    /// What becomes of dead letters, of all without ids. Answered with `count u32`.
    /// `queue u32 · action u8 (0 requeue, 1 drop) · 0 u8 · 0 u16 · ids u64…`
    QueueDead {
        queue: u32,
        action: DeadAction,
        ids: Numbers<'a>,
    },
    /// Up to `max` messages that are there now, into this connection's hands without its consuming. Answered as
    /// [`Control::Delivered`], without the number. `queue u32 · max u32`
    QueueTake { queue: u32, max: u32 },
    /// Messages to the group come to this agent from now on. `delivery u8 · 0 u8 · name`
    GroupJoin { delivery: Delivery, name: &'a str },
    /// The same layout.
    GroupLeave { delivery: Delivery, name: &'a str },
    /// What the bus keeps of a topic. Layout: [`TopicSpec`], then the topic
    TopicDeclare { spec: TopicSpec, topic: &'a str },
    /// Stored messages of a durable topic or queue. Answered with a list of [`super::Replayed`].
    /// `kind u8 (1 queue, 2 topic) · by u8 (1 offset, 2 time) · 0 u16 · max u32 · from u64 · name`
    Replay {
        kind: StreamKind,
        from: ReplayFrom,
        max: u32,
        name: &'a str,
    },
    /// About the direct path between two agents.
    Direct(Direct<'a>),
}

/// How a subscription is served. In its byte bits 0-1 are the policy (0 drop-oldest, 1 drop-newest, 2 disconnect, 3
/// block), bit 2 leaves out what was retained. An inbox drops the oldest, whatever is said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// What happens to a message for which the subscriber is too slow. [`Overflow::Block`] pauses publishers.
    pub overflow: Overflow,
    /// What the topics have retained comes first.
    pub retained: bool,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            overflow: Overflow::DropOldest,
            retained: true,
        }
    }
}

impl SubscribeOptions {
    fn parse(byte: u8) -> Result<Self, MessageError> {
        let overflow = match byte & 3 {
            0 => Overflow::DropOldest,
            1 => Overflow::DropNewest,
            2 => Overflow::Disconnect,
            _ => Overflow::Block,
        };
        if byte >> 3 != 0 {
            return Err(MessageError::Unknown {
                what: "subscribe options",
                found: byte.into(),
                known: "0 drop-oldest, 1 drop-newest, 2 disconnect, 3 block, and 4 without what was retained",
            });
        }
        Ok(Self {
            overflow,
            retained: byte & 4 == 0,
        })
    }

    fn code(self) -> u8 {
        let overflow = match self.overflow {
            Overflow::DropOldest => 0,
            Overflow::DropNewest => 1,
            Overflow::Disconnect => 2,
            Overflow::Block => 3,
        };
        overflow | if self.retained { 0 } else { 4 }
    }
}

/// A delivery and the byte behind it.
fn parse_delivery(reader: &mut Reader<'_>) -> Result<(Delivery, u8), MessageError> {
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
    Ok((delivery, reader.u8("delivery options")?))
}

fn delivery_code(delivery: Delivery) -> u8 {
    match delivery {
        Delivery::Push => 1,
        Delivery::Inbox => 2,
    }
}

/// One of two, in a byte followed by three reserved ones.
fn parse_choice<T>(
    reader: &mut Reader<'_>,
    what: &'static str,
    choices: [T; 2],
    known: &'static str,
) -> Result<T, MessageError> {
    let found = reader.u8(what)?;
    reader.zero(3, "field behind a choice")?;
    let [first, second] = choices;
    match found {
        0 => Ok(first),
        1 => Ok(second),
        _ => Err(MessageError::Unknown {
            what,
            found: found.into(),
            known,
        }),
    }
}

/// What a producer declares when it opens a lane or a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub class: Class,
    pub overflow: Overflow,
    /// How large the slots of a lane are, as its data memory says too. A log's are [`Inline::Small`].
    pub inline: Inline,
    /// As in the data memory, which alone counts.
    pub slots: u32,
}

impl Shape {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (class, overflow) = (reader.u8("class")?, reader.u8("overflow")?);
        let inline = reader.u8("inline")?;
        reader.zero(1, "channel shape at 3")?;
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
            inline: Inline::from_code(inline).ok_or(MessageError::Unknown {
                what: "inline",
                found: inline.into(),
                known: "0 small (one line), 1 wide (two)",
            })?,
            slots: reader.u32("slots")?,
        })
    }

    fn encode_into(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.class as u8, self.overflow.code(), self.inline as u8, 0]);
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
                     20 segment dropped, 21 bell, 22 queue declare, 23 queue open, 24 queue drop, 25 produce, \
                     26 consume, 27 delivered, 28 settle, 29 queue peek, 30 queue dead, 31 queue take, 33 group join, \
                     34 group leave, 36 topic declare, 40 replay, 41 acknowledged, 42 to 47 direct path";

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
            Self::QueueDeclare { .. } => 22,
            Self::QueueOpen { .. } => 23,
            Self::QueueDrop { .. } => 24,
            Self::Produce { .. } => 25,
            Self::Consume { .. } => 26,
            Self::Delivered { .. } => 27,
            Self::Settle { .. } => 28,
            Self::QueuePeek { .. } => 29,
            Self::QueueDead { .. } => 30,
            Self::QueueTake { .. } => 31,
            Self::GroupJoin { .. } => 33,
            Self::GroupLeave { .. } => 34,
            Self::TopicDeclare { .. } => 36,
            Self::Replay { .. } => 40,
            Self::Acknowledged { .. } => 41,
            Self::Direct(direct) => direct.verb(),
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
                let (delivery, options) = parse_delivery(&mut reader)?;
                let pattern = parse_topic(&mut reader, "topic pattern")?;
                if verb == 5 {
                    let options = SubscribeOptions::parse(options)?;
                    Self::Subscribe {
                        delivery,
                        options,
                        pattern,
                    }
                } else if options == 0 {
                    Self::Unsubscribe { delivery, pattern }
                } else {
                    return Err(MessageError::Reserved {
                        what: "unsubscribe field at 1",
                    });
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
            22 => Self::QueueDeclare {
                spec: QueueSpec::parse(&mut reader)?,
                name: parse_name(&mut reader, "queue name")?,
            },
            23 => Self::QueueOpen {
                name: parse_name(&mut reader, "queue name")?,
            },
            24 => Self::QueueDrop {
                queue: reader.u32("queue")?,
            },
            25 => Self::Produce {
                queue: reader.u32("queue")?,
                messages: Messages::parse(reader.rest())?,
            },
            26 => Self::Consume {
                queue: reader.u32("queue")?,
                credit: reader.u32("credit")?,
            },
            27 => Self::Delivered {
                queue: reader.u32("queue")?,
                deliveries: Deliveries::parse(reader.rest())?,
            },
            28 => Self::Settle {
                queue: reader.u32("queue")?,
                outcome: Outcome::parse(&mut reader)?,
                tags: Numbers::parse(reader.rest())?,
            },
            29 => Self::QueuePeek {
                queue: reader.u32("queue")?,
                part: parse_choice(
                    &mut reader,
                    "part",
                    [QueuePart::Live, QueuePart::Dead],
                    "0 live, 1 dead",
                )?,
                max: reader.u32("max")?,
                from: reader.u64("from")?,
            },
            30 => Self::QueueDead {
                queue: reader.u32("queue")?,
                action: parse_choice(
                    &mut reader,
                    "action",
                    [DeadAction::Requeue, DeadAction::Drop],
                    "0 requeue, 1 drop",
                )?,
                ids: Numbers::parse(reader.rest())?,
            },
            31 => Self::QueueTake {
                queue: reader.u32("queue")?,
                max: reader.u32("max")?,
            },
            33 | 34 => {
                let (delivery, zero) = parse_delivery(&mut reader)?;
                if zero != 0 {
                    return Err(MessageError::Reserved {
                        what: "group field at 1",
                    });
                }
                let name = parse_name(&mut reader, "group name")?;
                if verb == 33 {
                    Self::GroupJoin { delivery, name }
                } else {
                    Self::GroupLeave { delivery, name }
                }
            }
            36 => Self::TopicDeclare {
                spec: TopicSpec::parse(&mut reader)?,
                topic: parse_topic(&mut reader, "topic")?,
            },
            40 => {
                let (kind, from, max) = parse_replay(&mut reader)?;
                Self::Replay {
                    kind,
                    from,
                    max,
                    name: parse_topic(&mut reader, "stream name")?,
                }
            }
            41 => Self::Acknowledged {
                first: reader.u32("first")?,
                count: reader.u32("count")?,
                receivers: reader.u64("receivers")?,
            },
            found => {
                let unknown = MessageError::Unknown {
                    what: "control verb",
                    found: u32::from(found),
                    known: VERBS,
                };
                Self::Direct(Direct::parse(found, &mut reader)?.ok_or(unknown)?)
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
            Self::Subscribe {
                delivery,
                options,
                pattern,
            } => {
                check_len(pattern.len(), TOPIC_MAX, "topic pattern")?;
                out.extend_from_slice(&[delivery_code(delivery), options.code()]);
                out.extend_from_slice(pattern.as_bytes());
            }
            Self::Unsubscribe { delivery, pattern } => {
                check_len(pattern.len(), TOPIC_MAX, "topic pattern")?;
                out.extend_from_slice(&[delivery_code(delivery), 0]);
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
            Self::QueueDeclare { spec, name } => {
                check_len(name.len(), QUEUE_NAME_MAX, "queue name")?;
                spec.encode_into(&mut out);
                out.extend_from_slice(name.as_bytes());
            }
            Self::QueueOpen { name } => {
                check_len(name.len(), QUEUE_NAME_MAX, "queue name")?;
                out.extend_from_slice(name.as_bytes());
            }
            Self::QueueDrop { queue } => out.extend_from_slice(&queue.to_le_bytes()),
            Self::Produce { queue, messages } => {
                out.reserve(4 + messages.as_bytes().len());
                out.extend_from_slice(&queue.to_le_bytes());
                out.extend_from_slice(messages.as_bytes());
            }
            Self::Consume { queue, credit } => {
                out.extend_from_slice(&queue.to_le_bytes());
                out.extend_from_slice(&credit.to_le_bytes());
            }
            Self::Delivered { queue, deliveries } => {
                out.extend_from_slice(&queue.to_le_bytes());
                out.extend_from_slice(deliveries.as_bytes());
            }
            Self::Settle {
                queue,
                outcome,
                tags,
            } => {
                out.reserve(12 + tags.as_bytes().len());
                out.extend_from_slice(&queue.to_le_bytes());
                outcome.encode_into(&mut out);
                out.extend_from_slice(tags.as_bytes());
            }
            Self::QueuePeek {
                queue,
                part,
                max,
                from,
            } => {
                out.extend_from_slice(&queue.to_le_bytes());
                out.extend_from_slice(&[u8::from(part == QueuePart::Dead), 0, 0, 0]);
                out.extend_from_slice(&max.to_le_bytes());
                out.extend_from_slice(&from.to_le_bytes());
            }
            Self::QueueDead { queue, action, ids } => {
                out.extend_from_slice(&queue.to_le_bytes());
                out.extend_from_slice(&[u8::from(action == DeadAction::Drop), 0, 0, 0]);
                out.extend_from_slice(ids.as_bytes());
            }
            Self::QueueTake { queue, max } => {
                out.extend_from_slice(&queue.to_le_bytes());
                out.extend_from_slice(&max.to_le_bytes());
            }
            Self::GroupJoin { delivery, name } | Self::GroupLeave { delivery, name } => {
                check_len(name.len(), QUEUE_NAME_MAX, "group name")?;
                out.extend_from_slice(&[delivery_code(delivery), 0]);
                out.extend_from_slice(name.as_bytes());
            }
            Self::TopicDeclare { spec, topic } => {
                check_len(topic.len(), TOPIC_MAX, "topic")?;
                spec.encode_into(&mut out);
                out.extend_from_slice(topic.as_bytes());
            }
            Self::Replay {
                kind,
                from,
                max,
                name,
            } => {
                check_len(name.len(), TOPIC_MAX, "stream name")?;
                encode_replay(kind, from, max, &mut out);
                out.extend_from_slice(name.as_bytes());
            }
            Self::Acknowledged {
                first,
                count,
                receivers,
            } => {
                out.extend_from_slice(&first.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
                out.extend_from_slice(&receivers.to_le_bytes());
            }
            Self::Direct(direct) => direct.encode_into(&mut out),
        }
        Ok(out)
    }
}
