//! The interop header v3: the older 64-byte header that other frameworks' agents speak, and its mapping to ours.
//!
//! Little-endian: timestamp u64, message id u32, source u32, target u32, type u16, priority u16, payload size u32, SHA-256
//! of 32 bytes, and four bytes of padding that a C compiler adds and that must be 0. It has no magic; which dialect a
//! connection speaks follows from its first eight bytes ([`Dialect::detect`]).
//!
//! The mapping loses nothing, in either direction:
//!
//! | v3 | B1 |
//! | --- | --- |
//! | timestamp | time stamp |
//! | message id | correlation id |
//! | source, target: short ids, 0 is the bus | source, destination: the ids that the registry has for them |
//! | type | type, the same bits |
//! | priority: bits 0-1 the priority, the others 0, or B1's flags at their places | flags |
//! | payload size, payload | the same |
//! | SHA-256 over the header up to it, then the payload; all 0 = not set | CRC-32C and its flag bit: each side computes its own |
//!
//! What one side can't say is refused by name, never altered. Pure; fails with [`InteropError`].

use std::sync::Arc;

use ring::digest::{Context, SHA256};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::{self, Frame, FrameError, Header, PeerId, flags, kind};

/// Bytes of a header, its padding included.
pub const HEADER_LEN: usize = 64;
/// Where the check sum begins: so much of the header it covers.
const COVERED: usize = 28;

/// The header as it is on the wire.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct HeaderV3 {
    /// Nanoseconds since the Unix epoch, 0 = not set.
    pub timestamp: U64,
    pub message_id: U32,
    pub source: U32,
    pub target: U32,
    pub kind: U16,
    pub priority: U16,
    pub payload_size: U32,
    /// All 0 = not set.
    pub sha256: [u8; 32],
    pub padding: U32,
}

const _: () = assert!(size_of::<HeaderV3>() == HEADER_LEN);
const _: () = assert!(std::mem::offset_of!(HeaderV3, kind) == 20);
const _: () = assert!(std::mem::offset_of!(HeaderV3, sha256) == COVERED);

/// Which of the two headers a connection speaks. Both have 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    B1,
    V3,
}

impl Dialect {
    /// Decides by the first eight bytes: the magic followed by our version and a type that exists is B1. As a v3 time
    /// stamp the same bytes would lie in the first 416 days after 1970.
    pub fn detect(first: [u8; 8]) -> Self {
        let word = u64::from_le_bytes(first);
        let kind = (word >> 48) as u16;
        if word as u32 == frame::MAGIC
            && (word >> 32) as u16 == frame::VERSION
            && kind::is_valid(kind)
        {
            Self::B1
        } else {
            Self::V3
        }
    }
}

/// What translates between the two kinds of id.
pub trait ShortIds {
    fn id_of(&self, short: u32) -> Option<PeerId>;
    fn short_of(&self, id: PeerId) -> Option<u32>;
}

/// Why a frame of one kind has no form in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InteropError {
    #[error("interop header: short id {short:#010x} names nobody on this bus")]
    UnknownShort { short: u32 },
    #[error("interop header: {id} has no short id, so a v3 peer can't be told of it")]
    NoShort { id: PeerId },
    #[error("interop header: SHA-256 does not match header and payload")]
    Checksum,
    #[error("interop header: its last four bytes are {found:#010x}, must be 0")]
    Padding { found: u32 },
    #[error(
        "interop header: priority {found:#06x} has bits that mean nothing; allowed are {:#06x}",
        PRIORITY_BITS
    )]
    Priority { found: u16 },
    #[error("{0}")]
    Frame(#[from] FrameError),
}

/// Bits of v3's priority that carry something: B1's flags without the CRC, which v3's own check sum stands for, and
/// without descriptors, which no gateway connection carries.
pub const PRIORITY_BITS: u16 = (flags::SUPPORTED & !(flags::CRC | flags::FD)) as u16;

/// The check sum of a v3 frame.
pub fn sha256(header: &HeaderV3, payload: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(&header.as_bytes()[..COVERED]);
    context.update(payload);
    let mut sum = [0; 32];
    sum.copy_from_slice(context.finish().as_ref());
    sum
}

/// Checks what can be checked before the payload is there; the answer is the payload's length.
pub fn check_header(header: &HeaderV3, max_payload: u32) -> Result<usize, InteropError> {
    if header.padding.get() != 0 {
        let found = header.padding.get();
        return Err(InteropError::Padding { found });
    }
    let priority = header.priority.get();
    if priority & !PRIORITY_BITS != 0 {
        return Err(InteropError::Priority { found: priority });
    }
    frame::check_header(&translated(header, PeerId::BUS, PeerId::BUS), max_payload)?;
    Ok(header.payload_size.get() as usize)
}

fn translated(header: &HeaderV3, source: PeerId, destination: PeerId) -> Header {
    Header {
        magic: frame::MAGIC.into(),
        version: frame::VERSION.into(),
        kind: header.kind,
        payload_len: header.payload_size,
        crc: 0.into(),
        timestamp_ns: header.timestamp,
        source,
        destination,
        flags: u32::from(header.priority.get()).into(),
        correlation: header.message_id,
    }
}

/// A checked v3 frame as ours.
pub fn from_v3(
    header: &HeaderV3,
    payload: &[u8],
    ids: &dyn ShortIds,
) -> Result<Frame, InteropError> {
    if header.sha256 != [0; 32] && header.sha256 != sha256(header, payload) {
        return Err(InteropError::Checksum);
    }
    let long = |short: U32| match short.get() {
        0 => Ok(PeerId::BUS),
        short => ids.id_of(short).ok_or(InteropError::UnknownShort { short }),
    };
    let header = translated(header, long(header.source)?, long(header.target)?);
    Ok(Frame {
        header,
        payload: Arc::from(payload),
    })
}

/// One of our frames as v3, appended to `out`.
pub fn to_v3(frame: &Frame, ids: &dyn ShortIds, out: &mut Vec<u8>) -> Result<(), InteropError> {
    let short = |id: PeerId| {
        if id.is_bus() {
            return Ok(0);
        }
        ids.short_of(id).ok_or(InteropError::NoShort { id })
    };
    let bits = frame.header.flags.get() & !flags::CRC;
    if bits & !u32::from(PRIORITY_BITS) != 0 {
        return Err(FrameError::Flags { found: bits }.into());
    }
    let mut header = HeaderV3 {
        timestamp: frame.header.timestamp_ns,
        message_id: frame.header.correlation,
        source: short(frame.header.source)?.into(),
        target: short(frame.header.destination)?.into(),
        kind: frame.header.kind,
        priority: (bits as u16).into(),
        payload_size: frame.header.payload_len,
        sha256: [0; 32],
        padding: 0.into(),
    };
    header.sha256 = sha256(&header, &frame.payload);
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&frame.payload);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Short id n is the id made of n's bytes, four times.
    struct Repeated;

    impl ShortIds for Repeated {
        fn id_of(&self, short: u32) -> Option<PeerId> {
            let mut id = [0; 16];
            for chunk in id.as_chunks_mut::<4>().0 {
                *chunk = short.to_le_bytes();
            }
            (short != 99).then_some(PeerId(id))
        }
        fn short_of(&self, id: PeerId) -> Option<u32> {
            let short = u32::from_le_bytes(*id.0.first_chunk()?);
            (self.id_of(short) == Some(id)).then_some(short)
        }
    }

    fn parse(bytes: &[u8]) -> Result<Frame, InteropError> {
        let (header, payload) = HeaderV3::read_from_prefix(bytes).unwrap();
        check_header(&header, 4096)?;
        from_v3(&header, payload, &Repeated)
    }

    #[test]
    fn header_bytes_are_the_documented_ones() {
        let mut frame = Frame::new(kind::REQUEST, PeerId([0x0B; 16]), 0x0102_0304, *b"hello");
        frame.header.timestamp_ns = 0x1122_3344_5566_7788.into();
        frame.header.source = PeerId([0x0A; 16]);
        frame.header.flags = 2.into();
        let mut bytes = Vec::new();
        to_v3(&frame, &Repeated, &mut bytes).unwrap();
        let mut golden = vec![
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // timestamp
            0x04, 0x03, 0x02, 0x01, // message id
            0x0A, 0x0A, 0x0A, 0x0A, // source
            0x0B, 0x0B, 0x0B, 0x0B, // target
            0x01, 0x00, // type: request
            0x02, 0x00, // priority: high
            0x05, 0x00, 0x00, 0x00, // payload size
        ];
        // sha256sum of the 28 bytes above and "hello", by another program.
        golden.extend_from_slice(&[
            0x61, 0xB5, 0xAC, 0x44, 0x8D, 0xF9, 0x7B, 0x73, 0x82, 0xDB, 0xB2, 0x2F, 0xD7, 0x17,
            0xAF, 0xD6, 0xD7, 0x72, 0xF1, 0xFB, 0x7C, 0x36, 0x0F, 0x43, 0x2B, 0x90, 0xEB, 0x66,
            0xB9, 0x51, 0x04, 0x61,
        ]);
        golden.extend_from_slice(&[0; 4]);
        golden.extend_from_slice(b"hello");
        assert_eq!(bytes, golden);
        assert_eq!(parse(&golden).unwrap(), frame);
    }

    #[test]
    fn the_first_eight_bytes_decide() {
        let ours = Frame::new(kind::COMMAND, PeerId::BUS, 1, []);
        let mut bytes = Vec::new();
        ours.encode_into(&mut bytes);
        assert_eq!(Dialect::detect(*bytes.first_chunk().unwrap()), Dialect::B1);
        // A time stamp of 2026 whose low half is our magic.
        let stamp = (1_790_000_000_000_000_000u64 & !0xFFFF_FFFF) | u64::from(frame::MAGIC);
        assert_eq!(Dialect::detect(stamp.to_le_bytes()), Dialect::V3);
        assert_eq!(Dialect::detect([0; 8]), Dialect::V3);
    }

    #[test]
    fn what_has_no_form_on_the_other_side_is_refused_by_name() {
        let frame = Frame::new(kind::EVENT, PeerId([1; 16]), 1, *b"x");
        let mut good = Vec::new();
        to_v3(&frame, &Repeated, &mut good).unwrap();
        let altered = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes[28..60].fill(0);
            parse(&bytes)
        };
        assert_eq!(
            altered(12, 99),
            Err(InteropError::UnknownShort { short: 99 })
        );
        assert_eq!(
            altered(63, 1),
            Err(InteropError::Padding { found: 1 << 24 })
        );
        assert_eq!(
            altered(22, 0x81),
            Err(InteropError::Priority { found: 0x81 })
        );
        assert_eq!(altered(20, 0x03), Err(FrameError::Kind { found: 3 }.into()));
        let mut nameless = frame.clone();
        let id = PeerId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        nameless.header.destination = id;
        assert_eq!(
            to_v3(&nameless, &Repeated, &mut Vec::new()),
            Err(InteropError::NoShort { id })
        );
        let mut with_fd = frame;
        with_fd.set_fd_flag(frame::WithFd::Yes);
        assert!(to_v3(&with_fd, &Repeated, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let mut frame = Frame::new(kind::EVENT, PeerId([1; 16]), 7, *b"payload");
        frame.header.source = PeerId([2; 16]);
        let mut good = Vec::new();
        to_v3(&frame, &Repeated, &mut good).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let (header, _) = HeaderV3::read_from_prefix(&bad).unwrap();
            // A frame of another length isn't cut from these bytes.
            if header.payload_size.get() as usize == frame.payload.len() {
                assert!(parse(&bad).is_err(), "bit {bit} went unnoticed");
            }
        }
    }

    proptest! {
        #[test]
        fn every_accepted_frame_comes_back_the_same(
            timestamp: u64, message_id: u32, source in 100u32.., target: u32, priority: u16,
            kind in proptest::sample::select(vec![1u16, 2, 4, 8, 0x10, 0x20, 0x22, 0x44, 3, 0x80]),
            payload in proptest::collection::vec(any::<u8>(), 0..300), summed: bool,
        ) {
            let mut header = HeaderV3 {
                timestamp: timestamp.into(), message_id: message_id.into(), source: source.into(),
                target: target.into(), kind: kind.into(), priority: (priority & PRIORITY_BITS).into(),
                payload_size: (payload.len() as u32).into(), sha256: [0; 32], padding: 0.into(),
            };
            let sum = sha256(&header, &payload);
            if summed {
                header.sha256 = sum;
            }
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend_from_slice(&payload);
            if let Ok(frame) = parse(&bytes) {
                let mut again = Vec::new();
                to_v3(&frame, &Repeated, &mut again).unwrap();
                header.sha256 = sum;
                bytes[..HEADER_LEN].copy_from_slice(header.as_bytes());
                prop_assert_eq!(again, bytes);
            } else {
                prop_assert!(target == 99 || !kind::is_valid(kind)
                    || frame::check_header(&translated(&header, PeerId::BUS, PeerId::BUS), 4096).is_err());
            }
        }

        #[test]
        fn every_frame_of_ours_comes_back_the_same(
            timestamp: u64, correlation: u32, source in 100u32.., destination in 100u32.., bits: u32,
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut frame = Frame::new(kind::EVENT, Repeated.id_of(destination).unwrap(), correlation, payload);
            frame.header.source = Repeated.id_of(source).unwrap();
            frame.header.timestamp_ns = timestamp.into();
            let protection = if bits & 1 == 0 { flags::SIGNED } else { flags::SEALED };
            let mut header_flags = bits & u32::from(PRIORITY_BITS) & !(flags::SIGNED | flags::SEALED) | protection;
            if header_flags & flags::GATHER != 0 {
                header_flags |= flags::ACK;
            }
            frame.header.flags = header_flags.into();
            let mut bytes = Vec::new();
            to_v3(&frame, &Repeated, &mut bytes).unwrap();
            prop_assert_eq!(parse(&bytes).unwrap(), frame);
        }
    }
}
