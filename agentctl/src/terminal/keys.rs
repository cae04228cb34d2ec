//! The keys that leave an agent running and give the terminal back.

use std::str::FromStr;

/// A sequence of key bytes to watch for; empty means none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// The text names no key sequence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no key; allowed: letters and digits, ctrl-a to ctrl-z, ctrl-@ ctrl-[ ctrl-\\ ctrl-] ctrl-^ ctrl-_, separated by commas, or none"
)]
pub struct DetachKeysError(String);

impl FromStr for DetachKeys {
    type Err = DetachKeysError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s == "none" || s.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let key = |word: &str| {
            let control = word.strip_prefix("ctrl-").map(str::as_bytes);
            match (control, word.as_bytes()) {
                (Some(&[c @ b'a'..=b'z']), _) => Some(c - b'a' + 1),
                (Some(&[c @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]), _) => Some(c & 0x1f),
                (None, &[c]) if c.is_ascii_graphic() => Some(c),
                _ => None,
            }
        };
        let keys = s
            .split(',')
            .map(|word| key(word).ok_or_else(|| DetachKeysError(word.to_owned())));
        keys.collect::<Result<_, _>>().map(Self)
    }
}

/// Watches typed bytes for the keys. What may be their beginning is held back until it is clear.
#[derive(Debug)]
pub struct KeyWatch {
    keys: Vec<u8>,
    matched: usize,
}

/// What became of some typed bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Watched {
    /// Nothing of note; the bytes are in the output.
    Pass,
    /// The keys were typed; what came before them is in the output.
    Detach,
}

impl KeyWatch {
    pub fn new(keys: &DetachKeys) -> Self {
        Self {
            keys: keys.0.clone(),
            matched: 0,
        }
    }

    /// Appends to `out` what of `typed` is for the program.
    pub fn feed(&mut self, typed: &[u8], out: &mut Vec<u8>) -> Watched {
        if self.keys.is_empty() {
            out.extend_from_slice(typed);
            return Watched::Pass;
        }
        for &byte in typed {
            // Fall back to the longest beginning that still fits, and let go of the rest.
            while self.matched > 0 && byte != self.keys[self.matched] {
                let shorter = self.fallback();
                out.extend_from_slice(&self.keys[..self.matched - shorter]);
                self.matched = shorter;
            }
            if byte != self.keys[self.matched] {
                out.push(byte);
                continue;
            }
            self.matched += 1;
            if self.matched == self.keys.len() {
                self.matched = 0;
                return Watched::Detach;
            }
        }
        Watched::Pass
    }

    /// Length of the longest proper suffix of what has matched that is a beginning of the keys.
    fn fallback(&self) -> usize {
        let held = &self.keys[..self.matched];
        (1..self.matched)
            .rev()
            .find(|&n| self.keys[..n] == held[self.matched - n..])
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(keys: &str) -> KeyWatch {
        KeyWatch::new(&keys.parse().expect("valid keys"))
    }

    #[test]
    fn keys_as_docker_writes_them() {
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(DetachKeys(vec![16, 17])));
        assert_eq!("ctrl-],a".parse(), Ok(DetachKeys(vec![0x1d, b'a'])));
        assert_eq!("none".parse(), Ok(DetachKeys(vec![])));
        for wrong in ["ctrl-", "ctrl-pp", "f1", "ctrl-p,", "ä"] {
            assert!(wrong.parse::<DetachKeys>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_detach_even_when_split_over_reads() {
        let mut watch = watch("ctrl-p,ctrl-q");
        let mut out = Vec::new();
        assert_eq!(watch.feed(b"ab\x10", &mut out), Watched::Pass);
        assert_eq!(out, b"ab");
        assert_eq!(watch.feed(b"\x11", &mut out), Watched::Detach);
        assert_eq!(out, b"ab");
    }

    #[test]
    fn a_beginning_that_leads_nowhere_reaches_the_program() {
        let mut watch = watch("ctrl-p,ctrl-q");
        let mut out = Vec::new();
        assert_eq!(watch.feed(b"\x10\x10x\x10", &mut out), Watched::Pass);
        assert_eq!(out, b"\x10\x10x");
        assert_eq!(watch.feed(b"y", &mut out), Watched::Pass);
        assert_eq!(out, b"\x10\x10x\x10y");
    }

    #[test]
    fn overlapping_beginnings_are_not_missed() {
        let mut watch = watch("a,a,b");
        let mut out = Vec::new();
        assert_eq!(watch.feed(b"aaab", &mut out), Watched::Detach);
        assert_eq!(out, b"a");
    }
}
