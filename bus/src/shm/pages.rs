//! Mappings of memfds, and what their pages are really made of.
//!
//! Large pages save the reader of a large payload a page-table walk every 4 KiB. In the order of preference:
//! 2 MiB pages of the host's reserved pool (`MFD_HUGETLB`); ordinary pages that the kernel is asked to put
//! together (`MADV_COLLAPSE`, which works also where transparent huge pages are off for shared memory); ordinary
//! pages. What was obtained is *observed* ([`Mapping::pages`]), never concluded from what was asked for.
//!
//! A mapping of 2 MiB or more begins on a 2 MiB boundary, or no large page could be mapped as such.
//! Any thread, no privilege; reading `/proc/self/smaps` needs a procfs.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::slice;

use agentd_kernel::memory::{self, HUGE_PAGE, MappedPages};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::atomics::AtomicU64;
use super::memfd::MemfdError;
use super::region::Words;

/// What the pages of a mapping are, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageKind {
    /// 4 KiB each.
    Small,
    /// 4 KiB pages that were put together: the whole mapping is mapped by 2 MiB entries.
    Transparent,
    /// 2 MiB each, from the reserved pool: never split, never swapped.
    Huge,
}

/// A mapping of a memfd, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is plain memory that no thread-local state refers to; it is only reached through
// atomics and `shm::copy`, which may be used from any thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference gives access to the words only, which are atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps all `bytes` of `fd`, whole pages of it, untouched so far.
    pub(super) fn new(
        fd: BorrowedFd<'_>,
        bytes: usize,
        rights: ProtFlags,
    ) -> Result<Self, MemfdError> {
        let flags = MapFlags::SHARED;
        let start = if bytes < HUGE_PAGE {
            // SAFETY: a null hint lets the kernel choose an unused range, so no existing memory is touched; the
            // range is owned by the returned value, which alone unmaps it.
            unsafe { mmap(std::ptr::null_mut(), bytes, rights, flags, fd, 0) }
        } else {
            let place = reserve_aligned(bytes)?;
            // SAFETY: `place` is `bytes` of address space that was reserved just now for this and holds nothing;
            // the new mapping takes its place. It is owned by the returned value from here on.
            unsafe { mmap(place, bytes, rights, flags | MapFlags::FIXED, fd, 0) }.inspect_err(
                |_| {
                    // SAFETY: the reservation is still ours, and nothing refers to it.
                    let freed = unsafe { munmap(place, bytes) };
                    debug_assert!(freed.is_ok(), "munmap of a reservation: {freed:?}");
                },
            )
        }
        .map_err(super::memfd::failed("mmap"))?;
        let start = NonNull::new(start.cast()).ok_or(MemfdError::Size { bytes: 0 })?;
        Ok(Self {
            start,
            words: bytes / 8,
        })
    }

    fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    fn bytes(&self) -> usize {
        self.words * 8
    }

    /// Makes every page be there, or says why one can't, instead of a SIGBUS at the first touch.
    pub(super) fn populate(&self, rights: ProtFlags) -> Result<(), MemfdError> {
        let advice = if rights.contains(ProtFlags::WRITE) {
            Advice::LinuxPopulateWrite
        } else {
            Advice::LinuxPopulateRead
        };
        // SAFETY: the range is exactly this mapping; populating changes no contents.
        unsafe { madvise(self.start.as_ptr().cast(), self.bytes(), advice) }
            .map_err(super::memfd::failed("madvise(MADV_POPULATE)"))
    }

    /// Asks the kernel to put the pages together.
    pub(super) fn collapse(&self) -> io::Result<()> {
        memory::collapse(self.address(), self.bytes())
    }

    /// Asks that the pages, none of which may be there yet, come from `node`.
    pub(super) fn prefer_node(&self, node: u32) -> io::Result<()> {
        memory::prefer_node(self.address(), self.bytes(), node)
    }

    /// The NUMA node on which the first page is.
    pub fn node(&self) -> io::Result<u32> {
        memory::node_of(self.address())
    }

    /// What the pages are, as the kernel reports it now for this process's mapping.
    pub fn pages(&self) -> io::Result<PageKind> {
        let pages = MappedPages::read(Path::new("/proc"), self.address())?;
        Ok(if pages.page_bytes >= HUGE_PAGE as u64 {
            PageKind::Huge
        } else if pages.huge_bytes >= self.bytes() as u64 {
            PageKind::Transparent
        } else {
            PageKind::Small
        })
    }
}

impl Words for Mapping {
    #[inline]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `start` is page-aligned and maps `words * 8` bytes for as long as `self` lives. The file
        // can't shrink below that: F_SEAL_SHRINK is set by `memfd` before the first mapping of memory that it
        // makes, and asked for before mapping memory that it is given. So every access hits a page. The bytes may
        // change at any time, which AtomicU64 permits. A read-only mapping is only handed to `Peers`, which has
        // no store.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, is not used after this, and slices of it borrow from `self`.
        if let Err(errno) = unsafe { munmap(self.start.as_ptr().cast(), self.bytes()) } {
            panic!("munmap of a channel's own mapping: {errno}");
        }
    }
}

/// Takes `bytes` of address space that begin on a 2 MiB boundary.
pub(super) fn reserve_aligned(bytes: usize) -> Result<*mut std::ffi::c_void, MemfdError> {
    let whole = bytes + HUGE_PAGE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a null hint lets the kernel choose an unused range. Nothing can be read or written there.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), whole, ProtFlags::empty(), flags) }
        .map_err(super::memfd::failed("mmap"))?;
    let before = (start as usize).next_multiple_of(HUGE_PAGE) - start as usize;
    let after = whole - before - bytes;
    // SAFETY: `before` is at most HUGE_PAGE, so the result and the cut-off ends are within the reservation, which
    // nothing else refers to.
    let (place, cut) = unsafe {
        let place = start.byte_add(before);
        let mut cut = Ok(());
        if before > 0 {
            cut = munmap(start, before);
        }
        if after > 0 {
            cut = cut.and(munmap(place.byte_add(bytes), after));
        }
        (place, cut)
    };
    cut.map_err(super::memfd::failed("munmap"))?;
    Ok(place)
}
