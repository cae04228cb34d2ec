//! The bare ring: 64-byte slots with the sequence in the slot, and nothing else.
//!
//! One memory that both sides write, no check of anything, no counters, no fences, no way to sleep or to close. What
//! our lane does on top of it is what its features cost.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bench_kit::stage::Shared;
use bench_kit::{Receiver, Sender, Setup, Transport};

const SLOT_WORDS: usize = 8;
/// The consumer's cursor, in a line of its own before the slots.
const CURSOR: usize = 0;
const FIRST: usize = 16;
/// What a slot carries, as in our lane; here always all of it.
const PAYLOAD_BYTES: usize = 48;

#[derive(Debug)]
pub struct Ring {
    memory: Rc<Shared>,
    slots: u64,
}

#[derive(Debug)]
pub struct Producer {
    memory: Rc<Shared>,
    slots: u64,
    next: u64,
    consumed: u64,
}

#[derive(Debug)]
pub struct Consumer {
    memory: Rc<Shared>,
    slots: u64,
    next: u64,
}

impl Transport for Ring {
    type Sender = Producer;
    type Receiver = Consumer;

    fn prepare(setup: &Setup) -> Result<Self> {
        if setup.bytes != PAYLOAD_BYTES {
            bail!(
                "the bare ring carries {PAYLOAD_BYTES} bytes, not {}",
                setup.bytes
            );
        }
        Ok(Self {
            memory: Rc::new(Shared::new(FIRST + setup.slots * SLOT_WORDS)?),
            slots: setup.slots as u64,
        })
    }

    fn receiver(&self) -> Result<Consumer> {
        Ok(Consumer {
            memory: self.memory.clone(),
            slots: self.slots,
            next: 0,
        })
    }

    fn sender(&self) -> Result<Producer> {
        Ok(Producer {
            memory: self.memory.clone(),
            slots: self.slots,
            next: 0,
            consumed: 0,
        })
    }
}

fn slot(words: &[AtomicU64], n: u64, slots: u64) -> &[AtomicU64; SLOT_WORDS] {
    let at = FIRST + (n & (slots - 1)) as usize * SLOT_WORDS;
    words[at..].first_chunk().expect("a slot within the memory")
}

impl Sender for Producer {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let words = self.memory.words();
        while self.next - self.consumed == self.slots {
            self.consumed = words[CURSOR].load(Ordering::Acquire);
        }
        let slot = slot(words, self.next, self.slots);
        let payload: &[u8; PAYLOAD_BYTES] = payload.try_into().context("48 bytes")?;
        for (word, bytes) in slot[2..].iter().zip(payload.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        self.next += 1;
        slot[0].store(self.next, Ordering::Release);
        Ok(())
    }
}

impl Receiver for Consumer {
    #[inline]
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let words = self.memory.words();
        let slot = slot(words, self.next, self.slots);
        while slot[0].load(Ordering::Acquire) != self.next + 1 {
            std::hint::spin_loop();
        }
        let mut payload = [0; PAYLOAD_BYTES];
        for (bytes, word) in payload.as_chunks_mut::<8>().0.iter_mut().zip(&slot[2..]) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        self.next += 1;
        if self.next & (self.slots / 4 - 1) == 0 {
            words[CURSOR].store(self.next, Ordering::Release);
        }
        Ok(see(&payload))
    }
}
