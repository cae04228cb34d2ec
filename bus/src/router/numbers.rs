//! Maps by numbers that the bus itself gives: connections, requests, queues, agents' ids.
//!
//! Nobody outside chooses these keys, so nobody can make them collide, and a hash of one folded multiplication does. What agents
//! choose (topics, names, their correlation ids) is hashed with a secret, by the standard library. Pure; can't fail.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map whose keys the bus gave.
pub(crate) type ByNumber<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// One multiplication for each eight bytes, its upper half folded into the lower.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NumberHasher(u64);

/// 2^64 divided by the golden ratio: neighbouring numbers end up far apart.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

impl Hasher for NumberHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0.rotate_left(5) ^ number) * u128::from(SPREAD);
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    /// The length in front of an array is the same for all keys of a map.
    #[inline]
    fn write_usize(&mut self, _length: usize) {}

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;
    use crate::frame::PeerId;

    fn spread(hashes: impl Iterator<Item = u64>) -> (usize, usize) {
        let hashes: Vec<u64> = hashes.collect();
        let places: HashSet<u64> = hashes.iter().map(|hash| hash & 0x3FF).collect();
        let tags: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
        (places.len(), tags.len())
    }

    #[test]
    fn neighbouring_numbers_get_places_and_tags_of_their_own() {
        let build = BuildHasherDefault::<NumberHasher>::default();
        for (places, tags) in [
            spread((0..1024u32).map(|n| build.hash_one(n))),
            spread((0..1024u64).map(|n| build.hash_one(n))),
            spread((0..1024u64).map(|n| {
                let mut id = [7; 16];
                id[..8].copy_from_slice(&n.to_le_bytes());
                build.hash_one(PeerId(id))
            })),
            spread((0..1024u64).map(|n| {
                let mut id = [7; 16];
                id[8..].copy_from_slice(&n.to_be_bytes());
                build.hash_one(PeerId(id))
            })),
        ] {
            assert!(places > 500, "{places} of 1024 places");
            assert!(tags > 100, "{tags} of 128 tags");
        }
    }
}
