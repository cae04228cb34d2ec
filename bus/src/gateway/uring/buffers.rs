//! Provided buffers: a ring of receive buffers that the kernel picks from when bytes come, so that an idle connection
//! has none.
//!
//! A buffer is the kernel's from [`BufferRing::give`] until a completion names it, ours from then until it is given
//! back. Shared with the kernel only; one thread. Fails when memory can't be mapped.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Anonymous memory, page-aligned.
#[derive(Debug)]
struct Pages {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory, reached only through `&mut BufferRing`; the mapping belongs to the process, not to a thread.
unsafe impl Send for Pages {}

impl Pages {
    fn map(len: usize) -> Result<Self, rustix::io::Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at a place of the kernel's choice touches no memory that anything else uses.
        let at = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE) }?;
        let at = NonNull::new(at.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { at, len })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nothing borrowed from it outlives `self`. `Uring` sees to it that
        // no request of the kernel's is left when it drops its buffers, or leaks them.
        unsafe { munmap(self.at.as_ptr().cast(), self.len) }.unwrap_or_default();
    }
}

/// Between two buffers, so that their beginnings don't all compete for the same few sets of the processor's caches: small
/// messages touch nothing else of them, and the kernel takes one buffer after the other.
const APART: usize = 128;

/// The buffers of one ring. See the module's documentation.
#[derive(Debug)]
pub(super) struct BufferRing {
    entries: Pages,
    memory: Pages,
    count: u16,
    size: usize,
    tail: u16,
}

impl BufferRing {
    /// `count` buffers, a power of two, of `size` bytes, all given to the kernel once the ring is registered.
    pub fn new(count: u16, size: usize) -> Result<Self, rustix::io::Errno> {
        debug_assert!(count.is_power_of_two());
        let mut ring = Self {
            entries: Pages::map(usize::from(count) * size_of::<BufRingEntry>())?,
            memory: Pages::map(usize::from(count) * (size + APART))?,
            count,
            size,
            tail: 0,
        };
        for id in 0..count {
            ring.give(id);
        }
        ring.publish();
        Ok(ring)
    }

    /// Where buffer `id` begins in the memory.
    fn place(&self, id: u16) -> usize {
        usize::from(id) * (self.size + APART)
    }

    /// For the registration.
    pub fn address(&self) -> u64 {
        self.entries.at.as_ptr() as u64
    }

    pub fn count(&self) -> u16 {
        self.count
    }

    /// What the kernel put into buffer `id`, which a completion has just named.
    pub fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(
            id < self.count && len <= self.size,
            "the kernel names a buffer of this ring"
        );
        let at = self.place(id);
        // SAFETY: inside the mapping by the assertion. The kernel does not write to a buffer between its completion and
        // `give`, which takes `&mut self` and so ends this borrow.
        unsafe { std::slice::from_raw_parts(self.memory.at.as_ptr().add(at), len) }
    }

    /// Back to the kernel; seen by it after [`Self::publish`].
    pub fn give(&mut self, id: u16) {
        let slot = usize::from(self.tail & (self.count - 1));
        // SAFETY: `slot` is inside the mapping of `count` entries. The kernel reads entries only between its head and the
        // published tail, and this one lies behind the tail.
        let entry = unsafe { &mut *self.entries.at.as_ptr().cast::<BufRingEntry>().add(slot) };
        entry.set_addr(self.memory.at.as_ptr() as u64 + self.place(id) as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel all that was given.
    pub fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry's last two bytes, inside the mapping and aligned; the kernel and we
        // reach it only atomically. SYNC: buffer-ring-tail, pairs with the kernel's acquire load.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.at.as_ptr().cast());
            AtomicU16::from_ptr(tail.cast_mut()).store(self.tail, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_given_at_the_start_and_again_later() {
        let mut ring = BufferRing::new(8, 64).unwrap();
        assert_eq!(ring.tail, 8);
        ring.give(3);
        ring.publish();
        // SAFETY: inside the mapping; nothing else reaches it in this test.
        let entry = unsafe { &*ring.entries.at.as_ptr().cast::<BufRingEntry>() };
        assert_eq!((entry.bid(), entry.len()), (3, 64));
        let third = ring.memory.at.as_ptr() as u64 + 3 * (64 + APART) as u64;
        assert_eq!(entry.addr(), third);
    }
}
