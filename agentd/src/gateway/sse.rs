//! Server-sent events, read incrementally: bytes in, whole events out
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! Pure. An event comes out only when its closing blank line has arrived, together with its own bytes, so that what
//! is relayed is what the provider wrote and a stream can be cut between events. An event larger than
//! [`MAX_EVENT_BYTES`] is an error; everything else that isn't understood is relayed and ignored.

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

/// The most bytes one event may have. A whole answer of the largest models is well below it.
pub const MAX_EVENT_BYTES: usize = 8 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// Its bytes as they came, closing blank line included.
    pub raw: Bytes,
    /// The `event` field; empty when there was none.
    pub name: String,
    /// The `data` lines, joined by newlines; empty for comments.
    pub data: String,
}

/// An event has more than [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream has more than {MAX_EVENT_BYTES} bytes")]
pub struct EventTooLarge;

/// The parser of one stream.
#[derive(Debug, Default)]
pub struct SseParser {
    buffer: BytesMut,
    /// Where the line begins that is being looked at.
    line_start: usize,
    /// Everything before this has no line end that wasn't seen yet.
    scanned: usize,
}

impl SseParser {
    /// Adds bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event, or `None` until more bytes have come.
    pub fn next_event(&mut self) -> Result<Option<SseEvent>, EventTooLarge> {
        while let Some(offset) = memchr2(b'\n', b'\r', &self.buffer[self.scanned..]) {
            let end = self.scanned + offset;
            let next = match (self.buffer[end], self.buffer.get(end + 1)) {
                // Only the next byte tells whether this is half of a line end.
                (b'\r', None) => {
                    self.scanned = end;
                    return self.within_limit().map(|()| None);
                }
                (b'\r', Some(b'\n')) => end + 2,
                _ => end + 1,
            };
            let blank = end == self.line_start;
            self.line_start = next;
            self.scanned = next;
            if blank {
                let raw = self.buffer.split_to(next).freeze();
                self.line_start = 0;
                self.scanned = 0;
                return Ok(Some(decode(raw)));
            }
        }
        self.scanned = self.buffer.len();
        self.within_limit().map(|()| None)
    }

    /// Bytes of an event that has not ended.
    pub fn unfinished(&self) -> usize {
        self.buffer.len()
    }

    fn within_limit(&self) -> Result<(), EventTooLarge> {
        if self.buffer.len() > MAX_EVENT_BYTES {
            Err(EventTooLarge)
        } else {
            Ok(())
        }
    }
}

fn decode(raw: Bytes) -> SseEvent {
    let mut name = String::new();
    let mut data: Option<String> = None;
    let text = String::from_utf8_lossy(&raw);
    for line in text.split(['\n', '\r']) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field.trim_start_matches('\u{feff}') {
            "event" => value.clone_into(&mut name),
            "data" => match &mut data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => data = Some(value.to_owned()),
            },
            _ => {}
        }
    }
    drop(text);
    SseEvent {
        raw,
        name,
        data: data.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(parser: &mut SseParser) -> Vec<SseEvent> {
        std::iter::from_fn(|| parser.next_event().unwrap()).collect()
    }

    const STREAM: &[u8] =
        b"event: a\r\ndata: {\"x\":1}\r\n\r\n: comment\n\ndata: one\ndata:two\n\n\
        event: b\rdata: \xc3\xa9\r\rdata\n\nid: 7\nevent: c\ndata: last\n\n";

    fn expected() -> Vec<(&'static str, &'static str)> {
        vec![
            ("a", "{\"x\":1}"),
            ("", ""),
            ("", "one\ntwo"),
            ("b", "é"),
            ("", ""),
            ("c", "last"),
        ]
    }

    #[test]
    fn any_split_of_the_stream_gives_the_same_events_and_bytes() {
        for split in 0..=STREAM.len() {
            let mut parser = SseParser::default();
            parser.push(&STREAM[..split]);
            let mut events = all(&mut parser);
            parser.push(&STREAM[split..]);
            events.extend(all(&mut parser));
            let got: Vec<_> = events
                .iter()
                .map(|e| (e.name.as_str(), e.data.as_str()))
                .collect();
            assert_eq!(got, expected(), "split at {split}");
            let bytes: Vec<u8> = events.iter().flat_map(|e| e.raw.to_vec()).collect();
            assert_eq!(bytes, STREAM, "split at {split}");
        }
    }

    #[test]
    fn byte_by_byte_gives_the_same_events() {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for byte in STREAM {
            parser.push(&[*byte]);
            events.extend(all(&mut parser));
        }
        assert_eq!(events.len(), expected().len());
        assert_eq!(parser.unfinished(), 0);
    }

    #[test]
    fn an_unfinished_event_stays_inside() {
        let mut parser = SseParser::default();
        parser.push(b"data: a\n\ndata: half\n");
        assert_eq!(all(&mut parser).len(), 1);
        assert_eq!(parser.unfinished(), 11);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::default();
        parser.push(&vec![b'x'; MAX_EVENT_BYTES]);
        assert_eq!(parser.next_event(), Ok(None));
        parser.push(b"x");
        assert_eq!(parser.next_event(), Err(EventTooLarge));
    }
}
