//! Protection of whole frames: which part of a payload becomes the envelope, and what of the frame is covered.
//!
//! Requests keep their method and time-out readable, responses their status, events their priority, type and topic: the router
//! needs them. An error text of a response goes into the envelope with the result. Pure; parses untrusted frames.

#![forbid(unsafe_code)]

use super::ProtectError;
use super::envelope::{Fixed, MessageId, Transcript, What};
use super::key::Scheme;
use super::keyring::Keyring;
use super::open::{Opener, Verified};
use super::policy::Demand;
use super::seal::Sealer;
use crate::frame::{Frame, PeerId, flags, kind};
use crate::message::{Event, Request, Response, Status};
use crate::topic::RESERVED_PREFIX;

/// The header flags that go from sender to receiver as they are. `DURABLE` and `RETAIN` are between either of them and the bus,
/// which takes them off, and says by `RETAIN` to who comes late that a message was kept.
const COVERED_FLAGS: u32 = flags::PRIORITY_MASK | flags::ACK | flags::SIGNED | flags::SEALED;

/// A frame whose payload is plain, and how it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its flags still say how it was protected.
    pub frame: Frame,
    /// `None`: it came plain, and that is allowed.
    pub verified: Option<Verified>,
}

pub(super) fn flag_of(scheme: Scheme) -> u32 {
    if scheme.seals() {
        flags::SEALED
    } else {
        flags::SIGNED
    }
}

fn protection_flags(frame: &Frame) -> u32 {
    frame.header.flags.get() & (flags::SIGNED | flags::SEALED)
}

/// What the frame is, and how many bytes of its payload stay readable.
fn split(frame: &Frame) -> Result<(What, usize), ProtectError> {
    let len = frame.payload.len();
    let bits = frame.kind();
    if bits == kind::REQUEST {
        let request = Request::parse(&frame.payload)?;
        Ok((What::Request, len - request.params.len()))
    } else if bits & kind::RESPONSE != 0 {
        let response = Response::parse(&frame.payload)?;
        Ok((What::Response, len - response.result.len()))
    } else if bits & kind::EVENT != 0 {
        let event = Event::parse(&frame.payload)?;
        let what = if bits & kind::BROADCAST != 0 {
            What::Broadcast
        } else if event.topic.is_empty() {
            What::Send
        } else {
            What::Publish
        };
        Ok((what, len - event.data.len()))
    } else {
        let what = if bits == kind::COMMAND {
            "command"
        } else {
            "heartbeat or notice"
        };
        Err(ProtectError::NotProtectable { what })
    }
}

/// Puts the error text of a response where it will be covered and, if need be, hidden.
fn with_error_as_result(frame: Frame) -> Result<Frame, ProtectError> {
    if frame.kind() & kind::RESPONSE == 0 {
        return Ok(frame);
    }
    let response = Response::parse(&frame.payload)?;
    if response.error.is_empty() {
        return Ok(frame);
    }
    let moved = Response {
        status: response.status,
        error: "",
        result: response.error.as_bytes(),
    };
    let payload = moved.encode()?;
    Ok(with_payload(frame, payload))
}

fn with_payload(mut frame: Frame, payload: Vec<u8>) -> Frame {
    frame.header.payload_len = (payload.len() as u32).into();
    frame.payload = payload.into();
    frame
}

fn transcript<'a>(
    frame: &Frame,
    what: What,
    ends: (PeerId, PeerId),
    in_reply_to: MessageId,
    visible: &'a [u8],
) -> Transcript<'a> {
    let (source, destination) = ends;
    Transcript {
        what,
        flags: frame.header.flags.get() & COVERED_FLAGS,
        source,
        destination: match what {
            What::Broadcast | What::Publish | What::Payload => PeerId::BUS,
            What::Request | What::Response | What::Send => destination,
        },
        in_reply_to,
        visible,
    }
}

/// Protects `frame`, which goes from agent `source` to agent `destination` (for a broadcast or
/// topic: to whom does not matter). An answer names the request that it answers.
pub fn protect_frame(
    sealer: &Sealer,
    frame: Frame,
    source: PeerId,
    destination: PeerId,
    in_reply_to: Option<MessageId>,
) -> Result<(Frame, MessageId), ProtectError> {
    let mut frame = with_error_as_result(frame)?;
    let (what, readable) = split(&frame)?;
    frame.clear_crc();
    frame.header.flags = (frame.header.flags.get() | flag_of(sealer.scheme())).into();
    let (visible, body) = frame.payload.split_at(readable);
    let in_reply_to = in_reply_to.unwrap_or_default();
    let transcript = transcript(&frame, what, (source, destination), in_reply_to, visible);
    let mut payload = visible.to_vec();
    let id = sealer.protect(&transcript, body, &mut payload)?;
    Ok((with_payload(frame, payload), id))
}

/// The payload of a protected frame: what it is, what is readable, and the envelope.
type Parts<'a> = (What, &'a [u8], &'a [u8]);

/// Cuts up a protected frame; `None` for a plain one.
fn envelope(frame: &Frame) -> Result<Option<Parts<'_>>, ProtectError> {
    let bits = protection_flags(frame);
    if bits == 0 {
        return Ok(None);
    }
    let (what, readable) = split(frame)?;
    let (visible, envelope) = frame.payload.split_at(readable);
    let (fixed, ..) = Fixed::parse(envelope)?;
    if bits != flag_of(fixed.scheme) {
        return Err(ProtectError::FlagsDisagree);
    }
    Ok(Some((what, visible, envelope)))
}

/// Opens a request or event that came to agent `me`, or lets a plain one pass where that is allowed. The bus's own events, under
/// `agentd.`, are plain always.
pub fn open_frame(
    opener: &Opener,
    demand: Demand,
    frame: Frame,
    me: PeerId,
) -> Result<Opened, ProtectError> {
    let Some((what, visible, envelope)) = envelope(&frame)? else {
        return if demand == Demand::Nothing || is_from_bus(&frame) {
            let verified = None;
            Ok(Opened { frame, verified })
        } else {
            Err(ProtectError::Plain { demand })
        };
    };
    if demand == Demand::Sealed && protection_flags(&frame) == flags::SIGNED {
        return Err(ProtectError::OnlySigned { demand });
    }
    let ends = (frame.header.source, me);
    let transcript = transcript(&frame, what, ends, MessageId::default(), visible);
    let mut payload = visible.to_vec();
    let verified = opener.open(&transcript, envelope, &mut payload)?;
    Ok(Opened {
        frame: with_payload(frame, payload),
        verified: Some(verified),
    })
}

fn is_from_bus(frame: &Frame) -> bool {
    frame.header.source.is_bus()
        && frame.kind() & kind::EVENT != 0
        && Event::parse(&frame.payload).is_ok_and(|event| event.topic.starts_with(RESERVED_PREFIX))
}

/// Opens the answer of agent `server` to the request `asked`, which went out under `scheme`. The
/// bus's own refusals pass as they are; any other answer must be protected at least as well as its
/// request.
pub fn open_answer(
    keyring: &Keyring,
    frame: Frame,
    (server, me): (PeerId, PeerId),
    asked: MessageId,
    scheme: Scheme,
) -> Result<Frame, ProtectError> {
    let Some((what, visible, envelope)) = envelope(&frame)? else {
        let response = Response::parse(&frame.payload)?;
        if response.status.is_bus_only() && response.status != Status::OK {
            return Ok(frame);
        }
        let says = if response.error.is_empty() {
            String::from_utf8_lossy(&response.result[..response.result.len().min(256)]).into_owned()
        } else {
            response.error.to_owned()
        };
        return Err(ProtectError::PlainAnswer { scheme, says });
    };
    if scheme.seals() && protection_flags(&frame) == flags::SIGNED {
        let demand = Demand::Sealed;
        return Err(ProtectError::OnlySigned { demand });
    }
    let transcript = transcript(&frame, what, (server, me), asked, visible);
    let mut payload = visible.to_vec();
    keyring.open(&transcript, envelope, &mut payload)?;
    Ok(with_payload(frame, payload))
}
