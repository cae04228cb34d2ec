//! What the running kernel's BTF says: where a field is in a structure, and the numbers by which
//! functions and tracepoints are named.
//!
//! aya-ebpf relocates nothing, so programs that read kernel structures have the offsets as globals,
//! and the loader fills these in. Format: `Documentation/bpf/btf.rst`. Reads
//! `/sys/kernel/btf/vmlinux` once (6 MB); malformed bytes are an error, never a panic.

use std::fs;
use std::io;
use std::path::Path;

/// Why there are no offsets.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("reading {}: {source}", path.display())]
    Read {
        path: std::path::PathBuf,
        source: io::Error,
    },
    #[error("the kernel's BTF is malformed at byte {at}")]
    Malformed { at: usize },
}

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const FUNC: u32 = 12;
/// Typedef, volatile, const, type tag: the type behind is meant.
const WRAPPERS: [u32; 4] = [8, 9, 10, 18];

/// The running kernel's types.
#[derive(Debug)]
pub struct KernelTypes {
    bytes: Vec<u8>,
    /// Where each type begins; type 0 is void.
    types: Vec<usize>,
    strings: usize,
}

/// Where a member is, from the beginning of the structure that was asked for.
#[derive(Clone, Copy, Debug)]
struct Member {
    bits: u32,
    type_: u32,
    is_bit_field: bool,
}

impl KernelTypes {
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let bytes = fs::read(path).map_err(|source| BtfError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(bytes)
    }

    fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let word = |at: usize| word(&bytes, at);
        let malformed = |at| BtfError::Malformed { at };
        if bytes.get(..2) != Some(&MAGIC.to_le_bytes()) {
            return Err(malformed(0));
        }
        let header = word(4).ok_or(malformed(4))? as usize;
        let field = |at| word(at).map(|value| value as usize).ok_or(malformed(at));
        let (start, len) = (header + field(8)?, field(12)?);
        let strings = header + field(16)?;
        let mut types = vec![start];
        let mut at = start;
        while at < start + len {
            types.push(at);
            let info = word(at + 4).ok_or(malformed(at))?;
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            at += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    STRUCT | UNION | 15 | 19 => 12 * members,
                    6 | 13 => 8 * members,
                    2 | 7..=12 | 16 | 18 => 0,
                    _ => return Err(malformed(at)),
                };
        }
        Ok(Self {
            bytes,
            types,
            strings,
        })
    }

    /// Bytes from the beginning of `structure` to the field that `path` names (`a.b` for a member of a member); `None` if this
    /// kernel has no such field, or it is a bit field.
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let found = self.locate(structure, path)?;
        (!found.is_bit_field && found.bits % 8 == 0).then_some(found.bits / 8)
    }

    /// As [`KernelTypes::offset`], in bits, and of bit fields too.
    pub fn bit_offset(&self, structure: &str, path: &str) -> Option<u32> {
        Some(self.locate(structure, path)?.bits)
    }

    /// The number of the function of this name: what a program is loaded for that goes there.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.named(FUNC, name)
    }

    /// The number of a tracepoint, by which a `tp_btf` program is loaded for it.
    pub fn tracepoint(&self, name: &str) -> Option<u32> {
        self.named(TYPEDEF, &format!("btf_trace_{name}"))
    }

    fn locate(&self, structure: &str, path: &str) -> Option<Member> {
        let mut found = Member {
            bits: 0,
            type_: self.structure(structure)?,
            is_bit_field: false,
        };
        for name in path.split('.') {
            let member = self.member(found.type_, name)?;
            found = Member {
                bits: found.bits + member.bits,
                ..member
            };
        }
        Some(found)
    }

    fn structure(&self, name: &str) -> Option<u32> {
        self.named(STRUCT, name)
    }

    fn named(&self, kind: u32, name: &str) -> Option<u32> {
        (1..self.types.len() as u32)
            .find(|id| self.kind(*id) == Some(kind) && self.is_named(self.at(*id), name))
    }

    /// A member by its name; members of anonymous members count.
    fn member(&self, of: u32, name: &str) -> Option<Member> {
        let of = self.unwrapped(of)?;
        if !matches!(self.kind(of), Some(STRUCT | UNION)) {
            return None;
        }
        let at = self.at(of);
        let info = self.word(at + 4)?;
        for member in 0..(info & 0xffff) as usize {
            let at = at + 12 + 12 * member;
            let (named, type_, offset) = (self.word(at)?, self.word(at + 4)?, self.word(at + 8)?);
            let has_bit_fields = info >> 31 == 1;
            let found = Member {
                bits: if has_bit_fields {
                    offset & 0xff_ffff
                } else {
                    offset
                },
                type_,
                is_bit_field: has_bit_fields && offset >> 24 != 0,
            };
            if named == 0 {
                if let Some(inner) = self.member(type_, name) {
                    return Some(Member {
                        bits: found.bits + inner.bits,
                        ..inner
                    });
                }
            } else if self.is_named(at, name) {
                return Some(found);
            }
        }
        None
    }

    fn unwrapped(&self, mut id: u32) -> Option<u32> {
        // Types can't wrap each other in a circle, but malformed ones could.
        for _ in 0..16 {
            if !WRAPPERS.contains(&self.kind(id)?) {
                return Some(id);
            }
            id = self.word(self.at(id) + 8)?;
        }
        None
    }

    fn at(&self, id: u32) -> usize {
        self.types
            .get(id as usize)
            .copied()
            .unwrap_or(usize::MAX / 2)
    }

    fn kind(&self, id: u32) -> Option<u32> {
        Some(self.word(self.at(id) + 4)? >> 24 & 0x1f)
    }

    /// Whether what begins at `at` (a type or a member) has this name.
    fn is_named(&self, at: usize, name: &str) -> bool {
        let found = self.word(at).and_then(|offset| {
            let start = self.strings + offset as usize;
            self.bytes.get(start..start + name.len() + 1)
        });
        found.is_some_and(|found| found.split_last() == Some((&0, name.as_bytes())))
    }

    fn word(&self, at: usize) -> Option<u32> {
        word(&self.bytes, at)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF of these words as types, with these strings.
    fn btf(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let len = types.len() as u32 * 4;
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, len, len, strings.len() as u32] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(types.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(strings);
        bytes
    }

    /// int i; struct in { int i }; struct s { int a; union { int b; struct in in; } } with 32 bits before the union.
    fn sample() -> KernelTypes {
        let types = [
            [1, 1 << 24, 4].as_slice(),
            &[0x20],
            &[3, STRUCT << 24 | 1, 4, 1, 1, 0],
            &[0, UNION << 24 | 2, 4, 8, 1, 0, 3, 2, 0],
            &[6, STRUCT << 24 | 2, 8, 10, 1, 0, 0, 3, 32],
        ];
        KernelTypes::parse(btf(&types.concat(), b"\0i\0in\0s\0b\0a\0")).expect("parses")
    }

    #[test]
    fn a_member_is_found_through_anonymous_ones_and_paths() {
        let types = sample();
        assert_eq!(types.offset("s", "a"), Some(0));
        assert_eq!(types.offset("s", "b"), Some(4));
        assert_eq!(types.offset("s", "in.i"), Some(4));
        assert_eq!(types.offset("s", "c"), None);
        assert_eq!(types.offset("s", "a.i"), None);
        assert_eq!(types.offset("t", "a"), None);
    }

    /// struct s { unsigned a : 3; unsigned b : 1 }.
    #[test]
    fn a_bit_field_has_bits_and_no_bytes() {
        let types = [
            [1, 1 << 24, 4].as_slice(),
            &[0x20],
            &[1, 1 << 31 | STRUCT << 24 | 2, 4],
            &[3, 1, 3 << 24, 5, 1, 1 << 24 | 3],
        ];
        let types = KernelTypes::parse(btf(&types.concat(), b"\0s\0a\0b\0")).expect("parses");
        assert_eq!(types.bit_offset("s", "b"), Some(3));
        assert_eq!(types.offset("s", "b"), None);
        assert_eq!(types.bit_offset("s", "a"), Some(0));
        assert_eq!(types.bit_offset("s", "c"), None);
    }

    #[test]
    fn malformed_bytes_are_an_error_or_nothing() {
        assert!(KernelTypes::parse(Vec::new()).is_err());
        let whole = btf(&[6, STRUCT << 24 | 2, 8, 10, 1, 0, 0, 3, 32], b"\0");
        for len in 0..whole.len() {
            if let Ok(types) = KernelTypes::parse(whole[..len].to_vec()) {
                assert_eq!(types.offset("s", "a"), None);
            }
        }
    }

    /// void f(); typedef f btf_trace_e, with a structure of the function's name before both.
    #[test]
    fn functions_and_tracepoints_have_numbers_of_their_own() {
        let types = [
            [1, STRUCT << 24, 0].as_slice(),
            &[0, 13 << 24, 0],
            &[1, FUNC << 24, 2],
            &[3, TYPEDEF << 24, 2],
        ];
        let types =
            KernelTypes::parse(btf(&types.concat(), b"\0f\0btf_trace_e\0")).expect("parses");
        assert_eq!(types.function("f"), Some(3));
        assert_eq!(types.tracepoint("e"), Some(4));
        assert_eq!(types.function("btf_trace_e"), None);
        assert_eq!(types.tracepoint("f"), None);
    }
}
