//! A provider's key in memory: wiped when dropped, never printed, never compared by anything but a scan for leaks.
//!
//! The bytes leave this type only as a header value marked sensitive, which hyper keeps out of its own debug output.

use std::fmt;

use http::HeaderValue;
use memchr::memmem;
use zeroize::Zeroizing;

/// A key or token.
pub struct Secret(Zeroizing<String>);

/// What stands where a key was found.
const REDACTED: &str = "[redacted]";

impl Secret {
    /// Takes the first line of `text`, trimmed. `None` when it is empty or can't stand in a header.
    pub fn new(text: Zeroizing<String>) -> Option<Self> {
        let line = text.lines().next().unwrap_or_default().trim();
        let fits = !line.is_empty() && line.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(Zeroizing::new(line.to_owned())))
    }

    /// The header value `PREFIX + key`, marked sensitive.
    pub fn header(&self, prefix: &str) -> HeaderValue {
        let text = Zeroizing::new(format!("{prefix}{}", *self.0));
        let mut value = HeaderValue::from_str(&text).expect("a secret holds only graphic ASCII");
        value.set_sensitive(true);
        value
    }

    /// `text` with every occurrence of the key replaced: a provider may quote the key in an error.
    pub fn redact(&self, text: &[u8]) -> Option<Vec<u8>> {
        let finder = memmem::Finder::new(self.0.as_bytes());
        let mut found = finder.find_iter(text).peekable();
        found.peek()?;
        let mut out = Vec::with_capacity(text.len());
        let mut from = 0;
        for at in found {
            out.extend_from_slice(&text[from..at]);
            out.extend_from_slice(REDACTED.as_bytes());
            from = at + self.0.len();
        }
        out.extend_from_slice(&text[from..]);
        Some(out)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Option<Secret> {
        Secret::new(Zeroizing::new(text.to_owned()))
    }

    #[test]
    fn only_the_first_line_counts_and_it_must_fit_a_header() {
        let s = secret(" sk-1 \nsecond\n").unwrap();
        assert_eq!(s.header("Bearer ").to_str().unwrap(), "Bearer sk-1");
        assert!(s.header("").is_sensitive());
        for bad in ["", "\nsk-1", "two words", "a\u{7f}b", "schlüssel"] {
            assert!(secret(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn debug_shows_nothing_of_it() {
        assert_eq!(
            format!("{:?}", secret("sk-1").unwrap()),
            "Secret([redacted])"
        );
    }

    #[test]
    fn every_occurrence_is_redacted() {
        let s = secret("sk-1").unwrap();
        assert_eq!(
            s.redact(b"bad key sk-1sk-1!").unwrap(),
            b"bad key [redacted][redacted]!"
        );
        assert!(s.redact(b"sk-2").is_none());
    }
}
