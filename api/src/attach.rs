//! The frames on an attach socket: a program's standard streams, its window and its signals.
//!
//! An attach socket is `AF_UNIX`, `SOCK_SEQPACKET`: one packet is one frame, and the kernel keeps
//! packets whole and in order. A frame is a type byte and a payload of at most [`MAX_PAYLOAD`]
//! bytes, integers little-endian. Closing the socket detaches; the agent lives on. The codec
//! borrows, never allocates to decode, and treats every byte as hostile.

use std::borrow::Cow;

use crate::{ExitCause, ExitInfo};

/// Largest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 32 * 1024;

/// Largest frame; a receive buffer of this size holds any.
pub const MAX_FRAME: usize = 1 + MAX_PAYLOAD;

/// The fixed part of an exit frame; a text of at most [`MAX_EXIT_TEXT`] bytes may follow it.
const EXIT_BYTES: usize = 24;

/// Longest text in an exit frame, in bytes; longer ones are cut at a character boundary.
pub const MAX_EXIT_TEXT: usize = 4096;

const STDIN: u8 = b'i';
const STDIN_EOF: u8 = b'e';
const RESIZE: u8 = b'r';
const SIGNAL: u8 = b's';
const STDOUT: u8 = b'O';
const STDERR: u8 = b'E';
const EXIT: u8 = b'X';
const STOPPED: u8 = b'Z';
const CONTINUED: u8 = b'C';
const LOST: u8 = b'L';
const NOTICE: u8 = b'N';
const AT: u8 = b'A';

/// One packet on an attach socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachFrame<'a> {
    /// Client → daemon: bytes for the program. Never empty.
    Stdin(&'a [u8]),
    /// Client → daemon: no more bytes will come.
    StdinEof,
    /// Client → daemon: the window has this many character cells now.
    Resize { rows: u16, cols: u16 },
    /// Client → daemon: send this signal to the program.
    Signal(i32),
    /// Daemon → client: bytes of the terminal, or of stdout. Never empty.
    Stdout(&'a [u8]),
    /// Daemon → client: bytes of stderr; only when the program has pipes. Never empty.
    Stderr(&'a [u8]),
    /// Daemon → client: the program is over and all its output was sent. The last frame.
    Exit(Box<ExitInfo>),
    /// Daemon → client: the program was stopped by this signal.
    Stopped(i32),
    /// Daemon → client: the program goes on.
    Continued,
    /// Daemon → client: this many bytes of output were dropped for a client that did not read.
    Lost(u64),
    /// Daemon → client: a line for the person at the client, such as that an approval waits. Not part of the
    /// program's output. Never empty.
    Notice(Cow<'a, str>),
    /// Daemon → client: the next byte of output has this offset in the agent's log. The first frame, and again after a
    /// loss; a client that adds the lengths of what follows knows from where to go on after a reconnection.
    At(u64),
}

/// A packet that is not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachFrameError {
    #[error("attach frame is empty")]
    Empty,
    #[error("attach frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    #[error("attach frame has unknown type {0:#04x}")]
    UnknownType(u8),
    #[error("attach frame of type {kind:?} has {got} bytes of payload, not {expected}")]
    WrongLength {
        kind: char,
        got: usize,
        expected: &'static str,
    },
    #[error("attach frame of type 'X' has an unknown exit cause {0}")]
    UnknownCause(u8),
    #[error("attach frame of type 'N' is not UTF-8")]
    NoticeText,
    #[error("attach frame of type 's' has signal {0}, outside 1..=64")]
    BadSignal(i32),
}

impl<'a> AttachFrame<'a> {
    /// Appends the frame's bytes to `out`, which the caller has cleared.
    ///
    /// # Panics
    ///
    /// If a payload is empty or longer than [`MAX_PAYLOAD`]: senders cut their reads to that size.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Stdin(bytes) => encode_bytes(out, STDIN, bytes),
            Self::StdinEof => out.push(STDIN_EOF),
            Self::Resize { rows, cols } => {
                out.push(RESIZE);
                out.extend_from_slice(&rows.to_le_bytes());
                out.extend_from_slice(&cols.to_le_bytes());
            }
            Self::Signal(signo) => encode_i32(out, SIGNAL, *signo),
            Self::Stdout(bytes) => encode_bytes(out, STDOUT, bytes),
            Self::Stderr(bytes) => encode_bytes(out, STDERR, bytes),
            Self::Exit(info) => encode_exit(out, info),
            Self::Notice(text) => {
                encode_bytes(
                    out,
                    NOTICE,
                    &text.as_bytes()[..text.floor_char_boundary(MAX_PAYLOAD)],
                );
            }
            Self::Stopped(signo) => encode_i32(out, STOPPED, *signo),
            Self::Continued => out.push(CONTINUED),
            Self::Lost(count) => {
                out.push(LOST);
                out.extend_from_slice(&count.to_le_bytes());
            }
            Self::At(offset) => {
                out.push(AT);
                out.extend_from_slice(&offset.to_le_bytes());
            }
        }
    }

    /// The frame's bytes in a vector of their own.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// Reads one packet.
    pub fn decode(packet: &'a [u8]) -> Result<Self, AttachFrameError> {
        if packet.len() > MAX_FRAME {
            return Err(AttachFrameError::TooLong(packet.len()));
        }
        let (&kind, payload) = packet.split_first().ok_or(AttachFrameError::Empty)?;
        let wrong = |expected| AttachFrameError::WrongLength {
            kind: char::from(kind),
            got: payload.len(),
            expected,
        };
        let some_bytes = || {
            if payload.is_empty() {
                Err(wrong("at least 1"))
            } else {
                Ok(payload)
            }
        };
        let nothing = |frame: Self| {
            if payload.is_empty() {
                Ok(frame)
            } else {
                Err(wrong("0"))
            }
        };
        match kind {
            STDIN => some_bytes().map(Self::Stdin),
            STDOUT => some_bytes().map(Self::Stdout),
            STDERR => some_bytes().map(Self::Stderr),
            NOTICE => match std::str::from_utf8(some_bytes()?) {
                Ok(text) => Ok(Self::Notice(text.into())),
                Err(_) => Err(AttachFrameError::NoticeText),
            },
            STDIN_EOF => nothing(Self::StdinEof),
            CONTINUED => nothing(Self::Continued),
            RESIZE => match *payload {
                [a, b, c, d] => Ok(Self::Resize {
                    rows: u16::from_le_bytes([a, b]),
                    cols: u16::from_le_bytes([c, d]),
                }),
                _ => Err(wrong("4")),
            },
            SIGNAL | STOPPED => {
                let bytes = payload.try_into().map_err(|_| wrong("4"))?;
                let signo = i32::from_le_bytes(bytes);
                if !(1..=64).contains(&signo) {
                    return Err(AttachFrameError::BadSignal(signo));
                }
                Ok(if kind == SIGNAL {
                    Self::Signal(signo)
                } else {
                    Self::Stopped(signo)
                })
            }
            LOST => {
                let bytes = payload.try_into().map_err(|_| wrong("8"))?;
                Ok(Self::Lost(u64::from_le_bytes(bytes)))
            }
            AT => {
                let bytes = payload.try_into().map_err(|_| wrong("8"))?;
                Ok(Self::At(u64::from_le_bytes(bytes)))
            }
            EXIT => {
                if !(EXIT_BYTES..=EXIT_BYTES + MAX_EXIT_TEXT).contains(&payload.len()) {
                    return Err(wrong("24 and a text"));
                }
                decode_exit(payload)
            }
            other => Err(AttachFrameError::UnknownType(other)),
        }
    }
}

fn encode_bytes(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    assert!(
        !bytes.is_empty() && bytes.len() <= MAX_PAYLOAD,
        "attach payload of {} bytes",
        bytes.len()
    );
    out.reserve(1 + bytes.len());
    out.push(kind);
    out.extend_from_slice(bytes);
}

fn encode_i32(out: &mut Vec<u8>, kind: u8, value: i32) {
    out.push(kind);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Stands for an unknown figure.
const UNKNOWN: u64 = u64::MAX;

/// Layout of the 24 bytes: cause u8, flags u8 (1 = code, 2 = signal, 4 = core dumped), code u8,
/// signal u8, largest resident set in KiB u32, CPU time in user space and in the kernel in
/// microseconds u64 each; all ones where unknown.
fn encode_exit(out: &mut Vec<u8>, info: &ExitInfo) {
    let flags = u8::from(info.code.is_some())
        | u8::from(info.signal.is_some()) << 1
        | u8::from(info.core_dumped == Some(true)) << 2;
    let rss = info
        .max_rss_kb
        .map_or(u32::MAX, |kb| kb.min(u64::from(u32::MAX - 1)) as u32);
    out.push(EXIT);
    out.push(info.cause.to_byte());
    out.push(flags);
    out.push((info.code.unwrap_or(0) & 0xff) as u8);
    out.push((info.signal.unwrap_or(0) & 0x7f) as u8);
    out.extend_from_slice(&rss.to_le_bytes());
    out.extend_from_slice(&info.utime_us.unwrap_or(UNKNOWN).to_le_bytes());
    out.extend_from_slice(&info.stime_us.unwrap_or(UNKNOWN).to_le_bytes());
    if let Some(text) = &info.text {
        let end = text.floor_char_boundary(MAX_EXIT_TEXT);
        out.extend_from_slice(&text.as_bytes()[..end]);
    }
}

fn decode_exit(payload: &[u8]) -> Result<AttachFrame<'_>, AttachFrameError> {
    let (fixed, text) = payload.split_at(EXIT_BYTES);
    let &[cause, flags, code, signal, r0, r1, r2, r3, ref times @ ..] = fixed else {
        unreachable!("split at {EXIT_BYTES}")
    };
    let cause = ExitCause::from_byte(cause).ok_or(AttachFrameError::UnknownCause(cause))?;
    let rss = u32::from_le_bytes([r0, r1, r2, r3]);
    let time = |at: usize| {
        let bytes = times[at..at + 8]
            .try_into()
            .expect("two times of 8 bytes are left");
        Some(u64::from_le_bytes(bytes)).filter(|us| *us != UNKNOWN)
    };
    Ok(AttachFrame::Exit(Box::new(ExitInfo {
        cause,
        code: (flags & 1 != 0).then_some(i32::from(code)),
        signal: (flags & 2 != 0).then_some(i32::from(signal & 0x7f)),
        core_dumped: (flags & 2 != 0).then_some(flags & 4 != 0),
        text: (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned()),
        utime_us: time(0),
        stime_us: time(8),
        max_rss_kb: (rss != u32::MAX).then_some(u64::from(rss)),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        assert_eq!(AttachFrame::Stdin(b"ab").to_vec(), b"iab");
        assert_eq!(AttachFrame::StdinEof.to_vec(), b"e");
        let resize = AttachFrame::Resize {
            rows: 24,
            cols: 300,
        };
        assert_eq!(resize.to_vec(), [b'r', 24, 0, 44, 1]);
        assert_eq!(AttachFrame::Signal(15).to_vec(), [b's', 15, 0, 0, 0]);
        let exit = AttachFrame::Exit(Box::new(ExitInfo {
            max_rss_kb: Some(0x0102),
            utime_us: Some(7),
            stime_us: Some(8),
            ..ExitInfo::from_wait_status(3 << 8)
        }));
        assert_eq!(
            exit.to_vec(),
            [
                b'X', 0, 1, 3, 0, 2, 1, 0, 0, // cause, flags, code, signal, resident set
                7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0 // times
            ]
        );
        assert_eq!(AttachFrame::decode(&exit.to_vec()), Ok(exit));
    }

    #[test]
    fn broken_packets_say_what_is_wrong() {
        let err = |bytes: &[u8]| AttachFrame::decode(bytes).expect_err("broken").to_string();
        assert_eq!(err(b""), "attach frame is empty");
        assert_eq!(err(b"?"), "attach frame has unknown type 0x3f");
        assert_eq!(
            err(b"i"),
            "attach frame of type 'i' has 0 bytes of payload, not at least 1"
        );
        assert_eq!(
            err(b"exx"),
            "attach frame of type 'e' has 2 bytes of payload, not 0"
        );
        assert_eq!(
            err(b"r123"),
            "attach frame of type 'r' has 3 bytes of payload, not 4"
        );
        assert_eq!(
            err(&[b's', 200, 0, 0, 0]),
            "attach frame of type 's' has signal 200, outside 1..=64"
        );
        let mut exit = vec![b'X'];
        exit.extend_from_slice(&[99; 24]);
        assert_eq!(
            err(&exit),
            "attach frame of type 'X' has an unknown exit cause 99"
        );
        assert!(err(&vec![b'i'; MAX_FRAME + 1]).contains("longer than"));
    }

    #[test]
    fn exit_text_is_cut_at_a_character() {
        let mut info = ExitInfo::new(ExitCause::LaunchFailed);
        info.text = Some("é".repeat(MAX_EXIT_TEXT));
        let bytes = AttachFrame::Exit(Box::new(info)).to_vec();
        let Ok(AttachFrame::Exit(back)) = AttachFrame::decode(&bytes) else {
            panic!("an exit frame decodes")
        };
        let text = back.text.expect("text survives");
        assert_eq!(text.len(), MAX_EXIT_TEXT);
        assert!(text.chars().all(|c| c == 'é'));
    }

    fn any_frame() -> impl Strategy<Value = (u8, Vec<u8>, u64)> {
        (
            0u8..12,
            proptest::collection::vec(any::<u8>(), 1..2000),
            any::<u64>(),
        )
    }

    proptest! {
        #[test]
        fn every_frame_survives((kind, bytes, n) in any_frame()) {
            let signo = (n % 64) as i32 + 1;
            let frame = match kind {
                0 => AttachFrame::Stdin(&bytes),
                1 => AttachFrame::StdinEof,
                2 => AttachFrame::Resize { rows: n as u16, cols: (n >> 16) as u16 },
                3 => AttachFrame::Signal(signo),
                4 => AttachFrame::Stdout(&bytes),
                5 => AttachFrame::Stderr(&bytes),
                6 => AttachFrame::Exit(Box::new(ExitInfo::from_wait_status((n & 0xff) as i32))),
                7 => AttachFrame::Stopped(signo),
                8 => AttachFrame::Continued,
                9 => AttachFrame::Notice(format!("{n} wait").into()),
                10 => AttachFrame::At(n),
                _ => AttachFrame::Lost(n),
            };
            let packet = frame.to_vec();
            prop_assert!(packet.len() <= MAX_FRAME);
            prop_assert_eq!(AttachFrame::decode(&packet), Ok(frame));
        }

        #[test]
        fn decoding_noise_never_panics_and_what_decodes_encodes_alike(
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Ok(frame) = AttachFrame::decode(&noise) {
                let again = frame.to_vec();
                prop_assert_eq!(AttachFrame::decode(&again), Ok(frame));
            }
        }
    }
}
