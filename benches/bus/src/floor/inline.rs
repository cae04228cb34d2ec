//! Messages of more than one cache line, in two shapes of the bare ring: what larger inline classes could give a lane.
//!
//! * [`Spilled`]: slots of 64 bytes, as a lane has them. 48 bytes in the first, 56 in each further one, whose own sequence is
//!   written too; the first one's sequence is stored last and is the only one that is looked at.
//! * [`Wide`]: one slot of 128 or 256 bytes with one sequence, and the payload in one piece behind 16 bytes.
//!
//! Nothing else is in either, so the ratio of the two is the most that a lane could gain.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use bench_kit::stage::Shared;
use bench_kit::{Receiver, Sender, Setup, Transport};

const LINE_WORDS: usize = 8;
/// The consumer's cursor, in a line of its own before the slots.
const CURSOR: usize = 0;
const FIRST: usize = 16;
/// Words of payload in the first slot, and in a further one.
const INLINE: usize = 6;
const SPILL: usize = 7;
const LONGEST: usize = 240;

/// How a message lies in its lines.
pub trait Shape {
    /// Lines that a message of so many words takes.
    fn lines(words: usize) -> usize;
    /// Where word number `n` of the payload lies, from the message's first line on.
    fn place(n: usize) -> usize;
    /// Whether each further line has a sequence of its own.
    const SEQUENCES: bool;
}

#[derive(Debug)]
pub enum Spilled {}

#[derive(Debug)]
pub enum Wide {}

impl Shape for Spilled {
    #[inline(always)]
    fn lines(words: usize) -> usize {
        1 + words.saturating_sub(INLINE).div_ceil(SPILL)
    }

    #[inline(always)]
    fn place(n: usize) -> usize {
        if n < INLINE {
            return 2 + n;
        }
        let further = n - INLINE;
        (1 + further / SPILL) * LINE_WORDS + 1 + further % SPILL
    }

    const SEQUENCES: bool = true;
}

impl Shape for Wide {
    #[inline(always)]
    fn lines(words: usize) -> usize {
        (2 + words).div_ceil(LINE_WORDS).next_power_of_two()
    }

    #[inline(always)]
    fn place(n: usize) -> usize {
        2 + n
    }

    const SEQUENCES: bool = false;
}

/// A ring of messages of one size, in the shape `S`.
#[derive(Debug)]
pub struct Ring<S> {
    memory: Rc<Shared>,
    lines: u64,
    words: usize,
    shape: std::marker::PhantomData<S>,
}

/// Either end.
#[derive(Debug)]
pub struct End<S> {
    memory: Rc<Shared>,
    /// Lines of the ring.
    lines: u64,
    /// Words of a message.
    words: usize,
    /// The next line.
    next: u64,
    /// The sender: lines that the receiver was done with when last looked at. The receiver: lines that it has told of.
    told: u64,
    shape: std::marker::PhantomData<S>,
}

impl<S: Shape> Transport for Ring<S> {
    type Sender = End<S>;
    type Receiver = End<S>;

    fn prepare(setup: &Setup) -> Result<Self> {
        if !setup.bytes.is_multiple_of(8) || setup.bytes > LONGEST {
            bail!("whole words up to {LONGEST} bytes, not {}", setup.bytes);
        }
        let words = setup.bytes / 8;
        // As many lines as a lane of so many slots has: the caches hold as much of either.
        let lines = setup.slots.next_multiple_of(S::lines(words));
        Ok(Self {
            memory: Rc::new(Shared::new(FIRST + lines * LINE_WORDS)?),
            lines: lines as u64,
            words,
            shape: std::marker::PhantomData,
        })
    }

    fn receiver(&self) -> Result<End<S>> {
        Ok(End {
            memory: self.memory.clone(),
            lines: self.lines,
            words: self.words,
            next: 0,
            told: 0,
            shape: std::marker::PhantomData,
        })
    }

    fn sender(&self) -> Result<End<S>> {
        self.receiver()
    }
}

impl<S: Shape> End<S> {
    /// The lines of the next message: both shapes divide the ring, so it never wraps within one.
    #[inline(always)]
    fn message(&self) -> &[AtomicU64] {
        let per = S::lines(self.words);
        let at = FIRST + (self.next % self.lines) as usize * LINE_WORDS;
        &self.memory.words()[at..at + per * LINE_WORDS]
    }

    #[inline(always)]
    fn step(&self) -> u64 {
        S::lines(self.words) as u64
    }
}

impl<S: Shape> Sender for End<S> {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let step = self.step();
        while self.next + step - self.told > self.lines {
            self.told = self.memory.words()[CURSOR].load(Ordering::Acquire);
        }
        let message = self.message();
        for (n, bytes) in payload.as_chunks::<8>().0.iter().enumerate() {
            message[S::place(n)].store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        if S::SEQUENCES {
            for further in 1..step {
                let sequence = &message[further as usize * LINE_WORDS];
                sequence.store(self.next + further + 1, Ordering::Relaxed);
            }
        }
        message[0].store(self.next + 1, Ordering::Release);
        self.next += step;
        Ok(())
    }
}

impl<S: Shape> Receiver for End<S> {
    #[inline]
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let step = self.step();
        let message = self.message();
        while message[0].load(Ordering::Acquire) != self.next + 1 {
            std::hint::spin_loop();
        }
        let mut payload = [[0; 8]; LONGEST / 8];
        for (n, bytes) in payload[..self.words].iter_mut().enumerate() {
            *bytes = message[S::place(n)].load(Ordering::Relaxed).to_le_bytes();
        }
        self.next += step;
        if self.next - self.told >= self.lines / 4 {
            self.told = self.next;
            self.memory.words()[CURSOR].store(self.next, Ordering::Release);
        }
        Ok(see(payload[..self.words].as_flattened()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every word has a place of its own, in its message's lines, and none is that of a sequence.
    fn places<S: Shape>(sequences: &[usize]) {
        for words in 1..=LONGEST / 8 {
            let mut places: Vec<usize> = (0..words).map(S::place).collect();
            places.dedup();
            assert_eq!(places.len(), words);
            assert!(places.iter().all(|at| *at < S::lines(words) * LINE_WORDS));
            assert!(places.iter().all(|at| !sequences.contains(at)));
        }
    }

    #[test]
    fn a_message_fits_into_its_lines() {
        places::<Spilled>(&[0, 1, 8, 16, 24, 32]);
        places::<Wide>(&[0, 1]);
        assert_eq!(
            [48, 64, 104, 112, 200].map(|n| Spilled::lines(n / 8)),
            [1, 2, 2, 3, 4]
        );
        assert_eq!(
            [48, 64, 112, 200, 240].map(|n| Wide::lines(n / 8)),
            [1, 2, 2, 4, 4]
        );
    }
}
