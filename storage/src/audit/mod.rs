//! The audit chain: what makes an edit, a gap, a swap or a removal in the record show.
//!
//! Every row of the record, in each version it ever had, is one *entry* of one chain: the hash of the entry before it
//! and the hash of the row's content. What is committed together ends with a *signed head* (Ed25519), and the last
//! head also stands in a file of its own, so that a tail cut off is found. A row that is forgotten takes its entries
//! with it; a signed *checkpoint* stands in for them.
//!
//! What it can't do: whoever holds the private key (`audit.key`, mode 0600, of agentd's own user) can write a new
//! chain. Against that helps only a head or a public key that was noted elsewhere: `agentctl audit head`, `key`.
//!
//! Runs in the writer, inside its transactions (`chain`, `forget`), and on a read-only connection (`verify`). It never
//! decides what is recorded. Start reading at [`content`], then [`chain`], then [`verify`].

pub(crate) mod chain;
pub(crate) mod content;
pub(crate) mod forget;
mod head;
mod key;
mod note;
mod verify;

use std::fmt::Write as _;

pub use head::{Head, NotedHead, NotedHeadError};
pub use key::{KeyError, PublicKey};
pub use note::{Note, NoteKind};
pub use verify::{Finding, FindingKind, Folded, Verification, Verify, verify};

/// A SHA-256 digest.
pub(crate) type Hash = [u8; 32];

/// What the first entry's predecessor would have been.
pub(crate) const GENESIS: Hash = [0; 32];

pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string can't fail.
        write!(text, "{byte:02x}").unwrap_or_default();
    }
    text
}

/// Exactly `N` bytes from twice as many hex digits.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}
