//! Readers of bytes: frames, payloads, listings, topics.

use agentd_bus::frame::{Decoder, Frame, HEADER_LEN, PAYLOAD_CEILING, flags};
use agentd_bus::listing::{InboxBatch, PeerEntry, Welcome};
use agentd_bus::message::{Control, Event, Request, Response};
use agentd_bus::topic::{check_pattern, check_topic, matches};

use crate::input::Input;

/// A stream, fed in pieces: what comes out as frames is what went in, byte for byte, however it was cut.
pub fn frames(data: &[u8]) {
    let mut input = Input::new(data);
    let limit = u32::from(input.u16());
    let piece = usize::from(input.u8()).max(1);
    let stream = input.rest();
    let decode = |piece: usize| {
        let mut decoder = Decoder::new(limit);
        let (mut frames, mut out) = (Vec::<Frame>::new(), Vec::new());
        for bytes in stream.chunks(piece) {
            decoder.feed(bytes);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (frames, out, Some(error)),
                }
            }
        }
        assert!(decoder.pending_bytes() < HEADER_LEN + limit as usize);
        frames.iter().for_each(|frame| frame.encode_into(&mut out));
        (frames, out, None)
    };
    let (frames, bytes, error) = decode(piece);
    assert!(stream.starts_with(&bytes));
    for frame in &frames {
        assert!(frame.payload.len() <= limit as usize);
        assert_eq!(frame.header.flags.get() & !flags::SUPPORTED, 0);
    }
    let whole = decode(stream.len().max(1));
    assert_eq!((frames, error), (whole.0, whole.2));
}

/// Payloads: whatever parses encodes to the same bytes, so nothing is dropped or invented.
pub fn messages(data: &[u8]) {
    if let Ok(request) = Request::parse(data) {
        assert_eq!(request.encode().as_deref(), Ok(data));
    }
    if let Ok(response) = Response::parse(data) {
        assert_eq!(response.encode().as_deref(), Ok(data));
    }
    if let Ok(event) = Event::parse(data) {
        assert_eq!(event.encode().as_deref(), Ok(data));
    }
    if let Ok(control) = Control::parse(data) {
        assert_eq!(control.encode().as_deref(), Ok(data));
    }
}

/// What the bus answers.
pub fn listings(data: &[u8]) {
    if let Ok(welcome) = Welcome::parse(data) {
        assert_eq!(welcome.encode().as_deref(), Ok(data));
    }
    if let Ok(list) = PeerEntry::parse_list(data) {
        let mut out = Vec::new();
        for entry in list {
            entry.encode_into(&mut out).expect("it was parsed");
        }
        assert_eq!(out, data);
    }
    if let Ok(batch) = InboxBatch::parse(data) {
        assert!(
            batch
                .messages
                .iter()
                .all(|(_, frame)| frame.payload.len() <= PAYLOAD_CEILING as usize)
        );
        assert_eq!(batch.encode().as_deref(), Ok(data));
    }
}

/// Matching equals its definition.
pub fn topics(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (pattern, topic) = text.split_once('\n').unwrap_or((text, ""));
    let answer = matches(pattern, topic);
    if check_pattern(pattern).is_err() || check_topic(topic).is_err() {
        return;
    }
    assert!(matches(topic, topic) && matches("#", topic));
    let (pattern, topic): (Vec<&str>, Vec<&str>) =
        (pattern.split('.').collect(), topic.split('.').collect());
    // The definition takes exponential time.
    if pattern.iter().filter(|word| **word == "#").count() <= 4 && topic.len() <= 12 {
        assert_eq!(answer, defined(&pattern, &topic));
    }
}

fn defined(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        (["#", rest @ ..], _) => {
            defined(rest, topic) || (!topic.is_empty() && defined(pattern, &topic[1..]))
        }
        (["*", p @ ..], [_, t @ ..]) => defined(p, t),
        ([a, p @ ..], [b, t @ ..]) if a == b => defined(p, t),
        _ => false,
    }
}
