//! A provider's key in memory: wiped when dropped, never printed, never compared by anything but a scan for leaks.
//!
//! The bytes leave this type only as a header value marked sensitive, which hyper keeps out of its own debug output.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use http::HeaderValue;
use memchr::memmem;
use zeroize::Zeroizing;

use super::config::KeySource;

/// Why a secret can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the daemon's environment has no {0}")]
    Env(String),
    #[error(
        "no $CREDENTIALS_DIRECTORY for the credential {0}; add LoadCredential={0}:PATH to the unit"
    )]
    NoCredentials(String),
    #[error("the first line of {0} is not a secret (one word of printable ASCII)")]
    Form(String),
}

/// Reads a secret from where the configuration says; `None` for none.
///
/// # Errors
/// [`SecretError`], which never holds the secret.
pub fn read_secret(
    source: &KeySource,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<Secret>, SecretError> {
    let from_file = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok((Zeroizing::new(text), path.display().to_string())),
        Err(source) => Err(SecretError::File { path, source }),
    };
    let (text, origin) = match source {
        KeySource::None => return Ok(None),
        KeySource::File(path) => from_file(path.clone())?,
        KeySource::Env(name) => {
            let value = env(name).ok_or_else(|| SecretError::Env(name.clone()))?;
            (
                Zeroizing::new(value.into_string().unwrap_or_default()),
                format!("${name}"),
            )
        }
        KeySource::Credential(name) => {
            let dir = env("CREDENTIALS_DIRECTORY")
                .ok_or_else(|| SecretError::NoCredentials(name.clone()))?;
            from_file(Path::new(&dir).join(name))?
        }
    };
    Secret::new(text).map(Some).ok_or(SecretError::Form(origin))
}

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

    /// The value of an `authorization` header of the Basic kind (RFC 7617), marked sensitive.
    pub fn basic(&self, user: &str) -> HeaderValue {
        let pair = Zeroizing::new(format!("{user}:{}", *self.0));
        let text = base64::engine::general_purpose::STANDARD.encode(pair.as_bytes());
        let text = Zeroizing::new(format!("Basic {text}"));
        let mut value = HeaderValue::from_str(&text).expect("base64 is graphic ASCII");
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
