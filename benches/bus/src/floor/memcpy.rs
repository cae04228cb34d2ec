//! Bulk without a transport: one process copies in, the other copies out, and a counter says how far each is.
//!
//! On the memory that our arena has (a segment on the largest pages that the host gives), in as many blocks as our lane
//! has slots, with libc's `memcpy`. Nothing is checked.

use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use agentd_bus::arena::segment::{Segment, SegmentOptions};
use agentd_bus::shm::region::Words;
use anyhow::{Context, Result, bail};
use bench_kit::stage::Shared;
use bench_kit::{Receiver, Sender, Setup, Transport};

/// Words of the shared page: blocks written and blocks read, in lines of their own.
const WRITTEN: usize = 0;
const READ: usize = 64;

pub struct Memcpy {
    blocks: Rc<Blocks>,
    bytes: usize,
}

/// Blocks one after the other, and the two counters.
struct Blocks {
    /// Keeps the memory mapped that `start` points to.
    _segment: Segment,
    start: NonNull<u8>,
    counters: Shared,
    count: u64,
    stride: usize,
}

pub struct End {
    blocks: Rc<Blocks>,
    next: u64,
    /// How far the other side was when last looked at.
    seen: u64,
    buffer: Vec<u8>,
}

impl Transport for Memcpy {
    type Sender = End;
    type Receiver = End;

    fn prepare(setup: &Setup) -> Result<Self> {
        let stride = setup.bytes.next_multiple_of(4096);
        let all = stride * setup.slots;
        let (segment, _) = Segment::create(&SegmentOptions::default(), all as u64)?;
        let words = segment.words();
        if words.len() * 8 < all {
            bail!("the segment has {} bytes, not {all}", words.len() * 8);
        }
        let start = NonNull::new(words.as_ptr().cast::<u8>().cast_mut()).context("no memory")?;
        let blocks = Blocks {
            _segment: segment,
            start,
            counters: Shared::new(512)?,
            count: setup.slots as u64,
            stride,
        };
        Ok(Self {
            blocks: Rc::new(blocks),
            bytes: setup.bytes,
        })
    }

    fn receiver(&self) -> Result<End> {
        Ok(End {
            blocks: self.blocks.clone(),
            next: 0,
            seen: 0,
            buffer: vec![0; self.bytes],
        })
    }

    fn sender(&self) -> Result<End> {
        self.receiver()
    }
}

impl End {
    /// The block that is next.
    fn block(&self) -> *mut u8 {
        let at = (self.next % self.blocks.count) as usize * self.blocks.stride;
        // SAFETY: `prepare` checked that `count` blocks of `stride` bytes lie within the segment's mapping, which lives
        // as long as `blocks`.
        unsafe { self.blocks.start.as_ptr().add(at) }
    }
}

impl Sender for End {
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let words = self.blocks.counters.words();
        while self.next - self.seen == self.blocks.count {
            self.seen = words[READ].load(Ordering::Acquire);
            std::hint::spin_loop();
        }
        // SAFETY: the payload is of the size that the blocks were made for, and they don't overlap with it. The reader
        // has said that it is done with this block, and looks at it again only after the store below.
        unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), self.block(), payload.len()) };
        self.next += 1;
        words[WRITTEN].store(self.next, Ordering::Release);
        Ok(())
    }
}

impl Receiver for End {
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let words = self.blocks.counters.words();
        while self.next == self.seen {
            self.seen = words[WRITTEN].load(Ordering::Acquire);
            std::hint::spin_loop();
        }
        let (from, len) = (self.block(), self.buffer.len());
        // SAFETY: a block has at least as many bytes as the buffer, and they don't overlap. The writer has said that it
        // is done with this block, and writes it again only after the store below.
        unsafe { std::ptr::copy_nonoverlapping(from, self.buffer.as_mut_ptr(), len) };
        self.next += 1;
        words[READ].store(self.next, Ordering::Release);
        Ok(see(&self.buffer))
    }
}
