//! Frames in a lane, as an agent writes them for the bus: anything, in any pieces.

use agentd_bus::channel::Tag;
use agentd_bus::frame::{Frame, PeerId, check_header};
use agentd_bus::shard::compact::{Assembler, HEAD, Pieces, Reading};

use crate::input::Input;

/// Largest payload here: pieces of more are refused at the head.
const LIMIT: u32 = 4096;

/// Messages that are anything: whatever comes out is a valid frame, and goes through a lane again as it is, in pieces of any
/// length.
pub fn assembler(data: &[u8]) {
    let mut input = Input::new(data);
    let most = HEAD + usize::from(input.u8());
    let mut assembler = Assembler::new(Reading::FromAgent, LIMIT);
    while !input.is_empty() {
        let tag = Tag {
            kind: input.u8(),
            flags: input.u8() & 0xF,
            correlation: u32::from(input.u8()),
        };
        let len = usize::from(input.u8());
        match assembler.take(tag, input.bytes(len)) {
            Ok(Some(frame)) => {
                assert_eq!(check_header(&frame.header, LIMIT), Ok(()));
                assert_eq!(frame.header.payload_len.get() as usize, frame.payload.len());
                assert_eq!(
                    frame.header.source,
                    PeerId::BUS,
                    "who it is from follows from the lane"
                );
                let again = through(&frame, most);
                assert_eq!(again.payload, frame.payload);
                assert_eq!(again.header.flags, frame.header.flags);
                assert_eq!(again.header.destination, frame.header.destination);
            }
            Ok(None) => {}
            // The lane ends.
            Err(_) => return,
        }
    }
}

fn through(frame: &Frame, most: usize) -> Frame {
    let mut pieces = Pieces::to_bus(frame.clone());
    let mut assembler = Assembler::new(Reading::FromAgent, LIMIT);
    loop {
        let piece = pieces.next(most);
        let message = [piece.head.bytes(), pieces.body(&piece)].concat();
        let whole = assembler
            .take(piece.tag, &message)
            .expect("a frame that was taken before");
        if pieces.sent(&piece) {
            return whole.expect("the last piece");
        }
        assert!(whole.is_none());
    }
}
