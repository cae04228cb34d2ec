//! Frames of the direct path as bytes: the head that the kernel reads, and what is behind it. Pure.

#![forbid(unsafe_code)]

use agentd_ebpf_common::route::{ANSWERS, CONTENT_MAX, HEAD_LEN, Head, MAGIC};

/// What a frame is: the library's part of [`Head::kind`].
pub const REQUEST: u32 = 1;
pub const ANSWER: u32 = ANSWERS | 1;
/// The request was not taken: nobody serves there, or too many are being served.
pub const DECLINED: u32 = ANSWERS | 2;

/// Not a frame: the stream can't be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what came on the direct connection is no frame")]
pub struct NoFrame;

/// One frame, for one `send`.
pub fn encode(head: Head, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + content.len());
    out.extend_from_slice(&MAGIC.to_ne_bytes());
    out.extend_from_slice(&(content.len() as u32).to_ne_bytes());
    for word in [head.from, head.to, head.correlation] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    out.extend_from_slice(&head.kind.to_ne_bytes());
    out.extend_from_slice(&head.status.to_ne_bytes());
    out.extend_from_slice(content);
    out
}

/// The frame at the beginning of `bytes`, of the length of a head and its content; `None`: it is not whole yet.
pub fn decode(bytes: &[u8]) -> Result<Option<(Head, &[u8])>, NoFrame> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_LEN>() else {
        return Ok(None);
    };
    let word = |at: usize| {
        let mut four = [0; 4];
        four.copy_from_slice(&head[at..at + 4]);
        u32::from_ne_bytes(four)
    };
    let long = |at: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&head[at..at + 8]);
        u64::from_ne_bytes(eight)
    };
    let head = Head {
        magic: word(0),
        len: word(4),
        from: long(8),
        to: long(16),
        correlation: long(24),
        kind: word(32),
        status: word(36),
    };
    if head.magic != MAGIC || head.len > CONTENT_MAX {
        return Err(NoFrame);
    }
    let len = head.len as usize;
    Ok(rest.get(..len).map(|content| (head, content)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_frame_comes_back_whole_and_never_before(
            from: u64, to: u64, correlation: u64, kind: u32, status: u32,
            content in prop::collection::vec(any::<u8>(), 0..=CONTENT_MAX as usize),
        ) {
            let head = Head { magic: MAGIC, len: content.len() as u32, from, to, correlation, kind, status };
            let bytes = encode(head, &content);
            for cut in [0, HEAD_LEN - 1, bytes.len() - 1] {
                prop_assert_eq!(decode(&bytes[..cut.min(bytes.len() - 1)]), Ok(None));
            }
            prop_assert_eq!(decode(&bytes), Ok(Some((head, &content[..]))));
        }

        #[test]
        fn any_bytes_are_a_frame_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            if let Ok(Some((head, content))) = decode(&bytes) {
                prop_assert_eq!(head.len as usize, content.len());
            }
        }
    }

    #[test]
    fn a_frame_that_is_too_long_or_has_another_magic_ends_the_stream() {
        let mut bytes = encode(Head::default(), b"x");
        bytes[0] ^= 1;
        assert_eq!(decode(&bytes), Err(NoFrame));
        bytes[0] ^= 1;
        bytes[4..8].copy_from_slice(&(CONTENT_MAX + 1).to_ne_bytes());
        assert_eq!(decode(&bytes), Err(NoFrame));
    }
}
