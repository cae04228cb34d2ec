//! The head of the chain: its last entry's number and link, when it was written, and the signature over that. A copy
//! of the last one stands in a file beside the database, so that a record with its tail cut off is found out.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    Hash, hex,
    key::{PublicKey, SigningKey},
    unhex,
};

const MAGIC: &str = "agentd-head-1";

/// A signed head.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub(crate) n: u64,
    pub(crate) link: Hash,
    pub(crate) at_ms: i64,
    pub(crate) signature: [u8; 64],
}

impl Head {
    pub(crate) fn signed(n: u64, link: Hash, at_ms: i64, key: &SigningKey) -> Self {
        let signature = key.sign(&message(n, &link, at_ms));
        Self {
            n,
            link,
            at_ms,
            signature,
        }
    }

    /// Number of the entry it stands on.
    pub fn entry(&self) -> u64 {
        self.n
    }

    /// When it was committed, ms since the epoch.
    pub fn at_ms(&self) -> i64 {
        self.at_ms
    }

    /// What an operator notes: `NUMBER:HASH`.
    pub fn noted(&self) -> NotedHead {
        NotedHead {
            n: Some(self.n),
            link: self.link,
        }
    }

    /// Whether `key` signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.verifies(&message(self.n, &self.link, self.at_ms), &self.signature)
    }

    /// The last head on file beside the database `record`: none where there is no file or no whole head in it.
    ///
    /// # Errors
    /// The file is there and can't be read.
    pub fn beside(record: &Path) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(path_of(record)) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Of the same length for every head, so that one write replaces all of the one before.
    fn line(&self) -> String {
        format!(
            "{MAGIC} {:020} {} {:020} {}\n",
            self.n,
            hex(&self.link),
            self.at_ms,
            hex(&self.signature)
        )
    }

    /// A head from the line that stands in the file.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim().split(' ');
        if words.next()? != MAGIC {
            return None;
        }
        let head = Self {
            n: words.next()?.parse().ok()?,
            link: unhex(words.next()?)?,
            at_ms: words.next()?.parse().ok()?,
            signature: unhex(words.next()?)?,
        };
        words.next().is_none().then_some(head)
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.line().trim_end())
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({})", self.noted())
    }
}

fn message(n: u64, link: &Hash, at_ms: i64) -> Vec<u8> {
    let mut message = b"agentd head 1\0".to_vec();
    message.extend(n.to_be_bytes());
    message.extend(link);
    message.extend(at_ms.to_be_bytes());
    message
}

/// A head as somebody wrote it down: `NUMBER:HASH`, or the hash alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotedHead {
    pub(crate) n: Option<u64>,
    pub(crate) link: Hash,
}

/// Not a noted head.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no head; it is NUMBER:HASH as `agentctl audit head` prints it, or the 64 hex digits alone"
)]
pub struct NotedHeadError(String);

impl FromStr for NotedHead {
    type Err = NotedHeadError;

    fn from_str(text: &str) -> Result<Self, NotedHeadError> {
        let wrong = || NotedHeadError(text.to_owned());
        let (n, link) = match text.split_once(':') {
            Some((n, link)) => (Some(n.parse().map_err(|_nan| wrong())?), link),
            None => (None, text),
        };
        let link = unhex(link).ok_or_else(wrong)?;
        Ok(Self { n, link })
    }
}

impl fmt::Display for NotedHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(n) = self.n {
            write!(f, "{n}:")?;
        }
        f.write_str(&hex(&self.link))
    }
}

/// Of a database file, the file of its head.
pub(crate) fn path_of(record: &Path) -> PathBuf {
    let mut name = record.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

/// The open file. Each head is one write over the one before; a power cut may leave an older head, never a newer one
/// than the database holds, because it is written after the COMMIT. The first one is synced, so that there is one for ever.
pub(crate) struct HeadFile {
    file: File,
    synced: bool,
}

impl HeadFile {
    pub(crate) fn open(record: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path_of(record))?;
        Ok(Self {
            file,
            synced: false,
        })
    }

    pub(crate) fn write(&mut self, head: &Head) -> io::Result<()> {
        self.file.write_all_at(head.line().as_bytes(), 0)?;
        if !self.synced {
            self.file.sync_all()?;
            self.synced = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_as_it_was_written_and_a_torn_one_is_none() {
        let head = Head {
            n: 17,
            link: [3; 32],
            at_ms: 1_700_000_000_000,
            signature: [9; 64],
        };
        let line = head.line();
        assert_eq!(Head::parse(&line), Some(head));
        for end in 0..line.len() - 1 {
            assert_eq!(Head::parse(&line[..end]), None, "{}", &line[..end]);
        }
        let later = Head {
            n: u64::MAX,
            at_ms: i64::MAX,
            ..head
        };
        assert_eq!(line.len(), later.line().len());
    }

    #[test]
    fn noted_heads_are_read_with_and_without_their_number() {
        let hash = "ab".repeat(32);
        let noted: NotedHead = format!("12:{hash}").parse().expect("a head");
        assert_eq!((noted.n, noted.link), (Some(12), [0xab; 32]));
        assert_eq!(noted.to_string(), format!("12:{hash}"));
        let bare: NotedHead = hash.parse().expect("a head");
        assert_eq!(bare.n, None);
        for wrong in ["", "12:", "x:ab", &hash[1..], &format!("-1:{hash}")] {
            assert!(wrong.parse::<NotedHead>().is_err(), "{wrong}");
        }
    }
}
