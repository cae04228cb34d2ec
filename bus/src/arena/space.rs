//! Which parts of a segment are taken: two-level segregated fit (Masmano, Ripoll, Crespo and Real, "TLSF: a new
//! dynamic memory allocator for real-time systems", ECRTS 2004).
//!
//! Taking and giving back are O(1) and allocate nothing. Free neighbours are joined at once. Within one size
//! the block freed last is taken first, so that what is still in a cache is used again.
//!
//! All of it is the owner's private memory: nothing that a peer writes can reach it. It counts in granules of
//! 64 bytes and knows no addresses.

#![forbid(unsafe_code)]

/// Smallest block, granules: bounds how many descriptors a segment can need.
pub(crate) const BLOCK_MIN: u32 = 16;
/// Most granules of a segment.
pub(crate) const GRANULES_MAX: u32 = 1 << 24;
/// Each power of two is split into this many sizes, so that rounding wastes at most a sixteenth.
const STEPS: usize = 1 << STEP_BITS;
const STEP_BITS: u32 = 4;
/// Powers of two from that of [`BLOCK_MIN`] to that of [`GRANULES_MAX`].
const POWERS: usize = (GRANULES_MAX.ilog2() - BLOCK_MIN.ilog2() + 1) as usize;

const _: () = assert!(
    BLOCK_MIN.ilog2() >= STEP_BITS,
    "a step is at least one granule"
);

/// The index of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockId(u32);

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Block {
    at: u32,
    size: u32,
    /// Neighbours in the segment.
    before: u32,
    after: u32,
    /// Neighbours in the list of free blocks of a size.
    previous: u32,
    next: u32,
    free: bool,
}

/// The taken and free blocks of one segment.
#[derive(Debug)]
pub(crate) struct Space {
    blocks: Vec<Block>,
    /// Descriptors without a block, linked by `next`.
    unused: u32,
    /// First free block of each size.
    heads: [[u32; STEPS]; POWERS],
    /// Which powers of two have a free block, and which steps of each.
    powers: u32,
    steps: [u16; POWERS],
    granules: u32,
    taken: u32,
}

/// The list in which a free block of `size` granules is.
fn class(size: u32) -> (usize, usize) {
    let power = size.ilog2();
    let step = (size >> (power - STEP_BITS)) as usize & (STEPS - 1);
    ((power - BLOCK_MIN.ilog2()) as usize, step)
}

/// `size` rounded up to the next class: every block in that list is large enough.
fn rounded(size: u32) -> u32 {
    let size = size.max(BLOCK_MIN);
    size.next_multiple_of(1 << (size.ilog2() - STEP_BITS))
}

impl Space {
    /// One free block of `granules`. `None` unless that is [`BLOCK_MIN`] to [`GRANULES_MAX`].
    pub fn new(granules: u32) -> Option<Self> {
        if !(BLOCK_MIN..=GRANULES_MAX).contains(&granules) {
            return None;
        }
        let mut space = Self {
            // No more blocks than this fit; memory that is never used is never touched.
            blocks: Vec::with_capacity((granules / BLOCK_MIN) as usize),
            unused: NONE,
            heads: [[NONE; STEPS]; POWERS],
            powers: 0,
            steps: [0; POWERS],
            granules,
            taken: 0,
        };
        let whole = space.describe(Block {
            at: 0,
            size: granules,
            before: NONE,
            after: NONE,
            previous: NONE,
            next: NONE,
            free: false,
        });
        space.put(whole);
        Some(space)
    }

    /// Takes a block of at least `size` granules.
    pub fn take(&mut self, size: u32) -> Option<BlockId> {
        if size > self.granules {
            return None;
        }
        let size = rounded(size);
        let id = self.find(size)?;
        self.unlink(id);
        let found = self.blocks[id as usize];
        let left = found.size - size;
        if left >= BLOCK_MIN {
            let rest = self.describe(Block {
                at: found.at + size,
                size: left,
                before: id,
                after: found.after,
                previous: NONE,
                next: NONE,
                free: false,
            });
            if found.after != NONE {
                self.blocks[found.after as usize].before = rest;
            }
            let block = &mut self.blocks[id as usize];
            (block.size, block.after) = (size, rest);
            self.put(rest);
        }
        self.taken += self.blocks[id as usize].size;
        Some(BlockId(id))
    }

    /// Gives a block back. The id is dead afterwards: it belongs to [`super::Arena`], which gives it once.
    pub fn give(&mut self, id: BlockId) {
        let mut id = id.0;
        assert!(!self.blocks[id as usize].free, "a block is given back once");
        self.taken -= self.blocks[id as usize].size;
        let Block { before, after, .. } = self.blocks[id as usize];
        if after != NONE && self.blocks[after as usize].free {
            self.unlink(after);
            self.join(id, after);
        }
        if before != NONE && self.blocks[before as usize].free {
            self.unlink(before);
            self.join(before, id);
            id = before;
        }
        self.put(id);
    }

    /// Where the block begins and how long it is, granules.
    pub fn extent(&self, id: BlockId) -> (u32, u32) {
        let block = &self.blocks[id.0 as usize];
        (block.at, block.size)
    }

    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// Whether an empty segment of this size can take a block of `size` granules.
    pub fn fits(&self, size: u32) -> bool {
        size <= self.largest()
    }

    /// The largest size that an empty segment can take, granules.
    pub fn largest(&self) -> u32 {
        self.granules >> (self.granules.ilog2() - STEP_BITS) << (self.granules.ilog2() - STEP_BITS)
    }

    /// The first block of the smallest class that is large enough.
    fn find(&self, size: u32) -> Option<u32> {
        if size > self.granules {
            return None;
        }
        let (power, step) = class(size);
        let here = self.steps[power] & (u16::MAX << step);
        if here != 0 {
            return Some(self.heads[power][here.trailing_zeros() as usize]);
        }
        let above = self.powers & (u32::MAX << power << 1);
        if above == 0 {
            return None;
        }
        let power = above.trailing_zeros() as usize;
        Some(self.heads[power][self.steps[power].trailing_zeros() as usize])
    }

    /// Makes `later`, which lies right behind `earlier`, a part of it.
    fn join(&mut self, earlier: u32, later: u32) {
        let gone = self.blocks[later as usize];
        let block = &mut self.blocks[earlier as usize];
        block.size += gone.size;
        block.after = gone.after;
        if gone.after != NONE {
            self.blocks[gone.after as usize].before = earlier;
        }
        self.blocks[later as usize].next = self.unused;
        self.unused = later;
    }

    fn describe(&mut self, block: Block) -> u32 {
        if self.unused == NONE {
            assert!(
                self.blocks.len() < self.blocks.capacity(),
                "no more blocks than the segment has room for"
            );
            self.blocks.push(block);
            return (self.blocks.len() - 1) as u32;
        }
        let id = self.unused;
        self.unused = self.blocks[id as usize].next;
        self.blocks[id as usize] = block;
        id
    }

    /// Puts a block at the head of its free list.
    fn put(&mut self, id: u32) {
        let (power, step) = class(self.blocks[id as usize].size);
        let head = self.heads[power][step];
        if head != NONE {
            self.blocks[head as usize].previous = id;
        }
        let block = &mut self.blocks[id as usize];
        (block.free, block.previous, block.next) = (true, NONE, head);
        self.heads[power][step] = id;
        self.steps[power] |= 1 << step;
        self.powers |= 1 << power;
    }

    /// Takes a block out of its free list.
    fn unlink(&mut self, id: u32) {
        let Block {
            size,
            previous,
            next,
            ..
        } = self.blocks[id as usize];
        let (power, step) = class(size);
        if next != NONE {
            self.blocks[next as usize].previous = previous;
        }
        if previous != NONE {
            self.blocks[previous as usize].next = next;
        } else {
            self.heads[power][step] = next;
            if next == NONE {
                self.steps[power] &= !(1 << step);
                if self.steps[power] == 0 {
                    self.powers &= !(1 << power);
                }
            }
        }
        self.blocks[id as usize].free = false;
    }

    /// Walks all blocks and lists: each granule is in exactly one block, and each free block in its list.
    #[cfg(all(test, not(loom)))]
    pub fn check(&self) {
        let mut unused = std::collections::HashSet::new();
        let mut id = self.unused;
        while id != NONE {
            assert!(unused.insert(id));
            id = self.blocks[id as usize].next;
        }
        let first = (0..self.blocks.len() as u32)
            .find(|id| !unused.contains(id) && self.blocks[*id as usize].before == NONE)
            .expect("a first block");
        let (mut at, mut taken, mut id, mut before, mut count) = (0, 0, first, NONE, 0);
        let mut free = std::collections::HashSet::new();
        while id != NONE {
            let block = self.blocks[id as usize];
            assert_eq!((block.at, block.before), (at, before));
            assert!(block.size >= BLOCK_MIN);
            if block.free {
                assert!(free.insert(id));
                assert!(
                    before == NONE || !self.blocks[before as usize].free,
                    "joined"
                );
            } else {
                taken += block.size;
            }
            at += block.size;
            count += 1;
            (before, id) = (id, block.after);
        }
        assert_eq!((at, taken), (self.granules, self.taken));
        assert_eq!(count + unused.len(), self.blocks.len());
        for power in 0..POWERS {
            assert_eq!(self.powers >> power & 1 == 1, self.steps[power] != 0);
            for step in 0..STEPS {
                let mut id = self.heads[power][step];
                assert_eq!(self.steps[power] >> step & 1 == 1, id != NONE);
                while id != NONE {
                    assert_eq!(class(self.blocks[id as usize].size), (power, step));
                    assert!(free.remove(&id), "listed once");
                    id = self.blocks[id as usize].next;
                }
            }
        }
        assert!(free.is_empty(), "every free block is listed");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_rounded_up_by_at_most_a_sixteenth_into_a_class_that_holds_it() {
        for size in 1..100_000 {
            let up = rounded(size);
            assert!(up >= size && up <= size.max(BLOCK_MIN) + size.max(BLOCK_MIN) / 16 + 1);
            assert_eq!(rounded(up), up, "blocks of this size are found again");
            assert!(class(up) >= class(size.max(BLOCK_MIN)));
        }
        assert_eq!(class(BLOCK_MIN), (0, 0));
        assert_eq!(class(GRANULES_MAX), (POWERS - 1, 0));
    }

    #[test]
    fn the_whole_segment_can_be_taken_and_nothing_more() {
        let mut space = Space::new(1024).unwrap();
        let whole = space.take(1024).unwrap();
        assert_eq!(space.extent(whole), (0, 1024));
        assert!(space.take(1).is_none());
        space.give(whole);
        assert!(space.take(1025).is_none());
        assert!(space.take(u32::MAX).is_none());
        assert!(Space::new(BLOCK_MIN - 1).is_none() && Space::new(GRANULES_MAX + 1).is_none());
    }

    #[test]
    fn the_block_freed_last_is_taken_first() {
        let mut space = Space::new(4096).unwrap();
        let ids: Vec<BlockId> = (0..4).map(|_| space.take(65).unwrap()).collect();
        space.give(ids[0]);
        let hot = space.extent(ids[2]);
        space.give(ids[2]);
        let again = space.take(65).unwrap();
        assert_eq!(space.extent(again), hot);
        space.check();
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_comes_back(
            granules in BLOCK_MIN..3000,
            steps in proptest::collection::vec((1u32..400, any::<bool>(), any::<prop::sample::Index>()), 1..200),
        ) {
            let mut space = Space::new(granules).unwrap();
            let capacity = space.blocks.capacity();
            let mut taken: Vec<BlockId> = Vec::new();
            for (size, give, which) in steps {
                if give && !taken.is_empty() {
                    space.give(taken.swap_remove(which.index(taken.len())));
                } else if let Some(id) = space.take(size) {
                    let (at, len) = space.extent(id);
                    prop_assert!(len >= size && at + len <= granules);
                    for other in &taken {
                        let (other_at, other_len) = space.extent(*other);
                        prop_assert!(at + len <= other_at || other_at + other_len <= at);
                    }
                    taken.push(id);
                } else {
                    prop_assert!(!taken.is_empty() || !space.fits(size), "an empty segment takes what fits");
                }
                space.check();
            }
            for id in taken {
                space.give(id);
            }
            space.check();
            prop_assert_eq!(space.taken(), 0);
            prop_assert_eq!(space.blocks.capacity(), capacity, "nothing was allocated");
            let (first, second) = class(granules);
            let free = space.blocks.iter().position(|b| b.free).unwrap();
            prop_assert_eq!(space.heads[first][second], free as u32);
        }
    }
}
