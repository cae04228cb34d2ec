//! The 64-byte frame header (one cache line, little-endian) and a decoder for a stream of frames.
//!
//! A frame is a header followed by `payload_len` bytes. The header is the form of a message on
//! sockets, in files and between hosts; a lane slot is smaller and is described in `lane`.
//!
//! Never allocates more than the caller's payload limit, never trusts a length before checking it.
//! Pure: no I/O, any thread, no privilege. Fails with [`FrameError`]; after an error the stream has
//! lost its framing and must be closed.

#![forbid(unsafe_code)]

use std::sync::Arc;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::simd::crc32c;

/// First four bytes of every frame: `0xAF42CAFE`.
pub const MAGIC: u32 = 0xAF42_CAFE;
/// The version this code speaks.
pub const VERSION: u16 = 1;
/// Bytes of a header.
pub const HEADER_LEN: usize = 64;
/// The most any transport may allow for one payload. Sockets allow less: see `Welcome`.
pub const PAYLOAD_CEILING: u32 = 16 << 20;

/// The frame's type: a bit set of which exactly one *kind* bit is set.
pub mod kind {
    /// Wants a response with the same correlation id.
    pub const REQUEST: u16 = 0x01;
    /// Answers a request.
    pub const RESPONSE: u16 = 0x02;
    /// One-way: to an agent's inbox (destination set) or to a topic (destination nil).
    pub const EVENT: u16 = 0x04;
    /// Between a client and the bus itself; see [`crate::message::Control`].
    pub const COMMAND: u16 = 0x08;
    /// "I am here"; no payload.
    pub const HEARTBEAT: u16 = 0x10;
    /// With RESPONSE: the request failed. Alone: a notice from the bus, e.g. before it closes.
    pub const ERROR: u16 = 0x20;
    /// With EVENT: to every agent that the sender may send to.
    pub const BROADCAST: u16 = 0x40;

    /// Everything this version knows.
    pub const ALL: u16 = REQUEST | RESPONSE | EVENT | COMMAND | HEARTBEAT | ERROR | BROADCAST;

    /// True for the combinations that mean something.
    pub fn is_valid(bits: u16) -> bool {
        matches!(
            bits,
            REQUEST | RESPONSE | EVENT | COMMAND | HEARTBEAT | ERROR
        ) || bits == RESPONSE | ERROR
            || bits == EVENT | BROADCAST
    }
}

/// Header flags.
pub mod flags {
    /// Bits 0-1: priority, 0 lowest, 1 normal, 2 high, 3 urgent.
    pub const PRIORITY_MASK: u32 = 0b11;
    /// The payload is LZ4 (bit 2) or zstd (bit 3) compressed. Refused until a peer negotiates it.
    pub const COMPRESSED: u32 = 0b11 << 2;
    /// Parameters, result or data are sealed between the two agents: [`crate::protect`].
    pub const SEALED: u32 = 1 << 4;
    /// Of an event: acknowledge it only once it is stored. Refused for a topic that is not durable.
    pub const DURABLE: u32 = 1 << 5;
    /// The sender wants an acknowledgement: a RESPONSE to an EVENT, an echo of a HEARTBEAT.
    pub const ACK: u32 = 1 << 6;
    /// `crc` holds the CRC-32C of header and payload. Without it `crc` must be 0.
    pub const CRC: u32 = 1 << 7;
    /// One file descriptor accompanies this frame (`SCM_RIGHTS`, on the frame's first byte).
    pub const FD: u32 = 1 << 8;
    /// Parameters, result or data are signed by the sending agent: [`crate::protect`].
    pub const SIGNED: u32 = 1 << 9;
    /// Of an event: give it to those who subscribe later too. From the bus: it was published before.
    pub const RETAIN: u32 = 1 << 10;

    /// With ACK, of an event: it may be acknowledged together with those before and behind it. A refusal is told alone.
    pub const GATHER: u32 = 1 << 11;

    /// Everything that this version acts on; other bits are refused, not ignored.
    pub const SUPPORTED: u32 =
        PRIORITY_MASK | SEALED | DURABLE | ACK | CRC | FD | SIGNED | RETAIN | GATHER;
}

/// Sixteen bytes naming an agent (its launch id). All zero is the bus itself.
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct PeerId(pub [u8; 16]);

impl PeerId {
    /// The bus itself.
    pub const BUS: Self = Self([0; 16]);

    /// True for [`PeerId::BUS`].
    pub fn is_bus(self) -> bool {
        self == Self::BUS
    }
}

impl std::fmt::Display for PeerId {
    /// The UUID text form, 8-4-4-4-12.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerId({self})")
    }
}

/// The header as it is on the wire.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Header {
    pub magic: U32,
    pub version: U16,
    /// [`kind`] bits.
    pub kind: U16,
    /// Bytes after the header.
    pub payload_len: U32,
    /// CRC-32C over the header with this field 0, then the payload. Only with [`flags::CRC`].
    pub crc: U32,
    /// Nanoseconds since the Unix epoch, 0 = not set. The bus fills it in.
    pub timestamp_ns: U64,
    /// Who sent it. The bus overwrites a nil source and refuses anyone else's.
    pub source: PeerId,
    /// To whom; nil is the bus, or the topic's subscribers for an event.
    pub destination: PeerId,
    /// [`flags`] bits.
    pub flags: U32,
    /// Ties a response to its request; chosen by the requester, unique per connection, not 0.
    pub correlation: U32,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);
const _: () = assert!(std::mem::offset_of!(Header, version) == 4);
const _: () = assert!(std::mem::offset_of!(Header, kind) == 6);
const _: () = assert!(std::mem::offset_of!(Header, payload_len) == 8);
const _: () = assert!(std::mem::offset_of!(Header, crc) == 12);
const _: () = assert!(std::mem::offset_of!(Header, timestamp_ns) == 16);
const _: () = assert!(std::mem::offset_of!(Header, source) == 24);
const _: () = assert!(std::mem::offset_of!(Header, destination) == 40);
const _: () = assert!(std::mem::offset_of!(Header, flags) == 56);
const _: () = assert!(std::mem::offset_of!(Header, correlation) == 60);

/// Whether a frame goes out with a file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithFd {
    Yes,
    No,
}

/// One message with its header. Cheap to clone: subscribers share the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    pub payload: Arc<[u8]>,
}

impl Frame {
    /// A frame of `kind` without source, time stamp or CRC: the bus fills in the first two.
    ///
    /// # Panics
    /// If the payload is longer than [`PAYLOAD_CEILING`]; the encoders of [`crate::message`] and the
    /// client check the smaller limit of the connection first.
    pub fn new(
        kind: u16,
        destination: PeerId,
        correlation: u32,
        payload: impl Into<Arc<[u8]>>,
    ) -> Self {
        let payload = payload.into();
        assert!(
            payload.len() <= PAYLOAD_CEILING as usize,
            "payload over the format's ceiling"
        );
        let header = Header {
            magic: MAGIC.into(),
            version: VERSION.into(),
            kind: kind.into(),
            payload_len: (payload.len() as u32).into(),
            crc: 0.into(),
            timestamp_ns: 0.into(),
            source: PeerId::BUS,
            destination,
            flags: 1.into(),
            correlation: correlation.into(),
        };
        Self { header, payload }
    }

    /// The [`kind`] bits.
    pub fn kind(&self) -> u16 {
        self.header.kind.get()
    }

    /// The correlation id.
    pub fn correlation(&self) -> u32 {
        self.header.correlation.get()
    }

    /// Bytes on the wire.
    pub fn wire_len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }

    /// Sets the CRC and its flag. Any later change of the header makes it wrong.
    pub fn seal_crc(&mut self) {
        self.header.flags = (self.header.flags.get() | flags::CRC).into();
        self.header.crc = checksum(&self.header, &self.payload).into();
    }

    /// Takes the CRC out, for a header that is about to change.
    pub fn clear_crc(&mut self) {
        self.header.flags = (self.header.flags.get() & !flags::CRC).into();
        self.header.crc = 0.into();
    }

    /// Says in the header whether a file descriptor comes along.
    pub fn set_fd_flag(&mut self, with_fd: WithFd) {
        let bits = self.header.flags.get() & !flags::FD;
        self.header.flags = (bits | if with_fd == WithFd::Yes { flags::FD } else { 0 }).into();
    }

    /// Whether the header says that a file descriptor comes along.
    pub fn has_fd_flag(&self) -> bool {
        self.header.flags.get() & flags::FD != 0
    }

    /// Appends header and payload to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.header.as_bytes());
        out.extend_from_slice(&self.payload);
    }
}

/// CRC-32C of `header` with its CRC field taken as 0, followed by `payload`.
pub fn checksum(header: &Header, payload: &[u8]) -> u32 {
    let mut plain = *header;
    plain.crc = 0.into();
    crc32c::append(crc32c::crc32c(plain.as_bytes()), payload)
}

/// Why bytes are not a frame. Each is the end of the stream it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("not a bus frame: magic {found:#010x}, expected {MAGIC:#010x}")]
    Magic { found: u32 },
    #[error("frame version {found} is not spoken here; version {VERSION} is")]
    Version { found: u16 },
    #[error(
        "frame type {found:#06x} is not one of request 0x01, response 0x02, event 0x04, command 0x08, heartbeat 0x10, error 0x20 (or 0x22 failed response, 0x44 broadcast)"
    )]
    Kind { found: u16 },
    #[error(
        "frame flags {found:#010x} ask for something not agreed on this connection; allowed bits are {:#010x}",
        flags::SUPPORTED
    )]
    Flags { found: u32 },
    #[error(
        "a frame of type {kind:#06x} with flags {found:#010x} can't be protected: only requests, responses and events are signed (bit 9) or sealed (bit 4), not both at once and not with a descriptor"
    )]
    Protection { kind: u16, found: u32 },
    #[error(
        "a frame of type {kind:#06x} with flags {found:#010x} has no acknowledgement to gather: bit 11 goes with bit 6, of an event"
    )]
    Gather { kind: u16, found: u32 },
    #[error("payload of {len} bytes is over this connection's limit of {limit}")]
    TooLarge { len: u32, limit: u32 },
    #[error("CRC-32C is {found:#010x} but header and payload give {computed:#010x}")]
    Crc { found: u32, computed: u32 },
    #[error("CRC field is {found:#010x} although the CRC flag is not set")]
    StrayCrc { found: u32 },
}

/// Checks everything of a header that can be checked before its payload is there.
pub fn check_header(header: &Header, max_payload: u32) -> Result<(), FrameError> {
    if header.magic.get() != MAGIC {
        return Err(FrameError::Magic {
            found: header.magic.get(),
        });
    }
    if header.version.get() != VERSION {
        return Err(FrameError::Version {
            found: header.version.get(),
        });
    }
    if !kind::is_valid(header.kind.get()) {
        return Err(FrameError::Kind {
            found: header.kind.get(),
        });
    }
    let bits = header.flags.get();
    if bits & !flags::SUPPORTED != 0 {
        return Err(FrameError::Flags { found: bits });
    }
    let gathers = bits & flags::GATHER != 0;
    if gathers && (header.kind.get() & kind::EVENT == 0 || bits & flags::ACK == 0) {
        return Err(FrameError::Gather {
            kind: header.kind.get(),
            found: bits,
        });
    }
    let protection = bits & (flags::SIGNED | flags::SEALED);
    let has_body = header.kind.get() & (kind::REQUEST | kind::RESPONSE | kind::EVENT) != 0;
    if protection != 0 && (protection.count_ones() > 1 || !has_body || bits & flags::FD != 0) {
        return Err(FrameError::Protection {
            kind: header.kind.get(),
            found: bits,
        });
    }
    if bits & flags::CRC == 0 && header.crc.get() != 0 {
        return Err(FrameError::StrayCrc {
            found: header.crc.get(),
        });
    }
    let limit = max_payload.min(PAYLOAD_CEILING);
    if header.payload_len.get() > limit {
        return Err(FrameError::TooLarge {
            len: header.payload_len.get(),
            limit,
        });
    }
    Ok(())
}

/// Cuts a byte stream into frames. Holds at most one partial frame plus what the caller fed last.
#[derive(Debug)]
pub struct Decoder {
    max_payload: u32,
    buffer: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// A decoder that refuses payloads over `max_payload` bytes as soon as it has seen the header.
    pub fn new(max_payload: u32) -> Self {
        Self {
            max_payload,
            buffer: Vec::new(),
            consumed: 0,
        }
    }

    /// Adds bytes from the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.consumed == self.buffer.len() {
            self.buffer.clear();
            self.consumed = 0;
        } else if self.consumed > 64 * 1024 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` while bytes are missing.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.consumed..];
        let Ok((header, body)) = Header::read_from_prefix(rest) else {
            return Ok(None);
        };
        check_header(&header, self.max_payload)?;
        let len = header.payload_len.get() as usize;
        let Some(payload) = body.get(..len) else {
            return Ok(None);
        };
        if header.flags.get() & flags::CRC != 0 {
            let computed = checksum(&header, payload);
            if computed != header.crc.get() {
                return Err(FrameError::Crc {
                    found: header.crc.get(),
                    computed,
                });
            }
        }
        let payload = Arc::from(payload);
        self.consumed += HEADER_LEN + len;
        if self.consumed == self.buffer.len() && self.buffer.capacity() > 64 * 1024 {
            // One large message must not keep its buffer for the life of the connection.
            self.buffer = Vec::new();
            self.consumed = 0;
        }
        Ok(Some(Frame { header, payload }))
    }

    /// Bytes held that are not yet a frame: not 0 at the end of a stream means a frame was cut off.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len() - self.consumed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Frame {
        let mut frame = Frame::new(kind::REQUEST, PeerId([0xBB; 16]), 0x0102_0304, *b"hello");
        frame.header.timestamp_ns = 0x1122_3344_5566_7788.into();
        frame.header.source = PeerId([0xAA; 16]);
        frame
    }

    #[test]
    fn header_bytes_are_the_documented_ones() {
        let mut frame = sample();
        frame.seal_crc();
        let mut bytes = Vec::new();
        frame.encode_into(&mut bytes);
        let mut golden = vec![
            0xFE, 0xCA, 0x42, 0xAF, // magic
            0x01, 0x00, // version
            0x01, 0x00, // kind: request
            0x05, 0x00, 0x00, 0x00, // payload length
        ];
        golden.extend_from_slice(&frame.header.crc.get().to_le_bytes());
        golden.extend_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        golden.extend_from_slice(&[0xAA; 16]);
        golden.extend_from_slice(&[0xBB; 16]);
        golden.extend_from_slice(&[0x81, 0, 0, 0]); // priority 1, CRC present
        golden.extend_from_slice(&[0x04, 0x03, 0x02, 0x01]);
        golden.extend_from_slice(b"hello");
        assert_eq!(bytes, golden);
    }

    #[test]
    fn crc_is_castagnoli_over_header_with_zero_crc_then_payload() {
        // Bit-by-bit reference, independent of the crate: reflected polynomial 0x82F63B78.
        fn reference(bytes: &[u8]) -> u32 {
            !bytes.iter().fold(!0u32, |crc, byte| {
                (0..8).fold(crc ^ u32::from(*byte), |c, _| {
                    (c >> 1) ^ (0x82F6_3B78 * (c & 1))
                })
            })
        }
        assert_eq!(reference(b"123456789"), 0xE306_9283);
        let mut frame = sample();
        frame.seal_crc();
        let mut bytes = Vec::new();
        frame.encode_into(&mut bytes);
        bytes[12..16].fill(0);
        assert_eq!(reference(&bytes), frame.header.crc.get());
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let mut frame = sample();
        frame.seal_crc();
        let mut good = Vec::new();
        frame.encode_into(&mut good);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let mut decoder = Decoder::new(1024);
            decoder.feed(&bad);
            // A longer length merely waits for more bytes; everything else must be an error.
            match decoder.next_frame() {
                Err(_) => {}
                Ok(None) => assert!((64..96).contains(&bit), "bit {bit} went unnoticed"),
                Ok(Some(_)) => panic!("bit {bit} went unnoticed"),
            }
        }
    }

    #[test]
    fn oversize_is_refused_from_the_header_alone() {
        let mut header = sample().header;
        header.payload_len = 1025.into();
        let mut decoder = Decoder::new(1024);
        decoder.feed(header.as_bytes());
        assert_eq!(
            decoder.next_frame(),
            Err(FrameError::TooLarge {
                len: 1025,
                limit: 1024
            })
        );
    }

    #[test]
    fn unknown_flags_are_refused_not_ignored() {
        let mut frame = sample();
        for unknown in [flags::COMPRESSED, 1 << 12, 1 << 31] {
            frame.header.flags = unknown.into();
            assert_eq!(
                check_header(&frame.header, 1024),
                Err(FrameError::Flags { found: unknown })
            );
        }
    }

    #[test]
    fn only_an_acknowledgement_of_an_event_is_gathered() {
        let check = |kind, flags| {
            let mut frame = Frame::new(kind, PeerId::BUS, 1, []);
            frame.header.flags = u32::into(flags);
            check_header(&frame.header, 1024)
        };
        let both = flags::ACK | flags::GATHER;
        for kind in [kind::EVENT, kind::EVENT | kind::BROADCAST] {
            assert_eq!(check(kind, both), Ok(()));
            let found = flags::GATHER;
            assert_eq!(check(kind, found), Err(FrameError::Gather { kind, found }));
        }
        for kind in [kind::REQUEST, kind::COMMAND, kind::HEARTBEAT] {
            let found = both;
            assert_eq!(check(kind, found), Err(FrameError::Gather { kind, found }));
        }
    }

    #[test]
    fn only_messages_between_agents_are_protected_and_in_one_way_only() {
        let check = |kind, flags| {
            let mut frame = Frame::new(kind, PeerId::BUS, 1, []);
            frame.header.flags = u32::into(flags);
            check_header(&frame.header, 1024)
        };
        for protection in [flags::SIGNED, flags::SEALED] {
            for good in [
                kind::REQUEST,
                kind::RESPONSE,
                kind::RESPONSE | kind::ERROR,
                kind::EVENT,
                kind::EVENT | kind::BROADCAST,
            ] {
                assert_eq!(check(good, protection), Ok(()));
                for found in [flags::SIGNED | flags::SEALED, protection | flags::FD] {
                    let kind = good;
                    assert_eq!(
                        check(kind, found),
                        Err(FrameError::Protection { kind, found })
                    );
                }
            }
            for kind in [kind::COMMAND, kind::HEARTBEAT, kind::ERROR] {
                let found = protection;
                assert_eq!(
                    check(kind, found),
                    Err(FrameError::Protection { kind, found })
                );
            }
        }
    }

    #[test]
    fn a_crc_without_its_flag_is_refused() {
        let mut frame = sample();
        frame.header.crc = 7.into();
        assert_eq!(
            check_header(&frame.header, 1024),
            Err(FrameError::StrayCrc { found: 7 })
        );
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_gives_the_same_frames(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..8),
            cuts in proptest::collection::vec(1usize..97, 1..40),
        ) {
            let frames: Vec<Frame> = payloads
                .iter()
                .enumerate()
                .map(|(i, payload)| {
                    let mut frame = Frame::new(kind::EVENT, PeerId([i as u8; 16]), i as u32, payload.as_slice());
                    if i % 2 == 0 {
                        frame.seal_crc();
                    }
                    frame
                })
                .collect();
            let mut bytes = Vec::new();
            for frame in &frames {
                frame.encode_into(&mut bytes);
            }
            let mut decoder = Decoder::new(4096);
            let mut seen = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                decoder.feed(now);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(decoder.pending_bytes(), 0);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = Decoder::new(128);
            decoder.feed(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                prop_assert!(frame.payload.len() <= 128);
            }
        }
    }
}
