//! The key pair that signs heads and checkpoints: `audit.key` (PKCS#8, mode 0600) and `audit.pub` (hex) in the state
//! directory, made at the first start and never overwritten.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use ring::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};

use super::{hex, unhex};

const PRIVATE: &str = "audit.key";
const PUBLIC: &str = "audit.pub";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The private key can't be read or made.
    #[error("can't read or make the record's signing key {}: {source}; it must be a file of agentd's own user with mode 0600", path.display())]
    Private {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read or write the private key.
    #[error("others may read or write the record's signing key {}; `chmod 600` it, and if somebody may have read it, move it away and a new one is made, which the record then notes", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// The private key's file holds something else.
    #[error("{} holds no Ed25519 key; put the right file back, or move it away and a new key is made, which the record then notes", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The public key can't be read or written.
    #[error("can't read or write the record's public key {}: {source}; name it with --key (`agentctl audit key` prints it)", path.display())]
    Public {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not 64 hex digits.
    #[error("`{0}` is no public key; it has 64 hex digits, as `agentctl audit key` prints them")]
    NotAKey(String),
}

/// The public half, which is all that verifying needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The public key in the folder of the database `record`.
    ///
    /// # Errors
    /// [`KeyError::Public`] where it can't be read, [`KeyError::NotAKey`] where it is none.
    pub fn beside(record: &Path) -> Result<Self, KeyError> {
        let path = record.with_file_name(PUBLIC);
        let text = fs::read_to_string(&path).map_err(|source| KeyError::Public { path, source })?;
        text.trim().parse()
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, self.0);
        key.verify(message, signature).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = unhex(text).ok_or_else(|| KeyError::NotAKey(text.to_owned()))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Whether the pair was there or has just been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Found,
    Made,
}

/// The pair.
pub(crate) struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// The key in the folder of the database `record`, made if there is none.
    pub(crate) fn beside(record: &Path) -> Result<(Self, Origin), KeyError> {
        let path = record.with_file_name(PRIVATE);
        let (document, origin) = match read(&path) {
            Ok(Some(document)) => (document, Origin::Found),
            Ok(None) => return Err(KeyError::Exposed { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = make(&path);
                (
                    made.map_err(|source| KeyError::Private {
                        path: path.clone(),
                        source,
                    })?,
                    Origin::Made,
                )
            }
            Err(source) => return Err(KeyError::Private { path, source }),
        };
        let pair =
            Ed25519KeyPair::from_pkcs8(&document).map_err(|_rejected| KeyError::NoKey { path })?;
        let mut bytes = [0; 32];
        bytes.copy_from_slice(pair.public_key().as_ref());
        let key = Self {
            pair,
            public: PublicKey(bytes),
        };
        publish(&record.with_file_name(PUBLIC), key.public)?;
        Ok((key, origin))
    }

    pub(crate) fn public(&self) -> PublicKey {
        self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }
}

/// The key's file; `None` where others than its owner have any right to it.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Ok(None);
    }
    let mut document = Vec::new();
    file.read_to_end(&mut document)?;
    Ok(Some(document))
}

/// Makes a key and the file for it, which was not there a moment ago. A power cut leaves the whole key or none.
fn make(path: &Path) -> io::Result<Vec<u8>> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .map_err(|_no_randomness| io::Error::other("the kernel gave no randomness"))?;
    let half = path.with_extension("key.new");
    // Left over from a crash in the middle of this.
    remove(&half)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&half)?;
    file.write_all(document.as_ref())?;
    file.sync_all()?;
    // The record's lock is held, so nobody else makes one; agentd's own filter leaves it no `link`.
    fs::rename(&half, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(document.as_ref().to_vec())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes the public half where it is not there yet. One that differs is left for `verify` to find.
fn publish(path: &Path, key: PublicKey) -> Result<(), KeyError> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| writeln!(file, "{key}"));
    match made {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(KeyError::Public {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
