//! Segments in sealed memory: how an owner makes them, within a budget, and how a receiver maps them.
//!
//! Making one is for set-up and for growth, not for the data path: it asks the kernel for memory and touches
//! all of it. Any thread, no privilege; huge pages need a pool that root reserved, and are done without where
//! there is none.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use agentd_kernel::memory::{self, HUGE_PAGE};

use super::{Arrivals, SEGMENT_MAX, Supply};
use crate::shm::atomics::{AtomicU64, Ordering};
use crate::shm::memfd::{self, Mapping, MemfdError};
use crate::shm::pages::PageKind;
use crate::shm::region::Words;

/// Bytes that the arenas of one process may take together, unless told otherwise.
pub const BUDGET_DEFAULT: u64 = 1 << 30;
/// Bytes of an arena's first segment, unless told otherwise: two huge pages.
pub const SEGMENT_DEFAULT: u64 = 4 << 20;
/// Segments that are added are twice as large as the one before, up to this.
const GROWTH_MAX: u64 = 64 << 20;

/// How many bytes all arenas that share it may take. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    left: Arc<AtomicU64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(BUDGET_DEFAULT)
    }
}

impl Budget {
    pub fn new(bytes: u64) -> Self {
        Self {
            left: Arc::new(AtomicU64::new(bytes)),
        }
    }

    /// Bytes that are not taken.
    pub fn left(&self) -> u64 {
        // A figure: nothing is read on its account.
        self.left.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, or says how many are left.
    pub fn take(&self, bytes: u64) -> Result<Share, u64> {
        // The count guards no other memory, so its order with anything else does not matter.
        let mut left = self.left();
        loop {
            let rest = left.checked_sub(bytes).ok_or(left)?;
            match self
                .left
                .compare_exchange(left, rest, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => left = now,
            }
        }
        Ok(Share {
            budget: self.clone(),
            bytes,
        })
    }
}

/// A part of a budget, given back on drop.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// Where an owner's pages are to come from, on a host with several NUMA nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// The node of the CPU that makes the segment.
    #[default]
    Local,
    /// That of the reader, say.
    Node(u32),
}

impl Placement {
    /// The node to ask the kernel for, on the host whose `/sys` is at `sys`; `here` says on which node this thread runs.
    /// `None`: there is nothing to choose, or nothing is known, and the kernel places pages where they are touched.
    fn node(self, sys: &Path, here: impl FnOnce() -> io::Result<u32>) -> Option<u32> {
        match self {
            Self::Node(node) => Some(node),
            Self::Local if nodes(sys) > 1 => here().ok(),
            Self::Local => None,
        }
    }
}

/// What an arena's segments are to be like.
#[derive(Clone, Debug)]
pub struct SegmentOptions {
    /// Of the first segment: whole pages; below 2 MiB, or not a multiple of it, it gets small pages.
    pub bytes: u64,
    /// Larger pages than these are not tried.
    pub largest: PageKind,
    pub placement: Placement,
    pub budget: Budget,
}

impl Default for SegmentOptions {
    fn default() -> Self {
        Self {
            bytes: SEGMENT_DEFAULT,
            largest: PageKind::Huge,
            placement: Placement::Local,
            budget: Budget::default(),
        }
    }
}

/// Why a segment could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SegmentMakeError {
    #[error(
        "a segment of {bytes} bytes is over what is left of the budget of arenas, {left} bytes; read faster, or raise it"
    )]
    Budget { bytes: u64, left: u64 },
    #[error(transparent)]
    Memory(#[from] MemfdError),
    #[error("the receivers could not be told of the segment: {0}")]
    Announce(io::Error),
}

/// What a segment turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    pub bytes: u64,
    /// As the kernel says of this process's mapping; `None` where it can't be asked (no procfs).
    pub pages: Option<PageKind>,
    /// Where the first page is; `None` where the kernel does not say (a sandbox without the call).
    pub node: Option<u32>,
    /// How many nodes there are to choose from: with one there is nothing to place.
    pub nodes: usize,
}

/// A segment that this process made, and its share of the budget.
#[derive(Debug)]
pub struct Segment {
    mapping: Mapping,
    _share: Share,
}

impl Words for Segment {
    fn words(&self) -> &[AtomicU64] {
        self.mapping.words()
    }
}

impl Segment {
    /// Makes a segment of `bytes` (rounded up to whole pages of the kind that is wanted). The descriptor is for
    /// the receivers.
    pub fn create(
        options: &SegmentOptions,
        bytes: u64,
    ) -> Result<(Self, OwnedFd), SegmentMakeError> {
        let page = if bytes >= HUGE_PAGE as u64 {
            HUGE_PAGE as u64
        } else {
            4096
        };
        let bytes = bytes.clamp(1, SEGMENT_MAX).next_multiple_of(page);
        let share = options
            .budget
            .take(bytes)
            .map_err(|left| SegmentMakeError::Budget { bytes, left })?;
        let node = options.placement.node(Path::new(SYS), memory::current_node);
        let (mapping, fd) = memfd::create_segment(bytes, options.largest, node)?;
        let segment = Self {
            mapping,
            _share: share,
        };
        Ok((segment, fd))
    }

    /// What it turned out to be.
    pub fn report(&self) -> SegmentReport {
        SegmentReport {
            bytes: self.words().len() as u64 * 8,
            pages: self.mapping.pages().ok(),
            node: self.mapping.node().ok(),
            nodes: nodes(Path::new(SYS)),
        }
    }
}

const SYS: &str = "/sys";

/// Nodes with memory; one where it can't be asked.
fn nodes(sys: &Path) -> usize {
    memory::memory_nodes(sys).map_or(1, |nodes| nodes.len().max(1))
}

/// Carries segments to the receivers of a channel: the bus, or a test.
pub trait Announce: Send {
    /// Must not wait for an answer: it is called by the sending thread.
    fn segment(&mut self, number: u32, fd: BorrowedFd<'_>) -> io::Result<()>;
    fn dropped(&mut self, number: u32);
}

/// Segments in sealed memfds, each twice as large as the one before.
#[derive(Debug)]
pub struct MemfdSupply<A> {
    options: SegmentOptions,
    announce: A,
    next_bytes: u64,
}

impl<A: Announce> MemfdSupply<A> {
    pub fn new(options: SegmentOptions, announce: A) -> Self {
        Self {
            next_bytes: options.bytes,
            options,
            announce,
        }
    }
}

impl<A: Announce> Supply for MemfdSupply<A> {
    type Memory = Segment;
    type Error = SegmentMakeError;

    fn segment(&mut self, number: u32, least: u64) -> Result<Segment, SegmentMakeError> {
        let wanted = self.next_bytes.max(least);
        let (segment, fd) = match Segment::create(&self.options, wanted) {
            // What is left may still do.
            Err(SegmentMakeError::Budget { .. }) if wanted > least => {
                Segment::create(&self.options, least)?
            }
            other => other?,
        };
        self.announce
            .segment(number, fd.as_fd())
            .map_err(SegmentMakeError::Announce)?;
        self.next_bytes =
            (self.next_bytes * 2).clamp(self.options.bytes, GROWTH_MAX.max(self.options.bytes));
        Ok(segment)
    }

    fn dropped(&mut self, number: u32) {
        self.announce.dropped(number);
    }
}

/// Segments that arrive as descriptors: `next` gives the next one, waiting until the deadline, and is asked only
/// when a reference names a segment that is not here.
pub struct FdArrivals<F> {
    next: F,
}

impl<F> std::fmt::Debug for FdArrivals<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FdArrivals").finish_non_exhaustive()
    }
}

impl<F: FnMut(Option<Instant>) -> Option<(u32, OwnedFd)> + Send> FdArrivals<F> {
    pub fn new(next: F) -> Self {
        Self { next }
    }
}

impl<F: FnMut(Option<Instant>) -> Option<(u32, OwnedFd)> + Send> Arrivals for FdArrivals<F> {
    type Memory = Mapping;
    type Error = MemfdError;

    fn next(&mut self, deadline: Option<Instant>) -> Result<Option<(u32, Mapping)>, MemfdError> {
        let Some((number, fd)) = (self.next)(deadline) else {
            return Ok(None);
        };
        Ok(Some((number, memfd::open_segment(fd.as_fd())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_segment_comes_from_the_node_that_was_named_or_else_from_that_of_its_maker() {
        let sys = tempfile::tempdir().unwrap();
        let has_memory = sys.path().join("devices/system/node/has_memory");
        let local = |here: io::Result<u32>| Placement::Local.node(sys.path(), || here);
        assert_eq!(local(Ok(1)), None, "a kernel without NUMA");
        fs::create_dir_all(has_memory.parent().unwrap()).unwrap();
        for (nodes, expected) in [
            ("0\n", None),
            ("0-1\n", Some(1)),
            ("0,2-3\n", Some(1)),
            ("no list", None),
        ] {
            fs::write(&has_memory, nodes).unwrap();
            assert_eq!(local(Ok(1)), expected, "{nodes}");
            let asked = Placement::Node(3).node(sys.path(), || panic!("where we are is no matter"));
            assert_eq!(asked, Some(3), "{nodes}");
        }
        fs::write(&has_memory, "0-1\n").unwrap();
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(local(Err(refused)), None, "a sandbox without the call");
    }

    #[test]
    fn a_node_that_is_not_there_is_no_reason_to_have_no_segment() {
        let nodes = memory::memory_nodes(Path::new(SYS)).unwrap();
        let absent = (0..).find(|node| !nodes.contains(node)).unwrap();
        for node in [absent, u32::MAX] {
            let options = SegmentOptions {
                placement: Placement::Node(node),
                largest: PageKind::Small,
                ..SegmentOptions::default()
            };
            let (segment, _fd) = Segment::create(&options, 1 << 16).unwrap();
            let report = segment.report();
            assert_eq!((report.bytes, report.nodes), (1 << 16, nodes.len()));
            // Where the kernel says where a page is, it says the truth.
            assert!(report.node.is_none_or(|node| nodes.contains(&node)));
        }
    }
}
