//! CRC-32C (Castagnoli), the check sum of frames and of slots with an extension.
//!
//! Three tiers with the same results, chosen at run time:
//!
//! * [`Tier::Vpclmulqdq`]: folds 128 bytes at a time in four 256-bit registers; for 256 bytes and more;
//! * [`Tier::Sse42`]: the `crc32` instruction over 8 bytes at a time; for everything shorter;
//! * [`Tier::Portable`]: the crate `crc32c`, which knows ARM's instructions too, and on x86 without carry-less
//!   multiplication of wide registers is the best for long data: it runs the instruction three ways at once.
//!
//! There is no tier of AVX-512: nothing at hand could show that it wins. How folding works: Gopal and others, *Fast
//! CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction*, Intel, 2009.
//!
//! Pure; any thread. Unsafe code: calls of functions compiled for instructions that were looked for first, and one load.

/// What a check sum can be computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Portable,
    Sse42,
    Vpclmulqdq,
}

impl Tier {
    /// The quickest first.
    pub const ALL: [Self; 3] = [Self::Vpclmulqdq, Self::Sse42, Self::Portable];

    /// Whether this processor has the instructions.
    #[inline]
    pub fn is_supported(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Sse42 => is_x86_feature_detected!("sse4.2"),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Vpclmulqdq => {
                is_x86_feature_detected!("sse4.2")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("pclmulqdq")
                    && is_x86_feature_detected!("vpclmulqdq")
            }
            #[cfg(not(all(target_arch = "x86_64", not(miri))))]
            Self::Sse42 | Self::Vpclmulqdq => false,
        }
    }

    /// Goes on with `crc`, the check sum of what came before (0: nothing did), by this tier; `None`: this
    /// processor can't. For tests and benches: [`append`] chooses by itself.
    pub fn append(self, crc: u32, data: &[u8]) -> Option<u32> {
        if !self.is_supported() {
            return None;
        }
        Some(match self {
            Self::Portable => ::crc32c::crc32c_append(crc, data),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: compiled for sse4.2, which `is_supported` just found.
            Self::Sse42 => unsafe { x86::sse42(crc, data) },
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: compiled for avx2, vpclmulqdq, pclmulqdq and sse4.2, all of which `is_supported` just found.
            Self::Vpclmulqdq => unsafe { x86::vpclmulqdq(crc, data) },
            #[cfg(not(all(target_arch = "x86_64", not(miri))))]
            Self::Sse42 | Self::Vpclmulqdq => return None,
        })
    }
}

/// The check sum of `data`.
#[inline]
pub fn crc32c(data: &[u8]) -> u32 {
    append(0, data)
}

/// The check sum of what came before, whose own is `crc`, and `data`.
#[inline]
pub fn append(crc: u32, data: &[u8]) -> u32 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        if data.len() >= x86::FOLD_FROM && Tier::Vpclmulqdq.is_supported() {
            // SAFETY: compiled for avx2, vpclmulqdq, pclmulqdq and sse4.2, all of which were just found.
            return unsafe { x86::vpclmulqdq(crc, data) };
        }
        if data.len() < x86::THREE_WAYS_FROM && Tier::Sse42.is_supported() {
            // SAFETY: compiled for sse4.2, which was just found.
            return unsafe { x86::sse42(crc, data) };
        }
    }
    ::crc32c::crc32c_append(crc, data)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::*;

    /// Bytes of a 256-bit register, and how many of them are folded side by side: enough to hide the latency of a
    /// carry-less multiplication.
    const LINE: usize = 32;
    const LINES: usize = 4;
    /// Shorter than this, folding has nothing to win.
    pub const FOLD_FROM: usize = 2 * LINES * LINE;

    /// From here on the crate runs the instruction three ways at once, which beats one way.
    pub const THREE_WAYS_FROM: usize = 3 * 256;

    /// The polynomial, lowest power in the highest bit, as the `crc32` instruction has it.
    const POLYNOMIAL: u32 = 0x82F6_3B78;

    /// x to the power of `n`, modulo the polynomial, in the same order of bits.
    const fn x_to(n: u32) -> i64 {
        let mut value = 1 << 31;
        let mut i = 0;
        while i < n {
            value = (value >> 1) ^ if value & 1 == 1 { POLYNOMIAL } else { 0 };
            i += 1;
        }
        value as i64
    }

    /// Two factors, for the earlier and the later 64 bits of 128, that move them `bits` bits on. 33 less: a factor of 32
    /// bits in a lane of 64 stands for 32 powers more, and a product of reflected factors for one more.
    const fn move_by(bits: u32) -> [i64; 2] {
        [x_to(bits + 64 - 33), x_to(bits - 33)]
    }

    /// 8 bytes at a time.
    #[target_feature(enable = "sse4.2")]
    #[inline]
    pub fn sse42(crc: u32, data: &[u8]) -> u32 {
        !words(!crc, data)
    }

    /// The register after `data`.
    #[target_feature(enable = "sse4.2")]
    #[inline]
    fn words(crc: u32, data: &[u8]) -> u32 {
        let (words, mut rest) = data.as_chunks::<8>();
        let mut wide = u64::from(crc);
        for word in words {
            wide = _mm_crc32_u64(wide, u64::from_le_bytes(*word));
        }
        let mut crc = wide as u32;
        if let Some((four, later)) = rest.split_first_chunk::<4>() {
            crc = _mm_crc32_u32(crc, u32::from_le_bytes(*four));
            rest = later;
        }
        if let Some((two, later)) = rest.split_first_chunk::<2>() {
            crc = _mm_crc32_u16(crc, u16::from_le_bytes(*two));
            rest = later;
        }
        if let Some(one) = rest.first() {
            crc = _mm_crc32_u8(crc, *one);
        }
        crc
    }

    #[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq,sse4.2")]
    pub fn vpclmulqdq(crc: u32, data: &[u8]) -> u32 {
        let (lines, rest) = data.as_chunks::<LINE>();
        let Some((first, lines)) = lines.split_first_chunk::<LINES>() else {
            return sse42(crc, data);
        };
        let mut sums = first.map(|line| load(&line));
        let crc = _mm256_setr_epi32(!crc as i32, 0, 0, 0, 0, 0, 0, 0);
        sums[0] = _mm256_xor_si256(sums[0], crc);

        let far = both(const { move_by((8 * LINE * LINES) as u32) });
        let (groups, left) = lines.as_chunks::<LINES>();
        for group in groups {
            for (sum, line) in sums.iter_mut().zip(group) {
                *sum = fold(*sum, far, load(line));
            }
        }

        let near = both(const { move_by(8 * LINE as u32) });
        let mut sum = sums[0];
        for later in &sums[1..] {
            sum = fold(sum, near, *later);
        }
        for line in left {
            sum = fold(sum, near, load(line));
        }

        // 256 bits to 128, and those through the instruction as 16 bytes of data.
        let factors = const { move_by(128) };
        let factors = _mm_set_epi64x(factors[1], factors[0]);
        let early = _mm256_castsi256_si128(sum);
        let moved = _mm_xor_si128(
            _mm_clmulepi64_si128(early, factors, 0x00),
            _mm_clmulepi64_si128(early, factors, 0x11),
        );
        let sum = _mm_xor_si128(moved, _mm256_extracti128_si256(sum, 1));
        let crc = _mm_crc32_u64(0, _mm_extract_epi64(sum, 0) as u64);
        let crc = _mm_crc32_u64(crc, _mm_extract_epi64(sum, 1) as u64);
        !words(crc as u32, rest)
    }

    #[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq,sse4.2")]
    #[inline]
    fn load(line: &[u8; LINE]) -> __m256i {
        // SAFETY: `line` is 32 readable bytes; the load asks for no alignment.
        unsafe { _mm256_loadu_si256(line.as_ptr().cast()) }
    }

    /// The same two factors for both halves of a register.
    #[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq,sse4.2")]
    #[inline]
    fn both(factors: [i64; 2]) -> __m256i {
        _mm256_setr_epi64x(factors[0], factors[1], factors[0], factors[1])
    }

    /// `sum`, moved on by `factors`, with `line` added.
    #[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq,sse4.2")]
    #[inline]
    fn fold(sum: __m256i, factors: __m256i, line: __m256i) -> __m256i {
        let early = _mm256_clmulepi64_epi128(sum, factors, 0x00);
        let late = _mm256_clmulepi64_epi128(sum, factors, 0x11);
        _mm256_xor_si256(_mm256_xor_si256(early, late), line)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, bit by bit.
    fn reference(crc: u32, data: &[u8]) -> u32 {
        !data.iter().fold(!crc, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 }
            })
        })
    }

    fn tiers() -> impl Iterator<Item = Tier> {
        Tier::ALL.into_iter().filter(|tier| tier.is_supported())
    }

    /// Whether the calling test can run; if not, says so where the runner of the tests looks (docs/testing.md). The
    /// test kit stands on this crate, so its own `skip` is out of reach.
    fn can_run(tier: Tier) -> bool {
        use std::io::Write;
        if !tier.is_supported()
            && let Some(log) = std::env::var_os("AGENTD_SKIP_LOG")
        {
            let name = std::thread::current().name().unwrap_or("?").to_owned();
            let line = format!("agentd-skip: simd: this processor has no {tier:?} [in {name}]\n");
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(log)
                .and_then(|mut log| log.write_all(line.as_bytes()))
                .expect("the skip log can be written");
        }
        tier.is_supported()
    }

    fn bytes(len: usize) -> Vec<u8> {
        let mut state = 7u32;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect()
    }

    #[test]
    fn check_sums_are_those_of_rfc_3720() {
        let ascending: Vec<u8> = (0..32).collect();
        for (data, expected) in [
            (&[0u8; 32][..], 0x8A91_36AA),
            (&[0xFF; 32], 0x62A8_AB43),
            (&ascending, 0x46DD_794E),
            (b"123456789", 0xE306_9283),
            (b"", 0),
        ] {
            assert_eq!(crc32c(data), expected);
            assert_eq!(reference(0, data), expected);
            for tier in tiers() {
                assert_eq!(tier.append(0, data), Some(expected), "{tier:?}");
            }
        }
    }

    fn same_for_every_length_and_alignment(tier: Tier) {
        const LONGEST: usize = 700;
        if !can_run(tier) {
            return;
        }
        let data = bytes(LONGEST + 64);
        for len in 0..=LONGEST {
            // All alignments where a loop could begin or end; some elsewhere.
            let step = if len < 80 || len % 32 < 2 { 1 } else { 13 };
            for start in (0..64).step_by(step) {
                let part = &data[start..start + len];
                let expected = Some(::crc32c::crc32c(part));
                assert_eq!(tier.append(0, part), expected, "{len} bytes at {start}");
                assert_eq!(Some(crc32c(part)), expected);
            }
        }
    }

    #[test]
    fn the_instruction_gives_the_same_for_every_length_and_alignment() {
        same_for_every_length_and_alignment(Tier::Sse42);
    }

    #[test]
    fn folding_gives_the_same_for_every_length_and_alignment() {
        same_for_every_length_and_alignment(Tier::Vpclmulqdq);
    }

    proptest! {
        #[test]
        fn every_tier_equals_the_definition_and_goes_on_anywhere(
            seed in any::<u32>(),
            data in proptest::collection::vec(any::<u8>(), 0..1500),
            cut in 0usize..1500,
        ) {
            let expected = reference(seed, &data);
            let (early, late) = data.split_at(cut.min(data.len()));
            for tier in tiers() {
                prop_assert_eq!(tier.append(seed, &data), Some(expected));
                let first = tier.append(seed, early).unwrap_or_default();
                prop_assert_eq!(tier.append(first, late), Some(expected));
            }
            prop_assert_eq!(append(append(seed, early), late), expected);
        }
    }
}
