//! Keys in files: one line, `SCHEME ID HEX`, for example `aes-256-gcm 7 0f3a…` (64 digits), or
//! `ed25519-public 7 …`.
//!
//! A file with a secret must be this user's (or root's) and closed to everyone else; a public key
//! must only not be writable by others. The kernel is asked about the open descriptor, never about
//! a path, and symbolic links are not followed. Blocks only as reading a file does.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::key::{Key, KeyError, KeyId, Scheme};

/// More than any key takes.
const FILE_MAX: u64 = 256;
const PUBLIC: &str = "ed25519-public";

/// Why there is no key in a file. Never says what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("{call} key file {}: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{}: a key is read from a file or a pipe, and this is neither", path.display())]
    Kind { path: PathBuf },
    #[error(
        "{}: belongs to uid {found}; a key file must belong to uid {expected} or root", path.display()
    )]
    Owner {
        path: PathBuf,
        found: u32,
        expected: u32,
    },
    #[error(
        "{}: mode {mode:04o} lets others {what}; run chmod {fix:o} {}", path.display(), path.display()
    )]
    Mode {
        path: PathBuf,
        mode: u32,
        what: &'static str,
        fix: u32,
    },
    #[error(
        "{}: not a key; expected one line SCHEME ID HEX with the scheme hmac-sha-256, aes-256-gcm, ed25519 or {PUBLIC}, an id from 0 to 4294967295 and 64 hexadecimal digits",
        path.display()
    )]
    Syntax { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Key { path: PathBuf, source: KeyError },
}

impl Key {
    /// Reads a key from the file at `path`.
    pub fn from_file(path: &Path) -> Result<Self, KeyFileError> {
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(|source| KeyFileError::Io {
                call: "open",
                path: path.to_owned(),
                source,
            })?;
        read(file, path)
    }

    /// Reads a key from a descriptor that this process was given, for example a memfd or a pipe.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, KeyFileError> {
        read(File::from(fd), Path::new("descriptor"))
    }

    /// Makes a key, writes its secret to a new file that only this user can read, and for a pair the public half to `PATH.pub`.
    pub fn generate_file(scheme: Scheme, id: KeyId, path: &Path) -> Result<Self, KeyFileError> {
        let (key, secret) = Self::generate(scheme, id).map_err(|source| KeyFileError::Key {
            path: path.to_owned(),
            source,
        })?;
        write_new(path, 0o600, &line(scheme.as_str(), id, &secret))?;
        if let Some(public) = key.public() {
            let mut name = path.as_os_str().to_owned();
            name.push(".pub");
            write_new(Path::new(&name), 0o644, &line(PUBLIC, id, &public))?;
        }
        Ok(key)
    }
}

fn line(word: &str, id: KeyId, bytes: &[u8; 32]) -> Zeroizing<String> {
    // Reserved whole: growing would leave copies behind.
    let mut out = Zeroizing::new(String::with_capacity(FILE_MAX as usize));
    out.push_str(&format!("{word} {id} "));
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(digit), 16).expect("four bits"));
        }
    }
    out.push('\n');
    out
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), KeyFileError> {
    let failed = |call| {
        move |source| KeyFileError::Io {
            call,
            path: path.to_owned(),
            source,
        }
    };
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed("create"))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed("write"))
}

fn read(file: File, path: &Path) -> Result<Key, KeyFileError> {
    let failed = |call| {
        move |source| KeyFileError::Io {
            call,
            path: path.to_owned(),
            source,
        }
    };
    let status = file.metadata().map_err(failed("stat"))?;
    let kind = status.file_type();
    if !kind.is_file() && !kind.is_fifo() {
        return Err(KeyFileError::Kind {
            path: path.to_owned(),
        });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_MAX as usize + 1));
    file.take(FILE_MAX + 1)
        .read_to_end(&mut text)
        .map_err(failed("read"))?;
    let (word, id, bytes) = parse(&text).ok_or_else(|| KeyFileError::Syntax {
        path: path.to_owned(),
    })?;
    let expected = rustix::process::geteuid().as_raw();
    if status.uid() != expected && status.uid() != 0 {
        return Err(KeyFileError::Owner {
            path: path.to_owned(),
            found: status.uid(),
            expected,
        });
    }
    // What has no name (a memfd, an unlinked file, a pipe) is reached through its descriptor alone.
    let is_named = status.nlink() > 0 && kind.is_file();
    let (closed, what, fix) = if word == PUBLIC {
        (0o022, "write it", 0o644)
    } else {
        (0o077, "read or write it", 0o600)
    };
    let mode = status.mode() & 0o7777;
    if is_named && mode & closed != 0 {
        return Err(KeyFileError::Mode {
            path: path.to_owned(),
            mode,
            what,
            fix,
        });
    }
    if word == PUBLIC {
        return Ok(Key::from_public(id, *bytes));
    }
    let scheme = [Scheme::HmacSha256, Scheme::Ed25519, Scheme::Aes256Gcm]
        .into_iter()
        .find(|scheme| scheme.as_str() == word)
        .ok_or_else(|| KeyFileError::Syntax {
            path: path.to_owned(),
        })?;
    Key::from_secret(scheme, id, &bytes).map_err(|source| KeyFileError::Key {
        path: path.to_owned(),
        source,
    })
}

/// The three words of the line.
fn parse(text: &[u8]) -> Option<(&str, KeyId, Zeroizing<[u8; 32]>)> {
    let text = std::str::from_utf8(text).ok()?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let mut words = line.split(' ');
    let (word, id, hex) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || hex.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut bytes = Zeroizing::new([0; 32]);
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Some((word, KeyId(id.parse().ok()?), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_generated_key_is_read_again_and_its_public_half_too() {
        let dir = directory();
        for (n, scheme) in [Scheme::HmacSha256, Scheme::Ed25519, Scheme::Aes256Gcm]
            .into_iter()
            .enumerate()
        {
            let path = dir.path().join(scheme.as_str());
            let id = KeyId(u32::MAX - n as u32);
            let made = Key::generate_file(scheme, id, &path).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600);
            let read = Key::from_file(&path).unwrap();
            assert_eq!((read.id(), read.scheme()), (id, scheme));
            assert_eq!(read.public(), made.public());
            assert!(matches!(
                Key::generate_file(scheme, id, &path),
                Err(KeyFileError::Io { call: "create", .. })
            ));
        }
        let public = Key::from_file(&dir.path().join("ed25519.pub")).unwrap();
        assert!(!public.can_protect());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command_that_helps() {
        let dir = directory();
        let path = dir.path().join("key");
        Key::generate_file(Scheme::Aes256Gcm, KeyId(1), &path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o644] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = Key::from_file(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn links_directories_and_other_peoples_files_are_refused() {
        let dir = directory();
        let path = dir.path().join("key");
        Key::generate_file(Scheme::Aes256Gcm, KeyId(1), &path).unwrap();
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(
            Key::from_file(&link),
            Err(KeyFileError::Io { call: "open", .. })
        ));
        assert!(matches!(
            Key::from_file(dir.path()),
            Err(KeyFileError::Kind { .. })
        ));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            assert!(matches!(
                Key::from_file(&path),
                Err(KeyFileError::Owner { found: 65_534, .. })
            ));
        }
    }

    #[test]
    fn a_key_comes_through_a_pipe_and_through_memory() {
        let text = format!("hmac-sha-256 9 {}\n", "0f".repeat(31) + "aa");
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        drop(writer);
        assert_eq!(Key::from_fd(reader.into()).unwrap().id(), KeyId(9));
        let memory = rustix::fs::memfd_create("key", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(memory);
        file.write_all(text.as_bytes()).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        assert_eq!(Key::from_fd(file.into()).unwrap().id(), KeyId(9));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let dir = directory();
        let path = dir.path().join("key");
        let good = "0f".repeat(31) + "aa";
        for text in [
            String::new(),
            format!("aes-256-gcm 1 {}", &good[1..]),
            format!("aes-256-gcm 1 {good} x"),
            format!("aes-256-gcm +1 {good}"),
            format!("aes-256-gcm 4294967296 {good}"),
            format!("aes-128-gcm 1 {good}"),
            format!("aes-256-gcm 1 {}", good.replace('0', "g")),
            format!("aes-256-gcm  1 {good}"),
            format!("aes-256-gcm 1 {good}\n\n"),
            good.repeat(8),
        ] {
            write_new(&path, 0o600, &text).unwrap();
            let error = Key::from_file(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Syntax { .. }), "{text}");
            assert!(!format!("{error} {error:?}").contains("0f0f"));
            std::fs::remove_file(&path).unwrap();
        }
        write_new(&path, 0o600, &format!("aes-256-gcm 1 {}", "00".repeat(32))).unwrap();
        assert!(matches!(
            Key::from_file(&path),
            Err(KeyFileError::Key {
                source: KeyError::Trivial,
                ..
            })
        ));
    }
}
