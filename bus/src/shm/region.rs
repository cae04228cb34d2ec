//! Memory as a row of atomic 64-bit words, and the two rights one can have on it.
//!
//! Shared memory is only ever touched through atomics of one size, so a peer that writes while we read
//! gives us a wrong word at worst, never undefined behaviour: there is no `&[u8]` over it.

use std::sync::Arc;

use super::atomics::{AtomicU64, Ordering};

/// Words of a cache line, the unit in which the protocols place things.
pub const LINE_WORDS: usize = 8;
/// A cache line of words.
pub(crate) type Line = [AtomicU64; LINE_WORDS];

/// Memory of a fixed number of words. Implementations never move or shrink it while they live.
pub trait Words: Send + Sync + std::fmt::Debug {
    /// All of it.
    #[doc(hidden)]
    fn words(&self) -> &[AtomicU64];
}

/// Memory that this side may write.
#[derive(Debug)]
pub(crate) struct Own<W>(pub W);

/// Memory that the other side writes, at any time and anything. There is no way to store into it.
#[derive(Debug)]
pub struct Peers<W>(pub(crate) W);

impl<W: Words> Own<W> {
    #[inline]
    pub fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0.words()[index].load(order)
    }

    #[inline]
    pub fn store(&self, index: usize, value: u64, order: Ordering) {
        #[cfg(all(any(test, feature = "crash-points"), not(loom)))]
        if !crash::may_store() {
            return;
        }
        self.0.words()[index].store(value, order);
    }

    pub fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words()[index]
    }

    /// One cache line, found with one check.
    #[inline]
    pub fn line(&self, line: usize) -> OwnLine<'_> {
        OwnLine(line_of(self.0.words(), line))
    }

    pub fn len(&self) -> usize {
        self.0.words().len()
    }

    pub fn pairs(&self) -> Pairs {
        #[cfg(all(
            target_arch = "x86_64",
            not(any(loom, miri, test, feature = "crash-points"))
        ))]
        let atomic = super::copy::are_pairs_atomic(self.0.words());
        #[cfg(not(all(
            target_arch = "x86_64",
            not(any(loom, miri, test, feature = "crash-points"))
        )))]
        let atomic = false;
        Pairs { atomic }
    }
}

impl<W: Words> Peers<W> {
    #[inline]
    pub(crate) fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0.words()[index].load(order)
    }

    /// One cache line, found with one check.
    #[inline]
    pub(crate) fn line(&self, line: usize) -> &Line {
        line_of(self.0.words(), line)
    }

    /// Asks for a cache line, without waiting for it or looking at it.
    #[inline]
    pub(crate) fn prefetch(&self, line: usize) {
        super::copy::prefetch(self.line(line));
    }

    /// For waiting on, which needs no right to write.
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words()[index]
    }

    pub(crate) fn len(&self) -> usize {
        self.0.words().len()
    }
}

#[inline]
fn line_of(words: &[AtomicU64], line: usize) -> &Line {
    &words.as_chunks().0[line]
}

/// Two neighbouring words of a line that a peer may be writing. They are loaded at once where that is possible, so
/// that whoever reads the copy in larger pieces need not wait for it to leave the store buffer.
#[inline(always)]
pub(crate) fn load_pair(line: &Line, at: usize) -> [u64; 2] {
    let pair: &[AtomicU64; 2] = line[at..].first_chunk().expect("within the line");
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    return super::copy::load_pair(pair);
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    [
        pair[0].load(Ordering::Relaxed),
        pair[1].load(Ordering::Relaxed),
    ]
}

/// Whether the first two words of a line of this memory can be stored at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs {
    #[cfg_attr(
        any(
            not(target_arch = "x86_64"),
            loom,
            miri,
            test,
            feature = "crash-points"
        ),
        allow(dead_code, reason = "words are stored one by one there")
    )]
    atomic: bool,
}

/// A cache line that this side may write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnLine<'a>(&'a Line);

impl OwnLine<'_> {
    #[inline]
    pub fn store(&self, index: usize, value: u64, order: Ordering) {
        #[cfg(all(any(test, feature = "crash-points"), not(loom)))]
        if !crash::may_store() {
            return;
        }
        self.0[index].store(value, order);
    }

    /// What this side wrote here last.
    #[inline]
    pub fn load(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    /// Stores the first two words of the line, of which the first commits what is in the line: with the second or
    /// after it, and after everything before.
    #[inline(always)]
    pub fn commit(&self, words: [u64; 2], pairs: Pairs) {
        #[cfg(all(
            target_arch = "x86_64",
            not(any(loom, miri, test, feature = "crash-points"))
        ))]
        if pairs.atomic {
            // Stores of x86 are seen in the order of the program: this is a release store.
            return self.store_two(0, words);
        }
        let _: Pairs = pairs;
        self.store(1, words[1], Ordering::Relaxed);
        self.store(0, words[0], Ordering::Release);
    }

    /// Stores two neighbouring words, at once where that is possible and no test wants to come between.
    #[inline(always)]
    pub fn store_two(&self, at: usize, words: [u64; 2]) {
        #[cfg(all(
            target_arch = "x86_64",
            not(any(loom, miri, test, feature = "crash-points"))
        ))]
        super::copy::store_two(self.pair(at), words);
        #[cfg(not(all(
            target_arch = "x86_64",
            not(any(loom, miri, test, feature = "crash-points"))
        )))]
        for (at, word) in (at..).zip(words) {
            self.store(at, word, Ordering::Relaxed);
        }
    }

    #[cfg(all(
        target_arch = "x86_64",
        not(any(loom, miri, test, feature = "crash-points"))
    ))]
    #[inline(always)]
    fn pair(&self, at: usize) -> &[AtomicU64; 2] {
        self.0[at..].first_chunk().expect("within the line")
    }

    /// Stores `bytes`, at most six words, from the third word of the line on. As [`Self::store_bytes`], quick where all six
    /// are full.
    #[inline(always)]
    pub fn store_inline(&self, bytes: &[u8]) {
        #[cfg(all(
            target_arch = "x86_64",
            not(any(loom, miri, test, feature = "crash-points"))
        ))]
        if let (Ok(bytes), Some(words)) = (bytes.try_into(), self.0.last_chunk()) {
            return super::copy::store_six(words, bytes);
        }
        self.store_bytes(2, bytes);
    }

    /// Stores `bytes`, at most what is left of the line, from the word `at` on. What is behind them in their last
    /// word becomes 0. Ordering: none among the bytes, all of them before the next release store.
    ///
    /// They are read word by word, also where they are stored in pairs: what their owner has just stored there in
    /// words can't be loaded in anything larger before those stores have left the store buffer.
    #[inline(never)]
    pub fn store_bytes(&self, at: usize, bytes: &[u8]) {
        let mut at = at;
        let (words, rest) = bytes.as_chunks::<8>();
        let (pairs, odd) = words.as_chunks::<2>();
        for [low, high] in pairs {
            self.store_two(at, [u64::from_le_bytes(*low), u64::from_le_bytes(*high)]);
            at += 2;
        }
        for word in odd {
            self.store(at, u64::from_le_bytes(*word), Ordering::Relaxed);
            at += 1;
        }
        if !rest.is_empty() {
            // A copy of so few bytes would be a call.
            let last = rest.iter().rev();
            let last = last.fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.store(at, last, Ordering::Relaxed);
        }
    }
}

/// Memory of this process, shared by clones: for tests, and for Miri, which has no memfds.
#[derive(Clone, Debug)]
pub struct Heap(Arc<[AtomicU64]>);

impl Heap {
    /// Zeroed.
    pub fn new(words: usize) -> Self {
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Words for Heap {
    fn words(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// Memory that several threads of this side look at.
impl<W: Words> Words for Arc<W> {
    fn words(&self) -> &[AtomicU64] {
        (**self).words()
    }
}

/// Lets tests kill a side between any two of its stores. Not in the product: the feature `crash-points` is for one test.
#[cfg(all(any(test, feature = "crash-points"), not(loom)))]
pub mod crash {
    use std::cell::Cell;

    thread_local! {
        static STORES_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
        #[cfg(feature = "crash-points")]
        static DIES: Cell<bool> = const { Cell::new(false) };
    }

    /// After `stores` more, this thread's stores to shared memory have no effect: it is dead.
    pub fn after(stores: Option<u64>) {
        STORES_LEFT.set(stores);
    }

    /// After `stores` more, this thread's next store to shared memory is not made: its process dies of SIGKILL instead.
    #[cfg(feature = "crash-points")]
    pub fn die_after(stores: u64) {
        DIES.set(true);
        after(Some(stores));
    }

    pub(crate) fn may_store() -> bool {
        match STORES_LEFT.get() {
            None => true,
            #[cfg(feature = "crash-points")]
            Some(0) if DIES.get() => {
                let me = rustix::process::getpid();
                rustix::process::kill_process(me, rustix::process::Signal::KILL)
                    .expect("a process may kill itself");
                unreachable!("SIGKILL is not survived")
            }
            Some(0) => false,
            Some(left) => {
                STORES_LEFT.set(Some(left - 1));
                true
            }
        }
    }
}
