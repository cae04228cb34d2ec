//! Reading and writing the little-endian fields inside payloads.
//!
//! Pure; a short or over-long input is a [`MessageError`], never a panic and never a truncation.

#![forbid(unsafe_code)]

use crate::message::MessageError;

/// A cursor over untrusted bytes.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(
        &mut self,
        len: usize,
        what: &'static str,
    ) -> Result<&'a [u8], MessageError> {
        match self.rest.split_at_checked(len) {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(head)
            }
            None => Err(MessageError::Short {
                what,
                need: len,
                have: self.rest.len(),
            }),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], MessageError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N, what)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, MessageError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, MessageError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, MessageError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, MessageError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn id(&mut self, what: &'static str) -> Result<[u8; 16], MessageError> {
        self.array(what)
    }

    /// UTF-8 text of `len` bytes, at most `limit`.
    pub(crate) fn text(
        &mut self,
        len: usize,
        limit: usize,
        what: &'static str,
    ) -> Result<&'a str, MessageError> {
        check_len(len, limit, what)?;
        std::str::from_utf8(self.bytes(len, what)?).map_err(|_| MessageError::NotUtf8 { what })
    }

    /// A field that this version does not use: other than 0 is refused, so that it can be used later.
    pub(crate) fn zero(&mut self, len: usize, what: &'static str) -> Result<(), MessageError> {
        if self.bytes(len, what)?.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err(MessageError::Reserved { what })
        }
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Refuses bytes after the last field.
    pub(crate) fn finish(self, what: &'static str) -> Result<(), MessageError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(MessageError::Trailing {
                what,
                extra: self.rest.len(),
            })
        }
    }
}

pub(crate) fn check_len(len: usize, limit: usize, what: &'static str) -> Result<(), MessageError> {
    if len > limit {
        Err(MessageError::TooLong { what, len, limit })
    } else {
        Ok(())
    }
}
