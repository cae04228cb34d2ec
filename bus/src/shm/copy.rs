//! Larger blocks between private memory and memory that another process may read or write meanwhile.
//!
//! A plain `memcpy` there would be a data race, which Rust does not define. So the moving is done by
//! instructions that the compiler can't see into ([`mod@wide`]): to the abstract machine the block is a
//! function of whatever bytes were there, in no particular order, as with relaxed atomic loads and stores of
//! single bytes. What those bytes are worth is for the caller to check afterwards. Under Miri and loom, which
//! know no such instructions, and on other machines, the same is done word by word with atomics
//! ([`mod@words`]).
//!
//! The direction is in the type: only [`Own`] memory can be written, [`Peers`] memory only read.
//!
//! Ordering: none among the bytes. All of them come before whatever the caller does next: its release store
//! after [`Own::copy_in`] publishes, its acquire load before [`Peers::copy_out`] makes visible. x86-64 keeps the
//! stores of string and vector instructions before later ordinary stores (Intel SDM vol. 3, 9.2.4.1; AMD APM
//! vol. 2, 7.1.1), and streaming stores are followed by `sfence`.
//!
//! Any thread, no privilege, no allocation except that the caller's buffer grows. Panics on a range outside
//! the memory: callers check what a peer says before.

#[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
use super::atomics::AtomicU64;
use super::region::{Own, Peers, Words};

/// Where what is written goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stores {
    /// Into this core's cache: the other side has it soonest.
    Cached,
    /// Past the cache, to memory: the other core then reads memory, ahead of its need, instead of asking this one
    /// for each line. Twice the latency, and up to three times the throughput where the cores share no cache.
    Streaming,
}

/// Two words in one store: half as many wait in the store buffer for their line. No more of it is promised than
/// of two relaxed atomic stores.
#[cfg(all(
    target_arch = "x86_64",
    not(any(loom, miri, test, feature = "crash-points"))
))]
#[inline(always)]
pub(crate) fn store_two(to: &[AtomicU64; 2], words: [u64; 2]) {
    // SAFETY: writes 16 bytes of borrowed atomics, which may be written through a shared borrow, unseen by the
    // compiler; `movdqu` takes any alignment. Every x86-64 has SSE2. The registers that change are declared.
    unsafe {
        std::arch::asm!(
            "movq {pair}, {low}",
            "movq {upper}, {high}",
            "punpcklqdq {pair}, {upper}",
            "movdqu [{to}], {pair}",
            pair = out(xmm_reg) _,
            upper = out(xmm_reg) _,
            low = in(reg) words[0],
            high = in(reg) words[1],
            to = in(reg) to.as_ptr(),
            options(nostack, preserves_flags)
        );
    }
}

/// Six words of private memory in three stores, and read word by word: what their owner has just stored there in words
/// can't be loaded in anything larger before those stores have left the store buffer. No more of it is promised than of
/// six relaxed atomic stores.
#[cfg(all(
    target_arch = "x86_64",
    not(any(loom, miri, test, feature = "crash-points"))
))]
#[inline(always)]
pub(crate) fn store_six(to: &[AtomicU64; 6], bytes: &[u8; 48]) {
    // SAFETY: reads 48 borrowed bytes; writes 48 bytes of borrowed atomics, which may be written through a shared borrow,
    // unseen by the compiler; neither instruction minds the alignment. Every x86-64 has SSE2. The registers that change
    // are declared.
    unsafe {
        std::arch::asm!(
            "movq {a}, [{from}]",
            "movhps {a}, [{from} + 8]",
            "movups [{to}], {a}",
            "movq {b}, [{from} + 16]",
            "movhps {b}, [{from} + 24]",
            "movups [{to} + 16], {b}",
            "movq {c}, [{from} + 32]",
            "movhps {c}, [{from} + 40]",
            "movups [{to} + 32], {c}",
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            from = in(reg) bytes.as_ptr(),
            to = in(reg) to.as_ptr(),
            options(nostack, preserves_flags)
        );
    }
}

/// Whether [`store_two`] at a whole number of lines into `words` is one atomic store: processors with AVX promise that of
/// 16 aligned bytes (Intel SDM vol. 3, 9.1.1; AMD APM vol. 2, 7.3.2).
#[cfg(all(
    target_arch = "x86_64",
    not(any(loom, miri, test, feature = "crash-points"))
))]
pub(crate) fn are_pairs_atomic(words: &[AtomicU64]) -> bool {
    words.as_ptr().addr().is_multiple_of(16) && std::arch::is_x86_feature_detected!("avx")
}

/// Asks for a cache line, without waiting for it.
#[inline(always)]
pub(crate) fn prefetch(line: &super::region::Line) {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    // SAFETY: a prefetch accesses nothing as far as the program can tell, wherever it points; every x86-64 has SSE.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    let _: &super::region::Line = line;
}

/// The counterpart of [`store_two`]: no more is promised than of two relaxed atomic loads.
#[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
#[inline(always)]
pub(crate) fn load_pair(from: &[AtomicU64; 2]) -> [u64; 2] {
    let pair: std::arch::x86_64::__m128i;
    // SAFETY: reads 16 bytes of borrowed atomics, unseen by the compiler, so a peer that writes meanwhile is no data
    // race to it; their alignment is that of a word, which `movdqu` takes. Every x86-64 has SSE2. The memory clobber
    // (the default) keeps it behind the acquire load before.
    unsafe {
        std::arch::asm!(
            "movdqu {pair}, [{from}]",
            pair = lateout(xmm_reg) pair,
            from = in(reg) from.as_ptr(),
            options(nostack, preserves_flags)
        );
    }
    // SAFETY: both are 16 bytes for which any value is valid; the lower half comes first in memory and register.
    unsafe { std::mem::transmute::<std::arch::x86_64::__m128i, [u64; 2]>(pair) }
}

impl<W: Words> Own<W> {
    /// Puts `bytes` at word `at` and after. What is behind them in their last word is undefined.
    pub(crate) fn copy_in(&self, at: usize, bytes: &[u8], stores: Stores) {
        let words = &self.0.words()[at..at + bytes.len().div_ceil(8)];
        #[cfg(all(any(test, feature = "crash-points"), not(loom)))]
        let bytes = {
            // A crash can come between any two lines.
            let lines = bytes.len().div_ceil(64);
            let stored = (0..lines).take_while(|_| super::region::crash::may_store());
            &bytes[..bytes.len().min(stored.count() * 64)]
        };
        #[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
        // SAFETY: the words are at least `bytes.len()` writable bytes: `Own` is only made of memory that this
        // process mapped for writing, and AtomicU64 may be written through a shared borrow. Private memory
        // behind `bytes` can't overlap them: a `&[u8]` over shared memory is never made, except of sealed
        // payloads, which are other mappings.
        unsafe {
            let to = words.as_ptr().cast::<u8>().cast_mut();
            match stores {
                Stores::Cached => wide::copy(to, bytes.as_ptr(), bytes.len()),
                Stores::Streaming => wide::stream(to, bytes.as_ptr(), bytes.len()),
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri), not(loom))))]
        {
            let _: Stores = stores;
            words::store(words, bytes);
        }
    }
}

impl<W: Words> Peers<W> {
    /// Appends `len` bytes from word `at` on to `out`. They are whatever the other side had there, bit by bit
    /// perhaps of different times.
    pub(crate) fn copy_out(&self, at: usize, len: usize, out: &mut Vec<u8>) {
        let words = &self.0.words()[at..at + len.div_ceil(8)];
        out.reserve(len);
        #[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
        // SAFETY: the words are at least `len` mapped bytes for as long as `self` is borrowed (`Words`), and
        // `reserve` made at least `len` bytes of room behind the contents of `out`, which is private memory and
        // so does not overlap. `copy` has written all of them before `set_len` counts them as initialised.
        unsafe {
            let room = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
            wide::copy(room, words.as_ptr().cast::<u8>(), len);
            out.set_len(out.len() + len);
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri), not(loom))))]
        words::load(words, len, out);
    }
}

/// The wide ways. AVX-512 is left out until a machine that has it shows that it wins.
#[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
pub(crate) mod wide {
    use std::arch::asm;
    use std::arch::is_x86_feature_detected as has;

    /// One way to move bytes: `(to, from, len)`.
    #[cfg(test)]
    pub(crate) type Way = unsafe fn(*mut u8, *const u8, usize);

    /// Copies by the way that this processor does best.
    ///
    /// # Safety
    /// `to` is `len` bytes that may be written, `from` `len` bytes that may be read, and they don't overlap.
    /// Either may be accessed by other processes meanwhile.
    #[inline]
    pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: passed on; each way is called only where its instructions exist.
        unsafe {
            if len >= 32 && has!("avx2") {
                avx2(to, from, len);
            } else {
                string(to, from, len);
            }
        }
    }

    /// As [`copy`], past the cache where the destination allows it.
    ///
    /// # Safety
    /// As [`copy`].
    #[inline]
    pub(crate) unsafe fn stream(to: *mut u8, from: *const u8, len: usize) {
        // Whole turns; the rest goes the ordinary way.
        let turns = len - len % 128;
        // SAFETY: passed on for two parts that make up the whole. `streaming` gets a multiple of 128 bytes, a
        // destination that it can store to, and only a processor that has AVX2.
        unsafe {
            if turns == 0 || !to.addr().is_multiple_of(32) || !has!("avx2") {
                copy(to, from, len);
            } else {
                copy(to.add(turns), from.add(turns), len - turns);
                streaming(to, from, turns);
            }
        }
    }

    /// `rep movsb`: every x86-64 has it, and recent ones make lines of it (ERMS, FSRM).
    ///
    /// # Safety
    /// As [`copy`].
    pub(crate) unsafe fn string(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: moves exactly `len` bytes, which the caller vouches for; the direction flag is clear at every
        // function boundary by the ABI; registers it changes are declared.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") len => _,
                inout("rdi") to => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags)
            );
        }
    }

    /// 128 bytes a turn in four registers, lines asked for 512 bytes ahead while there are so many; then 32 at a
    /// time, then the last 32 once more, overlapping.
    ///
    /// # Safety
    /// As [`copy`], `len` is at least 32, and the processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(crate) unsafe fn avx2(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: `to` and `from` advance together and only while at least the bytes of the next step are left,
        // so all accesses are within `len` bytes; the last one ends exactly there and begins at `len - 32` ≥ 0.
        // Prefetches access nothing. Writing some bytes twice stores the same source bytes, or, if a peer changes
        // them, later ones. All registers that change are declared, and the upper halves are left clean.
        unsafe {
            asm!(
                "cmp {left}, 640",
                "jb 3f",
                ".p2align 4",
                "2:",
                "prefetcht0 [{from} + 512]",
                "prefetcht0 [{from} + 576]",
                "prefetchw [{to} + 512]",
                "prefetchw [{to} + 576]",
                "vmovdqu {a}, [{from}]",
                "vmovdqu {b}, [{from} + 32]",
                "vmovdqu {c}, [{from} + 64]",
                "vmovdqu {d}, [{from} + 96]",
                "vmovdqu [{to}], {a}",
                "vmovdqu [{to} + 32], {b}",
                "vmovdqu [{to} + 64], {c}",
                "vmovdqu [{to} + 96], {d}",
                "add {from}, 128",
                "add {to}, 128",
                "sub {left}, 128",
                "cmp {left}, 640",
                "jae 2b",
                "3:",
                "cmp {left}, 128",
                "jb 5f",
                "4:",
                "vmovdqu {a}, [{from}]",
                "vmovdqu {b}, [{from} + 32]",
                "vmovdqu {c}, [{from} + 64]",
                "vmovdqu {d}, [{from} + 96]",
                "vmovdqu [{to}], {a}",
                "vmovdqu [{to} + 32], {b}",
                "vmovdqu [{to} + 64], {c}",
                "vmovdqu [{to} + 96], {d}",
                "add {from}, 128",
                "add {to}, 128",
                "sub {left}, 128",
                "cmp {left}, 128",
                "jae 4b",
                "5:",
                "cmp {left}, 32",
                "jb 6f",
                "vmovdqu {a}, [{from}]",
                "vmovdqu [{to}], {a}",
                "add {from}, 32",
                "add {to}, 32",
                "sub {left}, 32",
                "jmp 5b",
                "6:",
                "test {left}, {left}",
                "jz 7f",
                "vmovdqu {a}, [{from} + {left} - 32]",
                "vmovdqu [{to} + {left} - 32], {a}",
                "7:",
                "vzeroupper",
                left = inout(reg) len => _,
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                a = out(ymm_reg) _,
                b = out(ymm_reg) _,
                c = out(ymm_reg) _,
                d = out(ymm_reg) _,
                options(nostack)
            );
        }
    }

    /// 128 bytes a turn, stored past the cache, and fenced.
    ///
    /// # Safety
    /// As [`copy`], `len` is a multiple of 128 and not 0, `to` is 32-byte aligned, and the processor has AVX2.
    #[target_feature(enable = "avx2")]
    unsafe fn streaming(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: `len / 128` turns of 128 bytes from both pointers on; the aligned stores find aligned addresses,
        // since `to` is and advances by 128. All registers that change are declared.
        unsafe {
            asm!(
                "2:",
                "vmovdqu {a}, [{from}]",
                "vmovdqu {b}, [{from} + 32]",
                "vmovdqu {c}, [{from} + 64]",
                "vmovdqu {d}, [{from} + 96]",
                "vmovntdq [{to}], {a}",
                "vmovntdq [{to} + 32], {b}",
                "vmovntdq [{to} + 64], {c}",
                "vmovntdq [{to} + 96], {d}",
                "add {from}, 128",
                "add {to}, 128",
                "sub {left}, 128",
                "jnz 2b",
                "sfence",
                "vzeroupper",
                left = inout(reg) len => _,
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                a = out(ymm_reg) _,
                b = out(ymm_reg) _,
                c = out(ymm_reg) _,
                d = out(ymm_reg) _,
                options(nostack)
            );
        }
    }
}

/// The same by atomic words, for checkers and other machines.
#[cfg_attr(
    all(target_arch = "x86_64", not(miri), not(loom)),
    allow(dead_code, reason = "the property tests compare with it")
)]
pub(crate) mod words {
    use crate::shm::atomics::{AtomicU64, Ordering};

    pub(crate) fn store(words: &[AtomicU64], bytes: &[u8]) {
        for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
        }
    }

    pub(crate) fn load(words: &[AtomicU64], len: usize, out: &mut Vec<u8>) {
        let mut left = len;
        for word in words {
            let now = left.min(8);
            out.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes()[..now]);
            left -= now;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::atomics::Ordering;
    use super::super::region::Heap;
    use super::*;
    use proptest::prelude::*;

    fn pattern(len: usize, seed: u8) -> Vec<u8> {
        (0..len)
            .map(|n| (n as u8).wrapping_mul(29) ^ seed ^ (n >> 8) as u8)
            .collect()
    }

    #[test]
    fn every_length_goes_in_and_comes_out_and_touches_nothing_else() {
        let stores = [Stores::Cached, Stores::Streaming];
        let lengths = (0..900).chain([4095, 4096, 4097, 65_536]);
        for (len, stores) in lengths.flat_map(|len| stores.map(|stores| (len, stores))) {
            let bytes = pattern(len, 7);
            let words = len.div_ceil(8);
            let memory = Heap::new(words + 2);
            let own = Own(memory.clone());
            own.store(0, u64::MAX, Ordering::Relaxed);
            own.store(words + 1, u64::MAX, Ordering::Relaxed);
            own.copy_in(1, &bytes, stores);
            let mut out = vec![0xEE];
            Peers(memory.clone()).copy_out(1, len, &mut out);
            assert_eq!((out[0], &out[1..]), (0xEE, bytes.as_slice()), "{len}");
            assert_eq!(own.load(0, Ordering::Relaxed), u64::MAX);
            assert_eq!(own.load(words + 1, Ordering::Relaxed), u64::MAX);
        }
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn a_range_outside_the_memory_is_never_touched() {
        Peers(Heap::new(4)).copy_out(2, 17, &mut Vec::new());
    }

    proptest! {
        #[test]
        fn all_ways_move_the_same_bytes(
            len in 32usize..5000, from_at in 0usize..70, to_at in 0usize..70, seed in any::<u8>(),
        ) {
            let source = pattern(from_at + len, seed);
            let memory = Heap::new(len.div_ceil(8));
            words::store(memory.words(), &source[from_at..]);
            let mut expected = Vec::new();
            words::load(memory.words(), len, &mut expected);
            prop_assert_eq!(&expected, &source[from_at..]);
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            {
                let mut ways: Vec<wide::Way> = vec![wide::string, wide::copy, wide::stream];
                if std::arch::is_x86_feature_detected!("avx2") {
                    ways.push(wide::avx2);
                }
                for way in ways {
                    let mut to = vec![0xA5; to_at + len + 40];
                    // SAFETY: both are private vectors with at least `len` bytes behind the offsets, `len` ≥ 32, and
                    // a way is in the list only where the processor has it.
                    unsafe { way(to.as_mut_ptr().add(to_at), source.as_ptr().add(from_at), len) };
                    prop_assert_eq!(&to[to_at..to_at + len], &expected[..]);
                    prop_assert!(to[..to_at].iter().chain(&to[to_at + len..]).all(|&byte| byte == 0xA5));
                }
            }
        }
    }
}
