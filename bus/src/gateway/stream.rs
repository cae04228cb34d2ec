//! Bytes of one connection to frames, in either dialect.
//!
//! Frames are cut out of the transport's buffer where they lie; only an unfinished one is kept, and an idle connection
//! keeps nothing. Pure; fails with an [`Ending`], after which the stream has lost its framing.

use std::sync::Arc;

use zerocopy::FromBytes;

use crate::frame::{self, Frame, FrameError, HEADER_LEN, Header, flags};
use crate::router::CloseReason;

use super::ending::Ending;
use super::interop::{self, Dialect, HeaderV3, ShortIds};

/// Whether a listener takes the interop header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interop {
    #[default]
    Refused,
    Accepted,
}

/// One connection's input.
#[derive(Debug, Default)]
pub struct Stream {
    dialect: Option<Dialect>,
    partial: Vec<u8>,
    /// Of `partial`, handed out already.
    consumed: usize,
}

impl Stream {
    /// Which header the peer speaks; B1 until it has said anything.
    pub fn dialect(&self) -> Dialect {
        self.dialect.unwrap_or(Dialect::B1)
    }

    /// Bytes kept that are not yet a frame.
    pub fn held(&self) -> usize {
        self.partial.len() - self.consumed
    }

    /// Keeps bytes for later.
    pub fn keep(&mut self, bytes: &[u8]) {
        // Moved only when that pays: each byte at most once for each time the buffer doubles.
        if self.consumed > self.partial.len() / 2 {
            self.partial.drain(..self.consumed);
            self.consumed = 0;
        }
        self.partial.extend_from_slice(bytes);
    }

    /// The next whole frame out of what is kept and then `input`, of which it takes what it needs. `None`: all of
    /// `input` is kept, and more is needed.
    pub fn next(
        &mut self,
        input: &mut &[u8],
        interop: Interop,
        max_payload: u32,
        ids: &dyn ShortIds,
    ) -> Result<Option<Frame>, Ending> {
        if self.held() == 0 {
            self.forget();
            return match self.cut(input, interop, max_payload, ids)? {
                Some((frame, len)) => {
                    *input = &input[len..];
                    Ok(Some(frame))
                }
                None => {
                    self.keep(input);
                    *input = &[];
                    Ok(None)
                }
            };
        }
        // Only as much as completes the frame goes into the kept buffer.
        loop {
            let kept = std::mem::take(&mut self.partial);
            let cut = self.cut(&kept[self.consumed..], interop, max_payload, ids);
            self.partial = kept;
            if let Some((frame, len)) = cut? {
                self.consumed += len;
                if self.held() == 0 {
                    self.forget();
                }
                return Ok(Some(frame));
            }
            let wanted = self.missing().min(input.len());
            if wanted == 0 {
                return Ok(None);
            }
            let (now, later) = input.split_at(wanted);
            self.keep(now);
            *input = later;
        }
    }

    fn forget(&mut self) {
        self.partial = Vec::new();
        self.consumed = 0;
    }

    /// Bytes until the header, or the frame whose header is there, is complete.
    fn missing(&self) -> usize {
        let rest = &self.partial[self.consumed..];
        let Some(header) = rest.first_chunk::<HEADER_LEN>() else {
            return HEADER_LEN - rest.len();
        };
        let at = match self.dialect() {
            Dialect::B1 => 8,
            Dialect::V3 => 24,
        };
        let len = header[at..at + 4]
            .first_chunk()
            .map_or(0, |len| u32::from_le_bytes(*len));
        (HEADER_LEN + len as usize).saturating_sub(rest.len())
    }

    fn cut(
        &mut self,
        bytes: &[u8],
        interop: Interop,
        max_payload: u32,
        ids: &dyn ShortIds,
    ) -> Result<Option<(Frame, usize)>, Ending> {
        let dialect = match (self.dialect, bytes.first_chunk::<8>()) {
            (Some(dialect), _) => dialect,
            (None, None) => return Ok(None),
            (None, Some(first)) => match (Dialect::detect(*first), interop) {
                (Dialect::V3, Interop::Refused) => return Err(why_not_b1(*first)),
                (dialect, _) => *self.dialect.insert(dialect),
            },
        };
        match dialect {
            Dialect::B1 => cut_b1(bytes, max_payload),
            Dialect::V3 => cut_v3(bytes, max_payload, ids),
        }
    }
}

/// Bytes that are meant as B1 are told what is wrong with them, others that they are none.
fn why_not_b1(first: [u8; 8]) -> Ending {
    let word = u64::from_le_bytes(first);
    if word as u32 != frame::MAGIC {
        return Ending::InteropOff;
    }
    let version = (word >> 32) as u16;
    let error = if version == frame::VERSION {
        let found = (word >> 48) as u16;
        FrameError::Kind { found }
    } else {
        FrameError::Version { found: version }
    };
    CloseReason::Frame(error).into()
}

fn cut_b1(bytes: &[u8], max_payload: u32) -> Result<Option<(Frame, usize)>, Ending> {
    let Ok((header, body)) = Header::read_from_prefix(bytes) else {
        return Ok(None);
    };
    frame::check_header(&header, max_payload).map_err(CloseReason::from)?;
    if header.flags.get() & flags::FD != 0 {
        return Err(CloseReason::StrayDescriptor.into());
    }
    let len = header.payload_len.get() as usize;
    let Some(payload) = body.get(..len) else {
        return Ok(None);
    };
    if header.flags.get() & flags::CRC != 0 {
        let computed = frame::checksum(&header, payload);
        let found = header.crc.get();
        if computed != found {
            return Err(CloseReason::from(FrameError::Crc { found, computed }).into());
        }
    }
    let payload = Arc::from(payload);
    Ok(Some((Frame { header, payload }, HEADER_LEN + len)))
}

fn cut_v3(
    bytes: &[u8],
    max_payload: u32,
    ids: &dyn ShortIds,
) -> Result<Option<(Frame, usize)>, Ending> {
    let Ok((header, body)) = HeaderV3::read_from_prefix(bytes) else {
        return Ok(None);
    };
    let len = interop::check_header(&header, max_payload)?;
    let Some(payload) = body.get(..len) else {
        return Ok(None);
    };
    let frame = interop::from_v3(&header, payload, ids)?;
    Ok(Some((frame, interop::HEADER_LEN + len)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{PeerId, kind};
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    struct Nobody;
    impl ShortIds for Nobody {
        fn id_of(&self, _: u32) -> Option<PeerId> {
            None
        }
        fn short_of(&self, _: PeerId) -> Option<u32> {
            None
        }
    }

    fn frames(count: usize, len: usize) -> Vec<Frame> {
        (0..count)
            .map(|at| {
                Frame::new(
                    kind::EVENT,
                    PeerId::BUS,
                    at as u32,
                    vec![at as u8; (at * len) % 4000],
                )
            })
            .collect()
    }

    #[test]
    fn an_idle_connection_keeps_nothing() {
        let mut stream = Stream::default();
        let mut bytes = Vec::new();
        frames(1, 0)[0].encode_into(&mut bytes);
        for part in [&bytes[..10], &bytes[10..63]] {
            let mut input = part;
            assert!(
                stream
                    .next(&mut input, Interop::Refused, 4096, &Nobody)
                    .unwrap()
                    .is_none()
            );
        }
        let mut input = &bytes[63..];
        assert!(
            stream
                .next(&mut input, Interop::Refused, 4096, &Nobody)
                .unwrap()
                .is_some()
        );
        assert_eq!((stream.held(), stream.partial.capacity()), (0, 0));
    }

    #[test]
    fn bytes_that_are_no_frame_say_which_dialects_are_spoken() {
        let of = |bytes: &[u8], interop| {
            Stream::default()
                .next(&mut &*bytes, interop, 4096, &Nobody)
                .unwrap_err()
        };
        assert_eq!(
            of(b"GET / HTTP/1.1\r\n", Interop::Refused),
            Ending::InteropOff
        );
        let mut header = frames(1, 0)[0].header;
        header.version = 9.into();
        assert_eq!(
            of(header.as_bytes(), Interop::Refused),
            CloseReason::from(FrameError::Version { found: 9 }).into()
        );
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames_in_either_dialect(
            v3: bool, count in 1usize..6, len in 0usize..900,
            cuts in proptest::collection::vec(1usize..700, 1..20),
        ) {
            let frames = frames(count, len);
            let mut bytes = Vec::new();
            for frame in &frames {
                if v3 {
                    interop::to_v3(frame, &Nobody, &mut bytes).unwrap();
                } else {
                    frame.encode_into(&mut bytes);
                }
            }
            let (mut stream, mut seen, mut rest) = (Stream::default(), Vec::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (mut input, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                while let Some(frame) = stream.next(&mut input, Interop::Accepted, 4096, &Nobody).unwrap() {
                    seen.push(frame);
                }
                prop_assert!(input.is_empty());
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(stream.held(), 0);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (mut stream, mut input) = (Stream::default(), &bytes[..]);
            while let Ok(Some(frame)) = stream.next(&mut input, Interop::Accepted, 128, &Nobody) {
                prop_assert!(frame.payload.len() <= 128);
            }
        }
    }
}
