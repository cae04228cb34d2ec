//! A BPF ring buffer, as its one consumer has it.
//!
//! Layout and protocol: `Documentation/bpf/ringbuf.rst` and `include/uapi/linux/bpf.h`. A page with
//! the consumer's position, a page with the producers', then the data, mapped twice in a row so
//! that no record is split. Each record has an 8-byte header: its length, a bit while it is being
//! written, a bit if it was discarded. The descriptor is readable when there is something to take:
//! [`Ring`] is for an event loop, and never blocks.
//!
//! The producers are programs in the kernel; what they write is copied out before anybody looks at
//! it. A record whose length can't be is the end of the ring's usefulness ([`Taken::Broken`]); the
//! kernel's programs make none.

use crate::mapping::{MapError, Shared, Use};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const HEADER: u64 = 8;

/// A ring buffer and its descriptor.
#[derive(Debug)]
pub struct Ring {
    consumer: Shared,
    /// The producers' position and, from the second page on, the data twice.
    producer: Shared,
    page_words: usize,
    len: u64,
    fd: OwnedFd,
}

/// What came of taking records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// This many; the ring is empty, or the next record is still being written.
    All(usize),
    /// As many as were asked for; there may be more.
    Most(usize),
    /// The ring's memory makes no sense; nothing more can be taken.
    Broken,
}

impl Ring {
    /// Maps the ring buffer of `len` bytes.
    pub fn map(fd: OwnedFd, table: &'static str, len: u32) -> Result<Self, MapError> {
        let page = rustix::param::page_size();
        let consumer = Shared::map(&fd, table, page, 0, Use::Writing)?;
        let bytes = page + 2 * len as usize;
        let producer = Shared::map(&fd, table, bytes, page as u64, Use::Reading)?;
        Ok(Self {
            consumer,
            producer,
            page_words: page / size_of::<u64>(),
            len: len.into(),
            fd,
        })
    }

    /// Gives each record, at most `most` of them, to `take`, as a copy.
    pub fn take(&mut self, most: usize, mut take: impl FnMut(&[u8])) -> Taken {
        let mut record = Vec::new();
        let mut position = self.consumer.load(0);
        for taken in 0..most {
            // SYNC: ring. Pairs with the producers' release of their position after they reserved a record.
            let end = self.producer.word(0).load(Ordering::Acquire);
            if position == end {
                return Taken::All(taken);
            }
            let at = (position & (self.len - 1)) / HEADER;
            // SYNC: ring. Pairs with the release of the header when a record is submitted.
            let header = self
                .producer
                .word(self.page_words + at as usize)
                .load(Ordering::Acquire) as u32;
            if header & BUSY != 0 {
                return Taken::All(taken);
            }
            let bytes = u64::from(header & !DISCARDED);
            let stride = (HEADER + bytes).next_multiple_of(HEADER);
            if stride > self.len || stride > end.wrapping_sub(position) {
                return Taken::Broken;
            }
            if header & DISCARDED == 0 {
                record.clear();
                let first = self.page_words + at as usize + 1;
                for word in first..first + (bytes as usize).div_ceil(8) {
                    record.extend_from_slice(&self.producer.load(word).to_ne_bytes());
                }
                take(&record[..bytes as usize]);
            }
            position = position.wrapping_add(stride);
            // SYNC: ring. Pairs with the producers' load before they use the space again.
            self.consumer.store(0, position, Ordering::Release);
        }
        Taken::Most(most)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::tests::memory;

    /// The kernel's side in a memfd; `len` is one page, and the test writes the data where the first mapping of it is.
    fn ring() -> (Ring, Shared) {
        let page = rustix::param::page_size();
        let fd = memory(4 * page);
        let kernel = Shared::map(&fd, "R", 4 * page, 0, Use::Writing).expect("map");
        (Ring::map(fd, "R", page as u32).expect("map"), kernel)
    }

    fn submit(kernel: &Shared, at: u64, header: u32, value: u64) {
        let page = rustix::param::page_size() / 8;
        let data = 2 * page + at as usize / 8;
        kernel.store(data + 1, value, Ordering::Relaxed);
        kernel.store(data, header.into(), Ordering::Release);
    }

    #[test]
    fn records_come_in_order_and_discarded_ones_are_passed_over() {
        let (mut ring, kernel) = ring();
        let page = rustix::param::page_size() / 8;
        submit(&kernel, 0, 8, 11);
        submit(&kernel, 16, 8 | DISCARDED, 12);
        submit(&kernel, 32, 3, 0x33_2211);
        submit(&kernel, 48, 8 | BUSY, 14);
        kernel.store(page, 64, Ordering::Release);
        let mut seen = Vec::new();
        assert_eq!(
            ring.take(1, |record| seen.push(record.to_vec())),
            Taken::Most(1)
        );
        assert_eq!(
            ring.take(9, |record| seen.push(record.to_vec())),
            Taken::All(2)
        );
        assert_eq!(seen, [11u64.to_ne_bytes().to_vec(), vec![0x11, 0x22, 0x33]]);
        assert_eq!(
            kernel.load(0),
            48,
            "the space is given back up to the busy record"
        );
        submit(&kernel, 48, 8, 15);
        assert_eq!(
            ring.take(9, |record| seen.push(record.to_vec())),
            Taken::All(1)
        );
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn a_length_that_cannot_be_ends_it() {
        for header in [8u32 << 20, 64] {
            let (mut ring, kernel) = ring();
            submit(&kernel, 0, header, 1);
            kernel.store(rustix::param::page_size() / 8, 16, Ordering::Release);
            assert_eq!(ring.take(1, |_| panic!("nothing is there")), Taken::Broken);
        }
    }
}
