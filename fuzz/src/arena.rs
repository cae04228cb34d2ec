//! Arenas: references and headers that their owner made up or changes while they are read.

use agentd_bus::arena::{Arena, REFERENCE_BYTES, Reader, Reference, SEGMENT_MIN};
use agentd_bus::shm::region::Heap;

use crate::hostile::Hostile;
use crate::input::Input;

const WORDS: usize = 4 * SEGMENT_MIN as usize / 8;
const LIMIT: u64 = 1 << 16;

/// Reads by references that are anything, from segments that change meanwhile: never more than the limit, nothing on an error.
pub fn reader(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = Heap::new(WORDS);
    let mut arena: Arena<Heap> = Arena::new(16);
    let segment = arena.add(memory.clone()).expect("the first");
    let stored: Vec<(Reference, Vec<u8>)> = (1..6_usize)
        .map(|n| {
            let payload = vec![n as u8; n * 100];
            let stored = arena.store(&payload).expect("there is room");
            (stored.reference(), payload)
        })
        .collect();
    let hostile = Hostile::new(memory);
    let mut reader = Reader::new(1 << 20).with_payload_limit(LIMIT);
    reader.add(segment, hostile.clone()).expect("the first");
    let mut buffer = Vec::new();
    for (reference, payload) in &stored {
        reader
            .read(reference, &mut buffer)
            .expect("all is well yet");
        assert_eq!(&buffer, payload);
    }
    let mut references: Vec<Reference> =
        stored.into_iter().map(|(reference, _)| reference).collect();
    for _ in 0..input.u8() % 8 {
        let mut bytes = match references.get(usize::from(input.u8())) {
            Some(known) => known.to_bytes(),
            None => [0; REFERENCE_BYTES],
        };
        for _ in 0..input.u8() % 8 {
            bytes[usize::from(input.u8()) % REFERENCE_BYTES] = input.u8();
        }
        if let Ok(reference) = Reference::parse(&bytes) {
            assert_eq!(reference.to_bytes(), bytes);
            references.push(reference);
        }
    }
    hostile.follow(&mut input);
    for reference in references.iter().cycle().take(60) {
        match reader.read(reference, &mut buffer) {
            Ok(()) => assert_eq!(buffer.len() as u64, reference.length),
            Err(_) => assert!(buffer.is_empty()),
        }
        assert!(buffer.len() as u64 <= LIMIT);
    }
}

/// The bytes of a reference.
pub fn references(data: &[u8]) {
    if let Ok(reference) = Reference::parse(data) {
        assert_eq!(reference.to_bytes(), data);
    }
}
