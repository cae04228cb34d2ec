//! A frame as it is in a lane: the same facts as its 64-byte header, in 8 or 32 bytes, and in pieces where it is long.
//!
//! A lane message has a tag with the frame's type and correlation id; whose it is follows from the lane. The payload of
//! the first piece begins with a head:
//!
//! | bytes | of a frame to or from the bus | of any other |
//! | --- | --- | --- |
//! | 0-3 | flags | flags |
//! | 4-7 | payload length | payload length |
//! | 8-15 | | time stamp, ns since the Unix epoch (0 from an agent) |
//! | 16-31 | | the other agent: the receiver from an agent, the sender from the bus |
//!
//! Of the tag's flags bit 0 says that more pieces follow, bit 1 that this is a further one, bit 2 that the head is the
//! short one. Pieces of one frame follow each other. Little-endian. Pure; fails with [`CompactError`], which ends the
//! lane; a decoder holds at most one frame.

#![forbid(unsafe_code)]

use crate::channel::Tag;
use crate::frame::{Frame, FrameError, PeerId, check_header, flags};

/// Bytes of the two heads.
pub const SHORT_HEAD: usize = 8;
pub const HEAD: usize = 32;

const MORE: u8 = 1;
const FURTHER: u8 = 2;
const SHORT: u8 = 4;

/// Why messages of a lane are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    #[error("{have} bytes are less than the {need} of a frame's head")]
    Short { have: usize, need: usize },
    #[error(
        "flags {found:#04x} of a lane message: 1 more, 2 further and 4 short head are known, 2 and 4 exclude each other"
    )]
    Flags { found: u8 },
    #[error("a further piece of no frame")]
    Stray,
    #[error("a frame begins inside another")]
    Inside,
    #[error("a frame of {len} bytes came as {have}")]
    Length { len: usize, have: usize },
    #[error("a frame in a lane has no descriptor and no CRC")]
    Unfit,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Which of the two sides of a lane decodes: what the address in the head means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The bus: it is the receiver.
    FromAgent,
    /// An agent: it is the sender.
    FromBus,
}

/// What the first piece of a frame begins with; empty for a further one.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; HEAD],
    len: usize,
}

impl Head {
    const NONE: Self = Self {
        bytes: [0; HEAD],
        len: 0,
    };

    /// `stamped`: the other agent, and when; of a frame to or from the bus there is neither.
    fn new(flags: u32, payload: u32, stamped: Option<(PeerId, u64)>) -> Self {
        let mut head = Self {
            len: SHORT_HEAD,
            ..Self::NONE
        };
        head.bytes[..4].copy_from_slice(&flags.to_le_bytes());
        head.bytes[4..SHORT_HEAD].copy_from_slice(&payload.to_le_bytes());
        if let Some((peer, stamp)) = stamped {
            head.bytes[SHORT_HEAD..16].copy_from_slice(&stamp.to_le_bytes());
            head.bytes[16..].copy_from_slice(&peer.0);
            head.len = HEAD;
        }
        head
    }

    /// A whole number of words.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn tag_flags(&self) -> u8 {
        if self.len == SHORT_HEAD { SHORT } else { 0 }
    }
}

/// What goes in front of the payload of a frame from an agent that fits into one message, and its tag.
pub fn head_of(
    (bits, header_flags, correlation): (u16, u32, u32),
    to: PeerId,
    payload: usize,
) -> (Tag, Head) {
    let stamped = (!to.is_bus()).then_some((to, 0));
    let head = Head::new(header_flags, payload as u32, stamped);
    let tag = Tag {
        kind: bits as u8,
        flags: head.tag_flags(),
        correlation,
    };
    (tag, head)
}

/// Cuts a frame into lane messages.
#[derive(Debug)]
pub struct Pieces {
    frame: Frame,
    /// Bytes of payload that went out; `None`: not even the head.
    sent: Option<usize>,
    address: PeerId,
}

impl Pieces {
    /// A frame from an agent to the bus.
    pub fn to_bus(frame: Frame) -> Self {
        Self {
            address: frame.header.destination,
            frame,
            sent: None,
        }
    }

    /// A frame from the bus to an agent.
    pub fn to_agent(frame: Frame) -> Self {
        Self {
            address: frame.header.source,
            frame,
            sent: None,
        }
    }

    /// The next message, of at most `most` bytes (no less than [`HEAD`]).
    pub fn next(&self, most: usize) -> Piece {
        let header = &self.frame.header;
        let head = match self.sent {
            Some(_) => Head::NONE,
            None => {
                // The bus's own words need no time; an agent's are stamped by the bus.
                let stamp = header.timestamp_ns.get();
                let stamped = (!self.address.is_bus()).then_some((self.address, stamp));
                Head::new(header.flags.get(), header.payload_len.get(), stamped)
            }
        };
        let mut bits = match self.sent {
            Some(_) => FURTHER,
            None => head.tag_flags(),
        };
        let start = self.sent.unwrap_or(0);
        let end = self.frame.payload.len().min(start + most - head.len);
        if end < self.frame.payload.len() {
            bits |= MORE;
        }
        let tag = Tag {
            kind: header.kind.get() as u8,
            flags: bits,
            correlation: header.correlation.get(),
        };
        Piece {
            tag,
            head,
            start,
            end,
        }
    }

    /// What `piece` has behind its head.
    pub fn body(&self, piece: &Piece) -> &[u8] {
        &self.frame.payload[piece.start..piece.end]
    }

    /// `piece` went out. Whether it was the last.
    pub fn sent(&mut self, piece: &Piece) -> bool {
        self.sent = Some(piece.end);
        piece.tag.flags & MORE == 0
    }
}

/// One message of a frame: its head, then its part of the payload.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub tag: Tag,
    pub head: Head,
    /// Of the frame's payload.
    start: usize,
    end: usize,
}

/// Puts lane messages together.
#[derive(Debug)]
pub struct Assembler {
    max_payload: u32,
    reading: Reading,
    /// A frame of which pieces are missing.
    begun: Option<Frame>,
    payload: Vec<u8>,
}

impl Assembler {
    /// Refuses payloads over `max_payload` bytes at the head.
    pub fn new(reading: Reading, max_payload: u32) -> Self {
        Self {
            max_payload,
            reading,
            begun: None,
            payload: Vec::new(),
        }
    }

    /// Takes one message; a frame when it is whole.
    #[inline]
    pub fn take(&mut self, tag: Tag, message: &[u8]) -> Result<Option<Frame>, CompactError> {
        if tag.flags & FURTHER != 0 {
            return self.go_on(tag, message);
        }
        if tag.flags & !(MORE | SHORT) != 0 {
            return Err(CompactError::Flags { found: tag.flags });
        }
        if self.begun.is_some() {
            return Err(CompactError::Inside);
        }
        let need = if tag.flags & SHORT != 0 {
            SHORT_HEAD
        } else {
            HEAD
        };
        let (head, payload) = message.split_at_checked(need).ok_or(CompactError::Short {
            have: message.len(),
            need,
        })?;
        let u32_at =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (bits, len) = (u32_at(0), u32_at(4) as usize);
        if bits & (flags::FD | flags::CRC) != 0 {
            return Err(CompactError::Unfit);
        }
        let whole = tag.flags & MORE == 0;
        let mut frame = Frame::new(
            u16::from(tag.kind),
            PeerId::BUS,
            tag.correlation,
            // Of a frame in pieces only the header counts until the last has come.
            if whole { payload } else { &[] },
        );
        let header = &mut frame.header;
        header.flags = bits.into();
        header.payload_len = (len as u32).into();
        if let Some((stamp, peer)) = head.get(8..HEAD).and_then(|rest| rest.split_at_checked(8)) {
            let peer = PeerId(peer.try_into().expect("32 - 16 bytes"));
            match self.reading {
                Reading::FromAgent => header.destination = peer,
                Reading::FromBus => header.source = peer,
            }
            header.timestamp_ns = u64::from_le_bytes(stamp.try_into().expect("8 bytes")).into();
        }
        check_header(header, self.max_payload)?;
        if whole {
            if payload.len() != len {
                return Err(CompactError::Length {
                    len,
                    have: payload.len(),
                });
            }
            return Ok(Some(frame));
        }
        self.begun = Some(frame);
        self.payload.clear();
        self.add(payload, len)?;
        Ok(None)
    }

    #[cold]
    fn go_on(&mut self, tag: Tag, message: &[u8]) -> Result<Option<Frame>, CompactError> {
        if tag.flags & !(MORE | FURTHER) != 0 {
            return Err(CompactError::Flags { found: tag.flags });
        }
        let begun = self.begun.as_ref().ok_or(CompactError::Stray)?;
        let header = &begun.header;
        if header.kind.get() != u16::from(tag.kind) || header.correlation.get() != tag.correlation {
            return Err(CompactError::Inside);
        }
        let len = header.payload_len.get() as usize;
        self.add(message, len)?;
        if tag.flags & MORE != 0 {
            return Ok(None);
        }
        if self.payload.len() != len {
            return Err(CompactError::Length {
                len,
                have: self.payload.len(),
            });
        }
        let mut frame = self.begun.take().ok_or(CompactError::Stray)?;
        frame.payload = std::mem::take(&mut self.payload).into();
        Ok(Some(frame))
    }

    /// Never more than the head announced, which was checked.
    fn add(&mut self, piece: &[u8], len: usize) -> Result<(), CompactError> {
        let have = self.payload.len() + piece.len();
        if have > len {
            return Err(CompactError::Length { len, have });
        }
        self.payload.extend_from_slice(piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{VERSION, kind};
    use proptest::prelude::*;

    fn through(frame: Frame, most: usize, reading: Reading) -> Frame {
        let mut pieces = match reading {
            Reading::FromAgent => Pieces::to_bus(frame),
            Reading::FromBus => Pieces::to_agent(frame),
        };
        let mut assembler = Assembler::new(reading, 1 << 20);
        loop {
            let piece = pieces.next(most);
            let message = [piece.head.bytes(), pieces.body(&piece)].concat();
            assert!(message.len() <= most);
            let whole = assembler.take(piece.tag, &message).expect("well formed");
            let last = pieces.sent(&piece);
            assert_eq!(whole.is_some(), last);
            if let Some(frame) = whole {
                return frame;
            }
        }
    }

    proptest! {
        #[test]
        fn a_frame_comes_out_of_a_lane_as_it_went_in(
            payload in proptest::collection::vec(any::<u8>(), 0..600),
            most in HEAD..400usize,
            peer in prop_oneof![Just([0u8; 16]), any::<[u8; 16]>()],
            correlation: u32,
            stamp: u64,
        ) {
            let mut frame = Frame::new(kind::EVENT, PeerId(peer), correlation, payload);
            prop_assert_eq!(&through(frame.clone(), most, Reading::FromAgent), &frame);
            frame.header.source = frame.header.destination;
            frame.header.destination = PeerId::BUS;
            // The bus's own words travel without their time.
            frame.header.timestamp_ns = if peer == [0; 16] { 0 } else { stamp }.into();
            prop_assert_eq!(&through(frame.clone(), most, Reading::FromBus), &frame);
        }

        #[test]
        fn a_frame_from_its_parts_is_the_same_as_a_frame_whole(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            peer in prop_oneof![Just([0u8; 16]), any::<[u8; 16]>()],
            correlation: u32,
        ) {
            let mut frame = Frame::new(kind::EVENT, PeerId(peer), correlation, payload.clone());
            frame.header.flags = (flags::ACK | flags::GATHER | 2).into();
            let parts = (kind::EVENT, frame.header.flags.get(), correlation);
            let (tag, head) = head_of(parts, PeerId(peer), payload.len());
            let buffer = [head.bytes(), &payload].concat();
            let mut assembler = Assembler::new(Reading::FromAgent, 1 << 20);
            prop_assert_eq!(assembler.take(tag, &buffer), Ok(Some(frame)));
        }

        #[test]
        fn messages_that_are_anything_never_make_a_frame_that_is_not_valid(
            messages in proptest::collection::vec(
                (any::<u8>(), 0u8..16, 0u32..2, proptest::collection::vec(any::<u8>(), 0..80)),
                0..12,
            ),
        ) {
            let mut assembler = Assembler::new(Reading::FromAgent, 256);
            for (kind, flags, correlation, message) in messages {
                let tag = Tag { kind, flags, correlation };
                match assembler.take(tag, &message) {
                    Ok(Some(frame)) => {
                        prop_assert!(check_header(&frame.header, 256).is_ok());
                        prop_assert_eq!(frame.header.payload_len.get() as usize, frame.payload.len());
                        prop_assert_eq!(frame.header.version.get(), VERSION);
                    }
                    Ok(None) => {}
                    Err(_) => return Ok(()),
                }
            }
        }
    }
}
