//! One cache line in each direction, or one futex word: the least that passes a signal between two processes.
//!
//! Not message passing: there is nothing in it but the number of the round. One line per direction, as in every
//! pair of rings.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use bench_kit::stage::Shared;
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting};
use rustix::thread::futex;

/// One line of memory, spun on or slept on.
#[derive(Debug)]
pub struct Line {
    memory: Rc<Shared>,
    waiting: Waiting,
}

/// Either end: the number that it said or heard last.
#[derive(Debug)]
pub struct End {
    memory: Rc<Shared>,
    waiting: Waiting,
    last: u32,
}

impl Transport for Line {
    type Sender = End;
    type Receiver = End;

    fn prepare(setup: &Setup) -> Result<Self> {
        Ok(Self {
            memory: Rc::new(Shared::new(512)?),
            waiting: setup.waiting,
        })
    }

    fn receiver(&self) -> Result<End> {
        self.sender()
    }

    fn sender(&self) -> Result<End> {
        Ok(End {
            memory: self.memory.clone(),
            waiting: self.waiting,
            last: 0,
        })
    }
}

impl End {
    fn word(&self) -> &AtomicU32 {
        const _: () = assert!(cfg!(target_endian = "little"), "the low half comes first");
        let word = &self.memory.words()[0];
        // SAFETY: the first half of a valid, aligned AtomicU64 is a valid, aligned AtomicU32 for as long as the borrow
        // lasts; this memory is accessed through this half alone.
        unsafe { &*std::ptr::from_ref(word).cast::<AtomicU32>() }
    }
}

impl Sender for End {
    #[inline]
    fn send(&mut self, _: &[u8]) -> Result<()> {
        self.last = self.last.wrapping_add(1);
        self.word().store(self.last, Ordering::Release);
        if self.waiting != Waiting::Busy {
            futex::wake(self.word(), futex::Flags::empty(), 1).context("futex wake")?;
        }
        Ok(())
    }
}

impl Receiver for End {
    #[inline]
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let awaited = self.last.wrapping_add(1);
        while self.word().load(Ordering::Acquire) != awaited {
            if self.waiting == Waiting::Busy {
                std::hint::spin_loop();
                continue;
            }
            match futex::wait(self.word(), futex::Flags::empty(), self.last, None) {
                Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("futex wait"),
            }
        }
        self.last = awaited;
        Ok(see(&u64::from(awaited).to_le_bytes()))
    }
}
