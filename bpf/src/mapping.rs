//! Memory of a table, shared with the kernel and with other processes.
//!
//! The one place with unsafe code for tables: everything above reads and writes whole words through [`Shared`]. A mapping of a
//! table that a program writes meanwhile is never borrowed as a value: each word is copied out atomically.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Mapping a table failed.
#[derive(Debug, thiserror::Error)]
#[error("mapping {bytes} bytes of table {table}: {source}")]
pub struct MapError {
    pub table: &'static str,
    pub bytes: usize,
    pub source: io::Error,
}

/// Whether a mapping may be stored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Reading,
    Writing,
}

/// A shared mapping, as 64-bit words.
#[derive(Debug)]
pub struct Shared {
    start: NonNull<AtomicU64>,
    words: usize,
    bytes: usize,
    writable: bool,
}

// SAFETY: the mapping is plain shared memory without thread affinity, and is reached through atomics only.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn map(
        fd: impl AsFd,
        table: &'static str,
        bytes: usize,
        offset: u64,
        purpose: Use,
    ) -> Result<Self, MapError> {
        let prot = match purpose {
            Use::Reading => ProtFlags::READ,
            Use::Writing => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: the kernel chooses an address that nothing else has; the length is not zero (or mmap refuses it).
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                prot,
                MapFlags::SHARED,
                fd,
                offset,
            )
        };
        let failed = |source| MapError {
            table,
            bytes,
            source,
        };
        let start = start.map_err(|errno| failed(errno.into()))?;
        let start = NonNull::new(start.cast::<AtomicU64>())
            .ok_or_else(|| failed(io::Error::other("mapped at address zero")))?;
        Ok(Self {
            start,
            words: bytes / size_of::<u64>(),
            bytes,
            writable: purpose == Use::Writing,
        })
    }

    /// The word at `index`.
    ///
    /// # Panics
    /// There is none: the caller's arithmetic is wrong.
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "word {index} of {}", self.words);
        // SAFETY: inside the mapping (checked above), which lives as long as `self`; page-aligned, so aligned; everything that
        // shares the memory stores aligned words.
        unsafe { self.start.add(index).as_ref() }
    }

    pub(crate) fn load(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }

    /// # Panics
    /// The mapping is for reading only.
    pub(crate) fn store(&self, index: usize, value: u64, ordering: Ordering) {
        assert!(self.writable, "a mapping for reading");
        self.word(index).store(value, ordering);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and no reference into it outlives `self`. A failure leaves it mapped.
        unsafe { munmap(self.start.as_ptr().cast(), self.bytes) }.ok();
    }
}

/// A type of `agentd-ebpf-common`: whole words, every bit pattern a value.
///
/// # Safety
/// `#[repr(C)]`, no padding, integers only, and a size that is a multiple of eight.
pub unsafe trait Layout: Copy + Default {}

// SAFETY: see the assertions and rules of `agentd-ebpf-common`.
unsafe impl Layout for crate::layout::Counters {}
// SAFETY: as above.
unsafe impl Layout for crate::layout::Policy {}
// SAFETY: as above.
unsafe impl Layout for crate::layout::Place {}
// SAFETY: as above.
unsafe impl Layout for crate::layout::sched::Sched {}
// SAFETY: as above.
unsafe impl Layout for crate::layout::sched::Seat {}
// SAFETY: as above.
unsafe impl Layout for crate::layout::route::Flow {}
// SAFETY: as above.
unsafe impl Layout for crate::layout::route::Traffic {}

/// An array with rows of `T`, for reading: as agentd has it.
#[derive(Debug)]
pub struct Rows<T> {
    shared: Shared,
    rows: usize,
    of: PhantomData<T>,
}

impl<T: Layout> Rows<T> {
    const WORDS: usize = size_of::<T>() / size_of::<u64>();

    /// Maps a table with `rows` rows.
    pub fn map(fd: impl AsFd, table: &'static str, rows: usize) -> Result<Self, MapError> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let shared = Shared::map(fd, table, rows * size_of::<T>(), 0, Use::Reading)?;
        Ok(Self {
            shared,
            rows,
            of: PhantomData,
        })
    }

    /// A copy of one row; `None` if there is no such row. Each word is whole; words may be of different moments.
    pub fn get(&self, row: usize) -> Option<T> {
        if row >= self.rows {
            return None;
        }
        let mut copy = T::default();
        let target = (&raw mut copy).cast::<u64>();
        for word in 0..Self::WORDS {
            let value = self.shared.load(row * Self::WORDS + word);
            // SAFETY: `word` is inside of `copy`, which by `Layout` consists of whole words of any value; unaligned, as a T may
            // be aligned to less.
            unsafe { target.add(word).write_unaligned(value) };
        }
        Some(copy)
    }

    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }
}

/// An array with a row for each slot that its owner clears: as the broker has it.
#[derive(Debug)]
pub struct Clearable {
    shared: Shared,
    words: usize,
}

impl Clearable {
    pub fn map(fd: impl AsFd, table: &'static str, row_bytes: usize) -> Result<Self, MapError> {
        let bytes = crate::layout::ROWS * row_bytes;
        let shared = Shared::map(fd, table, bytes, 0, Use::Writing)?;
        Ok(Self {
            shared,
            words: row_bytes / size_of::<u64>(),
        })
    }

    /// Zeroes the row of an agent that is about to begin.
    pub fn clear(&self, slot: u32) {
        let first = slot as usize * self.words;
        for word in first..first + self.words {
            self.shared.store(word, 0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::OwnedFd;

    /// Memory as a table's descriptor gives it.
    pub(crate) fn memory(bytes: usize) -> OwnedFd {
        let fd = memfd_create(c"table", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, bytes as u64).expect("ftruncate");
        fd
    }

    #[test]
    fn a_row_is_copied_whole_and_cleared_whole() {
        use crate::layout::{Counters, ROWS};
        let fd = memory(ROWS * size_of::<Counters>());
        let counters = Rows::<Counters>::map(&fd, "COUNTERS", ROWS).expect("map");
        let writer = Clearable::map(&fd, "COUNTERS", size_of::<Counters>()).expect("map");
        for word in 0..16 {
            writer.shared.store(word, word as u64, Ordering::Relaxed);
        }
        let one = counters.get(1).expect("row 1");
        assert_eq!((one.packets_in, one.lost), (8, 13));
        writer.clear(1);
        assert_eq!(counters.get(1), Some(Counters::default()));
        assert_eq!(counters.get(0).expect("row 0").lost, 5, "its neighbour");
        assert_eq!(counters.get(ROWS), None);
    }

    #[test]
    fn a_mapping_for_reading_refuses_a_store() {
        let shared = Shared::map(memory(4096), "T", 4096, 0, Use::Reading).expect("map");
        let stored = std::panic::catch_unwind(|| shared.store(0, 1, Ordering::Relaxed));
        assert!(stored.is_err());
        assert_eq!(shared.load(0), 0);
    }
}
